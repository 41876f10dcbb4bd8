//! The nouns of Covey: ids, events, tasks, agents, resources, errors.
//!
//! Pure: no tokio, no clock, no randomness, no I/O. Time arrives as [`Millis`]; ids are minted by whoever owns the
//! thing. What is here is shared by at least two crates; everything else stays with its only user.

pub mod agent;
pub mod caps;
pub mod dead_letter;
pub mod depth;
pub mod error;
pub mod event;
pub mod hook;
pub mod ids;
pub mod infer;
pub mod isolation;
pub mod json;
pub mod log;
pub mod resources;
pub mod retry;
pub mod secret;
pub mod shown;
pub mod status;
pub mod task;

pub use agent::{AgentKind, AgentSpec, Gang, Skill};
pub use dead_letter::DeadLetter;
pub use error::{Error, ErrorKind};
pub use event::{Envelope, TaskEvent};
pub use hook::{Hook, HookState};
pub use ids::*;
pub use isolation::Isolation;
pub use resources::Resources;
pub use retry::Retry;
pub use task::{TaskRecord, TaskState};

/// Milliseconds since the Unix epoch where a human reads it, since process start where only differences count.
pub type Millis = u64;
