//! Streams of calls: what a caller opens, cancels and gives credit for.

use std::{
    collections::HashMap,
    sync::{Arc, Weak},
};

use covey_domain::{
    ActorId, Error, ErrorKind,
    agent::known_as,
    infer::{InferRequest, ModelOrder},
};
use covey_proto::{
    from_json, infer_payload,
    v1::{self, CallFrame, CallOpen, Codec, Payload, call_frame::Body, call_open::Target},
};
use covey_trace::{Kind, Span};
use futures::StreamExt as _;
use parking_lot::Mutex;

use super::{Inner, deadline, least, live::run};
use crate::{
    Behavior, Invocation, Models,
    turn::{Control, Out, Over, Sink, Turn},
};

/// One caller's stream of calls. When it is dropped, what is open on it is cancelled, but for calls with a key: their answers are
/// kept for a caller that comes back by another stream.
pub struct Lane {
    pub(super) inner: Arc<LaneInner>,
}

pub(super) struct LaneInner {
    pub runtime: Weak<Inner>,
    pub out: Out,
    pub calls: Mutex<HashMap<u64, Open>>,
}

#[derive(Clone)]
pub(super) struct Open {
    control: Arc<Control>,
    keyed: bool,
}

impl Open {
    /// Nobody is there who reads the answer.
    fn leave(&self) {
        match self.keyed {
            true => self.control.detach(),
            false => self.control.cancel(),
        }
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        let open = std::mem::take(&mut *self.inner.calls.lock());
        open.values().for_each(Open::leave);
    }
}

impl Lane {
    /// A frame from the caller.
    pub fn take(&self, frame: CallFrame) {
        let control = |id: u64| self.inner.calls.lock().get(&id).map(|open| open.control.clone());
        match frame.body {
            Some(Body::Open(open)) if !open.also.is_empty() => {
                for (id, open) in (frame.id..).zip(covey_proto::each_of(open)) {
                    self.inner.open(id, open);
                }
            }
            Some(Body::Open(open)) => self.inner.open(frame.id, open),
            Some(Body::Cancel(cancel)) => {
                let open = self.inner.calls.lock().get(&frame.id).cloned();
                match open {
                    Some(open) if cancel.gone => open.leave(),
                    Some(open) => open.control.cancel(),
                    None => {}
                }
            }
            Some(Body::Credit(items)) => {
                if let Some(control) = control(frame.id) {
                    control.credit(items);
                }
            }
            Some(Body::Fence(_)) => self.inner.out.send(frame.id, Body::Fence(v1::Empty {})),
            Some(Body::Item(_) | Body::End(_) | Body::Locate(_) | Body::Placement(_) | Body::DeadLetter(_))
            | Some(Body::WatchTopic(_) | Body::Topic(_) | Body::Piece(_) | Body::Leave(_))
            | None => {}
        }
    }
}

impl LaneInner {
    /// Ends what is open because this worker stops it, whoever waits for it.
    pub fn lose_all(&self) {
        let open: Vec<_> = self.calls.lock().values().map(|open| open.control.clone()).collect();
        open.iter().for_each(|control| control.lose());
    }

    fn open(self: &Arc<Self>, id: u64, open: CallOpen) {
        let Some(runtime) = self.runtime.upgrade() else { return };
        let control = Control::new();
        let refuse = |error: Error| self.out.send(id, Body::End(covey_proto::failure(error)));
        let mut span = Span::default();
        let (limit, memo, actor) = match &open.target {
            Some(Target::Actor(actor)) => {
                let mut actors = runtime.actors.lock();
                let cell = actors.get_mut(actor.as_str());
                let limit = cell.as_ref().and_then(|c| c.spec.timeout_ms);
                if let (true, Some(cell)) = (covey_trace::is_on(), &cell) {
                    let about = [("covey.agent", cell.spec.name.as_str()), ("covey.actor", actor.as_str())];
                    span = Span::begin(Kind::Turn, known_as(&open.method), &open.traceparent, &about);
                }
                let memo = match cell {
                    Some(cell) if !open.key.is_empty() => {
                        let ours = open.epoch == 0 || open.epoch == cell.epoch.0;
                        let lost = open.tried != 0 && open.tried != cell.epoch.0;
                        if ours && lost && !cell.memos.knows(&open.key) {
                            let why = "the activation that may have run it is gone, and what it answered with it";
                            return refuse(Error::new(ErrorKind::ActorDied, why).executed(None));
                        }
                        let memo = cell.memos.get(&open.key);
                        if !memo.begin(&self.out, id) {
                            return;
                        }
                        Some(memo)
                    }
                    _ => None,
                };
                (limit, memo, Some(ActorId::from(actor.as_str())))
            }
            Some(Target::Model(model)) => {
                span = Span::begin(Kind::Turn, &open.method, &open.traceparent, &[("covey.model", model)]);
                (None, None, None)
            }
            Some(Target::Pool(_) | Target::Topic(_)) | None => {
                return refuse(Error::invalid("a call without a target"));
            }
        };
        self.calls.lock().insert(id, Open { control: control.clone(), keyed: memo.is_some() });
        let lane = Arc::downgrade(self);
        let over = Over(Some(Box::new(move || {
            if let Some(lane) = lane.upgrade() {
                lane.calls.lock().remove(&id);
            }
        })));
        let sink = Sink::call(self.out.clone(), id, control.clone(), memo).traced(span);
        let args = open.args.unwrap_or_default();
        let json = actor.is_none() || !matches!(args.codec(), Codec::Pickle | Codec::Lent);
        let turn = Turn {
            invocation: Invocation { method: open.method, args, json, task: None, chain: open.chain },
            sink,
            control,
            deadline: deadline(open.timeout_ms),
            run_timeout: least(open.run_timeout_ms, limit),
            retry_on: open.retry.map(|retry| retry.on).unwrap_or_default(),
            alone: open.alone,
            over,
        };
        match actor {
            Some(actor) => runtime.deliver(&actor, open.epoch, turn),
            None => {
                let models = runtime.models.clone();
                tokio::spawn(async move { run(&ModelCall(models), turn).await });
            }
        }
    }
}

/// A request to a model, in the shape of a turn.
struct ModelCall(Arc<Models>);

impl Behavior for ModelCall {
    fn turn<'a>(
        &'a self,
        invocation: Invocation,
        sink: &'a Sink,
    ) -> futures::future::BoxFuture<'a, Result<Option<Payload>, Error>> {
        Box::pin(async move {
            let method = invocation.method.as_str();
            if matches!(method, "load" | "unload") {
                let order: ModelOrder = from_json("the order", &invocation.args.body)?;
                let model = order.model.as_str();
                if method == "load" {
                    self.0.load(model).await?
                } else {
                    self.0.unload(model)?
                }
                return Ok(None);
            }
            let request: InferRequest = from_json("the model request", &invocation.args.body)?;
            let mut events = self.0.infer_here(request);
            while let Some(event) = events.next().await {
                sink.item(infer_payload(&event?)).await;
            }
            Ok(None)
        })
    }
}
