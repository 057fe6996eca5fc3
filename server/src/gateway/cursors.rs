//! The places of readers of stored events, carried into the log once a second while somebody reads.

use std::time::Duration;

use super::Gateway;

/// How often places are noted: what connections took since may be delivered again when they are lost.
const EVERY: Duration = Duration::from_secs(1);
/// How often places are noted although nobody moved, at least: they are forgotten when they are not used for long.
const REFRESH: Duration = Duration::from_secs(3600);

/// Notes how far readers came, for as long as the node lives. Only the proposals of a leader have an effect.
pub(crate) async fn keep_places(gateway: Gateway) {
    let clock = gateway.runtime().clock.clone();
    let refresh = gateway.retention().places.map_or(REFRESH, |places| (places / 4).clamp(EVERY, REFRESH));
    let mut refreshed = clock.now();
    let came = gateway.with_core(|core| std::sync::Arc::clone(&core.desk.readers.came));
    loop {
        if gateway.with_core(|core| core.desk.readers.is_empty()) {
            came.notified().await;
        }
        clock.sleep(EVERY).await;
        let is_due = clock.now() >= refreshed + refresh;
        if is_due {
            refreshed = clock.now();
        }
        let notes = gateway.with_core(|core| {
            if is_due {
                core.desk.readers.refresh();
            }
            core.note_readers()
        });
        if notes.is_empty() {
            continue;
        }
        let operations = notes.iter().map(|note| note.operation.to_bytes()).collect();
        if let Err(error) = gateway.submit(operations).await {
            tracing::debug!(%error, "could not note the places of readers yet");
            gateway.with_core(|core| notes.iter().for_each(|note| core.note_again(&note.key)));
        }
    }
}
