//! What this crate knows of SQLite's files: <https://www.sqlite.org/fileformat2.html>.

use crate::sum;

/// Bytes of a database's header that SQLite reads alone when it opens a file.
pub(crate) const HEADER: usize = 100;
/// The least size of a page.
pub(crate) const PAGE_MIN: usize = 512;
/// Where SQLite keeps its locks; the page there is never used.
pub(crate) const LOCKS_AT: u64 = 1 << 30;
const PAGE_DEFAULT: usize = 4096;
const PAGE_MAX: usize = 65_536;
const RESERVED_AT: usize = 20;

fn is_page(length: usize) -> bool {
    (PAGE_MIN..=PAGE_MAX).contains(&length) && length.is_power_of_two()
}

/// The number of the page that an access to a database's file is of, where it is of a whole page.
pub(crate) fn page_at(at: i64, length: usize) -> Option<u64> {
    let at = u64::try_from(at).ok()?;
    (is_page(length) && at.is_multiple_of(length as u64)).then(|| at / length as u64 + 1)
}

/// What the header of a database says of its pages.
pub(crate) struct Header {
    /// The size of each; the usual one where it says none that can be.
    pub page: usize,
    /// It reserves a sum's bytes in each.
    pub reserved: bool,
}

impl Header {
    /// `None`: it is none, or the file is empty.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let head = bytes.get(..HEADER).filter(|head| !sum::is_blank(head))?;
        let page = match u16::from_be_bytes([head[16], head[17]]) {
            1 => PAGE_MAX,
            size if is_page(size.into()) => size.into(),
            _ => PAGE_DEFAULT,
        };
        Some(Self { page, reserved: usize::from(head[RESERVED_AT]) == sum::BYTES })
    }
}

/// Whether the first page has its sum but for the byte that says that there is one.
pub(crate) fn lost_its_reserve(first: &[u8]) -> bool {
    let mut first = first.to_vec();
    first.get_mut(RESERVED_AT).is_some_and(|reserved| {
        *reserved as usize != sum::BYTES && {
            *reserved = sum::BYTES as u8;
            true
        }
    }) && sum::holds(1, &first)
}

/// SQLite's write-ahead log: a header, then frames of a header and a page each.
pub(crate) mod wal {
    use super::is_page;

    pub const HEADER: i64 = 32;
    pub const FRAME: usize = 24;

    /// Whether a write of so many bytes may be the header of a frame.
    pub fn is_head(at: i64, length: usize) -> bool {
        length == FRAME && at >= HEADER
    }

    /// Where the frame begins whose page an access is of.
    pub fn frame_of(at: i64, length: usize) -> Option<i64> {
        let frame = at - FRAME as i64;
        let fits = is_page(length) && frame >= HEADER && (frame - HEADER) % (length + FRAME) as i64 == 0;
        fits.then_some(frame)
    }

    /// The page's number, in the header of its frame.
    pub fn page_of(head: &[u8; FRAME]) -> u64 {
        u32::from_be_bytes([head[0], head[1], head[2], head[3]]).into()
    }

    /// Salts of the log that a frame belongs to.
    pub fn salts_of(head: &[u8; FRAME]) -> [u8; 8] {
        std::array::from_fn(|n| head[8 + n])
    }

    /// The frames' checksum: each goes on from the one before.
    #[derive(Clone, Copy, Debug)]
    pub struct Checksum {
        pub sums: [u32; 2],
        /// Whether words are read with their high byte first.
        pub big_endian: bool,
    }

    impl Checksum {
        pub fn stored(bytes: [u8; 8], big_endian: bool) -> Self {
            let [a, b, c, d, e, f, g, h] = bytes;
            Self { sums: [u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([e, f, g, h])], big_endian }
        }

        /// Goes on over whole pairs of words.
        pub fn over(self, bytes: &[u8]) -> Self {
            let word =
                |bytes: [u8; 4]| if self.big_endian { u32::from_be_bytes(bytes) } else { u32::from_le_bytes(bytes) };
            let [mut one, mut two] = self.sums;
            for &[a, b, c, d, e, f, g, h] in bytes.as_chunks::<8>().0 {
                one = one.wrapping_add(word([a, b, c, d])).wrapping_add(two);
                two = two.wrapping_add(word([e, f, g, h])).wrapping_add(one);
            }
            Self { sums: [one, two], ..self }
        }

        pub fn bytes(self) -> [u8; 8] {
            let [one, two] = self.sums.map(u32::to_be_bytes);
            std::array::from_fn(|n| if n < 4 { one[n] } else { two[n - 4] })
        }
    }
}
