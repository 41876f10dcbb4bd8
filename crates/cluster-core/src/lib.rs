//! Decisions of the cluster, as pure machines: time, ids and dice are handed in, effects come out.
//!
//! * [`head::Head`] owns the truth: nodes, actors, tasks. Its shell feeds it inputs, journals what [`head::Output::Write`]
//!   says and only then carries out the rest, in order.
//! * [`scheduler::plan`] is a function from a problem to a plan.
//! * [`lease`] is the worker's end of its lease: until when it may act.
//! * [`link`] holds both ends of the worker's link: what must be kept, sent again, and taken once.
//!
//! No tokio, no clock, no I/O: the simulated world in `testbed` runs this very code.

pub mod head;
pub mod lease;
pub mod link;
pub mod scheduler;
pub mod sessions;

mod dead_letters;
mod directory;
mod drain;
mod fair;
mod links;
mod liveness;
mod membership;
mod messages;
mod pending;
mod placing;
mod recovery;
mod reminders;
mod retries;
mod room;
mod stuck;
mod tasks;
pub mod topics;
mod turns;
mod unserved;
mod virtuals;

pub use drain::MOVE_WITHIN_MS;
pub use head::{Head, HeadConfig, Output};
