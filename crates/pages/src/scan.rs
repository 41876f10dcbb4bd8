//! Looks at a whole file without SQLite. Nobody may write to it meanwhile, and its write-ahead log must be empty.

use std::{
    fs::File,
    io::{self, Read as _, Seek as _, SeekFrom},
    path::Path,
};

use crate::{format, format::Header, sum};

/// Bytes that are read at once; a multiple of every page's size.
const READ_BYTES: usize = 1 << 20;

/// What a look at all pages found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Scan {
    /// How many pages there are.
    pub pages: u64,
    /// Pages that do not have their sum, in order; without those of nothing but zeros.
    pub damaged: Vec<u64>,
    /// Pages of nothing but zeros. What is in use is not like that.
    pub blank: Vec<u64>,
}

/// The header, and whether it or the first page says that there are sums.
fn first(file: &mut File) -> io::Result<Option<(Header, bool)>> {
    let mut bytes = vec![0; format::HEADER];
    match file.read_exact(&mut bytes) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        done => done?,
    }
    let Some(header) = Header::read(&bytes) else { return Ok(None) };
    file.by_ref().take((header.page - bytes.len()) as u64).read_to_end(&mut bytes)?;
    let is_summed = header.reserved || format::lost_its_reserve(&bytes);
    Ok(Some((header, is_summed)))
}

/// Whether the pages of a file have sums. `None`: it has no pages, or is no database.
pub fn is_summed(path: &Path) -> io::Result<Option<bool>> {
    Ok(first(&mut File::open(path)?)?.map(|(_, is_summed)| is_summed))
}

/// Verifies all pages of a file. `None`: its pages have no sums.
pub fn scan(path: &Path) -> io::Result<Option<Scan>> {
    let mut file = File::open(path)?;
    let Some((header, true)) = first(&mut file)? else { return Ok(None) };
    let (mut found, mut chunk) = (Scan::default(), Vec::with_capacity(READ_BYTES));
    file.seek(SeekFrom::Start(0))?;
    loop {
        chunk.clear();
        if file.by_ref().take(READ_BYTES as u64).read_to_end(&mut chunk)? == 0 {
            return Ok(Some(found));
        }
        for page in chunk.chunks(header.page) {
            found.pages += 1;
            let has_locks = (found.pages - 1) * header.page as u64 == format::LOCKS_AT;
            if has_locks || (page.len() == header.page && sum::holds(found.pages, page)) {
                continue;
            }
            let list = if sum::is_blank(page) { &mut found.blank } else { &mut found.damaged };
            list.push(found.pages);
        }
    }
}
