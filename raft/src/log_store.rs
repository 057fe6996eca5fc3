//! openraft's log on our log.
//!
//! Append returns once the entries can be read; the callback fires after the group's sync, in order. Votes,
//! appends, truncations and purges pass the log's one inbox, so that nothing overtakes anything. An error goes
//! to openraft, which stops; the log by itself refuses to go on.

use std::fmt::Debug;
use std::io;
use std::marker::PhantomData;
use std::ops::{Bound, RangeBounds};

use futures_util::Stream;
use futures_util::stream;
use kubemq_storage as storage;
use kubemq_storage::log::Log;
use openraft::storage::{IOFlushed, RaftLogStorage};
use openraft::{AsyncRuntime, LogState, OptionalSend, RaftLogReader};

use crate::time::ClusterTime;
use crate::types::{self, Entry, LogId, Types, Vote};

/// Bytes read at once when entries are applied.
const APPLY_BYTES: u64 = 4 << 20;

/// See the module.
pub(crate) struct LogStore<R> {
    log: Log,
    time: ClusterTime,
    append_bytes: u64,
    runtime: PhantomData<fn() -> R>,
}

impl<R> LogStore<R> {
    pub(crate) fn new(log: Log, time: ClusterTime, append_bytes: u64) -> Self {
        Self { log, time, append_bytes, runtime: PhantomData }
    }

    async fn entries(&self, from: u64, to: u64, bytes: u64) -> Result<Vec<Entry>, io::Error> {
        if from >= to {
            return Ok(Vec::new());
        }
        let entries = self.log.entries(from, to, bytes).await.map_err(io::Error::other)?;
        entries.into_iter().map(|entry| types::raft_entry(entry).map_err(io::Error::other)).collect()
    }

    /// Returns the index of the first entry, or where it would be.
    fn first(&self) -> u64 {
        match self.log.state().purged {
            Some(purged) => purged.index + 1,
            None => self.log.segments().iter().filter_map(|segment| segment.first).min().unwrap_or(0),
        }
    }

    /// The indexes of `range`, as far as there are entries.
    fn bounds(&self, range: &impl RangeBounds<u64>) -> (u64, u64) {
        let from = match range.start_bound() {
            Bound::Included(from) => *from,
            Bound::Excluded(before) => before + 1,
            Bound::Unbounded => 0,
        };
        let end = self.log.state().last.map_or(0, |last| last.index + 1);
        let to = match range.end_bound() {
            Bound::Included(last) => last + 1,
            Bound::Excluded(to) => *to,
            Bound::Unbounded => end,
        };
        (from, to.min(end))
    }
}

impl<R> Clone for LogStore<R> {
    fn clone(&self) -> Self {
        Self::new(self.log.clone(), self.time.clone(), self.append_bytes)
    }
}

impl<R: AsyncRuntime> RaftLogReader<Types<R>> for LogStore<R> {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> Result<Vec<Entry>, io::Error> {
        let (from, to) = self.bounds(&range);
        // What is not there is left out.
        let mut from = from.max(self.first());
        let mut entries = self.entries(from, to, u64::MAX).await?;
        while let Some(last) = entries.last().map(|entry| entry.log_id.index)
            && last + 1 < to
        {
            from = last + 1;
            entries.extend(self.entries(from, to, u64::MAX).await?);
        }
        Ok(entries)
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> Result<Vec<Entry>, io::Error> {
        self.entries(start, end, self.append_bytes).await
    }

    async fn entries_stream<RB>(&mut self, range: RB) -> impl Stream<Item = Result<Entry, io::Error>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, to) = self.bounds(&range);
        let state = (self.clone(), from, to, Vec::new().into_iter());
        Box::pin(stream::try_unfold(state, |(store, mut from, to, mut read)| async move {
            loop {
                if let Some(entry) = read.next() {
                    return Ok(Some((entry, (store, from, to, read))));
                }
                if from >= to {
                    return Ok(None);
                }
                let entries = store.entries(from, to, APPLY_BYTES).await?;
                let Some(last) = entries.last() else { return Ok(None) };
                from = last.log_id.index + 1;
                read = entries.into_iter();
            }
        }))
    }

    async fn read_vote(&mut self) -> Result<Option<Vote>, io::Error> {
        let vote = self.log.state().vote;
        Ok((vote != storage::Vote::default()).then(|| types::raft_vote(vote)))
    }
}

impl<R: AsyncRuntime> RaftLogStorage<Types<R>> for LogStore<R> {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types<R>>, io::Error> {
        let state = self.log.state();
        let purged = state.purged.map(types::raft_id);
        Ok(LogState { last_purged_log_id: purged, last_log_id: state.last.map(types::raft_id).or(purged) })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> Result<(), io::Error> {
        self.log.save_vote(types::stored_vote(vote)).await.map_err(io::Error::other)
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), io::Error> {
        if let Some(committed) = committed {
            self.log.save_committed(types::stored_id(&committed));
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, io::Error> {
        Ok(self.log.state().committed.map(types::raft_id))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types<R>>) -> Result<(), io::Error>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<_> = entries.into_iter().map(types::stored_entry).collect();
        // Some entries carry no time.
        if let Some(time) = entries.iter().map(|entry| entry.time).max().filter(|time| *time > 0) {
            self.time.hear(time);
        }
        self.log.append(entries, Box::new(move |result| callback.io_completed(result.map_err(io::Error::other))));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> Result<(), io::Error> {
        let last = last.as_ref().map(types::stored_id);
        self.log.truncate_after(last).await.map_err(io::Error::other)
    }

    async fn purge(&mut self, upto: LogId) -> Result<(), io::Error> {
        self.log.purge(types::stored_id(&upto)).await.map_err(io::Error::other)
    }
}
