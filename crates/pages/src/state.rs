//! What is known of an open file, and what is done with each access to it.

use std::{
    collections::BTreeSet,
    ffi::c_int,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use libsqlite3_sys as ffi;

use crate::{
    damage::{self, Damage},
    format::{self, Header, wal},
    sum,
};

/// A file as the VFS below has it; SQLite's codes.
pub(crate) trait Disk {
    fn read(&self, bytes: &mut [u8], at: i64) -> c_int;
    fn write(&self, bytes: &[u8], at: i64) -> c_int;
}

/// What a database and its write-ahead log have in common.
#[derive(Debug)]
pub(crate) struct Shared {
    database: PathBuf,
    /// Pages have sums. It never ends.
    summed: AtomicBool,
    /// How often a lock of the log was taken or given back. Between two of these others may write to it.
    pub turns: AtomicU64,
}

impl Shared {
    pub fn new(database: PathBuf) -> Arc<Self> {
        Arc::new(Self { database, summed: AtomicBool::new(false), turns: AtomicU64::new(0) })
    }

    fn is_summed(&self) -> bool {
        self.summed.load(Ordering::Relaxed)
    }

    fn judge(&self, page: u64, bytes: &[u8], in_log: bool) -> c_int {
        if sum::holds(page, bytes) || sum::is_blank(bytes) { ffi::SQLITE_OK } else { self.refuse(page, in_log) }
    }

    fn refuse(&self, page: u64, in_log: bool) -> c_int {
        damage::found(Damage { database: self.database.clone(), in_log, page });
        ffi::SQLITE_IOERR_DATA
    }
}

/// Writes `bytes` as a page with its sum, behind `head`.
fn write_summed(disk: &impl Disk, buffer: &mut Vec<u8>, head: &[u8], page: u64, bytes: &[u8], at: i64) -> c_int {
    buffer.clear();
    buffer.extend_from_slice(head);
    buffer.extend_from_slice(bytes);
    sum::put(page, &mut buffer[head.len()..]);
    disk.write(buffer, at)
}

/// An open database.
#[derive(Debug)]
pub(crate) struct Database {
    pub shared: Arc<Shared>,
    /// Its header was seen.
    known: bool,
    /// Pages that were written to a new file before its header, which says whether they have sums.
    early: BTreeSet<u64>,
    buffer: Vec<u8>,
}

impl Database {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, known: false, early: BTreeSet::new(), buffer: Vec::new() }
    }

    pub fn read(&mut self, disk: &impl Disk, bytes: &mut [u8], at: i64) -> c_int {
        let code = disk.read(bytes, at);
        if code != ffi::SQLITE_OK {
            return code;
        }
        if at == 0 && !self.shared.is_summed() {
            self.learn(disk, bytes);
        }
        match format::page_at(at, bytes.len()) {
            Some(page) if self.shared.is_summed() => self.shared.judge(page, bytes, false),
            _ => code,
        }
    }

    /// Learns whether pages have sums before a log is written to: the first page may be read from there and never from here.
    pub fn settle(&mut self, disk: &impl Disk) {
        let mut head = [0; format::HEADER];
        if !self.shared.is_summed() && disk.read(&mut head, 0) == ffi::SQLITE_OK {
            self.learn(disk, &head);
        }
    }

    /// Looks at a header that was read. What reads as a file without sums may be one whose header is damaged; and one whose first
    /// page is damaged is not refused for that here, because the log may have a newer one.
    fn learn(&mut self, disk: &impl Disk, bytes: &[u8]) {
        let Some(header) = Header::read(bytes) else { return };
        self.known = true;
        let mut is_summed = header.reserved;
        if !is_summed {
            let mut first = vec![0; header.page];
            is_summed = disk.read(&mut first, 0) == ffi::SQLITE_OK && format::lost_its_reserve(&first);
        }
        self.shared.summed.store(is_summed, Ordering::Relaxed);
    }

    pub fn write(&mut self, disk: &impl Disk, bytes: &[u8], at: i64) -> c_int {
        let Some(page) = format::page_at(at, bytes.len()) else { return disk.write(bytes, at) };
        if page == 1
            && !self.shared.is_summed()
            && let Some(header) = Header::read(bytes)
        {
            self.known = true;
            if header.reserved {
                self.shared.summed.store(true, Ordering::Relaxed);
                let code = self.sum_early(disk, bytes.len());
                if code != ffi::SQLITE_OK {
                    return code;
                }
            }
            self.early.clear();
        }
        if self.shared.is_summed() {
            return write_summed(disk, &mut self.buffer, &[], page, bytes, at);
        }
        if !self.known {
            self.early.insert(page);
        }
        disk.write(bytes, at)
    }

    /// Sums for what was written before it was known that pages have them.
    fn sum_early(&mut self, disk: &impl Disk, size: usize) -> c_int {
        let mut bytes = vec![0; size];
        for page in std::mem::take(&mut self.early) {
            let at = (page as i64 - 1) * size as i64;
            let mut code = disk.read(&mut bytes, at);
            if code == ffi::SQLITE_OK {
                code = write_summed(disk, &mut self.buffer, &[], page, &bytes, at);
            }
            if code != ffi::SQLITE_OK && code != ffi::SQLITE_IOERR_SHORT_READ {
                return code;
            }
        }
        ffi::SQLITE_OK
    }
}

/// The header of a frame that SQLite has given for writing.
#[derive(Debug)]
struct Head {
    frame: i64,
    bytes: [u8; wal::FRAME],
    /// It is in the file. A header that a page follows is written with it.
    written: bool,
}

