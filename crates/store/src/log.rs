//! The log in front of the tables: one write and one fsync make a batch durable.
//!
//! Two files take turns. Each begins with a header ([`format::Header`]): whose it is, a random number of this use of the
//! file (its *cycle*), and the number of its first record. Records are numbered without a gap across both files, carry the
//! cycle of their file and a CRC-32, and say up to which number all was synced when they were written: the **durable
//! watermark**. After each fsync a marker behind the last record says so too; the next record overwrites it.
//!
//! So a torn tail, which nobody was told of, can be told from damage: what is unreadable and above every watermark is torn
//! and forgotten; what is below one was acknowledged, and the log refuses to open and names the place.
//!
//! Files are filled with zeros ahead of what is written: an fsync that need not write the file's length costs half. The same
//! bytes are what is written to when the disk is full.

pub(crate) mod format;
pub(crate) mod v1;

use std::{
    fs::{File, OpenOptions},
    io,
    os::unix::fs::{FileExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use format::{AREA, Gap, HEAD, Header, Parsed};

use crate::{Error, batch::Json, beside};

/// Zeros that are written ahead at once, and how many there are ahead of a record at least while the disk has room.
const GROW: u64 = 1 << 20;
const RESERVE: u64 = 2 << 20;
/// A file of this length is left for the other one, once that is ready and nothing is unsynced: that costs no fsync.
const ROTATE_AT: u64 = 8 << 20;
/// From this length on the other file is made ready, once it is free.
const READY_AT: u64 = ROTATE_AT / 2;
/// A file of this length is left even if that takes an fsync, for which who writes waits.
const ROTATE_LATEST: u64 = 2 * ROTATE_AT;
/// A file that grew above this is cut when its turn comes after a cycle that needed less.
const KEPT_MAX: u64 = 4 * ROTATE_AT;
/// How often a full disk is tried again.
const RETRY_EVERY: Duration = Duration::from_millis(250);

/// A record that was read back.
#[derive(Debug)]
pub(crate) struct Record {
    pub number: u64,
    pub body: Vec<u8>,
}

#[derive(Debug)]
struct LogFile {
    file: Arc<File>,
    path: PathBuf,
    cycle: u64,
    /// Where the next record goes.
    end: u64,
    /// Bytes that are there, written or zero.
    size: u64,
    /// Number of the last record.
    last: u64,
}

/// The file that is not written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Other {
    /// Its records may still be needed.
    Used,
    /// None of them is, and it has a header of its next cycle, which is being synced.
    Begun,
    /// That is on disk.
    Ready,
}

/// Both files, and where the next record goes.
#[derive(Debug)]
pub(crate) struct Log {
    files: [LogFile; 2],
    active: usize,
    store: u64,
    number: u64,
    /// All up to this number is on disk.
    synced: u64,
    other: Other,
    buffer: Vec<u8>,
    /// Since when the disk has no room for more zeros.
    full: Option<Instant>,
}

/// Up to which number the tables have everything for good, and up to which a file waits for that.
#[derive(Debug, Default)]
pub(crate) struct Watermark {
    pub tables: AtomicU64,
    pub wanted: AtomicU64,
}

/// Names of the files.
pub(crate) fn paths(path: &Path) -> [PathBuf; 2] {
    [0, 1].map(|n| beside(path, &format!("-log{n}")))
}

/// A number that no earlier use of a file had, as far as chance goes.
fn fresh_cycle() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    // No byte of UTF-8 is 0xff, so no body has a cycle in it.
    RandomState::new().hash_one(Instant::now()) | 0xff
}

/// Entries of a folder are on disk then.
pub(crate) fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder)?.sync_all()
}

fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

fn damaged(path: &Path, at: u64, why: impl Into<String>) -> Error {
    Error::Damaged { file: path.display().to_string(), at, why: why.into() }
}

/// What a file holds.
struct Read {
    header: Header,
    parsed: Parsed,
    bytes: Vec<u8>,
}

/// Reads one file of a store. `None`: it is none of this format.
fn read(path: &Path, store: u64) -> Result<Option<Read>, Error> {
    let bytes = std::fs::read(path).map_err(Error::Log)?;
    let Some(header) = Header::read(&bytes) else { return Ok(None) };
    let header = header.map_err(|why| damaged(path, 0, why))?;
    if header.store != store {
        return Err(Error::Foreign { file: path.display().to_string() });
    }
    let area = bytes.get(AREA..).unwrap_or_default();
    let parsed = if header.first == 0 { Parsed::default() } else { format::parse(area, header.cycle, header.first) };
    Ok(Some(Read { header, parsed, bytes }))
}

