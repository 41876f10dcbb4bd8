//! What clients may hold of a port: connections, an idle one's time, a reader's pace.

use std::{
    collections::HashMap,
    future::Future as _,
    io,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use covey_domain::caps;
use hyper::body::{Body, Frame, SizeHint};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
    time::{Instant, Sleep},
};

use super::{offences::source_of, stalled};

/// A client that takes nothing of what it is sent for so long is cut off. Streams of tasks go on where they were.
pub(super) const STALLED: Duration = Duration::from_secs(30);
/// Bytes of an answer that are handed out at once. Of a stream whose reader takes nothing so much is held behind its back.
const PIECE: usize = 64 << 10;
/// Bytes of an answer that are handed out before others have the thread: a body that is there, and a client that takes it, would keep
/// it for megabytes.
const BURST: usize = 4 * PIECE;

/// Connections of one port.
#[derive(Debug)]
pub(super) struct Connections {
    all: AtomicUsize,
    all_max: usize,
    by_address: Mutex<HashMap<IpAddr, usize>>,
}

/// One connection's place among them.
pub(super) struct Place {
    among: Arc<Connections>,
    /// None for a proxy here: it is not held to what one client may have.
    address: Option<IpAddr>,
}

impl Connections {
    /// As many as this process may have files, less what it needs itself.
    pub fn new() -> Arc<Self> {
        let files = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let files =
            files.lines().find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next()?.parse().ok());
        let all_max = files.map_or(caps::CONNECTIONS_MAX, |files: usize| caps::CONNECTIONS_MAX.min(files / 4 * 3));
        Arc::new(Self { all: AtomicUsize::new(0), all_max, by_address: Mutex::default() })
    }

    /// A place for one more; `None`: there are too many, of all or of this address.
    pub fn enter(self: &Arc<Self>, from: IpAddr) -> Option<Place> {
        let address = source_of(from);
        if self.all.fetch_add(1, Ordering::Relaxed) >= self.all_max {
            self.all.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let mut place = Place { among: self.clone(), address: None };
        if let Some(address) = address {
            let mut known = self.by_address.lock();
            let count = known.entry(address).or_default();
            if *count >= caps::CONNECTIONS_PER_ADDRESS_MAX {
                return None;
            }
            *count += 1;
            drop(known);
            place.address = Some(address);
        }
        Some(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.among.all.fetch_sub(1, Ordering::Relaxed);
        let Some(address) = self.address else { return };
        let mut known = self.among.by_address.lock();
        if let Some(count) = known.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                known.remove(&address);
            }
        }
    }
}

/// Requests that a connection has open: how many now, and whether there was one. Told whenever that changes.
#[derive(Clone)]
pub(super) struct Requests(Arc<watch::Sender<(usize, bool)>>);

impl Requests {
    pub fn new() -> Self {
        Self(Arc::new(watch::Sender::new((0, false))))
    }

    /// One more, until what is returned is dropped.
    pub fn begin(&self) -> Request {
        self.0.send_modify(|(open, any)| (*open, *any) = (*open + 1, true));
        Request(self.clone())
    }

    /// Returns when there was no request for too long: `first` before the first one, `idle` between two.
    pub async fn idle(&self, first: Duration, idle: Duration) {
        let mut changes = self.0.subscribe();
        loop {
            let (open, any) = *changes.borrow_and_update();
            if open > 0 {
                let _ = changes.changed().await;
                continue;
            }
            let pause = if any { idle } else { first };
            if tokio::time::timeout(pause, changes.changed()).await.is_err() {
                return;
            }
        }
    }
}

/// One request that is open.
pub(super) struct Request(Requests);

impl Drop for Request {
    fn drop(&mut self) {
        self.0.0.send_modify(|(open, _)| *open -= 1);
    }
}

/// An answer's body, in pieces of at most [`PIECE`]; its request is open until it is over.
pub struct Counted<B> {
    body: B,
    /// Of a piece that was larger.
    rest: Bytes,
    /// Handed out since others had the thread.
    burst: usize,
    _request: Request,
}

impl<B> Counted<B> {
    pub(super) fn new(body: B, request: Request) -> Self {
        stalled::offered();
        Self { body, rest: Bytes::new(), burst: 0, _request: request }
    }
}

impl<B: Body + Unpin> Counted<B> {
    fn next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        if self.rest.is_empty() {
            let Some(frame) = ready!(Pin::new(&mut self.body).poll_frame(cx)?) else { return Poll::Ready(None) };
            let frame = frame.map_data(|mut data| data.copy_to_bytes(data.remaining()));
            match frame.into_data() {
                Ok(data) if data.len() > PIECE => self.rest = data,
                Ok(data) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
            }
        }
        let piece = self.rest.split_to(self.rest.len().min(PIECE));
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

impl<B: Body + Unpin> Body for Counted<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        stalled::asked();
        if self.burst >= BURST {
            self.burst = 0;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let next = self.next(cx);
        match &next {
            Poll::Ready(piece) => {
                stalled::offered();
                let piece = piece.as_ref().and_then(|piece| piece.as_ref().ok()?.data_ref());
                self.burst += piece.map_or(0, Bytes::len);
            }
            Poll::Pending => self.burst = 0,
        }
        next
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (own, rest) = (self.body.size_hint(), self.rest.len() as u64);
        let mut hint = SizeHint::new();
        hint.set_lower(own.lower() + rest);
        if let Some(upper) = own.upper() {
            hint.set_upper(upper + rest);
        }
        hint
    }
}

