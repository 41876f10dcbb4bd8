//! One stream to one worker: dialled, or within this process, or through the head when dialling fails.

use std::{sync::Arc, task::Poll, time::Duration};

use covey_call_core::{At, LaneId};
use covey_domain::caps;
use covey_proto::{
    Joiner, Weaver,
    v1::{CallBatch, CallFrame, worker_client::WorkerClient},
};
use futures::{FutureExt as _, Stream, StreamExt as _};
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use tonic::{Request, metadata::MetadataValue};

use super::{Inner, WeakInner, wire::Address};

/// Frames put into one message.
pub(super) const BATCH_MAX: usize = 1_024;
/// A worker that does not answer a dial within this time is reached through the head.
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);

pub(super) type Sender = mpsc::UnboundedSender<CallFrame>;

/// Connects to the actors of this process: takes where answers go, gives where calls go.
pub type Loopback = Arc<dyn Fn(mpsc::UnboundedSender<CallFrame>) -> mpsc::UnboundedSender<CallFrame> + Send + Sync>;

/// What is to be sent on a lane.
struct Outgoing {
    rx: mpsc::UnboundedReceiver<CallFrame>,
    weaver: Weaver,
}

impl Outgoing {
    /// Nothing more is taken; gives what is left.
    fn close(&mut self) -> Vec<CallFrame> {
        self.rx.close();
        let mut unsent: Vec<_> = self.weaver.unsent().into_iter().collect();
        while let Ok(frame) = self.rx.try_recv() {
            unsent.push(frame);
        }
        unsent
    }
}

/// Messages for a worker, large frames in pieces. What is left when the stream ends stays in `outgoing`.
fn woven(outgoing: Arc<Mutex<Outgoing>>) -> impl Stream<Item = CallBatch> {
    let mut frames = Vec::new();
    futures::stream::poll_fn(move |cx| {
        let mut outgoing = outgoing.lock();
        let came = outgoing.rx.poll_recv_many(cx, &mut frames, BATCH_MAX);
        outgoing.weaver.extend(&mut frames);
        match (outgoing.weaver.message(), came) {
            (Some(batch), _) => Poll::Ready(Some(batch)),
            (None, Poll::Ready(0)) => Poll::Ready(None),
            (None, _) => Poll::Pending,
        }
    })
}

/// Opens a lane. Frames may be sent at once; they wait for the dial.
pub(super) fn open(inner: &Arc<Inner>, lane: LaneId, at: At<Address>) -> Sender {
    #[expect(clippy::disallowed_methods, reason = "calls that this client has open, which have a bound")]
    let (tx, rx) = mpsc::unbounded_channel();
    let weak = Arc::downgrade(inner);
    inner.runtime.spawn(async move {
        let outgoing = Arc::new(Mutex::new(Outgoing { rx, weaver: Weaver::default() }));
        // Also where a handler panics on this task: calls on a lane that nobody carries would wait for ever.
        let lost = Lost { inner: weak.clone(), lane, outgoing: Some(outgoing.clone()) };
        let end = carry(&weak, &at, &outgoing).await;
        let Some(inner) = weak.upgrade() else { return };
        match end {
            Ok(why) => inner.lane_lost(lane, || outgoing.lock().close(), &why),
            // Same frames, same order, one more hop; answers come back on the head's stream.
            Err(_) => inner.lane_to_head(lane, || outgoing.lock().close()),
        }
        drop(lost);
    });
    tx
}

/// Says that a lane is lost when its task is over. Of one that was said of already the machine knows nothing any more.
struct Lost {
    inner: WeakInner,
    lane: LaneId,
    outgoing: Option<Arc<Mutex<Outgoing>>>,
}

impl Drop for Lost {
    fn drop(&mut self) {
        if let Some(inner) = self.inner.upgrade() {
            let unsent = || self.outgoing.as_ref().map_or_else(Vec::new, |outgoing| outgoing.lock().close());
            inner.lane_lost(self.lane, unsent, "it was given up");
        }
    }
}

/// Dials and carries frames until the lane breaks (`Ok(why)`); `Err` when it could not be opened, with nothing taken.
async fn carry(weak: &WeakInner, at: &At<Address>, outgoing: &Arc<Mutex<Outgoing>>) -> Result<String, String> {
    let port = at.address.as_ref().ok_or("it has no port of its own")?;
    let roads = weak.upgrade().map(|inner| inner.roads.clone()).unwrap_or_default();
    let channel = roads.dial(at.node.as_str(), port, |endpoint| {
        endpoint
            .connect_timeout(DIAL_TIMEOUT)
            .http2_keep_alive_interval(Duration::from_secs(5))
            .keep_alive_timeout(Duration::from_secs(3))
            .initial_stream_window_size(8 << 20)
            .initial_connection_window_size(16 << 20)
    });
    let channel = channel.await.map_err(|e| e.message)?;
    let mut worker = WorkerClient::new(channel)
        .max_decoding_message_size(2 * caps::MESSAGE_BYTES_MAX)
        .max_encoding_message_size(2 * caps::MESSAGE_BYTES_MAX);
    // A worker that refuses the stream must not have swallowed calls by then.
    let (opened, gate) = oneshot::channel::<()>();
    let frames = woven(outgoing.clone());
    let mut request = Request::new(gate.into_stream().flat_map(|_| futures::stream::empty()).chain(frames));
    let bearer = MetadataValue::try_from(format!("Bearer {}", port.secret)).map_err(|e| e.to_string())?;
    request.metadata_mut().insert("authorization", bearer);
    let mut answers = worker.calls(request).await.map_err(|s| s.message().to_owned())?.into_inner();
    let _ = opened.send(());
    let mut joiner = Joiner::default();
    loop {
        match answers.message().await {
            Ok(Some(batch)) => {
                let frames = match joiner.join(batch.frames) {
                    Ok(frames) => frames,
                    Err(error) => return Ok(error.message),
                };
                match weak.upgrade() {
                    Some(inner) => inner.take(CallBatch { frames }),
                    None => return Ok("closed".into()),
                }
            }
            Ok(None) => return Ok("the worker closed it".into()),
            Err(status) => return Ok(status.message().to_owned()),
        }
    }
}

/// A lane within this process.
pub(super) fn local(inner: &Arc<Inner>, lane: LaneId, loopback: Loopback) -> Sender {
    #[expect(clippy::disallowed_methods, reason = "answers of calls that this client has open, a window each")]
    let (answers, mut rx) = mpsc::unbounded_channel();
    let tx = loopback(answers);
    let weak = Arc::downgrade(inner);
    inner.runtime.spawn(async move {
        let _lost = Lost { inner: weak.clone(), lane, outgoing: None };
        let mut frames = Vec::new();
        while rx.recv_many(&mut frames, BATCH_MAX).await > 0 {
            let Some(inner) = weak.upgrade() else { return };
            inner.take(CallBatch { frames: std::mem::take(&mut frames) });
        }
    });
    tx
}
