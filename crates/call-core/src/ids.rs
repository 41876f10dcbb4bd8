//! Tables by the number of a call.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

use crate::CallId;

/// A table by the number of a call. Nobody outside chooses these numbers, so they are spread by one multiplication (Knuth, *The Art of
/// Computer Programming* 3, 6.4) instead of a hash that withstands an attacker: each call is looked up several times.
pub type IdMap<T> = HashMap<CallId, T, BuildHasherDefault<IdHasher>>;

/// Spreads numbers that follow each other.
#[derive(Clone, Copy, Debug, Default)]
pub struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        // A table looks at the lowest bits and at the highest.
        self.0 ^ (self.0 >> 32)
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = (self.0 ^ number).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(u64::from(*byte)));
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, hash::Hash as _};

    use super::*;

    #[test]
    fn numbers_that_follow_each_other_or_skip_are_spread() {
        for step in [1, 16, 1 << 12, 1 << 32] {
            let spread: HashSet<_> = (0..1_024_u64)
                .map(|i| {
                    let mut hasher = IdHasher::default();
                    (i * step).hash(&mut hasher);
                    hasher.finish() % 1_024
                })
                .collect();
            assert!(spread.len() > 500, "{step}: {} of 1024", spread.len());
        }
    }
}
