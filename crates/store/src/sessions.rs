//! Sessions of drivers, and the actors that live for them.

use covey_domain::{ActorId, Digest, SessionId};
use serde::{Deserialize, Serialize};
use sqlx::SqliteConnection;

use crate::{Batch, DetachedActor, Error, rows::json};

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
