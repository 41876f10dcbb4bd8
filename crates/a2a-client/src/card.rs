//! Cards of agents elsewhere: fetched, read in either version, and looked through before anybody is sent where they say.

use covey_a2a::{old_client, v1};
use covey_domain::{Error, ErrorKind};
use reqwest::{
    Client, StatusCode, Url,
    header::{ACCEPT, HeaderMap},
};
use serde_json::Value;

use crate::{CARD_BYTES_MAX, CARD_TIMEOUT, Options, chain};

/// Where cards lie, newest first.
const PLACES: [&str; 2] = [".well-known/agent-card.json", ".well-known/agent.json"];

/// A card and where it came from.
#[derive(Debug)]
pub(crate) struct Found {
    pub card: v1::AgentCard,
    pub from: Url,
}

/// How an agent is spoken to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Binding {
    /// JSON-RPC 2.0 over HTTP.
    JsonRpc,
    /// HTTP+JSON.
    Rest,
    /// JSON-RPC as 0.3 has it.
    Old,
}

/// One of the card's interfaces.
#[derive(Clone, Debug)]
pub(crate) struct Face {
    pub binding: Binding,
    pub url: Url,
    pub version: String,
    pub tenant: String,
}

pub(crate) async fn fetch(http: &Client, options: &Options, headers: &HeaderMap) -> Result<Found, Error> {
    let wrong = |why: String| Error::invalid(format!("`{}` is no agent's address: {why}", options.url));
    let url: Url = options.url.parse().map_err(|e| wrong(format!("{e}")))?;
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return Err(wrong("it must begin with http:// or https://".into()));
    }
    let places = if url.path().ends_with(".json") {
        vec![url]
    } else {
        let base = format!("{}/", url.as_str().trim_end_matches('/'));
        let joined = PLACES.map(|place| base.parse::<Url>().and_then(|base| base.join(place)));
        joined.into_iter().collect::<Result<_, _>>().map_err(|e| wrong(format!("{e}")))?
    };
    let mut tried = Vec::new();
    for place in places {
        let mut request =
            http.get(place.clone()).timeout(CARD_TIMEOUT).headers(headers.clone()).header(ACCEPT, "application/json");
        if let Some(token) = &options.token {
            request = request.bearer_auth(token);
        }
        let mut response = request
            .send()
            .await
            .map_err(|e| Error::unavailable(format!("the card of `{}` was not reached: {}", options.url, chain(e))))?;
        let status = response.status();
        if !status.is_success() {
            tried.push(format!("{place} answered {status}"));
            match status {
                StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED => continue,
                StatusCode::UNAUTHORIZED => {
                    return Err(Error::new(ErrorKind::Unauthenticated, tried.remove(0)).hint("it wants a token"));
                }
                _ => break,
            }
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(|e| Error::unavailable(chain(e)))? {
            body.extend_from_slice(&chunk);
            if body.len() > CARD_BYTES_MAX {
                return Err(Error::invalid(format!("the card at {place} is larger than {CARD_BYTES_MAX} bytes")));
            }
        }
        let bad = |why: String| Error::invalid(format!("the card at {place} is wrong: {why}"));
        let value: Value = serde_json::from_slice(&body).map_err(|e| bad(e.to_string()))?;
        let card = read(&value).map_err(bad)?;
        return Ok(Found { card, from: place });
    }
    Err(Error::not_found("agent card at", &options.url).hint(tried.join("; ")))
}

/// A card of either version. Who has interfaces is of 1.0.
pub(crate) fn read(value: &Value) -> Result<v1::AgentCard, String> {
    let card: v1::AgentCard = match value.get("supportedInterfaces") {
        Some(_) => serde_json::from_value(value.clone()).map_err(|e| e.to_string())?,
        None => old_client::card_in(value)?,
    };
    if card.name.trim().is_empty() {
        return Err("it has no `name`".into());
    }
    if card.supported_interfaces.is_empty() {
        return Err("it has no interface".into());
    }
    Ok(card)
}

