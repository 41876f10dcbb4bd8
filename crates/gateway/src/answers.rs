//! Whole answers that one caller has not taken yet.
//!
//! A reader that does not read holds the answer that it asked for in memory, and one caller may have thousands of connections. So
//! each caller has room for so many bytes of answers. What an answer will have is known only once it is made: few of one caller's
//! are made at once, and one that finds no room is dropped and made again once it has some. So who waits holds nothing.

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
use covey_domain::{CallerId, Error, ErrorKind, caps};
use http_body::{Frame, SizeHint};
use parking_lot::Mutex;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, timeout_at},
};

/// What only reads waits so long for its turn and for room that others of its caller have.
const PATIENCE: Duration = Duration::from_secs(5);
/// What tells how something ended waits longer: it has been done.
const PATIENCE_DONE: Duration = Duration::from_secs(60);
/// Room is counted in these, bytes.
const UNIT: usize = 1 << 10;
/// What is made from more than this is large, bytes: one such answer of a caller is made at a time.
const LARGE: usize = 256 << 10;
/// From so many callers on, those that have nothing are forgotten.
const CALLERS_MANY: usize = 64;

/// An answer as a protocol writes it, and how many bytes it holds until it is read.
pub(crate) type Written<T, E> = Result<(T, usize), E>;

/// A caller has no room for one more answer: others wait to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl Full {
    /// What is said of it.
    pub fn message(self) -> String {
        format!("answers of {} MiB wait to be read", caps::CALLER_ANSWER_BYTES_MAX >> 20)
    }
}

impl From<Full> for Error {
    fn from(full: Full) -> Self {
        Self::new(ErrorKind::Overloaded, full.message())
    }
}

/// Answers by caller.
#[derive(Clone, Debug)]
pub(crate) struct Answers {
    callers: Arc<Mutex<HashMap<CallerId, Arc<Room>>>>,
    patience: Duration,
    patience_done: Duration,
}

impl Default for Answers {
    fn default() -> Self {
        Self { callers: Arc::default(), patience: PATIENCE, patience_done: PATIENCE_DONE }
    }
}

/// What one caller may have.
#[derive(Debug)]
struct Room {
    turns: Arc<Semaphore>,
    large: Arc<Semaphore>,
    units: Arc<Semaphore>,
}

/// The turn of an answer that is being made.
#[derive(Debug)]
pub(crate) struct Turn {
    room: Arc<Room>,
    until: Instant,
    large: Option<OwnedSemaphorePermit>,
    _turn: OwnedSemaphorePermit,
}

impl Turn {
    /// Whether what has so many bytes may be held now.
    pub fn holds(&self, bytes: usize) -> bool {
        bytes <= LARGE || self.large.is_some()
    }

    /// What it is made from has so many bytes by now; what is large waits for others that are.
    pub async fn weighs(&mut self, bytes: usize) -> Result<(), Full> {
        if !self.holds(bytes) {
            self.large = Some(self.room.acquire(&self.room.large, 1, self.until).await?);
        }
        Ok(())
    }
}

/// Room of one answer, until all of it is written. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Held(Arc<(OwnedSemaphorePermit, Arc<Room>)>);

impl Answers {
    fn room(&self, caller: &CallerId) -> Arc<Room> {
        let mut callers = self.callers.lock();
        if callers.len() >= CALLERS_MANY {
            callers.retain(|_, room| Arc::strong_count(room) > 1);
        }
        let new = || {
            let of = |permits| Arc::new(Semaphore::new(permits));
            let (turns, units) = (caps::CALLER_ANSWERS_MADE_MAX, caps::CALLER_ANSWER_BYTES_MAX / UNIT);
            Arc::new(Room { turns: of(turns), large: of(1), units: of(units) })
        };
        callers.entry(caller.clone()).or_insert_with(new).clone()
    }

    /// Room for an answer that is made already, where there is some now.
    pub fn at_once(&self, caller: &CallerId, bytes: usize) -> Option<Held> {
        self.room(caller).at_once(bytes)
    }

