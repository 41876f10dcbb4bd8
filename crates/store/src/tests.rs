//! A store that is opened, left, and opened again.

mod damage;
mod poison;
mod raise;
mod upgrade;
mod usage;

use covey_domain::{
    DeadLetter, Error as Ended, Gang, Hook, HookState, TaskEvent, TaskRecord, TaskState,
    agent::GangStrategy,
    caps,
    event::{Content, Delta, MediaSource, Phase},
    task::TaskInput,
};

use sqlx::Connection as _;

use crate::transaction::Transaction;

use super::*;

fn record(id: &str, state: TaskState) -> Arc<TaskRecord> {
    Arc::new(TaskRecord {
        id: id.into(),
        context: "c".into(),
        agent: "a".into(),
        skill: "run".into(),
        caller: "me".into(),
        message_id: Some(format!("m-{id}")),
        model: None,
        protocol: "native".into(),
        input: Arc::default(),
        state,
        created_ms: 1,
        changed_ms: 1,
        timeout_ms: None,
        expires_ms: None,
        attempt: 1,
    })
}

fn event(task: &str, seq: u64) -> Arc<Envelope> {
    Arc::new(Envelope {
        task: task.into(),
        seq,
        ts_ms: 7,
        sub: None,
        event: TaskEvent::Status { state: Phase::Working, message: None },
        meta: Default::default(),
    })
}

fn blob(bytes: &[u8]) -> Blob {
    Blob(bytes.into())
}

fn commit(store: &Store, batch: Batch) {
    let written = store.write(batch).unwrap();
    store.sync(vec![written]).unwrap();
}

/// A connection to the tables, as the store's own are.
async fn tables(path: &Path) -> SqliteConnection {
    SqliteConnection::connect_with(&sums::options(path).unwrap()).await.unwrap()
}

/// Forgets all that has ended.
async fn purge(store: &Store) -> u64 {
    store.memtable.flush().await;
    // Older than now by the store's clock.
    tokio::time::sleep(Duration::from_millis(2)).await;
    store.forget(Retention { age: Duration::ZERO, bytes: None }).await.unwrap().tasks
}

async fn count(store: &Store, table: &str) -> i64 {
    let count = format!("SELECT count(*) FROM {table}");
    sqlx::query_scalar(sqlx::AssertSqlSafe(count)).fetch_one(&store.readers).await.unwrap()
}

fn state(actor: &str, body: &[u8], epoch: u64) -> StateChange {
    StateChange(actor.into(), Some(blob(body)), epoch)
}

#[tokio::test]
async fn what_was_written_is_there_after_reopening_and_shown_once_it_is_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("covey.db");
    let store = Store::open(&path).await.unwrap();
    store.begin().await.unwrap();
    let made = vec![record("t", TaskState::Submitted)];
    let one = store.write(Batch { made, events: vec![event("t", 1)], ..Batch::default() }).unwrap();
    assert!(store.task(&"t".into()).await.unwrap().is_none() && store.events(&"t".into(), 0).await.unwrap().is_empty());
    store.sync(vec![one]).unwrap();
    assert_eq!(store.task(&"t".into()).await.unwrap().unwrap(), record("t", TaskState::Submitted));
    let tasks = vec![TaskChange::of(&record("t", TaskState::Completed))];
    let state = state("a/1", b"state", 1);
    let two = Batch { tasks, events: vec![event("t", 2), event("t", 3)], states: vec![state], ..Batch::default() };
    drop(store.write(two).unwrap());
    assert_eq!(store.events(&"t".into(), 0).await.unwrap().len(), 1);
    drop(store);
    let store = Store::open(&path).await.unwrap();
    assert_eq!(store.task(&"t".into()).await.unwrap().unwrap(), record("t", TaskState::Completed));
    assert_eq!(store.events(&"t".into(), 1).await.unwrap(), [event("t", 2), event("t", 3)]);
    assert_eq!(store.state(&"a/1".into()).await.unwrap().unwrap(), b"state");
}

