//! What of a failing disk can be waited out, and what cannot.
//!
//! A full disk is waited out. After a failed fsync, a failed read or damage of the tables nothing is known of what is on disk, so
//! the store takes no more and whoever runs it ends the process: the next one reads what is really there.

use tokio::sync::watch;

use crate::Error;

/// Raised once, heard by all.
#[derive(Clone, Debug)]
pub(crate) struct Fault(watch::Sender<Option<String>>);

impl Fault {
    pub fn new() -> Self {
        Self(watch::Sender::new(None))
    }

    /// The first one is the reason.
    pub fn raise(&self, why: &str) {
        self.0.send_if_modified(|known| {
            let first = known.is_none();
            if first {
                tracing::error!(why, "the store cannot go on");
                *known = Some(why.to_owned());
            }
            first
        });
    }

    /// An error, where there is one.
    pub fn check(&self) -> Result<(), Error> {
        self.0.borrow().as_ref().map_or(Ok(()), |why| Err(Error::Lost(why.clone())))
    }

    /// The reason, when there is one.
    pub async fn raised(&self) -> String {
        let mut news = self.0.subscribe();
        let raised = news.wait_for(Option::is_some).await.map(|why| why.clone().unwrap_or_default());
        match raised {
            Ok(why) => why,
            Err(_) => std::future::pending().await,
        }
    }

    /// Passes a result on, and raises what cannot be waited out.
    pub fn sound<T>(&self, done: Result<T, sqlx::Error>) -> Result<T, Error> {
        done.map_err(|error| {
            let fatal = is_fatal(&error);
            let error = Error::from(error);
            if fatal {
                self.raise(&format!("SQLite failed: {error}"));
            }
            error
        })
    }
}

/// SQLite's extended code.
fn code(error: &sqlx::Error) -> Option<i32> {
    error.as_database_error()?.code()?.parse().ok()
}

/// SQLITE_IOERR_DATA: a page does not have its sum.
pub(crate) fn is_damaged_page(error: &sqlx::Error) -> bool {
    code(error) == Some(covey_pages::DAMAGED)
}

/// SQLITE_IOERR but for the index of its log, which is made anew; SQLITE_CORRUPT; SQLITE_NOTADB.
pub(crate) fn is_fatal(error: &sqlx::Error) -> bool {
    const SHM_SIZE: i32 = 10 | 19 << 8;
    code(error).is_some_and(|code| code != SHM_SIZE && matches!(code & 0xff, 10 | 11 | 26))
}

/// SQLITE_FULL; SQLITE_BUSY, SQLITE_LOCKED; no room for the index of its log, or for a file.
pub(crate) fn is_full(error: &Error) -> bool {
    match error {
        Error::Sql(error) => {
            code(error).is_some_and(|code| matches!(code & 0xff, 5 | 6 | 13 | 14) || code == 10 | 19 << 8)
        }
        Error::Log(error) => {
            matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
        }
        _ => false,
    }
}
