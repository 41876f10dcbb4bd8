//! What a connection must be told or asked beside what sqlx does.
#![expect(unsafe_code, reason = "calls of SQLite that sqlx does not have")]

use std::{borrow::Cow, error::Error as StdError};

use libsqlite3_sys as ffi;
use rusqlite::Connection;
use sqlx::{
    SqliteConnection,
    error::{DatabaseError, ErrorKind},
};

use crate::sum;

/// What this connection makes anew has sums: a file that is empty yet, and what `VACUUM INTO` writes.
pub async fn reserve(db: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    let mut handle = db.lock_handle().await?;
    let mut bytes = sum::BYTES as std::ffi::c_int;
    // SAFETY: the handle is open and locked while `handle` lives, the name is a C string, and this operation takes an `int`, to
    // which it writes what was reserved before.
    let code = unsafe {
        ffi::sqlite3_file_control(
            handle.as_raw_handle().as_ptr(),
            c"main".as_ptr(),
            ffi::SQLITE_FCNTL_RESERVE_BYTES,
            (&raw mut bytes).cast(),
        )
    };
    match code {
        ffi::SQLITE_OK => Ok(()),
        code => Err(sqlx::Error::Protocol(format!("SQLite reserves no bytes for sums: code {code}"))),
    }
}

/// Uses the connection on this thread: many rows are then read without a wake of another thread for each. It blocks.
pub async fn on_this_thread<T>(
    db: &mut SqliteConnection,
    work: impl FnOnce(&Connection) -> rusqlite::Result<T>,
) -> Result<T, sqlx::Error> {
    let mut handle = db.lock_handle().await?;
    // SAFETY: the handle is open and locked while `handle` lives, which is longer than what is made of it here; that does not
    // close what it does not own.
    let borrowed = unsafe { Connection::from_handle(handle.as_raw_handle().as_ptr()) };
    borrowed.and_then(|db| work(&db)).map_err(|error| sqlx::Error::Database(Box::new(Failed(error))))
}

/// A failure of SQLite with its extended code, as sqlx has them.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct Failed(#[from] rusqlite::Error);

impl DatabaseError for Failed {
    fn message(&self) -> &str {
        match &self.0 {
            rusqlite::Error::SqliteFailure(_, Some(message)) => message,
            _ => "SQLite failed",
        }
    }

    fn code(&self) -> Option<Cow<'_, str>> {
        self.0.sqlite_error().map(|error| error.extended_code.to_string().into())
    }

    fn as_error(&self) -> &(dyn StdError + Send + Sync + 'static) {
        self
    }

    fn as_error_mut(&mut self) -> &mut (dyn StdError + Send + Sync + 'static) {
        self
    }

    fn into_error(self: Box<Self>) -> Box<dyn StdError + Send + Sync + 'static> {
        self
    }

    fn kind(&self) -> ErrorKind {
        ErrorKind::Other
    }
}