    /// The answer to what only reads: refused where its caller does not read others for a while.
    pub async fn read<T, E, F>(&self, caller: &CallerId, make: impl FnMut(Turn) -> F) -> Result<(T, Held), E>
    where
        E: From<Full>,
        F: Future<Output = Written<T, E>>,
    {
        self.made(caller, self.patience, make).await
    }

    /// The answer to what has been done, which waits longer.
    pub async fn done<T, E, F>(&self, caller: &CallerId, make: impl FnMut(Turn) -> F) -> Result<(T, Held), E>
    where
        E: From<Full>,
        F: Future<Output = Written<T, E>>,
    {
        self.made(caller, self.patience_done, make).await
    }

    /// Makes an answer when it is its turn, and as often as it needs to have room once it is made.
    async fn made<T, E, F>(
        &self,
        caller: &CallerId,
        patience: Duration,
        mut make: impl FnMut(Turn) -> F,
    ) -> Result<(T, Held), E>
    where
        E: From<Full>,
        F: Future<Output = Written<T, E>>,
    {
        let (room, until) = (self.room(caller), Instant::now() + patience);
        let mut held: Option<Held> = None;
        loop {
            let turn = room.acquire(&room.turns, 1, until).await?;
            let (answer, bytes) = make(Turn { room: room.clone(), until, large: None, _turn: turn }).await?;
            if let Some(held) = held.take().filter(|held| held.has(bytes)).or_else(|| room.at_once(bytes)) {
                return Ok((answer, held));
            }
            drop(answer);
            held = Some(Held(Arc::new((room.acquire(&room.units, units(bytes), until).await?, room.clone()))));
        }
    }
}

impl Room {
    async fn acquire(&self, of: &Arc<Semaphore>, count: u32, until: Instant) -> Result<OwnedSemaphorePermit, Full> {
        let permit = timeout_at(until, of.clone().acquire_many_owned(count)).await;
        // None of them is ever closed.
        permit.ok().and_then(Result::ok).ok_or(Full)
    }

    fn at_once(self: &Arc<Self>, bytes: usize) -> Option<Held> {
        let permit = self.units.clone().try_acquire_many_owned(units(bytes)).ok()?;
        Some(Held(Arc::new((permit, self.clone()))))
    }
}

/// What an answer of so many bytes has; one that is larger than all the room has all of it.
fn units(bytes: usize) -> u32 {
    (bytes / UNIT).min(caps::CALLER_ANSWER_BYTES_MAX / UNIT) as u32
}

impl Held {
    /// Whether so many bytes find room in it.
    fn has(&self, bytes: usize) -> bool {
        self.0.0.num_permits() >= units(bytes) as usize
    }

    /// Puts the room of an answer, where it has some, to where [`hold`] finds it.
    pub fn put(held: &OnceLock<Self>, extensions: &mut Extensions) {
        if let Some(held) = held.get() {
            extensions.insert(held.clone());
        }
    }
}

