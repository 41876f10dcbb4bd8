//! The compute process.
