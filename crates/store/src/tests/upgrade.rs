//! Stores as older programs wrote them.

use std::path::Path;

use super::*;

/// A copy of a store that a program of an older schema version left when it was killed.
pub(super) fn fixture(name: &str) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
    for file in ["covey.db", "covey.db-log0", "covey.db-log1", "covey.db-wal"] {
        if from.join(file).exists() {
            std::fs::copy(from.join(file), dir.path().join(file)).unwrap();
        }
    }
    let path = dir.path().join("covey.db");
    (dir, path)
}

fn ids(snapshot: &Snapshot) -> Vec<&str> {
    snapshot.tasks.iter().map(|task| task.record.id.as_str()).collect()
}

#[tokio::test]
async fn a_store_of_the_version_before_is_read_with_what_was_in_its_log_alone() {
    let (_dir, path) = fixture("v5-plain");
    for term in 2..=3 {
        let store = Store::open(&path).await.unwrap();
        let snapshot = store.begin().await.unwrap();
        assert_eq!(snapshot.term, term);
        assert_eq!(ids(&snapshot), ["t4", "t5"]);
        assert_eq!(snapshot.ended, [(TaskState::Completed, 4)]);
        assert_eq!(snapshot.cursors, [("n".into(), 7, 4)]);
        assert_eq!((snapshot.actors.len(), snapshot.reminders.len(), snapshot.listeners.len()), (1, 1, 1));
        assert_eq!(store.state(&"a/1".into()).await.unwrap().unwrap(), b"state");
        assert_eq!(store.state(&"a/2".into()).await.unwrap().unwrap(), b"late");
        assert_eq!(store.blob("d").await.unwrap().unwrap(), b"code");
        for id in ["t0", "t3"] {
            let events = store.events(&id.into(), 0).await.unwrap();
            assert_eq!(events.iter().map(|event| event.seq).collect::<Vec<_>>(), [1, 2, 3]);
            assert!(events[2].event.is_terminal());
            let message = format!("m-{id}");
            let found = store.task_of_message(&"me".into(), &"a".into(), &message).await.unwrap();
            assert_eq!(found.as_ref().map(TaskId::as_str), Some(id));
        }
        let keep = Retention { age: Duration::from_secs(60), bytes: None };
        assert_eq!(store.forget(keep).await.unwrap().tasks, 0, "what it brought is as old as its newest task");
    }
}

#[tokio::test]
async fn a_task_that_the_version_before_took_and_cannot_read_costs_itself() {
    let (_dir, path) = fixture("v5-deep");
    let store = Store::open(&path).await.unwrap();
    let snapshot = store.begin().await.unwrap();
    assert_eq!(ids(&snapshot), ["deep", "t4", "t5", "t6"]);
    let deep = &snapshot.tasks[0];
    assert!(deep.broken.as_ref().is_some_and(|why| why.contains("recursion limit")), "{:?}", deep.broken);
    assert_eq!((deep.events.len(), deep.record.message_id.as_deref()), (1, Some("m-deep")));
    assert!(snapshot.tasks[1..].iter().all(|task| task.broken.is_none()));
    let aside = salvage::set_aside_before(&path).unwrap();
    assert_eq!(aside.len(), 1);
    assert_eq!(aside[0].task, Some("deep".into()));
    assert!(aside[0].body.contains("asked deep"), "all of it is kept");
    drop(store);
    let snapshot = Store::open(&path).await.unwrap().begin().await.unwrap();
    assert_eq!(snapshot.tasks.len(), 4, "it can be read from now on");
    assert_eq!(salvage::set_aside_before(&path).unwrap().len(), 1, "and is set aside once");
}

