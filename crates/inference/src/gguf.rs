//! A GGUF file's head, looked through before anything is made of it: lengths that fit into the file, shapes whose product is
//! a number, tensors that lie inside. Readers behind this one believe what the head says.
//!
//! The format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

use std::io::{Read, Seek, SeekFrom};

/// Values of the head, and tensors.
const ENTRIES_MAX: u64 = 1 << 20;
/// Dimensions of a tensor.
const DIMS_MAX: u32 = 8;
/// Arrays in arrays.
const DEPTH_MAX: u32 = 3;
/// Where tensors lie, when the head does not say.
const ALIGNMENT: u64 = 32;
/// More is no alignment.
const ALIGNMENT_MAX: u64 = 1 << 20;

/// Says what is wrong with a file that is no GGUF, or a hostile one. Leaves the file where it ended.
pub fn check(file: &mut (impl Read + Seek)) -> Result<(), String> {
    let length = file.seek(SeekFrom::End(0)).map_err(|e| e.to_string())?;
    file.seek(SeekFrom::Start(0)).map_err(|e| e.to_string())?;
    Head { file: std::io::BufReader::new(file), at: 0, length, wide: true, alignment: ALIGNMENT }.check()
}

struct Head<R> {
    file: R,
    at: u64,
    length: u64,
    /// Lengths are 64 bits wide, from version 2 on.
    wide: bool,
    alignment: u64,
}

impl<R: Read> Head<R> {
    fn check(mut self) -> Result<(), String> {
        if self.u32()? != u32::from_le_bytes(*b"GGUF") {
            return Err("it is no GGUF file".into());
        }
        self.wide = match self.u32()? {
            1 => false,
            2 | 3 => true,
            version => return Err(format!("GGUF version {version} is not served")),
        };
        let (tensors, values) = (self.length_of()?, self.length_of()?);
        if tensors > ENTRIES_MAX || values > ENTRIES_MAX {
            return Err(format!("it says to have {tensors} tensors and {values} values"));
        }
        for _ in 0..values {
            let name = self.text()?;
            let kind = self.u32()?;
            let number = self.value(kind, 0)?;
            if name == b"general.alignment" {
                self.alignment =
                    number.filter(|n| n.is_power_of_two() && *n <= ALIGNMENT_MAX).ok_or("its alignment is wrong")?;
            }
        }
        let mut ends = Vec::new();
        for _ in 0..tensors {
            ends.push(self.tensor()?);
        }
        let data = self.at.div_ceil(self.alignment) * self.alignment;
        let inside = |end: &u64| data.checked_add(*end).is_some_and(|end| end <= self.length);
        if ends.iter().all(inside) { Ok(()) } else { Err("a tensor ends behind the file".into()) }
    }

    /// Where a tensor's data ends, from where the first one begins.
    fn tensor(&mut self) -> Result<u64, String> {
        let name = String::from_utf8_lossy(&self.text()?).into_owned();
        let wrong = |what: &str| format!("tensor `{name}` {what}");
        let count = self.u32()?;
        if count > DIMS_MAX {
            return Err(wrong("has too many dimensions"));
        }
        let (mut elements, mut row) = (1u64, 1);
        for dim in 0..count {
            let size = self.length_of()?;
            if dim == 0 {
                row = size;
            }
            elements = elements.checked_mul(size).ok_or_else(|| wrong("is larger than a number"))?;
        }
        let (block, bytes) = block(self.u32()?).ok_or_else(|| wrong("has a type that is not served"))?;
        let offset = self.u64()?;
        if row % block != 0 {
            return Err(wrong("has rows that are not whole blocks"));
        }
        let size = (elements / block).checked_mul(bytes).and_then(|size| size.checked_add(offset));
        size.ok_or_else(|| wrong("is larger than a number"))
    }

    /// Passes over a value; gives it when it is a whole number.
    fn value(&mut self, kind: u32, depth: u32) -> Result<Option<u64>, String> {
        let number = |bytes: &[u8]| bytes.iter().rev().fold(0u64, |n, b| n << 8 | u64::from(*b));
        Ok(match kind {
            0 | 1 | 7 => Some(number(&self.bytes::<1>()?)),
            2 | 3 => Some(number(&self.bytes::<2>()?)),
            4..=6 => Some(number(&self.bytes::<4>()?)),
            10..=12 => Some(number(&self.bytes::<8>()?)),
            8 => {
                self.text()?;
                None
            }
            9 if depth < DEPTH_MAX => {
                let (kind, count) = (self.u32()?, self.length_of()?);
                // Each takes a byte at least.
                self.fits(count)?;
                for _ in 0..count {
                    self.value(kind, depth + 1)?;
                }
                None
            }
            _ => return Err(format!("it has a value of type {kind}")),
        })
    }

