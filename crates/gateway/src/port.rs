//! What the gateway needs of the cluster.

use std::{ops::Range, sync::Arc};

use bytes::Bytes;
use covey_domain::{
    AgentName, AgentSpec, CallerId, ContextId, Digest, Envelope, Error, Hook, HookState, ModelName, TaskId, TaskRecord,
    TaskState,
    event::Content,
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
    /// When it is answered that the task is made.
    pub answered: Answered,
}

/// When a submission is answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Answered {
    /// Once the task is on disk.
    #[default]
    Durable,
    /// Before: the asker tells nobody of the task until its log says how it went, which is on disk then. The first of two
    /// waits for the disk is saved.
    Early,
}

/// A message to a task that runs.
#[derive(Clone, Debug)]
pub struct SayTask {
    /// Who says it.
    pub caller: CallerId,
    /// To which task.
    pub task: TaskId,
    /// The caller's id of it: the same one is taken once.
    pub message_id: Option<String>,
    /// What is said.
    pub parts: Vec<Content>,
}

/// A task, and the number of its last event while it runs (`None` once it has ended).
pub type FoundTask = (Arc<TaskRecord>, Option<u64>);

/// Which of a caller's tasks are listed.
#[derive(Clone, Debug, Default)]
pub struct TaskQuery {
    /// Of this agent.
    pub agent: Option<AgentName>,
    /// Of this conversation.
    pub context: Option<ContextId>,
    /// In this state.
    pub state: Option<TaskState>,
    /// Whose status changed then or later, milliseconds since 1970.
    pub since_ms: u64,
    /// Behind this task and its last change: where the page before ended.
    pub before: Option<(u64, TaskId)>,
    /// At most so many.
    pub limit: u32,
}

/// A page of tasks: fewer than were asked for where they are large.
pub struct ListedTasks {
    /// The tasks.
    pub records: Vec<TaskRecord>,
    /// Where the page ends, as [`TaskQuery::before`] has it; `None` where no other can follow.
    pub next: Option<(u64, TaskId)>,
    /// How many there are in all.
    pub all: u64,
}

/// A file of the artifact store.
pub enum ArtifactBody {
    /// Its bytes, as they are read.
    Bytes(BoxStream<'static, Result<Bytes, Error>>),
    /// An address where anybody can read it now.
    Elsewhere(String),
}

/// The cluster, as seen from a protocol.
pub trait Cluster: Send + Sync + 'static {
    /// All agents by name.
    fn agents(&self) -> BoxFuture<'_, Vec<Arc<AgentSpec>>>;
    /// One agent. Its cost does not depend on how many there are.
    fn agent<'a>(&'a self, name: &'a AgentName) -> BoxFuture<'a, Option<Arc<AgentSpec>>>;
    /// The agent served at the root paths.
    fn default_agent(&self) -> BoxFuture<'_, Option<Arc<AgentSpec>>>;
    /// Journals a task before it answers. The flag tells whether it is new.
    fn submit(&self, task: SubmitTask) -> BoxFuture<'_, Result<(Arc<TaskRecord>, bool), Error>>;
    /// Puts a message to a task of this caller into its log and its actor's mailbox: the answer to its oldest question,
    /// or a word to what it does. Gives the number of the last event that it made.
    fn say(&self, say: SayTask) -> BoxFuture<'_, Result<(Arc<TaskRecord>, u64), Error>>;
    /// A task of this caller, and the number of its last event while it runs; another's is "not found".
    fn task<'a>(&'a self, caller: &'a CallerId, id: &'a TaskId) -> BoxFuture<'a, Result<FoundTask, Error>>;
    /// Tasks of this caller by the last change of their status, newest first.
    fn tasks<'a>(&'a self, caller: &'a CallerId, query: &'a TaskQuery) -> BoxFuture<'a, Result<ListedTasks, Error>>;
    /// Ends a task of this caller.
    fn cancel<'a>(
        &'a self,
        caller: &'a CallerId,
        id: &'a TaskId,
        reason: &'a str,
    ) -> BoxFuture<'a, Result<Arc<TaskRecord>, Error>>;
    /// Events above `after`, up to the end of the task. Nothing follows an error.
    fn events(&self, task: TaskId, after: u64) -> BoxStream<'static, Result<Arc<Envelope>, Error>>;
    /// How many bytes a file of the artifact store has.
    fn artifact<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<u64, Error>>;
    /// Bytes of it.
    fn artifact_body<'a>(&'a self, digest: &'a Digest, range: Range<u64>)
    -> BoxFuture<'a, Result<ArtifactBody, Error>>;
    /// Webhooks of a task, in a state, or all.
    fn hooks<'a>(
        &'a self,
        task: Option<&'a TaskId>,
        state: Option<HookState>,
    ) -> BoxFuture<'a, Result<Vec<Hook>, Error>>;
    /// Keeps a webhook; one of the same id is replaced.
    fn keep_hook<'a>(&'a self, hook: &'a Hook) -> BoxFuture<'a, Result<(), Error>>;
    /// Writes how far webhooks are, those that were not forgotten meanwhile.
    fn move_hooks<'a>(&'a self, hooks: &'a [Hook]) -> BoxFuture<'a, Result<(), Error>>;
    /// Forgets a webhook. Idempotent.
    fn forget_hook<'a>(&'a self, task: &'a TaskId, id: &'a str) -> BoxFuture<'a, Result<(), Error>>;
    /// Whether this caller may be told of its tasks: its key is good.
    fn is_known(&self, caller: &CallerId) -> bool;
    /// The text with the values of the secrets that it refers to; for whoever may refer to them.
    fn resolve(&self, caller: &CallerId, text: &str) -> Result<String, Error>;
    /// Asks a model. Dropping the stream cancels the work.
    fn infer(&self, request: InferRequest) -> BoxStream<'static, Result<InferEvent, Error>>;
    /// Models some live worker can serve.
    fn models(&self) -> BoxFuture<'_, Vec<ModelStatus>>;
    /// A picture of the cluster.
    fn status(&self) -> BoxFuture<'_, ClusterStatus>;
}
