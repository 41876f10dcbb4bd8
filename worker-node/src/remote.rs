//! Calls that this worker opens: models it does not have are asked for through the head.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use covey_actor_runtime::{RemoteInfer, Report};
use covey_domain::{Error, caps};
use covey_proto::{
    payload_json,
    v1::{CallCancel, CallFrame, CallOpen, call_end, call_frame::Body, call_open::Target},
};
use futures::StreamExt as _;
use parking_lot::Mutex;
use tokio::sync::mpsc;

/// Marks ids of calls that a worker opened.
pub(crate) const FROM_WORKER: u64 = 1 << 63;

#[derive(Clone)]
pub(crate) struct Remote {
    inner: Arc<Inner>,
}

struct Inner {
    reports: mpsc::UnboundedSender<Report>,
    next: AtomicU64,
    open: Mutex<HashMap<u64, mpsc::UnboundedSender<Body>>>,
}

/// Cancels a call whose reader went before its end.
struct Opened(Arc<Inner>, u64);

impl Drop for Opened {
    fn drop(&mut self) {
        if self.0.open.lock().remove(&self.1).is_some() {
            self.0.send(self.1, Body::Cancel(CallCancel { reason: String::new() }));
        }
    }
}

impl Inner {
    fn send(&self, id: u64, body: Body) {
        let _ = self.reports.send(Report::Call(CallFrame { id, body: Some(body) }));
    }
}

impl Remote {
    pub fn new(reports: mpsc::UnboundedSender<Report>) -> Self {
        Self { inner: Arc::new(Inner { reports, next: AtomicU64::new(1), open: Mutex::default() }) }
    }

    /// The way to other workers' models.
    pub fn infer(&self) -> RemoteInfer {
        let inner = self.inner.clone();
        Arc::new(move |request| {
            let id = FROM_WORKER | inner.next.fetch_add(1, Ordering::Relaxed);
            let (tx, mut rx) = mpsc::unbounded_channel();
            inner.open.lock().insert(id, tx);
            inner.send(
                id,
                Body::Open(CallOpen {
                    method: "infer".into(),
                    args: Some(payload_json(&request)),
                    timeout_ms: 0,
                    traceparent: String::new(),
                    target: Some(Target::Model(request.model.to_string())),
                }),
            );
            let opened = Opened(inner.clone(), id);
            async_stream::stream! {
                let opened = opened;
                let mut taken = 0;
                while let Some(body) = rx.recv().await {
                    match body {
                        Body::Item(item) => {
                            taken += 1;
                            if taken == caps::STREAM_WINDOW / 2 {
                                opened.0.send(opened.1, Body::Credit(taken));
                                taken = 0;
                            }
                            yield covey_proto::infer_event(&item);
                        }
                        Body::End(end) => {
                            opened.0.open.lock().remove(&opened.1);
                            if let Some(call_end::Result::Failure(failure)) = end.result {
                                yield Err(Error::from(failure));
                            }
                            return;
                        }
                        Body::Open(_) | Body::Cancel(_) | Body::Credit(_) => {}
                    }
                }
                yield Err(Error::unavailable("the link to the head broke"));
            }
            .boxed()
        })
    }

    /// An answer to a call of ours.
    pub fn take(&self, id: u64, body: Body) {
        if let Some(call) = self.inner.open.lock().get(&id) {
            let _ = call.send(body);
        }
    }

    /// The link is gone, and the answers with it.
    pub fn fail_all(&self) {
        self.inner.open.lock().clear();
    }
}
