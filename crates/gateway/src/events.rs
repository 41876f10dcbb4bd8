//! The log itself: all events of a task as the cluster keeps them, for programs that want what no protocol can say. The simplest
//! projection there is.

use std::{collections::HashMap, io::Write as _, sync::Arc};

use axum::{
    Extension, Router,
    extract::{Path, Query, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
    routing::get,
};
use covey_domain::{Envelope, Error, TaskId, TaskState};
use futures::{
    StreamExt as _,
    stream::{self, BoxStream},
};
use serde_json::json;
use tokio::runtime::Handle;

use crate::{
    Caller, Cluster, Settings,
    cursor::{self, Cursor},
    errors::refusal,
    follow::{Broken, Projection, StreamItem, View, follow},
    shares::Shares,
    sse,
    tasks::Tasks,
};

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
        Ok(Some(log)) => sse::followed(&port.background, log, write, fail),
        Ok(None) => StatusCode::NO_CONTENT.into_response(),
        Err(error) => refusal(&error, &body(&error)),
    }
}

async fn log(
    port: &Port,
    caller: &Caller,
    id: TaskId,
    query: &HashMap<String, String>,
    headers: &HeaderMap,
) -> Result<Option<Log>, Error> {
    let asked = cursor::requested(headers, query.get("after").map(String::as_str));
    let after = asked.map_or(Ok(0), |asked| asked.seq())?;
    let (_, last) = Tasks { cluster: &*port.cluster, caller, agent: None }.find(&id).await?;
    let share = port.shares.stream(&caller.id, 0)?;
    let view = View { seen: Cursor { seq: after, more: 0 }, ..View::default() };
    let mut log = follow(&*port.cluster, id, Entries::behind(after), view, None).boxed();
    match last {
        Some(last) if after > last => Err(Error::invalid(format!("event {after} is not there: the last is {last}"))),
        Some(_) => Ok(Some(share.held_by(log))),
        None => {
            let Some(first) = log.next().await else { return Ok(None) };
            Ok(Some(share.held_by(stream::once(async { first }).chain(log).boxed())))
        }
    }
}

type Log = BoxStream<'static, Result<StreamItem<Arc<Envelope>>, Broken>>;

/// The log as it is: each entry is a frame, so a reader may begin at any.
struct Entries {
    seq: u64,
    state: TaskState,
}

impl Entries {
    /// The state is known from the first entry on that says one.
    fn behind(seq: u64) -> Self {
        Self { seq, state: TaskState::Submitted }
    }
}

impl Projection for Entries {
    type Frame = Arc<Envelope>;
    type Bookmark = ();

    fn seq(&self) -> u64 {
        self.seq
    }

    fn shown(&self) -> TaskState {
        self.state
    }

    fn push(&mut self, entry: &Arc<Envelope>) -> Vec<Arc<Envelope>> {
        self.seq = entry.seq;
        self.state = self.state.after(&entry.event);
        vec![entry.clone()]
    }

    fn snapshot(&mut self) -> Option<Arc<Envelope>> {
        None
    }

    fn bookmark(&self) {}
}

fn write(told: StreamItem<Arc<Envelope>>, piece: &mut Vec<u8>) {
    // A vector takes all that is written to it, and our own types have string keys.
    let _ = write!(piece, "event: {}\ndata: ", told.frame.event.kind());
    let _ = serde_json::to_writer(piece, &*told.frame);
}

fn fail(broken: &Broken, piece: &mut Vec<u8>) {
    let _ = write!(piece, "event: error\ndata: {}", body(&broken.error));
}

fn body(error: &Error) -> serde_json::Value {
    json!({"error": {"kind": error.kind.name(), "message": error.message, "hint": error.hint}})
}

#[cfg(test)]
mod tests {
    use covey_domain::TaskEvent;

    use super::*;
    use crate::{
        fake::{Fake, asks, begun, record},
        follow::tests::check_every_place,
    };

    #[tokio::test]
    async fn a_reader_begins_at_any_entry() {
        let events: Vec<TaskEvent> = begun().into_iter().chain(asks("q")).collect();
        check_every_place(events.clone(), |_| Entries::behind(0)).await;
        let cluster = Fake::new([]);
        cluster.keep(record("t"), events);
        let view = View { seen: Cursor { seq: 2, more: 0 }, ..View::default() };
        let log = follow(&cluster, "t".into(), Entries::behind(2), view, None);
        let numbers: Vec<_> = log.map(|told| told.map_or(0, |told| told.frame.seq)).collect().await;
        assert_eq!(numbers, [3, 4]);
    }
}
