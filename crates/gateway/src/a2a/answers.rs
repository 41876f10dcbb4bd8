//! Whole answers that one caller has not taken yet.
//!
//! A reader that does not read holds the answer that it asked for in memory, and one caller may have thousands of connections. So
//! each caller has room for so many bytes of answers; what finds none waits a while and is refused then. What an answer will have
//! is known only once it is made: few of one caller's are made at once.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, OnceLock},
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::{
    body::{Body, Bytes, HttpBody},
    http::Extensions,
    response::Response,
};
use covey_a2a::{Error, Kind};
use covey_domain::{CallerId, caps};
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// An answer waits so long for room that others of its caller have.
const PATIENCE: Duration = Duration::from_secs(5);
/// Room is counted in these, bytes.
const UNIT: usize = 1 << 10;
/// From so many callers on, those that have nothing are forgotten.
const CALLERS_MANY: usize = 64;

/// Answers by caller.
#[derive(Clone, Debug)]
pub(super) struct Answers {
    callers: Arc<Mutex<HashMap<CallerId, Arc<Room>>>>,
    patience: Duration,
}

impl Default for Answers {
    fn default() -> Self {
        Self { callers: Arc::default(), patience: PATIENCE }
    }
}

/// What one caller may have.
#[derive(Debug)]
struct Room {
    making: Arc<Semaphore>,
    units: Arc<Semaphore>,
}

/// Room of one answer, until all of it is written. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Held(
    #[expect(dead_code, reason = "it is there to be dropped")] Arc<(OwnedSemaphorePermit, Arc<Room>)>,
);

/// An answer that is being made.
#[derive(Debug)]
pub(super) struct Making {
    room: Arc<Room>,
    patience: Duration,
    _turn: Option<OwnedSemaphorePermit>,
}

impl Answers {
    fn room(&self, caller: &CallerId) -> Arc<Room> {
        let mut callers = self.callers.lock();
        if callers.len() >= CALLERS_MANY {
            callers.retain(|_, room| Arc::strong_count(room) > 1);
        }
        let new = || {
            let (making, units) = (caps::CALLER_ANSWERS_MADE_MAX, caps::CALLER_ANSWER_BYTES_MAX / UNIT);
            Arc::new(Room { making: Arc::new(Semaphore::new(making)), units: Arc::new(Semaphore::new(units)) })
        };
        callers.entry(caller.clone()).or_insert_with(new).clone()
    }

    /// The turn of an answer that is made from what is there.
    pub async fn make(&self, caller: &CallerId) -> Result<Making, Error> {
        let room = self.room(caller);
        let turn = tokio::time::timeout(self.patience, room.making.clone().acquire_owned()).await;
        // The semaphore is never closed.
        Ok(Making { _turn: turn.map_err(|_| none_left())?.ok(), patience: self.patience, room })
    }

    /// One whose work is done, and that has to be given.
    pub fn made(&self, caller: &CallerId) -> Making {
        Making { room: self.room(caller), patience: self.patience, _turn: None }
    }
}

impl Making {
    /// Room for so many bytes.
    pub async fn sized(self, bytes: usize) -> Result<Held, Error> {
        tokio::time::timeout(self.patience, self.given(bytes)).await.map_err(|_| none_left())
    }

    /// The same, however long it takes.
    pub async fn given(self, bytes: usize) -> Held {
        let units = (bytes / UNIT).min(caps::CALLER_ANSWER_BYTES_MAX / UNIT) as u32;
        match self.room.units.clone().acquire_many_owned(units).await {
            Ok(room) => Held(Arc::new((room, self.room))),
            // The semaphore is never closed.
            Err(_) => std::future::pending().await,
        }
    }
}

fn none_left() -> Error {
    let why = format!("answers of {} MiB wait to be read", caps::CALLER_ANSWER_BYTES_MAX >> 20);
    Error::new(Kind::Exhausted, why)
}

impl Held {
    /// Puts the room of an answer, where it has some, to where [`hold`] finds it.
    pub fn put(held: &OnceLock<Self>, extensions: &mut Extensions) {
        if let Some(held) = held.get() {
            extensions.insert(held.clone());
        }
    }
}

/// Has the body of a response keep the room that its extensions name until its last byte is written.
pub(super) fn hold(mut response: Response) -> Response {
    match response.extensions_mut().remove::<Held>() {
        Some(held) => response.map(|body| Body::new(Holding { body, held })),
        None => response,
    }
}

/// A body each of whose pieces has the room, since a connection keeps pieces that it cannot write.
struct Holding {
    body: Body,
    held: Held,
}

struct Piece {
    bytes: Bytes,
    _held: Held,
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl HttpBody for Holding {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        let held = &self.held;
        let hold = |bytes| Bytes::from_owner(Piece { bytes, _held: held.clone() });
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(hold))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse as _;

    use super::*;

    const MOST: usize = caps::CALLER_ANSWER_BYTES_MAX;

    fn hasty() -> Answers {
        Answers { patience: Duration::from_millis(20), ..Answers::default() }
    }

    #[tokio::test]
    async fn who_does_not_read_gets_so_much_and_others_as_much() {
        let (answers, loud, quiet) = (hasty(), CallerId::from("loud"), CallerId::from("quiet"));
        let mut response = "x".repeat(10).into_response();
        response.extensions_mut().insert(answers.make(&loud).await.unwrap().sized(MOST / 2).await.unwrap());
        let mut body = hold(response).into_body();
        let more = answers.make(&loud).await.unwrap().sized(MOST / 2).await.unwrap();
        let refused = answers.make(&loud).await.unwrap().sized(MOST).await;
        assert_eq!(refused.unwrap_err().kind, Kind::Exhausted);
        answers.make(&quiet).await.unwrap().sized(2 * MOST).await.unwrap();
        // The body is read, and its piece is still to be written.
        let frame = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.unwrap().unwrap();
        drop((body, more));
        assert!(answers.make(&loud).await.unwrap().sized(MOST).await.is_err());
        drop(frame);
        answers.make(&loud).await.unwrap().sized(3 * MOST).await.unwrap();
    }

    #[tokio::test]
    async fn few_are_made_at_once() {
        let (answers, caller) = (hasty(), CallerId::from("one"));
        let mut making = Vec::new();
        for _ in 0..caps::CALLER_ANSWERS_MADE_MAX {
            making.push(answers.make(&caller).await.unwrap());
        }
        assert_eq!(answers.make(&caller).await.unwrap_err().kind, Kind::Exhausted);
        answers.made(&caller).given(1).await;
        making.pop();
        answers.make(&caller).await.unwrap();
    }
}
