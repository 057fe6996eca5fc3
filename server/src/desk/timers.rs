//! Delayed messages come due: one task for all of them, asleep until the earliest.

use std::time::Duration;

use kubemq_broker::Operation;

use crate::gateway::Gateway;

/// Timers released by one operation, at most.
const RELEASE_BATCH: usize = 1024;
/// How much of what will be due is brought back into memory, in nanoseconds.
const AHEAD: u64 = 5_000_000_000;
/// How long to wait before trying again when this node cannot release what is due.
const RETRY: Duration = Duration::from_millis(100);
/// The longest sleep: cluster time may be ahead of or behind this node's clock by a little.
const LONGEST_SLEEP: Duration = Duration::from_secs(60);

/// Proposes the release of delayed messages when they come due, for as long as the node lives. Only the
/// proposals of a leader have an effect.
pub(crate) async fn release_when_due(gateway: Gateway) {
    let clock = gateway.runtime().clock.clone();
    let timer_set = gateway.with_core(|core| core.desk.timer_set.clone());
    loop {
        gateway.lead().await;
        let now = gateway.time().0;
        let (due, came, has_room) = gateway.with_core(|core| {
            let due = core.state.due(now, AHEAD, RELEASE_BATCH);
            core.desk.away.want_all(due.away.iter().copied());
            (due, core.desk.away.came(), gateway.index_memory().has_room_for_released(&core.state))
        });
        if !due.timers.is_empty() {
            let release = Operation::Release { timers: due.timers }.to_bytes();
            if !has_room {
                // What was released before has to be received first.
                clock.sleep(RETRY).await;
            } else if let Err(error) = gateway.submit(vec![release]).await {
                tracing::debug!(%error, "could not release delayed messages yet");
                clock.sleep(RETRY).await;
            }
        } else if !due.away.is_empty() {
            // What is missing may be due before everything that is here. It is asked for again if it does not come.
            clock.timeout(RETRY, came).await.ok();
        } else {
            let sleep = due.look_at.map_or(LONGEST_SLEEP, |at| Duration::from_nanos(at.saturating_sub(now)));
            // Ends early when an earlier timer is set.
            clock.timeout(sleep.min(LONGEST_SLEEP), timer_set.notified()).await.ok();
        }
    }
}
