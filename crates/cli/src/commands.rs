//! The commands, a file each.

pub(crate) mod bench;
pub(crate) mod chat;
pub(crate) mod dead_letters;
pub(crate) mod drain;
pub(crate) mod job;
pub(crate) mod key;
pub(crate) mod logs;
pub(crate) mod model;
pub(crate) mod status;
pub(crate) mod submit;
pub(crate) mod token;
pub(crate) mod top;
pub(crate) mod up;
pub(crate) mod upkeep;

/// Whole seconds from a time, in milliseconds since the epoch, to now.
fn seconds_since(at_ms: u64) -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
    now.saturating_sub(at_ms) / 1000
}
