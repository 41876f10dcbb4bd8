//! Benchmarks beside the peers.
