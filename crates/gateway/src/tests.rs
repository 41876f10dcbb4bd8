//! Exchanges of all protocols with a cluster of vectors, byte for byte as `tests/wire.txt` has them. `COVEY_WIRE=write` writes
//! that file anew.

use std::{collections::BTreeSet, fmt::Write as _, path::Path, pin::Pin, sync::Arc, time::Duration};

use axum::{
    Router,
    body::{Body, HttpBody as _},
    http::{HeaderMap, Request, header},
};
use covey_a2a::{v1, v03};
use covey_domain::{TaskEvent, TaskRecord, event::ToolOutcome, log::Writer};
use prost::Message;
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::{
    Caller, Settings, Signer,
    fake::{CUT, Fake, answers, asks, begun, finished, record},
};

/// A log with most of what A2A has a form for, and some of what it has none for.
fn long(id: &str) -> Vec<TaskEvent> {
    let mut events = begun();
    events.push(TaskEvent::StepStarted { step: 1, name: "attempt 1".into() });
    events.extend(Writer::new(id.into(), 1).text("half an ans"));
    events.push(TaskEvent::StepReset { step: 1 });
    let mut writer = Writer::new(id.into(), 2);
    events.extend(writer.thought("hm"));
    events.extend(writer.text("hello "));
    events.extend(writer.call("1", "search".into(), None, covey_domain::event::ToolExec::Server, None));
    let call = writer.call_id("1");
    events.push(TaskEvent::ToolCallReady { call, args_text: "{\"q\":1}".into(), args: Some(json!({"q": 1})) });
    events.extend(writer.call_done("1", ToolOutcome::Ok { content: vec![], structured: None }));
    events.extend(asks("q"));
    events.extend(answers("q", "the red one", Some("m2".into())));
    events.extend(writer.data(json!({"n": 1})));
    events.push(TaskEvent::UiSurface { surface: "main".into(), content: json!({"uri": "ui://x"}) });
    events.extend(writer.text("world"));
    events.extend(finished(writer, None));
    events
}

/// Where all exchanges of this file go, and what came of them.
struct House {
    routes: Router,
    text: String,
}

fn house() -> House {
    let agent = |name: &str, a2a: Value| {
        json!({"name": name, "kind": {"type": "native", "implementation": "echo"}, "a2a": a2a,
            "skills": [{"id": "run", "streaming": true}]})
    };
    let cluster = Fake::new([
        agent("echo", json!({})),
        agent("other", json!({"messages": true, "input_modes": ["text/plain"]})),
        agent("quiet", json!({"streaming": false, "push_notifications": false})),
        agent("hidden", json!({})),
    ]);
    cluster.keep(record("long"), long("long"));
    cluster.keep(record("asks"), begun().into_iter().chain(asks("q")).collect());
    cluster.keep(record("asks-too"), begun().into_iter().chain(asks("q")).collect());
    cluster.keep(record("asks-three"), begun().into_iter().chain(asks("q")).collect());
    cluster.keep(record("asks-four"), begun().into_iter().chain(asks("q")).collect());
    cluster.keep(TaskRecord { caller: "you".into(), ..record("yours") }, begun());
    cluster.keep(TaskRecord { agent: "other".into(), ..record("of-other") }, long("of-other"));
    cluster.keep(TaskRecord { agent: "hidden".into(), ..record("hidden") }, begun());
    let result = |id: &str, value| {
        begun().into_iter().chain(finished(Writer::new(id.into(), 1), Some(value))).collect::<Vec<_>>()
    };
    // Its last entry makes two events.
    cluster.keep(record("returns"), result("returns", json!({"n": 42})));
    let mut cut = begun();
    cut.extend(Writer::new("cut".into(), 1).text("half"));
    cut.push(TaskEvent::Custom { name: CUT.into(), value: Value::Null });
    cluster.keep(record("cut"), cut);
    let settings = Settings {
        signer: Signer::new([7; 32], |bytes| bytes.iter().rev().take(64).copied().collect()),
        push_allow: Vec::new(),
        root: "http://h".into(),
        origins: Vec::new(),
        links_for: Duration::from_secs(60),
        background: tokio::runtime::Handle::current(),
    };
    House { routes: crate::router(Arc::new(cluster), &settings), text: String::new() }
}

