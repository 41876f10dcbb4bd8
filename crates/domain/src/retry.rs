//! When a failed call, function or task is tried again, and after which pause.

use serde::{Deserialize, Serialize};

use crate::caps;

/// Which exceptions of an agent are worth another try, how often, and how long to wait before it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Retry {
    /// Further tries.
    pub max: u32,
    /// Exceptions as `module.name`; subclasses count.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub on: Vec<String>,
    /// Bound of the first pause, milliseconds; it doubles with each try. 0 = [`caps::RETRY_BACKOFF_MS`].
    pub backoff_ms: u64,
    /// Bound of every pause, milliseconds. 0 = [`caps::RETRY_BACKOFF_MAX_MS`].
    pub backoff_max_ms: u64,
}

impl Retry {
    /// The pause before try number `tried` + 1, milliseconds: full jitter, from nothing to a bound that doubles.
    /// `dice` is any number, drawn evenly. (Brooker, "Exponential backoff and jitter", 2015.)
    pub fn pause_ms(&self, tried: u32, dice: u64) -> u64 {
        let or = |value: u64, default: u64| if value == 0 { default } else { value };
        let most = or(self.backoff_max_ms, caps::RETRY_BACKOFF_MAX_MS);
        let bound = or(self.backoff_ms, caps::RETRY_BACKOFF_MS).saturating_mul(1 << tried.min(20)).min(most);
        dice % (bound + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_bound_and_are_drawn_from_nothing_on() {
        let retry = Retry { backoff_ms: 100, backoff_max_ms: 500, ..Retry::default() };
        let most = |tried| (0..2_000).map(|dice| retry.pause_ms(tried, dice)).max().unwrap();
        assert_eq!([most(0), most(1), most(2), most(3), most(60)], [100, 200, 400, 500, 500]);
        assert_eq!(retry.pause_ms(3, 0), 0);
    }
}