/// The first interface of those that can be spoken to: 1.0 before 0.3, JSON-RPC before HTTP+JSON. It must lead to where the
/// card came from, or to where callers may be sent.
pub(crate) fn choose(found: &Found, allow: &[String]) -> Result<Face, Error> {
    let mut faces: Vec<(u8, &v1::AgentInterface, Binding)> = Vec::new();
    for interface in &found.card.supported_interfaces {
        let newer = interface.protocol_version.starts_with("1.") || interface.protocol_version == "1";
        let (rank, binding) = match (newer, interface.protocol_binding.to_ascii_uppercase().as_str()) {
            (true, "JSONRPC") => (0, Binding::JsonRpc),
            (true, "HTTP+JSON") => (1, Binding::Rest),
            (false, "JSONRPC") if interface.protocol_version.starts_with("0.") => (2, Binding::Old),
            _ => continue,
        };
        faces.push((rank, interface, binding));
    }
    faces.sort_by_key(|(rank, ..)| *rank);
    let mut refused = Vec::new();
    for (_, interface, binding) in faces {
        let mut url: Url = match interface.url.parse() {
            Ok(url) => url,
            Err(error) => {
                refused.push(format!("`{}` is wrong: {error}", interface.url));
                continue;
            }
        };
        // What a server is bound to says not where it is.
        if matches!(url.host_str(), Some("0.0.0.0" | "[::]")) {
            let _ = url.set_host(found.from.host_str());
        }
        if !leads_home(&url, &found.from) && !allow.iter().any(|origin| is_origin(&url, origin)) {
            refused.push(format!("`{url}` is another place than {}", found.from.origin().ascii_serialization()));
            continue;
        }
        return Ok(Face {
            binding,
            url,
            version: interface.protocol_version.clone(),
            tenant: interface.tenant.clone(),
        });
    }
    let name = &found.card.name;
    if refused.is_empty() {
        let spoken: Vec<_> = (found.card.supported_interfaces.iter())
            .map(|i| format!("{} {}", i.protocol_binding, i.protocol_version))
            .collect();
        let why = format!("agent `{name}` speaks {}; JSON-RPC and HTTP+JSON are spoken here", spoken.join(", "));
        return Err(Error::new(ErrorKind::FailedPrecondition, why));
    }
    let why = format!("the card of `{name}` sends its callers elsewhere: {}", refused.join("; "));
    Err(Error::new(ErrorKind::PermissionDenied, why).hint("name the origins it may send to with `allow`"))
}

fn leads_home(url: &Url, home: &Url) -> bool {
    let loopback = |url: &Url| matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
    url.origin() == home.origin()
        || (loopback(url) && loopback(home) && url.port_or_known_default() == home.port_or_known_default())
}

fn is_origin(url: &Url, origin: &str) -> bool {
    origin.parse::<Url>().is_ok_and(|origin| origin.origin() == url.origin())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn chosen(interfaces: Value, from: &str, allow: &[&str]) -> Result<(Binding, String), String> {
        let card = json!({"name": "X", "supportedInterfaces": interfaces});
        let found = Found { card: read(&card).unwrap(), from: from.parse().unwrap() };
        let allow: Vec<_> = allow.iter().map(|a| (*a).to_owned()).collect();
        choose(&found, &allow).map(|f| (f.binding, f.url.to_string())).map_err(|e| e.message)
    }

    fn at(url: &str, binding: &str, version: &str) -> Value {
        json!({"url": url, "protocolBinding": binding, "protocolVersion": version})
    }

    #[test]
    fn the_newest_that_is_spoken_is_chosen() {
        let home = "https://h/.well-known/agent-card.json";
        let all = json!([
            at("https://h/old", "JSONRPC", "0.3"),
            at("h:443", "GRPC", "1.0"),
            at("https://h/rest", "HTTP+JSON", "1.0"),
            at("https://h/rpc", "JSONRPC", "1.0")
        ]);
        assert_eq!(chosen(all, home, &[]).unwrap(), (Binding::JsonRpc, "https://h/rpc".into()));
        let old = json!([at("https://h/old", "JSONRPC", "0.3")]);
        assert_eq!(chosen(old, home, &[]).unwrap().0, Binding::Old);
        let grpc = json!([at("h:443", "GRPC", "1.0")]);
        assert!(chosen(grpc, home, &[]).unwrap_err().contains("GRPC 1.0"));
    }

    #[test]
    fn nobody_is_sent_elsewhere_unasked() {
        let home = "http://127.0.0.1:9999/.well-known/agent-card.json";
        let to = |url: &str| json!([at(url, "JSONRPC", "1.0")]);
        assert!(chosen(to("http://evil.example/"), home, &[]).unwrap_err().contains("evil.example"));
        assert!(chosen(to("http://127.0.0.1:9998/"), home, &[]).is_err());
        assert!(chosen(to("http://evil.example/x"), home, &["http://evil.example"]).is_ok());
        assert!(chosen(to("http://localhost:9999/"), home, &[]).is_ok());
        assert_eq!(chosen(to("http://0.0.0.0:9999/"), home, &[]).unwrap().1, "http://127.0.0.1:9999/");
    }

    #[test]
    fn what_is_no_card_is_told() {
        assert!(read(&json!({"supportedInterfaces": []})).unwrap_err().contains("name"));
        assert!(read(&json!({"name": "X", "supportedInterfaces": []})).unwrap_err().contains("interface"));
        assert!(read(&json!({"hello": 1})).unwrap_err().contains("url"));
    }
}
