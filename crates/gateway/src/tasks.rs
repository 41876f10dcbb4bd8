//! What protocols ask of agents and tasks, for one caller. It is the one place that looks at who asks: what is not there for a caller
//! is not found, as if it were not there at all.
//!
//! Errors are the domain's. What a protocol may want to tell apart has a kind of its own: `NotFound` = no such agent or task here for
//! this caller; `FailedPrecondition` = the task has ended; `PermissionDenied` = the caller has no say in that; all others are of the
//! cluster.

use std::sync::Arc;

use covey_domain::{AgentName, AgentSpec, Error, ErrorKind, TaskId, TaskRecord, event::Content};

use crate::{Caller, Cluster, FoundTask, SayTask, SubmitTask};

/// An agent by name, or the default one.
pub(crate) async fn agent(cluster: &dyn Cluster, caller: &Caller, name: Option<&str>) -> Result<Arc<AgentSpec>, Error> {
    let found = match name {
        Some(name) => cluster.agent(&name.into()).await,
        None => cluster.default_agent().await,
    };
    found.filter(|agent| caller.may_ask(&agent.name)).ok_or_else(|| match name {
        Some(name) => Error::not_found("agent", name),
        None => Error::new(ErrorKind::NotFound, "there is no agent here for you"),
    })
}

/// All agents, by name.
pub(crate) async fn agents(cluster: &dyn Cluster, caller: &Caller) -> Vec<Arc<AgentSpec>> {
    let mut all = cluster.agents().await;
    all.retain(|agent| caller.may_ask(&agent.name));
    all
}

/// Tasks of one caller with one agent.
#[derive(Clone, Copy)]
pub(crate) struct Tasks<'a> {
    pub cluster: &'a dyn Cluster,
    pub caller: &'a Caller,
    /// The agent that was addressed: tasks of others are not found. `None` = all that are there for the caller.
    pub agent: Option<&'a AgentName>,
}

