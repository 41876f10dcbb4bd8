//! Writes batches to the tables.

use sqlx::{Connection as _, SqliteConnection};

use crate::{
    Error, artifacts,
    group::Group,
    rows::{self, json},
};

/// Writes a group, whole or not at all. Gives about how many bytes that was.
pub(crate) async fn write(db: &mut SqliteConnection, group: &Group) -> Result<u64, Error> {
    let batches = &group.rest;
    let mut tx = db.begin().await?;
    let bytes = rows::write(&mut tx, group).await?;
    artifacts::write_uses(&mut tx, &group.uses).await?;
    for spec in batches.iter().flat_map(|b| &b.agents) {
        sqlx::query("INSERT OR REPLACE INTO agents VALUES (?, ?)")
            .bind(spec.name.as_str())
            .bind(json(spec))
            .execute(&mut *tx)
            .await?;
    }
    for (actor, state) in batches.iter().flat_map(|b| &b.states) {
        match state {
            Some(state) => sqlx::query("INSERT OR REPLACE INTO actor_states VALUES (?, ?)")
                .bind(actor.as_str())
                .bind(&*state.0)
                .execute(&mut *tx),
            None => sqlx::query("DELETE FROM actor_states WHERE actor = ?").bind(actor.as_str()).execute(&mut *tx),
        }
        .await?;
    }
    for (id, actor) in batches.iter().flat_map(|b| &b.actors) {
        match actor {
            Some(actor) => sqlx::query("INSERT OR REPLACE INTO actors VALUES (?, ?, ?, ?)")
                .bind(id.as_str())
                .bind(&actor.name)
                .bind(json(&*actor.spec))
                .bind(actor.init.as_ref().map(|init| &*init.0))
                .execute(&mut *tx),
            None => sqlx::query("DELETE FROM actors WHERE id = ?").bind(id.as_str()).execute(&mut *tx),
        }
        .await?;
    }
    for (actor, name, reminder) in batches.iter().flat_map(|b| &b.reminders) {
        match reminder {
            Some(r) => sqlx::query("INSERT OR REPLACE INTO reminders VALUES (?, ?, ?, ?, ?, ?)")
                .bind(actor.as_str())
                .bind(name)
                .bind(r.due_ms as i64)
                .bind(r.every_ms.map(|ms| ms as i64))
                .bind(&r.method)
                .bind(&*r.args.0)
                .execute(&mut *tx),
            None => sqlx::query("DELETE FROM reminders WHERE actor = ? AND name = ?")
                .bind(actor.as_str())
                .bind(name)
                .execute(&mut *tx),
        }
        .await?;
    }
    for (topic, actor, method) in batches.iter().flat_map(|b| &b.listeners) {
        match method {
            Some(method) => sqlx::query("INSERT OR REPLACE INTO listeners VALUES (?, ?, ?)")
                .bind(topic)
                .bind(actor.as_str())
                .bind(method)
                .execute(&mut *tx),
            None => sqlx::query("DELETE FROM listeners WHERE topic = ? AND actor = ?")
                .bind(topic)
                .bind(actor.as_str())
                .execute(&mut *tx),
        }
        .await?;
    }
    tx.commit().await?;
    Ok(bytes)
}
