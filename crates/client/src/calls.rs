//! Calls over one shared stream.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use covey_domain::{Error, caps};
use covey_proto::{
    from_status,
    v1::{
        CallBatch, CallCancel, CallFrame, CallOpen, Payload, call_end, call_frame::Body, call_open,
        covey_client::CoveyClient,
    },
};
use futures::{Stream, StreamExt as _};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tonic::{Request, metadata::MetadataValue, service::interceptor::InterceptedService, transport::Channel};

use crate::Bearer;

/// Frames put into one message.
const BATCH_MAX: usize = 256;

/// Who is called.
#[derive(Clone, Debug)]
pub enum Target {
    /// An actor, by id.
    Actor(String),
    /// A model, by name; the payload is an `InferRequest`.
    Model(String),
}

/// What comes back, in order. `End` is last.
#[derive(Debug)]
pub enum CallEvent {
    /// One item of a stream.
    Item(Payload),
    /// The end: a value, nothing (a stream), or an error.
    End(Result<Option<Payload>, Error>),
}

type Handler = Box<dyn FnMut(u64, CallEvent) + Send>;

/// The shared stream. Clones share it; it closes when the last is gone.
#[derive(Clone)]
pub struct Calls {
    inner: Arc<Inner>,
}

struct Inner {
    next: AtomicU64,
    frames: mpsc::UnboundedSender<CallFrame>,
    open: Mutex<Option<HashMap<u64, Handler>>>,
}

impl Calls {
    pub(crate) async fn open(
        mut rpc: CoveyClient<InterceptedService<Channel, Bearer>>,
        session: &str,
    ) -> Result<Self, Error> {
        let (frames, mut rx) = mpsc::unbounded_channel();
        let batches = futures::stream::poll_fn(move |cx| {
            let mut frames = Vec::new();
            rx.poll_recv_many(cx, &mut frames, BATCH_MAX).map(|n| (n > 0).then_some(frames))
        });
        let batches = batches.flat_map(|frames| {
            let cut = covey_proto::split(frames);
            futures::stream::iter(cut.into_iter().map(|frames| CallBatch { frames }))
        });
        let mut request = Request::new(batches);
        let session = MetadataValue::try_from(session).map_err(|_| Error::invalid("the session id is not text"))?;
        request.metadata_mut().insert("covey-session", session);
        let mut answers = rpc.calls(request).await.map_err(|s| from_status(&s))?.into_inner();
        let inner = Arc::new(Inner { next: AtomicU64::new(1), frames, open: Mutex::new(Some(HashMap::new())) });
        let weak = Arc::downgrade(&inner);
        tokio::spawn(async move {
            let error = loop {
                match answers.message().await {
                    Ok(Some(batch)) => {
                        let Some(inner) = weak.upgrade() else { return };
                        inner.take(batch);
                    }
                    Ok(None) => break Error::unavailable("the head closed the connection"),
                    Err(status) => break from_status(&status),
                }
            };
            if let Some(inner) = weak.upgrade() {
                inner.fail_all(&error);
            }
        });
        Ok(Self { inner })
    }

    /// Opens a call; `handler` gets its id and its events, on the connection's own task: it must not block.
    pub fn start(
        &self,
        target: Target,
        method: &str,
        args: Payload,
        timeout_ms: u64,
        mut handler: impl FnMut(u64, CallEvent) + Send + 'static,
    ) -> u64 {
        let id = self.inner.next.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = covey_proto::check_size("the call's argument", &args) {
            handler(id, CallEvent::End(Err(error.executed(Some(false)))));
            return id;
        }
        {
            let mut open = self.inner.open.lock();
            match open.as_mut() {
                Some(open) if open.len() < caps::CALLS_OPEN_MAX => {
                    open.insert(id, Box::new(handler));
                }
                full_or_closed => {
                    let error = match full_or_closed {
                        Some(open) => {
                            Error::new(covey_domain::ErrorKind::Overloaded, format!("{} calls are open", open.len()))
                        }
                        None => Error::unavailable("the connection to the head is closed"),
                    };
                    drop(open);
                    handler(id, CallEvent::End(Err(error.executed(Some(false)))));
                    return id;
                }
            }
        }
        let target = match target {
            Target::Actor(actor) => call_open::Target::Actor(actor),
            Target::Model(model) => call_open::Target::Model(model),
        };
        let open = CallOpen {
            method: method.to_owned(),
            args: Some(args),
            timeout_ms,
            traceparent: String::new(),
            target: Some(target),
        };
        self.send(id, Body::Open(open));
        id
    }

