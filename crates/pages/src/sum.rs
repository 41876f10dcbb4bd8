//! The sum of a page: CRC-32 and CRC-32C of its number and its content, 64 bits in all.
//!
//! Both find every change of up to 32 neighbouring bits. The number is part of it, so that a page at another's place is found.
//! Processors have instructions for both; a page of 4 KiB takes well under a microsecond.

/// How long a sum is, and how many bytes at the end of each page are reserved for it.
pub const BYTES: usize = 8;

fn of(page: u64, content: &[u8]) -> [u8; BYTES] {
    let number = page.to_le_bytes();
    let mut ieee = crc32fast::Hasher::new();
    ieee.update(&number);
    ieee.update(content);
    let castagnoli = crc32c::crc32c_append(crc32c::crc32c(&number), content);
    (u64::from(ieee.finalize()) << 32 | u64::from(castagnoli)).to_be_bytes()
}

/// Puts the sum at the end of a page. Pages are counted from 1.
pub fn put(page: u64, bytes: &mut [u8]) {
    if let Some((content, end)) = bytes.split_last_chunk_mut::<BYTES>() {
        *end = of(page, content);
    }
}

/// Whether a page has its sum.
pub fn holds(page: u64, bytes: &[u8]) -> bool {
    bytes.split_last_chunk::<BYTES>().is_some_and(|(content, end)| *end == of(page, content))
}

/// Whether nothing was ever written to a page.
pub(crate) fn is_blank(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}