#[tokio::test]
async fn a_log_is_read_across_what_is_in_the_tables_and_what_is_not_yet() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("covey.db")).await.unwrap();
    store.begin().await.unwrap();
    let made = vec![record("t", TaskState::Working)];
    commit(&store, Batch { made, events: (1..=300).map(|n| event("t", n)).collect(), ..Batch::default() });
    store.memtable.flush().await;
    assert_eq!(count(&store, "events").await, 2, "neighbours share a row");
    let tasks = vec![TaskChange { attempt: 7, ..TaskChange::of(&record("t", TaskState::Completed)) }];
    commit(&store, Batch { tasks, events: (301..=310).map(|n| event("t", n)).collect(), ..Batch::default() });
    let numbers = async |after| {
        let events = store.events(&"t".into(), after).await.unwrap();
        events.iter().map(|event| event.seq).collect::<Vec<_>>()
    };
    for after in [0, 1, 255, 256, 299, 300, 301, 309, 310, 311] {
        assert_eq!(numbers(after).await, (after + 1..=310).collect::<Vec<_>>(), "after {after}");
    }
    let found = store.task(&"t".into()).await.unwrap().unwrap();
    assert_eq!((found.state, found.attempt), (TaskState::Completed, 7));
    store.memtable.flush().await;
    assert_eq!(*store.task(&"t".into()).await.unwrap().unwrap(), *found);
    assert_eq!(numbers(0).await.len(), 310);
}

#[tokio::test]
async fn a_page_of_a_log_is_bounded_by_bytes_wherever_it_lies() {
    const COUNT: u64 = 64;
    let large = |n| {
        let delta = Delta::Text("x".repeat(caps::EVENT_PAGE_BYTES_MAX / 8));
        Arc::new(Envelope { event: TaskEvent::PartDelta { part: "p".into(), delta }, ..(*event("t", n)).clone() })
    };
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("covey.db")).await.unwrap();
    store.begin().await.unwrap();
    let made = vec![record("t", TaskState::Working)];
    commit(&store, Batch { made, events: vec![event("t", 1)], ..Batch::default() });
    for n in 2..=COUNT {
        commit(&store, Batch { events: vec![large(n)], ..Batch::default() });
    }
    for place in ["beside the tables", "in the tables"] {
        let (mut after, mut pages) = (0, 0);
        loop {
            let page = store.events(&"t".into(), after).await.unwrap();
            let Some(last) = page.last() else { break };
            assert_eq!(
                page.iter().map(|e| e.seq).collect::<Vec<_>>(),
                (after + 1..=last.seq).collect::<Vec<_>>(),
                "{place}"
            );
            let bytes: usize = page.iter().map(|event| serde_json::to_vec(&**event).unwrap().len()).sum();
            assert!(bytes < 3 * caps::EVENT_PAGE_BYTES_MAX, "{place}: a page of {bytes} bytes");
            (after, pages) = (last.seq, pages + 1);
        }
        assert!(after == COUNT && pages > 2, "{place}: {pages} pages up to {after}");
        store.memtable.flush().await;
    }
}

#[tokio::test]
async fn a_task_that_begins_and_ends_between_two_groups_is_one_row() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("covey.db")).await.unwrap();
    store.begin().await.unwrap();
    for n in 0..50 {
        let id = format!("t{n}");
        let made = vec![record(&id, TaskState::Submitted)];
        commit(&store, Batch { made, events: vec![event(&id, 1)], ..Batch::default() });
        let tasks = vec![TaskChange::of(&record(&id, TaskState::Completed))];
        commit(&store, Batch { tasks, events: vec![event(&id, 2)], ..Batch::default() });
    }
    // Who lists waits for the tables.
    let done = TaskFilter { state: "completed", ..TaskFilter::default() };
    assert_eq!(store.tasks(done, "", 99).await.unwrap().records.len(), 50);
    assert_eq!(count(&store, "events").await, 50);
}

#[tokio::test]
async fn what_is_old_and_over_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("covey.db")).await.unwrap();
    store.begin().await.unwrap();
    let batch = Batch {
        made: vec![record("over", TaskState::Completed), record("runs", TaskState::Working)],
        events: vec![event("over", 1), event("runs", 1)],
        ..Batch::default()
    };
    commit(&store, batch);
    store.memtable.flush().await;
    let keep = Retention { age: Duration::from_secs(3_600), bytes: None };
    assert_eq!(store.forget(keep).await.unwrap().tasks, 0, "not old enough");
    assert_eq!(purge(&store).await, 1);
    assert!(store.task(&"over".into()).await.unwrap().is_none());
    assert!(store.events(&"over".into(), 0).await.unwrap().is_empty());
    assert!(store.task(&"runs".into()).await.unwrap().is_some());
    assert_eq!(store.events(&"runs".into(), 0).await.unwrap().len(), 1);
}

