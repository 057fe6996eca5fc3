//! The executor replays, and refuses what cannot be replayed.

#![expect(clippy::unwrap_used, reason = "helpers of tests; a failure names its line")]

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use kubemq_runtime::OnFailure;
use kubemq_runtime::sync::{mpsc, watch};
use kubemq_sim::openraft_runtime::SimRuntime;
use kubemq_sim::world::{Order, Simulation, World};
use openraft::AsyncRuntime;
use parking_lot::Mutex;

const MINUTE: Duration = Duration::from_secs(60);

/// What may be planted into the little workload below.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Planted {
    Nothing,
    HashMap,
    TokioWatch,
}

/// Three nodes of eight tasks that wait for a shared value, sleep a random while and send; everything is traced.
fn little_workload(seed: u64, planted: Planted) -> u64 {
    let mut simulation = Simulation::new(seed, Order::Any, MINUTE, false);
    let world = simulation.world();
    let root = {
        let world = world.clone();
        async move {
            let (sender, mut receiver) = mpsc::channel::<(usize, u64)>(4);
            let (ours, _) = watch::channel(0_u64);
            #[expect(clippy::disallowed_methods, reason = "planted")]
            let (tokios, _) = tokio::sync::watch::channel(0_u64);
            for node in 1..=3 {
                let place = world.place(node);
                let runtime = world.runtime(&place);
                for _ in 0..8 {
                    let (sender, doors) = (sender.clone(), runtime.clone());
                    let (mut ours, mut tokios) = (ours.subscribe(), tokios.subscribe());
                    runtime.tasks.spawn("little", OnFailure::StopNode, async move {
                        while if planted == Planted::TokioWatch {
                            tokios.changed().await.is_ok()
                        } else {
                            ours.changed().await.is_ok()
                        } {
                            let pause = doors.random.below(1_000_000);
                            doors.clock.sleep(Duration::from_nanos(pause)).await;
                            if sender.send((node, pause)).await.is_err() {
                                break;
                            }
                        }
                    });
                }
            }
            drop(sender);
            let tracer = world.clone();
            let place = world.place(0);
            let reader = world.runtime(&place).tasks.spawn("reader", OnFailure::StopNode, async move {
                while let Some((node, pause)) = receiver.recv().await {
                    tracer.trace(node, format_args!("got {pause}"));
                }
            });
            for round in 1..=20 {
                ours.send(round);
                tokios.send(round).ok();
                world.sleep(Duration::from_millis(2)).await;
                if planted == Planted::HashMap {
                    visit_in_hash_order(&world);
                }
            }
            drop((ours, tokios));
            reader.await.unwrap();
        }
    };
    simulation.run(root).unwrap();
    world.hash()
}

#[expect(clippy::disallowed_types, reason = "planted")]
fn visit_in_hash_order(world: &World) {
    let map: std::collections::HashMap<u64, u64> = (0..8).map(|n| (n, n)).collect();
    for key in map.keys() {
        world.trace(0, format_args!("key {key}"));
    }
}

#[test]
fn one_seed_is_one_run() {
    let first = little_workload(7, Planted::Nothing);
    for _ in 0..20 {
        assert_eq!(little_workload(7, Planted::Nothing), first);
    }
    let other = little_workload(8, Planted::Nothing);
    assert_ne!(other, first);
    assert_eq!(little_workload(7, Planted::Nothing), first, "another seed in between left something behind");
}

#[test]
fn planted_randomness_is_found() {
    for planted in [Planted::HashMap, Planted::TokioWatch] {
        let first = little_workload(7, planted);
        assert!((0..20).any(|_| little_workload(7, planted) != first));
    }
}

#[test]
fn the_order_of_ready_tasks_comes_from_the_seed() {
    let order = |seed, order| {
        let mut simulation = Simulation::new(seed, order, MINUTE, false);
        let world = simulation.world();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let result = Arc::clone(&seen);
        simulation
            .run(async move {
                let place = world.place(1);
                for task in 0..10 {
                    let seen = Arc::clone(&seen);
                    world.spawn(&place, "task", Box::pin(async move { seen.lock().push(task) }));
                }
                world.sleep(Duration::from_nanos(1)).await;
            })
            .unwrap();
        result.lock().clone()
    };
    assert_eq!(order(1, Order::Fifo), (0..10).collect::<Vec<_>>());
    assert_ne!(order(1, Order::Any), order(2, Order::Any));
    assert_eq!(order(1, Order::Any), order(1, Order::Any));
}

fn failing(root: impl FnOnce(World) -> BoxFuture<'static, ()>) -> String {
    let mut simulation = Simulation::new(1, Order::Any, MINUTE, false);
    let world = simulation.world();
    simulation.run(root(world)).unwrap_err().reason
}

