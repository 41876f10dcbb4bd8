//! The Rust client; Python and the command line stand on it.
