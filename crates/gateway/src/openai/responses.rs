//! The Responses endpoint: items in, items out, told piece by piece under OpenAI's event names.
//!
//! Answers are kept (the last [`STORED_MAX`] of all callers, in the head's memory) so that `previous_response_id` and
//! `GET /v1/responses/{id}` find them; `store: false` keeps nothing.

use std::{collections::VecDeque, convert::Infallible, sync::Arc};

use axum::{
    Extension, Json, Router,
    body::Bytes,
    extract::{Path, State},
    response::{IntoResponse as _, Response, Sse, sse},
    routing::{get, post},
};
use covey_domain::{
    CallerId, Error,
    infer::{CallDelta, Chat, ChatMessage, Delta, Finish, InferEvent, InferRequest, Sampling, Usage, Work},
};
use futures::StreamExt as _;
use parking_lot::Mutex;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{
    Failed, answer, content_images, content_text,
    options::{check_draw, effort, format, tool_choice, tools},
    read,
};
use crate::{Caller, Cluster};

/// Answers that are kept; the oldest go.
const STORED_MAX: usize = 1_000;

/// Bytes of conversations that are kept; the oldest go.
const STORED_BYTES_MAX: usize = 64 << 20;

struct Desk {
    cluster: Arc<dyn Cluster>,
    stored: Mutex<Stored>,
}

#[derive(Default)]
struct Stored {
    answers: VecDeque<Arc<Kept>>,
    bytes: usize,
}

struct Kept {
    caller: CallerId,
    id: String,
    body: Value,
    /// Input of this answer only.
    input: Vec<Value>,
    /// The conversation up to and with this answer, without instructions.
    messages: Vec<ChatMessage>,
    bytes: usize,
}

impl Stored {
    fn find(&self, caller: &CallerId, id: &str) -> Result<Arc<Kept>, Error> {
        let kept = self.answers.iter().find(|k| k.id == id && k.caller == *caller);
        kept.cloned().ok_or_else(|| Error::not_found("response", id))
    }

    fn keep(&mut self, kept: Kept) {
        self.bytes += kept.bytes;
        self.answers.push_back(Arc::new(kept));
        while self.answers.len() > STORED_MAX || self.bytes > STORED_BYTES_MAX {
            let Some(oldest) = self.answers.pop_front() else { return };
            self.bytes -= oldest.bytes;
        }
    }
}

type Port = State<Arc<Desk>>;

/// `/v1/responses` and what is below.
pub(super) fn router(cluster: Arc<dyn Cluster>) -> Router {
    let desk = Arc::new(Desk { cluster, stored: Mutex::default() });
    Router::new()
        .route("/v1/responses", post(create))
        .route("/v1/responses/{id}", get(retrieve).delete(delete))
        .route("/v1/responses/{id}/input_items", get(input_items))
        .with_state(desk)
}

#[derive(Deserialize)]
struct Request {
    model: Option<String>,
    input: Value,
    instructions: Option<String>,
    max_output_tokens: Option<u32>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_logprobs: Option<u8>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    parallel_tool_calls: Option<bool>,
    text: Option<Value>,
    reasoning: Option<Value>,
    previous_response_id: Option<String>,
    store: Option<bool>,
    #[serde(default)]
    stream: bool,
    #[serde(default)]
    background: bool,
    metadata: Option<Value>,
    user: Option<String>,
    truncation: Option<String>,
}

