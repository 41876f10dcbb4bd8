//! Transactions whose end is certain.
//!
//! Where there is no room or a write fails, SQLite ends some transactions by itself, and sqlx, which counts them, does not
//! notice: what it takes for the next transaction is then a savepoint inside one that nobody commits. So the words are said
//! here, and what is left of an earlier transaction is taken back before another begins.

use std::ops::{Deref, DerefMut};

use sqlx::SqliteConnection;

/// A transaction that writes. One that is dropped is taken back when the next one of its connection begins.
pub(crate) struct Transaction<'a>(&'a mut SqliteConnection);

impl<'a> Transaction<'a> {
    pub async fn begin(db: &'a mut SqliteConnection) -> Result<Self, sqlx::Error> {
        const BEGIN: &str = "BEGIN IMMEDIATE";
        if sqlx::query(BEGIN).execute(&mut *db).await.is_err() {
            // Nothing else is wrong with it if it works now.
            roll_back(db).await;
            sqlx::query(BEGIN).execute(&mut *db).await?;
        }
        Ok(Self(db))
    }

    /// Ends it: commits where its work was done, else takes all of it back.
    pub async fn end<T, E: From<sqlx::Error>>(self, done: Result<T, E>) -> Result<T, E> {
        let ended = match done {
            Ok(done) => sqlx::query("COMMIT").execute(&mut *self.0).await.map(|_| done).map_err(E::from),
            Err(error) => Err(error),
        };
        if ended.is_err() {
            roll_back(self.0).await;
        }
        ended
    }

    /// Takes all of it back.
    pub async fn roll_back(self) {
        roll_back(self.0).await;
    }
}

/// An error says that SQLite had done it already.
async fn roll_back(db: &mut SqliteConnection) {
    let _ = sqlx::query("ROLLBACK").execute(db).await;
}

impl Deref for Transaction<'_> {
    type Target = SqliteConnection;

    fn deref(&self) -> &SqliteConnection {
        self.0
    }
}

impl DerefMut for Transaction<'_> {
    fn deref_mut(&mut self) -> &mut SqliteConnection {
        self.0
    }
}
