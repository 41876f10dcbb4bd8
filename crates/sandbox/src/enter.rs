//! Puts a policy on the calling thread, which then becomes the code that it is for: everything here is inherited.

use std::{fs, io, path::Path};

use landlock::{
    ABI, Access as _, AccessFs, CompatLevel, Compatible as _, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetStatus, Scope,
};
use libc::{CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWUSER, c_int};

use crate::{CARDS, DEVICES, Isolation, Policy, SYSTEM, TEMPORARY, seccomp, sys};

/// The newest of Landlock that is asked for; an older kernel gives what it has.
const NEWEST: ABI = ABI::V6;

/// Keeps this thread, and what it becomes, from all that the policy does not name. For a process that has one thread.
pub fn enter(policy: &Policy) -> Result<(), String> {
    let strict = match policy.isolation {
        Isolation::None => return Ok(()),
        Isolation::Default => false,
        Isolation::Strict => true,
    };
    sys::no_new_privileges().map_err(|e| format!("no_new_privs: {e}"))?;
    let hidden: Vec<_> = policy.hide.iter().filter(|path| is_reachable(policy, path)).collect();
    let spaces = if hidden.is_empty() { 0 } else { CLONE_NEWNS } | if strict { CLONE_NEWNET } else { 0 };
    if spaces != 0 {
        match separate(spaces) {
            Ok(()) => hidden.into_iter().for_each(|path| mask(path)),
            Err(error) if strict => return Err(format!("a namespace without a network: {error}")),
            // `covey doctor` says it.
            Err(_) => {}
        }
    }
    let ruled = files(policy).map_err(|e| e.to_string())?;
    if strict {
        if ruled == RulesetStatus::NotEnforced {
            return Err("this kernel has no Landlock".to_owned());
        }
        seccomp::refuse()?;
    }
    Ok(())
}

/// Whether a file would be readable if it were not hidden.
fn is_reachable(policy: &Policy, path: &Path) -> bool {
    let temporary = TEMPORARY.iter().map(Path::new);
    let system = SYSTEM.iter().map(Path::new);
    let named = policy.read.iter().chain(&policy.write).map(|p| p.as_path());
    path.exists() && temporary.chain(system).chain(named).any(|root| path.starts_with(root))
}

/// Namespaces of its own; where that takes privileges, in a user namespace of its own in which it is who it was.
pub(crate) fn separate(spaces: c_int) -> io::Result<()> {
    let (user, group) = sys::who();
    if sys::unshare(spaces).is_err() {
        sys::unshare(spaces | CLONE_NEWUSER)?;
        // Without this the kernel takes no mapping of groups.
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("{user} {user} 1"))?;
        fs::write("/proc/self/gid_map", format!("{group} {group} 1"))?;
    }
    if spaces & CLONE_NEWNS != 0 {
        sys::keep_mounts()?;
    }
    Ok(())
}

/// An empty folder or file over this one.
fn mask(path: &Path) {
    let masked = if path.is_dir() { sys::cover_folder(path) } else { sys::cover_file(path) };
    if let Err(error) = masked {
        eprintln!("covey: `{}` could not be hidden: {error}", path.display());
    }
}

fn files(policy: &Policy) -> Result<RulesetStatus, landlock::RulesetError> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    let cards = (0..CARDS).map(|n| format!("/dev/nvidia{n}"));
    let devices: Vec<String> = DEVICES.iter().map(|path| (*path).to_owned()).chain(cards).collect();
    let read = SYSTEM.iter().map(Path::new).chain(policy.read.iter().map(|p| p.as_path()));
    let write = TEMPORARY.iter().map(Path::new).chain(policy.write.iter().map(|p| p.as_path()));
    let write = write.chain(devices.iter().map(Path::new));
    let wanted = read
        .map(|path| (path, AccessFs::from_read(NEWEST)))
        .chain(write.map(|path| (path, AccessFs::from_all(NEWEST))));
    for (path, access) in wanted {
        // What is not there needs no rule.
        if let Ok(opened) = PathFd::new(path) {
            rules = rules.add_rule(PathBeneath::new(opened, access))?;
        }
    }
    Ok(rules.restrict_self()?.ruleset)
}
