//! Delayed messages come due: one task for all of them, asleep until the earliest.

use std::time::Duration;

use kubemq_broker::Operation;

use crate::gateway::Gateway;

/// Timers released by one operation, at most.
const RELEASE_BATCH: usize = 1024;
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
        let (due, next) = gateway.with_core(|core| (core.state.due(now, RELEASE_BATCH), core.state.next_due()));
        let operation = match next {
            _ if !due.is_empty() => Operation::Release { timers: due },
            // Far timers come near when the state hears what time it is.
            Some(next) if next <= now => Operation::Beat,
            _ => {
                let sleep = next.map_or(LONGEST_SLEEP, |next| Duration::from_nanos(next.saturating_sub(now)));
                // Ends early when an earlier timer is set.
                clock.timeout(sleep.min(LONGEST_SLEEP), timer_set.notified()).await.ok();
                continue;
            }
        };
        if let Err(error) = gateway.submit(vec![operation.to_bytes()]).await {
            tracing::debug!(%error, "could not release delayed messages yet");
            clock.sleep(RETRY).await;
        }
    }
}
