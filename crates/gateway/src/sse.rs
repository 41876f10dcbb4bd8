//! Server-sent events: one way to write a stream, whatever protocol says what is in it.

use std::{convert::Infallible, io::Write as _, sync::Arc, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{HeaderName, HeaderValue, header},
    response::{IntoResponse as _, Response},
};
use futures::{
    FutureExt as _, StreamExt as _,
    stream::{BoxStream, Fuse},
};
use tokio::runtime::Handle;
use tokio_util::task::AbortOnDropHandle;

use crate::follow::StreamItem;

/// Items that are there already go in one piece up to about this size, bytes: a reader that is behind costs fewer writes.
const PIECE: usize = 16 << 10;
/// A stream that is silent for so long says that it is there.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The next piece of a stream: all items that are there, up to about [`PIECE`]. `None`: none came within [`KEEP_ALIVE`]. An
/// empty one: there are none any more.
async fn next_piece<T, P>(items: &mut Fuse<BoxStream<'static, T>>, put: &P) -> Option<Vec<u8>>
where
    P: Fn(T, &mut Vec<u8>),
{
    let first = tokio::time::timeout(KEEP_ALIVE, items.next()).await.ok()?;
    let Some(first) = first else { return Some(Vec::new()) };
    let mut piece = Vec::with_capacity(512);
    put(first, &mut piece);
    while piece.len() < PIECE
        && let Some(Some(more)) = items.next().now_or_never()
    {
        put(more, &mut piece);
    }
    Some(piece)
}

/// A response of events: `put` writes each whole, with its empty line. Proxies neither hold it back nor take it for dead. While a
/// reader is behind, its pieces are made in the background: two hundred who begin at once do not stand before others.
pub(crate) fn stream<T: Send + 'static>(
    background: &Handle,
    items: BoxStream<'static, T>,
    put: impl Fn(T, &mut Vec<u8>) + Send + Sync + 'static,
) -> Response {
    let (background, mut items, put) = (background.clone(), items.fuse(), Arc::new(put));
    let pieces = async_stream::stream! {
        let mut is_behind = false;
        loop {
            let piece = if is_behind {
                let put = put.clone();
                let made = background.spawn(async move {
                    let piece = next_piece(&mut items, &*put).await;
                    (items, piece)
                });
                // It ends with its reader.
                match AbortOnDropHandle::new(made).await {
                    Ok((rest, piece)) => {
                        items = rest;
                        piece
                    }
                    // The process ends, or the writing panicked: the reader comes back.
                    Err(_) => return,
                }
            } else {
                next_piece(&mut items, &*put).await
            };
            let Some(piece) = piece else {
                is_behind = false;
                yield Ok::<_, Infallible>(Bytes::from_static(b": keep-alive\n\n"));
                continue;
            };
            if piece.is_empty() {
                return;
            }
            is_behind = piece.len() >= PIECE;
            yield Ok(piece.into());
        }
    };
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    (headers, Body::from_stream(pieces)).into_response()
}

/// A response of what [`follow`](crate::follow::follow) gives: each frame with its cursor as `id`, so that `Last-Event-ID` goes on
/// behind it. `write` and `fail` write the other lines of a frame, and of an error, with which a stream that breaks off ends; neither
/// writes the end of its last line.
pub(crate) fn followed<F: Send + 'static, E: Send + 'static>(
    background: &Handle,
    frames: BoxStream<'static, Result<StreamItem<F>, E>>,
    write: impl Fn(StreamItem<F>, &mut Vec<u8>) + Send + Sync + 'static,
    fail: impl Fn(&E, &mut Vec<u8>) + Send + Sync + 'static,
) -> Response {
    let put = move |told: Result<StreamItem<F>, E>, piece: &mut Vec<u8>| {
        match told {
            Ok(told) => {
                // A vector takes all that is written to it.
                let _ = writeln!(piece, "id: {}", told.cursor);
                write(told, piece);
            }
            Err(error) => fail(&error, piece),
        }
        piece.extend(b"\n\n");
    };
    stream(background, frames, put)
}

#[cfg(test)]
mod tests {
    use futures::stream;

    use super::*;

    #[tokio::test]
    async fn pieces_are_made_in_the_background_while_a_reader_is_behind() {
        let mut background = tokio::runtime::Builder::new_multi_thread();
        let background = background.worker_threads(1).thread_name("long").enable_all().build().unwrap();
        let (more, live) = tokio::sync::mpsc::channel(1);
        let live = stream::unfold(live, |mut live| async { Some((live.recv().await?, live)) });
        // Seven pieces are there.
        let items = stream::iter(0..100).chain(live).boxed();
        let put = |_: u64, piece: &mut Vec<u8>| {
            let long = std::thread::current().name() == Some("long");
            piece.extend([if long { b'L' } else { b'S' }; 1 << 10]);
        };
        let mut pieces = super::stream(background.handle(), items, put).into_body().into_data_stream();
        let mut made = String::new();
        let mut bytes = 0;
        while bytes < 100 << 10 {
            let piece = pieces.next().await.unwrap().unwrap();
            let (short, long) = (piece.contains(&b'S'), piece.contains(&b'L'));
            assert!(short != long, "by one thread");
            made.push(if long { 'L' } else { 'S' });
            bytes += piece.len();
        }
        assert_eq!(made, "SLLLLLL");
        more.send(0).await.unwrap();
        assert!(pieces.next().await.unwrap().unwrap().contains(&b'S'), "it has caught up");
        drop(more);
        assert!(pieces.next().await.is_none());
        background.shutdown_background();
    }
}
