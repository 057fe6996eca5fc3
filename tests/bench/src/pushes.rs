//! Pushes: what a broker does when it is given far more of something than is usual, below a ceiling of memory.
//!
//! Start reading in [`stage`]: a fresh broker in a [`cgroup`] that kills it above the ceiling, and the [`row`] in
//! which the push ends. The other modules are the pushes by subject. A push that fails has a row, too, which says so.

mod backlog;
mod cgroup;
mod delayed;
mod many;
mod neighbours;
mod readers;
mod reclaim;
mod row;
mod soak;
mod stage;
mod traffic;
mod upload;

use std::time::Duration;

use anyhow::bail;
use futures_util::future::LocalBoxFuture;
use kubemq_runtime::Runtime;
use kubemq_server::cli::output;

pub(crate) use stage::Plan;
use stage::{MIB, Stage};

use crate::{machine, results};

/// One push.
struct Push {
    name: &'static str,
    about: &'static str,
    /// Mebibytes of memory above which the broker is killed.
    ceiling: u64,
    /// What the broker is configured with, as `key=value`.
    settings: &'static [&'static str],
    run: for<'a> fn(&'a mut Stage) -> LocalBoxFuture<'a, anyhow::Result<()>>,
}

/// What the index may take, in the pushes that fill it.
const INDEX: &str = "limits.index=256MiB";

/// Messages may wait for a day.
const DELAY: &str = "queue.maxDelaySeconds=86400";

/// Stored events go after less than a minute of the soak.
const RETENTION: &str = "store.maxMessages=20000";

/// All pushes, in the order in which they stand in the results.
const PUSHES: [Push; 18] = [
    Push {
        name: "backlog-in-batches",
        about: "100 M messages of 100 B wait in one channel, sent in batches",
        ceiling: 512,
        settings: &[INDEX],
        run: |stage| Box::pin(backlog::in_batches(stage)),
    },
    Push {
        name: "backlog-one-by-one",
        about: "10 M messages of 100 B, sent one by one to 1,000 channels",
        ceiling: 512,
        settings: &[INDEX],
        run: |stage| Box::pin(backlog::one_by_one(stage)),
    },
    Push {
        name: "delayed-over-a-day",
        about: "10 M messages that come due over a day",
        ceiling: 512,
        settings: &[INDEX, DELAY],
        run: |stage| Box::pin(delayed::over_a_day(stage)),
    },
    Push {
        name: "delayed-at-once",
        about: "10 M messages that come due at once",
        ceiling: 768,
        settings: &[INDEX, DELAY],
        run: |stage| Box::pin(delayed::at_once(stage)),
    },
    Push {
        name: "channels",
        about: "100,000 channels with 10 messages each",
        ceiling: 512,
        settings: &[INDEX],
        run: |stage| Box::pin(many::channels(stage)),
    },
    Push {
        name: "connections",
        about: "20,000 connections with a subscription each",
        ceiling: 1536,
        settings: &[],
        run: |stage| Box::pin(many::connections(stage)),
    },
    Push {
        name: "idle-streams",
        about: "5,000 streams on which a receiver waits",
        ceiling: 512,
        settings: &[],
        run: |stage| Box::pin(many::idle_streams(stage)),
    },
    Push {
        name: "stalled-readers",
        about: "100 subscribers that do not read, beside others that do",
        ceiling: 768,
        settings: &[],
        run: |stage| Box::pin(readers::stalled(stage)),
    },
    Push {
        name: "uploads",
        about: "64 uploads of 100 MB at once",
        ceiling: readers::BUDGETS / MIB,
        settings: &[],
        run: |stage| Box::pin(readers::uploads(stage)),
    },
    Push {
        name: "in-and-out",
        about: "one million messages in and out; the disk comes back",
        ceiling: 512,
        settings: &[],
        run: |stage| Box::pin(reclaim::in_and_out(stage)),
    },
    Push {
        name: "one-in-each-segment",
        about: "one living message in each segment does not keep the segments",
        ceiling: 512,
        settings: &[],
        run: |stage| Box::pin(reclaim::one_in_each_segment(stage)),
    },
    Push {
        name: "unread-beside-busy",
        about: "an unread channel beside a busy one does not keep what the busy one has settled",
        ceiling: 512,
        settings: &[],
        run: |stage| Box::pin(reclaim::unread_beside_busy(stage)),
    },
    Push {
        name: "noisy-neighbour",
        about: "100 messages a second beside a channel saturated with 64 KiB bodies",
        ceiling: 512,
        settings: &[],
        run: |stage| Box::pin(neighbours::noisy(stage)),
    },
    Push {
        name: "drain-while-publishing",
        about: "10 M messages are drained while others are published",
        ceiling: 512,
        settings: &[INDEX],
        run: |stage| Box::pin(neighbours::drain_while_publishing(stage)),
    },
    Push {
        name: "against-one-channel",
        about: "10,000 channels against one: throughput, fdatasync, messages for each of them",
        ceiling: 512,
        settings: &[],
        run: |stage| Box::pin(many::against_one_channel(stage)),
    },
    Push {
        name: "restart-1-gib",
        about: "1 GiB waits; killed and started again",
        ceiling: 512,
        settings: &[],
        run: |stage| Box::pin(backlog::restart_with_one(stage)),
    },
    Push {
        name: "restart-10-gib",
        about: "10 GiB wait; killed and started again",
        ceiling: 512,
        settings: &[],
        run: |stage| Box::pin(backlog::restart_with_ten(stage)),
    },
    Push {
        name: "soak",
        about: "all five patterns for --minutes",
        ceiling: 512,
        settings: &[RETENTION],
        run: |stage| Box::pin(soak::all_patterns(stage)),
    },
];

