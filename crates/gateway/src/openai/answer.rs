//! What goes back: whole answers and streams of chunks, of one prompt or several, with one choice each or several.

use std::{
    convert::Infallible,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use axum::{
    Json,
    response::{IntoResponse as _, Response, Sse, sse},
};
use covey_domain::{
    Error,
    infer::{CallDelta, Delta, Finish, InferEvent, InferRequest, TokenLogprob, Usage, Work},
};
use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use serde_json::{Map, Value, json};

use super::{Failed, error_body, options::Reply};
use crate::Cluster;

/// What differs between the two endpoints.
pub(super) struct Shape {
    prefix: &'static str,
    object: &'static str,
    chunk: &'static str,
    whole: fn(&Choice) -> Value,
    /// Its pieces; with `true` the first one, with nothing the last.
    delta: fn(Option<&Delta>, bool) -> Value,
    logprobs: fn(&[TokenLogprob]) -> Value,
}

pub(super) const CHAT: Shape = Shape {
    prefix: "chatcmpl-",
    object: "chat.completion",
    chunk: "chat.completion.chunk",
    whole: |choice| {
        // Who calls tools and says nothing has no content.
        let content = (!choice.text.is_empty() || choice.calls.is_empty()).then_some(&choice.text);
        let mut message = json!({"role": "assistant", "content": content, "refusal": null});
        if !choice.reasoning.is_empty() {
            message["reasoning_content"] = json!(choice.reasoning);
        }
        if !choice.calls.is_empty() {
            message["tool_calls"] = choice.calls.iter().map(|call| call_body(call, false)).collect();
        }
        json!({"message": message})
    },
    delta: |delta, first| {
        let Some(delta) = delta else { return json!({"delta": {}}) };
        let mut body = json!({});
        if first {
            body["role"] = json!("assistant");
        }
        if !delta.text.is_empty() || first && delta.reasoning.is_empty() && delta.calls.is_empty() {
            body["content"] = json!(delta.text);
        }
        if !delta.reasoning.is_empty() {
            body["reasoning_content"] = json!(delta.reasoning);
        }
        if !delta.calls.is_empty() {
            body["tool_calls"] = delta.calls.iter().map(|call| call_body(call, true)).collect();
        }
        json!({"delta": body})
    },
    logprobs: |tokens| json!({"content": tokens.iter().map(token_body).collect::<Vec<_>>(), "refusal": null}),
};

pub(super) const TEXT: Shape = Shape {
    prefix: "cmpl-",
    object: "text_completion",
    chunk: "text_completion",
    whole: |choice| json!({"text": choice.text}),
    delta: |delta, _| json!({"text": delta.map_or("", |d| &d.text)}),
    logprobs: |tokens| {
        let top = |t: &TokenLogprob| t.top.iter().map(|(token, p)| (token.clone(), json!(p))).collect::<Map<_, _>>();
        let mut at = 0;
        let offsets: Vec<usize> = tokens
            .iter()
            .map(|t| {
                let here = at;
                at += t.token.chars().count();
                here
            })
            .collect();
        json!({
            "tokens": tokens.iter().map(|t| &t.token).collect::<Vec<_>>(),
            "token_logprobs": tokens.iter().map(|t| t.logprob).collect::<Vec<_>>(),
            "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
            "text_offset": offsets,
        })
    },
};

/// A token and the likeliest ones in its place.
pub(super) fn token_body(told: &TokenLogprob) -> Value {
    let one = |token: &str, logprob: f32| json!({"token": token, "logprob": logprob, "bytes": token.as_bytes()});
    let mut body = one(&told.token, told.logprob);
    body["top_logprobs"] = told.top.iter().map(|(token, logprob)| one(token, *logprob)).collect();
    body
}

/// A call of a tool, whole or a piece of one.
fn call_body(call: &CallDelta, piece: bool) -> Value {
    let mut body = json!({"function": {"arguments": call.arguments}});
    if !call.name.is_empty() {
        body["id"] = json!(call.id);
        body["type"] = json!("function");
        body["function"]["name"] = json!(call.name);
    }
    if piece {
        body["index"] = json!(call.index);
    }
    body
}

/// An event, and the number of its prompt's first choice.
type Told = Result<(u32, InferEvent), Error>;

/// Waits for the first event of a stream: it decides between an HTTP error and a stream.
pub(super) async fn begun<T: Send + 'static>(
    mut events: BoxStream<'static, Result<T, Error>>,
) -> Result<BoxStream<'static, Result<T, Error>>, Error> {
    let first = events.next().await.unwrap_or_else(|| Err(lost()))?;
    Ok(stream::iter([Ok(first)]).chain(events).boxed())
}

/// A model's events have ended before its answer was whole.
pub(super) fn lost() -> Error {
    Error::unavailable("the model's worker was lost")
}