async fn create(State(desk): Port, Extension(who): Extension<Caller>, body: Bytes) -> Result<Response, Failed> {
    let request: Request = read(&body)?;
    let caller = who.id.clone();
    let check = |ok: bool, why: &str| if ok { Ok(()) } else { Err(Error::invalid(why)) };
    check(!request.background, "`background` is not served; submit a task over A2A for work that outlives its caller")?;
    check(request.truncation.as_deref().is_none_or(|t| t == "disabled"), "`truncation` must be disabled")?;
    check_draw(request.temperature, request.top_p, request.top_logprobs.map(u64::from))?;
    let model = request.model.clone().filter(|m| !m.is_empty()).ok_or_else(|| Error::invalid("`model` is missing"))?;
    let input = match &request.input {
        Value::String(text) => vec![json!({"type": "message", "role": "user", "content": text})],
        Value::Array(items) if !items.is_empty() => items.clone(),
        _ => return Err(Error::invalid("`input` must be a text or a list of items").into()),
    };
    let before = match &request.previous_response_id {
        Some(id) => desk.stored.lock().find(&caller, id)?.messages.clone(),
        None => Vec::new(),
    };
    let conversation = messages(before, &input)?;
    let system = request.instructions.iter().map(|text| ChatMessage::new("system", text));
    let asked = chat(&request, system.chain(conversation.iter().cloned()).collect())?;
    let terms = who.terms(0);
    let mut writer = Writer::new(&request, &model);
    let mut events = desk.cluster.infer(InferRequest {
        model: model.as_str().into(),
        work: Work::Chat(asked),
        terms,
        made: Vec::new(),
    });
    let keep = move |writer: &Writer| {
        if request.store == Some(false) {
            return;
        }
        let mut messages = conversation.clone();
        messages.push(writer.message());
        let size = |value: &Value| value.to_string().len();
        let bytes = size(&writer.body) + messages.iter().map(message_bytes).sum::<usize>();
        let bytes = bytes + input.iter().map(size).sum::<usize>();
        let id = writer.id.clone();
        let kept =
            Kept { caller: caller.clone(), id, body: writer.body.clone(), input: input.clone(), messages, bytes };
        desk.stored.lock().keep(kept);
    };
    if !request.stream {
        while let Some(event) = events.next().await {
            writer.take(event?);
        }
        if !writer.done {
            return Err(answer::lost().into());
        }
        keep(&writer);
        return Ok(Json(writer.body).into_response());
    }
    let mut events = answer::begun(events).await?;
    let frames = async_stream::stream! {
        writer.begin();
        loop {
            for event in writer.told.drain(..) {
                let name = event["type"].as_str().unwrap_or_default().to_owned();
                yield Ok::<_, Infallible>(sse::Event::default().event(name).data(event.to_string()));
            }
            if writer.done {
                break;
            }
            match events.next().await {
                Some(Ok(event)) => writer.take(event),
                Some(Err(error)) => writer.fail(&error),
                None => writer.fail(&answer::lost()),
            }
            if writer.done && writer.body["status"] != "failed" {
                keep(&writer);
            }
        }
    };
    Ok(Sse::new(frames).into_response())
}

