//! The gateway's port, kept by this head.

use std::sync::Arc;

use covey_cluster_core::head::{Submission, Submitted};
use covey_domain::{
    AgentKind, AgentName, AgentSpec, CallerId, ContextId, Digest, Envelope, Error, ErrorKind, Hook, HookState, TaskId,
    TaskRecord, caps,
    infer::{ChatMessage, InferEvent, InferRequest},
    log::Answer,
    secret,
    status::{ClusterStatus, ModelStatus},
};
use covey_gateway::{ArtifactBody, Cluster, FoundTask, ListedTasks, SayTask, SubmitTask, TaskQuery};
use covey_proto::{
    payload_json,
    v1::{CallCancel, CallFrame, CallOpen, call_end, call_frame::Body, call_open::Target},
};
use covey_store::TaskFilter;
use futures::{FutureExt as _, StreamExt as _, TryFutureExt as _, future::BoxFuture, stream::BoxStream};

use crate::{Shared, callers, fresh_id, owner::Input, queue, relay::CLIENT};

/// Names of agents that are no one's business but their driver's.
const INTERNAL: &str = "covey.";
/// What drivers speak, who have the key of the whole cluster.
const NATIVE: &str = "native";
/// Earlier turns of a conversation handed to an agent.
const HISTORY_TURNS_MAX: u32 = 20;

pub(crate) struct ClusterPort {
    pub shared: Shared,
}

impl ClusterPort {
    /// The page of `/metrics`.
    pub async fn metrics(&self) -> String {
        crate::metrics::render(&self.status().await, self.shared.relay.counts())
    }

    /// A task, whosever it is; the number of its last event where it has not ended.
    pub async fn look_up(&self, id: &TaskId) -> Result<Option<FoundTask>, Error> {
        let active = self.shared.owner.ask(|tx| Input::ActiveTask(id.clone(), tx)).await?;
        match active {
            Some((record, last)) => Ok(Some((record, Some(last)))),
            None => Ok(self.stored(id).await?.map(|record| (record, None))),
        }
    }

    async fn stored(&self, id: &TaskId) -> Result<Option<Arc<TaskRecord>>, Error> {
        let stored = self.shared.store.task(id).await;
        stored.map_err(|e| Error::internal(format!("failed to read a task: {e}")))
    }

    /// Whether what a caller says may take more of the disk. The owner of the cluster has no bound, nor have actors.
    fn room_of(&self, caller: &CallerId) -> Result<(), Error> {
        let (bytes, most) = (self.shared.store.usage(caller), self.shared.caller_bytes);
        if bytes <= most || [callers::OWNER, callers::ACTORS].contains(&caller.as_str()) {
            return Ok(());
        }
        let gb = |bytes: u64| bytes as f64 / 1e9;
        let text =
            format!("the tasks of `{caller}` take {:.3} GB on disk, of {:.3} GB that it may have", gb(bytes), gb(most));
        let hint =
            "tasks go some time after their end (`covey head --keep-days`); `covey head --caller-gb` allows more";
        Err(Error::new(ErrorKind::Overloaded, text).hint(hint))
    }

    /// The task that the same message made, if that has ended; and in `ask` up to when that was looked for.
    async fn ended_of(&self, ask: &mut Submission) -> Result<Option<Arc<TaskRecord>>, Error> {
        let Some(message) = &ask.message_id else { return Ok(None) };
        // Before the look: what ends meanwhile the owner still knows.
        ask.looked_at = self.shared.ended.load(std::sync::atomic::Ordering::Acquire);
        let found = self.shared.store.task_of_message(&ask.caller, &ask.agent, message).await;
        let Some(id) = found.map_err(|e| Error::internal(format!("failed to look for a message: {e}")))? else {
            return Ok(None);
        };
        Ok(self.stored(&id).await?.filter(|record| record.state.is_terminal()))
    }

    /// Earlier turns of `context` with this agent, oldest first.
    async fn history(
        &self,
        context: &ContextId,
        spec: &AgentSpec,
        caller: &CallerId,
    ) -> Result<Vec<ChatMessage>, Error> {
        let failed = |e: covey_store::Error| Error::internal(format!("failed to read history: {e}"));
        let store = &self.shared.store;
        let filter = TaskFilter {
            agent: spec.name.as_str(),
            context: context.as_str(),
            state: "completed",
            caller: caller.as_str(),
            ..TaskFilter::default()
        };
        // The latest, and of large ones only so many as a page takes.
        let turns = store.tasks(filter, "", HISTORY_TURNS_MAX).await.map_err(failed)?.records;
        let mut messages = Vec::new();
        for turn in turns.into_iter().rev() {
            let mut answer = Answer::default();
            let mut after = 0;
            loop {
                let page = store.events(&turn.id, after).await.map_err(failed)?;
                let Some(last) = page.last() else { break };
                after = last.seq;
                page.iter().for_each(|e| answer.push(&e.event));
                if last.event.is_terminal() {
                    break;
                }
            }
            messages.push(ChatMessage::new("user", turn.input.text()));
            messages.push(ChatMessage::new("assistant", answer.display()));
        }
        Ok(messages)
    }
}

