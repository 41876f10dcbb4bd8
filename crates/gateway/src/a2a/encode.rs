//! Log → wire, for both versions: a pure function of the log's prefix, so a replay gives the same bytes.

use std::sync::Arc;

use covey_domain::{
    Envelope, TaskEvent, TaskRecord, TaskState,
    event::{Content, Delta, MediaSource, Outcome, PartKind},
};
use serde_json::{Value, json};

/// Which dialect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    V03,
    V1,
}

/// Folds a log into A2A's task and makes the frames of its stream.
pub(super) struct Encoder {
    version: Version,
    record: Arc<TaskRecord>,
    state: TaskState,
    ts_ms: u64,
    said: Option<String>,
    artifact: Vec<Value>,
    /// The next chunk begins the artifact anew.
    fresh: bool,
    text_parts: Vec<covey_domain::PartId>,
    seq: u64,
}

impl Encoder {
    pub fn new(version: Version, record: Arc<TaskRecord>) -> Self {
        let ts_ms = record.created_ms;
        Self {
            version,
            record,
            state: TaskState::Submitted,
            ts_ms,
            said: None,
            artifact: Vec::new(),
            fresh: true,
            text_parts: Vec::new(),
            seq: 0,
        }
    }

    /// Number of the last event taken.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Takes an event and gives the frames it makes.
    pub fn push(&mut self, envelope: &Envelope) -> Vec<Value> {
        self.seq = envelope.seq;
        let before = self.state;
        self.state = self.state.after(&envelope.event);
        match &envelope.event {
            TaskEvent::Started { .. } => {
                self.ts_ms = envelope.ts_ms;
                vec![self.wrapped_task()]
            }
            TaskEvent::Status { message, .. } => {
                if before == self.state && message.is_none() {
                    return Vec::new();
                }
                self.ts_ms = envelope.ts_ms;
                self.said.clone_from(message);
                vec![self.status_update()]
            }
            TaskEvent::PartOpened { part, kind: PartKind::Text, .. } => {
                self.text_parts.push(part.clone());
                Vec::new()
            }
            TaskEvent::PartDelta { part, delta } => match delta {
                Delta::Text(text) if self.text_parts.contains(part) => vec![self.chunk(self.text_part(text), false)],
                Delta::Data(value) => vec![self.chunk(self.data_part(value), false)],
                Delta::Text(_) | Delta::Bytes(_) => Vec::new(),
            },
            TaskEvent::StepReset { .. } => {
                self.fresh = true;
                self.artifact.clear();
                Vec::new()
            }
            TaskEvent::Finished { outcome, .. } => {
                self.ts_ms = envelope.ts_ms;
                let mut frames = Vec::new();
                self.said = match outcome {
                    Outcome::Completed { result: Some(result), .. }
                        if self.artifact.is_empty() && !result.is_null() =>
                    {
                        let part = match result {
                            Value::String(text) => self.text_part(text),
                            other => self.data_part(other),
                        };
                        frames.push(self.chunk(part, true));
                        None
                    }
                    Outcome::Completed { .. } | Outcome::Interrupted { .. } => None,
                    Outcome::Cancelled { reason, .. } => Some(reason.clone()),
                    Outcome::Failed { error } => Some(error.message.clone()),
                };
                frames.push(self.status_update());
                frames
            }
            _ => Vec::new(),
        }
    }

    /// The task as `GetTask` shows it; `history` bounds the messages.
    pub fn task(&self, history: Option<usize>) -> Value {
        let mut task = json!({"id": self.record.id, "contextId": self.record.context, "status": self.status()});
        if self.version == Version::V03 {
            task["kind"] = json!("task");
        }
        if !self.artifact.is_empty() {
            task["artifacts"] =
                json!([{"artifactId": self.artifact_id(), "name": "answer", "parts": merged(&self.artifact)}]);
        }
        if history != Some(0) {
            task["history"] = json!([self.asked()]);
        }
        task
    }

    /// The task as it stands, as a result or a frame: bare in 0.3, wrapped in 1.0.
    pub fn wrapped_task(&self) -> Value {
        self.wrap("task", self.task(None))
    }

    fn wrap(&self, member: &str, value: Value) -> Value {
        match self.version {
            Version::V03 => value,
            Version::V1 => json!({ member: value }),
        }
    }

