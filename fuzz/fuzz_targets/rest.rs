#![no_main]

use axum::{body::Body, extract::Request};
use libfuzzer_sys::fuzz_target;

// One line with method and path, then the body.
fuzz_target!(|data: &[u8]| {
    let end = data.iter().position(|b| *b == b'\n').unwrap_or(data.len());
    let (line, body) = (String::from_utf8_lossy(&data[..end]), data.get(end + 1..).unwrap_or_default());
    let (method, path) = line.split_once(' ').unwrap_or(("GET", &line));
    let path = format!("/a2a/{}", path.trim_start_matches('/'));
    let request = Request::builder().method(method).uri(&path).header("content-type", "application/json");
    let Ok(request) = request.header("a2a-version", "1.0").body(Body::from(body.to_vec())) else { return };
    let (head, _) = covey_fuzz::ask(request);
    assert!(head.status().as_u16() < 500, "nothing that is sent is our own fault: {} {line}", head.status());
});
