//! Sums on the tables' pages: files that are made with them, and files of older versions that are given them.

use std::{fs::File, io, path::Path};

use covey_pages::{Damage, Scan};
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};

use crate::{Error, beside, log::sync_folder_of, schema};

/// How every connection to tables is made: through the VFS that verifies pages.
pub(crate) fn options(path: &Path) -> Result<SqliteConnectOptions, Error> {
    Ok(SqliteConnectOptions::new().filename(path).vfs(covey_pages::vfs()?).disable_statement_logging())
}

/// A file that this connection makes from now on can give back what it does not need, see [`crate::retain`]. One that is there cannot.
pub(crate) async fn let_shrink(db: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    sqlx::query("PRAGMA auto_vacuum = INCREMENTAL").execute(db).await?;
    Ok(())
}

/// Makes the tables if there is no file yet, so that its pages have sums from the first on.
pub(crate) async fn make(path: &Path) -> Result<(), Error> {
    if path.metadata().is_ok_and(|found| found.len() > 0) {
        return Ok(());
    }
    let mut db = SqliteConnection::connect_with(&options(path)?.create_if_missing(true)).await?;
    covey_pages::reserve(&mut db).await?;
    let_shrink(&mut db).await?;
    let schema = format!("BEGIN; {} COMMIT", schema::SCHEMA);
    sqlx::raw_sql(sqlx::AssertSqlSafe(schema)).execute(&mut db).await?;
    db.close().await?;
    Ok(())
}

/// Whether the tables' pages have sums. No connection of this process may have the file open: whoever closes a file lets go of all
/// locks that its process has on it.
pub(crate) fn are_kept(path: &Path) -> Result<bool, Error> {
    Ok(covey_pages::is_summed(path).map_err(Error::Log)?.unwrap_or(false))
}

/// Gives the tables of a store that nobody else has open sums, and the version that says so: they are written anew beside the old
/// file, verified, and put in its place. Until then, and when this fails, the old file is as it was.
pub(crate) async fn give(path: &Path, db: SqliteConnection) -> Result<(), Error> {
    tracing::info!("the pages of the tables get sums, so that damage is found; with much in them that takes a while");
    let to = beside(path, "-summed");
    remove(&to)?;
    let done = write_anew(path, &to, db).await.and_then(|()| put_in_place(path, &to));
    if done.is_err() {
        let _ = remove(&to);
    }
    done
}

fn remove(path: &Path) -> Result<(), Error> {
    for path in [path.to_owned(), beside(path, "-journal")] {
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(Error::Log(error)),
            _ => {}
        }
    }
    Ok(())
}

async fn write_anew(path: &Path, to: &Path, mut db: SqliteConnection) -> Result<(), Error> {
    // All that was committed is in the file itself then: the new one must not meet the old one's log.
    let (blocked, ..): (i64, i64, i64) = sqlx::query_as("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(&mut db).await?;
    if blocked != 0 {
        return Err(Error::InUse);
    }
    covey_pages::reserve(&mut db).await?;
    let_shrink(&mut db).await?;
    sqlx::query("VACUUM INTO ?").bind(to.display().to_string()).execute(&mut db).await?;
    db.close().await?;
    let mut new = SqliteConnection::connect_with(&options(to)?).await?;
    let raised = "UPDATE meta SET value = ? WHERE key = 'schema'";
    sqlx::query(raised).bind(schema::VERSION).execute(&mut new).await?;
    new.close().await?;
    if verified(to)?.is_none() {
        return Err(Error::Lost("SQLite has written pages without sums".to_owned()));
    }
    std::fs::set_permissions(to, path.metadata().map_err(Error::Log)?.permissions()).map_err(Error::Log)?;
    File::open(to).and_then(|file| file.sync_all()).map_err(Error::Log)
}

fn put_in_place(path: &Path, to: &Path) -> Result<(), Error> {
    // They are left where another program reads the old file.
    for suffix in ["-wal", "-shm"] {
        let left = beside(path, suffix);
        if suffix == "-wal" && left.metadata().is_ok_and(|found| found.len() > 0) {
            return Err(Error::InUse);
        }
        remove(&left)?;
    }
    std::fs::rename(to, path).and_then(|()| sync_folder_of(path)).map_err(Error::Log)
}

/// Reads all pages of a file that nobody has open; a damaged one is an error. `None`: they have no sums.
pub(crate) fn verified(path: &Path) -> Result<Option<Scan>, Error> {
    let found = covey_pages::scan(path).map_err(Error::Log)?;
    match found.as_ref().and_then(|scan| scan.damaged.first().map(|page| (page, scan.damaged.len()))) {
        Some((page, count)) => {
            let page = Damage { database: path.to_owned(), in_log: false, page: *page };
            Err(Error::Corrupt { file: path.display().to_string(), why: format!("{page} ({count} damaged in all)") })
        }
        None => Ok(found),
    }
}
