//! The log as stores up to schema version 5 wrote it: no header, no watermark. It is read once more and made anew.
//!
//! A record is a head of [`HEAD`] bytes (length and CRC-32 of the body, the life of the process that wrote it, its number;
//! little-endian) and the batch as JSON. Records of one file are of one life and follow each other; the first that does not
//! ends the file.

use std::path::Path;

use super::{Record, damaged, paths};
use crate::Error;

const HEAD: usize = 4 + 4 + 8 + 8;

/// Records above `applied`, oldest first.
pub(crate) fn read(path: &Path, applied: u64) -> Result<Vec<Record>, Error> {
    let mut found = Vec::new();
    for path in paths(path) {
        match std::fs::read(&path) {
            Ok(bytes) => found.extend(records(&bytes, applied)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::Log(error)),
        }
    }
    found.sort_by_key(|record| record.number);
    for (expected, record) in (applied + 1..).zip(&found) {
        if record.number != expected {
            let why = format!("record {expected} is missing before {}", record.number);
            return Err(damaged(&paths(path)[0], 0, why));
        }
    }
    Ok(found)
}

fn records(bytes: &[u8], applied: u64) -> Vec<Record> {
    let (mut at, mut before, mut records) = (0, None, Vec::new());
    while let Some(head) = bytes.get(at..at + HEAD) {
        let word = |range: std::ops::Range<usize>| {
            head[range].iter().rev().fold(0_u64, |word, byte| word << 8 | u64::from(*byte))
        };
        let (length, sum, life, number) = (word(0..4) as usize, word(4..8), word(8..16), word(16..24));
        let follows = before.is_none_or(|(of, last)| life == of && number == last + 1);
        let Some(body) = bytes.get(at + 8..at + HEAD + length).filter(|_| number != 0 && follows) else { break };
        if u64::from(crc32fast::hash(body)) != sum {
            break;
        }
        if number > applied {
            records.push(Record { number, body: body[16..].to_vec() });
        }
        (at, before) = (at + HEAD + length, Some((life, number)));
    }
    records
}
