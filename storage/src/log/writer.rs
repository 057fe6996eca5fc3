//! The one task that writes the log: it takes everything that waits, writes it as one group, syncs once,
//! and answers in order. When it may answer before it syncs is decided in [`behind`](super::behind).
//!
//! It never goes on after a failed write or sync: what the disk then holds is in doubt, so every pending
//! and every later request gets the error, and the next open cuts the log at the last synced position.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use kubemq_runtime::sync::oneshot;
use kubemq_runtime::{Instant, OnFailure};

use super::behind::{Behind, Place};
use super::frame::{Frame, GROUP_HEAD, Group, Kind};
use super::group::{Gathered, Item, Placed, mark};
use super::hard_state::HardState;
use super::keeper::{KeeperJob, Spare};
use super::position::Sampler;
use super::queue::Command;
use super::recovery::{Active, NOTE, Note, fold};
use super::segment::{self, Footer, HEADER, Header, Purpose};
use super::shared::{Segment, Shared};
use super::stats::Counts;
use crate::Error;

/// How long nothing may be written before the writer notes that everything is synced.
const IDLE: Duration = Duration::from_millis(100);

/// Groups that have up to this size on average are written where something was written before, if only zeros: the first
/// flush of room that was only reserved changes what the file system says of it, too, which takes longer than the bytes
/// of a small group.
const SMALL: u64 = 24 << 10;
/// So much is paved at once.
pub(super) const PAVED: u64 = 128 << 10;

/// What the end of a page is filled with.
static PAGE: [u8; 4096] = [0; 4096];

pub(crate) struct Writer {
    shared: Arc<Shared>,
    /// What the frames up to the last group say.
    state: HardState,
    sequence: u64,
    active: Option<Active>,
    newest: u64,
    spare: Option<oneshot::Receiver<Result<Spare, Error>>>,
    items: VecDeque<Item>,
    /// Bytes of a group, averaged over the last ones.
    usual: u64,
    /// When the last group was written that no mark follows.
    unmarked: Option<Instant>,
    behind: Behind,
    timer: Option<Timer>,
}

/// When it ends, and its end.
type Timer = (Instant, Pin<Box<dyn Future<Output = ()> + Send>>);

/// Ends the log's other tasks, and refuses later commands, however the writer ends.
struct EndsLog(Arc<Shared>);

impl Drop for EndsLog {
    fn drop(&mut self) {
        // Callbacks that are dropped here unanswered belong to a node that is being torn down.
        drop(self.0.inbox.close(Error::Closed));
        self.0.close_queues();
    }
}

impl Writer {
    pub(crate) fn new(shared: Arc<Shared>, recovered: (HardState, u64, Option<Active>, u64)) -> Self {
        let (state, sequence, active, newest) = recovered;
        let behind = Behind::new(shared.options.flush, active.as_ref().map_or(HEADER as u64, |active| active.offset));
        let (items, unmarked) = (VecDeque::new(), None);
        Self { shared, state, sequence, active, newest, spare: None, items, usual: 0, unmarked, behind, timer: None }
    }

    /// Serves the inbox until no handle of the log is left, it is closed, or the disk fails.
    pub(crate) async fn run(mut self) {
        let _ends = EndsLog(Arc::clone(&self.shared));
        self.order_spare();
        let mut commands = Vec::new();
        loop {
            match self.wait(&mut commands).await {
                Woken::Commands => self.take(&mut commands),
                Woken::Timer => self.on_timer(),
                Woken::Flushed(flushed) => {
                    if let Err(error) = self.flushed(flushed) {
                        return self.fail(error).await;
                    }
                }
                Woken::Abandoned => break,
            }
            while !self.items.is_empty() {
                match self.write_some().await {
                    Ok(false) => {}
                    Ok(true) => return,
                    Err(error) => return self.fail(error).await,
                }
                // What arrived meanwhile joins the next group.
                self.shared.inbox.take(&mut commands);
                self.take(&mut commands);
            }
        }
    }