    fn asked(&self) -> Value {
        let r = &self.record;
        let parts: Vec<_> = r.input.content.iter().map(|c| self.content(c)).collect();
        let mut message = json!({
            "messageId": r.message_id.clone().unwrap_or_else(|| format!("{}-in", r.id)),
            "contextId": r.context, "taskId": r.id, "parts": parts,
            "role": if self.version == Version::V03 { "user" } else { "ROLE_USER" },
        });
        if self.version == Version::V03 {
            message["kind"] = json!("message");
        }
        message
    }

    fn status(&self) -> Value {
        let mut status = json!({"state": self.state_name(), "timestamp": timestamp(self.ts_ms)});
        if let Some(said) = &self.said {
            let mut message = json!({
                "messageId": format!("{}-s{}", self.record.id, self.seq), "taskId": self.record.id,
                "contextId": self.record.context, "parts": [self.text_part(said)],
                "role": if self.version == Version::V03 { "agent" } else { "ROLE_AGENT" },
            });
            if self.version == Version::V03 {
                message["kind"] = json!("message");
            }
            status["message"] = message;
        }
        status
    }

    fn status_update(&self) -> Value {
        let mut update = json!({"taskId": self.record.id, "contextId": self.record.context, "status": self.status()});
        if self.version == Version::V03 {
            update["kind"] = json!("status-update");
            update["final"] = json!(self.state.is_terminal());
        }
        self.wrap("statusUpdate", update)
    }

    fn chunk(&mut self, part: Value, last: bool) -> Value {
        let append = !std::mem::take(&mut self.fresh);
        self.artifact.push(part.clone());
        let mut update = json!({
            "taskId": self.record.id, "contextId": self.record.context, "append": append, "lastChunk": last,
            "artifact": {"artifactId": self.artifact_id(), "name": "answer", "parts": [part]},
        });
        if self.version == Version::V03 {
            update["kind"] = json!("artifact-update");
        }
        self.wrap("artifactUpdate", update)
    }

    fn artifact_id(&self) -> String {
        format!("{}-answer", self.record.id)
    }

    fn text_part(&self, text: &str) -> Value {
        match self.version {
            Version::V03 => json!({"kind": "text", "text": text}),
            Version::V1 => json!({"text": text}),
        }
    }

    fn data_part(&self, value: &Value) -> Value {
        match self.version {
            // 0.3 wants an object there.
            Version::V03 if value.is_object() => json!({"kind": "data", "data": value}),
            Version::V03 => json!({"kind": "data", "data": {"value": value}}),
            Version::V1 => json!({"data": value}),
        }
    }

    fn content(&self, content: &Content) -> Value {
        match content {
            Content::Text(text) => self.text_part(text),
            Content::Data(value) => self.data_part(value),
            Content::File { mime, name, source } => {
                let (old, new, body) = match source {
                    MediaSource::Inline(bytes) => ("bytes", "raw", bytes),
                    MediaSource::Url(url) | MediaSource::ProviderFile(url) => ("uri", "url", url),
                };
                match self.version {
                    Version::V03 => json!({"kind": "file", "file": {old: body, "mimeType": mime, "name": name}}),
                    Version::V1 => json!({new: body, "mediaType": mime, "filename": name.clone().unwrap_or_default()}),
                }
            }
        }
    }

    fn state_name(&self) -> &'static str {
        match self.version {
            Version::V03 => self.state.name(),
            Version::V1 => match self.state {
                TaskState::Submitted => "TASK_STATE_SUBMITTED",
                TaskState::Working => "TASK_STATE_WORKING",
                TaskState::InputRequired => "TASK_STATE_INPUT_REQUIRED",
                TaskState::AuthRequired => "TASK_STATE_AUTH_REQUIRED",
                TaskState::Completed => "TASK_STATE_COMPLETED",
                TaskState::Failed => "TASK_STATE_FAILED",
                TaskState::Canceled => "TASK_STATE_CANCELED",
                TaskState::Rejected => "TASK_STATE_REJECTED",
            },
        }
    }
}

/// Neighbouring texts as one part: a snapshot shows the answer, not how it was cut.
fn merged(parts: &[Value]) -> Vec<Value> {
    let mut out: Vec<Value> = Vec::new();
    for part in parts {
        if let (Some(more), Some(last)) = (part["text"].as_str(), out.last_mut())
            && let Some(Value::String(text)) = last.get_mut("text")
        {
            text.push_str(more);
            continue;
        }
        out.push(part.clone());
    }
    out
}

