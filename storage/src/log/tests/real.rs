//! The log on real files and real threads.

use super::*;
use crate::fs::RealDisk;
use crate::log::writer::PAVED;

async fn open_real(dir: &std::path::Path, options: Options) -> Log {
    Log::open(Arc::new(RealDisk), dir.to_owned(), options, &Runtime::real()).await.unwrap()
}

#[tokio::test]
async fn small_groups_are_written_where_zeros_are() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("log/0");
    let log = open_real(&dir, Options { segment_bytes: 4 << 20, ..Options::default() }).await;
    for index in 1..100 {
        log.append_synced(entries(1, index..index + 1, 100)).await.unwrap();
        let segment = log.segments()[0];
        let file = RealDisk.open(&segment::path(&dir, segment.number)).await.unwrap();
        let next = segment.bytes.next_multiple_of(4096);
        assert!(file.next_data(next).await.unwrap() < next + PAVED, "behind entry {index}");
    }
    // A large one fills its pages itself.
    log.append_synced(entries(1, 100..101, 1 << 20)).await.unwrap();
    let segment = log.segments()[0];
    let file = RealDisk.open(&segment::path(&dir, segment.number)).await.unwrap();
    let next = segment.bytes.next_multiple_of(4096) + 4096;
    let reserved = RealDisk.create(&temp.path().join("reserved")).await.unwrap();
    reserved.allocate(1 << 20).await.unwrap();
    let file_system_knows = reserved.next_data(0).await.unwrap() > 0;
    let found = file.next_data(next).await.unwrap();
    assert!(found > next + PAVED || !file_system_knows, "{found}");
    log.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_tasks_append_and_read_and_all_is_there_after_a_restart() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("log/0");
    let options =
        Options { segment_bytes: 256 << 10, tail_cache_bytes: 64 << 10, group_bytes: 64 << 10, ..Options::default() };
    let log = open_real(&dir, options).await;
    log.save_node_id(5).await.unwrap();
    let reader = {
        let log = log.clone();
        async move {
            for index in 1..2000 {
                log.synced(index).await.unwrap();
                let read = log.read_part(1 + index * 7 % index, 0).await.unwrap();
                assert_eq!(read.bytes, format!("1/{}", 1 + index * 7 % index));
            }
        }
    };
    let writer = async {
        for from in (1..2000).step_by(10) {
            log.append_synced(entries(1, from..from + 10, 300)).await.unwrap();
            log.applied(from + 9);
        }
    };
    tokio::join!(reader, writer);
    let stats = log.stats();
    assert!(stats.fdatasyncs >= 200 && stats.entries == 2000, "{stats:?}");
    assert!(log.segments().len() > 2);
    log.close().await.unwrap();
    drop(log);
    let log = open_real(&dir, options).await;
    assert_eq!(log.state().node_id, Some(5));
    assert_eq!(log.all().await.unwrap(), entries(1, 1..2001, 300));
    assert!(check(Arc::new(RealDisk), &dir).await.unwrap().findings.is_empty());
}