    fn take(&mut self, commands: &mut Vec<Command>) {
        for command in commands.drain(..) {
            match command {
                Command::Append { entries, epoch, done } => {
                    self.items.extend(entries.into_iter().map(|entry| Item::Entry(entry, epoch)));
                    self.items.push_back(Item::Done(done));
                }
                Command::Frame { frame, epoch, done } => {
                    self.items.push_back(Item::Frame(frame, epoch));
                    self.items.push_back(Item::Done(done));
                }
                Command::Close { done } => {
                    if self.unmarked.is_some() || !self.items.is_empty() {
                        self.items.push_back(mark());
                    }
                    self.items.push_back(Item::Close(done));
                }
            }
        }
    }

    async fn wait(&mut self, commands: &mut Vec<Command>) -> Woken {
        let (shared, behind, timer) = (&self.shared, &mut self.behind, &mut self.timer);
        let due = if behind.is_behind() { behind.due() } else { self.unmarked.map(|written| written + IDLE) };
        std::future::poll_fn(|cx| {
            match shared.inbox.poll_take(cx, commands) {
                Poll::Ready(true) => return Poll::Ready(Woken::Commands),
                Poll::Ready(false) => return Poll::Ready(Woken::Abandoned),
                Poll::Pending => {}
            }
            if let Poll::Ready(flushed) = behind.poll_flushed(cx) {
                return Poll::Ready(Woken::Flushed(flushed));
            }
            let Some(due) = due else { return Poll::Pending };
            // One timer serves many groups: under load it is made ten times a second.
            if timer.as_ref().is_none_or(|(until, _)| *until > due) {
                *timer = Some((due, shared.clock.sleep_until(due)));
            }
            let Some((_, sleep)) = timer else { return Poll::Pending };
            ready!(sleep.as_mut().poll(cx));
            *timer = None;
            Poll::Ready(Woken::Timer)
        })
        .await
    }

    /// Does what is due.
    fn on_timer(&mut self) {
        let now = self.shared.clock.now();
        if self.behind.due().is_some_and(|due| due <= now) {
            self.flush_behind();
        } else if self.unmarked.is_some_and(|written| now.since(written) >= IDLE) && !self.behind.is_behind() {
            self.items.push_back(mark());
        }
    }

    /// Ends and begins flushes while the writer never waits.
    fn look_after_flush(&mut self, now: Instant) -> Result<(), Error> {
        if let Poll::Ready(flushed) = self.behind.poll_flushed(&mut Context::from_waker(Waker::noop())) {
            self.flushed(flushed)?;
        }
        if self.behind.due().is_some_and(|due| due <= now) {
            self.flush_behind();
        }
        Ok(())
    }

    /// Flushes what was written up to here, while more is written.
    fn flush_behind(&mut self) {
        let Some(active) = &self.active else { return };
        let (file, clock) = (Arc::clone(&active.file), self.shared.clock.clone());
        let flush = self.shared.tasks.dedicated("log-flush", OnFailure::Log, async move {
            let started = clock.now();
            file.sync_data().await.map(|()| clock.now().since(started))
        });
        self.behind.begin((active.number, active.offset), flush);
    }

    fn flushed(&mut self, flushed: Result<(Duration, Place), Error>) -> Result<(), Error> {
        let (took, (number, upto)) = flushed?;
        self.shared.counts.synced(took);
        if let Some(active) = self.active.as_ref().filter(|active| active.number == number) {
            self.behind.reached(upto);
            self.shared.counts.unflushed.store(self.behind.bytes(active.offset), Ordering::Relaxed);
        }
        Ok(())
    }

    /// Writes one group of what waits. Returns whether the log is closed now.
    async fn write_some(&mut self) -> Result<bool, Error> {
        if let Some(size) = self.first_size() {
            self.make_room(size).await?;
        }
        let mut group = self.gather();
        if !group.is_empty()
            && let Err(error) = self.write(&mut group).await
        {
            for done in group.close.into_iter().chain(group.done.into_iter().rev()) {
                self.items.push_front(Item::Done(done));
            }
            return Err(error);
        }
        for done in group.done {
            done(Ok(()));
        }
        if let Some(active) = &self.active {
            let range = active.offset.saturating_sub(group.bytes)..active.offset;
            self.shared.has_written(active.number, range);
        }
        let Some(close) = group.close else { return Ok(false) };
        self.refuse(&Error::Closed);
        close(Ok(()));
        Ok(true)
    }

    fn first_size(&self) -> Option<u64> {
        self.items.iter().find_map(Item::size)
    }

