//! A store of version 8 is raised, and at each step of that its process is killed, or the disk is full.
//!
//! The steps are those of the process that opens the store (this program again, in `raises`), as a library before libc counts
//! them: files made, written, synced, cut, renamed and removed in the store's folder, by whichever thread.

use std::{
    path::Path,
    process::{Command, ExitStatus},
};

use super::{
    upgrade::{fixture, is_raised},
    *,
};

/// Which store the other process opens.
const STORE: &str = "COVEY_TEST_RAISES";

/// Builds the library that counts; `None` where there is no compiler.
fn library(folder: &Path) -> Option<PathBuf> {
    let built = folder.join("steps.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/tests/steps.c");
    let compiler = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&built).arg(source).arg("-ldl").status();
    compiler.is_ok_and(|status| status.success()).then_some(built)
}

/// The other process; alone it is no test.
#[tokio::test]
async fn raises() {
    if let Some(path) = std::env::var_os(STORE) {
        let opened = Store::open(Path::new(&path)).await;
        std::process::exit(if opened.is_ok() { 0 } else { 1 });
    }
}

/// What came of one opening: how the process ended, and whether it got as far as the step.
fn opens(library: &Path, path: &Path, step: usize, does: &str) -> (ExitStatus, bool) {
    let reached = library.with_file_name("reached");
    let _ = std::fs::remove_file(&reached);
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["tests::raise::raises", "--exact"]).env(STORE, path).env("LD_PRELOAD", library);
    command.env("COVEY_STEPS_IN", path.parent().unwrap()).env("COVEY_STEP", step.to_string());
    command.env("COVEY_STEP_DOES", does).env("COVEY_STEP_REACHED", &reached);
    let output = command.output().unwrap();
    (output.status, reached.exists())
}

/// Does this at each step in turn, and looks at what is left, until there are no more steps.
async fn at_each_step(does: &str, fits: impl Fn(ExitStatus) -> bool) {
    let tools = tempfile::tempdir().unwrap();
    let Some(library) = library(tools.path()) else {
        eprintln!("no C compiler: not tested");
        return;
    };
    let (mut old, mut new) = (0, 0);
    for step in 1.. {
        let (dir, path) = fixture("v8-plain");
        let (status, reached) = opens(&library, &path, step, does);
        if !reached {
            assert!(status.success(), "{does}: with no fault at all");
            break;
        }
        assert!(fits(status), "{does} at step {step}: {status}");
        // The old file or the new one, whole.
        match covey_pages::is_summed(&path).unwrap() {
            Some(true) => new += 1,
            Some(false) => old += 1,
            None => panic!("{does} at step {step}: there are no tables"),
        }
        is_raised(&path).await;
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        let strange = left.iter().find(|name| name.to_string_lossy().contains("-summed"));
        assert_eq!(strange, None, "{does} at step {step}");
    }
    assert!(old > 20 && new > 0, "{old} times the old tables, {new} times the new ones");
    println!("{does}: {old} times the old tables were left, {new} times the new ones");
}

fn is_killed(status: ExitStatus) -> bool {
    std::os::unix::process::ExitStatusExt::signal(&status) == Some(9)
}

#[tokio::test]
async fn killed_at_any_step_of_the_raise_a_store_is_the_old_one_or_the_new_one() {
    at_each_step("kill", is_killed).await;
}

#[tokio::test]
async fn killed_in_the_middle_of_any_write_of_the_raise_a_store_is_the_old_one_or_the_new_one() {
    at_each_step("tear", is_killed).await;
}

#[tokio::test]
async fn one_step_of_the_raise_that_finds_no_room_costs_nothing() {
    at_each_step("full", |status| status.code().is_some()).await;
}

#[tokio::test]
async fn a_disk_that_is_full_from_any_step_of_the_raise_on_costs_nothing() {
    at_each_step("full-on", |status| status.code().is_some()).await;
}
