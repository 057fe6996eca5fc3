//! One run: what is asked for, and what came of it.

use std::fmt;

use crate::faults::Plan;
use crate::world::Failure;

/// A bug that is planted to see whether the simulation finds it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Plant {
    /// None.
    #[default]
    Nothing,
    /// Syncs are answered before anything is flushed.
    AckBeforeSync,
    /// A leader that comes back goes on in its old term.
    LeaderRestore,
    /// A node applies what it should apply in order in the order of a hash map.
    HashOrder,
    /// A reader's place is noted before its connection took anything.
    EarlyPlace,
}

impl Plant {
    /// Returns the plant of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Nothing, Self::AckBeforeSync, Self::LeaderRestore, Self::HashOrder, Self::EarlyPlace]
            .into_iter()
            .find(|plant| plant.to_string() == name)
    }
}

impl fmt::Display for Plant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nothing => "nothing",
            Self::AckBeforeSync => "ack-before-sync",
            Self::LeaderRestore => "leader-restore",
            Self::HashOrder => "hash-order",
            Self::EarlyPlace => "early-place",
        })
    }
}

/// What runs in the world.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Scene {
    /// Consensus and the log alone, under a machine that only records.
    Raft,
    /// Whole nodes: everything below the gRPC handlers.
    #[default]
    Nodes,
}

impl Scene {
    /// Returns the scene of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        [Self::Raft, Self::Nodes].into_iter().find(|scene| scene.to_string() == name)
    }
}

impl fmt::Display for Scene {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Raft => "raft",
            Self::Nodes => "nodes",
        })
    }
}

/// What a run is asked to do.
#[derive(Clone, Debug)]
pub struct Asked {
    /// What runs.
    pub scene: Scene,
    /// What everything is drawn from.
    pub seed: u64,
    /// How long faults go on, in simulated seconds.
    pub seconds: u64,
    /// Whether the trace is kept as text.
    pub trace: bool,
    /// The planted bug.
    pub plant: Plant,
    /// The faults, drawn from the seed unless given.
    pub plan: Option<Plan>,
}

impl Asked {
    /// Returns the run of `seed` as a sweep makes it.
    #[must_use]
    pub fn of(scene: Scene, seed: u64, seconds: u64) -> Self {
        Self { scene, seed, seconds, trace: false, plant: Plant::Nothing, plan: None }
    }

    /// Returns the faults of this run.
    #[must_use]
    pub fn plan(&self) -> Plan {
        self.plan.clone().unwrap_or_else(|| Plan::draw(self.seed, self.seconds))
    }

    /// Returns the command that repeats this run.
    #[must_use]
    pub fn command(&self) -> String {
        let mut command = format!("tests/run sim --seed {} --seconds {}", self.seed, self.seconds);
        if self.scene != Scene::default() {
            command.push_str(&format!(" --scene {}", self.scene));
        }
        if self.plant != Plant::Nothing {
            command.push_str(&format!(" --plant {}", self.plant));
        }
        command
    }
}

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Ended {
    /// The hash of the trace.
    pub hash: u64,
    /// The trace, when it was asked for.
    pub trace: String,
    /// Simulated nanoseconds.
    pub simulated: u64,
    /// How often tasks were polled.
    pub polls: u64,
    /// What was done, for the reader.
    pub tally: String,
    /// Why it failed, if it did.
    pub failure: Option<Failure>,
}

/// Runs what is asked for, with the trip wires armed. Must have a thread of its own: what the threads of a process
/// share would make the wires count differently.
#[must_use]
pub fn run(asked: &Asked) -> Ended {
    crate::tripwire::arm();
    let mut ended = match asked.scene {
        Scene::Raft => crate::raft_scene::run(asked),
        Scene::Nodes => crate::nodes_scene::run(asked),
    };
    if let Err(reason) = crate::tripwire::check()
        && ended.failure.is_none()
    {
        ended.failure = Some(Failure { seed: asked.seed, at: ended.simulated, reason });
    }
    ended
}
