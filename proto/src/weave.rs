//! Large frames travel in pieces on a stream of calls, between which other frames go: a tensor does not hold a message up.
//!
//! What must stay in order does: frames of one call, calls on one actor, and fences behind everything.

use std::collections::{HashMap, VecDeque};

use bytes::{Bytes, BytesMut};
use covey_domain::{Error, caps};
use prost::Message as _;

use crate::{
    batch::{size_of, split},
    v1::{CallBatch, CallEnd, CallFrame, Piece, call_end, call_frame::Body, call_open::Target},
};

/// A frame over this goes in pieces of this, bytes.
const PIECE: usize = 256 << 10;

/// The sending end. Frames are taken in order and leave as messages.
#[derive(Debug, Default)]
pub struct Weaver {
    /// Nothing keeps these.
    ready: Vec<CallFrame>,
    messages: VecDeque<Vec<CallFrame>>,
    /// What is left of the large frame that is on its way, and how large it was.
    current: Option<(Bytes, u64, Keys)>,
    /// Large ones, and those that must come after one.
    held: VecDeque<CallFrame>,
    /// How many of `current` and `held` have each key.
    keys: HashMap<Key, usize>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Call(u64),
    Actor(String),
    Fence,
}

type Keys = Vec<Key>;

fn keys(frame: &CallFrame) -> Keys {
    let mut keys = vec![Key::Call(frame.id)];
    match &frame.body {
        Some(Body::Open(open)) => {
            if let Some(Target::Actor(actor)) = &open.target {
                keys.push(Key::Actor(actor.clone()));
            }
            for (id, also) in (frame.id + 1..).zip(&open.also) {
                keys.extend([Key::Call(id), Key::Actor(also.actor.clone())]);
            }
        }
        Some(Body::Fence(_)) => keys.push(Key::Fence),
        _ => {}
    }
    keys
}

fn is_large(frame: &CallFrame) -> bool {
    let payload = match &frame.body {
        Some(Body::Open(open)) => open.args.as_ref(),
        Some(Body::Item(item)) => Some(item),
        Some(Body::End(CallEnd { result: Some(call_end::Result::Value(value)) })) => Some(value),
        _ => None,
    };
    payload.is_some_and(|payload| size_of(payload) > PIECE)
}

impl Weaver {
    /// Takes frames to send.
    pub fn extend(&mut self, frames: &mut Vec<CallFrame>) {
        // The common case moves nothing: all are small, and nothing is in their way.
        let free = self.current.is_none() && self.held.is_empty() && self.ready.is_empty();
        if free && !frames.iter().any(is_large) {
            self.ready = std::mem::take(frames);
        } else {
            frames.drain(..).for_each(|frame| self.push(frame));
        }
    }

    /// Takes a frame to send.
    pub fn push(&mut self, frame: CallFrame) {
        let large = is_large(&frame);
        if self.current.is_none() && self.held.is_empty() && !large {
            return self.ready.push(frame);
        }
        let keys = keys(&frame);
        let fenced = self.keys.contains_key(&Key::Fence) || keys.contains(&Key::Fence);
        if !large && !fenced && !keys.iter().any(|key| self.keys.contains_key(key)) {
            return self.ready.push(frame);
        }
        for key in keys {
            *self.keys.entry(key).or_default() += 1;
        }
        self.held.push_back(frame);
        self.advance();
    }

    /// The next message, if there is something to send.
    pub fn message(&mut self) -> Option<CallBatch> {
        if self.messages.is_empty() {
            if !self.ready.is_empty() {
                self.messages = split(std::mem::take(&mut self.ready)).into();
            }
            if let Some(piece) = self.piece() {
                match self.messages.back_mut() {
                    Some(last) => last.push(piece),
                    None => self.messages.push_back(vec![piece]),
                }
            }
        }
        self.messages.pop_front().map(|frames| CallBatch { frames })
    }

    /// What nothing was sent of, in order; nothing more will be.
    pub fn unsent(&mut self) -> Vec<CallFrame> {
        let mut unsent: Vec<CallFrame> = std::mem::take(&mut self.messages).into_iter().flatten().collect();
        unsent.retain(|frame| !matches!(frame.body, Some(Body::Piece(_))));
        unsent.append(&mut self.ready);
        unsent.extend(self.held.drain(..));
        unsent
    }

    fn piece(&mut self) -> Option<CallFrame> {
        let (rest, total, _) = self.current.as_mut()?;
        let piece = Piece { total: *total, body: rest.split_to(rest.len().min(PIECE)) };
        if rest.is_empty()
            && let Some((.., keys)) = self.current.take()
        {
            self.release(keys);
            self.advance();
        }
        Some(CallFrame { id: 0, body: Some(Body::Piece(piece)) })
    }

    /// Begins with the next large frame; those before it that only waited may go.
    fn advance(&mut self) {
        while self.current.is_none()
            && let Some(frame) = self.held.pop_front()
        {
            let keys = keys(&frame);
            if is_large(&frame) {
                let bytes = Bytes::from(frame.encode_to_vec());
                self.current = Some((bytes.clone(), bytes.len() as u64, keys));
            } else {
                self.release(keys);
                self.ready.push(frame);
            }
        }
    }

    fn release(&mut self, keys: Keys) {
        for key in keys {
            if let Some(count) = self.keys.get_mut(&key) {
                *count -= 1;
                if *count == 0 {
                    self.keys.remove(&key);
                }
            }
        }
    }
}

