//! Which calls a process has begun, in a file that both map: what it says outlives the process, however that ends.
//!
//! The process writes the number of each call at its place before it runs anything of it; the worker reads the places of the
//! calls that are open when the process has ended. What had not begun is surely unrun, and runs elsewhere.

use std::{fs::File, io, os::unix::fs::FileExt as _, path::Path};

/// Places: a call is at its number modulo this. `covey._host` divides by the length of the file.
const PLACES: u64 = 1 << 16;
/// Bytes of a place: the number of the last call that was begun there.
const PLACE_BYTES: u64 = 8;

/// The file of one process.
#[derive(Debug)]
pub(super) struct Begun {
    file: File,
}

impl Begun {
    /// Makes the file anew, for this user alone.
    pub fn create(path: &Path) -> io::Result<Self> {
        let file = super::private_file(path)?;
        file.set_len(PLACES * PLACE_BYTES)?;
        Ok(Self { file })
    }

    /// Whether the call has begun; `None` where a later call has taken its place, or the file cannot be read.
    pub fn has(&self, call: u64) -> Option<bool> {
        let mut place = [0; PLACE_BYTES as usize];
        self.file.read_exact_at(&mut place, call % PLACES * PLACE_BYTES).ok()?;
        match u64::from_ne_bytes(place) {
            last if last > call => None,
            last => Some(last == call),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use super::*;

    #[test]
    fn what_was_written_is_known_and_what_was_written_over_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("begun");
        let begun = Begun::create(&path).unwrap();
        let other = OpenOptions::new().write(true).open(&path).unwrap();
        let begin = |call: u64| other.write_all_at(&call.to_ne_bytes(), call % PLACES * PLACE_BYTES).unwrap();
        assert_eq!(begun.has(7), Some(false));
        begin(7);
        begin(9);
        assert_eq!((begun.has(7), begun.has(8), begun.has(9)), (Some(true), Some(false), Some(true)));
        begin(7 + PLACES);
        assert_eq!((begun.has(7), begun.has(7 + PLACES), begun.has(9 + PLACES)), (None, Some(true), Some(false)));
        // It is made anew for the next process, and cut short it says nothing.
        assert_eq!(Begun::create(&path).unwrap().has(9), Some(false));
        other.set_len(4).unwrap();
        assert_eq!(begun.has(7), None);
    }
}
