//! What is tried again when the head is away, and when.

use std::time::Duration;

use covey_domain::Retry;

/// First and longest pause between two tries.
const PAUSE_FIRST: Duration = Duration::from_millis(50);
const PAUSE_LAST: Duration = Duration::from_secs(2);

/// Pauses that double, each drawn between a half and the whole of it, so that drivers of one head do not come back at the
/// same moment.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self { next: PAUSE_FIRST }
    }
}

impl Backoff {
    /// The next pause.
    pub fn pause(&mut self) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(PAUSE_LAST);
        whole.mul_f64(0.5 + rand::random::<f64>() / 2.0)
    }
}

/// A pause of `retry`, drawn at random.
pub(crate) fn pause(retry: &Retry, tried: u32) -> Duration {
    Duration::from_millis(retry.pause_ms(tried, rand::random()))
}

/// Whether a request may be sent again although it may have been carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// The same again changes nothing more: it reads, or it carries its own id, or it says how something shall be.
    Same,
    /// The same again, where what it ends may be gone by then.
    Ends,
    /// Only while it has surely not been carried out.
    Never,
}

impl Repeat {
    /// Of a method of service `covey.v1.Covey`.
    pub fn of(method: &str) -> Self {
        match method {
            "StopActor" | "LeaveTopic" | "ForgetReminder" | "RemoveKey" | "RemoveSecret" => Self::Ends,
            // A key that nobody was told, a file with a piece twice, an agent asked twice for its card.
            "AddKey" | "AddJoinToken" | "RotateKey" | "PutArtifact" | "ConnectAgent" => Self::Never,
            _ => Self::Same,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_bound_and_are_never_the_whole_story() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..20).map(|_| backoff.pause()).collect();
        assert!(pauses[0] >= PAUSE_FIRST / 2 && pauses[0] <= PAUSE_FIRST);
        assert!(pauses.iter().all(|pause| *pause <= PAUSE_LAST));
        assert!(pauses[19] >= PAUSE_LAST / 2);
        assert!(pauses[10..].windows(2).any(|two| two[0] != two[1]), "drivers would come back together");
    }
}