/// An open write-ahead log.
///
/// SQLite verifies its frames only when it replays a log after a crash, so a page in it has its own sum as well, as it will
/// have in the database. A frame's header has a checksum that goes on from frame to frame, and SQLite makes it of the page
/// without its sum. It is made again here, from what is in the file: SQLite itself goes on from the file's whenever it
/// replays a log or makes the checksums of frames anew that were written twice.
#[derive(Debug)]
pub(crate) struct Log {
    shared: Arc<Shared>,
    /// What was written last, where it was a frame's header.
    head: Option<Head>,
    /// What was read last, where it was a whole frame: SQLite writes its header anew then, and no page.
    frame_read: Option<i64>,
    /// Where the next frame begins, the checksum of the one before, and the turn for which that holds.
    next: Option<(i64, wal::Checksum, u64)>,
    /// Salts of the log, and the order of its words.
    order: Option<([u8; 8], bool)>,
    buffer: Vec<u8>,
}

impl Log {
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared, head: None, frame_read: None, next: None, order: None, buffer: Vec::new() }
    }

    pub fn read(&mut self, disk: &impl Disk, bytes: &mut [u8], at: i64) -> c_int {
        let code = self.flush(disk);
        if code != ffi::SQLITE_OK {
            return code;
        }
        self.frame_read = wal::frame_of(at + wal::FRAME as i64, bytes.len().saturating_sub(wal::FRAME));
        let code = disk.read(bytes, at);
        if code != ffi::SQLITE_OK || !self.shared.is_summed() {
            return code;
        }
        let Some(frame) = wal::frame_of(at, bytes.len()) else { return code };
        let mut head = [0; wal::FRAME];
        match disk.read(&mut head, frame) {
            ffi::SQLITE_OK => self.shared.judge(wal::page_of(&head), bytes, true),
            code => code,
        }
    }

    pub fn write(&mut self, disk: &impl Disk, bytes: &[u8], at: i64) -> c_int {
        let frame_read = self.frame_read.take();
        if !self.shared.is_summed() {
            return disk.write(bytes, at);
        }
        let frame = wal::frame_of(at, bytes.len());
        if let Some(head) = self.head.take_if(|head| frame == Some(head.frame)) {
            return self.append(disk, head.bytes, bytes, head.frame);
        }
        let code = self.flush(disk);
        if code != ffi::SQLITE_OK {
            return code;
        }
        self.head = None;
        if let Some(head) = bytes.try_into().ok().filter(|_| wal::is_head(at, bytes.len())) {
            let written = frame_read == Some(at);
            self.head = Some(Head { frame: at, bytes: head, written });
            return if written { disk.write(bytes, at) } else { ffi::SQLITE_OK };
        }
        self.next = None;
        let Some(frame) = frame else { return disk.write(bytes, at) };
        // A page that was written before in this transaction; SQLite makes the checksums anew at its end.
        let mut head = [0; wal::FRAME];
        match disk.read(&mut head, frame) {
            ffi::SQLITE_OK => write_summed(disk, &mut self.buffer, &[], wal::page_of(&head), bytes, at),
            code => code,
        }
    }

    /// Writes a header that no page has followed. Called before anything else is done with the file.
    pub fn flush(&mut self, disk: &impl Disk) -> c_int {
        match &mut self.head {
            Some(head) if !head.written => {
                head.written = true;
                disk.write(&head.bytes, head.frame)
            }
            _ => ffi::SQLITE_OK,
        }
    }

    /// Writes a frame: its header, and its page with its sum.
    fn append(&mut self, disk: &impl Disk, mut head: [u8; wal::FRAME], bytes: &[u8], frame: i64) -> c_int {
        let (page, next) = (wal::page_of(&head), self.next.take());
        if sum::is_blank(&head[8..]) {
            // SQLite leaves salts and checksum for the end of the transaction.
            return write_summed(disk, &mut self.buffer, &head, page, bytes, frame);
        }
        let turn = self.shared.turns.load(Ordering::Relaxed);
        let before = match next {
            Some((at, before, of)) if at == frame && of == turn => before,
            _ => match self.before(disk, &head, frame, bytes.len()) {
                Ok(before) => before,
                Err(code) => return code,
            },
        };
        let buffer = &mut self.buffer;
        buffer.clear();
        buffer.extend_from_slice(&head);
        buffer.extend_from_slice(bytes);
        sum::put(page, &mut buffer[wal::FRAME..]);
        let checksum = before.over(&head[..8]).over(&buffer[wal::FRAME..]);
        head[16..].copy_from_slice(&checksum.bytes());
        buffer[..wal::FRAME].copy_from_slice(&head);
        let code = disk.write(buffer, frame);
        if code == ffi::SQLITE_OK {
            self.next = Some((frame + buffer.len() as i64, checksum, turn));
        }
        code
    }

    /// The checksum in the file that the one of this frame goes on from.
    fn before(
        &mut self,
        disk: &impl Disk,
        head: &[u8; wal::FRAME],
        frame: i64,
        size: usize,
    ) -> Result<wal::Checksum, c_int> {
        let read = |bytes: &mut [u8], at| match disk.read(bytes, at) {
            ffi::SQLITE_OK => Ok(()),
            code => Err(code),
        };
        let salts = wal::salts_of(head);
        let big_endian = match self.order {
            Some((known, order)) if known == salts => order,
            _ => {
                let mut magic = [0; 4];
                read(&mut magic, 0)?;
                let order = magic[3] & 1 == 1;
                self.order = Some((salts, order));
                order
            }
        };
        let at = match frame {
            wal::HEADER => wal::HEADER - 8,
            later => later - size as i64 - 8,
        };
        let mut stored = [0; 8];
        read(&mut stored, at)?;
        Ok(wal::Checksum::stored(stored, big_endian))
    }
}
