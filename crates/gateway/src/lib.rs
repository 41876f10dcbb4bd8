//! Every client protocol. A protocol is `decode` (wire → command) and `encode` (log → frames) around
//! [`covey_domain::TaskEvent`]; what the gateway needs of the cluster is the port [`Cluster`].
//!
//! What each protocol needs stands once, outside their folders:
//!
//! | module | holds |
//! |---|---|
//! | `tasks` | agents and tasks that are there for a caller: find, make, send a message (the answer to a question), cancel |
//! | `cursor`, `follow`, `bookmarks` | frames of a log behind a cursor, to the end of the task or the turn, with a snapshot or without |
//! | `fold`, `answers` | an answer folded out of the log, within what a caller may have in memory |
//! | `sse`, `errors` | server-sent events with cursors and keep-alive; refusals with their status and `Retry-After` |
//! | `shares`, `admission` | how many streams a caller reads; how many of its large requests are under way |
//!
//! A protocol brings `decode` (requests to `SubmitTask`, or a task's id and `Content`), a `follow::Projection` (entries to frames), its
//! words for the kinds of errors, and routes. `events` is the smallest one.

pub mod a2a;
mod admission;
mod answers;
mod artifacts;
mod bookmarks;
mod cursor;
mod errors;
mod events;
#[cfg(test)]
mod fake;
mod fold;
mod follow;
pub mod openai;
mod port;
mod shares;
mod sign;
mod sse;
mod tasks;
#[cfg(test)]
mod tests;

pub use ipnet::IpNet;
pub use port::{Answered, ArtifactBody, Cluster, FoundTask, ListedTasks, SayTask, SubmitTask, TaskQuery};
pub use sign::Signer;

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::DefaultBodyLimit,
    http::{HeaderMap, header},
};
use covey_domain::{AgentName, CallerId, caps, infer::Terms};

/// Who asks; put into the request's extensions by the process's authentication layer.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Whose tasks are seen.
    pub id: CallerId,
    /// Agents that are there for this caller; `None` = all.
    pub agents: Option<Arc<BTreeSet<AgentName>>>,
    /// It may name the model that answers it.
    pub models: bool,
    /// Its requests to models go before those of lower ones, and no request says more than this.
    pub priority: i32,
}

impl Caller {
    /// One for whom all agents and models are there, and who says how urgent it is.
    pub fn of_all(id: CallerId) -> Self {
        Self { id, agents: None, models: true, priority: i32::MAX }
    }

    /// How a request of this caller is ranked, of those that say how urgent they are.
    pub(crate) fn terms(&self, priority: i32) -> Terms {
        let id = self.id.as_str();
        // Turns are fair between keys: whoever names many users has no more of them.
        Terms { caller: id.to_owned(), tenant: id.to_owned(), priority: priority.min(self.priority), timeout_ms: None }
    }

    /// Whether an agent is there for this caller.
    pub fn may_ask(&self, agent: &AgentName) -> bool {
        self.agents.as_ref().is_none_or(|agents| agents.contains(agent))
    }
}

/// What whoever runs the gateway decides.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Signs cards and notifications.
    pub signer: Signer,
    /// Networks that webhooks may be in although they are not public, without TLS too.
    pub push_allow: Vec<IpNet>,
    /// Where this gateway is, `http://host:port`, for those who do not tell by what name they reached it.
    pub root: String,
    /// Where else it is, `https://agents.example`: cards are signed for these and for `root`, and for nowhere else.
    pub origins: Vec<String>,
    /// A link to a large file opens it for so long.
    pub links_for: Duration,
    /// Where large requests are parsed and answered: threads for whose work nobody else waits.
    pub background: tokio::runtime::Handle,
}

/// All routes of all protocols. Goes on with the webhooks of earlier days, so it must run on a tokio runtime.
pub fn router(cluster: Arc<dyn Cluster>, settings: &Settings) -> Router {
    let admission = admission::Admission::new(settings.background.clone());
    // What one caller may have, whatever protocols it speaks.
    let (shares, answers) = (shares::Shares::default(), answers::Answers::default());
    Router::new()
        .merge(admission.over(a2a::router(cluster.clone(), shares.clone(), answers, settings), a2a::overloaded))
        .merge(admission.over(openai::router(cluster.clone()), openai::overloaded))
        .merge(events::router(cluster, shares, settings))
        .layer(DefaultBodyLimit::max(caps::MESSAGE_BYTES_MAX))
}

/// Whether a request is one of gRPC, which has answers of its own.
pub fn is_grpc(headers: &HeaderMap) -> bool {
    headers.get(header::CONTENT_TYPE).is_some_and(|v| v.as_bytes().starts_with(b"application/grpc"))
}

const KEYS: &str = "/.well-known/jwks.json";

/// Whether a path is one of [`open_router`].
pub fn is_open(path: &str) -> bool {
    path == KEYS || path.starts_with(artifacts::ROOT)
}

/// Routes that are open to everybody: the public half of the key that signs, and files to whoever has a link.
pub fn open_router(cluster: Arc<dyn Cluster>, settings: &Settings) -> Router {
    let keys = settings.signer.jwks();
    Router::new()
        .route(KEYS, axum::routing::get(move || async move { axum::Json(keys) }))
        .merge(artifacts::router(cluster, settings))
}