#[tokio::test]
async fn the_file_gets_smaller_with_what_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("covey.db");
    let store = Store::open(&path).await.unwrap();
    store.begin().await.unwrap();
    let large = |seq| {
        let said = TaskEvent::Status { state: Phase::Working, message: Some("x".repeat(3 << 20)) };
        Arc::new(Envelope { event: said, ..(*event("large", seq)).clone() })
    };
    commit(&store, Batch { made: vec![record("large", TaskState::Completed)], ..Batch::default() });
    for seq in 1..=20 {
        commit(&store, Batch { events: vec![large(seq)], ..Batch::default() });
    }
    store.memtable.flush().await;
    let pages = async |store: &Store| -> i64 {
        sqlx::query_scalar("SELECT page_count * 4096 FROM pragma_page_count").fetch_one(&store.readers).await.unwrap()
    };
    let before = pages(&store).await;
    assert!(before > 60 << 20, "{before}");
    assert_eq!(purge(&store).await, 1);
    let after = pages(&store).await;
    assert!(after < 20 << 20, "{after}");
    // The file itself, though nobody writes anything more.
    let gone = async || {
        while path.metadata().unwrap().len() > 20 << 20 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone()).await.expect("the file gets smaller");
    commit(&store, Batch { made: vec![record("next", TaskState::Working)], ..Batch::default() });
    drop(store);
    assert!(crate::upkeep::verify(&path).await.is_ok());
}

#[tokio::test]
async fn a_file_is_forgotten_with_the_last_task_that_names_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("covey.db")).await.unwrap();
    let source = MediaSource::Stored { digest: "d".into(), bytes: 9 };
    let file = Content::File { mime: "image/png".into(), name: None, source };
    let chunk = TaskEvent::ArtifactChunk {
        artifact: "x".into(),
        name: None,
        parts: vec![file.clone()],
        append: false,
        last: true,
    };
    for digest in ["d", "nobody's"] {
        store.keep_artifact(&digest.into(), 9).await.unwrap();
    }
    let (young, old) = (Duration::from_secs(9), Duration::ZERO);
    let asked = TaskRecord {
        input: Arc::new(TaskInput { content: vec![file], ..TaskInput::default() }),
        ..(*record("runs", TaskState::Working)).clone()
    };
    let made = vec![record("over", TaskState::Completed), Arc::new(asked)];
    let events = vec![Arc::new(Envelope { event: chunk, ..(*event("over", 1)).clone() })];
    commit(&store, Batch { made, events, ..Batch::default() });
    assert!(store.forget_artifacts(young).await.unwrap().is_empty(), "it is too young");
    assert_eq!(store.forget_artifacts(old).await.unwrap(), ["nobody's".into()]);
    assert_eq!(store.artifact(&"d".into()).await.unwrap(), Some(9));
    purge(&store).await;
    assert!(store.forget_artifacts(old).await.unwrap().is_empty(), "the task that runs has it");
    let over = vec![TaskChange::of(&record("runs", TaskState::Completed))];
    commit(&store, Batch { tasks: over, ..Batch::default() });
    purge(&store).await;
    assert_eq!(store.forget_artifacts(old).await.unwrap(), ["d".into()]);
}

