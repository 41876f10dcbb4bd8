//! An agent's card. One document for both versions: a 1.0 client ignores the 0.3 fields and the other way round.

use axum::{
    Json,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use covey_domain::AgentSpec;
use serde_json::{Value, json};

/// The card as a response with an `ETag`.
pub(super) fn response(spec: &AgentSpec, base: &str, at_root: bool, headers: &HeaderMap) -> Response {
    let url = if at_root { format!("{base}/a2a") } else { format!("{base}/a2a/{}", spec.name) };
    let body = card(spec, &url);
    let tag = format!("\"{:016x}\"", fnv(body.to_string().as_bytes()));
    if headers.get(header::IF_NONE_MATCH).is_some_and(|v| v.as_bytes() == tag.as_bytes()) {
        return StatusCode::NOT_MODIFIED.into_response();
    }
    let mut response = Json(body).into_response();
    if let Ok(tag) = HeaderValue::from_str(&tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("max-age=60"));
    response
}

fn card(spec: &AgentSpec, url: &str) -> Value {
    let or_name = |text: &str, name: &str| if text.is_empty() { name.to_owned() } else { text.to_owned() };
    let skills: Vec<_> = spec
        .skills
        .iter()
        .map(|s| json!({"id": s.id, "name": or_name(&s.name, &s.id), "description": or_name(&s.description, &s.id), "tags": ["covey"]}))
        .collect();
    json!({
        "name": spec.name, "description": or_name(&spec.description, spec.name.as_str()),
        "version": env!("CARGO_PKG_VERSION"),
        "supportedInterfaces": [
            {"url": url, "protocolBinding": "JSONRPC", "protocolVersion": "1.0"},
            {"url": url, "protocolBinding": "JSONRPC", "protocolVersion": "0.3"},
        ],
        "protocolVersion": "0.3.0", "url": url, "preferredTransport": "JSONRPC",
        "capabilities": {"streaming": true, "pushNotifications": false},
        "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "httpAuthSecurityScheme": {"scheme": "Bearer"}}},
        "security": [{"bearer": []}],
        "securityRequirements": [{"schemes": {"bearer": {"list": []}}}],
        "defaultInputModes": ["text/plain", "application/json"],
        "defaultOutputModes": ["text/plain", "application/json"],
        "skills": skills,
    })
}

/// FNV-1a: a tag needs no secrecy, only to change with the card.
fn fnv(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}
