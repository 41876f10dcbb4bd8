//! What a process that runs user code may reach. The worker says it ([`Policy`]); a helper between the worker and the code
//! puts it on itself ([`enter`]) and then becomes the code.
//!
//! | | none | default | strict |
//! |---|---|---|---|
//! | `no_new_privs` | | yes | yes |
//! | files: Landlock, what the policy names and the system read-only | | where the kernel has it | required |
//! | the cluster's own secrets below a readable folder: masked, in a mount namespace | | where it is allowed | where it is allowed |
//! | signals and abstract sockets of others, `ptrace`, `/proc` of others: Landlock | | where the kernel has it | required |
//! | network | yes | yes | none: a namespace without one, required |
//! | system calls that no agent needs: seccomp | | | refused, required |

mod enter;
mod seccomp;
mod support;
mod sys;

use std::path::PathBuf;

pub use enter::enter;
use serde::{Deserialize, Serialize};
pub use support::{Support, can_separate, support};

/// How much a process is kept from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Isolation {
    /// Nothing: it may do what the worker may.
    None,
    /// As much as this kernel allows without keeping usual code from working.
    #[default]
    Default,
    /// No network, fewer system calls; a process that cannot have all of it does not start.
    Strict,
}

impl Isolation {
    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Default => "default",
            Self::Strict => "strict",
        }
    }
}

impl std::str::FromStr for Isolation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        [Self::None, Self::Default, Self::Strict]
            .into_iter()
            .find(|level| level.name() == text)
            .ok_or_else(|| "use none, default or strict".to_owned())
    }
}

/// What one process may reach.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// How much.
    pub isolation: Isolation,
    /// Files and folders that it may read and run, beside the system's.
    pub read: Vec<PathBuf>,
    /// Those it may change too, beside the folders for temporary files.
    pub write: Vec<PathBuf>,
    /// Files and folders that it sees empty although they lie below one that it may read.
    pub hide: Vec<PathBuf>,
}

/// Folders of the system: programs, libraries, settings, what the machine is made of.
pub(crate) const SYSTEM: &[&str] = &[
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/etc",
    "/opt",
    "/nix/store",
    "/sys",
    "/run/systemd/resolve",
    "/run/current-system",
    "/proc/self",
    "/proc/sys",
    "/proc/driver",
    "/proc/cpuinfo",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/loadavg",
    "/proc/uptime",
    "/proc/version",
    "/proc/filesystems",
    "/proc/devices",
    "/proc/cgroups",
    "/proc/mounts",
    "/proc/net",
];

/// Places for temporary files.
pub(crate) const TEMPORARY: &[&str] = &["/tmp", "/var/tmp", "/dev/shm"];

/// Devices that usual code opens, and those of cards.
pub(crate) const DEVICES: &[&str] = &[
    "/dev/null",
    "/dev/zero",
    "/dev/full",
    "/dev/random",
    "/dev/urandom",
    "/dev/tty",
    "/dev/ptmx",
    "/dev/pts",
    "/dev/dri",
    "/dev/kfd",
    "/dev/nvidia-caps",
    "/dev/nvidiactl",
    "/dev/nvidia-uvm",
    "/dev/nvidia-uvm-tools",
    "/dev/nvidia-modeset",
];
/// Cards of a machine, by number.
pub(crate) const CARDS: u32 = 16;