#[tokio::test]
async fn a_hook_that_was_forgotten_or_replaced_is_not_moved() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("covey.db")).await.unwrap();
    let hook = |id: &str, state| Hook {
        task: "t".into(),
        id: id.into(),
        caller: "me".into(),
        agent: "a".into(),
        config: "{}".into(),
        seq: 1,
        more: 0,
        on_way: None,
        attempts: 0,
        due_ms: 0,
        state,
        error: String::new(),
    };
    store.keep_hook(&hook("x", HookState::Live)).await.unwrap();
    store.keep_hook(&hook("y", HookState::Live)).await.unwrap();
    store.forget_hook(&"t".into(), "x").await.unwrap();
    store.move_hooks(&[hook("x", HookState::Done), hook("y", HookState::Dead)]).await.unwrap();
    assert_eq!(store.hooks(Some(&"t".into()), None).await.unwrap(), [hook("y", HookState::Dead)]);
    assert!(store.hooks(None, Some(HookState::Live)).await.unwrap().is_empty());
    let replaced = Hook { config: "{\"url\":\"elsewhere\"}".into(), ..hook("y", HookState::Live) };
    store.keep_hook(&replaced).await.unwrap();
    store.move_hooks(&[hook("y", HookState::Done)]).await.unwrap();
    assert_eq!(store.hooks(Some(&"t".into()), None).await.unwrap(), [replaced]);
    commit(&store, Batch { made: vec![record("t", TaskState::Completed)], ..Batch::default() });
    purge(&store).await;
    assert!(store.hooks(Some(&"t".into()), None).await.unwrap().is_empty());
}

#[tokio::test]
async fn tasks_are_listed_by_their_last_change_page_by_page() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("covey.db")).await.unwrap();
    store.begin().await.unwrap();
    let at =
        |id: &str, changed_ms: u64| Arc::new(TaskRecord { changed_ms, ..(*record(id, TaskState::Working)).clone() });
    let made = vec![at("a", 5), at("b", 9), at("c", 9), at("d", 0)];
    let tasks = vec![TaskChange::of(&at("d", 1))];
    commit(&store, Batch { made, tasks, ..Batch::default() });
    let mine = TaskFilter { caller: "me", ..TaskFilter::default() };
    let ids = |page: &TaskPage| page.records.iter().map(|t| t.id.to_string()).collect::<Vec<_>>();
    let (page, all) = store.changed(mine, 0, None, 2).await.unwrap();
    assert_eq!((ids(&page), all), (vec!["c".to_owned(), "b".to_owned()], 4));
    assert_eq!(page.next, Some((9, "b".into())));
    let (page, _) = store.changed(mine, 0, Some((9, "b")), 9).await.unwrap();
    assert_eq!((ids(&page), page.next), (vec!["a".to_owned(), "d".to_owned()], None));
    let (page, all) = store.changed(mine, 5, None, 9).await.unwrap();
    assert_eq!((page.records.len(), all), (3, 3));
    assert_eq!(store.changed(TaskFilter { caller: "you", ..mine }, 0, None, 9).await.unwrap().1, 0);
}

#[tokio::test]
async fn a_page_of_large_tasks_ends_early_and_says_where_the_next_begins() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("covey.db")).await.unwrap();
    store.begin().await.unwrap();
    let large = |n: u64| {
        let mut task = (*record(&format!("t{n}"), TaskState::Working)).clone();
        let content = vec![Content::Text("x".repeat(caps::LIST_PAGE_BYTES_MAX / 2))];
        task.input = Arc::new(TaskInput { content, ..TaskInput::default() });
        (task.created_ms, task.changed_ms) = (n, n);
        Arc::new(task)
    };
    for n in 0..5 {
        commit(&store, Batch { made: vec![large(n)], ..Batch::default() });
    }
    let mine = TaskFilter { caller: "me", ..TaskFilter::default() };
    let (mut created, mut changed, mut sizes) = (Vec::new(), Vec::new(), Vec::new());
    let (mut before, mut at) = (String::new(), None);
    for _ in 0..3 {
        let page = store.tasks(mine, &before, 99).await.unwrap();
        sizes.push(page.records.len());
        created.extend(page.records.iter().map(|t| t.created_ms));
        before = page.next.map_or(String::new(), |(_, task)| task.to_string());
        let at_id = at.as_ref().map(|(ms, task): &(u64, TaskId)| (*ms, task.as_str()));
        let (page, all) = store.changed(mine, 0, at_id, 99).await.unwrap();
        assert_eq!(all, 5);
        changed.extend(page.records.iter().map(|t| t.changed_ms));
        at = page.next;
    }
    assert_eq!((sizes, before, at), (vec![2, 2, 1], String::new(), None));
    assert_eq!((created, changed), (vec![4, 3, 2, 1, 0], vec![4, 3, 2, 1, 0]));
}