/// What both files hold, judged.
struct Judged {
    records: Vec<Record>,
    /// Of each file: where it ends, and the number of its last record.
    ends: [(u64, u64); 2],
    active: usize,
    number: u64,
}

/// Tells torn tails from damage. Gives the records above `applied`, oldest first.
fn judge(paths: &[PathBuf; 2], files: &[Read; 2], applied: u64) -> Result<Judged, Error> {
    let begun = files.each_ref().map(|f| f.header.first);
    let active = usize::from(begun[1] > begun[0]);
    // A file is begun once all before it is synced.
    let watermark = files.iter().map(|f| f.parsed.watermark.max(f.header.first.saturating_sub(1))).max().unwrap_or(0);
    let mut records = Vec::new();
    let mut ends = [(AREA as u64, 0); 2];
    for (n, Read { header, parsed, bytes }) in files.iter().enumerate() {
        let path = &paths[n];
        // What is torn ends the file; what is behind it was never synced.
        let mut torn = None;
        for Gap { at, from, to } in &parsed.gaps {
            if *to <= applied + 1 {
                tracing::warn!(file = %path.display(), at = AREA + at, from, "the log is damaged where it is not needed any more");
            } else if *from <= watermark {
                let why = format!("record {from} cannot be read, and all up to {watermark} was on disk");
                return Err(damaged(path, (AREA + at) as u64, why));
            } else {
                torn = Some((*at, *from));
                break;
            }
        }
        let kept = parsed.records.iter().take_while(|r| torn.is_none_or(|(_, from)| r.number < from));
        let mut last = header.first.saturating_sub(1);
        for record in kept {
            last = record.number;
            if record.number > applied {
                let body = bytes[AREA + record.body.start..AREA + record.body.end].to_vec();
                records.push(Record { number: record.number, body });
            }
        }
        let end = torn.map_or(parsed.end, |(at, _)| at);
        ends[n] = ((AREA + end) as u64, last);
    }
    records.sort_by_key(|record| record.number);
    let active_end = ends[active];
    for (expected, found) in (applied + 1..).zip(&records) {
        if found.number != expected {
            let why = format!("record {expected} is missing before {}", found.number);
            return Err(damaged(&paths[1 - active], ends[1 - active].0, why));
        }
    }
    let number = records.last().map_or(applied.max(active_end.1), |record| record.number);
    if watermark > number {
        let why = format!("it ends with record {number}, and all up to {watermark} was on disk");
        return Err(damaged(&paths[active], active_end.0, why));
    }
    Ok(Judged { records, ends, active, number })
}

/// Reads both files and changes nothing.
fn inspect(path: &Path, store: u64, applied: u64) -> Result<([Header; 2], Judged), Error> {
    let paths = paths(path);
    let mut files = Vec::new();
    for path in &paths {
        if !path.exists() {
            return Err(Error::Missing { file: path.display().to_string() });
        }
        files.push(read(path, store)?.ok_or_else(|| damaged(path, 0, "its header is none of a log"))?);
    }
    let files: [Read; 2] = files.try_into().unwrap_or_else(|_| unreachable!("two files were read"));
    let judged = judge(&paths, &files, applied)?;
    Ok((files.map(|file| file.header), judged))
}

/// The records above `applied`, oldest first; nothing is changed.
pub(crate) fn records(path: &Path, store: u64, applied: u64) -> Result<Vec<Record>, Error> {
    inspect(path, store, applied).map(|(_, judged)| judged.records)
}

/// The file, if there is one, that holds records of a store whose tables know of no log; nothing is changed. A log that was just
/// made has none: its head may have ended before it could write down that it made it.
pub(crate) fn orphan(path: &Path) -> Result<Option<PathBuf>, Error> {
    for path in paths(path).into_iter().filter(|path| path.exists()) {
        let bytes = std::fs::read(&path).map_err(Error::Log)?;
        let Some(header) = Header::read(&bytes) else { continue };
        let Header { cycle, first, .. } = header.map_err(|why| damaged(&path, 0, why))?;
        let parsed = format::parse(bytes.get(AREA..).unwrap_or_default(), cycle, first);
        if first > 0 && !(parsed.records.is_empty() && parsed.gaps.is_empty()) {
            return Ok(Some(path));
        }
    }
    Ok(None)
}

