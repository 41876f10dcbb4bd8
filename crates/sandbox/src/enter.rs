//! Puts a policy on the calling thread, which then becomes the code that it is for: everything here is inherited.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use landlock::{
    ABI, Access as _, AccessFs, CompatLevel, Compatible as _, PathBeneath, PathFd, Ruleset, RulesetAttr as _,
    RulesetCreatedAttr as _, RulesetStatus, Scope,
};
use libc::{CLONE_NEWNET, CLONE_NEWNS, CLONE_NEWUSER, c_int};

use crate::{CARDS, DEVICES, Isolation, Policy, SYSTEM, TEMPORARY, hide, seccomp, sys};

/// The newest of Landlock that is asked for; an older kernel gives what it has.
const NEWEST: ABI = ABI::V6;

/// Keeps this thread, and what it becomes, from all that the policy does not name. For a process that has one thread. Gives the
/// folder for temporary files where that is not the usual one: a hidden folder lies there and could not be covered.
pub fn enter(policy: &Policy) -> Result<Option<PathBuf>, String> {
    let strict = match policy.isolation {
        Isolation::None => return Ok(None),
        Isolation::Default => false,
        Isolation::Strict => true,
    };
    sys::no_new_privileges().map_err(|e| format!("no_new_privs: {e}"))?;
    let mut bare = hide::hidden(policy);
    let spaces = if bare.is_empty() { 0 } else { CLONE_NEWNS } | if strict { CLONE_NEWNET } else { 0 };
    if spaces != 0 {
        match separate(spaces) {
            Ok(()) => {
                let below =
                    std::env::current_dir().ok().filter(|here| bare.iter().any(|hidden| here.starts_with(hidden)));
                bare.retain(|hidden| hide::mask(policy, hidden).is_err());
                // It stands below the cover still, and what lies beside it would be one step up.
                if let Some(here) = below {
                    let back = std::env::set_current_dir(here).or_else(|_| std::env::set_current_dir("/"));
                    back.map_err(|e| format!("the folder that it starts in: {e}"))?;
                }
            }
            Err(error) if strict => return Err(format!("a namespace without a network: {error}")),
            // `covey doctor` says it.
            Err(_) => {}
        }
    }
    let ruled = files(policy, &bare).map_err(|e| e.to_string())?;
    if strict {
        if ruled == RulesetStatus::NotEnforced {
            return Err("this kernel has no Landlock".to_owned());
        }
        seccomp::refuse()?;
    }
    let elsewhere = TEMPORARY.iter().any(|folder| holds(Path::new(folder), &bare));
    Ok(policy.temporary.clone().filter(|_| elsewhere))
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

/// Whether a folder for temporary files holds something that is cut out. It is not given in parts: nothing could be made in it.
fn holds(folder: &Path, out: &[PathBuf]) -> bool {
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    out.iter().any(|hidden| hidden.starts_with(&folder))
}

/// Gives what the policy names, without what is to be cut `out` of it.
fn files(policy: &Policy, out: &[PathBuf]) -> Result<RulesetStatus, landlock::RulesetError> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    let cards = (0..CARDS).map(|n| format!("/dev/nvidia{n}"));
    let devices: Vec<String> = DEVICES.iter().map(|path| (*path).to_owned()).chain(cards).collect();
    let read = SYSTEM.iter().map(Path::new).chain(policy.read.iter().map(|p| p.as_path()));
    let temporary = TEMPORARY.iter().map(Path::new).filter(|folder| !holds(folder, out));
    let write = temporary.chain(policy.write.iter().map(|p| p.as_path()));
    let write = write.chain(devices.iter().map(Path::new));
    let wanted = read
        .map(|path| (path, AccessFs::from_read(NEWEST)))
        .chain(write.map(|path| (path, AccessFs::from_all(NEWEST))));
    for (root, access) in wanted {
        for path in hide::cut(root, out) {
            // What is not there needs no rule.
            if let Ok(opened) = PathFd::new(path) {
                rules = rules.add_rule(PathBeneath::new(opened, access))?;
            }
        }
    }
    Ok(rules.restrict_self()?.ruleset)
}
