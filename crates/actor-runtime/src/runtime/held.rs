//! Bytes of the calls that an actor has accepted and not answered.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use covey_domain::caps;

use crate::turn::{Over, Turn};

/// Arguments up to this size are not counted: as many of them as a mailbox has places for are few bytes.
const SMALL: usize = caps::MAILBOX_BYTES_MAX / caps::MAILBOX_DEPTH_MAX / 8;

/// The count of one actor; made by its first large call.
#[derive(Default)]
pub(super) struct Held(Option<Arc<AtomicUsize>>);

impl Held {
    /// Counts a turn until it is over; `false` where [`caps::MAILBOX_BYTES_MAX`] does not hold it. A task has a turn of its own
    /// waiting for it, so it is always taken.
    pub fn admit(&mut self, turn: &mut Turn) -> bool {
        let bytes = covey_proto::size_of(&turn.invocation.args);
        if bytes <= SMALL || turn.sink.is_task() {
            return true;
        }
        let held = self.0.get_or_insert_default();
        let before = held.fetch_add(bytes, Ordering::Relaxed);
        if before > 0 && before + bytes > caps::MAILBOX_BYTES_MAX {
            held.fetch_sub(bytes, Ordering::Relaxed);
            return false;
        }
        let (held, over) = (held.clone(), std::mem::replace(&mut turn.over, Over(None)));
        turn.over = Over(Some(Box::new(move || {
            drop(over);
            held.fetch_sub(bytes, Ordering::Relaxed);
        })));
        true
    }
}

#[cfg(test)]
#[expect(clippy::disallowed_methods, reason = "what a test sends has an end")]
mod tests {
    use bytes::Bytes;
    use covey_proto::v1::Payload;
    use tokio::sync::mpsc;

    use super::*;
    use crate::{
        behavior::Invocation,
        turn::{Control, Out, Sink},
    };

    fn turn(bytes: usize) -> Turn {
        let (tx, _) = mpsc::unbounded_channel();
        let control = Control::new();
        let args = Payload { body: Bytes::from(vec![0; bytes]), ..Payload::default() };
        Turn {
            invocation: Invocation { method: String::new(), args, json: false, task: None, chain: String::new() },
            sink: Sink::call(Out::Lane(tx), 1, control.clone(), None),
            control,
            deadline: None,
            run_timeout: None,
            retry_on: Vec::new(),
            alone: false,
            over: Over(None),
        }
    }

    #[test]
    fn a_mailbox_holds_so_many_bytes_and_has_them_back_when_turns_are_over() {
        let mut held = Held::default();
        let third = caps::MAILBOX_BYTES_MAX / 3;
        let mut turns: Vec<_> = (0..3).map(|_| turn(third)).collect();
        assert!(turns.iter_mut().all(|turn| held.admit(turn)));
        assert!(!held.admit(&mut turn(third)));
        assert!(held.admit(&mut turn(SMALL)), "small ones are bounded by their number");
        drop(turns);
        assert_eq!(held.0.as_ref().unwrap().load(Ordering::Relaxed), 0);
        assert!(held.admit(&mut turn(third)));
    }
}
