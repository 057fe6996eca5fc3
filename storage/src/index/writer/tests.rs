use super::super::{MemoryIndex, SledIndex, SledOptions};
use super::*;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(20);

fn block(byte: u8) -> Bytes {
    Bytes::from(vec![byte; 1500])
}

async fn wait_for(writer: &IndexWriter, runtime: &Runtime, condition: impl FnMut(&IndexState) -> bool) -> IndexState {
    let mut state = writer.state();
    runtime.clock.timeout(PATIENCE, state.wait_for(condition)).await.expect("in time").expect("a thread");
    state.borrow().clone()
}

#[tokio::test]
async fn blocks_go_in_and_come_back() {
    let runtime = Runtime::real();
    let writer = IndexWriter::start(|| Ok((MemoryIndex::new(), Opening::Fresh)), &runtime);
    for first in 0..100 {
        writer.put(BlockKey::runs(1, first), block(u8::try_from(first).unwrap())).unwrap();
    }
    assert_eq!(writer.get(BlockKey::runs(1, 7)).await, Ok(Some(block(7))));
    writer.remove(Space::Runs, 1, 0..=49).unwrap();
    let missing = writer.missing(vec![BlockKey::runs(1, 49), BlockKey::runs(1, 50), BlockKey::runs(2, 50)]).await;
    assert_eq!(missing, Ok(vec![BlockKey::runs(1, 49), BlockKey::runs(2, 50)]));
    writer.shrink();
    writer.close().await;
    assert_eq!(writer.stats(), IndexStats { blocks: 50, disk_bytes: 0, written: 100, refused: 0 });
    assert_eq!(writer.get(BlockKey::runs(1, 50)).await, Err(IndexError::Closed));
    assert_eq!(*writer.state().borrow(), IndexState::Closed);
}

#[tokio::test]
async fn a_full_inbox_refuses_at_once() {
    let runtime = Runtime::real();
    let (go, stopped) = std::sync::mpsc::channel::<()>();
    let open = move || {
        stopped.recv().ok();
        Ok((MemoryIndex::new(), Opening::Fresh))
    };
    let writer = IndexWriter::start(open, &runtime);
    let most = INBOX_BYTES / (64 * 1024);
    for n in 0..most {
        writer.put(BlockKey::runs(1, n as u64), Bytes::from(vec![0; 64 * 1024])).unwrap();
    }
    assert_eq!(writer.put(BlockKey::runs(2, 0), block(0)), Err(Full), "bytes are bounded");
    for _ in most..INBOX {
        writer.remove(Space::Runs, 9, 0..=1).unwrap();
    }
    assert_eq!(writer.put(BlockKey::runs(2, 0), Bytes::new()), Err(Full), "the count is bounded");
    assert_eq!(writer.remove(Space::Runs, 9, 0..=1), Err(Full));
    assert_eq!(writer.stats().refused, 3);
    go.send(()).unwrap();
    assert_eq!(writer.missing(vec![BlockKey::runs(1, 0), BlockKey::runs(2, 0)]).await, Ok(vec![BlockKey::runs(2, 0)]));
    writer.put(BlockKey::runs(2, 0), block(0)).unwrap();
    assert_eq!(writer.missing(vec![BlockKey::runs(2, 0)]).await, Ok(vec![]));
}

#[tokio::test]
async fn who_reads_does_not_wait_for_what_is_written_unless_it_may_bring_the_block() {
    let runtime = Runtime::real();
    let (go, stopped) = std::sync::mpsc::channel::<()>();
    let open = move || {
        let mut inner = MemoryIndex::new();
        inner.put(BlockKey::runs(1, 1), &block(1))?;
        // Each put waits to be let go.
        let before_put = move || {
            stopped.recv().ok();
            Ok(())
        };
        Ok((Planned { inner, before_put: Box::new(before_put), clears: true }, Opening::Kept))
    };
    let writer = IndexWriter::start(open, &runtime);
    for first in 2..10 {
        writer.put(BlockKey::runs(1, first), block(2)).unwrap();
    }
    let [there, comes, nowhere] = [1, 9, 10].map(|first| {
        let writer = writer.clone();
        async move { writer.get(BlockKey::runs(1, first)).await }
    });
    let (mut comes, mut nowhere) = (Box::pin(comes), Box::pin(nowhere));
    let both = async { tokio::join!(&mut comes, &mut nowhere) };
    let wait = async {
        // The first one is being put, and is done with one step.
        go.send(()).unwrap();
        runtime.clock.timeout(PATIENCE, there).await.unwrap()
    };
    let mut both = Box::pin(both);
    let found = tokio::select! {
        biased;
        _ = &mut both => panic!("seven of eight wait"),
        found = wait => found,
    };
    assert_eq!(found, Ok(Some(block(1))));
    assert!(writer.stats().written <= 1, "{:?}", writer.stats());
    for _ in 3..10 {
        go.send(()).unwrap();
    }
    let found = runtime.clock.timeout(PATIENCE, both).await.unwrap();
    assert_eq!(found, (Ok(Some(block(2))), Ok(None)));
}

