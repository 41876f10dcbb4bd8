//! The log itself: all events of a task as the cluster keeps them, for programs that want what no protocol can say.

use std::{collections::HashMap, io::Write as _, sync::Arc};

use axum::{
    Extension, Router,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
    routing::get,
};
use covey_domain::{Envelope, Error, TaskId};
use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use serde_json::json;
use tokio::runtime::Handle;

use crate::{Caller, Cluster, Settings, shares::Shares, sse};

struct Port {
    cluster: Arc<dyn Cluster>,
    shares: Shares,
    background: Handle,
}

/// The routes of logs.
pub(crate) fn router(cluster: Arc<dyn Cluster>, shares: Shares, settings: &Settings) -> Router {
    let port = Port { cluster, shares, background: settings.background.clone() };
    Router::new().route("/v1/tasks/{id}/events", get(events)).with_state(Arc::new(port))
}

/// The events of a task of this caller to its end, as they are made: `id` is an event's number, `event` its kind, `data` the whole
/// entry. It begins behind the number in `Last-Event-ID`, else behind that of `?after=`, else at the first. Of a task that has ended and
/// has nothing behind that number there is no content (204): a browser asks no more.
async fn events(
    State(port): State<Arc<Port>>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    Query(query): Query<HashMap<String, String>>,
    headers: HeaderMap,
) -> Response {
    match log(&port, &caller, id.into(), &query, &headers).await {
        Ok(Some(log)) => sse::stream(&port.background, log, put),
        Ok(None) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => crate::refusal(&error, body(&error)),
    }
}

async fn log(
    port: &Port,
    caller: &Caller,
    id: TaskId,
    query: &HashMap<String, String>,
    headers: &HeaderMap,
) -> Result<Option<Log>, Error> {
    let after = behind(query, headers)?;
    // Another's is not found.
    let (task, last) = port.cluster.task(&caller.id, &id).await?;
    if !caller.may_ask(&task.agent) {
        return Err(Error::not_found("task", id));
    }
    let share = port.shares.stream(&caller.id, 0)?;
    let mut log = port.cluster.events(id, after);
    match last {
        Some(last) if after > last => Err(Error::invalid(format!("event {after} is not there: the last is {last}"))),
        Some(_) => Ok(Some(share.held_by(log))),
        None => {
            let Some(first) = log.next().await else { return Ok(None) };
            Ok(Some(share.held_by(stream::once(async { first }).chain(log).boxed())))
        }
    }
}

type Log = BoxStream<'static, Result<Arc<Envelope>, Error>>;

/// The number behind which a reader goes on.
fn behind(query: &HashMap<String, String>, headers: &HeaderMap) -> Result<u64, Error> {
    let read = |what: &str, text: &str| {
        // Numbers of the store are signed.
        let number = text.parse().ok().filter(|number| *number < i64::MAX as u64);
        number.ok_or_else(|| Error::invalid(format!("`{what}` is the number of an event, not `{text}`")))
    };
    match (headers.get("last-event-id"), query.get("after")) {
        // What a browser sends of itself is newer than the address that it opened first.
        (Some(id), _) => read("Last-Event-ID", id.to_str().unwrap_or("?")),
        (None, Some(after)) => read("after", after),
        (None, None) => Ok(0),
    }
}

fn put(entry: Result<Arc<Envelope>, Error>, piece: &mut Vec<u8>) {
    // A vector takes all that is written to it, and our own types have string keys.
    match entry {
        Ok(entry) => {
            let _ = write!(piece, "id: {}\nevent: {}\ndata: ", entry.seq, entry.event.kind());
            let _ = serde_json::to_writer(&mut *piece, &*entry);
        }
        Err(error) => {
            let _ = write!(piece, "event: error\ndata: {}", body(&error));
        }
    }
    piece.extend(b"\n\n");
}

fn body(error: &Error) -> serde_json::Value {
    json!({"error": {"kind": error.kind.name(), "message": error.message, "hint": error.hint}})
}