#[tokio::test]
async fn a_file_of_the_first_version_is_raised() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("covey.db");
    drop(Store::open(&path).await.unwrap());
    let mut db = tables(&path).await;
    let back =
        "DROP TABLE sessions; DROP TABLE session_actors; DROP TABLE links; DROP TABLE gangs; DROP TABLE dead_letters; DROP INDEX tasks_listed; DROP INDEX tasks_by_message; DROP INDEX tasks_unfinished; DROP INDEX tasks_by_end;
        ALTER TABLE tasks DROP COLUMN message_id; ALTER TABLE tasks DROP COLUMN ended_at;
        ALTER TABLE blobs DROP COLUMN used_at; ALTER TABLE cursors DROP COLUMN touched_at;
        ALTER TABLE actor_states DROP COLUMN epoch; ALTER TABLE tasks DROP COLUMN attempt;
        ALTER TABLE tasks DROP COLUMN changed_ms; UPDATE meta SET value = 1 WHERE key = 'schema';
        INSERT INTO tasks VALUES ('t', 'a', 'c', 'me', 'working', 7, 0, '{\"attempt\": 4}')";
    sqlx::raw_sql(back).execute(&mut db).await.unwrap();
    let old = "DROP TABLE events; CREATE TABLE events (task TEXT NOT NULL, seq INTEGER NOT NULL, body TEXT NOT NULL,
        PRIMARY KEY (task, seq)) STRICT, WITHOUT ROWID";
    sqlx::raw_sql(old).execute(&mut db).await.unwrap();
    for (last, body) in [(3, rows::json(&[event("t", 2), event("t", 3)])), (1, rows::json(&event("t", 1)))] {
        sqlx::query("INSERT INTO events VALUES ('t', ?, ?)").bind(last).bind(body).execute(&mut db).await.unwrap();
    }
    drop(db);
    let store = Store::open(&path).await.unwrap();
    let at = sqlx::query_as("SELECT changed_ms, attempt FROM tasks").fetch_one(&store.readers).await.unwrap();
    let at: (i64, i64) = at;
    assert_eq!(at, (7, 4));
    assert_eq!(store.events(&"t".into(), 0).await.unwrap(), [event("t", 1), event("t", 2), event("t", 3)]);
}

fn detached() -> DetachedActor {
    let spec = serde_json::json!({"name": "a", "kind": {"type": "native", "implementation": "echo"}});
    DetachedActor { name: Some("n".into()), spec: serde_json::from_value(spec).unwrap(), init: Some(blob(b"init")) }
}

fn reminder() -> StoredReminder {
    StoredReminder { due_ms: 5, every_ms: Some(7), method: "m".into(), args: blob(b"args") }
}

fn member() -> StoredMember {
    StoredMember { incarnation: 9, port: "127.0.0.1:1".into() }
}

fn owned() -> SessionActor {
    SessionActor { session: "s1".into(), actor: detached() }
}

fn gang() -> Arc<Gang> {
    Arc::new(Gang { members: vec!["g1".into(), "g2".into()], strategy: GangStrategy::StrictSpread })
}

fn letter(at_ms: u64) -> Arc<DeadLetter> {
    Arc::new(DeadLetter {
        at_ms,
        agent: "a".into(),
        actor: Some("x".into()),
        task: None,
        method: "m".into(),
        bytes: 9,
        attempts: 3,
        error: Ended::internal("it ended its process"),
    })
}

/// Something of every kind, much of it twice.
fn full() -> Batch {
    Batch {
        made: vec![record("t1", TaskState::Submitted), record("t2", TaskState::Submitted)],
        tasks: vec![TaskChange::of(&record("t1", TaskState::Working))],
        events: (1..=5_000).map(|n| event("t1", n)).collect(),
        cursors: vec![("n".into(), 9, 3), ("n".into(), 9, 4)],
        states: vec![state("a/1", b"old", 1), state("a/1", b"new", 2), state("a/1", b"stale", 1)],
        reminders: vec![("a/1".into(), "r".into(), Some(reminder()))],
        listeners: vec![
            ("news".into(), "a/1".into(), Some("hear".into())),
            ("news".into(), "a/2".into(), Some("hear".into())),
            ("news".into(), "a/2".into(), None),
        ],
        actors: vec![("x".into(), Some(detached())), ("y".into(), Some(detached())), ("y".into(), None)],
        agents: vec![],
        activations: vec![
            ("a/1".into(), Some(("n".into(), 2))),
            ("a/2".into(), Some(("n".into(), 3))),
            ("a/2".into(), None),
        ],
        members: vec![("n".into(), Some(member())), ("m".into(), Some(member())), ("m".into(), None)],
        sessions: vec![("s1".into(), Some("proof".into())), ("s2".into(), Some("other".into())), ("s2".into(), None)],
        session_actors: vec![("o1".into(), Some(owned())), ("o2".into(), Some(owned())), ("o2".into(), None)],
        links: vec![("x".into(), "y".into(), true), ("o1".into(), "x".into(), true), ("x".into(), "y".into(), false)],
        gangs: vec![("g1".into(), Some(gang())), ("h1".into(), Some(gang())), ("h1".into(), None)],
        dead_letters: (1..=3).map(letter).collect(),
        clock_ms: Some(77),
        term: None,
    }
}