async fn retrieve(
    State(desk): Port,
    Extension(Caller { id: caller, .. }): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Failed> {
    Ok(Json(desk.stored.lock().find(&caller, &id)?.body.clone()))
}

async fn input_items(
    State(desk): Port,
    Extension(Caller { id: caller, .. }): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Failed> {
    let kept = desk.stored.lock().find(&caller, &id)?;
    let items: Vec<Value> = kept
        .input
        .iter()
        .enumerate()
        .map(|(i, item)| {
            let mut item = item.clone();
            if item["id"].is_null() {
                item["id"] = json!(format!("item_{i}_{id}"));
            }
            if item["content"].is_string() {
                item["content"] = json!([{"type": "input_text", "text": item["content"]}]);
            }
            item
        })
        .collect();
    let end = |item: Option<&Value>| item.map_or(Value::Null, |i| i["id"].clone());
    let (first, last) = (end(items.first()), end(items.last()));
    Ok(Json(json!({"object": "list", "data": items, "first_id": first, "last_id": last, "has_more": false})))
}

async fn delete(
    State(desk): Port,
    Extension(Caller { id: caller, .. }): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<Value>, Failed> {
    let mut stored = desk.stored.lock();
    let kept = stored.find(&caller, &id)?;
    stored.bytes -= kept.bytes;
    stored.answers.retain(|k| !Arc::ptr_eq(k, &kept));
    Ok(Json(json!({"id": id, "object": "response", "deleted": true})))
}

/// About what a message takes in memory.
fn message_bytes(message: &ChatMessage) -> usize {
    let extra: usize = message.extra.values().map(|value| value.to_string().len()).sum();
    message.content.len() + message.images.iter().map(String::len).sum::<usize>() + extra + 64
}

/// What is asked of the model.
fn chat(request: &Request, messages: Vec<ChatMessage>) -> Result<Chat, Error> {
    // Here functions are flat; chat completions, which templates know, wrap them.
    let nested = request.tools.iter().flatten().map(|tool| {
        let mut function = tool.clone();
        if let Some(fields) = function.as_object_mut().filter(|f| f.contains_key("name")) {
            fields.remove("type");
            return json!({"type": tool["type"], "function": function});
        }
        function
    });
    let tools = tools(nested.collect())?;
    let tool_choice = tool_choice(request.tool_choice.as_ref(), &tools)?;
    let mut template = Map::new();
    let text = request.text.as_ref().map_or(&Value::Null, |text| &text["format"]);
    effort(request.reasoning.as_ref().and_then(|r| r["effort"].as_str()), &mut template);
    Ok(Chat {
        messages,
        tools,
        tool_choice,
        one_call: request.parallel_tool_calls == Some(false),
        template,
        sampling: Sampling {
            max_tokens: request.max_output_tokens,
            temperature: request.temperature,
            top_p: request.top_p,
            logprobs: request.top_logprobs,
            constraint: format(text, text)?,
            ..Sampling::default()
        },
    })
}

/// Items as messages behind those `before`.
fn messages(before: Vec<ChatMessage>, items: &[Value]) -> Result<Vec<ChatMessage>, Error> {
    let mut all = before;
    let mut calls: Vec<CallDelta> = Vec::new();
    // Calls stand in the message of the assistant that came before them.
    let flush = |all: &mut Vec<ChatMessage>, calls: &mut Vec<CallDelta>| {
        if calls.is_empty() {
            return;
        }
        let before = all.pop_if(|last| last.role == "assistant" && !last.extra.contains_key("tool_calls"));
        let before = before.unwrap_or_else(|| ChatMessage::new("assistant", ""));
        let calling = ChatMessage::calling(before.content, &std::mem::take(calls));
        all.push(ChatMessage { images: before.images, ..calling });
    };
    for item in items {
        match item["type"].as_str().unwrap_or("message") {
            "message" => {
                flush(&mut all, &mut calls);
                let role = match text_of(item, "role")? {
                    "developer" => "system",
                    role => role,
                };
                let images = content_images(&item["content"])?;
                all.push(ChatMessage { images, ..ChatMessage::new(role, content_text(&item["content"])?) });
            }
            "function_call" => {
                calls.push(call_of(item)?);
            }
            "function_call_output" => {
                flush(&mut all, &mut calls);
                all.push(ChatMessage::of_tool(text_of(item, "call_id")?, content_text(&item["output"])?));
            }
            // What was thought is not read again, as the families' templates have it.
            "reasoning" => {}
            other => return Err(Error::invalid(format!("items of type `{other}` are not served"))),
        }
    }
    flush(&mut all, &mut calls);
    Ok(all)
}

/// A text of an item.
fn text_of<'a>(item: &'a Value, key: &str) -> Result<&'a str, Error> {
    item[key].as_str().ok_or_else(|| Error::invalid(format!("an item has no `{key}`")))
}

/// A call of a tool from an item.
fn call_of(item: &Value) -> Result<CallDelta, Error> {
    let text = |key| text_of(item, key).map(str::to_owned);
    Ok(CallDelta { index: 0, id: text("call_id")?, name: text("name")?, arguments: text("arguments")? })
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Reasoning,
    Message,
    Call(u32),
}

/// The item that is being made.
struct Open {
    kind: Kind,
    id: String,
    text: String,
    call: CallDelta,
    logprobs: Vec<Value>,
}

/// An answer in the making, and the events that tell it.
struct Writer {
    id: String,
    body: Value,
    open: Option<Open>,
    streams: bool,
    told: Vec<Value>,
    sequence: u64,
    reasoning_pieces: u64,
    done: bool,
}

impl Writer {
    fn new(request: &Request, model: &str) -> Self {
        let id = answer::fresh_id("resp_");
        let body = json!({
            "id": id, "object": "response", "created_at": answer::now_s(), "status": "in_progress", "background": false,
            "error": null, "incomplete_details": null, "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens, "model": model, "output": [],
            "parallel_tool_calls": request.parallel_tool_calls.unwrap_or(true),
            "previous_response_id": request.previous_response_id,
            "reasoning": request.reasoning.clone().unwrap_or_else(|| json!({"effort": null, "summary": null})),
            "store": request.store.unwrap_or(true), "temperature": request.temperature,
            "text": request.text.clone().unwrap_or_else(|| json!({"format": {"type": "text"}})),
            "tool_choice": request.tool_choice.clone().unwrap_or_else(|| json!("auto")),
            "tools": request.tools.clone().unwrap_or_default(), "top_p": request.top_p, "truncation": "disabled",
            "usage": null, "user": request.user, "metadata": request.metadata.clone().unwrap_or_else(|| json!({})),
        });
        let streams = request.stream;
        Self { id, body, open: None, streams, told: Vec::new(), sequence: 0, reasoning_pieces: 0, done: false }
    }

    fn tell(&mut self, name: &str, mut event: Value) {
        if !self.streams {
            return;
        }
        event["type"] = json!(name);
        event["sequence_number"] = json!(self.sequence);
        self.sequence += 1;
        self.told.push(event);
    }

    fn begin(&mut self) {
        for name in ["response.created", "response.in_progress"] {
            self.tell(name, json!({"response": self.body}));
        }
    }

    fn take(&mut self, event: InferEvent) {
        match event {
            InferEvent::Delta(delta) => self.delta(delta),
            InferEvent::Done { finish, usage } => self.end(finish, usage),
            InferEvent::Ended { .. } | InferEvent::Vectors { .. } | InferEvent::Heard { .. } => {}
        }
    }

    fn delta(&mut self, delta: Delta) {
        if !delta.reasoning.is_empty() {
            self.reasoning_pieces += delta.tokens.len().max(1) as u64;
            self.more(Kind::Reasoning, "response.reasoning_text.delta", &delta.reasoning, Vec::new());
        }
        if !delta.text.is_empty() {
            let logprobs = delta.logprobs.iter().map(answer::token_body).collect();
            self.more(Kind::Message, "response.output_text.delta", &delta.text, logprobs);
        }
        for call in delta.calls {
            if !call.name.is_empty() {
                self.switch(Kind::Call(call.index), call.clone());
            }
            if !call.arguments.is_empty() {
                let name = "response.function_call_arguments.delta";
                self.more(Kind::Call(call.index), name, &call.arguments, Vec::new());
            }
        }
    }

    fn index(&self) -> usize {
        self.body["output"].as_array().map_or(0, Vec::len)
    }

    /// More of an item of this kind; it is opened if it is not open.
    fn more(&mut self, kind: Kind, name: &str, text: &str, logprobs: Vec<Value>) {
        if self.open.as_ref().is_none_or(|open| open.kind != kind) {
            self.switch(kind, CallDelta::default());
        }
        let index = self.index();
        let Some(open) = &mut self.open else { return };
        open.text.push_str(text);
        let mut event = json!({"item_id": open.id, "output_index": index, "delta": text});
        if !matches!(kind, Kind::Call(_)) {
            event["content_index"] = json!(0);
        }
        if kind == Kind::Message {
            event["logprobs"] = json!(logprobs);
            open.logprobs.extend(logprobs);
        }
        self.tell(name, event);
    }

    fn switch(&mut self, kind: Kind, call: CallDelta) {
        self.close("completed");
        let prefix = match kind {
            Kind::Reasoning => "rs_",
            Kind::Message => "msg_",
            Kind::Call(_) => "fc_",
        };
        let open = Open { kind, id: answer::fresh_id(prefix), text: String::new(), call, logprobs: Vec::new() };
        let index = self.index();
        let (mut item, part) = (open.item("in_progress"), open.part());
        if part.is_some() {
            item["content"] = json!([]);
        }
        let id = open.id.clone();
        self.open = Some(open);
        self.tell("response.output_item.added", json!({"output_index": index, "item": item}));
        if let Some(part) = part {
            let event = json!({"item_id": id, "output_index": index, "content_index": 0, "part": part});
            self.tell("response.content_part.added", event);
        }
    }

    fn close(&mut self, status: &str) {
        let Some(open) = self.open.take() else { return };
        let index = self.index();
        let mut done = json!({"item_id": open.id, "output_index": index});
        let name = match open.kind {
            Kind::Call(_) => {
                done["name"] = json!(open.call.name);
                done["arguments"] = json!(open.text);
                "response.function_call_arguments.done"
            }
            Kind::Message => {
                done["content_index"] = json!(0);
                done["text"] = json!(open.text);
                done["logprobs"] = json!(open.logprobs);
                "response.output_text.done"
            }
            Kind::Reasoning => {
                done["content_index"] = json!(0);
                done["text"] = json!(open.text);
                "response.reasoning_text.done"
            }
        };
        self.tell(name, done);
        if let Some(part) = open.part() {
            let event = json!({"item_id": open.id, "output_index": index, "content_index": 0, "part": part});
            self.tell("response.content_part.done", event);
        }
        let item = open.item(status);
        self.tell("response.output_item.done", json!({"output_index": index, "item": item}));
        if let Some(output) = self.body["output"].as_array_mut() {
            output.push(item);
        }
    }

    fn end(&mut self, finish: Finish, usage: Usage) {
        let cut = finish == Finish::Length;
        let status = if cut { "incomplete" } else { "completed" };
        if self.open.is_none() && self.index() == 0 {
            // An answer without a word is a message all the same.
            self.switch(Kind::Message, CallDelta::default());
        }
        self.close(status);
        self.body["status"] = json!(status);
        if cut {
            self.body["incomplete_details"] = json!({"reason": "max_output_tokens"});
        }
        self.body["usage"] = json!({
            "input_tokens": usage.input, "input_tokens_details": {"cached_tokens": 0}, "output_tokens": usage.output,
            "output_tokens_details": {"reasoning_tokens": self.reasoning_pieces},
            "total_tokens": usage.input + usage.output,
        });
        self.tell(&format!("response.{status}"), json!({"response": self.body}));
        self.done = true;
    }

    fn fail(&mut self, error: &Error) {
        self.close("incomplete");
        self.body["status"] = json!("failed");
        self.body["error"] = json!({"code": "server_error", "message": error.message});
        self.tell("response.failed", json!({"response": self.body}));
        self.done = true;
    }

    /// The answer as a message of the conversation.
    fn message(&self) -> ChatMessage {
        let (mut said, mut calls) = (String::new(), Vec::new());
        for item in self.body["output"].as_array().into_iter().flatten() {
            match item["type"].as_str() {
                Some("message") => said.push_str(item["content"][0]["text"].as_str().unwrap_or_default()),
                Some("function_call") => calls.extend(call_of(item)),
                _ => {}
            }
        }
        ChatMessage::calling(said, &calls)
    }
}

impl Open {
    /// Its only part, if items of its kind have parts.
    fn part(&self) -> Option<Value> {
        match self.kind {
            Kind::Message => {
                Some(json!({"type": "output_text", "text": self.text, "annotations": [], "logprobs": self.logprobs}))
            }
            Kind::Reasoning => Some(json!({"type": "reasoning_text", "text": self.text})),
            Kind::Call(_) => None,
        }
    }

    fn item(&self, status: &str) -> Value {
        let part = self.part();
        match self.kind {
            Kind::Message => {
                json!({"id": self.id, "type": "message", "status": status, "role": "assistant", "content": [part]})
            }
            Kind::Reasoning => {
                json!({"id": self.id, "type": "reasoning", "summary": [], "content": [part], "status": status})
            }
            Kind::Call(_) => json!({
                "id": self.id, "type": "function_call", "status": status, "call_id": self.call.id,
                "name": self.call.name, "arguments": self.text,
            }),
        }
    }
}
