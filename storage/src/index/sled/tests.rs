use super::*;
use kubemq_runtime::Random;
use std::collections::BTreeMap;

fn block(key: BlockKey, length: usize) -> Bytes {
    let mut bytes = vec![0; length];
    Random::from_seed(key.owner << 32 | key.first).fill(&mut bytes);
    Bytes::from(bytes)
}

fn keys() -> Vec<BlockKey> {
    let runs = (1..=20).flat_map(|channel| (0..20).map(move |n| BlockKey::runs(channel, n * 64)));
    runs.chain((0..20).map(|number| BlockKey::timers(7, number))).collect()
}

fn filled(dir: &Path) -> SledIndex {
    let (mut index, _) = SledIndex::open(dir, SledOptions::default()).unwrap();
    for key in keys() {
        index.put(key, &block(key, 1500)).unwrap();
    }
    index
}

fn open(dir: &Path) -> (SledIndex, Opening) {
    SledIndex::open(dir, SledOptions::default()).unwrap()
}

/// Whatever is returned must be what was put; returns how many blocks are missing.
fn check(index: &mut SledIndex) -> usize {
    let mut missing = 0;
    for key in keys() {
        match index.get(key).unwrap() {
            Some(found) => assert_eq!(found, block(key, 1500), "{key}"),
            None => missing += 1,
        }
    }
    missing
}

#[test]
fn blocks_survive_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("index");
    assert_eq!(open(&dir).1, Opening::Fresh);
    drop(filled(&dir));
    let (mut index, opening) = open(&dir);
    assert_eq!(opening, Opening::Kept);
    assert_eq!((check(&mut index), index.len()), (0, 420));
}

#[test]
fn an_index_is_examined_without_being_changed() {
    let dir = tempfile::tempdir().unwrap();
    let (index, scratch) = (dir.path().join("index"), dir.path().join("scratch"));
    drop(filled(&index));
    let read = || {
        let names = std::fs::read_dir(&index).unwrap().map(|entry| entry.unwrap().path());
        names.map(|path| (path.clone(), std::fs::read(path).ok())).collect::<BTreeMap<_, _>>()
    };
    let before = read();
    assert_eq!(SledIndex::examine(&index, &scratch, 1 << 30).unwrap(), Some(Opening::Kept));
    assert_eq!(SledIndex::examine(&index, &scratch, 1000).unwrap(), None);
    let path = index.join("db");
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[..middle].fill(0x5a);
    std::fs::write(&path, bytes).unwrap();
    let damaged = SledIndex::examine(&index, &scratch, 1 << 30).unwrap();
    assert!(matches!(damaged, Some(Opening::Replaced { .. } | Opening::Fresh)), "{damaged:?}");
    assert!(!scratch.exists());
    let after = read();
    assert!(
        before.keys().eq(after.keys())
            && before.iter().all(|(path, bytes)| *path == index.join("db") || after[path] == *bytes)
    );
}

#[test]
fn an_index_is_open_once() {
    let dir = tempfile::tempdir().unwrap();
    let _index = filled(dir.path());
    let second = SledIndex::open(dir.path(), SledOptions::default());
    assert_eq!(second.unwrap_err(), IndexError::InUse { dir: dir.path().to_owned() });
}

#[test]
fn a_range_of_one_owner_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = filled(dir.path());
    assert_eq!(index.remove_range(Space::Runs, 3, 64..=128).unwrap(), 2);
    assert_eq!(index.remove_range(Space::Runs, 3, 64..=128).unwrap(), 0);
    assert_eq!(index.remove_range(Space::Timers, 7, 0..=u64::MAX).unwrap(), 20);
    #[expect(clippy::reversed_empty_ranges, reason = "what a caller may pass by mistake")]
    let reversed = 9..=3;
    assert_eq!(index.remove_range(Space::Runs, 3, reversed).unwrap(), 0);
    assert_eq!((index.len(), check(&mut index)), (398, 22));
    assert!(index.contains(BlockKey::runs(3, 0)).unwrap());
    assert!(!index.contains(BlockKey::runs(3, 64)).unwrap());
    assert!(index.contains(BlockKey::runs(4, 64)).unwrap());
}

#[test]
fn large_blocks_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (mut index, _) = open(dir.path());
    let key = BlockKey::runs(1, 1);
    let refused = index.put(key, &block(key, MAX_BLOCK_BYTES + 1));
    assert_eq!(refused, Err(IndexError::TooLarge { key, bytes: MAX_BLOCK_BYTES + 1 }));
    index.put(key, &block(key, MAX_BLOCK_BYTES)).unwrap();
    assert_eq!(index.len(), 1);
}

#[test]
fn a_block_with_a_wrong_checksum_or_key_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let mut index = filled(dir.path());
    let (from, to) = (BlockKey::runs(1, 0), BlockKey::runs(2, 0));
    let value = index.with_db(|db| db.get(from.encode())).unwrap().unwrap();
    index.with_db(|db| db.insert(to.encode(), value.clone())).unwrap();
    assert_eq!(index.get(to).unwrap(), None);
    index.with_db(|db| db.insert(from.encode(), &value[..value.len() - 1])).unwrap();
    assert_eq!(index.get(from).unwrap(), None);
    drop(index);
    assert!(matches!(open(dir.path()).1, Opening::Replaced { .. }));
}

