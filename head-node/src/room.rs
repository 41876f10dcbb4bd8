//! What the owner does with inputs while the store has no room: what only reads is answered, what can be refused is refused with
//! the reason, and the rest, which workers say, waits in order until there is room. A worker's link goes on beside it (`crate::handing`).

use covey_domain::{Error, ErrorKind};
use covey_store::Capacity;

use crate::owner::Input;

/// What becomes of an input.
pub(crate) enum Fate {
    /// It changes nothing that is stored.
    Taken(Box<Input>),
    /// Its asker was told why not.
    Refused,
    /// It waits.
    Held(Box<Input>),
}

fn why(capacity: Capacity) -> Error {
    match capacity {
        Capacity::DiskFull => Error::new(ErrorKind::StorageFull, "the head's disk is full, so it takes nothing new")
            .hint("make room on the disk of the head; what runs and what is read goes on")
            .executed(Some(false)),
        Capacity::Behind | Capacity::Free => Error::new(ErrorKind::Overloaded, "the head's disk does not keep up")
            .hint("try again later")
            .executed(Some(false)),
    }
}

/// Judges an input while the store has `capacity`, which is not [`Capacity::Free`].
pub(crate) fn judge(input: Input, capacity: Capacity) -> Fate {
    macro_rules! refuse {
        ($tx:expr) => {{
            // The asker may have gone.
            let _ = $tx.send(Err(why(capacity)));
            Fate::Refused
        }};
    }
    match input {
        Input::Register(_, tx) => refuse!(tx),
        Input::CreateActor(_, tx) => refuse!(tx),
        Input::CreateGang(_, _, tx) => refuse!(tx),
        Input::Link(_, _, tx) => refuse!(tx),
        Input::StopActor(_, _, tx) => refuse!(tx),
        Input::Submit(_, _, tx) => refuse!(tx),
        Input::CancelTask(id, _, reason, tx) if capacity == Capacity::DiskFull => {
            let error = why(capacity)
                .hint("if it runs, its worker is told to stop it, and its end is kept once there is room; one that waits has to be cancelled again");
            // The asker may have gone.
            let _ = tx.send(Err(error));
            Fate::Taken(Box::new(Input::StopTurn(id, reason)))
        }
        Input::CancelTask(_, _, _, tx) => refuse!(tx),
        Input::Say(_, tx) => refuse!(tx),
        Input::Drain(_, _, tx) => refuse!(tx),
        Input::SaveState(_, _, _, _, tx) => refuse!(tx),
        Input::SetReminder(_, _, _, tx) => refuse!(tx),
        Input::JoinTopic(_, _, _, tx) => refuse!(tx),
        input @ (Input::ListActors(..)
        | Input::DeadLetters(_)
        | Input::Actor(..)
        | Input::ActorNamed(..)
        | Input::ActiveTask(..)
        | Input::TasksOn(..)
        | Input::Heard(..)
        | Input::ModelsKnown(_)
        | Input::Topics(_)
        | Input::StopTurn(..)
        | Input::Status(_)) => Fate::Taken(Box::new(input)),
        input => Fate::Held(Box::new(input)),
    }
}
