//! Writes batches to the tables.

use covey_domain::Millis;
use sqlx::SqliteConnection;

use crate::{
    Error, StateChange, artifacts,
    group::Group,
    links,
    rows::{self, json},
    sessions,
    transaction::Transaction,
    usage,
};

/// What writing a group did.
pub(crate) struct Done {
    /// About how many bytes that was.
    pub bytes: u64,
    pub usage: usage::Changed,
}

/// Writes a group, whole or not at all.
pub(crate) async fn write(db: &mut SqliteConnection, group: &Group, age: Millis) -> Result<Done, Error> {
    let mut tx = Transaction::begin(db).await?;
    let done = write_in(&mut tx, group, age).await;
    tx.end(done).await
}

/// Writes a group within a transaction.
pub(crate) async fn write_in(tx: &mut SqliteConnection, group: &Group, age: Millis) -> Result<Done, Error> {
    let batches = &group.rest;
    let mut sizes = rows::write(tx, group, age).await?;
    let bytes = sizes.values().sum();
    artifacts::write_uses(tx, &group.uses, &mut sizes).await?;
    let usage = usage::add(tx, group, &sizes).await?;
    if let Some(term) = batches.iter().filter_map(|batch| batch.term).max() {
        sqlx::query("INSERT OR REPLACE INTO meta VALUES ('term', ?)").bind(term as i64).execute(&mut *tx).await?;
    }
    for spec in batches.iter().flat_map(|b| &b.agents) {
        sqlx::query("INSERT OR REPLACE INTO agents VALUES (?, ?)")
            .bind(spec.name.as_str())
            .bind(json(spec))
            .execute(&mut *tx)
            .await?;
    }
    for StateChange(actor, state, epoch) in batches.iter().flat_map(|b| &b.states) {
        // An activation that is over writes nothing over a newer one's state.
        match state {
            Some(state) => sqlx::query(
                "INSERT INTO actor_states (actor, state, epoch) VALUES (?, ?, ?) ON CONFLICT (actor)
                 DO UPDATE SET state = excluded.state, epoch = excluded.epoch WHERE excluded.epoch >= epoch",
            )
            .bind(actor.as_str())
            .bind(&*state.0)
            .bind(*epoch as i64)
            .execute(&mut *tx),
            None => sqlx::query("DELETE FROM actor_states WHERE actor = ? AND epoch <= ?")
                .bind(actor.as_str())
                .bind(*epoch as i64)
                .execute(&mut *tx),
        }
        .await?;
    }
    for (actor, life) in batches.iter().flat_map(|b| &b.activations) {
        match life {
            Some((node, epoch)) => sqlx::query("INSERT OR REPLACE INTO activations VALUES (?, ?, ?)")
                .bind(actor.as_str())
                .bind(node.as_str())
                .bind(*epoch as i64)
                .execute(&mut *tx),
            None => sqlx::query("DELETE FROM activations WHERE actor = ?").bind(actor.as_str()).execute(&mut *tx),
        }
        .await?;
    }
    for (node, member) in batches.iter().flat_map(|b| &b.members) {
        match member {
            Some(member) => sqlx::query("INSERT OR REPLACE INTO members VALUES (?, ?, ?)")
                .bind(node.as_str())
                .bind(member.incarnation as i64)
                .bind(&member.port)
                .execute(&mut *tx),
            None => sqlx::query("DELETE FROM members WHERE node = ?").bind(node.as_str()).execute(&mut *tx),
        }
        .await?;
    }
    if let Some(clock_ms) = batches.iter().filter_map(|b| b.clock_ms).next_back() {
        sqlx::query("INSERT OR REPLACE INTO meta VALUES ('clock_ms', ?)")
            .bind(clock_ms as i64)
            .execute(&mut *tx)
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
    sessions::write(tx, batches).await?;
    links::write(tx, batches).await?;
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
    Ok(Done { bytes, usage })
}
