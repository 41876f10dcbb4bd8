//! Embeddings and rerank: numbers instead of text.

use std::sync::Arc;

use axum::{
    Extension, Json,
    body::Bytes,
    extract::State,
    response::{IntoResponse as _, Response},
};
use base64::Engine as _;
use covey_domain::{
    CallerId, Error,
    infer::{InferEvent, InferRequest, Terms, Work},
};
use futures::StreamExt as _;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    Failed, Port,
    answer::{fresh_id, lost},
    options::OneOrMany,
    read,
};
use crate::{Caller, Cluster};

/// Texts of one request, at most.
const TEXTS_MAX: usize = 8_192;

#[derive(Deserialize)]
struct EmbeddingRequest {
    model: String,
    input: OneOrMany,
    encoding_format: Option<String>,
    dimensions: Option<usize>,
}

/// Asks for vectors: their length, all numbers, and the tokens read.
async fn ask(
    cluster: Arc<dyn Cluster>,
    model: &str,
    caller: &CallerId,
    work: Work,
) -> Result<(usize, Vec<f32>, u64), Error> {
    let terms = Terms { caller: caller.as_str().to_owned(), ..Terms::default() };
    let mut events = cluster.infer(InferRequest { model: model.into(), work, terms, made: Vec::new() });
    let (mut vectors, mut tokens) = (None, 0);
    while let Some(event) = events.next().await {
        match event? {
            InferEvent::Vectors { dims, data } => vectors = Some((dims, data)),
            InferEvent::Done { usage, .. } => tokens = usage.input,
            InferEvent::Delta(_) | InferEvent::Ended { .. } | InferEvent::Heard { .. } => {}
        }
    }
    let (dims, data) = vectors.ok_or_else(lost)?;
    Ok((dims, data, tokens))
}

fn unit(row: &[f32]) -> Vec<f32> {
    let length = row.iter().map(|x| x * x).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
    row.iter().map(|x| x / length).collect()
}

pub(super) async fn embeddings(
    State(cluster): Port,
    Extension(Caller { id: caller, .. }): Extension<Caller>,
    body: Bytes,
) -> Result<Response, Failed> {
    let request: EmbeddingRequest = read(&body)?;
    let texts = request.input.into_vec();
    if texts.is_empty() || texts.len() > TEXTS_MAX {
        return Err(Error::invalid(format!("`input` must have 1 to {TEXTS_MAX} texts")).into());
    }
    let base64 = match request.encoding_format.as_deref() {
        None | Some("float") => false,
        Some("base64") => true,
        Some(other) => {
            return Err(Error::invalid(format!("encoding_format `{other}` is not known; float and base64 are")).into());
        }
    };
    let (dims, mut data, tokens) = ask(cluster, &request.model, &caller, Work::Embed { texts }).await?;
    let told = request.dimensions.unwrap_or(dims);
    if told == 0 || told > dims {
        return Err(Error::invalid(format!("`dimensions` must be between 1 and {dims}, this model's")).into());
    }
    if told < dims {
        // The first numbers of each vector, at unit length again.
        data = data.chunks(dims).flat_map(|row| unit(&row[..told])).collect();
    }
    let dims = told;
    let rows: Vec<_> = data
        .chunks(dims)
        .enumerate()
        .map(|(index, row)| {
            let embedding = if base64 {
                let bytes: Vec<u8> = row.iter().flat_map(|x| x.to_le_bytes()).collect();
                json!(base64::engine::general_purpose::STANDARD.encode(bytes))
            } else {
                json!(row)
            };
            json!({"object": "embedding", "index": index, "embedding": embedding})
        })
        .collect();
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
    Ok(Json(json!({"object": "list", "data": rows, "model": request.model, "usage": usage})).into_response())
}

#[derive(Deserialize)]
struct RerankRequest {
    model: String,
    query: String,
    documents: Vec<Document>,
    top_n: Option<usize>,
    return_documents: Option<bool>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Document {
    Text(String),
    Object { text: String },
}

pub(super) async fn rerank(
    State(cluster): Port,
    Extension(Caller { id: caller, .. }): Extension<Caller>,
    body: Bytes,
) -> Result<Response, Failed> {
    let request: RerankRequest = read(&body)?;
    let texts: Vec<String> = request
        .documents
        .into_iter()
        .map(|d| match d {
            Document::Text(text) | Document::Object { text } => text,
        })
        .collect();
    if texts.is_empty() || texts.len() > TEXTS_MAX {
        return Err(Error::invalid(format!("`documents` must have 1 to {TEXTS_MAX} texts")).into());
    }
    let shown = request.return_documents.unwrap_or(false).then(|| texts.clone());
    let work = Work::Rank { query: request.query, texts };
    let (_, scores, tokens) = ask(cluster, &request.model, &caller, work).await?;
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
    order.truncate(request.top_n.unwrap_or(usize::MAX));
    let rows: Vec<Value> = order
        .into_iter()
        .map(|index| {
            let mut row = json!({"index": index, "relevance_score": scores[index]});
            if let Some(texts) = &shown {
                row["document"] = json!({"text": texts[index]});
            }
            row
        })
        .collect();
    let id = fresh_id("rerank-");
    let usage = json!({"prompt_tokens": tokens, "total_tokens": tokens});
    Ok(Json(json!({"id": id, "model": request.model, "results": rows, "usage": usage})).into_response())
}