    /// Takes what waits, as much as the segment and the size of a group allow.
    fn gather(&mut self) -> Gathered {
        let mut group = Gathered::new();
        let free = |active: &Active| active.len.saturating_sub(active.offset + GROUP_HEAD as u64);
        let room = self.active.as_ref().map_or(0, free);
        if self.active.as_ref().is_some_and(|active| active.offset == HEADER as u64) {
            // A segment repeats the hard state at its head.
            group.push(self.state.to_frame(), None);
        }
        let (most, head) = (self.shared.options.group_bytes, group.length);
        while let Some(item) = self.items.front() {
            let length = group.length + item.size().unwrap_or(0);
            // The first frame always goes: room was made for it.
            if group.length > head && (length > room || length > most) {
                break;
            }
            match self.items.pop_front() {
                Some(Item::Entry(entry, epoch)) => group.push(Frame::entry(&entry), Some(epoch)),
                Some(Item::Frame(frame, epoch)) => group.push(frame, epoch),
                Some(Item::Done(done)) => group.done.push(done),
                Some(Item::Close(done)) => {
                    group.close = Some(done);
                    break;
                }
                None => break,
            }
        }
        if group.length == head {
            // Nothing but answers waits: no group is due.
            return Gathered { pieces: Vec::new(), frames: Vec::new(), ..group };
        }
        self.add_committed(&mut group, room);
        group
    }

    /// Lets the newest committed position ride along, when its entry is in the log by then.
    fn add_committed(&self, group: &mut Gathered, room: u64) {
        let Some(committed) = self.shared.inbox.committed().filter(|id| Some(*id) != self.state.committed) else {
            return;
        };
        let mut state = self.state.last;
        for placed in &group.frames {
            match placed.frame.head.kind {
                Kind::Entry(_) => state = Some(placed.frame.head.id),
                // Rare, and the position has time until the next group.
                Kind::Truncate | Kind::Purge => return,
                _ => {}
            }
        }
        let frame = Frame::new(Kind::Committed, committed, Bytes::new());
        if state.is_some_and(|last| last.index >= committed.index) && group.length + frame.size() <= room {
            group.push(frame, None);
        }
    }

    async fn write(&mut self, group: &mut Gathered) -> Result<(), Error> {
        let Some(active) = &mut self.active else { return Err(Error::Closed) };
        let head = Group {
            length: u32::try_from(group.length).unwrap_or(u32::MAX),
            frames: u32::try_from(group.frames.len()).unwrap_or(u32::MAX),
            synced_to: self.behind.flushed,
            sequence: self.sequence,
            checksums: group.checksums,
        };
        let mut offset = active.offset;
        let mut first = head.encode(active.number, active.offset);
        if active.offset == HEADER as u64 {
            // Header and first group are one write: one is never there without the other.
            let header = Header {
                reused: active.reused,
                purpose: Purpose::Log,
                number: active.number,
                previous: self.newest,
                first_sequence: self.sequence,
            };
            first = [header.encode(), first].concat().into();
            offset = 0;
        }
        group.pieces[0] = first;
        group.pieces.push(group.small.split().freeze());
        group.bytes = group.pieces.iter().map(|piece| piece.len() as u64).sum();
        if active.reused {
            // Whole pages are written without reading what they held before.
            let end = offset + group.bytes;
            group.pieces.push(Bytes::from_static(&PAGE).slice(..to_page_end(end)));
        }
        self.usual = (7 * self.usual + group.bytes) / 8;
        if self.usual <= SMALL {
            active.pave_behind(offset + group.bytes).await?;
        }
        active.file.write_at(offset, &group.pieces).await?;
        let end = active.offset + GROUP_HEAD as u64 + group.length;
        if self.behind.is_allowed(group) {
            let now = self.shared.clock.now();
            if !group.is_only_mark() {
                self.behind.wrote(now);
            }
            self.publish(group, now);
            return self.look_after_flush(now);
        }
        self.behind.finish().await?;
        let started = self.shared.clock.now();
        active.file.sync_data().await?;
        let now = self.shared.clock.now();
        self.shared.counts.synced(now.since(started));
        self.behind.caught_up(end);
        self.publish(group, now);
        Ok(())
    }

