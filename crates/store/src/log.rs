//! The log in front of the tables: one write and one fsync make a batch durable.
//!
//! Two files take turns. A record is a head of [`HEAD`] bytes (length and CRC-32 of the body, the life of the process
//! that wrote it, its number; little-endian) and the batch as JSON. Records are numbered without a gap; those of one
//! file are of one life. What is behind the last record of a file is older or torn, which the number, the life or the sum tells.
//!
//! Files are filled with zeros ahead of what is written: an fsync that need not write the file's length costs half.

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::FileExt as _,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use crate::{Batch, Error, batch::Json, beside};

/// Length, sum, life, number.
const HEAD: usize = 4 + 4 + 8 + 8;
/// Zeros that are written ahead.
const GROW: u64 = 1 << 20;
/// A file of this length is left for the other one, once that is free.
const TURN_AT: u64 = 8 << 20;
/// A file that grew above this is cut when its turn comes.
const KEPT_MAX: u64 = 4 * TURN_AT;

/// A record that was read back.
#[derive(Debug)]
pub(crate) struct Record {
    pub number: u64,
    pub batch: Batch,
}

#[derive(Debug)]
struct Side {
    file: Arc<File>,
    /// Where the next record goes.
    end: u64,
    /// Bytes that are there, written or zero.
    size: u64,
    /// Number of the last record.
    last: u64,
}

/// Both files, and where the next record goes.
#[derive(Debug)]
pub(crate) struct Log {
    sides: [Side; 2],
    active: usize,
    life: u64,
    number: u64,
    body: Vec<u8>,
}

/// Up to which number the tables have everything for good, and up to which a file waits for that.
#[derive(Debug, Default)]
pub(crate) struct Safe {
    pub tables: AtomicU64,
    pub wanted: AtomicU64,
}

impl Log {
    /// Opens or makes the files `<path>-log0` and `<path>-log1`; and gives the records above `applied`, oldest first.
    pub fn open(path: &Path, applied: u64) -> Result<(Self, Vec<Record>), Error> {
        let open = |n: u8| {
            let name = beside(path, &format!("-log{n}"));
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(name)?;
            let size = file.metadata()?.len();
            Ok::<_, io::Error>(Side { file: Arc::new(file), end: 0, size, last: 0 })
        };
        let sides = [open(0).map_err(Error::Log)?, open(1).map_err(Error::Log)?];
        let mut found = Vec::new();
        for side in &sides {
            found.extend(side.read(applied)?);
        }
        found.sort_by_key(|record| record.number);
        for (expected, record) in (applied + 1..).zip(&found) {
            if record.number != expected {
                return Err(Error::Damaged { missing: expected, found: record.number });
            }
        }
        let life = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_nanos() as u64);
        let number = found.last().map_or(applied, |record| record.number);
        Ok((Self { sides, active: 0, life, number, body: Vec::new() }, found))
    }

    /// Writes a batch behind the others; gives its number and what was written. It outlives the process, and once [`Self::unsynced`] was synced the machine.
    pub fn write(&mut self, batch: &Batch, safe: &Safe) -> io::Result<(u64, Json)> {
        self.turn(safe)?;
        let number = self.number + 1;
        let json = batch.encode()?;
        let body = &mut self.body;
        body.clear();
        body.resize(HEAD, 0);
        body.extend(json.text.as_bytes());
        let length = u32::try_from(body.len() - HEAD).map_err(|_| io::Error::other("a batch is above 4 GiB"))?;
        body[0..4].copy_from_slice(&length.to_le_bytes());
        body[8..16].copy_from_slice(&self.life.to_le_bytes());
        body[16..24].copy_from_slice(&number.to_le_bytes());
        let sum = crc32fast::hash(&body[8..]);
        body[4..8].copy_from_slice(&sum.to_le_bytes());
        let side = &mut self.sides[self.active];
        side.file.write_all_at(body, side.end)?;
        side.end += body.len() as u64;
        side.last = number;
        if side.end > side.size {
            let size = side.end.next_multiple_of(GROW);
            side.file.write_all_at(&vec![0; (size - side.end) as usize], side.end)?;
            side.size = size;
        }
        self.number = number;
        Ok((number, json))
    }

    /// Goes on in the other file if this one is long and nothing in that one is needed any more.
    fn turn(&mut self, safe: &Safe) -> io::Result<()> {
        let (this, other) = (self.active, 1 - self.active);
        if self.sides[this].end < TURN_AT {
            return Ok(());
        }
        if self.sides[other].last > safe.tables.load(Ordering::Acquire) {
            safe.wanted.store(self.sides[other].last, Ordering::Release);
            return Ok(());
        }
        // Records are durable in the order of their numbers, across files too.
        self.sides[this].file.sync_data()?;
        let side = &mut self.sides[other];
        side.end = 0;
        if side.size > KEPT_MAX {
            side.file.set_len(GROW)?;
            side.size = GROW;
        }
        self.active = other;
        safe.wanted.store(self.sides[this].last, Ordering::Release);
        Ok(())
    }

    /// The file to sync, so that all that was written is on disk. After an error nothing is known; it must not be tried again.
    pub fn unsynced(&self) -> Arc<File> {
        self.sides[self.active].file.clone()
    }
}

