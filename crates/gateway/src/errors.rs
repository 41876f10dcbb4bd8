//! Refusals over HTTP. A protocol maps an error to its own kinds and writes its own body; the status comes from a table (the domain's
//! `faces()`, or the protocol's own), and how the answer is put together stands here.

use std::time::Duration;

use axum::{
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use covey_domain::{Error, ErrorKind};
use serde_json::Value;

/// A refusal with the status that the domain's table has for the error, and a protocol's body in JSON.
pub(crate) fn refusal(error: &Error, body: &Value) -> Response {
    let again = matches!(error.kind, ErrorKind::Overloaded | ErrorKind::Unavailable);
    let again = again.then_some(Duration::from_secs(1));
    Refusal { status: error.kind.faces().http, again, mime: "application/json", body: body.to_string() }.response()
}

/// A refusal as a protocol says it.
pub(crate) struct Refusal {
    /// HTTP's status.
    pub status: u16,
    /// When it is worth to come again, where that is known.
    pub again: Option<Duration>,
    /// Media type of the body.
    pub mime: &'static str,
    pub body: String,
}

impl Refusal {
    pub fn response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, [(header::CONTENT_TYPE, self.mime)], self.body).into_response();
        if let Some(again) = self.again {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(again.as_secs()));
        }
        response
    }
}

/// The message with what its reader can do about it, for protocols that have one field for both.
pub(crate) fn words(error: &Error) -> String {
    match &error.hint {
        Some(hint) => format!("{} ({hint})", error.message),
        None => error.message.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_come_again_is_told_when() {
        let again = |kind| {
            let response = refusal(&Error::new(kind, "no"), &Value::Null);
            (response.status().as_u16(), response.headers().get(header::RETRY_AFTER).cloned())
        };
        assert_eq!(again(ErrorKind::Overloaded), (429, Some(HeaderValue::from_static("1"))));
        assert_eq!(again(ErrorKind::Unavailable), (503, Some(HeaderValue::from_static("1"))));
        assert_eq!(again(ErrorKind::StorageFull), (503, None));
        assert_eq!(again(ErrorKind::NotFound), (404, None));
    }
}