impl Log {
    /// Makes both files anew, for records above `applied`. What they held must be in the tables for good.
    pub fn create(path: &Path, store: u64, applied: u64) -> Result<Self, Error> {
        let make = |n: usize| -> io::Result<LogFile> {
            let path = paths(path)[n].clone();
            let file =
                OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path)?;
            let size = file.metadata()?.len();
            let (cycle, first) = (fresh_cycle(), if n == 0 { applied + 1 } else { 0 });
            file.write_all_at(&Header { store, cycle, first }.bytes(), 0)?;
            let mut made =
                LogFile { file: Arc::new(file), path, cycle, end: AREA as u64, size: size.max(AREA as u64), last: 0 };
            made.blank()?;
            made.grow(if n == 0 { RESERVE } else { 0 })?;
            made.file.sync_all()?;
            Ok(made)
        };
        let files = [make(0).map_err(Error::Log)?, make(1).map_err(Error::Log)?];
        sync_folder_of(path).map_err(Error::Log)?;
        Ok(Self {
            files,
            active: 0,
            store,
            number: applied,
            synced: applied,
            other: Other::Ready,
            buffer: Vec::new(),
            full: None,
        })
    }

    /// Opens the files `<path>-log0` and `<path>-log1` of a store; gives the records above `applied`, oldest first.
    pub fn open(path: &Path, store: u64, applied: u64) -> Result<(Self, Vec<Record>), Error> {
        let (files, Judged { records, ends, active, number }) = inspect(path, store, applied)?;
        let paths = paths(path);
        let open = |n: usize| -> io::Result<LogFile> {
            let file = Arc::new(OpenOptions::new().read(true).write(true).open(&paths[n])?);
            let (end, last) = ends[n];
            let size = file.metadata()?.len();
            Ok(LogFile { file, path: paths[n].clone(), cycle: files[n].cycle, end, size, last })
        };
        let other = if files[1 - active].first == 0 { Other::Ready } else { Other::Used };
        let files = [open(0).map_err(Error::Log)?, open(1).map_err(Error::Log)?];
        let mut log = Self { files, active, store, number, synced: number, other, buffer: Vec::new(), full: None };
        // What is torn must not be met again behind new records, and what was found must be on disk before anybody hears of it.
        log.files[active].blank().map_err(Error::Log)?;
        for file in &log.files {
            file.file.sync_data().map_err(Error::Log)?;
        }
        log.mark(number, &Watermark::default()).map_err(Error::Log)?;
        log.has_room();
        Ok((log, records))
    }

    /// Writes a batch behind the others; gives its number. It outlives the process, and once [`Self::unsynced`] was synced
    /// the machine.
    pub fn write(&mut self, batch: &Json, watermark: &Watermark) -> io::Result<u64> {
        self.rotate(watermark)?;
        let number = self.number + 1;
        let file = &mut self.files[self.active];
        let head = format::Head { cycle: file.cycle, number, synced: self.synced };
        format::write(&mut self.buffer, head, batch.text.as_bytes())?;
        file.file.write_all_at(&self.buffer, file.end)?;
        file.end += self.buffer.len() as u64;
        file.last = number;
        file.size = file.size.max(file.end);
        self.number = number;
        if self.buffer.capacity() > KEPT_MAX as usize {
            self.buffer = Vec::new();
        }
        if file.size - file.end < RESERVE {
            self.reserve();
        }
        Ok(number)
    }

    /// All up to `number` was synced: says so behind the last record. Where nothing is unsynced then, a long file is left.
    pub fn mark(&mut self, number: u64, watermark: &Watermark) -> io::Result<()> {
        self.synced = self.synced.max(number);
        let ready = self.other == Other::Ready && self.synced == self.number;
        if ready && self.files[self.active].end >= ROTATE_AT {
            // The header says that all before is synced, as a marker does.
            return self.turn(watermark);
        }
        let file = &self.files[self.active];
        let mut marker = Vec::with_capacity(HEAD);
        format::write(&mut marker, format::Head { cycle: file.cycle, number: self.number, synced: self.synced }, &[])?;
        match file.file.write_all_at(&marker, file.end) {
            // It is a help, and there is no room for it.
            Err(error) if is_full(&error) => Ok(()),
            done => done,
        }
    }

    /// Whether the disk has room for more than what is under way; where it had none, it is tried again now and then.
    pub fn has_room(&mut self) -> bool {
        let file = &self.files[self.active];
        let tried = self.full.is_some_and(|since| since.elapsed() < RETRY_EVERY);
        if file.size - file.end < RESERVE && !tried {
            self.reserve();
        }
        self.full.is_none()
    }

    /// Bytes in the file that is written to.
    pub fn length(&self) -> u64 {
        self.files[self.active].end
    }

    fn reserve(&mut self) {
        let file = &mut self.files[self.active];
        self.full = match file.grow(RESERVE) {
            Ok(()) => None,
            Err(error) => {
                if self.full.is_none() {
                    tracing::error!(%error, file = %file.path.display(), "no room for the log; new work is refused until there is");
                }
                Some(Instant::now())
            }
        };
    }

    /// Makes the other file ready if this one is long and nothing in that one is needed any more. Gives the file, to be synced
    /// before [`Self::made_ready`]: records must not be met under the header of an earlier cycle.
    pub fn make_ready(&mut self, watermark: &Watermark) -> io::Result<Option<Arc<File>>> {
        let (this, other) = (self.active, 1 - self.active);
        if self.other != Other::Used || self.files[this].end < READY_AT {
            return Ok(None);
        }
        if self.files[other].last > watermark.tables.load(Ordering::Acquire) {
            watermark.wanted.store(self.files[other].last, Ordering::Release);
            return Ok(None);
        }
        let header = Header { store: self.store, cycle: fresh_cycle(), first: 0 };
        let file = &mut self.files[other];
        file.file.write_all_at(&header.bytes(), 0)?;
        let used = file.end;
        (file.cycle, file.end, file.last) = (header.cycle, AREA as u64, 0);
        // While there is much to write the next cycle would only make it as long again: 45 ms for the cut, and zeros for all of it.
        if file.size > KEPT_MAX && used <= KEPT_MAX {
            file.file.set_len(AREA as u64 + GROW)?;
            file.size = AREA as u64 + GROW;
        }
        self.other = Other::Begun;
        Ok(Some(file.file.clone()))
    }

    /// What [`Self::make_ready`] gave is synced.
    pub fn made_ready(&mut self) {
        self.other = Other::Ready;
    }

    /// Goes on in the other file, which is ready, while nothing is unsynced. Until its first record is synced, the header may
    /// be lost with it.
    fn turn(&mut self, watermark: &Watermark) -> io::Result<()> {
        let (this, other) = (self.active, 1 - self.active);
        let file = &mut self.files[other];
        let header = Header { store: self.store, cycle: file.cycle, first: self.number + 1 };
        file.file.write_all_at(&header.bytes(), 0)?;
        file.last = self.number;
        (self.active, self.other) = (other, Other::Used);
        watermark.wanted.store(self.files[this].last, Ordering::Release);
        Ok(())
    }

    /// Goes on in the other file if this one is very long: there was always something unsynced.
    fn rotate(&mut self, watermark: &Watermark) -> io::Result<()> {
        if self.files[self.active].end < ROTATE_LATEST {
            return Ok(());
        }
        if let Some(other) = self.make_ready(watermark)? {
            other.sync_data()?;
            self.made_ready();
        }
        if self.other != Other::Ready {
            return Ok(());
        }
        // Records are durable in the order of their numbers, across files too.
        self.files[self.active].file.sync_data()?;
        self.synced = self.number;
        self.turn(watermark)
    }

    /// The file to sync, so that all that was written is on disk, and the number of the last record. After an error nothing is
    /// known; it must not be tried again.
    pub fn unsynced(&self) -> (Arc<File>, u64) {
        (self.files[self.active].file.clone(), self.number)
    }
}

impl LogFile {
    /// Zeros ahead of the end, up to `ahead` of them at least.
    fn grow(&mut self, ahead: u64) -> io::Result<()> {
        while self.size < self.end + ahead.max(1) {
            let next = (self.size + 1).next_multiple_of(GROW);
            self.file.write_all_at(&vec![0; (next - self.size) as usize], self.size)?;
            self.size = next;
        }
        Ok(())
    }

    /// Zeros for all behind the end.
    fn blank(&self) -> io::Result<()> {
        let zeros = vec![0; 1 << 16];
        let mut at = self.end;
        while at < self.size {
            let count = zeros.len().min((self.size - at) as usize);
            self.file.write_all_at(&zeros[..count], at)?;
            at += count as u64;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