/// Has the body of a response keep the room that its extensions name until its last byte is written.
pub(crate) fn hold(mut response: Response) -> Response {
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
    use std::sync::atomic::{AtomicUsize, Ordering};

    use axum::response::IntoResponse as _;

    use super::*;

    const MOST: usize = caps::CALLER_ANSWER_BYTES_MAX;

    fn hasty() -> Answers {
        Answers { patience: Duration::from_millis(20), ..Answers::default() }
    }

    /// Room for an answer of so many bytes.
    async fn sized(answers: &Answers, caller: &CallerId, bytes: usize) -> Result<Held, Full> {
        answers.read(caller, async |_| Ok(((), bytes))).await.map(|((), held)| held)
    }

    #[tokio::test]
    async fn who_does_not_read_gets_so_much_and_others_as_much() {
        let (answers, loud, quiet) = (hasty(), CallerId::from("loud"), CallerId::from("quiet"));
        let mut response = "x".repeat(10).into_response();
        response.extensions_mut().insert(sized(&answers, &loud, MOST / 2).await.unwrap());
        let mut body = hold(response).into_body();
        let more = sized(&answers, &loud, MOST / 2).await.unwrap();
        assert_eq!(sized(&answers, &loud, MOST).await.unwrap_err(), Full);
        sized(&answers, &quiet, 2 * MOST).await.unwrap();
        // The body is read, and its piece is still to be written.
        let frame = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.unwrap().unwrap();
        drop((body, more));
        assert!(sized(&answers, &loud, MOST).await.is_err());
        drop(frame);
        sized(&answers, &loud, 3 * MOST).await.unwrap();
    }

    #[tokio::test]
    async fn who_waits_for_room_holds_nothing_and_makes_its_answer_again() {
        let (answers, caller) = (Answers::default(), CallerId::from("one"));
        let all = sized(&answers, &caller, MOST).await.unwrap();
        let (made, there) = (Arc::new(AtomicUsize::new(0)), Arc::new(()));
        let waiting: Vec<_> = (0..100)
            .map(|_| {
                let (answers, caller, made, there) = (answers.clone(), caller.clone(), made.clone(), there.clone());
                tokio::spawn(async move {
                    let make = async |_| {
                        made.fetch_add(1, Ordering::Relaxed);
                        Ok::<_, Full>((there.clone(), MOST / 100))
                    };
                    answers.done(&caller, make).await.map(|(answer, held)| drop((answer, held)))
                })
            })
            .collect();
        while made.load(Ordering::Relaxed) < 100 {
            tokio::task::yield_now().await;
        }
        tokio::task::yield_now().await;
        assert_eq!(Arc::strong_count(&there), 101, "each has its own, and none an answer");
        drop(all);
        for one in waiting {
            one.await.unwrap().unwrap();
        }
        assert_eq!(made.load(Ordering::Relaxed), 200);
    }

    #[tokio::test]
    async fn few_are_made_at_once() {
        let (answers, caller) = (hasty(), CallerId::from("one"));
        let (making, go) = (Arc::new(Semaphore::new(0)), Arc::new(Semaphore::new(0)));
        let all: Vec<_> = (0..=caps::CALLER_ANSWERS_MADE_MAX)
            .map(|_| {
                let (answers, caller, making, go) = (answers.clone(), caller.clone(), making.clone(), go.clone());
                tokio::spawn(async move {
                    let make = async |_| {
                        making.add_permits(1);
                        go.acquire().await.unwrap().forget();
                        Ok::<_, Full>(((), 1))
                    };
                    answers.read(&caller, make).await.map(drop)
                })
            })
            .collect();
        making.acquire_many(caps::CALLER_ANSWERS_MADE_MAX as u32).await.unwrap().forget();
        let (ended, _, others) = futures::future::select_all(all).await;
        assert_eq!(ended.unwrap().unwrap_err(), Full);
        go.add_permits(others.len());
        for one in others {
            one.await.unwrap().unwrap();
        }
        assert!(making.try_acquire().is_err());
    }

    #[tokio::test]
    async fn of_large_ones_one_is_made_at_a_time_and_small_ones_pass() {
        let (answers, caller) = (hasty(), CallerId::from("one"));
        let make = async |mut turn: Turn| {
            turn.weighs(LARGE + 1).await?;
            let other =
                answers.read(&caller, async |mut turn: Turn| turn.weighs(2 * LARGE).await.map(|()| ((), 1))).await;
            assert_eq!(other.unwrap_err(), Full);
            answers.read(&caller, async |mut turn: Turn| turn.weighs(LARGE).await.map(|()| ((), 1))).await?;
            Ok::<_, Full>(((), 1))
        };
        // The one whose turn it is keeps its place, however often it is weighed.
        answers.done(&caller, make).await.unwrap();
        let again = async |mut turn: Turn| {
            turn.weighs(LARGE + 1).await?;
            turn.weighs(2 * LARGE).await.map(|()| ((), 1))
        };
        answers.read(&caller, again).await.unwrap();
    }
}
