//! What a process that runs user code may reach. The worker says it ([`Policy`]); a helper between the worker and the code
//! puts it on itself ([`enter`]) and then becomes the code.
//!
//! | | none | default | strict |
//! |---|---|---|---|
//! | `no_new_privs` | | yes | yes |
//! | files: Landlock, what the policy names and the system read-only | | where the kernel has it | required |
//! | the cluster's own files below a readable folder: covered in a mount namespace, or not given | | yes | yes |
//! | signals and abstract sockets of others, `ptrace`, `/proc` of others: Landlock | | where the kernel has it | required |
//! | network | yes | yes | none: a namespace without one, required |
//! | system calls that no agent needs: seccomp | | | refused, required |

mod enter;
mod hide;
mod seccomp;
mod support;
mod sys;

use std::path::PathBuf;

pub use covey_domain::Isolation;
pub use enter::enter;
use serde::{Deserialize, Serialize};
pub use support::{Support, can_separate, support};

/// What one process may reach.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// How much.
    pub isolation: Isolation,
    /// Files and folders that it may read and run, beside the system's.
    pub read: Vec<PathBuf>,
    /// Those it may change too, beside the folders for temporary files.
    pub write: Vec<PathBuf>,
    /// Files and folders that it does not reach although they lie below one that it may read, but for what `read` and `write`
    /// name below these.
    pub hide: Vec<PathBuf>,
    /// Where its temporary files go when the usual folder holds one of these, and there are no mount namespaces to cover it in.
    #[serde(default)]
    pub temporary: Option<PathBuf>,
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