#[test]
fn a_deleted_directory_is_an_empty_index() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("index");
    drop(filled(&dir));
    std::fs::remove_dir_all(&dir).unwrap();
    let (mut index, opening) = open(&dir);
    assert_eq!((opening, check(&mut index)), (Opening::Fresh, 420));
    index.put(keys()[0], &block(keys()[0], 1500)).unwrap();
    assert_eq!(check(&mut index), 419);
}

fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            files.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    files
}

/// One way to spoil a file.
type Damage = fn(&mut Vec<u8>, u64);

#[test]
fn damage_in_any_file_costs_a_rebuild_and_never_a_wrong_block() {
    let origin = tempfile::tempdir().unwrap();
    drop(filled(origin.path()));
    // The second opening writes the file with sled's own snapshot.
    drop(open(origin.path()));
    let files = files(origin.path());
    let kinds: Vec<String> =
        files.keys().map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect();
    assert!(kinds.contains(&"db".to_owned()) && kinds.contains(&"conf".to_owned()), "{kinds:?}");
    assert!(kinds.iter().any(|name| name.starts_with("snap.")), "{kinds:?}");
    let damages: [(&str, Damage); 5] = [
        ("flipped", |bytes, place| {
            let place = usize::try_from(place % bytes.len() as u64).unwrap();
            bytes[place] ^= 0x10;
        }),
        ("zeroed", |bytes, place| {
            let place = usize::try_from(place % bytes.len() as u64).unwrap();
            let end = bytes.len().min(place + 4096);
            bytes[place..end].fill(0);
        }),
        ("cut", |bytes, place| bytes.truncate(usize::try_from(place % bytes.len() as u64).unwrap())),
        ("emptied", |bytes, _| bytes.clear()),
        ("noise", |bytes, place| Random::from_seed(place).fill(bytes)),
    ];
    let random = Random::from_seed(1);
    let (mut kept, mut replaced) = (0, 0);
    for spoiled in files.keys() {
        for (name, damage) in damages {
            for _ in 0..6 {
                let dir = tempfile::tempdir().unwrap();
                let dir = dir.path().join("index");
                std::fs::create_dir(&dir).unwrap();
                let place = random.u64();
                for (path, content) in &files {
                    let mut content = content.clone();
                    if path == spoiled {
                        damage(&mut content, place);
                    }
                    std::fs::write(dir.join(path.file_name().unwrap()), content).unwrap();
                }
                let case = format!("{name} {} at {place}", spoiled.display());
                let (mut index, opening) = SledIndex::open(&dir, SledOptions::default()).expect(&case);
                let missing = check(&mut index);
                match opening {
                    Opening::Kept => kept += 1,
                    Opening::Fresh | Opening::Replaced { .. } => {
                        replaced += 1;
                        assert_eq!(missing, 420, "{case}");
                    }
                }
                // Whatever was found, the index works and what is put again is there after a restart.
                for key in keys() {
                    index.put(key, &block(key, 1500)).expect(&case);
                }
                drop(index);
                let (mut index, opening) = open(&dir);
                assert_eq!((opening, check(&mut index)), (Opening::Kept, 0), "{case}");
            }
        }
    }
    assert!(kept > 0 && replaced > 0, "{kept} kept, {replaced} replaced");
}

#[test]
fn leftovers_of_a_crash_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let index = dir.path().join("index");
    for leftover in ["index.damaged", "index.rewritten"] {
        std::fs::create_dir(dir.path().join(leftover)).unwrap();
        std::fs::write(dir.path().join(leftover).join("db"), b"half").unwrap();
    }
    drop(filled(&index));
    // The half-written file of a snapshot, which sled is known not to cope with.
    std::fs::write(index.join("snap.00000000DEADBEEF.generating"), b"torn").unwrap();
    let (mut index, _) = open(&index);
    for key in keys() {
        index.put(key, &block(key, 1500)).unwrap();
    }
    assert_eq!(check(&mut index), 0);
    let names: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["index"]);
}

#[test]
fn a_sparse_index_is_rewritten_and_gives_disk_back() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("index");
    let options = SledOptions { shrink_from_bytes: 4 * 1024 * 1024, ..SledOptions::default() };
    let (mut index, _) = SledIndex::open(&dir, options).unwrap();
    for first in 0..8_000 {
        let key = BlockKey::runs(1, first);
        index.put(key, &block(key, 1500)).unwrap();
    }
    assert!(!index.shrink().unwrap(), "everything in it is alive");
    assert_eq!(index.remove_range(Space::Runs, 1, 100..=u64::MAX).unwrap(), 7_900);
    let before = index.disk_bytes();
    assert!(index.shrink().unwrap());
    assert!(index.disk_bytes() * 4 < before, "{before} to {}", index.disk_bytes());
    for first in 0..100 {
        let key = BlockKey::runs(1, first);
        assert_eq!(index.get(key).unwrap(), Some(block(key, 1500)));
    }
    assert_eq!(index.len(), 100);
    drop(index);
    let (index, opening) = open(&dir);
    assert_eq!((opening, index.len()), (Opening::Kept, 100));
}
