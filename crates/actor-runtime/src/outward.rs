//! What actors may ask of the cluster around their worker.

use std::sync::Arc;

use bytes::Bytes;
use covey_domain::{Error, NodeId};
use covey_proto::v1::{CallFrame, Payload, SaveStateRequest};
use futures::future::BoxFuture;
use prost::Message as _;
use tokio::sync::mpsc;

use crate::memos::SharedMemos;

/// The worker's way to the rest of the cluster.
pub trait Outward: Send + Sync + 'static {
    /// A stream of calls to other actors: takes where answers go, gives where calls go. Calls keep their order.
    fn lane(&self, answers: mpsc::UnboundedSender<CallFrame>) -> mpsc::UnboundedSender<CallFrame>;

    /// The worker's own session: what is made for no driver lives for it.
    fn session(&self) -> String;

    /// A method of service `covey.v1.Covey` by name, with its encoded request; gives the encoded reply.
    fn verb(&self, name: String, body: Bytes) -> BoxFuture<'static, Result<Bytes, Error>>;
}

/// Keeps the state of one activation of one actor.
#[derive(Clone)]
pub(crate) struct Saver {
    pub outward: Arc<dyn Outward>,
    pub node: NodeId,
    pub actor: String,
    pub epoch: u64,
    /// What the actor has answered goes with its state.
    pub memos: SharedMemos,
}

impl Saver {
    /// Durable when this returns; without a state and without answers there is nothing to keep. Says whether there was a state.
    pub async fn save(&self, state: Option<Payload>) -> Result<bool, Error> {
        let answered = self.memos.answered();
        let kept = state.is_some();
        if !kept && answered.is_empty() {
            return Ok(false);
        }
        let request = SaveStateRequest {
            node: self.node.to_string(),
            actor: self.actor.clone(),
            epoch: self.epoch,
            state,
            answered,
        };
        self.outward.verb("SaveState".into(), request.encode_to_vec().into()).await.map(|_| kept)
    }
}
