//! How many bytes the tasks of each caller take: their records, their events and the files that they name. A file counts for
//! each task that names it.

use std::collections::BTreeMap;

use covey_domain::CallerId;
use hashbrown::HashMap;
use parking_lot::RwLock;
use sqlx::{Row as _, SqliteConnection};

use crate::{Error, group::Group, transaction::Transaction};

/// Bytes of a row of `tasks` and of what belongs to it.
pub(crate) const OF_TASK: &str = "octet_length(record)
    + coalesce((SELECT sum(octet_length(body)) FROM events WHERE task = tasks.id), 0)
    + coalesce((SELECT sum(bytes) FROM artifact_uses JOIN artifacts USING (digest) WHERE task = tasks.id), 0)";

const TABLE: &str = "CREATE TABLE usage (caller TEXT PRIMARY KEY, bytes INTEGER NOT NULL) STRICT, WITHOUT ROWID";

/// Callers and what they take now, of those for whom it has changed.
pub(crate) type Changed = Vec<(CallerId, u64)>;

/// What all callers take, as far as it is in the tables.
#[derive(Debug, Default)]
pub(crate) struct Usage(RwLock<HashMap<CallerId, u64>>);

impl Usage {
    /// As the tables have it.
    pub async fn read(db: &mut SqliteConnection) -> Result<Self, Error> {
        let rows = sqlx::query("SELECT caller, bytes FROM usage").fetch_all(db).await?;
        Ok(Self(RwLock::new(
            rows.iter().map(|row| (row.get::<String, _>(0).into(), row.get::<i64, _>(1) as u64)).collect(),
        )))
    }

    pub fn of(&self, caller: &CallerId) -> u64 {
        self.0.read().get(caller).copied().unwrap_or(0)
    }

    pub fn set(&self, changed: Changed) {
        if !changed.is_empty() {
            self.0.write().extend(changed);
        }
    }
}

/// Makes the table where it is missing, and counts what is there. Older programs of this schema leave it as it is: what they
/// write is not counted.
pub(crate) async fn prepare(db: &mut SqliteConnection) -> Result<(), Error> {
    let known: Option<i64> =
        sqlx::query_scalar("SELECT 1 FROM sqlite_schema WHERE name = 'usage'").fetch_optional(&mut *db).await?;
    if known.is_some() {
        return Ok(());
    }
    let mut tx = Transaction::begin(db).await?;
    let done = make(&mut tx).await;
    tx.end(done).await
}

async fn make(tx: &mut SqliteConnection) -> Result<(), Error> {
    sqlx::query(TABLE).execute(&mut *tx).await?;
    let count = format!("INSERT INTO usage SELECT caller, sum({OF_TASK}) FROM tasks GROUP BY caller");
    sqlx::query(sqlx::AssertSqlSafe(count)).execute(tx).await?;
    Ok(())
}

/// Adds what a group has written of each task.
pub(crate) async fn add(
    tx: &mut SqliteConnection,
    group: &Group,
    sizes: &HashMap<&str, u64>,
) -> Result<Changed, Error> {
    let mut more: BTreeMap<String, u64> = BTreeMap::new();
    let mut others = BTreeMap::new();
    for task in &group.tasks {
        let Some(bytes) = sizes.get(task.id.as_str()) else { continue };
        match &task.made {
            Some((record, _)) => *more.entry(record.caller.to_string()).or_default() += bytes,
            None => drop(others.insert(task.id.as_str(), bytes)),
        }
    }
    if !others.is_empty() {
        let sql = "SELECT t.caller, sum(j.value) FROM json_each(?) AS j CROSS JOIN tasks AS t ON t.id = j.key GROUP BY t.caller";
        for row in sqlx::query(sql).bind(crate::rows::json(&others)).fetch_all(&mut *tx).await? {
            *more.entry(row.get(0)).or_default() += row.get::<i64, _>(1) as u64;
        }
    }
    let mut changed = Vec::with_capacity(more.len());
    for (caller, bytes) in more {
        let sql = "INSERT INTO usage VALUES (?, ?)
            ON CONFLICT (caller) DO UPDATE SET bytes = bytes + excluded.bytes RETURNING bytes";
        let all: i64 = sqlx::query_scalar(sql).bind(&caller).bind(bytes as i64).fetch_one(&mut *tx).await?;
        changed.push((caller.into(), all as u64));
    }
    Ok(changed)
}

/// Takes away what tasks that are forgotten had.
pub(crate) async fn sub(tx: &mut SqliteConnection, less: &BTreeMap<&str, i64>) -> Result<Changed, sqlx::Error> {
    let mut changed = Vec::with_capacity(less.len());
    for (caller, bytes) in less {
        let sql = "UPDATE usage SET bytes = max(0, bytes - ?) WHERE caller = ? RETURNING bytes";
        let all: Option<i64> = sqlx::query_scalar(sql).bind(bytes).bind(caller).fetch_optional(&mut *tx).await?;
        changed.push(((*caller).into(), all.unwrap_or(0) as u64));
    }
    Ok(changed)
}
