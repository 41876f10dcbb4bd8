//! Sums on the pages of SQLite files, so that damage is an error and never another value.
//!
//! SQLite trusts what it reads: a bit that flips within a value is found by nobody. A VFS of this crate lies over the default
//! one. Files whose header reserves [`sum::BYTES`] at the end of each page have a sum there: it is put when a page is written
//! to the file or to its write-ahead log, and verified when a page is read from either. A page that does not have its sum is
//! `SQLITE_IOERR_DATA`, logged once and listed by [`damaged`]. Files without that reserve are left as they are.
//!
//! The reserved bytes are part of SQLite's format, so any SQLite reads such a file. One that writes to it leaves pages without
//! their sums, which are damaged pages from then on. A file that was only read by another program is as it was, also where
//! that program brought the write-ahead log into it: pages in the log have their sums.
//!
//! Not found: a page that was never overwritten though the disk said so, because the older one has its sum as well; and a page
//! of nothing but zeros, which is what SQLite leaves where it has written nothing yet.

mod damage;
mod format;
mod handle;
mod scan;
mod slices;
mod state;
pub mod sum;
mod vfs;

pub use damage::{Damage, damaged, latest};
pub use handle::{on_this_thread, reserve};
pub use scan::{Scan, is_summed, scan};
pub use vfs::vfs;

/// SQLite's extended code of a page that does not have its sum.
pub const DAMAGED: i32 = libsqlite3_sys::SQLITE_IOERR_DATA;

#[cfg(test)]
mod tests;
