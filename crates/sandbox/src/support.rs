//! What this machine can do.

use std::process::{Command, Stdio};

use landlock::{ABI, Access as _, AccessFs, CompatLevel, Compatible as _, Ruleset, RulesetAttr as _};

use crate::{enter, sys};

/// What there is of what [`crate::enter`] uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Support {
    /// Version of Landlock's interface; 0 = none.
    pub landlock: u32,
    /// Mount and network namespaces, as the current user.
    pub namespaces: bool,
    /// This user is root: what is isolated has all files' permissions.
    pub root: bool,
}

/// Looks; `helper` is a command that ends well when it could make namespaces ([`crate::can_separate`]).
pub fn support(helper: &mut Command) -> Support {
    let quiet = helper.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let namespaces = quiet.status().is_ok_and(|status| status.success());
    Support { landlock: landlock(), namespaces, root: sys::who().0 == 0 }
}

/// The newest version whose rights the kernel takes.
fn landlock() -> u32 {
    let known = [(6, ABI::V6), (5, ABI::V5), (4, ABI::V4), (3, ABI::V3), (2, ABI::V2), (1, ABI::V1)];
    let takes = |abi: ABI| {
        let rules = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
        let rules = rules.handle_access(AccessFs::from_all(abi));
        rules.and_then(Ruleset::create).is_ok()
    };
    known.into_iter().find(|(_, abi)| takes(*abi)).map_or(0, |(version, _)| version)
}

/// Whether this process could have namespaces of its own. It has them from then on: for a process that ends.
pub fn can_separate() -> bool {
    enter::separate(libc::CLONE_NEWNS | libc::CLONE_NEWNET).is_ok()
}