impl Tasks<'_> {
    /// A task, and the number of its last event while it runs.
    pub async fn find(&self, id: &TaskId) -> Result<FoundTask, Error> {
        let found = self.cluster.task(&self.caller.id, id).await?;
        let agent = &found.0.agent;
        let is_here = self.agent.map_or_else(|| self.caller.may_ask(agent), |addressed| agent == addressed);
        if is_here { Ok(found) } else { Err(Error::not_found("task", id)) }
    }

    /// Makes a task.
    pub async fn submit(&self, task: SubmitTask) -> Result<Arc<TaskRecord>, Error> {
        if !self.caller.may_ask(&task.agent) {
            return Err(Error::not_found("agent", &task.agent));
        }
        if task.model.is_some() && !self.caller.models {
            let why = "the request names a model, and this key opens none: the agent has its own";
            return Err(Error::new(ErrorKind::PermissionDenied, why));
        }
        let caller = self.caller.id.clone();
        let (record, _) = self.cluster.submit(SubmitTask { caller, ..task }).await?;
        Ok(record)
    }

    /// Says something to a task that was found: the answer to its oldest question, or a word to what it does. Gives the number of the
    /// last event that it made.
    pub async fn send_message(
        &self,
        to: &TaskRecord,
        message_id: Option<String>,
        parts: Vec<Content>,
    ) -> Result<(Arc<TaskRecord>, u64), Error> {
        let caller = self.caller.id.clone();
        self.cluster.say(SayTask { caller, task: to.id.clone(), message_id, parts }).await
    }

    /// Ends a task. Gives it as it was before; how it ended is in its log.
    pub async fn cancel(&self, id: &TaskId, reason: &str) -> Result<Arc<TaskRecord>, Error> {
        let (record, _) = self.find(id).await?;
        self.cluster.cancel(&self.caller.id, &record.id, reason).await?;
        Ok(record)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use covey_domain::TaskState;
    use serde_json::json;

    use super::*;
    use crate::fake::{Fake, asks, begun, record};

    fn cluster() -> Fake {
        let agent = |name: &str| json!({"name": name, "kind": {"type": "native", "implementation": "echo"}});
        let cluster = Fake::new(["echo", "other", "hidden"].map(agent));
        cluster.keep(record("mine"), begun().into_iter().chain(asks("q")).collect());
        cluster.keep(TaskRecord { caller: "you".into(), ..record("yours") }, begun());
        cluster.keep(TaskRecord { agent: "other".into(), ..record("of-other") }, begun());
        cluster.keep(TaskRecord { agent: "hidden".into(), ..record("of-hidden") }, begun());
        cluster
    }

    fn caller() -> Caller {
        let agents: BTreeSet<_> = ["echo", "other"].map(Into::into).into();
        Caller { agents: Some(Arc::new(agents)), models: false, ..Caller::of_all("me".into()) }
    }

    #[tokio::test]
    async fn what_is_not_there_for_a_caller_is_not_found() {
        let (cluster, caller, echo) = (cluster(), caller(), AgentName::from("echo"));
        assert_eq!(super::agent(&cluster, &caller, None).await.unwrap().name, echo);
        let hidden = super::agent(&cluster, &caller, Some("hidden")).await.unwrap_err();
        let none = super::agent(&cluster, &caller, Some("none")).await.unwrap_err();
        assert_eq!((hidden.kind, hidden.message.replace("hidden", "none")), (none.kind, none.message));
        assert_eq!(agents(&cluster, &caller).await.len(), 2);
        let all = Tasks { cluster: &cluster, caller: &caller, agent: None };
        let of_echo = Tasks { agent: Some(&echo), ..all };
        for (id, by_all, by_echo) in [
            ("mine", true, true),
            ("yours", false, false),
            ("of-other", true, false),
            ("of-hidden", false, false),
            ("none", false, false),
        ] {
            for (tasks, is_found) in [(all, by_all), (of_echo, by_echo)] {
                match tasks.find(&id.into()).await {
                    Ok(_) => assert!(is_found, "{id}"),
                    Err(error) => assert_eq!((is_found, error), (false, Error::not_found("task", id))),
                }
            }
            if !by_echo {
                assert_eq!(of_echo.cancel(&id.into(), "no").await.unwrap_err().kind, ErrorKind::NotFound);
            }
        }
    }

    #[tokio::test]
    async fn a_question_is_answered_and_a_task_that_has_ended_takes_nothing() {
        let (cluster, caller) = (cluster(), caller());
        let tasks = Tasks { cluster: &cluster, caller: &caller, agent: None };
        let (mine, last) = tasks.find(&"mine".into()).await.unwrap();
        let (_, at) = tasks.send_message(&mine, None, vec![Content::Text("ask".into())]).await.unwrap();
        assert_eq!(at, last.unwrap() + 3);
        let stopped = tasks.cancel(&mine.id, "enough").await.unwrap();
        assert_eq!(stopped.state, TaskState::InputRequired);
        assert_eq!(tasks.find(&mine.id).await.unwrap().0.state, TaskState::Canceled);
        let late = tasks.send_message(&mine, None, vec![Content::Text("more".into())]).await.unwrap_err();
        let again = tasks.cancel(&mine.id, "again").await.unwrap_err();
        assert_eq!((late.kind, again.kind), (ErrorKind::FailedPrecondition, ErrorKind::FailedPrecondition));
    }

    #[tokio::test]
    async fn a_task_is_made_for_who_may_ask_and_names_no_model_without_a_say() {
        let (cluster, caller) = (cluster(), caller());
        let tasks = Tasks { cluster: &cluster, caller: &caller, agent: None };
        let submit = |agent: &str, model: Option<&str>| SubmitTask {
            caller: "somebody else".into(),
            agent: agent.into(),
            skill: None,
            input: Default::default(),
            context: None,
            message_id: None,
            model: model.map(Into::into),
            protocol: "test",
            timeout_ms: None,
            answered: Default::default(),
        };
        let made = tasks.submit(submit("echo", None)).await.unwrap();
        assert_eq!(made.caller, caller.id);
        let refused = |error: Error| error.kind;
        assert_eq!(tasks.submit(submit("hidden", None)).await.map_err(refused), Err(ErrorKind::NotFound));
        assert_eq!(tasks.submit(submit("echo", Some("m"))).await.map_err(refused), Err(ErrorKind::PermissionDenied));
    }
}