/// Who asks: without the agent `hidden`, and with no say in which model answers.
fn caller() -> Caller {
    let agents: BTreeSet<_> = ["echo", "other", "quiet"].map(Into::into).into();
    Caller { agents: Some(Arc::new(agents)), models: false, ..Caller::of_all("me".into()) }
}

impl House {
    /// One exchange. Of its text what is written down is the request in a line, then the answer.
    async fn asks(&mut self, request: Request<Body>, what: &str) {
        let mut request = request;
        let seen = request.headers().get("last-event-id").map_or(String::new(), |id| format!(" behind {id:?}"));
        let line = format!("=== {} {}{seen} {what}", request.method(), request.uri());
        let _ = writeln!(self.text, "{}", line.trim_end());
        request.extensions_mut().insert(caller());
        let answer = self.routes.clone().oneshot(request).await.unwrap();
        let (head, mut body) = answer.into_parts();
        let (mut bytes, mut trailers) = (Vec::new(), HeaderMap::new());
        while let Some(frame) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            match frame.unwrap().into_data() {
                Ok(data) => bytes.extend(data),
                Err(frame) => trailers.extend(frame.into_trailers().unwrap()),
            }
        }
        let _ = writeln!(self.text, "{}", head.status);
        let mut headers: Vec<_> = head.headers.iter().chain(&trailers).collect();
        headers.sort_by_key(|(name, _)| name.as_str());
        for (name, value) in headers {
            let value = value.to_str().unwrap_or("?");
            let _ = match name.as_str() {
                // Its metadata has no order.
                "grpc-status-details-bin" => writeln!(self.text, "{name}: {} letters", value.len()),
                _ => writeln!(self.text, "{name}: {value}"),
            };
        }
        let is_text = head.headers.get(header::CONTENT_TYPE).is_none_or(|kind| kind != "application/grpc");
        match String::from_utf8(bytes) {
            Ok(text) if is_text => self.text.push_str(&text),
            Ok(text) => self.text.push_str(&text.as_bytes().escape_ascii().to_string()),
            Err(error) => self.text.push_str(&error.as_bytes().escape_ascii().to_string()),
        }
        self.text.push('\n');
    }

    async fn get(&mut self, path: &str) {
        self.asks(Request::get(path).body(Body::empty()).unwrap(), "").await;
    }

    async fn behind(&mut self, method: &str, path: &str, seen: &str) {
        let request = Request::builder().method(method).uri(path).header("last-event-id", seen);
        self.asks(request.body(Body::empty()).unwrap(), "").await;
    }

    async fn post(&mut self, path: &str, body: &Value) {
        let text = body.to_string();
        let request = Request::post(path).header(header::CONTENT_TYPE, "application/json");
        self.asks(request.body(text.clone().into()).unwrap(), &text).await;
    }

    async fn rpc(&mut self, path: &str, method: &str, params: Value) {
        self.post(path, &json!({"jsonrpc": "2.0", "id": 7, "method": method, "params": params})).await;
    }

    async fn grpc(&mut self, method: &str, message: &impl Message) {
        let encoded = message.encode_to_vec();
        let mut body = vec![0];
        body.extend((encoded.len() as u32).to_be_bytes());
        body.extend(encoded);
        let request = Request::post(format!("/{method}"))
            .header(header::CONTENT_TYPE, "application/grpc")
            .header("last-event-id", "2");
        self.asks(request.body(body.into()).unwrap(), "").await;
    }

    async fn extended(&mut self, path: &str, seen: &str) {
        let request = Request::post(path).header("last-event-id", seen);
        let request = request.header("a2a-extensions", "urn:covey:a2a:events:v1").body(Body::empty()).unwrap();
        self.asks(request, "with the extension").await;
    }
}

fn message(text: &str, task: Option<&str>) -> Value {
    let mut message = json!({"messageId": "m1", "role": "ROLE_USER", "parts": [{"text": text}]});
    if let Some(task) = task {
        message["taskId"] = task.into();
    }
    json!({"message": message})
}

