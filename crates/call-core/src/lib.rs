//! Decisions of a call, apart from what carries it. Pure: no tokio, no clock, no randomness, no I/O.
//!
//! [`Caller`] is the caller's end: where actors are, what waits for a place, which lane a call took, what becomes of it when
//! that lane breaks. A shell feeds it what happened, with the time, and carries out what [`Caller::poll`] gives, in that order.
//! Payloads and addresses are the shell's own types, so that the simulated world of the tests runs this very code.

mod caller;
mod ids;
mod queue;
mod timers;

use std::sync::Arc;

use covey_domain::{ActorId, Error, Millis, NodeId, Retry};

pub use caller::{Caller, Config, alone};
pub use ids::{IdHasher, IdMap};

/// The number of a call, drawn from [`Caller::next_id`]. Later calls have higher numbers.
pub type CallId = u64;

/// One ordered way to a worker, or to the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneId(u64);

impl LaneId {
    /// The stream to the head. It is there from the beginning, and breaks without being over.
    pub const HEAD: Self = Self(0);
}

/// Arguments of a call.
pub trait Body: Clone {
    /// Bytes that it holds.
    fn size(&self) -> usize;
}

/// An activation of an actor: on which node, the how-manieth, and how the node is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct At<A> {
    /// The node.
    pub node: NodeId,
    /// Rises with each activation of the actor.
    pub epoch: u64,
    /// Where the node listens.
    pub address: A,
}

/// What the head says of an actor's place.
#[derive(Clone, Debug)]
pub enum Placement<A> {
    /// It is there.
    At(At<A>),
    /// It has no place.
    Waiting {
        /// In the scheduler's words.
        why: String,
        /// No node can ever hold it, as they are now.
        never: bool,
        /// The head has just started and may not have heard of it yet.
        recovering: bool,
    },
    /// It is over.
    Gone(Error),
}

/// Who is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// An actor.
    Actor(ActorId),
    /// A model, by name: through the head.
    Model(String),
    /// All listeners of a topic. A call with retries must arrive at each of them at least once and ends with how many
    /// it reached; one without ends at once with how many there are.
    Topic(String),
}

/// What is asked.
#[derive(Clone, Debug)]
pub struct Request<B> {
    /// Which method.
    pub method: String,
    /// Its arguments.
    pub args: B,
    /// Same key, same actor: it runs once. Empty = no such promise.
    pub key: String,
    /// Actors whose turns wait for this call, one a line.
    pub chain: String,
    /// W3C `traceparent`; empty = none.
    pub traceparent: String,
    /// Bound on the call, milliseconds; 0 = none.
    pub timeout_ms: u64,
    /// Bound on its turn, milliseconds; 0 = the agent's.
    pub run_timeout_ms: u64,
    /// Exceptions of the agent after which it is tried again, and the pauses before that.
    pub retry: Option<Arc<Retry>>,
    /// Processes died while they ran it: it runs with nothing beside it.
    pub alone: bool,
}

/// Where an opened call goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum To {
    /// To an actor.
    Actor(ActorId),
    /// To a model.
    Model(String),
}

/// A call as it is sent, once or again.
#[derive(Clone, Debug)]
pub struct Open<B> {
    /// Its number.
    pub call: CallId,
    /// Where it goes.
    pub to: To,
    /// The activation that it is for; another one refuses it. 0 = any.
    pub epoch: u64,
    /// The activation that may have run it; 0 = none. With a key, another one answers from what it was handed, or refuses.
    pub tried: u64,
    /// It runs with nothing beside it.
    pub alone: bool,
    /// Further actors behind the same lane that get the same request, and their epochs; their calls have the numbers behind this one.
    pub also: Vec<(ActorId, u64)>,
    /// What is asked.
    pub request: Arc<Request<B>>,
}

/// What is sent over a lane.
#[derive(Clone, Debug)]
pub enum Frame<B> {
    /// Begin a call.
    Open(Open<B>),
    /// End a call.
    Cancel {
        /// Its number.
        call: CallId,
        /// Why.
        reason: String,
    },
    /// The reader of a call has room for more items.
    Credit {
        /// Its number.
        call: CallId,
        /// How many more.
        items: u32,
    },
    /// Comes back once all that was sent before it was answered or taken into a mailbox.
    Fence(u64),
    /// Where is this actor?
    Locate(ActorId),
    /// Who listens to this topic?
    Watch(String),
    /// A call is not tried again.
    DeadLetter(DeadCall),
    /// The driver goes for good.
    Leave,
}

impl<B> Frame<B> {
    /// Whether a frame that waits for the head is still of use once its stream broke: calls to actors are placed anew,
    /// questions are asked anew, and a fence has come back by that.
    pub fn outlives_head(&self) -> bool {
        match self {
            Self::Open(open) => matches!(open.to, To::Model(_)),
            Self::Cancel { .. } | Self::Credit { .. } | Self::DeadLetter(_) | Self::Leave => true,
            Self::Fence(_) | Self::Locate(_) | Self::Watch(_) => false,
        }
    }

    /// Numbers of the calls that it opens.
    pub fn opens(&self) -> std::ops::Range<CallId> {
        match self {
            Self::Open(open) => open.call..open.call + 1 + open.also.len() as u64,
            _ => 0..0,
        }
    }
}

/// A call that is not tried again: process after process died while it ran.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadCall {
    /// On which actor.
    pub actor: ActorId,
    /// The method.
    pub method: String,
    /// Bytes of the arguments.
    pub bytes: usize,
    /// Processes that died.
    pub attempts: u32,
    /// Why the last one did.
    pub error: String,
}

/// Calls that have waited for a place for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overdue {
    /// For the place of this actor.
    pub actor: ActorId,
    /// Why it has none.
    pub why: String,
    /// How many they are.
    pub calls: usize,
}

/// What the shell carries out, in the order in which [`Caller::poll`] gives it.
#[derive(Clone, Debug)]
pub enum Output<B, A> {
    /// Puts a frame behind all others of a lane.
    Send(LaneId, Frame<B>),
    /// Opens a lane; frames that are sent on it meanwhile wait. The shell says [`Caller::lane_unreachable`] or
    /// [`Caller::lane_lost`] of it.
    Dial(LaneId, At<A>),
    /// All frames that wait on this lane go behind all others of the head's, in their order.
    ToHead(LaneId),
    /// Nothing is sent on this lane any more, and nothing is awaited from it; frames that wait for it are dropped.
    Close(LaneId),
    /// What waits on the head's lane is dropped, but [`Frame::DeadLetter`] and [`Frame::Leave`].
    DropWaiting,
    /// The call is over, and not by an answer of its own: how many listeners a message has reached, or why it failed.
    Ended(CallId, Result<u32, Error>),
    /// What was asked by [`Caller::watch`]: the actor has a place, or never will.
    Placed(ActorId, Result<(), Error>),
    /// Calls wait for a place, and for this reason whoever calls was not told yet.
    Overdue(Overdue),
}

/// A time on the shell's clock, which does not go back.
pub type Now = Millis;

/// The head has been away for so long that nobody waits for it.
pub fn head_away(since_ms: Millis, why: Option<&str>) -> Error {
    let why = why.map(|why| format!(": {why}")).unwrap_or_default();
    let error = Error::unavailable(format!("the head cannot be reached, since {} s{why}", since_ms / 1_000));
    error.hint("is it running? calls go on by themselves once it is back; how long they wait is its --session-grace")
}