#[tokio::test]
async fn what_was_committed_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("covey.db");
    {
        let store = Store::open(&path).await.unwrap();
        assert_eq!(store.begin().await.unwrap().term, 1);
        commit(&store, full());
        let ended = TaskChange { attempt: 3, ..TaskChange::of(&record("t2", TaskState::Completed)) };
        commit(&store, Batch { tasks: vec![ended], ..Batch::default() });
        store.put_blob("d", b"code").await.unwrap();
    }
    let store = Store::open(&path).await.unwrap();
    let snapshot = store.begin().await.unwrap();
    assert_eq!(snapshot.term, 2);
    assert_eq!(snapshot.cursors, [("n".into(), 9, 4)]);
    assert_eq!(snapshot.tasks.len(), 1, "ended tasks stay on disk");
    assert_eq!(snapshot.tasks[0].record.state, TaskState::Working);
    assert_eq!(snapshot.tasks[0].events.len(), 5_000);
    assert_eq!(snapshot.ended, [(TaskState::Completed, 1)]);
    assert_eq!(store.task(&"t2".into()).await.unwrap().unwrap().attempt, 3);
    assert_eq!(snapshot.actors, [("x".into(), detached(), false)]);
    assert_eq!(snapshot.listeners, [("news".to_owned(), "a/1".into(), "hear".to_owned())]);
    assert_eq!(snapshot.reminders, [("a/1".into(), "r".into(), reminder())]);
    assert_eq!(snapshot.activations, [("a/1".into(), "n".into(), 2)]);
    assert_eq!(snapshot.members, [("n".into(), member())]);
    assert_eq!(snapshot.sessions.sessions, [("s1".into(), "proof".into())]);
    assert_eq!(snapshot.sessions.actors, [("o1".into(), owned(), false)]);
    assert_eq!(snapshot.links.links, [("o1".into(), "x".into())]);
    assert_eq!(snapshot.links.gangs, [("g1".into(), (*gang()).clone())]);
    assert_eq!(snapshot.links.dead_letters.iter().map(|l| l.at_ms).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(snapshot.clock_ms, 77);
    assert_eq!(store.state(&"a/1".into()).await.unwrap().unwrap(), b"new");
    assert_eq!(store.events(&"t1".into(), 4_990).await.unwrap().len(), 10);
    assert_eq!(store.blob("d").await.unwrap().unwrap(), b"code");
}

#[tokio::test]
async fn the_newest_dead_letters_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("covey.db");
    for round in 0..4 {
        let store = Store::open(&path).await.unwrap();
        let first = 400 * round;
        // Each in a group of its own, and all of them in one.
        for n in first..first + 10 {
            commit(&store, Batch { dead_letters: vec![letter(n)], ..Batch::default() });
            store.memtable.flush().await;
        }
        let dead_letters = (first + 10..first + 400).map(letter).collect();
        commit(&store, Batch { dead_letters, ..Batch::default() });
        store.memtable.flush().await;
    }
    let found = Store::open(&path).await.unwrap().begin().await.unwrap().links.dead_letters;
    assert_eq!(found.iter().map(|letter| letter.at_ms).collect::<Vec<_>>(), (600..1_600).collect::<Vec<_>>());
    assert_eq!(found[0], *letter(600));
}

