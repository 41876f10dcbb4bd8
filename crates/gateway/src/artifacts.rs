//! Large files by links: whoever has one can open it for a while, without a key.
//!
//! `/v1/artifacts/<digest>/<name>?mime=…&until=…&seal=…`. The seal is over all of it, so that a link opens one file, as
//! what it was called, until it says.

use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use axum::{
    Router,
    body::Body,
    extract::{Path, Query, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use covey_a2a::{
    content::STORED,
    v1::{self, part::Content as Held, stream_response::Payload},
};
use covey_domain::{Digest, ErrorKind, secret::same};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;

use crate::{ArtifactBody, Cluster, Settings, Signer};

/// All links are below it.
pub(crate) const ROOT: &str = "/v1/artifacts/";

/// Makes links of what messages and artifacts hold of the artifact store.
#[derive(Clone, Debug)]
pub(crate) struct Links {
    signer: Signer,
    links_for: Duration,
}

impl Links {
    pub fn new(settings: &Settings) -> Self {
        Self { signer: settings.signer.clone(), links_for: settings.links_for }
    }

    fn seal(&self, digest: &str, name: &str, mime: &str, until: u64) -> String {
        // No line of it can have the end of another.
        self.signer.seal(&format!("covey artifact\n{digest}\n{until}\n{}\n{name}\n{mime}", name.len()))
    }

    fn link(&self, root: &str, digest: &str, name: &str, mime: &str) -> String {
        let until = seconds() + self.links_for.as_secs();
        let name = if name.is_empty() { "file" } else { name };
        let seal = self.seal(digest, name, mime, until);
        let [name, mime] = [name, mime].map(|text| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string());
        format!("{root}{ROOT}{digest}/{name}?mime={mime}&until={until}&seal={seal}")
    }

    fn parts(&self, root: &str, parts: &mut [v1::Part]) {
        for part in parts {
            if let Some(Held::Url(url)) = &mut part.content
                && let Some(digest) = url.strip_prefix(STORED)
            {
                *url = self.link(root, digest, &part.filename, &part.media_type);
            }
        }
    }

    /// In a message.
    pub fn message(&self, root: &str, message: &mut v1::Message) {
        self.parts(root, &mut message.parts);
    }

    /// In a task.
    pub fn task(&self, root: &str, task: &mut v1::Task) {
        task.artifacts.iter_mut().for_each(|artifact| self.parts(root, &mut artifact.parts));
        task.history.iter_mut().for_each(|message| self.message(root, message));
        if let Some(message) = task.status.as_mut().and_then(|status| status.message.as_mut()) {
            self.message(root, message);
        }
    }

    /// In an event of a stream.
    pub fn event(&self, root: &str, event: &mut v1::StreamResponse) {
        match &mut event.payload {
            Some(Payload::Task(task)) => self.task(root, task),
            Some(Payload::Message(message)) => self.message(root, message),
            Some(Payload::ArtifactUpdate(update)) => {
                if let Some(artifact) = &mut update.artifact {
                    self.parts(root, &mut artifact.parts);
                }
            }
            Some(Payload::StatusUpdate(update)) => {
                if let Some(message) = update.status.as_mut().and_then(|status| status.message.as_mut()) {
                    self.message(root, message);
                }
            }
            None => {}
        }
    }
}

struct Door {
    cluster: Arc<dyn Cluster>,
    links: Links,
}

pub(crate) fn router(cluster: Arc<dyn Cluster>, settings: &Settings) -> Router {
    let door = Arc::new(Door { cluster, links: Links::new(settings) });
    Router::new().route(&format!("{ROOT}{{digest}}/{{name}}"), get(file)).with_state(door)
}

#[derive(Deserialize)]
struct Sealed {
    #[serde(default)]
    mime: String,
    #[serde(default)]
    until: u64,
    #[serde(default)]
    seal: String,
}

async fn file(
    State(door): State<Arc<Door>>,
    Path((digest, name)): Path<(String, String)>,
    Query(sealed): Query<Sealed>,
    headers: HeaderMap,
) -> Response {
    let refused = |status: StatusCode, why: &str| (status, why.to_owned()).into_response();
    if !same(&door.links.seal(&digest, &name, &sealed.mime, sealed.until), &sealed.seal) {
        return refused(StatusCode::FORBIDDEN, "this is no link of this cluster");
    }
    let left = sealed.until.saturating_sub(seconds());
    if left == 0 {
        return refused(StatusCode::FORBIDDEN, "the link is too old; get the task again for a fresh one");
    }
    let digest = Digest::from(digest);
    let bytes = match door.cluster.artifact(&digest).await {
        Ok(bytes) => bytes,
        Err(error) if error.kind == ErrorKind::NotFound => {
            return refused(StatusCode::NOT_FOUND, "the file is not kept any more");
        }
        Err(error) => {
            tracing::error!(%error, "failed to look for a file");
            return refused(StatusCode::INTERNAL_SERVER_ERROR, "the file was not found for a reason of this cluster");
        }
    };
    let range = match headers.get(header::RANGE).and_then(|v| v.to_str().ok()).map(|text| asked(text, bytes)) {
        None | Some(Asked::All) => None,
        Some(Asked::Part(range)) => Some(range),
        Some(Asked::Nothing) => {
            let mut response = refused(StatusCode::RANGE_NOT_SATISFIABLE, "the file is shorter");
            put(&mut response, header::CONTENT_RANGE, &format!("bytes */{bytes}"));
            return response;
        }
    };
    let wanted = range.clone().unwrap_or(0..bytes);
    let mut response = match door.cluster.artifact_body(&digest, wanted.clone()).await {
        Ok(ArtifactBody::Elsewhere(url)) => {
            let mut response = StatusCode::TEMPORARY_REDIRECT.into_response();
            put(&mut response, header::LOCATION, &url);
            return response;
        }
        Ok(ArtifactBody::Bytes(stream)) => Body::from_stream(stream).into_response(),
        Err(error) => {
            tracing::error!(%error, "failed to read a file");
            return refused(StatusCode::BAD_GATEWAY, "the file is not to be read now");
        }
    };
    if range.is_some() {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        put(&mut response, header::CONTENT_RANGE, &format!("bytes {}-{}/{bytes}", wanted.start, wanted.end - 1));
    }
    put(&mut response, header::CONTENT_LENGTH, &(wanted.end - wanted.start).to_string());
    put(
        &mut response,
        header::CONTENT_TYPE,
        if sealed.mime.is_empty() { "application/octet-stream" } else { &sealed.mime },
    );
    put(&mut response, header::ACCEPT_RANGES, "bytes");
    put(&mut response, header::ETAG, &format!("\"{digest}\""));
    put(&mut response, header::CACHE_CONTROL, &format!("private, max-age={left}, immutable"));
    let name = utf8_percent_encode(&name, NON_ALPHANUMERIC);
    put(&mut response, header::CONTENT_DISPOSITION, &format!("attachment; filename*=UTF-8''{name}"));
    // It comes from an agent, or from whoever spoke to one: no page of it may act as this cluster's.
    put(&mut response, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    put(&mut response, header::CONTENT_SECURITY_POLICY, "sandbox; default-src 'none'");
    response
}

fn put(response: &mut Response, name: header::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

#[derive(Debug, PartialEq)]
enum Asked {
    All,
    Part(Range<u64>),
    Nothing,
}

/// One range of bytes; several are answered with all, as RFC 9110 allows.
fn asked(text: &str, bytes: u64) -> Asked {
    let Some((from, to)) = text.strip_prefix("bytes=").and_then(|range| range.trim().split_once('-')) else {
        return Asked::All;
    };
    let range = match (from.parse::<u64>(), to.parse::<u64>()) {
        (Ok(from), Ok(to)) if from <= to => from..to.saturating_add(1).min(bytes),
        (Ok(from), Err(_)) if to.is_empty() => from..bytes,
        (Err(_), Ok(last)) if from.is_empty() => bytes.saturating_sub(last)..bytes,
        _ => return Asked::All,
    };
    if range.is_empty() { Asked::Nothing } else { Asked::Part(range) }
}

fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read() {
        assert_eq!(asked("bytes=0-9", 100), Asked::Part(0..10));
        assert_eq!(asked("bytes=90-", 100), Asked::Part(90..100));
        assert_eq!(asked("bytes=-7", 100), Asked::Part(93..100));
        assert_eq!(asked("bytes=0-999", 100), Asked::Part(0..100));
        assert_eq!(asked("bytes=100-", 100), Asked::Nothing);
        for whole in ["bytes=0-1,5-6", "lines=1-2", "bytes=9-2", "bytes=x-"] {
            assert_eq!(asked(whole, 100), Asked::All);
        }
    }

    #[test]
    fn a_link_is_of_one_file_by_one_name() {
        let signer = Signer::new([7; 32], |text| text.iter().rev().copied().collect());
        let links = Links { signer, links_for: Duration::from_secs(60) };
        let mut part = v1::Part {
            content: Some(Held::Url(format!("{STORED}abc"))),
            filename: "ä b.png".into(),
            media_type: "image/png".into(),
            metadata: None,
        };
        links.parts("http://h", std::slice::from_mut(&mut part));
        let Some(Held::Url(url)) = part.content else { panic!("it was a link") };
        assert!(url.starts_with("http://h/v1/artifacts/abc/%C3%A4%20b%2Epng?mime=image%2Fpng&until="), "{url}");
        assert_ne!(links.seal("a", "b", "c", 1), links.seal("a", "b\nc", "", 1));
    }
}