fn old_message(text: &str, task: Option<&str>) -> Value {
    let part = json!({"kind": "text", "text": text});
    let mut message = json!({"kind": "message", "messageId": "m1", "role": "user", "parts": [part]});
    if let Some(task) = task {
        message["taskId"] = task.into();
    }
    json!({"message": message})
}

/// Streams of A2A, from everywhere.
async fn streams(house: &mut House) {
    let path = "/a2a/echo/tasks/long:subscribe";
    for seen in ["0", "13", "31"] {
        house.behind("POST", path, seen).await;
        house.extended(path, seen).await;
    }
    for seen in ["2", "3", "3.1", "4", "9", "x", "1.y", ""] {
        house.behind("GET", "/a2a/echo/tasks/returns:subscribe", seen).await;
    }
    for id in ["long", "asks", "cut", "yours", "of-other", "none"] {
        house.behind("POST", &format!("/a2a/echo/tasks/{id}:subscribe"), "1").await;
        house.post(&format!("/a2a/echo/tasks/{id}:subscribe"), &json!({})).await;
        house.rpc("/a2a/echo", "SubscribeToTask", json!({"id": id})).await;
        house.rpc("/", "tasks/resubscribe", json!({"id": id})).await;
    }
    house.behind("POST", "/a2a/echo/v1/tasks/long:subscribe", "20").await;
    house.post("/a2a/quiet/tasks/long:subscribe", &json!({})).await;
    for text in ["hello big world", "ask", "reply", "busy", "gone"] {
        for agent in ["echo", "other", "quiet", "hidden"] {
            house.post(&format!("/a2a/{agent}/message:stream"), &message(text, None)).await;
        }
        house.rpc("/a2a/other", "message/stream", old_message(text, None)).await;
    }
    house.post("/a2a/message:stream", &message("the blue one", Some("asks"))).await;
    house.rpc("/", "message/stream", old_message("ask", Some("asks-too"))).await;
    house.post("/a2a/message:stream", &message("the blue one", Some("asks-too"))).await;
}

/// Whole answers of A2A.
async fn answered(house: &mut House) {
    for id in ["long", "returns", "asks", "asks-three", "cut", "yours", "of-other", "none"] {
        house.get(&format!("/a2a/echo/tasks/{id}?historyLength=1")).await;
        house.rpc("/a2a/echo", "GetTask", json!({"id": id})).await;
        house.rpc("/", "tasks/get", json!({"id": id})).await;
        house.post("/a2a/message:send", &message("the blue one", Some(id))).await;
        house.post(&format!("/a2a/echo/tasks/{id}:cancel"), &json!({})).await;
        house.rpc("/", "CancelTask", json!({"id": id})).await;
        house.rpc("/", "tasks/cancel", json!({"id": id})).await;
    }
    house.rpc("/", "CancelTask", json!({"id": "asks-four"})).await;
    for text in ["hello big world", "ask", "reply", "busy", "gone", "full"] {
        house.post("/a2a/echo/message:send", &message(text, None)).await;
        house.rpc("/a2a/other", "SendMessage", message(text, None)).await;
        house.rpc("/a2a/other", "message/send", old_message(text, None)).await;
    }
    let mut asked = message("hello", None);
    asked["configuration"] = json!({"returnImmediately": true, "historyLength": 0});
    house.post("/a2a/echo/message:send", &asked).await;
    asked["configuration"] = json!({"historyLength": -1});
    house.post("/a2a/echo/message:send", &asked).await;
    let mut modelled = message("hello", None);
    modelled["metadata"] = json!({"model": "big"});
    house.post("/a2a/echo/message:send", &modelled).await;
    let mut elsewhere = message("hello", Some("asks-four"));
    elsewhere["message"]["contextId"] = "another".into();
    house.post("/a2a/echo/message:send", &elsewhere).await;
    for query in ["", "?pageSize=2", "?pageSize=0", "?includeArtifacts=true", "?pageToken=x", "?historyLength=0"] {
        house.get(&format!("/a2a/echo/tasks{query}")).await;
    }
    house.rpc("/", "ListTasks", json!({"status": "TASK_STATE_INPUT_REQUIRED"})).await;
    house.rpc("/", "ListTasks", json!({"tenant": "other"})).await;
    house.rpc("/", "ListTasks", json!({"tenant": "hidden"})).await;
    house.rpc("/a2a/echo", "ListTasks", json!({"tenant": "other"})).await;
}