fn hooks_failed(error: covey_store::Error) -> Error {
    Error::internal(format!("failed to read or write webhooks: {error}"))
}

impl Cluster for ClusterPort {
    fn agents(&self) -> BoxFuture<'_, Vec<Arc<AgentSpec>>> {
        let agents = self.shared.agents.read();
        // Those that the clients make for themselves, to run functions, are nobody's to talk to.
        let known = agents.values().filter(|agent| !agent.name.as_str().starts_with(INTERNAL)).cloned().collect();
        drop(agents);
        std::future::ready(known).boxed()
    }

    fn agent<'a>(&'a self, name: &'a AgentName) -> BoxFuture<'a, Option<Arc<AgentSpec>>> {
        let known = || self.shared.agents.read().get(name).cloned();
        let found = if name.as_str().starts_with(INTERNAL) { None } else { known() };
        std::future::ready(found).boxed()
    }

    fn default_agent(&self) -> BoxFuture<'_, Option<Arc<AgentSpec>>> {
        async {
            if let Some(name) = &self.shared.default_agent
                && let Some(named) = self.agent(name).await
            {
                return Some(named);
            }
            self.agents().await.into_iter().next()
        }
        .boxed()
    }

    fn submit(&self, task: SubmitTask) -> BoxFuture<'_, Result<(Arc<TaskRecord>, bool), Error>> {
        async move {
            let mut input = task.input;
            let refused = self.room_of(&task.caller).err();
            if refused.is_none() {
                self.shared.files.take(&mut input.content).await?;
            }
            if let Some(context) = &task.context
                && input.history.is_empty()
                && let Some(spec) = self.agent(&task.agent).await
                && matches!(spec.kind, AgentKind::Llm(_) | AgentKind::Python(_))
            {
                input.history = self.history(context, &spec, &task.caller).await?;
            }
            let mut ask = Submission {
                id: fresh_id("task").into(),
                context: task.context.unwrap_or_else(|| fresh_id("ctx").into()),
                caller: task.caller,
                agent: task.agent,
                skill: task.skill,
                input: Arc::new(input),
                message_id: task.message_id,
                model: task.model,
                protocol: task.protocol.to_owned(),
                timeout_ms: task.timeout_ms,
                looked_at: 0,
                tasks_max: if task.protocol == NATIVE { caps::DRIVER_TASKS_MAX } else { caps::CALLER_TASKS_MAX },
                refused,
            };
            loop {
                if let Some(ended) = self.ended_of(&mut ask).await? {
                    return Ok((ended, false));
                }
                let asked = Box::new(ask.clone());
                match self.shared.owner.ask(|tx| Input::Submit(asked, task.answered, tx)).await?? {
                    Submitted::Made(record) => return Ok((record, true)),
                    Submitted::Runs(record) => return Ok((record, false)),
                    Submitted::Ended(id) => {
                        let known = self.stored(&id).await?;
                        return known.map(|record| (record, false)).ok_or_else(|| Error::not_found("task", id));
                    }
                    Submitted::LookAgain => {}
                }
            }
        }
        .boxed()
    }

    fn say(&self, mut say: SayTask) -> BoxFuture<'_, Result<(Arc<TaskRecord>, u64), Error>> {
        async move {
            self.room_of(&say.caller)?;
            self.shared.files.take(&mut say.parts).await?;
            self.task(&say.caller, &say.task).await?;
            self.shared.owner.ask(|tx| Input::Say(Box::new(say), tx)).await?
        }
        .boxed()
    }

    fn task<'a>(&'a self, caller: &'a CallerId, id: &'a TaskId) -> BoxFuture<'a, Result<FoundTask, Error>> {
        async move {
            let found = self.look_up(id).await?;
            found.filter(|(r, _)| callers::sees(caller, &r.caller)).ok_or_else(|| Error::not_found("task", id))
        }
        .boxed()
    }

    fn tasks<'a>(&'a self, caller: &'a CallerId, query: &'a TaskQuery) -> BoxFuture<'a, Result<ListedTasks, Error>> {
        async move {
            let filter = TaskFilter {
                agent: query.agent.as_ref().map_or("", |a| a.as_str()),
                context: query.context.as_ref().map_or("", |c| c.as_str()),
                state: query.state.map_or("", covey_domain::TaskState::name),
                caller: caller.as_str(),
                ..TaskFilter::default()
            };
            let before = query.before.as_ref().map(|(at, task)| (*at, task.as_str()));
            let found = self.shared.store.changed(filter, query.since_ms, before, query.limit).await;
            let (page, all) = found.map_err(|e| Error::internal(format!("failed to list tasks: {e}")))?;
            Ok(ListedTasks { records: page.records, next: page.next, all })
        }
        .boxed()
    }

    fn cancel<'a>(
        &'a self,
        caller: &'a CallerId,
        id: &'a TaskId,
        reason: &'a str,
    ) -> BoxFuture<'a, Result<Arc<TaskRecord>, Error>> {
        async move {
            self.task(caller, id).await?;
            self.shared.owner.ask(|tx| Input::CancelTask(id.clone(), caller.to_string(), reason.to_owned(), tx)).await?
        }
        .boxed()
    }

    fn events(&self, task: TaskId, after: u64) -> BoxStream<'static, Result<Arc<Envelope>, Error>> {
        self.shared.feed.subscribe(self.shared.store.clone(), task, after)
    }

    fn artifact<'a>(&'a self, digest: &'a Digest) -> BoxFuture<'a, Result<u64, Error>> {
        self.shared.files.size(digest).boxed()
    }

    fn artifact_body<'a>(
        &'a self,
        digest: &'a Digest,
        range: std::ops::Range<u64>,
    ) -> BoxFuture<'a, Result<ArtifactBody, Error>> {
        self.shared.files.give(digest, range).boxed()
    }

    fn hooks<'a>(
        &'a self,
        task: Option<&'a TaskId>,
        state: Option<HookState>,
    ) -> BoxFuture<'a, Result<Vec<Hook>, Error>> {
        self.shared.store.hooks(task, state).map_err(hooks_failed).boxed()
    }

    fn keep_hook<'a>(&'a self, hook: &'a Hook) -> BoxFuture<'a, Result<(), Error>> {
        self.shared.store.keep_hook(hook).map_err(hooks_failed).boxed()
    }

    fn move_hooks<'a>(&'a self, hooks: &'a [Hook]) -> BoxFuture<'a, Result<(), Error>> {
        self.shared.store.move_hooks(hooks).map_err(hooks_failed).boxed()
    }

    fn forget_hook<'a>(&'a self, task: &'a TaskId, id: &'a str) -> BoxFuture<'a, Result<(), Error>> {
        self.shared.store.forget_hook(task, id).map_err(hooks_failed).boxed()
    }

    fn is_known(&self, caller: &CallerId) -> bool {
        self.shared.callers.is_known(caller)
    }

    fn resolve(&self, caller: &CallerId, text: &str) -> Result<String, Error> {
        if text.contains(secret::SCHEME) && caller.as_str() != callers::OWNER {
            let text = "only the owner of the cluster refers to secrets";
            return Err(Error::new(ErrorKind::PermissionDenied, text));
        }
        secret::resolve(text, |name| self.shared.keys.secrets.value(name))
    }

    fn infer(&self, request: InferRequest) -> BoxStream<'static, Result<InferEvent, Error>> {
        let relay = self.shared.relay.clone();
        let (tx, mut rx) = queue::queue(CLIENT);
        let origin = relay.origin(tx);
        /// Cancels the call when the stream is dropped, wherever it stands.
        struct Leave(crate::relay::Relay, u64);
        impl Drop for Leave {
            fn drop(&mut self) {
                self.0.take_from_origin(self.1, CallFrame { id: 1, body: Some(Body::Cancel(CallCancel::default())) });
                self.0.origin_gone(self.1);
            }
        }
        let leave = Leave(relay.clone(), origin);
        let open = CallOpen {
            method: "infer".into(),
            args: Some(payload_json(&request)),
            target: Some(Target::Model(request.model.to_string())),
            ..CallOpen::default()
        };
        relay.take_from_origin(origin, CallFrame { id: 1, body: Some(Body::Open(open)) });
        async_stream::stream! {
            let leave = leave;
            let mut taken = 0;
            while let Some(frame) = rx.recv().await {
                match frame.body {
                    Some(Body::Item(item)) => {
                        taken += 1;
                        if taken == caps::STREAM_WINDOW / 2 {
                            leave.0.take_from_origin(leave.1, CallFrame { id: 1, body: Some(Body::Credit(taken)) });
                            taken = 0;
                        }
                        yield covey_proto::infer_event(&item);
                    }
                    Some(Body::End(end)) => {
                        if let Some(call_end::Result::Failure(failure)) = end.result {
                            yield Err(failure.into());
                        }
                        return;
                    }
                    _ => {}
                }
            }
        }
        .boxed()
    }

    fn models(&self) -> BoxFuture<'_, Vec<ModelStatus>> {
        self.shared.owner.ask(Input::ModelsKnown).map(Result::unwrap_or_default).boxed()
    }

    fn status(&self) -> BoxFuture<'_, ClusterStatus> {
        async {
            let mut status = self.shared.owner.ask(Input::Status).await.unwrap_or_default();
            status.uptime_s = self.shared.started.elapsed().as_secs();
            status
        }
        .boxed()
    }
}
