//! Bodies that have an end: of requests that come too slowly, and of answers to a key that opens nothing any more.

use std::{
    future::Future as _,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum::body::{Body, Bytes, HttpBody};
use hyper::body::{Frame, SizeHint};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};

/// Between two pieces of a request's body.
const PIECE: Duration = Duration::from_secs(20);
/// For all of it.
const WHOLE: Duration = Duration::from_secs(10 * 60);

/// A request's body that comes within a time.
struct Timed {
    body: Body,
    until: Instant,
    /// Runs while a piece is waited for.
    waits: Option<Pin<Box<Sleep>>>,
}

/// The body, or an error when its pieces come too slowly.
pub(crate) fn timed(body: Body) -> Body {
    Body::new(Timed { body, until: Instant::now() + WHOLE, waits: None })
}

impl HttpBody for Timed {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if let Poll::Ready(piece) = Pin::new(&mut self.body).poll_frame(cx) {
            self.waits = None;
            return Poll::Ready(piece);
        }
        let until = self.until.min(Instant::now() + PIECE);
        let waits = self.waits.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        ready!(waits.as_mut().poll(cx));
        Poll::Ready(Some(Err(axum::Error::new("the request's body comes too slowly"))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Pieces of an answer that go out between two looks at whether it is broken off. A look takes a lock that all answers to a
/// key share.
const PIECES: u32 = 32;

/// An answer's body that is broken off.
struct Cut {
    body: Body,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Pieces that go out before the next look.
    left: u32,
}

/// The body, until `cut`.
pub(crate) fn until(body: Body, cut: CancellationToken) -> Body {
    Body::new(Cut { body, cut: Box::pin(cut.cancelled_owned()), left: 0 })
}

impl HttpBody for Cut {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let next = Pin::new(&mut self.body).poll_frame(cx);
        if next.is_ready() && self.left > 0 {
            self.left -= 1;
            return next;
        }
        // Who waits for a piece waits for the end of the key too.
        if self.cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Some(Err(axum::Error::new("the key opens nothing any more"))));
        }
        self.left = PIECES;
        next
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
    use futures::{FutureExt as _, StreamExt as _};

    use super::*;

    #[tokio::test]
    async fn a_body_is_cut_where_it_stands() {
        let cut = CancellationToken::new();
        let pieces = futures::stream::iter([Ok::<_, std::io::Error>("a")]).chain(futures::stream::pending());
        let mut body = until(Body::from_stream(pieces), cut.clone()).into_data_stream();
        assert_eq!(body.next().await.unwrap().unwrap(), "a");
        assert!(body.next().now_or_never().is_none(), "it waits");
        cut.cancel();
        assert!(body.next().await.unwrap().is_err());
    }

    #[tokio::test]
    async fn a_body_that_never_waits_is_cut_too() {
        let cut = CancellationToken::new();
        let pieces = futures::stream::repeat_with(|| Ok::<_, std::io::Error>("a"));
        let mut body = until(Body::from_stream(pieces), cut.clone()).into_data_stream();
        assert!(body.next().await.unwrap().is_ok());
        cut.cancel();
        let more = body.take_while(|piece| std::future::ready(piece.is_ok())).count().await;
        assert!(more <= PIECES as usize, "{more}");
    }

    #[tokio::test]
    async fn a_body_has_a_time() {
        let slow = Timed {
            body: Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>()),
            until: Instant::now(),
            waits: None,
        };
        assert!(Body::new(slow).into_data_stream().next().await.unwrap().is_err());
        let whole = axum::body::to_bytes(timed(Body::from("all of it")), 100).await.unwrap();
        assert_eq!(whole, "all of it");
    }
}
