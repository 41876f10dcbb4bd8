//! What a process in a sandbox reaches: this program starts itself, enters a policy and becomes a shell.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, ExitCode},
};

use covey_sandbox::{Isolation, Policy, can_separate, enter, support};

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("--inside") => {
            let mut args = std::env::args().skip(2);
            let policy: Policy = serde_json::from_str(&args.next().unwrap()).unwrap();
            enter(&policy).unwrap();
            panic!("{}", Command::new("/bin/sh").args(["-c", &args.next().unwrap()]).exec());
        }
        Some("--separate") => return if can_separate() { ExitCode::SUCCESS } else { ExitCode::FAILURE },
        // Of the test runner.
        _ => {}
    }
    let mut helper = Command::new(std::env::current_exe().unwrap());
    let found = support(helper.arg("--separate"));
    if found.landlock == 0 {
        println!("no Landlock here: nothing is tested");
        return ExitCode::SUCCESS;
    }
    files_that_are_not_named_are_out_of_reach();
    other_processes_are_out_of_reach();
    if found.namespaces {
        what_is_hidden_below_a_readable_folder_is_empty();
        strict_has_no_network_and_refuses_calls();
    }
    ExitCode::SUCCESS
}

/// Whether a shell command ends well under a policy.
fn works(policy: &Policy, command: &str) -> bool {
    let mut inside = Command::new(std::env::current_exe().unwrap());
    let policy = serde_json::to_string(policy).unwrap();
    inside.args(["--inside", &policy, command]).output().unwrap().status.success()
}

fn at(isolation: Isolation) -> Policy {
    Policy { isolation, ..Policy::default() }
}

fn q(path: &Path) -> String {
    format!("'{}'", path.display())
}

/// A folder that is not one for temporary files.
fn elsewhere() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap()
}

fn files_that_are_not_named_are_out_of_reach() {
    let dir = elsewhere();
    let (secret, own) = (dir.path().join("secret"), dir.path().join("own"));
    fs::write(&secret, "s").unwrap();
    fs::create_dir(&own).unwrap();
    let read = format!("cat {}", q(&secret));
    let write = format!("echo x > {}", q(&own.join("file")));
    assert!(works(&at(Isolation::None), &read), "without a sandbox it is there");
    assert!(!works(&at(Isolation::Default), &read) && !works(&at(Isolation::Default), &write));
    let named = Policy { read: vec![secret.clone()], write: vec![own.clone()], ..at(Isolation::Default) };
    assert!(works(&named, &read) && works(&named, &write));
    assert!(!works(&named, &format!("echo x > {}", q(&secret))), "what may be read is not written");
    assert!(works(&named, "echo x > /tmp/covey-reach-$$ && rm /tmp/covey-reach-$$ && echo > /dev/null && ls /usr"));
    assert!(!works(&named, "echo x > /etc/covey-reach"));
    println!("files: ok");
}

fn other_processes_are_out_of_reach() {
    let policy = at(Isolation::Default);
    let own = std::process::id();
    assert!(works(&at(Isolation::None), &format!("cat /proc/{own}/environ && kill -0 {own}")));
    assert!(!works(&policy, &format!("cat /proc/{own}/environ")));
    assert!(!works(&policy, &format!("cat /proc/{own}/cmdline")));
    assert!(works(&policy, "exec cat /proc/self/environ"), "its own are there");
    let mut newer = Command::new(std::env::current_exe().unwrap());
    if support(newer.arg("--separate")).landlock >= 6 {
        assert!(!works(&policy, &format!("kill -0 {own}")), "nor are they sent signals");
    }
    println!("processes: ok");
}

fn what_is_hidden_below_a_readable_folder_is_empty() {
    let dir = tempfile::tempdir().unwrap();
    let (file, folder) = (dir.path().join("keys"), dir.path().join("data"));
    fs::write(&file, "s").unwrap();
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("inner"), "s").unwrap();
    let hide = Policy { hide: vec![file.clone(), folder.clone()], ..at(Isolation::Default) };
    assert!(works(&at(Isolation::Default), &format!("grep s {} {}", q(&file), q(&folder.join("inner")))));
    assert!(!works(&hide, &format!("grep s {}", q(&file))));
    assert!(!works(&hide, &format!("cat {}", q(&folder.join("inner")))));
    assert!(!works(&hide, &format!("umount {}", q(&folder))) || !works(&hide, "true"));
    assert!(works(&hide, &format!("echo x > {}", q(&dir.path().join("beside")))));
    assert_eq!(fs::read_to_string(&file).unwrap(), "s", "outside all is as it was");
    println!("hidden: ok");
}

fn strict_has_no_network_and_refuses_calls() {
    let strict = at(Isolation::Strict);
    assert!(works(&strict, "true"));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dial = format!("bash -c 'exec 3<>/dev/tcp/127.0.0.1/{}'", listener.local_addr().unwrap().port());
    assert!(works(&at(Isolation::Default), &dial) && !works(&strict, &dial));
    assert!(!works(&strict, "unshare -Ur true") && !works(&strict, "mount -t tmpfs none /tmp"));
    println!("strict: ok");
}
