//! The one thing that a connection must be told.
#![expect(unsafe_code, reason = "SQLite takes this by a call that sqlx does not have")]

use libsqlite3_sys as ffi;
use sqlx::SqliteConnection;

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
