//! Sessions of drivers, and the actors that live for them.

use std::sync::Arc;

use covey_domain::{ActorId, Digest, SessionId};
use serde::{Deserialize, Serialize};
use sqlx::{Row, SqliteConnection};

use crate::{
    Batch, Blob, DetachedActor, Error,
    rows::{json, parse},
};

pub(crate) const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS sessions (id TEXT PRIMARY KEY, proof TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS session_actors (id TEXT PRIMARY KEY, session TEXT NOT NULL, name TEXT, spec TEXT NOT NULL,
    init BLOB) STRICT;
";

/// An actor of a session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SessionActor {
    /// Whom it lives for.
    pub session: SessionId,
    /// What it is.
    pub actor: DetachedActor,
}

/// Writes what batches have of sessions, in order.
pub(crate) async fn write(db: &mut SqliteConnection, batches: &[Batch]) -> Result<(), Error> {
    for (id, proof) in batches.iter().flat_map(|b| &b.sessions) {
        match proof {
            Some(proof) => sqlx::query("INSERT OR REPLACE INTO sessions VALUES (?, ?)")
                .bind(id.as_str())
                .bind(proof.as_str())
                .execute(&mut *db),
            None => sqlx::query("DELETE FROM sessions WHERE id = ?").bind(id.as_str()).execute(&mut *db),
        }
        .await?;
    }
    for (id, owned) in batches.iter().flat_map(|b| &b.session_actors) {
        match owned {
            Some(SessionActor { session, actor }) => {
                sqlx::query("INSERT OR REPLACE INTO session_actors VALUES (?, ?, ?, ?, ?)")
                    .bind(id.as_str())
                    .bind(session.as_str())
                    .bind(&actor.name)
                    .bind(json(&*actor.spec))
                    .bind(actor.init.as_ref().map(|init| &*init.0))
                    .execute(&mut *db)
            }
            None => sqlx::query("DELETE FROM session_actors WHERE id = ?").bind(id.as_str()).execute(&mut *db),
        }
        .await?;
    }
    Ok(())
}

/// What a starting head needs of sessions.
#[derive(Debug, Default)]
pub struct StoredSessions {
    /// Each with the digest of its secret.
    pub sessions: Vec<(SessionId, Digest)>,
    /// Their actors, and whether a state of each is kept.
    pub actors: Vec<(ActorId, SessionActor, bool)>,
}

pub(crate) async fn read(db: &mut SqliteConnection) -> Result<StoredSessions, Error> {
    let mut found = StoredSessions::default();
    for row in sqlx::query("SELECT id, proof FROM sessions ORDER BY id").fetch_all(&mut *db).await? {
        found.sessions.push((row.get::<String, _>(0).into(), row.get::<String, _>(1).into()));
    }
    let actors =
        "SELECT id, session, name, spec, init, id IN (SELECT actor FROM actor_states) FROM session_actors ORDER BY id";
    for row in sqlx::query(actors).fetch_all(&mut *db).await? {
        let actor = DetachedActor {
            name: row.get(2),
            spec: Arc::new(parse("agent", row.get(3))?),
            init: row.get::<Option<Vec<u8>>, _>(4).map(|bytes| Blob(bytes.into())),
        };
        let owned = SessionActor { session: row.get::<String, _>(1).into(), actor };
        found.actors.push((row.get::<String, _>(0).into(), owned, row.get(5)));
    }
    Ok(found)
}
