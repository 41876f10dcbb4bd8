//! What the gateway needs of the cluster.

use std::sync::Arc;

use covey_domain::{
    AgentName, AgentSpec, CallerId, ContextId, Envelope, Error, ModelName, TaskId, TaskRecord,
    infer::{InferEvent, InferRequest},
    status::{ClusterStatus, ModelStatus},
    task::TaskInput,
};
use futures::{future::BoxFuture, stream::BoxStream};

/// A request for a task, as any protocol decodes it.
#[derive(Clone, Debug)]
pub struct SubmitTask {
    /// Who asks.
    pub caller: CallerId,
    /// Which agent.
    pub agent: AgentName,
    /// Which skill; `None` = the default.
    pub skill: Option<String>,
    /// What is asked.
    pub input: TaskInput,
    /// Which conversation; `None` = a new one.
    pub context: Option<ContextId>,
    /// The asker's id of the message: the same one makes the same task.
    pub message_id: Option<String>,
    /// Model asked for.
    pub model: Option<ModelName>,
    /// Which protocol.
    pub protocol: &'static str,
    /// Bound from acceptance.
    pub timeout_ms: Option<u64>,
}

/// A task, and the number of its last event while it runs (`None` once it has ended).
pub type FoundTask = (Arc<TaskRecord>, Option<u64>);

/// The cluster, as seen from a protocol.
pub trait Cluster: Send + Sync + 'static {
    /// All agents by name.
    fn agents(&self) -> BoxFuture<'_, Vec<Arc<AgentSpec>>>;
    /// The agent served at the root paths.
    fn default_agent(&self) -> BoxFuture<'_, Option<Arc<AgentSpec>>>;
    /// Journals a task before it answers. The flag tells whether it is new.
    fn submit(&self, task: SubmitTask) -> BoxFuture<'_, Result<(Arc<TaskRecord>, bool), Error>>;
    /// A task of this caller, and the number of its last event while it runs; another's is "not found".
    fn task<'a>(&'a self, caller: &'a CallerId, id: &'a TaskId) -> BoxFuture<'a, Result<FoundTask, Error>>;
    /// Ends a task of this caller.
    fn cancel<'a>(
        &'a self,
        caller: &'a CallerId,
        id: &'a TaskId,
        reason: &'a str,
    ) -> BoxFuture<'a, Result<Arc<TaskRecord>, Error>>;
    /// Events above `after`, up to the end of the task.
    fn events(&self, task: TaskId, after: u64) -> BoxStream<'static, Result<Arc<Envelope>, Error>>;
    /// Asks a model. Dropping the stream cancels the work.
    fn infer(&self, request: InferRequest) -> BoxStream<'static, Result<InferEvent, Error>>;
    /// Models some live worker can serve.
    fn models(&self) -> BoxFuture<'_, Vec<ModelStatus>>;
    /// A picture of the cluster.
    fn status(&self) -> BoxFuture<'_, ClusterStatus>;
}
