//! Speech to text: forms with a file in, text in five formats out, or a stream of it.

use std::{convert::Infallible, fmt::Write as _, sync::Arc};

use axum::{
    Extension, Json,
    extract::{Multipart, State},
    response::{IntoResponse as _, Response, Sse, sse},
};
use base64::Engine as _;
use covey_domain::{
    CallerId, Error,
    infer::{Delta, InferEvent, InferRequest, Speech, Terms, Usage, Work},
};
use futures::{StreamExt as _, stream::BoxStream};
use serde_json::{Value, json};

use super::{
    Failed, Port,
    answer::{begun, lost},
    error_body,
};
use crate::{Caller, Cluster};

/// Largest file, bytes: in base64 it must fit into a message.
const FILE_BYTES_MAX: usize = 20 << 20;

pub(super) async fn transcriptions(
    State(cluster): Port,
    Extension(Caller { id: caller, .. }): Extension<Caller>,
    form: Multipart,
) -> Result<Response, Failed> {
    answer(cluster, caller, form, false).await
}

pub(super) async fn translations(
    State(cluster): Port,
    Extension(Caller { id: caller, .. }): Extension<Caller>,
    form: Multipart,
) -> Result<Response, Failed> {
    answer(cluster, caller, form, true).await
}

struct Asked {
    model: String,
    speech: Speech,
    format: String,
    stream: bool,
}

async fn read(mut form: Multipart, translate: bool) -> Result<Asked, Error> {
    let mut asked = Asked {
        model: String::new(),
        speech: Speech { translate, ..Speech::default() },
        format: "json".into(),
        stream: false,
    };
    let wrong = |e: &dyn std::fmt::Display| Error::invalid(format!("failed to read the form: {e}"));
    while let Some(field) = form.next_field().await.map_err(|e| wrong(&e))? {
        let name = field.name().unwrap_or_default().to_owned();
        let body = field.bytes().await.map_err(|e| wrong(&e))?;
        if name == "file" {
            if body.len() > FILE_BYTES_MAX {
                return Err(Error::invalid(format!("the file has {} bytes; {FILE_BYTES_MAX} are served", body.len())));
            }
            asked.speech.sound = base64::engine::general_purpose::STANDARD.encode(&body);
            continue;
        }
        let text = String::from_utf8(body.to_vec()).map_err(|_| wrong(&format!("`{name}` is no text")))?;
        match name.as_str() {
            "model" => asked.model = text,
            "language" if !text.is_empty() => asked.speech.language = Some(text),
            "prompt" => asked.speech.prompt = text,
            "response_format" => asked.format = text,
            "stream" => asked.stream = text == "true",
            "temperature" => {
                asked.speech.temperature = text.parse().map_err(|_| wrong(&"`temperature` is no number"))?;
            }
            // What is asked beside this (kinds of times, chunking) changes nothing of the text.
            _ => {}
        }
    }
    if asked.model.is_empty() {
        return Err(Error::invalid("`model` is missing"));
    }
    if asked.speech.sound.is_empty() {
        return Err(Error::invalid("`file` is missing"));
    }
    if !["json", "text", "srt", "vtt", "verbose_json"].contains(&asked.format.as_str()) {
        let why =
            format!("response_format `{}` is not served; json, text, srt, vtt and verbose_json are", asked.format);
        return Err(Error::invalid(why));
    }
    Ok(asked)
}

async fn answer(
    cluster: Arc<dyn Cluster>,
    caller: CallerId,
    form: Multipart,
    translate: bool,
) -> Result<Response, Failed> {
    let asked = read(form, translate).await?;
    let mut events = cluster.infer(InferRequest {
        model: asked.model.as_str().into(),
        work: Work::Transcribe(asked.speech),
        terms: Terms { caller: caller.as_str().to_owned(), ..Terms::default() },
        made: Vec::new(),
    });
    if asked.stream {
        return Ok(stream(begun(events).await?));
    }
    let (mut spoken, mut length, mut pieces, mut used) = (String::new(), 0.0, Vec::new(), None);
    while let Some(event) = events.next().await {
        match event? {
            InferEvent::Heard { language, seconds } => (spoken, length) = (language, seconds),
            InferEvent::Delta(Delta { text, seconds, .. }) => pieces.push((seconds.unwrap_or_default(), text)),
            InferEvent::Done { usage, .. } => used = Some(usage),
            InferEvent::Ended { .. } | InferEvent::Vectors { .. } => {}
        }
    }
    let usage = used.ok_or_else(lost)?;
    let text = pieces.iter().map(|(_, text)| text.as_str()).collect::<String>().trim().to_owned();
    Ok(match asked.format.as_str() {
        "text" => format!("{text}\n").into_response(),
        "srt" => subtitles(&pieces, ',').into_response(),
        "vtt" => format!("WEBVTT\n\n{}", subtitles(&pieces, '.')).into_response(),
        "verbose_json" => {
            let segments = pieces.iter().enumerate().map(|(id, ((from, to), text))| {
                json!({"id": id, "seek": 0, "start": from, "end": to, "text": text, "tokens": [], "temperature": 0.0,
                    "avg_logprob": 0.0, "compression_ratio": 0.0, "no_speech_prob": 0.0})
            });
            let task = if translate { "translate" } else { "transcribe" };
            Json(json!({"task": task, "language": spoken, "duration": length, "text": text,
                "segments": segments.collect::<Vec<_>>(), "usage": usage_body(usage)}))
            .into_response()
        }
        _ => Json(json!({"text": text, "usage": usage_body(usage)})).into_response(),
    })
}

fn stream(mut events: BoxStream<'static, Result<InferEvent, Error>>) -> Response {
    let frames = async_stream::stream! {
        let mut whole = String::new();
        while let Some(event) = events.next().await {
            let told = match event {
                Ok(InferEvent::Delta(delta)) => {
                    whole.push_str(&delta.text);
                    json!({"type": "transcript.text.delta", "delta": delta.text})
                }
                Ok(InferEvent::Done { usage, .. }) => {
                    json!({"type": "transcript.text.done", "text": whole.trim(), "usage": usage_body(usage)})
                }
                Ok(_) => continue,
                Err(error) => error_body(&error),
            };
            yield Ok::<_, Infallible>(sse::Event::default().data(told.to_string()));
        }
        yield Ok(sse::Event::default().data("[DONE]"));
    };
    Sse::new(frames).into_response()
}

fn usage_body(usage: Usage) -> Value {
    json!({"type": "tokens", "input_tokens": usage.input, "output_tokens": usage.output,
        "total_tokens": usage.input + usage.output})
}

/// Numbered pieces with their times; `point` stands before milliseconds.
fn subtitles(pieces: &[((f32, f32), String)], point: char) -> String {
    let time = |seconds: f32| {
        let ms = (seconds * 1e3).round() as u64;
        format!("{:02}:{:02}:{:02}{point}{:03}", ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60, ms % 1_000)
    };
    let mut out = String::new();
    for (i, ((from, to), text)) in pieces.iter().enumerate() {
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{}\n{} --> {}\n{}\n", i + 1, time(*from), time(*to), text.trim());
    }
    out
}
