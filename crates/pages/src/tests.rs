//! Real files, crashes as copies of what is on disk, and SQLite without this crate as the judge.

use std::path::{Path, PathBuf};

use sqlx::{Connection as _, Row as _, SqliteConnection, sqlite::SqliteConnectOptions};

use super::*;

/// Numbers of a seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new().filename(path).vfs(vfs().unwrap())
}

async fn connect(path: &Path) -> SqliteConnection {
    SqliteConnection::connect_with(&options(path)).await.unwrap()
}

/// Without this crate.
async fn plain(path: &Path) -> SqliteConnection {
    SqliteConnection::connect_with(&SqliteConnectOptions::new().filename(path)).await.unwrap()
}

async fn run(db: &mut SqliteConnection, sql: &'static str) {
    sqlx::raw_sql(sql).execute(db).await.unwrap();
}

const TABLE: &str =
    "CREATE TABLE t (id INTEGER PRIMARY KEY, body BLOB NOT NULL); CREATE INDEX by_length ON t (length(body), id)";

/// A new file with sums.
async fn made(path: &Path) -> SqliteConnection {
    let mut db = SqliteConnection::connect_with(&options(path).create_if_missing(true)).await.unwrap();
    reserve(&mut db).await.unwrap();
    run(&mut db, TABLE).await;
    run(&mut db, "PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0").await;
    db
}

async fn rows(db: &mut SqliteConnection) -> Result<Vec<(i64, Vec<u8>)>, sqlx::Error> {
    let rows = sqlx::query("SELECT id, body FROM t ORDER BY id").fetch_all(&mut *db).await?;
    Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
}

async fn is_sound(db: &mut SqliteConnection) {
    let said: String = sqlx::query_scalar("PRAGMA integrity_check").fetch_one(db).await.unwrap();
    assert_eq!(said, "ok");
}

/// What a process that is killed now leaves.
fn crashed(path: &Path, to: &Path) -> PathBuf {
    let copy = to.join("copy.db");
    for suffix in ["", "-wal"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", copy.display()));
        let from = format!("{}{suffix}", path.display());
        if Path::new(&from).exists() {
            std::fs::copy(from, format!("{}{suffix}", copy.display())).unwrap();
        }
    }
    let _ = std::fs::remove_file(format!("{}-shm", copy.display()));
    copy
}

fn is_damage(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|e| e.code()).is_some_and(|code| code == DAMAGED.to_string())
}

#[test]
fn a_sum_finds_every_bit_and_the_place() {
    let mut page: Vec<u8> = (0..4096_u32).map(|n| (n * 7) as u8).collect();
    sum::put(3, &mut page);
    assert!(sum::holds(3, &page) && !sum::holds(4, &page));
    for bit in 0..page.len() * 8 {
        page[bit / 8] ^= 1 << (bit % 8);
        assert!(!sum::holds(3, &page), "bit {bit}");
        page[bit / 8] ^= 1 << (bit % 8);
    }
}

/// What is committed is there after a crash, for this crate and for any SQLite, whatever was written twice, spilled, rolled back
/// or begun anew in the log before; and what another SQLite has brought into the file has its sums.
#[tokio::test]
async fn a_log_is_replayed_by_any_sqlite_to_what_was_committed() {
    let dir = tempfile::tempdir().unwrap();
    let (path, left) = (dir.path().join("a.db"), dir.path().join("left"));
    std::fs::create_dir(&left).unwrap();
    let mut dice = Dice(20_260_101);
    let mut db = made(&path).await;
    let mut other = connect(&path).await;
    for db in [&mut db, &mut other] {
        // A cache of a few pages: transactions spill into the log and write pages of it again.
        run(db, "PRAGMA wal_autocheckpoint = 0; PRAGMA synchronous = NORMAL; PRAGMA cache_size = 8").await;
    }
    for round in 0..120 {
        let db = if dice.below(2) == 0 { &mut db } else { &mut other };
        run(db, "BEGIN IMMEDIATE").await;
        for _ in 0..dice.below(40) {
            let (id, length) = (dice.below(60) as i64, dice.below(9_000));
            let body: Vec<u8> = (0..length).map(|_| dice.below(256) as u8).collect();
            sqlx::query("INSERT OR REPLACE INTO t VALUES (?, ?)").bind(id).bind(body).execute(&mut *db).await.unwrap();
            match dice.below(12) {
                0 => run(db, "SAVEPOINT s; DELETE FROM t WHERE id % 3 = 0; ROLLBACK TO s; RELEASE s").await,
                1 => run(db, "DELETE FROM t WHERE id % 5 = 0").await,
                2 => run(db, "UPDATE t SET body = body || x'00'").await,
                _ => {}
            }
        }
        run(db, if dice.below(4) == 0 { "ROLLBACK" } else { "COMMIT" }).await;
        if dice.below(10) == 0 {
            run(db, "PRAGMA wal_checkpoint(RESTART)").await;
        } else if dice.below(10) == 0 {
            run(db, "PRAGMA wal_checkpoint(PASSIVE)").await;
        }
        let expected = rows(db).await.unwrap();
        let copy = crashed(&path, &left);
        let mut found = if round % 2 == 0 { plain(&copy).await } else { connect(&copy).await };
        assert_eq!(rows(&mut found).await.unwrap(), expected, "round {round}");
        is_sound(&mut found).await;
        // It was the last one, and brings the log into the file.
        found.close().await.unwrap();
        let scan = scan(&copy).unwrap().unwrap();
        assert!(scan.damaged.is_empty(), "round {round}: {scan:?}");
    }
    assert!(damaged(&path).is_empty());
}