#[test]
fn what_cannot_be_simulated_is_refused() {
    let foreign = failing(|_| {
        let (sender, mut receiver) = tokio::sync::oneshot::channel::<()>();
        let mut sender = Some(sender);
        Box::pin(futures_util::future::poll_fn(move |cx| {
            let polled = std::future::Future::poll(std::pin::Pin::new(&mut receiver), cx);
            let sender = sender.take();
            #[expect(clippy::disallowed_methods, reason = "planted")]
            let thread = std::thread::spawn(move || drop(sender));
            assert!(thread.join().is_err());
            polled.map(|_| ())
        }))
    });
    assert!(foreign.contains("from outside the world"), "{foreign}");

    let deadlock = failing(|_| Box::pin(std::future::pending()));
    assert!(deadlock.contains("deadlock") && deadlock.contains("root"), "{deadlock}");

    let livelock = failing(|_| {
        Box::pin(futures_util::future::poll_fn(|cx| {
            cx.waker().wake_by_ref();
            std::task::Poll::Pending
        }))
    });
    assert!(livelock.contains("livelock"), "{livelock}");

    let spinning = failing(|world| {
        Box::pin(async move {
            let place = world.place(1);
            let clock = world.runtime_clock(&place);
            while clock.now().as_nanos() < 1 {
                std::hint::spin_loop();
            }
        })
    });
    assert!(spinning.contains("for ever"), "{spinning}");

    let endless = failing(|world| {
        Box::pin(async move {
            loop {
                world.sleep(Duration::from_secs(1)).await;
            }
        })
    });
    assert!(endless.contains("did not end"), "{endless}");

    let stray = failing(|_| {
        Box::pin(async {
            #[expect(clippy::disallowed_methods, reason = "planted")]
            tokio::time::sleep(Duration::from_secs(1)).await;
        })
    });
    assert!(stray.contains("no reactor running") || stray.contains("Tokio"), "{stray}");

    let caught = failing(|world| {
        Box::pin(async move {
            let place = world.place(1);
            let task = world.runtime(&place).tasks.spawn("client", OnFailure::Log, async { panic!("of a client") });
            assert!(task.await.is_err());
            std::future::pending().await
        })
    });
    assert!(caught.contains("of a client"), "{caught}");
}

#[test]
fn a_kill_leaves_nothing_behind() {
    let mut simulation = Simulation::new(3, Order::Any, MINUTE, false);
    let world = simulation.world();
    simulation
        .run(async move {
            let place = world.place(1);
            let runtime = world.runtime(&place);
            let dropped = Arc::new(Mutex::new(Vec::new()));
            for number in 0..5 {
                /// Notes its end and tries to start more at the dying place.
                struct Stubborn(kubemq_runtime::Runtime, Arc<Mutex<Vec<u32>>>, u32);
                impl Drop for Stubborn {
                    fn drop(&mut self) {
                        self.1.lock().push(self.2);
                        self.0.tasks.spawn("after death", OnFailure::StopNode, std::future::pending::<()>());
                    }
                }
                let stubborn = Stubborn(runtime.clone(), Arc::clone(&dropped), number);
                let doors = runtime.clone();
                runtime.tasks.spawn("stubborn", OnFailure::StopNode, async move {
                    let _stubborn = stubborn;
                    loop {
                        doors.clock.sleep(Duration::from_millis(3)).await;
                    }
                });
            }
            world.sleep(Duration::from_millis(10)).await;
            assert_eq!(world.tasks(&place), 5);
            assert_eq!(world.kill(&place), 5);
            assert_eq!(world.tasks(&place), 0);
            assert_eq!(*dropped.lock(), [0, 1, 2, 3, 4]);
            runtime.tasks.spawn("late", OnFailure::StopNode, std::future::pending::<()>());
            assert_eq!(world.tasks(&place), 0);
        })
        .unwrap();
}

#[test]
fn nodes_have_clocks_of_their_own_and_freeze() {
    let mut simulation = Simulation::new(3, Order::Any, MINUTE, false);
    let world = simulation.world();
    simulation
        .run(async move {
            world.set_drift(1, 100_000);
            let (fast, even) = (world.place(1), world.place(2));
            let (fast, even) = (world.runtime(&fast), world.runtime(&even));
            let wall = fast.clock.wall();
            let (done, mut ended) = mpsc::channel(2);
            for (node, doors) in [(1, fast.clone()), (2, even.clone())] {
                let done = done.clone();
                let clock = doors.clock.clone();
                doors.tasks.spawn("sleeper", OnFailure::StopNode, async move {
                    clock.sleep(Duration::from_secs(11)).await;
                    assert!(clock.now().as_nanos() >= 11_000_000_000);
                    done.send(node).await.ok();
                });
            }
            assert_eq!(ended.recv().await, Some(1));
            let at = world.now();
            assert!((9_999_999_999..=10_000_000_002).contains(&at), "{at}");
            world.freeze(2);
            world.jump_wall(1, true, Duration::from_secs(3600));
            assert!(fast.clock.wall().0 - wall.0 >= 3_611_000_000_000);
            world.sleep(Duration::from_secs(5)).await;
            assert!(ended.try_recv().is_err());
            world.thaw(2);
            assert_eq!(ended.recv().await, Some(2));
            assert_eq!(world.now(), at + 5_000_000_000);
        })
        .unwrap();
}

#[test]
fn openraft_draws_and_sleeps_in_the_world() {
    let draw = |seed| {
        let mut simulation = Simulation::new(seed, Order::Any, MINUTE, false);
        let world = simulation.world();
        let place = world.place(1);
        simulation
            .run(async move {
                let (sender, receiver) = tokio::sync::oneshot::channel();
                world.spawn(
                    &place,
                    "node",
                    Box::pin(async move {
                        let mut random = SimRuntime::thread_rng();
                        let drawn = rand::RngExt::random_range(&mut random, 0..u64::MAX);
                        SimRuntime::sleep(Duration::from_millis(drawn % 1000)).await;
                        let late = SimRuntime::timeout(Duration::from_millis(5), std::future::pending::<()>()).await;
                        assert!(late.is_err());
                        let blocking = SimRuntime::spawn_blocking(move || drawn).await.unwrap();
                        sender.send(SimRuntime::spawn(async move { blocking }).await.unwrap()).ok();
                    }),
                );
                (receiver.await.unwrap(), world.now())
            })
            .unwrap()
    };
    assert_eq!(draw(5), draw(5));
    assert_ne!(draw(5).0, draw(6).0);
    let (drawn, ended) = draw(5);
    assert_eq!(ended, (drawn % 1000 + 5) * 1_000_000);
}
