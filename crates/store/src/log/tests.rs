//! A log that is written, hurt, and opened again.

use covey_domain::NodeId;

use super::*;
use crate::Batch;

const STORE: u64 = 7;

fn of(number: u64, cursors: usize) -> Json {
    Batch { cursors: vec![(NodeId::from("n"), 1, number); cursors], ..Batch::default() }.encode().unwrap()
}

fn batch(number: u64) -> Json {
    of(number, 1)
}

/// More than a megabyte.
fn large(number: u64) -> Json {
    of(number, 60_000)
}

fn numbers(records: &[Record]) -> Vec<u64> {
    let own = |r: &Record| Batch::decode(&r.body).unwrap().cursors[0].2 == r.number;
    assert!(records.iter().all(own), "each has its own body");
    records.iter().map(|record| record.number).collect()
}

fn write(log: &mut Log, numbers: std::ops::RangeInclusive<u64>) {
    for number in numbers {
        assert_eq!(log.write(&batch(number), &Watermark::default()).unwrap(), number);
    }
}

fn sync(log: &mut Log) {
    let (file, number) = log.unsynced();
    file.sync_data().unwrap();
    log.mark(number, &Watermark::default()).unwrap();
}

/// The bytes of the first file, for tests to hurt.
fn bytes(path: &Path) -> Vec<u8> {
    std::fs::read(&paths(path)[0]).unwrap()
}

#[test]
fn what_is_not_synced_may_be_torn_at_every_byte_and_what_is_may_not() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let mut log = Log::create(&path, STORE, 0).unwrap();
    write(&mut log, 1..=3);
    sync(&mut log);
    let synced = log.length() as usize;
    write(&mut log, 4..=6);
    let end = log.length() as usize;
    let one = (end - synced) / 3;
    drop(log);
    let mut whole = bytes(&path);
    whole.truncate(end + 1024);
    for torn in AREA..end {
        for filler in [0x00, 0xa5] {
            let mut hurt = whole.clone();
            hurt[torn..end].fill(filler);
            // A tear ends at some sector; what is behind it may be there.
            std::fs::write(&paths(&path)[0], &hurt).unwrap();
            let opened = Log::open(&path, STORE, 0);
            if torn < synced {
                // What was there may be what a filler puts there.
                let Err(error) = opened else { continue };
                assert!(matches!(error, Error::Damaged { .. }), "{error}");
            } else {
                let (mut log, found) = opened.unwrap();
                let whole = 3 + ((torn - synced) / one) as u64;
                let last = numbers(&found).len() as u64;
                assert!(last == whole || (last == whole + 1 && hurt == bytes(&path)[..hurt.len()]), "{torn}: {last}");
                write(&mut log, last + 1..=last + 2);
                drop(log);
                assert_eq!(numbers(&Log::open(&path, STORE, 0).unwrap().1).len() as u64, last + 2);
            }
        }
    }
}

#[test]
fn every_flipped_bit_is_harmless_or_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let mut log = Log::create(&path, STORE, 0).unwrap();
    for n in 0..4 {
        write(&mut log, n * 5 + 1..=n * 5 + 5);
        sync(&mut log);
    }
    // The head dies while these are on their way.
    write(&mut log, 21..=22);
    let end = log.length() as usize;
    drop(log);
    let mut whole = bytes(&path);
    whole.truncate(end + 1024);
    let (mut harmless, mut refused) = (0, 0);
    // What was acknowledged of the records above what the tables have is there, or the log is refused by name.
    for applied in [0, 7] {
        for at in 0..end + 64 {
            for bit in [0, 3, 7] {
                let mut hurt = whole.clone();
                hurt[at] ^= 1 << bit;
                std::fs::write(&paths(&path)[0], &hurt).unwrap();
                match inspect(&path, STORE, applied) {
                    Ok((_, Judged { records, .. })) => {
                        let found = numbers(&records);
                        assert_eq!(found[..20 - applied as usize], (applied + 1..=20).collect::<Vec<_>>(), "at {at}");
                        harmless += 1;
                    }
                    Err(Error::Damaged { file, .. }) => {
                        assert!(file.ends_with("db-log0"));
                        refused += 1;
                    }
                    Err(Error::Foreign { .. }) => panic!("a flip in the header is damage"),
                    Err(error) => panic!("{error} at {at}"),
                }
            }
        }
    }
    assert!(harmless > 1_000 && refused > 1_000, "{harmless} {refused}");
}

#[test]
fn files_that_are_gone_cut_or_of_another_store_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let mut log = Log::create(&path, STORE, 0).unwrap();
    write(&mut log, 1..=3);
    sync(&mut log);
    let end = log.length();
    drop(log);
    assert!(matches!(Log::open(&path, STORE + 1, 0), Err(Error::Foreign { .. })));
    let file = OpenOptions::new().write(true).open(&paths(&path)[0]).unwrap();
    for length in [end - 1, AREA as u64, 100, 0] {
        let whole = bytes(&path);
        file.set_len(length).unwrap();
        let found = Log::open(&path, STORE, 0);
        // Without its own watermark it is not known that there was something.
        assert!(length == AREA as u64 || length == end - 1 || matches!(found, Err(Error::Damaged { .. })), "{length}");
        file.write_all_at(&whole, 0).unwrap();
    }
    std::fs::remove_file(&paths(&path)[1]).unwrap();
    assert!(matches!(Log::open(&path, STORE, 0), Err(Error::Missing { .. })));
}

