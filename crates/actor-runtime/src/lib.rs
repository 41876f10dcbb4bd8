//! Live actors on a worker. The only door to kameo, to Python processes and to model upstreams.
//!
//! [`Runtime`] starts and stops actors, takes calls and tasks, and says through one channel of [`Report`]s what
//! happens. Each actor is a kameo actor with a bounded mailbox around a [`Behavior`]: native Rust, a prompt around a
//! model, or an object in a Python process.

mod ahead;
mod asks;
mod behavior;
mod elsewhere;
mod envs;
mod files;
mod job;
mod launch;
mod llm;
mod memory;
mod memos;
mod models;
mod native;
mod objects;
mod output;
mod outward;
mod printed;
mod python;
mod recent;
mod runtime;
mod turn;

pub use ahead::Ahead;
pub use behavior::{Behavior, Invocation};
pub use covey_inference::{Compute, Format};
pub use covey_sandbox::Isolation;
pub use job::JobSpec;
pub use launch::LaunchConfig;
pub use models::{Models, ModelsConfig, RemoteInfer, Upstream};
pub use native::Registry;
pub use objects::{Objects, ObjectsConfig};
pub use outward::Outward;
pub use printed::Printed;
pub use python::{Python, find as find_python};
pub use runtime::{Lane, Report, Runtime, RuntimeConfig, Snapshot};
pub use turn::{Inbox, Sink};
