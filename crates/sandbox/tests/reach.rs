//! What a process in a sandbox reaches: this program starts itself, enters a policy and becomes a shell.

use std::{
    fs,
    os::unix::process::CommandExt as _,
    path::Path,
    process::{Command, ExitCode},
};

use covey_sandbox::{Isolation, Policy, can_separate, enter, support};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some(how @ ("--inside" | "--plain")) => {
            let mut args = std::env::args().skip(2);
            let policy: Policy = serde_json::from_str(&args.next().unwrap()).unwrap();
            if how == "--plain" {
                refuse_namespaces();
                assert!(!can_separate());
            }
            let mut shell = Command::new("/bin/sh");
            shell.env_remove("TMPDIR");
            if let Some(temporary) = enter(&policy).unwrap() {
                shell.env("TMPDIR", temporary);
            }
            panic!("{}", shell.args(["-c", &args.next().unwrap()]).exec());
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
    what_is_hidden_is_out_of_reach_without_namespaces();
    if found.namespaces {
        what_is_hidden_below_a_readable_folder_is_empty();
        what_is_named_below_a_hidden_folder_is_there();
        strict_has_no_network_and_refuses_calls();
    }
    ExitCode::SUCCESS
}

/// Whether a shell command ends well under a policy.
fn works(policy: &Policy, command: &str) -> bool {
    ends_well("--inside", policy, command)
}

/// The same where this user may have no namespaces.
fn works_plain(policy: &Policy, command: &str) -> bool {
    ends_well("--plain", policy, command)
}

fn ends_well(how: &str, policy: &Policy, command: &str) -> bool {
    // A process starts in what it may change, where there is such a folder.
    let here = policy.write.first().map_or(Path::new("/"), |path| path.as_path());
    let mut inside = Command::new(std::env::current_exe().unwrap());
    let policy = serde_json::to_string(policy).unwrap();
    inside.args([how, &policy, command]).current_dir(here).output().unwrap().status.success()
}

/// As a machine does whose administrator wants no namespaces of users.
fn refuse_namespaces() {
    let calls = [(libc::SYS_unshare, vec![])].into_iter().collect();
    let (allow, refuse) = (SeccompAction::Allow, SeccompAction::Errno(libc::EPERM as u32));
    let filter = SeccompFilter::new(calls, allow, refuse, std::env::consts::ARCH.try_into().unwrap()).unwrap();
    let program: BpfProgram = filter.try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
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

/// A cluster's home in a folder for temporary files, with its keys, what its processes read and what they change.
fn home() -> (tempfile::TempDir, Policy) {
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    let at = |name: &str| dir.path().join(name);
    for folder in ["home", "home/run", "home/cache", "home/cache/mine", "home/cache/other", "own"] {
        fs::create_dir(at(folder)).unwrap();
    }
    for file in ["home/keys", "home/run/lease", "home/cache/mine/package", "home/cache/other/package"] {
        fs::write(at(file), "s").unwrap();
    }
    let policy = Policy {
        read: vec![at("home/run")],
        write: vec![at("home/cache/mine"), at("own")],
        hide: vec![at("home")],
        temporary: Some(at("own")),
        ..self::at(Isolation::Default)
    };
    (dir, policy)
}

/// What is so with namespaces and without.
fn is_out_of_reach(works: fn(&Policy, &str) -> bool) {
    let (dir, policy) = home();
    let at = |name: &str| q(&dir.path().join(name));
    assert!(!works(&policy, &format!("cat {}", at("home/keys"))));
    assert!(!works(&policy, &format!("echo x > {}", at("home/new"))));
    assert!(works(&policy, &format!("grep s {}", at("home/run/lease"))), "what is named is read");
    assert!(!works(&policy, &format!("echo x > {}", at("home/run/lease"))), "and not written");
    assert!(!works(&policy, &format!("rm -f {0}; test ! -e {0}", at("home/run/lease"))));
    assert!(!works(&policy, &format!("mv {} {}", at("home"), at("taken"))));
    assert!(!works(&policy, &format!("cat {}", at("home/cache/other/package"))));
    // It is started in a folder below the home, and steps out of it.
    assert!(!works(&policy, "cat ../other/package") && !works(&policy, "cat ../../keys"));
    assert!(works(&policy, &format!("grep s {0} && echo x > package && grep x {0}", at("home/cache/mine/package"))));
    let package = fs::read_to_string(dir.path().join("home/cache/mine/package")).unwrap();
    assert_eq!(package, "x\n", "it is the file itself");
    assert!(works(&policy, "f=$(mktemp) && echo x > $f && rm $f"), "temporary files have a place");
    assert_eq!(fs::read_to_string(dir.path().join("home/run/lease")).unwrap(), "s");
}

fn what_is_named_below_a_hidden_folder_is_there() {
    is_out_of_reach(works);
    // Keys that are made anew are another file of the same name.
    let (dir, policy) = home();
    let (keys, fresh) = (dir.path().join("home/keys"), dir.path().join("home/fresh"));
    let (seen, go) = (dir.path().join("own/seen"), dir.path().join("own/go"));
    let wait = format!("touch {}; until test -e {}; do sleep 0.01; done; cat {}", q(&seen), q(&go), q(&keys));
    let waiting = std::thread::spawn(move || works(&policy, &wait));
    while !seen.exists() {
        std::thread::yield_now();
    }
    fs::write(&fresh, "t").unwrap();
    fs::rename(&fresh, &keys).unwrap();
    fs::write(&go, "").unwrap();
    assert!(!waiting.join().unwrap());
    println!("named below hidden: ok");
}

fn what_is_hidden_is_out_of_reach_without_namespaces() {
    is_out_of_reach(works_plain);
    // Elsewhere, what lies beside it is there.
    let dir = elsewhere();
    let (keys, beside) = (dir.path().join("home/keys"), dir.path().join("beside"));
    fs::create_dir(dir.path().join("home")).unwrap();
    fs::write(&keys, "s").unwrap();
    fs::write(&beside, "s").unwrap();
    std::os::unix::fs::symlink(dir.path().join("home"), dir.path().join("link")).unwrap();
    let all = Policy { read: vec![dir.path().to_owned()], ..at(Isolation::Default) };
    let hide = Policy { hide: vec![dir.path().join("home")], ..all.clone() };
    assert!(works_plain(&all, &format!("grep s {} {}", q(&keys), q(&beside))));
    assert!(works_plain(&hide, &format!("grep s {}", q(&beside))));
    assert!(!works_plain(&hide, &format!("grep s {}", q(&keys))));
    assert!(!works_plain(&hide, &format!("grep s {}", q(&dir.path().join("link/keys")))));
    assert!(works_plain(&hide, "f=$(mktemp /tmp/covey-reach-XXXXXX) && rm $f"), "there is nothing to hide in /tmp");
    println!("hidden without namespaces: ok");
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
