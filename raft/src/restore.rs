//! What a node starts from: the snapshot that its log names, or the one before where that is damaged and the log still
//! reaches back so far. It never starts from less than its log was purged for.

use kubemq_runtime::chain;
use kubemq_storage::Error as StorageError;
use kubemq_storage::log::Log;
use kubemq_storage::snapshot::SnapshotFile;
use openraft::AsyncRuntime;

use crate::error::Error;
use crate::machine::{Machine, Meta};
use crate::reclaim::Marks;
use crate::state_machine::{RestoreError, StateMachine};
use crate::types;

/// Restores the snapshot that the log's pointer names, and returns the segments in which nothing or little of it lives.
pub(crate) async fn restore<R: AsyncRuntime, M: StateMachine>(machine: &Machine<R, M>) -> Result<Marks, Error> {
    let Some((_, name)) = machine.shared.log.state().snapshot else { return Ok(Marks::default()) };
    let meta = restore_newest(machine, &name).await?;
    forget_what_nobody_needs(&machine.shared.log, &meta).await?;
    machine.state.lock().machine.snapshot_is_durable(meta.index());
    let living = {
        let moment = machine.moment();
        [moment.living(), moment.living()]
    };
    Marks::of(&machine.shared, meta.index(), living).await
}

/// Restores the snapshot of that name; when that cannot be read, the newest one that can and is of use.
async fn restore_newest<R: AsyncRuntime, M: StateMachine>(machine: &Machine<R, M>, name: &str) -> Result<Meta, Error> {
    let mut files = machine.shared.snapshots.files();
    files.sort_by_key(|file| (file.name != name, std::cmp::Reverse(file.number)));
    let mut failed = None;
    for file in files {
        match restore_file(machine, &file).await {
            Ok(Some(meta)) => return Ok(meta),
            Ok(None) => {}
            // A file of a newer program is no damage: passing it over would lose what the newer one wrote.
            Err(Error::Storage(error)) if !matches!(error, StorageError::UnknownVersion { .. }) => {
                tracing::error!(snapshot = file.name, error = %chain(&error), "snapshot cannot be read");
                failed.get_or_insert(error);
            }
            Err(error) => return Err(error),
        }
    }
    // Starting without one would forget what it holds.
    let missing = || RestoreError(format!("the log needs snapshot {name}, and it is not there")).into();
    Err(failed.map_or_else(missing, Error::from))
}

/// Restores the snapshot in that file, if it reaches to where the log was purged: the log goes on from there.
async fn restore_file<R: AsyncRuntime, M: StateMachine>(
    machine: &Machine<R, M>,
    file: &SnapshotFile,
) -> Result<Option<Meta>, Error> {
    let held = machine.shared.snapshots.hold(file).await?;
    let meta = held.reader().await?.meta().clone();
    let meta = Meta::decode(meta).map_err(|error| RestoreError(error.to_string()))?;
    if machine.shared.log.state().purged.is_some_and(|purged| meta.index() < purged.index) {
        return Ok(None);
    }
    machine.restore(meta.clone(), held).await?;
    Ok(Some(meta))
}

/// Purges the log up to a snapshot that was restored, as it is done after each snapshot, when there are no other members:
/// what lies there and is damaged must not keep the node from starting.
async fn forget_what_nobody_needs(log: &Log, meta: &Meta) -> Result<(), Error> {
    let Some(id) = meta.raft.last_log_id.as_ref().map(types::stored_id) else { return Ok(()) };
    let alone = meta.raft.last_membership.membership().nodes().count() == 1;
    if alone && log.state().last.is_some_and(|last| last.index >= id.index) {
        log.purge(id).await?;
    }
    Ok(())
}