/// The longest that a push may take, whatever its size.
const LONGEST: Duration = Duration::from_secs(3600);

/// Prints the names of all pushes.
///
/// # Errors
///
/// When standard output is closed.
pub(crate) fn list() -> anyhow::Result<()> {
    let rows: Vec<_> = PUSHES.iter().map(|push| vec![push.name.to_owned(), push.about.to_owned()]).collect();
    output::table(&["NAME", "WHAT"], &rows)?;
    Ok(())
}

/// Runs the pushes of these names, all when there are none; keeps their rows in the results' file when told to.
/// Returns whether all of them hold what is demanded.
///
/// # Errors
///
/// When there is no push of a name, or a broker does not start.
pub(crate) async fn run(names: &[String], plan: &Plan, write: bool, runtime: &Runtime) -> anyhow::Result<bool> {
    if let Some(unknown) = names.iter().find(|name| PUSHES.iter().all(|push| push.name != **name)) {
        bail!("there is no push {unknown:?}: `push --list` names them");
    }
    let mut all_held = true;
    for push in PUSHES.iter().filter(|push| names.is_empty() || names.iter().any(|name| name == push.name)) {
        output::note(format_args!("{}: {}", push.name, push.about));
        let conditions = machine::conditions(&plan.directory, &plan.broker);
        let mut stage = Stage::open(push.name, push.ceiling * MIB, push.settings, plan, runtime)?;
        let longest = LONGEST + plan.soak;
        let result = match runtime.clock.timeout(longest, (push.run)(&mut stage)).await {
            Ok(result) => result,
            Err(_) => Err(anyhow::anyhow!("not through after {longest:?}")),
        };
        let row = stage.finish(result);
        all_held &= row.held();
        let line = row.line();
        output::line(&line)?;
        if write {
            let names: Vec<_> = PUSHES.iter().map(|push| push.name).collect();
            let old = results::section(row::HEADING)?;
            results::keep(&row::section(&conditions, &old, &[(push.name, line)], &names))?;
        }
    }
    Ok(all_held)
}