/// One connection writes frames and takes them back, another one writes as many, and the first goes on where it would have gone on.
#[tokio::test]
async fn a_frame_goes_on_from_the_one_that_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let (path, left) = (dir.path().join("a.db"), dir.path().join("left"));
    std::fs::create_dir(&left).unwrap();
    let mut one = made(&path).await;
    run(&mut one, "CREATE TABLE one (n INTEGER); INSERT INTO one VALUES (0)").await;
    let mut other = connect(&path).await;
    run(&mut other, "PRAGMA wal_autocheckpoint = 0").await;
    run(&mut one, "PRAGMA cache_size = 8").await;
    for commits in 1..50_u8 {
        // Pages of one large value spill, each once.
        run(&mut one, "BEGIN IMMEDIATE; INSERT INTO t VALUES (2, zeroblob(120000)); ROLLBACK").await;
        for n in 0..commits {
            // A page each.
            let update = sqlx::query("UPDATE one SET n = ?").bind(-i64::from(n));
            update.execute(&mut other).await.unwrap();
        }
        sqlx::query("UPDATE one SET n = ?").bind(i64::from(commits)).execute(&mut one).await.unwrap();
        let mut found = plain(&crashed(&path, &left)).await;
        let n: i64 = sqlx::query_scalar("SELECT n FROM one").fetch_one(&mut found).await.unwrap();
        assert_eq!(n, i64::from(commits));
        found.close().await.unwrap();
    }
}

/// A flipped bit of a closed file is an error of the read that meets it, or lies where nothing is.
#[tokio::test]
async fn a_flipped_bit_is_never_another_value() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    let mut db = made(&path).await;
    for id in 0..40_i64 {
        let body = vec![id as u8; 500 + 400 * id as usize];
        sqlx::query("INSERT INTO t VALUES (?, ?)").bind(id).bind(body).execute(&mut db).await.unwrap();
    }
    let expected = rows(&mut db).await.unwrap();
    db.close().await.unwrap();
    let whole = std::fs::read(&path).unwrap();
    let mut dice = Dice(7);
    let mut found = 0;
    for round in 0..400 {
        let mut hurt = whole.clone();
        // All bits of the header, and others.
        let bit = if round < 100 * 8 / 4 { round as usize * 4 } else { dice.below(hurt.len() as u64 * 8) as usize };
        hurt[bit / 8] ^= 1 << (bit % 8);
        let copy = dir.path().join(format!("hurt{round}.db"));
        std::fs::write(&copy, &hurt).unwrap();
        let read = match SqliteConnection::connect_with(&options(&copy)).await {
            Ok(mut db) => rows(&mut db).await,
            Err(error) => Err(error),
        };
        match read {
            Ok(read) => assert_eq!(read, expected, "bit {bit}"),
            Err(_) => found += 1,
        }
        let seen = scan(&copy).unwrap();
        assert!(seen.is_none_or(|scan| !scan.damaged.is_empty()), "bit {bit} is named by who reads all");
        std::fs::remove_file(&copy).unwrap();
    }
    assert!(found > 300, "{found} of 400");
}

#[tokio::test]
async fn a_page_at_anothers_place_is_found_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    let mut db = made(&path).await;
    for id in 0..40_i64 {
        sqlx::query("INSERT INTO t VALUES (?, ?)").bind(id).bind(vec![id as u8; 3_900]).execute(&mut db).await.unwrap();
    }
    db.close().await.unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    bytes.copy_within(9 * 4096..10 * 4096, 19 * 4096);
    std::fs::write(&path, bytes).unwrap();
    let mut db = connect(&path).await;
    assert!(is_damage(&rows(&mut db).await.unwrap_err()));
    let path = std::fs::canonicalize(path).unwrap();
    assert_eq!(damaged(&path), [Damage { database: path.clone(), in_log: false, page: 20 }]);
    assert_eq!(scan(&path).unwrap().unwrap().damaged, [20]);
}