/// The receiving end.
#[derive(Debug, Default)]
pub struct Joiner {
    growing: Option<(BytesMut, usize)>,
}

impl Joiner {
    /// Takes what came; gives the frames that are whole now. An error is a broken stream.
    pub fn join(&mut self, frames: Vec<CallFrame>) -> Result<Vec<CallFrame>, Error> {
        if !frames.iter().any(|frame| matches!(frame.body, Some(Body::Piece(_)))) {
            return Ok(frames);
        }
        frames.into_iter().filter_map(|frame| self.take(frame).transpose()).collect()
    }

    /// Takes what came; gives the frame that is whole now. An error is a broken stream.
    fn take(&mut self, frame: CallFrame) -> Result<Option<CallFrame>, Error> {
        let Some(Body::Piece(piece)) = frame.body else { return Ok(Some(frame)) };
        let wrong = |what: &str| Error::invalid(format!("a frame in pieces is broken: {what}"));
        let total = usize::try_from(piece.total).ok().filter(|total| *total <= 2 * caps::MESSAGE_BYTES_MAX);
        let total = total.ok_or_else(|| wrong("it is too large"))?;
        let (grown, wanted) = self.growing.get_or_insert_with(|| (BytesMut::with_capacity(total), total));
        if *wanted != total || grown.len() + piece.body.len() > total {
            return Err(wrong("its pieces do not fit together"));
        }
        grown.extend_from_slice(&piece.body);
        if grown.len() < total {
            return Ok(None);
        }
        let whole = self.growing.take().map(|(grown, _)| grown.freeze()).unwrap_or_default();
        CallFrame::decode(whole).map(Some).map_err(|e| wrong(&e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{CallCancel, CallOpen, Empty, Payload};

    fn open(id: u64, actor: &str, kib: usize) -> CallFrame {
        let args = Payload { body: vec![id as u8; kib << 10].into(), ..Payload::default() };
        let target = Some(Target::Actor(actor.to_owned()));
        CallFrame { id, body: Some(Body::Open(CallOpen { target, args: Some(args), ..CallOpen::default() })) }
    }

    fn frame(id: u64, body: Body) -> CallFrame {
        CallFrame { id, body: Some(body) }
    }

    /// Ids as they arrive; `sent` is pushed before message number so-and-so.
    fn arrive(sent: Vec<(usize, CallFrame)>) -> Vec<u64> {
        let (mut weaver, mut joiner, mut arrived) = (Weaver::default(), Joiner::default(), Vec::new());
        let mut sent = VecDeque::from(sent);
        for message in 0.. {
            while sent.front().is_some_and(|(at, _)| *at <= message) {
                let (_, frame) = sent.pop_front().unwrap();
                weaver.push(frame);
            }
            let Some(batch) = weaver.message() else { break };
            let size: usize = batch.frames.iter().map(prost::Message::encoded_len).sum();
            assert!(size < caps::BATCH_BYTES_MAX + PIECE + 64);
            for frame in batch.frames {
                if let Some(frame) = joiner.take(frame).unwrap() {
                    if let Some(Body::Open(open)) = &frame.body {
                        assert!(open.args.as_ref().unwrap().body.iter().all(|b| *b == frame.id as u8));
                    }
                    arrived.push(frame.id);
                }
            }
        }
        assert!(sent.is_empty() && weaver.keys.is_empty() && weaver.held.is_empty());
        arrived
    }

    #[test]
    fn small_ones_overtake_and_order_holds() {
        let arrived = arrive(vec![
            (0, open(1, "a", 1)),
            (0, open(2, "a", 4096)), // large: sixteen pieces
            (0, open(3, "a", 1)),    // same actor: behind it
            (0, open(4, "b", 1)),
            (3, open(5, "b", 1)),
            (3, frame(2, Body::Cancel(CallCancel::default()))),
            (4, open(6, "c", 1024)), // the next large one
            (5, open(7, "d", 1)),
            (10, open(8, "a", 1)),
        ]);
        assert_eq!(arrived, [1, 4, 5, 7, 2, 3, 2, 6, 8]);
        let fenced = arrive(vec![
            (0, open(1, "a", 2048)),
            (0, frame(2, Body::Fence(Empty {}))),
            (1, open(3, "b", 1)), // behind the fence, which is behind the large one
            (1, frame(4, Body::Credit(1))),
        ]);
        assert_eq!(fenced, [1, 2, 3, 4]);
    }

    #[test]
    fn what_was_not_sent_comes_back() {
        let mut weaver = Weaver::default();
        for frame in [open(1, "a", 2048), open(2, "a", 1), open(3, "b", 1), open(4, "c", 2048)] {
            weaver.push(frame);
        }
        assert!(weaver.message().is_some_and(|b| b.frames.len() == 2)); // 3, and the first piece of 1
        let unsent: Vec<u64> = weaver.unsent().iter().map(|f| f.id).collect();
        assert_eq!(unsent, [2, 4]);
    }

    #[test]
    fn broken_pieces_are_refused() {
        let piece = |total: u64, size: usize| frame(0, Body::Piece(Piece { total, body: vec![0; size].into() }));
        assert!(Joiner::default().take(piece(u64::MAX, 1)).is_err());
        assert!(Joiner::default().take(piece(10, 11)).is_err());
        let mut joiner = Joiner::default();
        assert!(joiner.take(piece(10, 5)).unwrap().is_none());
        assert!(joiner.take(piece(11, 5)).is_err());
        assert!(Joiner::default().take(piece(4, 4)).is_err(), "no frame");
    }
}
