//! Damage of the tables: what is read is what was written, or an error.

use std::{os::unix::fs::FileExt as _, path::Path};

use super::*;

/// What a test store has.
const TASKS: u64 = 16;

fn text_event(task: &str, seq: u64, length: usize) -> Arc<Envelope> {
    let delta = Delta::Text(format!("{task} {seq} ").repeat(length / 8));
    Arc::new(Envelope { event: TaskEvent::PartDelta { part: "p".into(), delta }, ..(*event(task, seq)).clone() })
}

/// A store with something of most kinds, in rows of all sizes.
async fn filled(path: &Path) {
    let store = Store::open(path).await.unwrap();
    store.begin().await.unwrap();
    for n in 0..TASKS {
        let id = format!("t{n}");
        let made = vec![record(&id, if n % 4 == 0 { TaskState::Working } else { TaskState::Completed })];
        let events = (1..=5).map(|seq| text_event(&id, seq, 200 * (n * seq) as usize)).collect();
        let states = vec![state(&format!("a/{n}"), &vec![n as u8; 300 * n as usize], 1)];
        commit(&store, Batch { made, events, states, cursors: vec![("n".into(), n, n)], ..Batch::default() });
        store.put_blob(&format!("d{n}"), &vec![n as u8; 1000 * (n % 9) as usize]).await.unwrap();
        store.memtable.flush().await;
    }
    drop(store);
    closed(path).await;
}

/// Waits until nobody has the tables open, and all is in their file.
async fn closed(path: &Path) {
    loop {
        let mut db = tables(path).await;
        let (blocked, ..): (i64, i64, i64) =
            sqlx::query_as("PRAGMA wal_checkpoint(TRUNCATE)").fetch_one(&mut db).await.unwrap();
        db.close().await.unwrap();
        if blocked == 0 && !beside(path, "-wal").exists() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// All that a store tells, as text.
async fn everything(path: &Path) -> Result<String, Error> {
    let store = Store::open(path).await?;
    let snapshot = store.begin().await?;
    let mut all = format!("{:?} {:?} {:?} ", snapshot.tasks, snapshot.cursors, snapshot.ended);
    let page = store.tasks(TaskFilter::default(), "", 99).await?;
    all += &format!("{} {page:?}", page.records.len());
    for n in 0..TASKS {
        let task = TaskId::from(format!("t{n}"));
        all += &format!("{:?}", store.task(&task).await?);
        let mut after = 0;
        while let Some(last) = store.events(&task, after).await?.last().cloned() {
            all += &format!("{:?}", store.events(&task, after).await?);
            after = last.seq;
        }
        all += &format!("{:?}", store.state(&format!("a/{n}").into()).await?);
        all += &format!("{:?}", store.blob(&format!("d{n}")).await?);
        all += &format!("{:?}", store.task_of_message(&"me".into(), &"a".into(), &format!("m-t{n}")).await?);
    }
    let broken = salvage::set_aside_before(path).map_err(Error::Log)?;
    Ok(format!("{all} {broken:?}"))
}

/// A store like another, in a folder of its own, with something done to its tables.
fn copy(from: &Path, hurt: impl FnOnce(&mut Vec<u8>)) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("covey.db");
    for suffix in ["-log0", "-log1", "-ballast"] {
        std::fs::copy(beside(from, suffix), beside(&path, suffix)).unwrap();
    }
    let mut bytes = std::fs::read(from).unwrap();
    hurt(&mut bytes);
    std::fs::write(&path, bytes).unwrap();
    (dir, path)
}

fn is_named(report: &upkeep::Report) -> bool {
    report.errors.iter().any(|error| error.contains("is not as it was written"))
}

#[tokio::test]
async fn a_flipped_bit_of_the_tables_is_an_error_and_never_another_value() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("covey.db");
    filled(&from).await;
    let (_dir, path) = copy(&from, |_| ());
    let expected = everything(&path).await.unwrap();
    let mut seed = 11_u64;
    let (mut refused, mut sound) = (0, 0);
    for round in 0..300_usize {
        let (mut bit, mut length) = (0, 0);
        let (_dir, path) = copy(&from, |bytes| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            // Some in the header of the file, which says how all else is read.
            bit = if round < 60 { (round * 8 + round % 8) % 800 } else { (seed >> 16) as usize % (bytes.len() * 8) };
            bytes[bit / 8] ^= 1 << (bit % 8);
            length = bytes.len();
        });
        // Whoever reads all names it, wherever it is.
        let told = upkeep::examine(&path).await;
        assert!(told.as_ref().is_ok_and(is_named), "bit {bit} of {length} bytes: {told:?}");
        match everything(&path).await {
            Ok(found) => {
                assert_eq!(found, expected, "bit {bit} of {length} bytes");
                sound += 1;
            }
            Err(Error::Corrupt { file, .. }) => {
                assert!(file.ends_with("covey.db"), "{file}");
                refused += 1;
            }
            Err(error) => panic!("bit {bit} of {length} bytes: {error:?}"),
        }
    }
    // What is left lies where nothing is, or in what only writers read.
    assert!(refused > 240, "{refused} refused, {sound} as they were");
}