impl Side {
    fn read(&self, applied: u64) -> Result<Vec<Record>, Error> {
        let (mut at, mut before, mut records) = (0, None, Vec::new());
        let mut head = [0; HEAD];
        while at + HEAD as u64 <= self.size {
            self.file.read_exact_at(&mut head, at).map_err(Error::Log)?;
            let word = |range: std::ops::Range<usize>| {
                head[range].iter().rev().fold(0_u64, |word, byte| word << 8 | u64::from(*byte))
            };
            let (length, sum, life, number) = (word(0..4), word(4..8), word(8..16), word(16..24));
            let follows = before.is_none_or(|(of, last)| life == of && number == last + 1);
            let end = at + HEAD as u64 + length;
            if number == 0 || !follows || end > self.size {
                break;
            }
            let mut body = vec![0; 16 + length as usize];
            self.file.read_exact_at(&mut body, at + 8).map_err(Error::Log)?;
            if u64::from(crc32fast::hash(&body)) != sum {
                break;
            }
            if number > applied {
                let read = Batch::decode(&body[16..]);
                let batch = read.map_err(|source| Error::Body { what: "batch of the log", source })?;
                records.push(Record { number, batch });
            }
            (at, before) = (end, Some((life, number)));
        }
        Ok(records)
    }
}

#[cfg(test)]
mod tests {
    use covey_domain::NodeId;

    use super::*;

    fn batch(number: u64) -> Batch {
        Batch { cursors: vec![(NodeId::from("n"), 1, number)], ..Batch::default() }
    }

    fn numbers(records: &[Record]) -> Vec<u64> {
        assert!(records.iter().all(|r| r.batch.cursors[0].2 == r.number), "each has its own body");
        records.iter().map(|record| record.number).collect()
    }

    #[test]
    fn what_is_torn_ends_the_log_and_what_is_older_is_not_taken_for_new() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let safe = Safe::default();
        let (mut log, none) = Log::open(&path, 0).unwrap();
        assert!(none.is_empty());
        for number in 1..=9 {
            assert_eq!(log.write(&batch(number), &safe).unwrap().0, number);
        }
        let nine = log.sides[0].end;
        // All of one length, so that what follows could be taken for the next record.
        let one = nine / 9;
        log.sides[0].file.write_all_at(&[0xff], 8 * one + HEAD as u64 + 3).unwrap();
        drop(log);
        let (mut log, found) = Log::open(&path, 2).unwrap();
        assert_eq!(numbers(&found), [3, 4, 5, 6, 7, 8]);
        // Another life goes on in front, over the same lengths.
        assert_eq!(log.write(&batch(9), &safe).unwrap().0, 9);
        drop(log);
        let (_, found) = Log::open(&path, 8).unwrap();
        assert_eq!(numbers(&found), [9]);
    }

    #[test]
    fn a_file_is_used_again_only_when_the_tables_have_all_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let safe = Safe::default();
        let (mut log, _) = Log::open(&path, 0).unwrap();
        let large = |number| {
            let filler = vec![(NodeId::from("n"), 1, number); 60_000];
            Batch { cursors: filler, ..Batch::default() }
        };
        while log.active == 0 {
            log.write(&large(log.number + 1), &safe).unwrap();
        }
        let turned = log.number;
        while log.sides[1].end < 2 * TURN_AT {
            log.write(&large(log.number + 1), &safe).unwrap();
        }
        assert_eq!((log.active, safe.wanted.load(Ordering::Relaxed)), (1, turned - 1), "the other is not free");
        let last = log.number;
        drop(log);
        let (mut log, found) = Log::open(&path, 0).unwrap();
        assert_eq!(numbers(&found), (1..=last).collect::<Vec<_>>(), "both files are read");
        log.sides[0].last = 5;
        log.sides[1].end = TURN_AT;
        log.active = 1;
        safe.tables.store(5, Ordering::Relaxed);
        log.write(&batch(last + 1), &safe).unwrap();
        assert_eq!(log.active, 0);
    }

    #[test]
    fn a_gap_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("db");
        let (mut log, _) = Log::open(&path, 4).unwrap();
        log.write(&batch(5), &Safe::default()).unwrap();
        drop(log);
        assert!(matches!(Log::open(&path, 3), Err(Error::Damaged { missing: 4, found: 5 })));
    }
}
