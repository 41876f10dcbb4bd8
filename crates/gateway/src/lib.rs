//! Every client protocol: decode to commands, encode from events.