#[test]
fn a_file_is_used_again_only_when_the_tables_have_all_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let watermark = Watermark::default();
    let mut log = Log::create(&path, STORE, 0).unwrap();
    while log.active == 0 {
        log.write(&large(log.number + 1), &watermark).unwrap();
    }
    let turned = log.number;
    while log.files[1].end < 2 * ROTATE_AT {
        log.write(&large(log.number + 1), &watermark).unwrap();
    }
    assert_eq!((log.active, watermark.wanted.load(Ordering::Relaxed)), (1, turned - 1), "the other is not free");
    let last = log.number;
    drop(log);
    let (mut log, found) = Log::open(&path, STORE, 0).unwrap();
    assert_eq!(numbers(&found), (1..=last).collect::<Vec<_>>(), "both files are read");
    assert_eq!(log.active, 1, "it goes on where it was");
    watermark.tables.store(turned - 1, Ordering::Relaxed);
    log.write(&batch(last + 1), &watermark).unwrap();
    assert_eq!(log.active, 0);
    drop(log);
    // The file that is used again has older records behind the new one.
    assert_eq!(numbers(&Log::open(&path, STORE, turned - 1).unwrap().1), (turned..=last + 1).collect::<Vec<_>>());
    assert!(
        matches!(Log::open(&path, STORE, 1), Err(Error::Damaged { .. })),
        "the tables lack what the log has no more"
    );
    // A break at the end of the older file is below the header of the newer one.
    let other = std::fs::read(&paths(&path)[1]).unwrap();
    let mut hurt = other.clone();
    let at = AREA + HEAD + 5;
    hurt[at] ^= 1;
    std::fs::write(&paths(&path)[1], &hurt).unwrap();
    assert!(matches!(Log::open(&path, STORE, turned - 1), Err(Error::Damaged { at, .. }) if at == AREA as u64));
}

#[test]
fn a_long_file_is_left_without_an_fsync_once_nothing_is_unsynced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("db");
    let watermark = Watermark::default();
    let mut log = Log::create(&path, STORE, 0).unwrap();
    let fill = |log: &mut Log, until: u64| {
        while log.length() < until {
            log.write(&large(log.number + 1), &watermark).unwrap();
        }
    };
    fill(&mut log, ROTATE_AT);
    let (file, number) = log.unsynced();
    file.sync_data().unwrap();
    log.write(&batch(number + 1), &watermark).unwrap();
    log.mark(number, &watermark).unwrap();
    assert_eq!(log.active, 0, "the last one is unsynced");
    log.mark(number + 1, &watermark).unwrap();
    let turned = number + 1;
    assert_eq!((log.active, watermark.wanted.load(Ordering::Relaxed)), (1, turned), "the mark is the turn");
    // The machine dies: of the file that is new now nothing was synced, its header neither.
    let ready = Header { store: STORE, cycle: log.files[1].cycle, first: 0 };
    write(&mut log, turned + 1..=turned + 2);
    drop(log);
    let begun = std::fs::read(&paths(&path)[1]).unwrap();
    let mut lost = begun.clone();
    lost[..AREA].copy_from_slice(&ready.bytes());
    std::fs::write(&paths(&path)[1], &lost).unwrap();
    assert_eq!(numbers(&inspect(&path, STORE, 0).unwrap().1.records), (1..=turned).collect::<Vec<_>>());
    // Its header alone was written.
    lost[..AREA].copy_from_slice(&begun[..AREA]);
    lost[AREA..].fill(0);
    std::fs::write(&paths(&path)[1], &lost).unwrap();
    assert_eq!(numbers(&inspect(&path, STORE, 0).unwrap().1.records), (1..=turned).collect::<Vec<_>>());
    std::fs::write(&paths(&path)[1], &begun).unwrap();

    // Back again: it is made ready once the tables have all of it, and once only.
    let (mut log, found) = Log::open(&path, STORE, 0).unwrap();
    assert_eq!(numbers(&found).len() as u64, turned + 2);
    fill(&mut log, ROTATE_AT);
    assert!(log.make_ready(&watermark).unwrap().is_none(), "the tables lack it");
    watermark.tables.store(turned, Ordering::Relaxed);
    let other = log.make_ready(&watermark).unwrap().expect("it is free");
    assert!(log.make_ready(&watermark).unwrap().is_none(), "somebody syncs it");
    let last = log.number;
    log.mark(last, &watermark).unwrap();
    assert_eq!(log.active, 1, "it is not on disk yet");
    other.sync_data().unwrap();
    log.made_ready();
    log.mark(last, &watermark).unwrap();
    write(&mut log, last + 1..=last + 1);
    assert_eq!(log.active, 0);
    drop(log);
    let found = numbers(&Log::open(&path, STORE, turned).unwrap().1);
    assert_eq!(found, (turned + 1..=last + 1).collect::<Vec<_>>());
}
