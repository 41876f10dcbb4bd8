#![no_main]

use axum::{body::Body, extract::Request};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

// The first byte chooses the version that the client says it speaks; the rest is the body.
fuzz_target!(|data: &[u8]| {
    let Some((first, body)) = data.split_first() else { return };
    let mut request = Request::post("/a2a/echo").header("content-type", "application/json");
    match first % 4 {
        0 => {}
        1 => request = request.header("a2a-version", "0.3"),
        2 => request = request.header("a2a-version", "1.0"),
        _ => request = request.header("a2a-version", "1.0").header("last-event-id", (first / 4).to_string()),
    }
    let (head, body) = covey_fuzz::ask(request.body(Body::from(body.to_vec())).expect("a request"));
    assert_eq!(head.status(), 200, "JSON-RPC tells errors in its answer");
    let kind = head.headers()["content-type"].to_str().unwrap_or_default();
    if kind.starts_with("application/json") {
        let answer: Value = serde_json::from_slice(&body).expect("an answer is JSON");
        assert!(answer["error"].is_object() != answer.get("result").is_some(), "one of result and error: {answer}");
        // A bound that is reached has no code of its own.
        let bound = answer["error"]["data"].to_string().contains("RESOURCE_EXHAUSTED");
        assert!(bound || answer["error"]["code"] != -32603, "nothing that is sent is our own fault: {answer}");
    }
});
