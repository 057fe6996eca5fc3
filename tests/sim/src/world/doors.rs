//! The doors of `kubemq_runtime`, backed by the world.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use kubemq_runtime::clock::TimeSource;
use kubemq_runtime::task::{Abort, Spawner};
use kubemq_runtime::{Clock, Instant, Runtime, Tasks, UnixNanos};

use super::{Place, Sleep, World};

struct PlaceClock {
    world: World,
    place: Arc<Place>,
}

impl TimeSource for PlaceClock {
    fn now(&self) -> Instant {
        Instant::from_nanos(self.world.monotonic(self.place.node).saturating_sub(self.place.origin))
    }

    fn wall(&self) -> UnixNanos {
        UnixNanos(self.world.wall(self.place.node))
    }

    fn sleep_until(&self, deadline: Instant) -> BoxFuture<'static, ()> {
        let deadline = deadline.as_nanos().saturating_add(self.place.origin);
        Box::pin(Sleep::new(self.world.clone(), self.place.node, deadline))
    }
}

struct PlaceTasks {
    world: World,
    place: Arc<Place>,
}

impl Spawner for PlaceTasks {
    fn spawn(&self, name: &'static str, future: BoxFuture<'static, ()>) -> Box<dyn Abort> {
        let task = self.world.spawn(&self.place, name, future);
        Box::new(AbortTask { world: self.world.clone(), task })
    }

    fn dedicated(&self, name: &'static str, future: BoxFuture<'static, ()>) {
        self.world.spawn(&self.place, name, future);
    }

    fn compute(&self, name: &'static str, work: Box<dyn FnOnce() + Send>) {
        self.world.spawn(&self.place, name, Box::pin(async move { work() }));
    }
}

struct AbortTask {
    world: World,
    task: Option<u64>,
}

impl Abort for AbortTask {
    fn abort(&self) {
        if let Some(task) = self.task {
            self.world.abort(task);
        }
    }
}

impl World {
    /// Returns the clock of one life of a node.
    #[must_use]
    pub fn runtime_clock(&self, place: &Arc<Place>) -> Clock {
        Clock::new(PlaceClock { world: self.clone(), place: Arc::clone(place) })
    }

    /// Returns the doors of one life of a node.
    #[must_use]
    pub fn runtime(&self, place: &Arc<Place>) -> Runtime {
        let clock = self.runtime_clock(place);
        let tasks = Tasks::new(PlaceTasks { world: self.clone(), place: Arc::clone(place) });
        let random = self.random(&format!("runtime {} {}", place.node, place.life));
        Runtime { clock, random, tasks }
    }
}