    /// Makes known what is synced now.
    fn publish(&mut self, group: &mut Gathered, now: Instant) {
        let Some(active) = &mut self.active else { return };
        if active.offset == HEADER as u64 {
            self.newest = active.number;
        }
        let start = active.offset + GROUP_HEAD as u64;
        active.offset = start + group.length;
        self.sequence += 1;
        let only_mark = group.is_only_mark();
        self.unmarked = (!only_mark).then_some(now);
        let counts = &self.shared.counts;
        Counts::add(&counts.groups, 1);
        Counts::add(&counts.marks, u64::from(only_mark));
        Counts::add(&counts.frames, group.frames.len() as u64);
        Counts::add(&counts.bytes, group.bytes);
        counts.unflushed.store(self.behind.bytes(active.offset), Ordering::Relaxed);
        let mut index = self.shared.index.lock();
        let mut entries = 0;
        for Placed { frame, at, epoch } in &group.frames {
            entries += u64::from(matches!(frame.head.kind, Kind::Entry(_)));
            match fold(&mut self.state, &mut active.sampler, &mut index.positions, active.number, start + at, frame) {
                Ok(None) => {}
                Ok(Some(dead)) => index.forget_read_ahead(dead),
                Err(what) => tracing::error!(what, "a frame that was just written cannot be read back"),
            }
            if *epoch == Some(index.epoch) {
                // Nothing was truncated since: the entries up to here are those that callers see.
                let before =
                    if frame.head.flag || frame.head.kind != Kind::Truncate { frame.head.id.index + 1 } else { 0 };
                index.synced_before = index.synced_before.max(before);
            }
        }
        Counts::add(&counts.entries, entries);
        index.state.vote = self.state.vote;
        index.state.node_id = self.state.node_id;
        index.state.snapshot.clone_from(&self.state.snapshot);
        index.state.committed = self.state.committed;
        index.durable_purged = self.state.purged;
        let (number, end) = (active.number, active.offset);
        let (range, parts) = (active.sampler.range, active.sampler.parts);
        let segment = index.segments.entry(number).or_insert_with(|| Segment {
            file: Arc::clone(&active.file),
            path: active.path.clone(),
            purpose: Purpose::Log,
            range,
            parts,
            end,
            sealed: false,
        });
        (segment.end, segment.range, segment.parts) = (end, range, parts);
        let synced = index.synced_before;
        index.tail.evict(synced, self.shared.options.tail_cache_bytes);
        drop(index);
        self.shared.synced_before.send_if_modified(|before| std::mem::replace(before, synced) != synced);
    }

    /// Makes sure that a group with a frame of `size` bytes fits into the active segment.
    async fn make_room(&mut self, size: u64) -> Result<(), Error> {
        let needed = |offset: u64| offset + GROUP_HEAD as u64 + size;
        let fits = |active: &Active| {
            let first = active.offset == HEADER as u64;
            needed(active.offset) <= active.len || first
        };
        if !self.active.as_ref().is_some_and(fits) {
            self.seal().await?;
            self.activate().await?;
        }
        let head = self.state.to_frame().size();
        let Some(active) = &mut self.active else { return Err(Error::Closed) };
        let needed = needed(active.offset) + if active.offset == HEADER as u64 { head } else { 0 };
        if needed > active.len {
            // A frame larger than a segment has a segment of its own.
            active.file.allocate(needed).await?;
            active.len = needed;
        }
        Ok(())
    }

    /// Ends the active segment with its footer.
    async fn seal(&mut self) -> Result<(), Error> {
        let Some(active) = self.active.take() else { return Ok(()) };
        let Active { number, file, offset, sampler, path, len, reused, paved } = active;
        let Sampler { samples, range, dead_from, parts, .. } = sampler;
        let footer = Footer { range, dead_from, parts, samples, state: self.state.clone() };
        let mut group = Gathered::new();
        group.push(footer.to_frame(), None);
        let head = Group {
            length: u32::try_from(group.length).unwrap_or(u32::MAX),
            frames: 1,
            synced_to: self.behind.flushed,
            sequence: self.sequence,
            checksums: group.checksums,
        };
        group.pieces[0] = head.encode(number, offset);
        group.pieces.push(group.small.split().freeze());
        let end = offset + GROUP_HEAD as u64 + group.length;
        // Kept for the note, should the disk fail here.
        let sampler = Sampler::default();
        self.active = Some(Active { number, file: Arc::clone(&file), path, offset, len, reused, paved, sampler });
        file.write_at(offset, &group.pieces).await?;
        let trailer = segment::trailer(number, offset);
        file.write_at(segment::trailer_at(file.len().await?, end), &[trailer]).await?;
        self.behind.finish().await?;
        let started = self.shared.clock.now();
        file.sync_data().await?;
        self.shared.counts.synced(self.shared.clock.now().since(started));
        Counts::add(&self.shared.counts.groups, 1);
        Counts::add(&self.shared.counts.frames, 1);
        Counts::add(&self.shared.counts.bytes, end - offset);
        self.sequence += 1;
        self.active = None;
        self.behind = Behind::new(self.shared.options.flush, HEADER as u64);
        if let Some(segment) = self.shared.index.lock().segments.get_mut(&number) {
            segment.sealed = true;
        }
        Ok(())
    }

