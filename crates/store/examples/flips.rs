//! Flips bits of a store's file, one at a time, each in a copy of its own, and opens the copy as a head does:
//! `flips FOLDER FILE TIMES SEED ACKNOWLEDGED`. For `benches/chaos`.
//!
//! `ACKNOWLEDGED` is a file with the ids of tasks that somebody was told of, one a line. With one wrong bit each of them must
//! be there, with the record and the events it had; or the damage must be named, by an error with the file and the place or by
//! what was set aside of that task. Prints what came of it as JSON.

use std::{
    collections::BTreeMap,
    error::Error as Any,
    fs,
    path::{Path, PathBuf},
};

use covey_domain::TaskId;
use covey_store::{Error, Store, upkeep};

/// What is compared of each task: its record and its events.
type Tasks = BTreeMap<TaskId, String>;

/// What came of the openings.
#[derive(Default)]
struct Count {
    /// The store did not open, and the error names file and place.
    refused: u64,
    /// It opened, and all tasks were as they were.
    whole: u64,
    /// It opened, and a task that could not be read was named.
    named: u64,
    /// `covey doctor` found it.
    doctor: u64,
    /// Where a task was gone, or another one, without a word.
    silent: Vec<String>,
}

/// A copy of a store without its lock. The ballast is never written to, so that it is shared.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let name = entry.file_name();
        match name.to_string_lossy() {
            name if !name.starts_with("covey.db") || name.ends_with("-lock") => {}
            name if name.ends_with("-ballast") => fs::hard_link(entry.path(), to.join(&*name))?,
            _ => drop(fs::copy(entry.path(), to.join(name))?),
        }
    }
    Ok(())
}

/// All of a task that a client can see, or why that is not to be had.
async fn seen(store: &Store, id: &TaskId) -> Result<String, Error> {
    let record = store.task(id).await?;
    let (mut events, mut after) = (Vec::new(), 0);
    while let Some(last) = store.events(id, after).await?.last().map(|event| event.seq) {
        events.extend(store.events(id, after).await?);
        after = last;
    }
    Ok(format!("{record:?} {events:?}"))
}

/// Opens a store as a head does and looks at the tasks. `Err`: it cannot be opened; of a task: it cannot be read.
async fn look<'a>(
    path: &Path,
    ids: impl Iterator<Item = &'a TaskId>,
) -> Result<BTreeMap<TaskId, Result<String, String>>, Error> {
    let store = Store::open(path).await?;
    let snapshot = store.begin().await?;
    let mut all = BTreeMap::new();
    for id in ids {
        let mut found = seen(&store, id).await.map_err(|error| error.to_string());
        if let Some(why) = snapshot.tasks.iter().find(|task| task.record.id == *id).and_then(|task| task.broken.clone())
        {
            found = Err(why);
        }
        all.insert(id.clone(), found);
    }
    Ok(all)
}

fn names_a_place(error: &Error) -> bool {
    matches!(
        error,
        Error::Damaged { .. }
            | Error::Corrupt { .. }
            | Error::Missing { .. }
            | Error::Foreign { .. }
            | Error::Version { .. }
    )
}

/// One flip. Bits are chosen among all that are in use of the file.
async fn flip(
    whole: &Path,
    at: &Path,
    file: &str,
    bit: usize,
    tasks: &Tasks,
    count: &mut Count,
) -> Result<(), Box<dyn Any>> {
    copy(whole, at)?;
    let hurt = at.join(file);
    let mut body = fs::read(&hurt)?;
    body[bit / 8] ^= 1 << (bit % 8);
    fs::write(&hurt, body)?;
    let path = at.join("covey.db");
    let told = upkeep::examine(&path).await;
    count.doctor += u64::from(told.as_ref().map_or(true, |report| !report.errors.is_empty()));
    match look(&path, tasks.keys()).await {
        Err(error) if names_a_place(&error) => count.refused += 1,
        Err(error) => count.silent.push(format!("byte {} bit {}: {error}", bit / 8, bit % 8)),
        Ok(found) => {
            let lost =
                tasks.iter().filter(|(id, was)| found.get(*id).is_none_or(|is| is.as_ref().is_ok_and(|is| is != *was)));
            let lost: Vec<_> = lost.map(|(id, _)| id.to_string()).collect();
            if !lost.is_empty() {
                count.silent.push(format!("byte {} bit {}: {} tasks, first {}", bit / 8, bit % 8, lost.len(), lost[0]));
            } else if found.values().any(Result::is_err) {
                count.named += 1;
            } else {
                count.whole += 1;
            }
        }
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Any>> {
    let args: Vec<_> = std::env::args().skip(1).collect();
    let [folder, file, times, seed, acknowledged] = &args[..] else {
        return Err("flips FOLDER FILE TIMES SEED ACKNOWLEDGED".into());
    };
    let (whole, times, mut seed) = (PathBuf::from(folder), times.parse::<u64>()?, seed.parse::<u64>()?);
    let ids: Vec<TaskId> = fs::read_to_string(acknowledged)?.lines().map(TaskId::from).collect();
    let room = tempfile::tempdir_in(whole.parent().unwrap_or(&whole))?;
    let at = room.path().join("whole");
    copy(&whole, &at)?;
    let tasks = look(&at.join("covey.db"), ids.iter()).await?;
    let tasks: Tasks = tasks.into_iter().map(|(id, seen)| Ok((id, seen?))).collect::<Result<_, String>>()?;
    if let Some(id) = tasks.iter().find(|(_, seen)| seen.starts_with("None")).map(|(id, _)| id) {
        return Err(format!("task `{id}` was acknowledged and is not there, with no bit flipped").into());
    }
    let used = fs::read(whole.join(file))?.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let mut count = Count::default();
    for round in 0..times {
        // Knuth's numbers.
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let at = room.path().join(round.to_string());
        flip(&whole, &at, file, (seed >> 11) as usize % (used * 8), &tasks, &mut count).await?;
        fs::remove_dir_all(&at)?;
    }
    let Count { refused, whole, named, doctor, silent } = count;
    let (bytes, tasks) = (used, tasks.len());
    println!(
        "{}",
        serde_json::json!({
            "refused": refused, "whole": whole, "named": named, "doctor": doctor, "silent": silent,
            "bytes": bytes, "tasks": tasks,
        })
    );
    Ok(())
}