/// What is refused, and what is said of agents.
async fn refusals(house: &mut House) {
    for path in ["/a2a/hidden/tasks/hidden", "/a2a/none/tasks", "/a2a/hidden/.well-known/agent-card.json"] {
        house.get(path).await;
    }
    house.get("/a2a").await;
    house.get("/.well-known/api-catalog").await;
    house.rpc("/a2a/hidden", "GetTask", json!({"id": "hidden"})).await;
    house.rpc("/", "GetTask", json!({"id": ""})).await;
    house.rpc("/", "Nothing", json!({})).await;
    house.post("/", &json!({"jsonrpc": "1.0"})).await;
    house.get("/a2a/echo/nothing").await;
    house.get("/v1/push-notifications?state=odd").await;
    house.post("/v1/push-notifications/long/x/replay", &json!({})).await;
    for (agent, task) in [("echo", "long"), ("echo", "yours"), ("quiet", "long")] {
        let path = format!("/a2a/{agent}/tasks/{task}/pushNotificationConfigs");
        house.get(&path).await;
        house.post(&path, &json!({"url": "http://127.0.0.1/x"})).await;
        house.get(&format!("{path}/x")).await;
    }
    house
        .post(
            "/a2a/other/message:send",
            &json!({"message": {"messageId": "m", "role": "ROLE_USER",
        "parts": [{"data": {"n": 1}}]}}),
        )
        .await;
    let chat = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    house.post("/v1/chat/completions", &chat).await;
    house.get("/v1/models/none").await;
}

/// The log itself.
async fn logs(house: &mut House) {
    let path = |id: &str, query: &str| format!("/v1/tasks/{id}/events{query}");
    for query in ["", "?after=3", "?after=31", "?after=99", "?after=-1", "?after=x", "?after=2.1"] {
        house.get(&path("long", query)).await;
        house.get(&path("asks-four", query)).await;
    }
    for id in ["cut", "yours", "of-other", "hidden", "none"] {
        house.get(&path(id, "")).await;
    }
    for seen in ["5", "99", "9223372036854775807", "9223372036854775806", "x", "3.1"] {
        house.behind("GET", &path("long", "?after=1"), seen).await;
    }
}

async fn over_grpc(house: &mut House) {
    let task = |id: &str| v1::GetTaskRequest { id: id.into(), ..Default::default() };
    for id in ["returns", "yours", "of-other", ""] {
        house.grpc("lf.a2a.v1.A2AService/GetTask", &task(id)).await;
        let subscribe = v1::SubscribeToTaskRequest { id: id.into(), ..Default::default() };
        house.grpc("lf.a2a.v1.A2AService/SubscribeToTask", &subscribe).await;
        let old = v03::TaskSubscriptionRequest { name: format!("tasks/{id}") };
        house.grpc("a2a.v1.A2AService/TaskSubscription", &old).await;
    }
    let cancel = v1::CancelTaskRequest { id: "returns".into(), ..Default::default() };
    house.grpc("lf.a2a.v1.A2AService/CancelTask", &cancel).await;
    let subscribe = v1::SubscribeToTaskRequest { id: "cut".into(), ..Default::default() };
    house.grpc("lf.a2a.v1.A2AService/SubscribeToTask", &subscribe).await;
    let tenant = v1::GetTaskRequest { tenant: "hidden".into(), ..task("hidden") };
    house.grpc("lf.a2a.v1.A2AService/GetTask", &tenant).await;
}

#[tokio::test]
async fn exchanges_are_those_that_were_recorded() {
    let mut house = house();
    streams(&mut house).await;
    answered(&mut house).await;
    refusals(&mut house).await;
    logs(&mut house).await;
    over_grpc(&mut house).await;
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/tests/wire.txt");
    if std::env::var_os("COVEY_WIRE").is_some() {
        std::fs::write(&place, &house.text).unwrap();
    }
    let recorded = std::fs::read_to_string(&place).unwrap();
    for (at, (now, then)) in (1..).zip(house.text.lines().zip(recorded.lines())) {
        assert_eq!(now, then, "line {at}");
    }
    assert_eq!(house.text.len(), recorded.len());
}
