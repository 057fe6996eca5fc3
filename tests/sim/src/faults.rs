//! What goes wrong in a run: drawn from the seed, started by one task, each fault ended by itself.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use futures_util::FutureExt;
use kubemq_runtime::Random;
use kubemq_storage::fs::{Disk, MemoryDisk};

use crate::cluster::{Cluster, End, Program};
use crate::membership::Change;
use crate::network::NetworkFaults;
use crate::world::{Order, random};

/// What may go wrong in a run, and how often.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// How ready tasks are chosen.
    pub order: Order,
    /// How long faults go on, in simulated seconds.
    pub seconds: u64,
    /// The most milliseconds between two faults.
    pub gap: u64,
    /// How bad the network is all the time.
    pub network: NetworkFaults,
    /// Of a thousand syncs, this many stall.
    pub stalls: u64,
    /// Clock drift of every node, up to so many parts per million either way.
    pub drift: u64,
    /// What may happen, each as often as it is listed.
    pub kinds: Vec<Kind>,
}

/// One kind of fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A process ends and comes back.
    Crash,
    /// A machine loses power and comes back.
    PowerLoss,
    /// All machines lose power at once.
    PowerLossOfAll,
    /// One node hears and is heard by nobody.
    Isolate,
    /// The leader is isolated.
    IsolateLeader,
    /// One node's messages are lost in one direction.
    OneWay,
    /// A node stands still and goes on.
    Freeze,
    /// A sync fails, which ends the process.
    FailedSync,
    /// A write is short, which ends the process.
    ShortWrite,
    /// A wall clock jumps by up to an hour.
    WallJump,
    /// A follower is away for so long that the others purge what it needs.
    Lag,
    /// The process of a node that has just come back ends again.
    CrashTwice,
    /// The leader hands over.
    HandOver,
    /// A disk has next to no room for a while, which may end the process again and again.
    FullDisk,
    /// A machine is lost for ever, and another with an empty disk takes its place.
    Replace,
    /// A node joins and votes.
    Grow,
    /// A node votes no more, and leaves.
    Shrink,
    /// A bit flips on a disk, in what was flushed long ago. No second disk is damaged until that one is replaced.
    BitFlip,
}

const KINDS: [Kind; 18] = [
    Kind::Crash,
    Kind::PowerLoss,
    Kind::PowerLossOfAll,
    Kind::Isolate,
    Kind::IsolateLeader,
    Kind::OneWay,
    Kind::Freeze,
    Kind::FailedSync,
    Kind::ShortWrite,
    Kind::WallJump,
    Kind::Lag,
    Kind::CrashTwice,
    Kind::HandOver,
    Kind::FullDisk,
    Kind::Replace,
    Kind::Grow,
    Kind::Shrink,
    Kind::BitFlip,
];

impl Kind {
    /// Returns whether a process ends by it.
    #[must_use]
    pub fn ends_a_process(self) -> bool {
        !matches!(
            self,
            Self::Isolate
                | Self::IsolateLeader
                | Self::OneWay
                | Self::Freeze
                | Self::WallJump
                | Self::HandOver
                | Self::Grow
        )
    }
}

impl Plan {
    /// Draws the plan of `seed`: every run leaves some kinds of faults out, so that the others meet.
    #[must_use]
    pub fn draw(seed: u64, seconds: u64) -> Self {
        let draw = random(seed, "plan");
        let order = match draw.below(4) {
            0 => Order::Fifo,
            1 => Order::MostlyLast,
            _ => Order::Any,
        };
        let mut kinds: Vec<_> = KINDS.into_iter().filter(|_| draw.below(2) == 0).collect();
        if draw.below(8) == 0 {
            // Where no process ends, time must go on whatever clocks do.
            kinds.retain(|kind| !kind.ends_a_process());
        }
        let often = |most| if draw.below(2) == 0 { 0 } else { draw.below(most) };
        let least_micros = 20 + draw.below(200);
        let network = NetworkFaults {
            least_micros,
            most_micros: least_micros + 50 + draw.below(if draw.below(4) == 0 { 20_000 } else { 800 }),
            late: often(30),
            lost: often(40),
            doubled: often(30),
        };
        let (stalls, drift) = (often(20), often(2_000));
        let gap = 500 + draw.below(6_000);
        Self { order, seconds, gap, network, stalls, drift, kinds }
    }

    /// Returns a plan in which nothing goes wrong.
    #[must_use]
    pub fn calm(seconds: u64) -> Self {
        Self {
            order: Order::Any,
            seconds,
            gap: 1_000,
            network: NetworkFaults::NONE,
            stalls: 0,
            drift: 0,
            kinds: Vec::new(),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} s, order {:?}, gap {} ms, stalls {} ‰, drift {} ppm, {:?}, {:?}",
            self.seconds, self.order, self.gap, self.stalls, self.drift, self.network, self.kinds
        )
    }
}