/// Pages that were found damaged. The text of an error names the latest of the process, which may be another test's.
fn named(path: &Path) -> Vec<u64> {
    covey_pages::damaged(path).iter().map(|damage| damage.page).collect()
}

/// Flips a bit in the middle of a page that this query names.
async fn hurt_page(path: &Path, query: &'static str) -> i64 {
    let mut db = tables(path).await;
    let page: i64 = sqlx::query_scalar(query).fetch_one(&mut db).await.unwrap();
    db.close().await.unwrap();
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    let at = (page as u64 - 1) * 4096 + 2000;
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 16], at).unwrap();
    page
}

#[tokio::test]
async fn a_damaged_page_costs_who_reads_it_and_ends_who_writes_it() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("covey.db");
    filled(&from).await;
    let (_dir, path) = copy(&from, |_| ());
    let page = hurt_page(&path, "SELECT max(pageno) FROM dbstat WHERE name = 'blobs' AND pagetype = 'leaf'").await;
    let store = Store::open(&path).await.unwrap();
    store.begin().await.expect("a start reads no blobs");
    let mut failed = 0;
    for n in 0..TASKS {
        match store.blob(&format!("d{n}")).await {
            Ok(body) => assert_eq!(body.unwrap(), vec![n as u8; 1000 * (n % 9) as usize]),
            Err(Error::Corrupt { .. }) => failed += 1,
            Err(error) => panic!("{error:?}"),
        }
    }
    assert!(failed > 0 && failed < TASKS, "{failed}");
    assert_eq!(named(&path), [page as u64]);
    assert!(store.task(&"t1".into()).await.unwrap().is_some(), "all else is read");
    store.write(Batch::default()).expect("readers stop nobody");
    for n in 0..TASKS {
        let done = store.put_blob(&format!("d{n}"), b"new").await;
        if let Err(error) = done {
            assert!(matches!(error, Error::Corrupt { .. }), "{error:?}");
            assert!(store.failed().await.contains("is not as it was written"));
            assert!(matches!(store.write(Batch::default()), Err(Error::Lost(_))));
            return;
        }
    }
    panic!("nobody met page {page}");
}

#[tokio::test]
async fn a_damaged_page_is_not_copied_and_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("covey.db");
    filled(&from).await;
    let (folder, path) = copy(&from, |_| ());
    let to = folder.path().join("backup.db");
    upkeep::backup(&path, &to, 1).await.unwrap();
    assert!(sums::verified(&to).unwrap().is_some(), "copies have sums");
    // Restored, it is a store as it was.
    let restored = tempfile::tempdir().unwrap();
    let again = restored.path().join("covey.db");
    std::fs::copy(&to, &again).unwrap();
    assert_eq!(everything(&again).await.unwrap(), everything(&path).await.unwrap());
    // A copy that was hurt is refused; so is copying what is hurt.
    let mut bytes = std::fs::read(&to).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&to, bytes).unwrap();
    assert!(matches!(upkeep::verify(&to).await, Err(Error::Corrupt { .. })));
    let (folder, path) = copy(&from, |_| ());
    let page = hurt_page(&path, "SELECT max(pageno) FROM dbstat WHERE name = 'events' AND pagetype = 'leaf'").await;
    let to = folder.path().join("backup.db");
    let refused = upkeep::backup(&path, &to, 1).await.unwrap_err();
    assert!(refused.to_string().contains("is not as it was written"), "{refused}");
    assert_eq!(named(&path), [page as u64]);
    assert!(!to.exists() && upkeep::last_backup(&path).is_none());
    closed(&path).await;
    let report = upkeep::examine(&path).await.unwrap();
    assert!(report.errors[0].contains(&format!("page {page} is not as it was written")), "{report:?}");
}

