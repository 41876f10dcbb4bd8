//! A worker's lease, by the worker's own clock (L-1 of `docs/architecture.md`).
//!
//! The worker counts from the moment it *sent* the newest beat that the head answered; the head counts from the moment it
//! *heard* one. Sending comes before hearing, so the worker's lease ends first, however long a message was under way:
//!
//! ```text
//! worker  sends beat ─────────────→ hears the answer            must stop
//!         |←──────────── told_ms ───────────────────────────────→|
//! head              hears the beat, answers                              may give its work away
//!                   |←──────────── lease_ms ──────────────────────────────→|
//! ```
//!
//! `told_ms` is a tenth shorter than `lease_ms` ([`told_ms`]), for clocks that differ in speed and for the time that stopping takes.

use covey_domain::Millis;

/// What a worker is told of a lease that the head keeps for `lease_ms`.
pub fn told_ms(lease_ms: u64) -> u64 {
    lease_ms - lease_ms / 10
}

/// The worker's end. Times are of one clock of the worker that only rises and goes on while the machine sleeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Lease {
    length_ms: u64,
    until: Option<Millis>,
}

impl Lease {
    /// The head answered a hello that was sent at `asked`.
    pub fn granted(&mut self, asked: Millis, length_ms: u64) {
        *self = Self { length_ms, until: Some(asked + length_ms) };
    }

    /// The head answered a beat that was sent at `sent`. A lease that has ended stays so: only a hello begins another.
    pub fn renewed(&mut self, sent: Millis, now: Millis) {
        if !self.is_over(now) {
            self.until = self.until.map(|until| until.max(sent + self.length_ms));
        }
    }

    /// Until when this worker may act; `None`: it has no lease.
    pub fn until(&self) -> Option<Millis> {
        self.until
    }

    /// It had a lease and may not act any more.
    pub fn is_over(&self, now: Millis) -> bool {
        self.until.is_some_and(|until| until <= now)
    }

    /// Everything here has stopped: there is nothing left that a lease would be for.
    pub fn end(&mut self) {
        self.until = None;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_answer_counts_from_the_beat_it_answers() {
        let mut lease = Lease::default();
        assert!(!lease.is_over(u64::MAX), "nothing was granted, nothing ends");
        lease.granted(1_000, 900);
        lease.renewed(1_500, 1_800);
        assert_eq!(lease.until(), Some(2_400));
        lease.renewed(1_400, 1_900);
        assert_eq!(lease.until(), Some(2_400), "answers that overtake each other take nothing back");
        assert!(!lease.is_over(2_399) && lease.is_over(2_400));
        lease.renewed(2_300, 2_401);
        assert!(lease.is_over(2_401), "an answer that comes too late renews nothing");
        lease.end();
        assert!(!lease.is_over(2_401));
    }

    proptest! {
        /// However long messages are under way, the worker has stopped before the head gives its work away.
        #[test]
        fn the_worker_stops_first(
            beats in prop::collection::vec((1u64..2_000, 0u64..9_000, 0u64..9_000), 1..50),
            lease_ms in 10u64..20_000,
        ) {
            let mut worker = Lease::default();
            worker.granted(0, told_ms(lease_ms));
            let (mut sent, mut head_until) = (0, lease_ms);
            // Hearing and answers are in the order of the beats, as on any stream.
            let (mut heard, mut answered) = (0, 0);
            for (pause, up, down) in beats {
                sent += pause;
                heard = (sent + up).max(heard);
                if heard >= head_until {
                    break;
                }
                head_until = heard + lease_ms;
                answered = (heard + down).max(answered);
                worker.renewed(sent, answered);
                prop_assert!(worker.until().is_some_and(|until| until <= head_until));
            }
        }
    }
}