/// How often it is looked who leads.
const LOOK: Duration = Duration::from_millis(100);
/// For so long a leader must have led before clients surely get on: until then they may wait at a node that led before.
const FOUND: Duration = Duration::from_secs(13);

/// Lets things go wrong as `plan` says, until its time has passed. Returns for how long there was a leader that clients
/// could get on with meanwhile.
pub async fn torment<P: Program>(cluster: Cluster<P>, plan: Plan) -> Duration {
    let until = cluster.world().now() + plan.seconds * 1_000_000_000;
    let (served, ()) = futures_util::join!(served(&cluster, until), start_faults(&cluster, &plan, until));
    served
}

async fn served<P: Program>(cluster: &Cluster<P>, until: u64) -> Duration {
    let world = cluster.world();
    let (mut served, mut leads, mut last) = (Duration::ZERO, Duration::ZERO, None);
    while world.now() < until {
        world.sleep(LOOK).await;
        let leader = cluster.leader_with_lease();
        leads = if leader.is_some() && leader == last { leads + LOOK } else { Duration::ZERO };
        last = leader;
        if leads > FOUND {
            served += LOOK;
        }
    }
    served
}

async fn start_faults<P: Program>(cluster: &Cluster<P>, plan: &Plan, until: u64) {
    let world = cluster.world().clone();
    let draw = world.random("faults");
    cluster.network().set_faults(plan.network);
    for node in cluster.nodes() {
        cluster.set_disk(node, |faults| faults.stalls = plan.stalls);
        let drift = i64::try_from(draw.below(2 * plan.drift + 1)).unwrap_or(0) - i64::try_from(plan.drift).unwrap_or(0);
        world.set_drift(node, drift);
    }
    let mut before_respite = 1 + draw.below(12);
    loop {
        let mut pause = 50 + draw.below(plan.gap);
        if before_respite == 0 {
            // Long enough for an election and some work: otherwise nothing would be done that could go wrong.
            pause += 4_000;
            before_respite = 1 + draw.below(12);
        }
        before_respite -= 1;
        world.sleep(Duration::from_millis(pause)).await;
        if world.now() >= until {
            return;
        }
        let kinds = plan.kinds.len() as u64;
        if let Some(kind) = usize::try_from(draw.below(kinds)).ok().and_then(|at| plan.kinds.get(at)) {
            start(cluster, *kind, &draw);
        }
    }
}

/// Ends all faults and starts every node that is down.
pub fn settle<P: Program>(cluster: &Cluster<P>) {
    let world = cluster.world();
    cluster.network().set_faults(NetworkFaults::NONE);
    cluster.network().heal();
    for node in cluster.nodes() {
        world.thaw(node);
        world.set_drift(node, 0);
        cluster.limit_disk(node, None);
        cluster.set_disk(node, |faults| *faults = crate::disk::DiskFaults::default());
        cluster.start(node);
    }
}

/// How long a node is away: shorter than an election, about as long, or several times as long.
fn outage(draw: &Random) -> Duration {
    let millis = match draw.below(3) {
        0 => 5 + draw.below(300),
        1 => 400 + draw.below(1_200),
        _ => 1_000 + draw.below(4_000),
    };
    Duration::from_millis(millis)
}