#[tokio::test]
async fn damage_at_open_is_reported_so_that_everything_is_put_again() {
    let runtime = Runtime::real();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("index");
    let start = || {
        let path = path.clone();
        IndexWriter::start(move || SledIndex::open(&path, SledOptions::default()), &runtime)
    };
    let writer = start();
    for first in 0..100 {
        writer.put(BlockKey::runs(1, first), block(1)).unwrap();
    }
    writer.close().await;
    std::fs::write(path.join("conf"), b"this is not what sled wrote").unwrap();

    let writer = start();
    let state = wait_for(&writer, &runtime, |state| *state != IndexState::Opening).await;
    let IndexState::Open { number: 1, opening } = state else { panic!("{state:?}") };
    assert!(matches!(opening, Opening::Replaced { .. }), "{opening:?}");
    assert_eq!(writer.missing(vec![BlockKey::runs(1, 5)]).await, Ok(vec![BlockKey::runs(1, 5)]));
    for first in 0..100 {
        writer.put(BlockKey::runs(1, first), block(1)).unwrap();
    }
    writer.close().await;

    let writer = start();
    let state = wait_for(&writer, &runtime, |state| *state != IndexState::Opening).await;
    assert_eq!(state, IndexState::Open { number: 1, opening: Opening::Kept });
    assert_eq!(writer.missing(vec![BlockKey::runs(1, 5)]).await, Ok(vec![]));
    assert_eq!(writer.stats().blocks, 100);
}

/// Does something before each put, which may fail, and clears itself or does not.
struct Planned {
    inner: MemoryIndex,
    before_put: Box<dyn FnMut() -> Result<(), IndexError> + Send>,
    clears: bool,
}

fn planned_failure() -> IndexError {
    IndexError::Damaged { dir: "/nowhere".into(), reason: "planned".to_owned() }
}

/// An index of which the tenth put fails.
fn failing(clears: bool) -> Planned {
    let mut puts = 0;
    let before_put = move || {
        puts += 1;
        if puts == 10 { Err(planned_failure()) } else { Ok(()) }
    };
    Planned { inner: MemoryIndex::new(), before_put: Box::new(before_put), clears }
}

impl Index for Planned {
    fn put(&mut self, key: BlockKey, block: &Bytes) -> Result<(), IndexError> {
        (self.before_put)()?;
        self.inner.put(key, block)
    }

    fn get(&mut self, key: BlockKey) -> Result<Option<Bytes>, IndexError> {
        self.inner.get(key)
    }

    fn remove_range(&mut self, space: Space, owner: u64, range: RangeInclusive<u64>) -> Result<u64, IndexError> {
        self.inner.remove_range(space, owner, range)
    }

    fn clear(&mut self) -> Result<(), IndexError> {
        if self.clears { self.inner.clear() } else { Err(planned_failure()) }
    }

    fn shrink(&mut self) -> Result<bool, IndexError> {
        self.inner.shrink()
    }

    fn flush(&mut self) -> Result<(), IndexError> {
        self.inner.flush()
    }

    fn len(&self) -> u64 {
        self.inner.len()
    }

    fn disk_bytes(&self) -> u64 {
        self.inner.disk_bytes()
    }
}

#[tokio::test]
async fn a_failure_while_running_clears_the_index_and_is_reported() {
    let runtime = Runtime::real();
    let open = || Ok((failing(true), Opening::Kept));
    let writer = IndexWriter::start(open, &runtime);
    for first in 0..10 {
        writer.put(BlockKey::runs(1, first), block(1)).unwrap();
    }
    let state = wait_for(&writer, &runtime, |state| matches!(state, IndexState::Open { number: 2, .. })).await;
    let IndexState::Open { opening, .. } = state else { panic!("{state:?}") };
    assert!(opening.is_empty());
    assert_eq!(writer.missing(vec![BlockKey::runs(1, 0)]).await, Ok(vec![BlockKey::runs(1, 0)]));
    writer.put(BlockKey::runs(1, 0), block(1)).unwrap();
    assert_eq!(writer.missing(vec![BlockKey::runs(1, 0)]).await, Ok(vec![]));
}

#[tokio::test]
async fn an_index_that_cannot_be_cleared_is_given_up() {
    let runtime = Runtime::real();
    let open = || Ok((failing(false), Opening::Kept));
    let writer = IndexWriter::start(open, &runtime);
    for first in 0..10 {
        writer.put(BlockKey::runs(1, first), block(1)).unwrap();
    }
    let state = wait_for(&writer, &runtime, |state| matches!(state, IndexState::Failed(_))).await;
    assert_eq!(state, IndexState::Failed(planned_failure()));
    assert_eq!(writer.get(BlockKey::runs(1, 0)).await, Err(IndexError::Closed));
    assert_eq!(writer.put(BlockKey::runs(1, 0), block(1)), Err(Full));
}