    /// Cancels a call; its end arrives as `Cancelled`.
    pub fn cancel(&self, id: u64) {
        self.send(id, Body::Cancel(CallCancel { reason: "cancelled".into() }));
    }

    /// The reader has room for more items.
    pub fn credit(&self, id: u64, items: u32) {
        self.send(id, Body::Credit(items));
    }

    /// A call that returns one value.
    pub async fn value(&self, target: Target, method: &str, args: Payload) -> Result<Option<Payload>, Error> {
        let (tx, rx) = tokio::sync::oneshot::channel();
        let mut tx = Some(tx);
        self.start(target, method, args, 0, move |_, event| {
            if let (CallEvent::End(end), Some(tx)) = (event, tx.take()) {
                let _ = tx.send(end);
            }
        });
        rx.await.map_err(|_| Error::unavailable("the connection to the head is closed"))?
    }

    /// A call that streams. Dropping the stream cancels it.
    pub fn stream(
        &self,
        target: Target,
        method: &str,
        args: Payload,
    ) -> impl Stream<Item = Result<Payload, Error>> + use<> {
        /// Cancels a call whose reader went before its end.
        struct Leave(Calls, u64, bool);
        impl Drop for Leave {
            fn drop(&mut self) {
                if !self.2 {
                    self.0.cancel(self.1);
                }
            }
        }
        let (tx, rx) = mpsc::unbounded_channel();
        let id = self.start(target, method, args, 0, move |_, event| {
            let _ = tx.send(event);
        });
        let state = (rx, Leave(self.clone(), id, false), 0u32);
        futures::stream::unfold(Some(state), |state| async move {
            let (mut rx, mut leave, mut taken) = state?;
            match rx.recv().await? {
                CallEvent::Item(item) => {
                    taken += 1;
                    if taken == caps::STREAM_WINDOW / 2 {
                        leave.0.credit(leave.1, taken);
                        taken = 0;
                    }
                    Some((Ok(item), Some((rx, leave, taken))))
                }
                CallEvent::End(end) => {
                    leave.2 = true;
                    match end {
                        Ok(Some(value)) => Some((Ok(value), None)),
                        Ok(None) => None,
                        Err(error) => Some((Err(error), None)),
                    }
                }
            }
        })
        .boxed()
    }

    fn send(&self, id: u64, body: Body) {
        // A closed channel fails every open call from the reading side.
        let _ = self.inner.frames.send(CallFrame { id, body: Some(body) });
    }
}

impl Inner {
    fn take(&self, batch: CallBatch) {
        for frame in batch.frames {
            match frame.body {
                Some(Body::Item(item)) => {
                    let mut open = self.open.lock();
                    if let Some(handler) = open.as_mut().and_then(|o| o.get_mut(&frame.id)) {
                        handler(frame.id, CallEvent::Item(item));
                    }
                }
                Some(Body::End(end)) => {
                    let handler = self.open.lock().as_mut().and_then(|o| o.remove(&frame.id));
                    if let Some(mut handler) = handler {
                        handler(
                            frame.id,
                            CallEvent::End(match end.result {
                                Some(call_end::Result::Value(value)) => Ok(Some(value)),
                                Some(call_end::Result::Failure(failure)) => Err(failure.into()),
                                Some(call_end::Result::Done(_)) | None => Ok(None),
                            }),
                        );
                    }
                }
                _ => {}
            }
        }
    }

    fn fail_all(&self, error: &Error) {
        let open = self.open.lock().take().unwrap_or_default();
        for (id, mut handler) in open {
            handler(id, CallEvent::End(Err(error.clone().executed(None))));
        }
    }
}
