//! A simulated world, a sandbox of real nodes, the invariants.