/// Asks the model for all `works`, and answers in `shape`.
pub(super) async fn answer(
    cluster: Arc<dyn Cluster>,
    model: String,
    works: Vec<Work>,
    reply: Reply,
    shape: &'static Shape,
) -> Result<Response, Failed> {
    let head = Head { id: fresh_id(shape.prefix), created: now_s(), model: model.clone() };
    let prompts = works.len();
    let asked = works.into_iter().enumerate().map(|(i, work)| {
        let first = i as u32 * reply.choices;
        let events = cluster.infer(InferRequest {
            model: model.as_str().into(),
            work,
            terms: reply.terms.clone(),
            made: Vec::new(),
        });
        events.map(move |event| event.map(|event| (first, event))).boxed()
    });
    let mut events = stream::select_all(asked.collect::<Vec<_>>()).boxed();
    if reply.stream {
        return Ok(chunks(head, begun(events).await?, prompts, reply, shape));
    }
    let mut choices = vec![Choice::default(); prompts * reply.choices as usize];
    let (mut usage, mut done) = (Usage::default(), 0);
    while let Some(event) = events.next().await {
        let (first, event) = event?;
        match event {
            InferEvent::Delta(delta) => {
                if let Some(choice) = choices.get_mut((first + delta.choice) as usize) {
                    choice.add(delta);
                }
            }
            InferEvent::Ended { choice, finish } => {
                if let Some(choice) = choices.get_mut((first + choice) as usize) {
                    choice.finish = Some(finish);
                }
            }
            InferEvent::Done { finish, usage: used } => {
                if let Some(choice) = choices.get_mut(first as usize) {
                    choice.finish.get_or_insert(finish);
                }
                usage.input += used.input;
                usage.output += used.output;
                done += 1;
            }
            InferEvent::Vectors { .. } | InferEvent::Heard { .. } => {}
        }
    }
    if done < prompts {
        return Err(lost().into());
    }
    let rows = choices.iter().enumerate().map(|(index, choice)| {
        let mut row = (shape.whole)(choice);
        row["index"] = json!(index);
        row["logprobs"] = if choice.logprobs.is_empty() { Value::Null } else { (shape.logprobs)(&choice.logprobs) };
        row["finish_reason"] = json!(reason(choice.finish.unwrap_or(Finish::Stop)));
        row
    });
    let mut body = head.body(shape.object);
    body["choices"] = rows.collect();
    body["usage"] = usage_body(usage);
    Ok(Json(body).into_response())
}

/// One answer as far as it came.
#[derive(Clone, Default)]
pub(super) struct Choice {
    pub text: String,
    pub reasoning: String,
    pub calls: Vec<CallDelta>,
    logprobs: Vec<TokenLogprob>,
    finish: Option<Finish>,
}

impl Choice {
    /// More of it.
    pub fn add(&mut self, delta: Delta) {
        self.text.push_str(&delta.text);
        self.reasoning.push_str(&delta.reasoning);
        self.logprobs.extend(delta.logprobs);
        CallDelta::gather(&mut self.calls, delta.calls);
    }
}

/// An id that no other answer has.
pub(super) fn fresh_id(prefix: &str) -> String {
    format!("{prefix}{:x}", SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos())
}

/// Seconds since 1970.
pub(super) fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

struct Head {
    id: String,
    created: u64,
    model: String,
}

impl Head {
    fn body(&self, object: &str) -> Value {
        json!({"id": self.id, "object": object, "created": self.created, "model": self.model})
    }
}

fn chunks(
    head: Head,
    mut events: BoxStream<'static, Told>,
    prompts: usize,
    reply: Reply,
    shape: &'static Shape,
) -> Response {
    let frames = async_stream::stream! {
        let frame = |index: u32, delta: Value, logprobs: &[TokenLogprob], finish: Option<Finish>| {
            let mut choice = delta;
            choice["index"] = json!(index);
            choice["logprobs"] = if logprobs.is_empty() { Value::Null } else { (shape.logprobs)(logprobs) };
            choice["finish_reason"] = json!(finish.map(reason));
            let mut body = head.body(shape.chunk);
            body["choices"] = json!([choice]);
            if reply.usage {
                body["usage"] = Value::Null;
            }
            body.to_string()
        };
        let mut begun = vec![false; prompts * reply.choices as usize];
        let (mut usage, mut done) = (Usage::default(), 0);
        while let Some(event) = events.next().await {
            let (first, event) = match event {
                Ok(told) => told,
                Err(error) => {
                    yield error_body(&error).to_string();
                    return;
                }
            };
            let ended = match event {
                InferEvent::Delta(Delta { text, reasoning, calls, logprobs, .. })
                    if text.is_empty() && reasoning.is_empty() && calls.is_empty() && logprobs.is_empty() => None,
                InferEvent::Delta(delta) => {
                    let index = first + delta.choice;
                    let new = begun.get_mut(index as usize).is_some_and(|b| !std::mem::replace(b, true));
                    yield frame(index, (shape.delta)(Some(&delta), new), &delta.logprobs, None);
                    None
                }
                InferEvent::Ended { choice, finish } => Some((first + choice, finish)),
                InferEvent::Done { finish, usage: used } => {
                    usage.input += used.input;
                    usage.output += used.output;
                    done += 1;
                    // With several choices each has told its own end.
                    (reply.choices == 1).then_some((first, finish))
                }
                InferEvent::Vectors { .. } | InferEvent::Heard { .. } => None,
            };
            if let Some((index, finish)) = ended {
                if begun.get_mut(index as usize).is_some_and(|b| !std::mem::replace(b, true)) {
                    yield frame(index, (shape.delta)(Some(&Delta::default()), true), &[], None);
                }
                yield frame(index, (shape.delta)(None, false), &[], Some(finish));
            }
            if done == prompts {
                if reply.usage {
                    let mut body = head.body(shape.chunk);
                    body["choices"] = json!([]);
                    body["usage"] = usage_body(usage);
                    yield body.to_string();
                }
                yield "[DONE]".to_owned();
                return;
            }
        }
        yield error_body(&lost()).to_string();
    };
    Sse::new(frames.map(|data| Ok::<_, Infallible>(sse::Event::default().data(data)))).into_response()
}

fn reason(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::ToolCalls => "tool_calls",
    }
}

fn usage_body(usage: Usage) -> Value {
    json!({"prompt_tokens": usage.input, "completion_tokens": usage.output, "total_tokens": usage.input + usage.output})
}