fn start<P: Program>(cluster: &Cluster<P>, kind: Kind, draw: &Random) {
    let nodes = cluster.nodes();
    let any = usize::try_from(draw.below(nodes.len() as u64)).ok().and_then(|at| nodes.get(at)).copied().unwrap_or(1);
    let leader = cluster.leader().unwrap_or(any);
    // Every second fault meets the leader.
    let node = if draw.below(2) == 0 { leader } else { any };
    let (time, silent) = (outage(draw), draw.below(2) == 0);
    cluster.world().trace(node, format_args!("fault {kind:?} for {} ms", time.as_millis()));
    match kind {
        Kind::Crash => away(cluster, node, End::Crash, silent, time),
        Kind::PowerLoss => away(cluster, node, End::PowerLoss, silent, time),
        Kind::PowerLossOfAll => {
            for node in nodes {
                away(cluster, node, End::PowerLoss, silent, outage(draw));
            }
        }
        Kind::Lag => {
            let follower = nodes.iter().copied().find(|node| *node != leader).unwrap_or(any);
            let how = if draw.below(2) == 0 { End::Crash } else { End::PowerLoss };
            away(cluster, follower, how, silent, Duration::from_secs(8 + draw.below(12)));
        }
        Kind::CrashTwice => {
            away(cluster, node, End::Crash, silent, Duration::from_millis(20));
            let (cluster, again) = (cluster.clone(), Duration::from_micros(20_000 + draw.below(200_000)));
            let how = if draw.below(2) == 0 { End::Crash } else { End::PowerLoss };
            later(&cluster.clone(), again, move || away(&cluster, node, how, silent, time));
        }
        Kind::Isolate | Kind::IsolateLeader | Kind::OneWay => {
            let node = if kind == Kind::IsolateLeader { leader } else { node };
            for other in nodes.into_iter().filter(|other| *other != node) {
                cluster.network().cut(node, other);
                if kind != Kind::OneWay {
                    cluster.network().cut(other, node);
                }
            }
            let network = cluster.network().clone();
            later(cluster, time, move || network.heal());
        }
        Kind::Freeze => {
            let world = cluster.world().clone();
            world.freeze(node);
            later(cluster, time, move || world.thaw(node));
        }
        Kind::FailedSync => cluster.break_disk(node, |disk| disk.set_faults(|faults| faults.fail_sync = true)),
        Kind::ShortWrite => cluster.break_disk(node, |disk| disk.set_faults(|faults| faults.short_write = true)),
        Kind::FullDisk => {
            cluster.limit_disk(node, Some(draw.below(100_000)));
            let lifted = cluster.clone();
            later(cluster, time, move || lifted.limit_disk(node, None));
        }
        Kind::HandOver => {
            let to = nodes.into_iter().find(|other| *other != leader && (silent || *other != any)).unwrap_or(any);
            let handing = cluster.clone();
            let task = async move {
                let hand_over = |running: P::Running| async move {
                    // It may be refused: then nothing happens, which is a legal outcome.
                    P::raft(&running).transfer_leader(to as u64).await.ok();
                };
                handing.call(leader, Duration::from_secs(5), hand_over).await;
            };
            cluster.world().spawn(cluster.harness(), "hand over", Box::pin(task));
        }
        Kind::WallJump => {
            let by = Duration::from_millis(draw.below(3_600_000));
            cluster.world().jump_wall(node, draw.below(2) == 0, by);
        }
        Kind::Replace => cluster.change(Change::Replace(node)),
        Kind::Grow => cluster.change(Change::Grow),
        Kind::Shrink => cluster.change(Change::Shrink(node)),
        Kind::BitFlip => {
            // While a node is being replaced, the others have the only copies.
            if cluster.damaged().is_none() && cluster.groups().len() == 1 {
                cluster.damage(node, |disk| flip_bit(cluster, node, disk, draw));
            }
        }
    }
}

/// Flips a bit of a file that is not written to any more; returns whether there was one. The last group of the newest
/// segment is spared: damage there cannot be told from a torn write (`kubemq_storage::log`), and is a loss that one disk
/// in a majority must not have.
fn flip_bit<P: Program>(cluster: &Cluster<P>, node: usize, disk: &MemoryDisk, draw: &Random) -> bool {
    let files = |dir: &str| {
        let names = disk.list(Path::new(dir)).now_or_never().and_then(Result::ok).unwrap_or_default();
        names.into_iter().map(|name| Path::new(dir).join(name)).collect::<Vec<_>>()
    };
    let mut written = files("data/log");
    written.retain(|path| path.extension().is_some_and(|extension| extension == "seg"));
    written.sort();
    written.pop();
    written.extend(files("data/snapshots"));
    let Some(path) = usize::try_from(draw.below(written.len() as u64)).ok().and_then(|at| written.get(at)) else {
        return false;
    };
    let len = disk.open(path).now_or_never().and_then(Result::ok);
    let len = len.and_then(|file| file.len().now_or_never()).and_then(Result::ok).unwrap_or(0);
    let bit = draw.below(8 * len);
    cluster.world().trace(node, format_args!("bit {bit} of {} flips", path.display()));
    disk.flip_bit(path, bit)
}

fn away<P: Program>(cluster: &Cluster<P>, node: usize, how: End, silent: bool, time: Duration) {
    if cluster.end(node, None, how, silent) {
        let back = cluster.clone();
        later(cluster, time, move || back.start(node));
    }
}

fn later<P: Program>(cluster: &Cluster<P>, after: Duration, then: impl FnOnce() + Send + 'static) {
    let world = cluster.world().clone();
    let task = async move {
        world.sleep(after).await;
        then();
    };
    cluster.world().spawn(cluster.harness(), "fault ends", Box::pin(task));
}
