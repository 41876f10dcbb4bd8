//! The stream to the head, opened again whenever it breaks.
//!
//! What waits to be sent stays in [`Outgoing`] between two streams; what a stream has taken and did not see answered has an
//! unknown end. Calls on lanes know nothing of all this.

use std::{collections::VecDeque, sync::Arc, task::Poll, time::Duration};

use covey_domain::{Error, ErrorKind};
use covey_proto::{
    from_status,
    v1::{CallBatch, CallFrame, covey_client::CoveyClient},
};
use futures::{Stream, StreamExt as _};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tonic::{
    Request, Streaming,
    metadata::{MetadataMap, MetadataValue},
    service::interceptor::InterceptedService,
    transport::Channel,
};

use super::{WeakInner, lane::BATCH_MAX};
use crate::{Bearer, retry::Backoff};

/// A head that has not taken a stream within this time will not.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

type Rpc = CoveyClient<InterceptedService<Channel, Bearer>>;

/// A driver's name, and the secret with which it goes on after its connection broke.
#[derive(Clone)]
pub(crate) struct Session {
    pub id: String,
    pub secret: String,
}

impl Session {
    /// With a secret that nobody else has.
    pub fn new(id: &str) -> Self {
        let secret = (0..4).map(|_| format!("{:016x}", rand::random::<u64>())).collect();
        Self { id: id.to_owned(), secret }
    }
}

/// Frames for the head. One stream at a time takes them.
pub(super) struct Outgoing {
    rx: mpsc::UnboundedReceiver<CallFrame>,
    /// Before those in `rx`.
    first: VecDeque<CallFrame>,
    /// Which stream takes them; an older one gets nothing any more.
    stream: u64,
}

impl Outgoing {
    pub fn new(rx: mpsc::UnboundedReceiver<CallFrame>) -> Self {
        Self { rx, first: VecDeque::new(), stream: 0 }
    }

    /// No stream takes anything from now on; gives what none has taken.
    pub fn cut(&mut self) -> Vec<CallFrame> {
        self.stream += 1;
        self.unsent()
    }

    /// What no stream has taken; the caller puts back what shall still be sent.
    pub fn unsent(&mut self) -> Vec<CallFrame> {
        let mut unsent: Vec<_> = self.first.drain(..).collect();
        while let Ok(frame) = self.rx.try_recv() {
            unsent.push(frame);
        }
        unsent
    }

    /// Goes before everything else.
    pub fn put_back(&mut self, frames: impl IntoIterator<Item = CallFrame>) {
        debug_assert!(self.first.is_empty(), "frames are put back into what was cut");
        self.first.extend(frames);
    }
}

/// Frames as they queue up, many to a message, for one stream.
fn batches(outgoing: Arc<Mutex<Outgoing>>) -> impl Stream<Item = CallBatch> {
    let stream = outgoing.lock().stream;
    let groups = futures::stream::poll_fn(move |cx| {
        let mut outgoing = outgoing.lock();
        if outgoing.stream != stream {
            return Poll::Ready(None);
        }
        if !outgoing.first.is_empty() {
            let count = outgoing.first.len().min(BATCH_MAX);
            return Poll::Ready(Some(outgoing.first.drain(..count).collect()));
        }
        let mut frames = Vec::new();
        outgoing.rx.poll_recv_many(cx, &mut frames, BATCH_MAX).map(|n| (n > 0).then_some(frames))
    });
    groups.flat_map(|frames: Vec<_>| {
        let cut = covey_proto::split(frames);
        futures::stream::iter(cut.into_iter().map(|frames| CallBatch { frames }))
    })
}

/// What is needed to open a stream.
pub(super) struct Link {
    pub rpc: Rpc,
    pub session: Option<Session>,
    pub outgoing: Arc<Mutex<Outgoing>>,
}

/// A stream that the head has taken.
pub(super) struct Opened {
    /// Frames go out once this is sent; dropped, the stream ends.
    pub gate: oneshot::Sender<()>,
    pub answers: Streaming<CallBatch>,
    /// The head knew the session, or there is none.
    pub resumed: bool,
    /// How long it keeps a session whose driver is away.
    pub grace: Option<Duration>,
}

impl Link {
    /// Opens a stream. Nothing is taken of what is to be sent unless the head takes the stream.
    pub async fn open(&mut self) -> Result<Opened, Error> {
        let (open, gate) = oneshot::channel::<()>();
        let frames = batches(self.outgoing.clone());
        // A gate that is dropped ends the stream: it was not taken.
        let frames = async_stream::stream! {
            if gate.await.is_ok() {
                for await batch in frames {
                    yield batch;
                }
            }
        };
        let mut request = Request::new(frames);
        if let Some(session) = &self.session {
            let text =
                |text: &str| MetadataValue::try_from(text).map_err(|_| Error::invalid("the session is not text"));
            request.metadata_mut().insert("covey-session", text(&session.id)?);
            request.metadata_mut().insert("covey-session-secret", text(&session.secret)?);
        }
        let late = |_| Error::unavailable(format!("the head did not answer within {} s", OPEN_TIMEOUT.as_secs()));
        let response = tokio::time::timeout(OPEN_TIMEOUT, self.rpc.calls(request)).await.map_err(late)?;
        let response = response.map_err(|s| from_status(&s))?;
        let told = |key: &str, metadata: &MetadataMap| Some(metadata.get(key)?.to_str().ok()?.to_owned());
        let resumed = told("covey-session-state", response.metadata()).is_none_or(|state| state == "resumed");
        let grace = told("covey-session-grace-ms", response.metadata()).and_then(|ms| ms.parse().ok());
        Ok(Opened { gate: open, answers: response.into_inner(), resumed, grace: grace.map(Duration::from_millis) })
    }
}

/// Takes what the head says, over as many streams as it needs, until the calls are gone or the head refuses them for good.
pub(super) async fn run(weak: WeakInner, mut link: Link, mut answers: Streaming<CallBatch>) {
    loop {
        let why = loop {
            match answers.message().await {
                Ok(Some(batch)) => match weak.upgrade() {
                    Some(inner) => inner.take(batch),
                    None => return,
                },
                Ok(None) => break Error::unavailable("the head closed it"),
                Err(status) => break from_status(&status),
            }
        };
        let Some(inner) = weak.upgrade() else { return };
        if inner.has_left() {
            return inner.left();
        }
        inner.head_lost(&why);
        drop(inner);
        match redial(&weak, &mut link).await {
            Some(fresh) => answers = fresh,
            None => return,
        }
    }
}

async fn redial(weak: &WeakInner, link: &mut Link) -> Option<Streaming<CallBatch>> {
    let mut backoff = Backoff::default();
    loop {
        tokio::time::sleep(backoff.pause()).await;
        if weak.upgrade()?.has_left() {
            weak.upgrade()?.left();
            return None;
        }
        match link.open().await {
            Ok(opened) => {
                // First, so that whoever gives the head up sees that nothing of what waits was taken.
                weak.upgrade()?.head_back(opened.resumed);
                let _ = opened.gate.send(());
                return Some(opened.answers);
            }
            Err(error) if is_final(&error) => {
                weak.upgrade()?.close(&error);
                return None;
            }
            Err(_) => {}
        }
        // The stream that failed must not take what the next one shall send.
        let mut outgoing = link.outgoing.lock();
        let unsent = outgoing.cut();
        outgoing.put_back(unsent);
    }
}

/// Dialling again is no use.
fn is_final(error: &Error) -> bool {
    matches!(error.kind, ErrorKind::Unauthenticated | ErrorKind::PermissionDenied | ErrorKind::InvalidArgument)
}
