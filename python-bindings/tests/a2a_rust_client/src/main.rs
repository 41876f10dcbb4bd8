//! Everything the official Rust client can do, over one binding; prints what came of it as JSON.

use std::sync::Arc;

use a2a::{
    CancelTaskRequest, GetExtendedAgentCardRequest, GetTaskRequest, ListTasksRequest, Message, Part, PartContent, Role,
    SendMessageRequest, SendMessageResponse, StreamResponse, SubscribeToTaskRequest,
};
use a2a_client::{
    A2AClientFactory, agent_card::AgentCardResolver, auth::AuthInterceptor,
};
use futures::StreamExt as _;
use serde_json::json;

fn request(text: &str) -> SendMessageRequest {
    let message = Message::new(Role::User, vec![Part::text(text)]);
    SendMessageRequest { message, configuration: None, metadata: None, tenant: None }
}

fn texts(parts: &[Part]) -> String {
    parts.iter().filter_map(|p| if let PartContent::Text(t) = &p.content { Some(t.as_str()) } else { None }).collect()
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let mut next = || args.next().ok_or("usage: base binding key");
    let (base, binding, key) = (next()?, next()?, next()?);
    let mut headers = reqwest::header::HeaderMap::new();
    headers.insert("authorization", format!("Bearer {key}").parse()?);
    let http = reqwest::Client::builder().default_headers(headers).build()?;
    let mut card = AgentCardResolver::new(Some(http)).resolve(&base).await?;
    card.supported_interfaces.retain(|i| i.protocol_binding == binding && i.protocol_version.starts_with('1'));
    for interface in &mut card.supported_interfaces {
        // The card has host and port, as the specification asks; this client wants a scheme.
        if binding == "GRPC" && !interface.url.contains("://") {
            interface.url = format!("http://{}", interface.url);
        }
    }
    let client = A2AClientFactory::builder()
        .register(Arc::new(a2a_grpc::GrpcTransportFactory::new()))
        .preferred_bindings(vec![binding])
        .with_interceptor(Arc::new(AuthInterceptor::bearer(key)))
        .build()
        .create_from_card(&card)
        .await?;

    let SendMessageResponse::Task(sent) = client.send_message(&request("one two three")).await? else {
        return Err("a message came, not a task".into());
    };
    let answer: String = sent.artifacts.iter().flatten().map(|a| texts(&a.parts)).collect();

    let mut streamed = String::new();
    let (mut states, mut first) = (Vec::new(), None);
    let mut stream = client.send_streaming_message(&request("four five six")).await?;
    while let Some(event) = stream.next().await {
        match event? {
            StreamResponse::Task(task) => first = Some(task.id),
            StreamResponse::ArtifactUpdate(update) => streamed.push_str(&texts(&update.artifact.parts)),
            StreamResponse::StatusUpdate(update) => states.push(json!(update.status.state)),
            StreamResponse::Message(_) => {}
        }
    }
    let got = client.get_task(&GetTaskRequest { id: sent.id.clone(), history_length: None, tenant: None }).await?;
    let list = ListTasksRequest {
        context_id: Some(sent.context_id.clone()),
        status: None,
        page_size: Some(1),
        page_token: None,
        history_length: None,
        status_timestamp_after: None,
        include_artifacts: None,
        tenant: None,
    };
    let listed = client.list_tasks(&list).await?;
    let cancel = CancelTaskRequest { id: sent.id.clone(), metadata: None, tenant: None };
    let late = client.cancel_task(&cancel).await.err().map(|e| e.to_string());
    let over = SubscribeToTaskRequest { id: sent.id.clone(), tenant: None };
    let closed = match client.subscribe_to_task(&over).await {
        Err(error) => Some(error.to_string()),
        Ok(mut stream) => stream.next().await.and_then(Result::err).map(|e| e.to_string()),
    };
    let nobody = GetTaskRequest { id: "nobody's".into(), history_length: None, tenant: None };
    let missing = client.get_task(&nobody).await.err().map(|e| e.to_string());
    let extended = client.get_extended_agent_card(&GetExtendedAgentCardRequest { tenant: None }).await?;
    println!(
        "{}",
        json!({
            "answer": answer, "state": sent.status.state, "streamed": streamed, "states": states, "named": first.is_some(),
            "got": got.id == sent.id, "listed": listed.tasks.len(), "late": late, "closed": closed, "missing": missing,
            "card": extended.name,
        })
    );
    Ok(())
}
