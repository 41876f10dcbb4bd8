//! An echo agent on `a2a-server-lf`, in memory: each word of the message is a chunk of the one artifact.

use std::sync::Arc;

use a2a::*;
use a2a_server::{AgentExecutor, DefaultRequestHandler, ExecutorContext, InMemoryTaskStore, jsonrpc::jsonrpc_router};
use futures::stream::BoxStream;

struct Echo;

fn status(task: &str, context: &str, state: TaskState) -> StreamResponse {
    StreamResponse::StatusUpdate(TaskStatusUpdateEvent {
        task_id: task.to_owned(),
        context_id: context.to_owned(),
        status: TaskStatus { state, message: None, timestamp: Some(chrono::Utc::now()) },
        metadata: None,
    })
}

#[async_trait::async_trait]
impl AgentExecutor for Echo {
    fn execute(&self, ctx: ExecutorContext) -> BoxStream<'static, Result<StreamResponse, A2AError>> {
        let (task, context) = ctx.task_info();
        let text: String = ctx
            .message
            .iter()
            .flat_map(|message| &message.parts)
            .filter_map(|part| if let PartContent::Text(text) = &part.content { Some(text.as_str()) } else { None })
            .collect();
        Box::pin(async_stream::stream! {
            yield Ok(StreamResponse::Task(Task {
                id: task.clone(),
                context_id: context.clone(),
                status: TaskStatus { state: TaskState::Submitted, message: None, timestamp: Some(chrono::Utc::now()) },
                artifacts: None,
                history: ctx.message.map(|message| vec![message]),
                metadata: None,
            }));
            yield Ok(status(&task, &context, TaskState::Working));
            for (n, word) in text.split_inclusive(' ').enumerate() {
                yield Ok(StreamResponse::ArtifactUpdate(TaskArtifactUpdateEvent {
                    task_id: task.clone(),
                    context_id: context.clone(),
                    artifact: Artifact {
                        artifact_id: "answer".into(),
                        name: Some("answer".into()),
                        description: None,
                        parts: vec![Part::text(word)],
                        metadata: None,
                        extensions: None,
                    },
                    append: Some(n > 0),
                    last_chunk: Some(false),
                    metadata: None,
                }));
                // Lets the reader take it: the crate holds 32 events for each.
                tokio::task::yield_now().await;
            }
            yield Ok(status(&task, &context, TaskState::Completed));
        })
    }

    fn cancel(&self, _: ExecutorContext) -> BoxStream<'static, Result<StreamResponse, A2AError>> {
        Box::pin(futures::stream::empty())
    }
}

#[tokio::main]
async fn main() {
    let port = std::env::args().nth(1).unwrap_or_else(|| "9703".into());
    let handler = Arc::new(DefaultRequestHandler::new(Echo, InMemoryTaskStore::new()));
    let listener = tokio::net::TcpListener::bind(format!("127.0.0.1:{port}")).await.expect("the port is free");
    use axum::serve::ListenerExt as _;
    // The crate leaves it to its user; without it streams wait 40 ms for an acknowledgement.
    let listener = listener.tap_io(|tcp| drop(tcp.set_nodelay(true)));
    axum::serve(listener, jsonrpc_router(handler)).await.expect("it serves");
}
