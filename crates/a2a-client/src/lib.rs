//! Agents elsewhere that speak A2A: found by their cards, which are checked, and asked over JSON-RPC or HTTP+JSON, in 1.0
//! or 0.3. A stream that is cut goes on where it was: [`Talk::ask`] gives what is new, each thing once.

mod card;
mod follow;
#[cfg(fuzzing)]
pub mod fuzzing;
mod keys;
mod wire;

use std::{collections::BTreeMap, time::Duration};

use covey_a2a::{
    card::{EXTENSION_ONCE, has},
    v1,
};
use covey_domain::{
    Error, ErrorKind, TaskState,
    agent::{Foreign, Pass},
    error::with_causes,
};
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

pub use card::Binding;
use card::Face;
pub use follow::Talk;
use wire::{Failed, Wire};

/// A connection that is not made in this time will not be.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A card that has not come in this time will not.
const CARD_TIMEOUT: Duration = Duration::from_secs(15);
/// A stream that says nothing for so long, not even that it is alive, is taken for cut.
const SILENCE_MAX: Duration = Duration::from_secs(120);
/// Bytes of a card, at most.
const CARD_BYTES_MAX: usize = 1 << 20;

/// Where an agent is and how it is to be spoken to.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Its address, or that of its card.
    pub url: String,
    /// What opens it: sent as its card asks, else as `Authorization: Bearer`.
    pub token: Option<String>,
    /// Sent with every request.
    pub headers: BTreeMap<String, String>,
    /// The keys one of which must have signed the card: a JWK set as JSON, or its address.
    pub keys: Option<String>,
    /// Further origins to which the card may send its callers, `https://host:port`.
    pub allow: Vec<String>,
}

impl Options {
    /// Where the agent is, and what opens it.
    pub fn new(foreign: &Foreign, pass: &Pass) -> Self {
        Self {
            url: foreign.url.clone(),
            token: pass.token.clone(),
            headers: pass.headers.clone(),
            keys: foreign.keys.clone(),
            allow: foreign.allow.clone(),
        }
    }
}

/// An agent elsewhere.
#[derive(Debug)]
pub struct Agent {
    card: v1::AgentCard,
    wire: Wire,
    streams: bool,
    /// A message can be sent again: it joins the task that it made.
    joins: bool,
}

impl Agent {
    /// Reads its card and checks it.
    pub async fn find(options: &Options) -> Result<Self, Error> {
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(SILENCE_MAX)
            // Another place may not be told the token.
            .redirect(reqwest::redirect::Policy::none())
            .tcp_nodelay(true)
            .user_agent(concat!("covey/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|e| Error::internal(format!("failed to make an HTTP client: {e}")))?;
        let given = given(options)?;
        let found = card::fetch(&http, options, &given).await?;
        if let Some(keys) = &options.keys {
            keys::check(&http, keys, &found.card).await?;
        }
        let face = card::choose(&found, &options.allow)?;
        let headers = with_token(given, options.token.as_deref(), &found.card)?;
        let streams = found.card.capabilities.as_ref().and_then(|c| c.streaming).unwrap_or(false);
        let joins = has(&found.card, EXTENSION_ONCE);
        Ok(Self { card: found.card, wire: Wire { http, headers, face }, streams, joins })
    }

    /// What it says of itself.
    pub fn card(&self) -> &v1::AgentCard {
        &self.card
    }

    /// How it is spoken to: binding, version, address.
    pub fn face(&self) -> (Binding, &str, &str) {
        let Face { binding, version, url, .. } = &self.wire.face;
        (*binding, version, url.as_str())
    }

    /// It says what it does while it does it.
    pub fn streams(&self) -> bool {
        self.streams
    }

    /// Sends a message whose answer is told elsewhere: a word to a task that works.
    pub async fn tell(&self, message: v1::Message) -> Result<(), Error> {
        let configuration = v1::SendMessageConfiguration { return_immediately: true, ..Default::default() };
        let request = v1::SendMessageRequest {
            message: Some(message),
            configuration: Some(configuration),
            ..v1::SendMessageRequest::default()
        };
        self.wire.send(&request, "").await.map(drop).map_err(Failed::into_error)
    }

    /// Stops a task there; one that has ended stays as it is.
    pub async fn cancel(&self, task: &str) -> Result<(), Error> {
        match self.wire.cancel(task).await {
            Ok(_) => Ok(()),
            Err(Failed::Said(error)) if error.kind == ErrorKind::FailedPrecondition => Ok(()),
            Err(failed) => Err(failed.into_error()),
        }
    }
}

/// The state that an event tells, where it tells one.
pub fn state_of(event: &v1::StreamResponse) -> Option<TaskState> {
    use v1::stream_response::Payload;
    let status = match event.payload.as_ref()? {
        Payload::Task(task) => task.status.as_ref(),
        Payload::StatusUpdate(update) => update.status.as_ref(),
        Payload::Message(_) | Payload::ArtifactUpdate(_) => None,
    };
    covey_a2a::content::state_in(status?.state())
}

fn given(options: &Options) -> Result<HeaderMap, Error> {
    let mut headers = HeaderMap::new();
    for (name, value) in &options.headers {
        let wrong = || Error::invalid(format!("the header `{name}` cannot be sent"));
        let key = HeaderName::try_from(name).map_err(|_| wrong())?;
        headers.insert(key, secret(value).ok_or_else(wrong)?);
    }
    Ok(headers)
}

fn secret(value: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(value).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// The token where the card wants it.
fn with_token(mut headers: HeaderMap, token: Option<&str>, card: &v1::AgentCard) -> Result<HeaderMap, Error> {
    use v1::security_scheme::Scheme;
    let Some(token) = token else { return Ok(headers) };
    let wrong = || Error::invalid("the token has characters that no header has");
    let key = card.security_schemes.values().find_map(|s| match s.scheme.as_ref()? {
        Scheme::ApiKeySecurityScheme(key) if key.location == "header" => HeaderName::try_from(&key.name).ok(),
        _ => None,
    });
    // Who takes both gets the token as everybody sends it.
    let bearer = card.security_schemes.values().any(|s| !matches!(s.scheme, Some(Scheme::ApiKeySecurityScheme(_))));
    match key.filter(|_| !bearer) {
        Some(name) => headers.insert(name, secret(token).ok_or_else(wrong)?),
        None => headers.insert(reqwest::header::AUTHORIZATION, secret(&format!("Bearer {token}")).ok_or_else(wrong)?),
    };
    Ok(headers)
}

/// An error with what is behind it; addresses may carry secrets and are left out.
fn chain(error: reqwest::Error) -> String {
    let error = error.without_url();
    with_causes(error.to_string(), &error)
}