    /// Takes the next segment, which was reserved ahead of need.
    async fn activate(&mut self) -> Result<(), Error> {
        let mut spare = self.take_spare().await;
        if spare.as_ref().is_err_and(Error::is_disk_full) {
            // Room may have been made since.
            spare = self.take_spare().await;
        }
        let Spare { number, file, path, len, reused } = spare?;
        let sampler = Sampler::default();
        self.active = Some(Active { number, file, path, offset: HEADER as u64, len, reused, paved: 0, sampler });
        self.order_spare();
        Ok(())
    }

    async fn take_spare(&mut self) -> Result<Spare, Error> {
        if self.spare.is_none() {
            self.order_spare();
        }
        match self.spare.take() {
            Some(spare) => spare.await.unwrap_or(Err(Error::Closed)),
            None => Err(Error::Closed),
        }
    }

    fn order_spare(&mut self) {
        let (reply, spare) = oneshot::channel();
        self.shared.keeper.push(KeeperJob::Reserve { reply });
        self.spare = Some(spare);
    }

    /// Answers everything that waits, and everything that will come, with `error`.
    fn refuse(&mut self, error: &Error) {
        let mut commands = self.shared.inbox.close(error.clone());
        self.take(&mut commands);
        for item in self.items.drain(..) {
            if let Item::Done(done) | Item::Close(done) = item {
                done(Err(error.clone()));
            }
        }
    }

    /// Stops for good: nothing more is written to the log.
    async fn fail(mut self, error: Error) {
        tracing::error!(error = %kubemq_runtime::chain(&error), "the log has failed and takes nothing more");
        if let Some(active) = &self.active {
            let offset = if active.offset == HEADER as u64 { 0 } else { self.behind.flushed };
            leave_note(&self.shared, Note { number: active.number, offset }).await;
        }
        self.shared.failure.send(Some(error.clone()));
        self.refuse(&error);
        self.shared.tasks.fail("log-writer");
    }
}

impl Active {
    /// Paves room for what follows a group that ends at `end`, when there is none.
    async fn pave_behind(&mut self, end: u64) -> Result<(), Error> {
        if self.reused || end <= self.paved {
            return Ok(());
        }
        let from = end.next_multiple_of(PAGE.len() as u64);
        let to = (from + PAVED).min(self.len);
        if from < to {
            self.file.pave(from..to).await?;
            self.paved = to;
        }
        Ok(())
    }
}

/// Returns how many bytes are missing from `offset` to the end of a page.
fn to_page_end(offset: u64) -> usize {
    usize::try_from(offset.next_multiple_of(PAGE.len() as u64) - offset).unwrap_or(0)
}

/// Why the writer goes on.
enum Woken {
    Commands,
    Timer,
    Flushed(Result<(Duration, Place), Error>),
    Abandoned,
}

/// Says beside the log where it must be cut at the next open. When even that fails, the next open writes
/// the last group again before it trusts it.
async fn leave_note(shared: &Shared, note: Note) {
    let path = shared.dir.join(NOTE);
    let written = async {
        let file = shared.disk.create(&path).await?;
        file.write_at(0, &[note.encode()]).await?;
        file.sync_data().await?;
        shared.disk.sync_dir(&shared.dir).await
    };
    if let Err(error) = written.await {
        tracing::warn!(error = %kubemq_runtime::chain(&error), "could not note where the log must be cut");
    }
}
