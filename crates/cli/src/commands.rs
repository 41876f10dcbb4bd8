//! The commands, a file each.

pub(crate) mod chat;
pub(crate) mod dead_letters;
pub(crate) mod drain;
pub(crate) mod job;
pub(crate) mod logs;
pub(crate) mod model;
pub(crate) mod status;
pub(crate) mod submit;
pub(crate) mod token;
pub(crate) mod top;
pub(crate) mod up;