    fn text(&mut self) -> Result<Vec<u8>, String> {
        let length = self.length_of()?;
        self.fits(length)?;
        let mut text = vec![0; length as usize];
        self.fill(&mut text)?;
        Ok(text)
    }

    fn fits(&self, length: u64) -> Result<(), String> {
        if length <= self.length - self.at {
            Ok(())
        } else {
            Err("it is cut short, or says to hold more than it does".into())
        }
    }

    fn length_of(&mut self) -> Result<u64, String> {
        if self.wide { self.u64() } else { self.u32().map(u64::from) }
    }

    fn u32(&mut self) -> Result<u32, String> {
        self.bytes().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, String> {
        self.bytes().map(u64::from_le_bytes)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], String> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, into: &mut [u8]) -> Result<(), String> {
        self.fits(into.len() as u64)?;
        self.file.read_exact(into).map_err(|e| format!("it cannot be read ({e})"))?;
        self.at += into.len() as u64;
        Ok(())
    }
}

/// Elements and bytes of a block of each type of ggml that there is.
fn block(kind: u32) -> Option<(u64, u64)> {
    Some(match kind {
        0 => (1, 4),
        1 | 30 => (1, 2),
        2 => (32, 18),
        3 => (32, 20),
        6 => (32, 22),
        7 => (32, 24),
        8 => (32, 34),
        9 => (32, 36),
        10 => (256, 84),
        11 => (256, 110),
        12 => (256, 144),
        13 => (256, 176),
        14 => (256, 210),
        15 => (256, 292),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;

    /// A file with one tensor of these dimensions and type.
    fn file(dims: &[u64], kind: u32, offset: u64, data: usize) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        let mut put = |bytes: &[u8]| out.extend_from_slice(bytes);
        put(&3u32.to_le_bytes());
        put(&1u64.to_le_bytes());
        put(&1u64.to_le_bytes());
        put(&17u64.to_le_bytes());
        put(b"general.alignment");
        put(&4u32.to_le_bytes());
        put(&32u32.to_le_bytes());
        put(&1u64.to_le_bytes());
        put(b"t");
        put(&(dims.len() as u32).to_le_bytes());
        dims.iter().for_each(|dim| put(&dim.to_le_bytes()));
        put(&kind.to_le_bytes());
        put(&offset.to_le_bytes());
        out.resize(out.len().next_multiple_of(32) + data, 0);
        out
    }

    fn is_good(bytes: Vec<u8>) -> bool {
        check(&mut Cursor::new(bytes)).is_ok()
    }

    #[test]
    fn a_file_that_holds_what_it_says_is_good() {
        assert!(is_good(file(&[32, 2], 8, 0, 68)) && is_good(file(&[4], 0, 32, 48)) && is_good(file(&[], 0, 0, 4)));
    }

    #[test]
    fn what_says_to_hold_more_is_refused() {
        assert!(!is_good(file(&[32, 2], 8, 0, 67)), "a byte is missing");
        assert!(!is_good(file(&[32, 2], 8, u64::MAX - 4, 68)), "it would begin behind all");
        assert!(!is_good(file(&[1 << 32, 1 << 32], 0, 0, 64)), "the product is no number");
        assert!(!is_good(file(&[1 << 62, 2], 0, 0, 64)), "nor are its bytes");
        assert!(!is_good(file(&[33, 2], 8, 0, 128)), "half a block");
        assert!(!is_good(file(&[1; 9], 0, 0, 64)) && !is_good(file(&[4], 99, 0, 64)));
        let good = file(&[32, 2], 8, 0, 68);
        for cut in 0..good.len() {
            assert!(!is_good(good[..cut].to_vec()), "cut at {cut}");
        }
        // Lengths and counts that nothing can hold, at each place.
        for at in 4..good.len() - 76 {
            let mut wrong = good.clone();
            wrong[at..at + 8].fill(0xff);
            let _ = check(&mut Cursor::new(wrong));
        }
        let mut aligned = good;
        let at = aligned.windows(4).position(|w| w == b"ment").unwrap() + 8;
        aligned[at] = 0;
        assert!(!is_good(aligned), "an alignment of nothing");
    }
}