/// A-2: what an older activation writes late is kept neither beside the tables nor in them, whatever was there first.
#[tokio::test]
async fn a_stale_activation_writes_over_no_newer_state() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("covey.db")).await.unwrap();
    for carried in [false, true] {
        for (body, epoch) in [(b"one", 1), (b"two", 2), (b"old", 1)] {
            commit(&store, Batch { states: vec![state("a/1", body, epoch)], ..Batch::default() });
            if carried {
                store.memtable.flush().await;
            }
        }
        assert_eq!(store.state(&"a/1".into()).await.unwrap().unwrap(), b"two", "carried between: {carried}");
    }
    commit(&store, Batch { states: vec![StateChange("a/1".into(), None, 1)], ..Batch::default() });
    store.memtable.flush().await;
    assert_eq!(store.state(&"a/1".into()).await.unwrap().unwrap(), b"two", "nor is it taken away by one");
    commit(&store, Batch { states: vec![StateChange("a/1".into(), None, 2)], ..Batch::default() });
    assert!(store.state(&"a/1".into()).await.unwrap().is_none());
}

#[tokio::test]
async fn a_number_is_taken_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("covey.db")).await.unwrap();
    commit(&store, Batch { events: vec![event("t", 1)], ..Batch::default() });
    store.memtable.flush().await;
    commit(&store, Batch { events: vec![event("t", 2), event("t", 1)], ..Batch::default() });
    store.memtable.flush().await;
    assert_eq!(store.events(&"t".into(), 0).await.unwrap(), [event("t", 1), event("t", 2)]);
}

#[tokio::test]
async fn the_log_turns_while_it_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("covey.db");
    let store = Store::open(&path).await.unwrap();
    store.begin().await.unwrap();
    // 40 MB in all; the tables keep up, so that two files of little more than 8 MiB do.
    for n in 0..400 {
        let cursors = vec![("n".into(), n, 1); 10_000];
        commit(&store, Batch { cursors, ..Batch::default() });
        if n % 20 == 0 {
            store.memtable.flush().await;
        }
    }
    let length = |name: &str| std::fs::metadata(dir.path().join(name)).unwrap().len();
    assert!(length("covey.db-log0") < 32 << 20 && length("covey.db-log1") < 32 << 20);
    drop(store);
    let store = Store::open(&path).await.unwrap();
    assert_eq!(store.begin().await.unwrap().cursors.len(), 400);
}

#[tokio::test]
async fn a_message_is_found_in_the_log_in_the_tables_and_after_a_restart_and_not_once_its_task_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("covey.db");
    let store = Store::open(&path).await.unwrap();
    store.begin().await.unwrap();
    let found = async |store: &Store, message: &str| {
        let (me, agent) = ("me".into(), "a".into());
        store.task_of_message(&me, &agent, message).await.unwrap().map(|task| task.to_string())
    };
    let made = vec![record("t", TaskState::Completed), record("u", TaskState::Working)];
    commit(&store, Batch { made, ..Batch::default() });
    assert_eq!(found(&store, "m-t").await.as_deref(), Some("t"));
    store.memtable.flush().await;
    assert_eq!(found(&store, "m-t").await.as_deref(), Some("t"));
    assert_eq!(found(&store, "m-x").await, None);
    let other = store.task_of_message(&"you".into(), &"a".into(), "m-t").await.unwrap();
    assert_eq!(other, None, "it is another caller's");
    drop(store);
    let store = Store::open(&path).await.unwrap();
    while store.messages.may_have("me", "a", "m-x") {
        tokio::task::yield_now().await;
    }
    assert!(store.messages.may_have("me", "a", "m-t"), "what is there is never missed");
    assert_eq!(found(&store, "m-t").await.as_deref(), Some("t"));
    assert_eq!(purge(&store).await, 1);
    assert_eq!((found(&store, "m-t").await, found(&store, "m-u").await.as_deref()), (None, Some("u")));
}

#[tokio::test]
async fn two_tasks_of_one_id_are_one_and_the_first_holds() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("covey.db")).await.unwrap();
    store.begin().await.unwrap();
    commit(&store, Batch { made: vec![record("t", TaskState::Working)], ..Batch::default() });
    store.memtable.flush().await;
    let other = Arc::new(TaskRecord { skill: "other".into(), ..(*record("t", TaskState::Working)).clone() });
    commit(&store, Batch { made: vec![other, record("u", TaskState::Working)], ..Batch::default() });
    assert!(store.memtable.flush().await, "a clash does not hold up the rest");
    assert_eq!(store.task(&"t".into()).await.unwrap().unwrap().skill, "run");
    assert!(store.task(&"u".into()).await.unwrap().is_some());
}

