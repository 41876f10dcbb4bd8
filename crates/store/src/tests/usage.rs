//! What the tasks of each caller take is counted as they come and go.

use super::*;

fn task_of(caller: &str, id: &str, state: TaskState) -> Arc<TaskRecord> {
    Arc::new(TaskRecord { caller: caller.into(), ..(*record(id, state)).clone() })
}

/// What SQLite counts, and what the store says.
async fn both(store: &Store) -> Vec<(String, u64, u64)> {
    store.memtable.flush().await;
    let sql = format!("SELECT caller, sum({}) FROM tasks GROUP BY caller ORDER BY caller", crate::usage::OF_TASK);
    let rows = sqlx::query(sqlx::AssertSqlSafe(sql)).fetch_all(&store.readers).await.unwrap();
    let said = |caller: &str| store.usage(&caller.into());
    rows.iter().map(|row| (row.get(0), row.get::<i64, _>(1) as u64, said(row.get(0)))).collect()
}

#[tokio::test]
async fn what_tasks_take_is_counted_for_their_caller() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("covey.db");
    let store = Store::open(&path).await.unwrap();
    store.begin().await.unwrap();
    let file = covey_domain::Digest::of(b"file");
    store.keep_artifact(&file, 5_000).await.unwrap();
    let source = MediaSource::Stored { digest: file.clone(), bytes: 5_000 };
    let content = vec![Content::File { source, mime: "text/plain".into(), name: None }];
    let asked = TaskRecord {
        input: Arc::new(TaskInput { content, ..TaskInput::default() }),
        ..(*task_of("b", "2", TaskState::Working)).clone()
    };
    let made = vec![task_of("a", "1", TaskState::Working), Arc::new(asked), task_of("b", "3", TaskState::Completed)];
    commit(&store, Batch { made, events: vec![event("1", 1), event("2", 1)], ..Batch::default() });
    let before = both(&store).await;
    assert!(before.iter().all(|(_, counted, said)| counted == said && *said > 0), "{before:?}");
    assert!(before[1].2 > 5_000);
    // Of tasks that an earlier group made, two of one caller in one group.
    let events = [("1", 2..1_000), ("2", 2..10), ("3", 1..20)];
    let events = events.into_iter().flat_map(|(id, seqs)| seqs.map(move |n| event(id, n))).collect();
    commit(&store, Batch { events, ..Batch::default() });
    let after = both(&store).await;
    assert!(after.iter().all(|(_, counted, said)| counted == said), "{after:?}");
    assert!(after[0].2 > before[0].2 + 10_000 && after[1].2 > before[1].2);
    // It is the same after a start, and where a program before this one had not counted.
    drop(store);
    for older in [false, true] {
        if older {
            let mut db = tables(&path).await;
            sqlx::query("DROP TABLE usage").execute(&mut db).await.unwrap();
        }
        let store = Store::open(&path).await.unwrap();
        assert_eq!(both(&store).await, after, "{older}");
    }
    let store = Store::open(&path).await.unwrap();
    store.begin().await.unwrap();
    commit(
        &store,
        Batch {
            tasks: ["1", "2"].map(|id| TaskChange::of(&record(id, TaskState::Completed))).into(),
            ..Batch::default()
        },
    );
    assert_eq!(purge(&store).await, 3);
    assert_eq!((store.usage(&"a".into()), store.usage(&"b".into())), (0, 0));
}
