//! Which actors end together, which are placed together, and what was given up.

use covey_domain::{ActorId, DeadLetter, Gang, caps};
use sqlx::SqliteConnection;

use crate::{Batch, Error, rows::json};

/// Writes what batches have of links, gangs and dead letters, in order.
pub(crate) async fn write(db: &mut SqliteConnection, batches: &[Batch]) -> Result<(), Error> {
    for (one, other, is_linked) in batches.iter().flat_map(|b| &b.links) {
        let sql = match is_linked {
            true => "INSERT OR REPLACE INTO links VALUES (?, ?)",
            false => "DELETE FROM links WHERE one = ? AND other = ?",
        };
        sqlx::query(sql).bind(one.as_str()).bind(other.as_str()).execute(&mut *db).await?;
    }
    for (name, gang) in batches.iter().flat_map(|b| &b.gangs) {
        match gang {
            Some(gang) => sqlx::query("INSERT OR REPLACE INTO gangs VALUES (?, ?)")
                .bind(name.as_str())
                .bind(json(&**gang))
                .execute(&mut *db),
            None => sqlx::query("DELETE FROM gangs WHERE name = ?").bind(name.as_str()).execute(&mut *db),
        }
        .await?;
    }
    let letters: Vec<_> = batches.iter().flat_map(|b| &b.dead_letters).collect();
    for letter in &letters {
        let add = "INSERT INTO dead_letters (letter) VALUES (?)";
        sqlx::query(add).bind(json(&***letter)).execute(&mut *db).await?;
    }
    if !letters.is_empty() {
        let oldest = "DELETE FROM dead_letters WHERE number <= (SELECT max(number) FROM dead_letters) - ?";
        sqlx::query(oldest).bind(caps::DEAD_LETTERS_MAX as i64).execute(&mut *db).await?;
    }
    Ok(())
}

/// The same for a starting head.
#[derive(Debug, Default)]
pub struct StoredLinks {
    /// Pairs of actors.
    pub links: Vec<(ActorId, ActorId)>,
    /// Gangs that wait, by name.
    pub gangs: Vec<(ActorId, Gang)>,
    /// The newest that were given up, oldest first.
    pub dead_letters: Vec<DeadLetter>,
}