/// SQLite verifies its log only when it replays it; a bit that flips in it while it is used is found too, also by a checkpoint.
#[tokio::test]
async fn a_flipped_bit_of_a_log_in_use_is_found() {
    use std::os::unix::fs::FileExt as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    let mut db = made(&path).await;
    sqlx::query("INSERT INTO t VALUES (1, ?)").bind(vec![7_u8; 50_000]).execute(&mut db).await.unwrap();
    let log = std::fs::OpenOptions::new().read(true).write(true).open(dir.path().join("a.db-wal")).unwrap();
    let at = log.metadata().unwrap().len() - 2_000;
    let mut byte = [0];
    log.read_exact_at(&mut byte, at).unwrap();
    log.write_all_at(&[byte[0] ^ 4], at).unwrap();
    let mut other = connect(&path).await;
    assert!(is_damage(&rows(&mut other).await.unwrap_err()));
    let checkpoint = sqlx::query("PRAGMA wal_checkpoint(PASSIVE)").fetch_one(&mut other).await.map(drop);
    assert!(is_damage(&checkpoint.unwrap_err()), "it is not brought into the file");
    assert!(damaged(&path).iter().all(|damage| damage.in_log));
}

#[tokio::test]
async fn a_file_without_sums_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    let mut db = SqliteConnection::connect_with(&options(&path).create_if_missing(true)).await.unwrap();
    run(&mut db, TABLE).await;
    run(&mut db, "PRAGMA journal_mode = WAL").await;
    for id in 0..99_i64 {
        sqlx::query("INSERT INTO t VALUES (?, ?)").bind(id).bind(vec![id as u8; 3_000]).execute(&mut db).await.unwrap();
    }
    let expected = rows(&mut db).await.unwrap();
    db.close().await.unwrap();
    assert_eq!((is_summed(&path).unwrap(), scan(&path).unwrap()), (Some(false), None));
    let mut db = plain(&path).await;
    is_sound(&mut db).await;
    assert_eq!(rows(&mut db).await.unwrap(), expected);
}

/// A copy is larger than the cache, so most of it is written before its first page, which says that there are sums.
#[tokio::test]
async fn a_copy_has_sums_wherever_it_is_copied_from() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.db");
    let mut db = plain_made(&path).await;
    let fill = "WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n WHERE n < 4000) INSERT INTO t SELECT n, randomblob(2000) FROM n";
    run(&mut db, fill).await;
    let expected = rows(&mut db).await.unwrap();
    db.close().await.unwrap();
    for from in ["a.db", "b.db"] {
        let (from, to) = (dir.path().join(from), dir.path().join(if from == "a.db" { "b.db" } else { "c.db" }));
        let mut db = connect(&from).await;
        reserve(&mut db).await.unwrap();
        sqlx::query("VACUUM INTO ?").bind(to.display().to_string()).execute(&mut db).await.unwrap();
        let scan = scan(&to).unwrap().unwrap();
        assert!(
            scan.pages > 2_000 && scan.damaged.is_empty() && scan.blank.is_empty(),
            "{} {:?}",
            scan.pages,
            scan.damaged
        );
        let mut db = plain(&to).await;
        is_sound(&mut db).await;
        assert_eq!(rows(&mut db).await.unwrap(), expected);
    }
}

async fn plain_made(path: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
    let mut db = SqliteConnection::connect_with(&options).await.unwrap();
    run(&mut db, TABLE).await;
    db
}

/// `cargo test --release -p covey-pages -- --ignored --nocapture what_it_costs`
#[tokio::test]
#[ignore = "it measures"]
async fn what_it_costs() {
    use std::time::Instant;
    let mut page = vec![7_u8; 4096];
    let began = Instant::now();
    for n in 0..1_000_000 {
        sum::put(n, &mut page);
    }
    println!("a sum of 4 KiB: {:.0} ns", began.elapsed().as_secs_f64() * 1e3);
    for round in 0..6 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.db");
        let (with, mut db) = if round % 2 == 0 {
            let mut db = plain_made(&path).await;
            run(&mut db, "PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0").await;
            ("without", db)
        } else {
            ("with   ", made(&path).await)
        };
        run(&mut db, "PRAGMA synchronous = NORMAL; PRAGMA cache_size = -16384").await;
        let (rows, began) = (vec![b'x'; 900], Instant::now());
        for commit in 0..400_i64 {
            run(&mut db, "BEGIN IMMEDIATE").await;
            for n in 0..50 {
                let id = (commit * 50 + n) * 7_919 % 20_011;
                sqlx::query("INSERT OR REPLACE INTO t VALUES (?, ?)")
                    .bind(id)
                    .bind(&rows[..])
                    .execute(&mut db)
                    .await
                    .unwrap();
            }
            run(&mut db, "COMMIT").await;
        }
        let written = began.elapsed();
        let frames = std::fs::metadata(dir.path().join("a.db-wal")).unwrap().len() / 4120;
        let began = Instant::now();
        run(&mut db, "PRAGMA wal_checkpoint(TRUNCATE)").await;
        let brought = began.elapsed();
        db.close().await.unwrap();
        let mut db = if round % 2 == 0 { plain(&path).await } else { connect(&path).await };
        let began = Instant::now();
        let bytes: i64 = sqlx::query_scalar("SELECT sum(length(body)) FROM t NOT INDEXED WHERE body > x'00'")
            .fetch_one(&mut db)
            .await
            .unwrap();
        println!(
            "{with} sums: 400 commits of 50 rows {written:.2?} ({frames} frames), checkpoint {brought:.0?}, read of {} MB {:.1?}",
            bytes >> 20,
            began.elapsed()
        );
    }
}