/// What is told apart by its first bytes, with these put back; a client that does not read is cut off.
pub(super) struct Paced<I> {
    inner: I,
    first: Bytes,
    /// Runs while something cannot be written.
    stalled: Option<Pin<Box<Sleep>>>,
    patience: Duration,
}

impl<I> Paced<I> {
    pub fn new(inner: I, first: Bytes) -> Self {
        Self { inner, first, stalled: None, patience: STALLED }
    }

    /// What came of writing, unless that has been pending for too long.
    fn paced<T>(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.stalled = None;
            return written;
        }
        let until = Instant::now() + self.patience;
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(until)));
        ready!(stalled.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing")))
    }
}

impl<I: AsyncRead + Unpin> AsyncRead for Paced<I> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.first.is_empty() {
            let count = self.first.len().min(into.remaining());
            into.put_slice(&self.first.split_to(count));
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.inner).poll_read(cx, into)
    }
}

impl<I: AsyncWrite + Unpin> AsyncWrite for Paced<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write(cx, bytes);
        self.paced(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        all: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.inner).poll_write_vectored(cx, all);
        self.paced(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.inner).poll_flush(cx);
        self.paced(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let closed = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.paced(cx, closed)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[test]
    fn addresses_have_a_share_and_give_it_back() {
        let all = Arc::new(Connections {
            all: AtomicUsize::new(0),
            all_max: caps::CONNECTIONS_PER_ADDRESS_MAX + 2,
            by_address: Mutex::default(),
        });
        let (one, other, here) = ([192, 0, 2, 1].into(), [192, 0, 2, 2].into(), [127, 0, 0, 1].into());
        let mut held: Vec<_> = (0..caps::CONNECTIONS_PER_ADDRESS_MAX).map(|_| all.enter(one).unwrap()).collect();
        assert!(all.enter(one).is_none(), "of this address there are enough");
        let (second, third) = (all.enter(other), all.enter(here));
        assert!(second.is_some() && third.is_some() && all.enter(other).is_none(), "of all there are enough");
        held.pop();
        assert!(all.enter(one).is_some());
        drop((held, second, third));
        assert_eq!(all.all.load(Ordering::Relaxed), 0);
        assert!(all.by_address.lock().is_empty());
    }

    #[tokio::test]
    async fn who_does_not_read_is_cut_off() {
        let (near, _far) = tokio::io::duplex(8);
        let mut paced = Paced::new(near, Bytes::from_static(b"PRI"));
        paced.patience = Duration::from_millis(20);
        let mut first = [0; 3];
        paced.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"PRI");
        let error = paced.write_all(&[0; 32]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn who_reads_in_the_end_is_not() {
        let (near, mut far) = tokio::io::duplex(8);
        let mut paced = Paced::new(near, Bytes::new());
        let (written, read) = tokio::join!(paced.write_all(&[7; 32]), async {
            let mut read = [0; 32];
            far.read_exact(&mut read).await.map(|_| read)
        });
        assert!(written.is_ok() && read.is_ok_and(|read| read == [7; 32]) && paced.stalled.is_none());
    }

    #[tokio::test]
    async fn a_connection_is_idle_between_requests_alone() {
        let requests = Requests::new();
        let (short, long) = (Duration::from_millis(1), Duration::from_secs(3_600));
        // None came.
        requests.idle(short, long).await;
        let open = requests.begin();
        let held = tokio::time::timeout(Duration::from_millis(50), requests.idle(short, short)).await;
        assert!(held.is_err(), "one is open");
        drop(open);
        requests.idle(long, short).await;
    }

    /// A body in one piece.
    struct Whole(Option<Bytes>);

    impl Body for Whole {
        type Data = Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            Poll::Ready(self.0.take().map(|bytes| Ok(Frame::data(bytes))))
        }
    }

    #[tokio::test]
    async fn an_answer_that_is_there_lets_others_have_the_thread() {
        let (bytes, most) = (4 << 20, BURST + PIECE);
        let mut body = Counted::new(Whole(Some(vec![7; bytes].into())), Requests::new().begin());
        let (mut burst, mut all) = (0, 0);
        let mut cx = Context::from_waker(std::task::Waker::noop());
        loop {
            match Pin::new(&mut body).poll_frame(&mut cx) {
                Poll::Pending => burst = 0,
                Poll::Ready(None) => break,
                Poll::Ready(Some(piece)) => {
                    let piece = piece.unwrap().into_data().unwrap().len();
                    (burst, all) = (burst + piece, all + piece);
                    assert!(burst <= most, "{burst} at once");
                }
            }
        }
        assert_eq!(all, bytes);
    }
}
