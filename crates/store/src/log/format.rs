//! The bytes of a log file: a header, then records. All numbers are little-endian. Pure.
//!
//! ```text
//! header, 512 bytes:  "COVEYLOG"  crc u32  version u32  store u64  cycle u64  first u64  zeros
//! record:             cycle u64  crc u32  length u32  number u64  synced u64  body
//! ```
//!
//! A record without a body is a marker: it has the number of the record before it, and what was synced by then.

use std::{io, ops::Range};

/// Version of the format.
const VERSION: u32 = 2;
const MAGIC: &[u8; 8] = b"COVEYLOG";
/// Where records begin: the header has a sector of its own.
pub(crate) const AREA: usize = 512;
/// Bytes in front of a body.
pub(crate) const HEAD: usize = 32;

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..at + 4].iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..at + 8].iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte))
}

/// What a file begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Whose it is.
    pub store: u64,
    /// Of this use of the file.
    pub cycle: u64,
    /// Number of the first record; 0 = it has none yet.
    pub first: u64,
}

impl Header {
    pub fn bytes(&self) -> [u8; AREA] {
        let mut bytes = [0; AREA];
        bytes[..8].copy_from_slice(MAGIC);
        bytes[12..16].copy_from_slice(&VERSION.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.store.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.cycle.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.first.to_le_bytes());
        let crc = crc32fast::hash(&bytes[12..]);
        bytes[8..12].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// `None`: it is none of this format. An error: it was one.
    pub fn read(bytes: &[u8]) -> Option<Result<Self, String>> {
        let head = bytes.get(..AREA)?;
        if &head[..8] != MAGIC {
            return None;
        }
        if crc32fast::hash(&head[12..]) != u32_at(head, 8) {
            return Some(Err("its header is damaged".to_owned()));
        }
        let version = u32_at(head, 12);
        if version != VERSION {
            return Some(Err(format!("it is of version {version}, this program reads {VERSION}")));
        }
        Some(Ok(Self { store: u64_at(head, 16), cycle: u64_at(head, 24), first: u64_at(head, 32) }))
    }
}

/// What stands in front of a body.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Head {
    pub cycle: u64,
    pub number: u64,
    pub synced: u64,
}

/// Writes a record over `buffer`.
pub(crate) fn write(buffer: &mut Vec<u8>, head: Head, body: &[u8]) -> io::Result<()> {
    let length = u32::try_from(body.len()).map_err(|_| io::Error::other("a batch is above 4 GiB"))?;
    buffer.clear();
    buffer.extend(head.cycle.to_le_bytes());
    buffer.extend([0; 4]);
    buffer.extend(length.to_le_bytes());
    buffer.extend(head.number.to_le_bytes());
    buffer.extend(head.synced.to_le_bytes());
    buffer.extend(body);
    let crc = crc_of(buffer);
    buffer[8..12].copy_from_slice(&crc.to_le_bytes());
    Ok(())
}

fn crc_of(record: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&record[..8]);
    crc.update(&record[12..]);
    crc.finalize()
}

/// A record of a file; places are behind the header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub number: u64,
    pub synced: u64,
    pub body: Range<usize>,
}

/// Something between two records, or a record, that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Gap {
    /// Where it begins.
    pub at: usize,
    /// Number of the record that should be there.
    pub from: u64,
    /// Number of the next that can be read.
    pub to: u64,
}

/// A file, read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parsed {
    /// Records, in order; across gaps too.
    pub records: Vec<Found>,
    pub gaps: Vec<Gap>,
    /// Where the last record ends.
    pub end: usize,
    /// The highest number that some record or marker says was synced.
    pub watermark: u64,
}

fn record_at(area: &[u8], at: usize, cycle: u64) -> Option<Found> {
    let head = area.get(at..at + HEAD)?;
    if u64_at(head, 0) != cycle {
        return None;
    }
    let length = u32_at(head, 12) as usize;
    let record = area.get(at..(at + HEAD).checked_add(length)?)?;
    if crc_of(record) != u32_at(head, 8) {
        return None;
    }
    let body = at + HEAD..at + HEAD + length;
    Some(Found { number: u64_at(head, 16), synced: u64_at(head, 24), body })
}

/// The next record of the file's cycle behind `at`, with `number` or a higher one; or a marker that tells of such.
fn next_record(area: &[u8], at: usize, cycle: u64, number: u64) -> Option<(usize, Found)> {
    let sign = cycle.to_le_bytes();
    let places = area.get(at..)?.windows(sign.len()).enumerate().filter(|(_, bytes)| **bytes == sign);
    let mut found = places.filter_map(|(i, _)| Some((at + i, record_at(area, at + i, cycle)?)));
    found.find(|(_, record)| record.number >= number)
}

/// Reads what is behind a header.
pub(crate) fn parse(area: &[u8], cycle: u64, first: u64) -> Parsed {
    // Nothing is to be found in the zeros behind the end.
    let used = area.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    // A body may end with what is no zero, a head not: it may lack its own last bytes then.
    let area = &area[..area.len().min(used + HEAD)];
    let (mut parsed, mut at, mut expected) = (Parsed::default(), 0, first);
    loop {
        match record_at(area, at, cycle) {
            Some(marker) if marker.body.is_empty() && marker.number + 1 == expected => {
                parsed.watermark = parsed.watermark.max(marker.synced);
                return parsed;
            }
            Some(record) if !record.body.is_empty() && record.number == expected => {
                parsed.watermark = parsed.watermark.max(record.synced);
                (at, expected) = (record.body.end, record.number + 1);
                parsed.end = at;
                parsed.records.push(record);
            }
            _ => {
                let Some((place, next)) = next_record(area, at + 1, cycle, expected) else { return parsed };
                // A marker stands behind the record of its number.
                let to = next.number + u64::from(next.body.is_empty());
                parsed.gaps.push(Gap { at, from: expected, to });
                (at, expected) = (place, to);
            }
        }
    }
}
