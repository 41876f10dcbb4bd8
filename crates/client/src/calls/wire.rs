//! What the caller's machine says, as it travels, and the other way round.

use covey_call_core::{At, Body as Sized, Frame, Open, Placement, Request, To};
use covey_domain::{ActorId, Error, NodeId};
use covey_proto::v1::{
    self, Also, CallCancel, CallFrame, CallOpen, DeadLetter, Empty, Locate, Payload, WorkerPort, call_frame::Body,
    call_open, placement,
};

use super::retry_message;

/// Arguments of a call.
#[derive(Clone, Debug)]
pub(super) struct Args(pub Payload);

impl Sized for Args {
    fn size(&self) -> usize {
        covey_proto::size_of(&self.0)
    }
}

/// Where a worker listens; `None` = only the head reaches it.
pub(super) type Address = Option<WorkerPort>;

pub(super) fn frame(frame: Frame<Args>) -> CallFrame {
    let (id, body) = match frame {
        Frame::Open(open) => (open.call, Body::Open(call_open(open))),
        Frame::Cancel { call, reason } => (call, Body::Cancel(CallCancel { reason, gone: false })),
        Frame::Credit { call, items } => (call, Body::Credit(items)),
        Frame::Fence(fence) => (fence, Body::Fence(Empty {})),
        Frame::Locate(actor) => (0, Body::Locate(Locate { actor: actor.to_string() })),
        Frame::Watch(topic) => (0, Body::WatchTopic(topic)),
        Frame::DeadLetter(dead) => (
            0,
            Body::DeadLetter(DeadLetter {
                actor: dead.actor.to_string(),
                method: dead.method,
                bytes: dead.bytes as u64,
                attempts: dead.attempts,
                error: dead.error,
                ..DeadLetter::default()
            }),
        ),
        Frame::Leave => (0, Body::Leave(Empty {})),
    };
    CallFrame { id, body: Some(body) }
}

fn call_open(open: Open<Args>) -> CallOpen {
    let Open { to, epoch, tried, alone, also, request, .. } = open;
    // A call that may be sent again keeps its own.
    let request = std::sync::Arc::unwrap_or_clone(request);
    let Request { method, args, key, chain, traceparent, timeout_ms, run_timeout_ms, retry, .. } = request;
    CallOpen {
        target: Some(match to {
            To::Actor(actor) => call_open::Target::Actor(actor.to_string()),
            To::Model(model) => call_open::Target::Model(model),
        }),
        method,
        args: Some(args.0),
        timeout_ms,
        traceparent,
        epoch,
        key,
        tried,
        chain,
        also: also.into_iter().map(|(actor, epoch)| Also { actor: actor.to_string(), epoch }).collect(),
        retries: 0,
        run_timeout_ms,
        retry: retry_message(&retry),
        alone,
    }
}

/// Numbers of the calls that a frame opens.
pub(super) fn opens(frame: &CallFrame) -> std::ops::Range<u64> {
    match &frame.body {
        Some(Body::Open(open)) => frame.id..frame.id + 1 + open.also.len() as u64,
        _ => 0..0,
    }
}

/// [`Frame::outlives_head`], of a frame as it travels.
pub(super) fn outlives_head(frame: &CallFrame) -> bool {
    match &frame.body {
        Some(Body::Open(open)) => matches!(open.target, Some(call_open::Target::Model(_))),
        Some(Body::Locate(_) | Body::WatchTopic(_) | Body::Fence(_)) | None => false,
        Some(_) => true,
    }
}

pub(super) fn placement(told: v1::Placement) -> Option<(ActorId, Placement<Address>)> {
    let placement = match told.state? {
        placement::State::At(at) => {
            Placement::At(At { node: NodeId::from(at.node), epoch: at.epoch, address: at.port })
        }
        placement::State::Waiting(waiting) => {
            let v1::Waiting { why, never, recovering, .. } = waiting;
            Placement::Waiting { why, never, recovering }
        }
        placement::State::Gone(gone) => Placement::Gone(Error::from(gone)),
    };
    Some((ActorId::from(told.actor), placement))
}