/// RFC 3339 in UTC with milliseconds, as the spec wants it.
fn timestamp(ms: u64) -> String {
    let (days, in_day) = (ms / 86_400_000, ms % 86_400_000);
    // Civil date from days since 1970 (H. Hinnant's algorithm).
    let z = days as i64 + 719_468;
    let era = z.div_euclid(146_097);
    let doe = z.rem_euclid(146_097);
    let yoe = (doe - doe / 1_460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let (day, month) = (doy - (153 * mp + 2) / 5 + 1, if mp < 10 { mp + 3 } else { mp - 9 });
    let year = yoe + era * 400 + i64::from(month <= 2);
    let (h, m, s, milli) = (in_day / 3_600_000, in_day / 60_000 % 60, in_day / 1000 % 60, in_day % 1000);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{milli:03}Z")
}

#[cfg(test)]
mod tests {
    use covey_domain::{log::Writer, task::TaskInput};

    use super::*;

    #[test]
    fn timestamps_are_rfc_3339() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(timestamp(951_782_400_123), "2000-02-29T00:00:00.123Z");
        assert_eq!(timestamp(1_795_219_199_999), "2026-11-20T23:59:59.999Z");
    }

    fn log(lost_once: bool) -> (Arc<TaskRecord>, Vec<Envelope>) {
        let record = Arc::new(TaskRecord {
            id: "t".into(),
            context: "c".into(),
            agent: "a".into(),
            skill: "run".into(),
            caller: "me".into(),
            message_id: Some("m".into()),
            model: None,
            protocol: "a2a".into(),
            input: TaskInput { content: vec![Content::Text("hi".into())], call: None, history: vec![] },
            state: TaskState::Completed,
            created_ms: 0,
            timeout_ms: None,
            attempt: 1,
        });
        let mut events = vec![
            TaskEvent::Started {
                agent: "a".into(),
                context: "c".into(),
                skill: "run".into(),
                model: None,
                protocol: "a2a".into(),
                parent: None,
                resumes: vec![],
            },
            TaskEvent::Status { state: covey_domain::event::Phase::Working, message: None },
        ];
        if lost_once {
            events.extend(Writer::new("t".into(), 1).text("half an ans"));
            events.push(TaskEvent::StepReset { step: 1 });
        }
        let mut writer = Writer::new("t".into(), 2);
        events.extend(writer.text("hello "));
        events.extend(writer.text("world"));
        events.extend(writer.finish(Outcome::Completed { finish: "stop".into(), result: None }, Default::default()));
        let envelopes = events.into_iter().enumerate().map(|(i, event)| Envelope {
            task: "t".into(),
            seq: i as u64 + 1,
            ts_ms: 0,
            sub: None,
            event,
            meta: Default::default(),
        });
        (record, envelopes.collect())
    }

    #[test]
    fn chunks_of_a_stream_add_up_to_the_task_in_both_versions() {
        for (version, lost_once) in
            [(Version::V03, false), (Version::V1, false), (Version::V03, true), (Version::V1, true)]
        {
            let (record, events) = log(lost_once);
            let mut encoder = Encoder::new(version, record);
            let mut text = String::new();
            let mut frames = Vec::new();
            for event in &events {
                for frame in encoder.push(event) {
                    let update = if version == Version::V1 { &frame["artifactUpdate"] } else { &frame };
                    if let Some(more) = update["artifact"]["parts"][0]["text"].as_str() {
                        if update["append"] == false {
                            text.clear();
                        }
                        text.push_str(more);
                    }
                    frames.push(frame);
                }
            }
            assert_eq!(text, "hello world");
            assert_eq!(encoder.task(None)["artifacts"][0]["parts"][0]["text"], "hello world");
            let last = frames.last().unwrap();
            match version {
                Version::V03 => assert_eq!(
                    (&last["kind"], &last["final"], &last["status"]["state"]),
                    (&json!("status-update"), &json!(true), &json!("completed"))
                ),
                Version::V1 => assert_eq!(last["statusUpdate"]["status"]["state"], "TASK_STATE_COMPLETED"),
            }
        }
    }
}
