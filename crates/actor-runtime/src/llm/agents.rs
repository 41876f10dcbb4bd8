//! Other agents as tools: each call is a job of a pool of theirs.

use std::sync::Arc;

use bytes::Bytes;
use covey_domain::{AgentSpec, Error, ErrorKind, event::Content};
use covey_proto::{
    from_json, payload_json,
    v1::{CallCancel, CallFrame, CallOpen, Codec, ListAgentsReply, Payload, call_frame::Body, call_open::Target},
};
use prost::Message as _;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use super::{CallLog, tools::Said};
use crate::Outward;

/// All agents of the cluster.
pub(super) async fn list(outward: &dyn Outward) -> Result<Vec<AgentSpec>, Error> {
    let reply = outward.verb("ListAgents".into(), Bytes::new()).await?;
    let reply = ListAgentsReply::decode(reply)
        .map_err(|e| Error::internal(format!("failed to read the list of agents: {e}")))?;
    reply.specs.iter().map(|spec| from_json("an agent", spec)).collect()
}

/// A skill of an agent.
pub(super) struct AgentTool {
    agent: String,
    pool: String,
    skill: String,
    outward: Arc<dyn Outward>,
}

impl AgentTool {
    pub fn new(agent: &str, skill: &str, outward: Arc<dyn Outward>) -> Self {
        // The actors live as long as this worker, or until there is nothing to do.
        let session = outward.session();
        let pool = json!({"agent": agent, "session": session, "concurrency": 1, "id": "tools"}).to_string();
        Self { agent: agent.to_owned(), pool, skill: skill.to_owned(), outward }
    }

    /// What the agent says; a stream as a whole, and its items in the log as they come.
    pub async fn call(
        &self,
        arguments: Map<String, Value>,
        log: CallLog<'_>,
        chain: &str,
        traceparent: &str,
    ) -> Result<Said, Error> {
        log.delegated(&self.agent, &self.skill)?;
        let said = self.ask(arguments, log, chain, traceparent).await;
        log.returned(said.is_ok())?;
        let text = said?;
        Ok(Said { content: vec![Content::Text(text.clone())], text, structured: None })
    }

    async fn ask(
        &self,
        arguments: Map<String, Value>,
        log: CallLog<'_>,
        chain: &str,
        traceparent: &str,
    ) -> Result<String, Error> {
        /// Cancels a call that nobody waits for.
        struct Leave(mpsc::UnboundedSender<CallFrame>);
        impl Drop for Leave {
            fn drop(&mut self) {
                let body = Some(Body::Cancel(CallCancel { reason: "the agent's turn is over".into(), gone: false }));
                let _ = self.0.send(CallFrame { id: 1, body });
            }
        }
        #[expect(clippy::disallowed_methods, reason = "answers of one call, a window ahead at most")]
        let (tx, mut answers) = mpsc::unbounded_channel();
        let lane = Leave(self.outward.lane(tx));
        let open = CallOpen {
            method: self.skill.clone(),
            args: Some(payload_json(&json!({"args": [], "kwargs": arguments}))),
            target: Some(Target::Pool(self.pool.clone())),
            chain: chain.to_owned(),
            traceparent: traceparent.to_owned(),
            ..CallOpen::default()
        };
        let gone = || Error::unavailable("the connection to the cluster broke");
        lane.0.send(CallFrame { id: 1, body: Some(Body::Open(open)) }).map_err(|_| gone())?;
        let mut said = String::new();
        while let Some(frame) = answers.recv().await {
            match frame.body {
                Some(Body::Item(item)) => {
                    log.progress(add(&mut said, &item)?).await?;
                    let _ = lane.0.send(CallFrame { id: 1, body: Some(Body::Credit(1)) });
                }
                Some(Body::End(end)) => {
                    if let Some(value) = covey_proto::call_result(end)? {
                        add(&mut said, &value)?;
                    }
                    return Ok(said);
                }
                _ => {}
            }
        }
        Err(gone())
    }
}

/// Text as it is, other values as JSON.
fn add(said: &mut String, value: &Payload) -> Result<Value, Error> {
    if value.codec() != Codec::Json {
        return Err(Error::new(ErrorKind::FailedPrecondition, "the agent's answer is no JSON"));
    }
    let value: Value = from_json("an answer", &value.body)?;
    match &value {
        Value::String(text) => said.push_str(text),
        other => said.push_str(&other.to_string()),
    }
    Ok(value)
}