#[tokio::test]
async fn the_oldest_go_first_when_there_is_too_much_and_a_large_log_goes_in_steps() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("covey.db");
    let store = Store::open(&path).await.unwrap();
    store.begin().await.unwrap();
    let large = |id: &str, events: u64| {
        let made = vec![record(id, TaskState::Completed)];
        // Each event is a row of its own, so that there are many.
        for seq in 1..=events {
            commit(&store, Batch { events: vec![event(id, 2 * seq)], ..Batch::default() });
        }
        commit(&store, Batch { made, ..Batch::default() });
    };
    large("old", 700);
    store.memtable.flush().await;
    tokio::time::sleep(Duration::from_millis(2)).await;
    large("young", 700);
    commit(&store, Batch { made: vec![record("runs", TaskState::Working)], ..Batch::default() });
    store.memtable.flush().await;
    let bytes = store.bytes().await.unwrap();
    let keep = Retention { age: Duration::from_secs(3_600), bytes: Some(bytes - 4_096) };
    assert_eq!(store.forget(keep).await.unwrap().tasks, 1);
    assert!(store.task(&"old".into()).await.unwrap().is_none() && store.task(&"young".into()).await.unwrap().is_some());
    let keep = Retention { bytes: Some(0), ..keep };
    assert_eq!(store.forget(keep).await.unwrap().tasks, 1);
    assert_eq!((count(&store, "events").await, count(&store, "tasks").await), (0, 1));
    assert!(store.begin().await.unwrap().ended.iter().all(|(_, count)| *count == 0));
}

#[tokio::test]
async fn the_clock_on_the_wall_makes_nothing_old() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("covey.db")).await.unwrap();
    store.begin().await.unwrap();
    // By the wall clock it ended in 1970; a clock that jumped looks the same.
    commit(&store, Batch { made: vec![record("t", TaskState::Completed)], ..Batch::default() });
    store.memtable.flush().await;
    let keep = Retention { age: Duration::from_secs(60), bytes: None };
    assert_eq!(store.forget(keep).await.unwrap().tasks, 0);
}

/// SQLite ends some transactions by itself when there is no room, and some it leaves open. What is written then must be there
/// for others, and not wait for an end that never comes.
#[tokio::test]
async fn a_transaction_is_committed_whatever_became_of_those_before() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("covey.db");
    drop(Store::open(&path).await.unwrap());
    let (mut db, mut other) = (tables(&path).await, tables(&path).await);
    let add = "INSERT INTO meta VALUES (?, 1)";
    // Ended by SQLite, as by a full disk.
    let mut tx = Transaction::begin(&mut db).await.unwrap();
    sqlx::query(add).bind("first").execute(&mut *tx).await.unwrap();
    sqlx::raw_sql("ROLLBACK").execute(&mut *tx).await.unwrap();
    let full = || sqlx::Error::Protocol("no room".into());
    tx.end(Err::<(), _>(full())).await.unwrap_err();
    // Not ended by anybody, as when its future was dropped; and one that fails and stays open.
    {
        let mut tx = Transaction::begin(&mut db).await.unwrap();
        sqlx::query(add).bind("dropped").execute(&mut *tx).await.unwrap();
    }
    let mut tx = Transaction::begin(&mut db).await.unwrap();
    sqlx::query(add).bind("failed").execute(&mut *tx).await.unwrap();
    tx.end(Err::<(), _>(full())).await.unwrap_err();
    let mut tx = Transaction::begin(&mut db).await.unwrap();
    sqlx::query(add).bind("good").execute(&mut *tx).await.unwrap();
    tx.end(Ok::<_, sqlx::Error>(())).await.unwrap();
    let keys = "SELECT key FROM meta WHERE value = 1 AND key IN ('first', 'dropped', 'failed', 'good')";
    let found: Vec<String> = sqlx::query_scalar(keys).fetch_all(&mut other).await.unwrap();
    assert_eq!(found, ["good"]);
    sqlx::raw_sql("BEGIN IMMEDIATE; ROLLBACK").execute(&mut other).await.expect("nothing is left open");
}