/// What a program of version 8 left, part of it in the write-ahead log: its tables are written anew with sums.
pub(super) async fn is_raised(path: &Path) {
    let store = Store::open(path).await.unwrap();
    let snapshot = store.begin().await.unwrap();
    assert_eq!(ids(&snapshot), ["t4", "t5"]);
    assert_eq!(snapshot.ended, [(TaskState::Completed, 4)]);
    assert_eq!(store.state(&"a/2".into()).await.unwrap().unwrap(), b"late");
    assert_eq!(store.blob("d").await.unwrap().unwrap(), b"code");
    assert_eq!(store.events(&"t3".into(), 0).await.unwrap().len(), 3);
    let version: i64 =
        sqlx::query_scalar("SELECT value FROM meta WHERE key = 'schema'").fetch_one(&store.readers).await.unwrap();
    assert_eq!(version, schema::VERSION);
    assert!(!beside(path, "-summed").exists());
    assert_eq!(covey_pages::is_summed(path).unwrap(), Some(true));
}

#[tokio::test]
async fn tables_without_sums_are_given_them() {
    let (_dir, path) = fixture("v8-plain");
    assert_eq!(covey_pages::is_summed(&path).unwrap(), Some(false));
    is_raised(&path).await;
    is_raised(&path).await;
}

/// Whatever a crash left of the new file, the old one is as it was and is written anew.
#[tokio::test]
async fn a_crash_while_tables_are_given_sums_costs_nothing() {
    let (_dir, whole) = fixture("v8-plain");
    is_raised(&whole).await;
    let anew = std::fs::read(&whole).unwrap();
    for left in [&anew[..0], &anew[..5_000], &anew[..]] {
        let (_dir, path) = fixture("v8-plain");
        std::fs::write(beside(&path, "-summed"), left).unwrap();
        std::fs::write(beside(&path, "-summed-journal"), b"half of one").unwrap();
        is_raised(&path).await;
    }
}

#[tokio::test]
async fn tables_that_cannot_be_given_sums_are_used_as_they_are() {
    let (_dir, path) = fixture("v8-plain");
    // Nothing can be written there, as on a full disk.
    let blocked = beside(&path, "-summed");
    std::fs::create_dir(&blocked).unwrap();
    for term in 1..=2 {
        let store = Store::open(&path).await.unwrap();
        let snapshot = store.begin().await.unwrap();
        assert_eq!(ids(&snapshot), ["t4", "t5"]);
        commit(&store, Batch { states: vec![state("a/9", b"new", term)], ..Batch::default() });
        store.memtable.flush().await;
        drop(store);
        assert_eq!(covey_pages::is_summed(&path).unwrap(), Some(false));
    }
    let report = upkeep::examine(&path).await.unwrap();
    assert!(report.warnings.iter().any(|warning| warning.contains("no sums")), "{report:?}");
    std::fs::remove_dir(&blocked).unwrap();
    is_raised(&path).await;
}

/// What a program of version 9 left: it knew no links, no gangs that wait, and kept no dead letters.
#[tokio::test]
async fn a_store_that_knew_no_links_keeps_them_from_now_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("covey.db");
    let store = Store::open(&path).await.unwrap();
    commit(&store, Batch { made: vec![record("t", TaskState::Working)], ..Batch::default() });
    store.memtable.flush().await;
    drop(store);
    let mut db = tables(&path).await;
    let back =
        "DROP TABLE links; DROP TABLE gangs; DROP TABLE dead_letters; UPDATE meta SET value = 9 WHERE key = 'schema'";
    sqlx::raw_sql(back).execute(&mut db).await.unwrap();
    drop(db);
    let store = Store::open(&path).await.unwrap();
    assert_eq!(ids(&store.begin().await.unwrap()), ["t"]);
    commit(&store, Batch { links: vec![("x".into(), "y".into(), true)], ..Batch::default() });
    drop(store);
    let store = Store::open(&path).await.unwrap();
    assert_eq!(store.begin().await.unwrap().links.links, [("x".into(), "y".into())]);
    let mut db = tables(&path).await;
    let version: i64 =
        sqlx::query_scalar("SELECT value FROM meta WHERE key = 'schema'").fetch_one(&mut db).await.unwrap();
    assert_eq!(version, schema::VERSION);
}
