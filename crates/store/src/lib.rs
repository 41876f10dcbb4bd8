//! Durability behind one trait: SQLite, and memory for tests.