/// Rows that say what cannot be, in pages that are sound.
#[tokio::test]
async fn a_task_without_its_log_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("covey.db");
    let store = Store::open(&path).await.unwrap();
    store.begin().await.unwrap();
    let made = vec![record("t1", TaskState::Working)];
    commit(&store, Batch { made, events: vec![event("t1", 1)], ..Batch::default() });
    store.memtable.flush().await;
    drop(store);
    closed(&path).await;
    let lacks = async || {
        let report = upkeep::examine(&path).await.unwrap();
        report.errors.iter().any(|error| error.contains("T-2: task `t1` has no log"))
    };
    assert!(!lacks().await);
    let mut db = tables(&path).await;
    sqlx::query("DELETE FROM events WHERE task = 't1'").execute(&mut db).await.unwrap();
    db.close().await.unwrap();
    assert!(lacks().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_are_sound_while_they_are_written_read_and_brought_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("covey.db");
    let store = Arc::new(Store::open(&path).await.unwrap());
    store.begin().await.unwrap();
    let done = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let reader = tokio::spawn({
        let (store, done) = (store.clone(), done.clone());
        async move {
            let mut read = 0;
            while done.load(Ordering::Acquire) < u64::MAX {
                let task = TaskId::from(format!("t{}", read % done.load(Ordering::Acquire).clamp(1, 200)));
                if let Some(record) = store.task(&task).await.unwrap() {
                    let events = store.events(&task, 0).await.unwrap();
                    assert!(events.iter().all(|event| event.task == record.id));
                }
                read += 1;
            }
            read
        }
    });
    // 24 MB, some six checkpoints.
    for n in 0..200 {
        let id = format!("t{n}");
        let events = (1..=12).map(|seq| text_event(&id, seq, 10_000)).collect();
        commit(&store, Batch { made: vec![record(&id, TaskState::Completed)], events, ..Batch::default() });
        if n % 10 == 0 {
            store.memtable.flush().await;
            store.forget(Retention { age: Duration::from_secs(3_600), bytes: Some(12 << 20) }).await.unwrap();
        }
        done.store(n, Ordering::Release);
    }
    done.store(u64::MAX, Ordering::Release);
    assert!(reader.await.unwrap() > 0);
    store.memtable.flush().await;
    drop(store);
    closed(&path).await;
    assert!(sums::verified(&path).unwrap().is_some_and(|scan| scan.pages > 1_000));
    let report = upkeep::examine(&path).await.unwrap();
    assert!(!is_named(&report) && !report.errors.iter().any(|error| error.contains("SQLite")), "{report:?}");
}

/// The tables come back without what was in their `-wal`, or as an empty file: what the log holds is read again, or the start is
/// refused and the log is as it was. A store whose head ended before it had a log is begun anew.
#[tokio::test]
async fn tables_that_lost_what_they_had_do_not_cost_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let (from, to) = (dir.path().join("from"), dir.path().join("to"));
    std::fs::create_dir(&from).unwrap();
    let store = Store::open(&from.join("covey.db")).await.unwrap();
    store.begin().await.unwrap();
    for n in 0..TASKS {
        let id = format!("t{n}");
        commit(&store, Batch { made: vec![record(&id, TaskState::Working)], ..Batch::default() });
    }
    store.memtable.flush().await;
    let path = to.join("covey.db");
    for lost in ["-wal", ""] {
        let _ = std::fs::remove_dir_all(&to);
        std::fs::create_dir(&to).unwrap();
        for file in std::fs::read_dir(&from).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
        std::fs::remove_file(beside(&path, "-shm")).unwrap();
        std::fs::remove_file(beside(&path, "-wal")).unwrap();
        if lost.is_empty() {
            std::fs::write(&path, []).unwrap();
        }
        let logs = || crate::log::paths(&path).map(|log| std::fs::read(log).unwrap());
        let before = logs();
        match Store::open(&path).await {
            Ok(store) => {
                assert_eq!(lost, "-wal");
                store.begin().await.unwrap();
                assert_eq!(store.tasks(TaskFilter::default(), "", 99).await.unwrap().records.len() as u64, TASKS);
            }
            Err(error) => {
                assert_eq!(lost, "", "{error}");
                assert!(matches!(&error, Error::Orphan { .. }), "{error}");
                assert!(logs() == before, "what could be read again is there still");
                // Nor the next start: the tables that the first one left know of no log either.
                assert!(matches!(Store::open(&path).await, Err(Error::Orphan { .. })));
                let found = upkeep::examine(&path).await.unwrap();
                assert!(found.errors.iter().any(|said| said.contains("know of no log")), "{:?}", found.errors);
            }
        }
    }
    // A log without records is one that was just made.
    let path = dir.path().join("new.db");
    drop(crate::log::Log::create(&path, 7, 0).unwrap());
    std::fs::write(&path, []).unwrap();
    Store::open(&path).await.unwrap();
}
