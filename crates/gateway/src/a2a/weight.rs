//! What messages of the protocol hold until they are written: their own length in protobuf, and trees of values, which take more than
//! that.

use covey_a2a::v1;
use covey_domain::json;
use prost::Message as _;
use v1::{part::Content, send_message_response::Payload};

/// Bytes of a task.
pub(super) fn of_task(task: &v1::Task) -> usize {
    let said = task.status.iter().flat_map(|status| &status.message).chain(&task.history);
    let parts = said.flat_map(|message| &message.parts).chain(task.artifacts.iter().flat_map(|made| &made.parts));
    task.encoded_len() + parts.map(tree).sum::<usize>()
}

/// Bytes of what a message is answered with.
pub(super) fn of_sent(sent: &v1::SendMessageResponse) -> usize {
    match &sent.payload {
        Some(Payload::Task(task)) => of_task(task),
        Some(Payload::Message(message)) => message.encoded_len() + message.parts.iter().map(tree).sum::<usize>(),
        None => 0,
    }
}

/// Bytes of a page of tasks.
pub(super) fn of_page(page: &v1::ListTasksResponse) -> usize {
    page.tasks.iter().map(of_task).sum()
}

fn tree(part: &v1::Part) -> usize {
    match &part.content {
        Some(Content::Data(value)) => json::weight(&value.0),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use covey_a2a::content::{data_part, text_part};
    use serde_json::json;

    use super::*;

    #[test]
    fn many_small_values_weigh_what_they_take() {
        let task = |part| v1::Task {
            artifacts: vec![v1::Artifact { parts: vec![part], ..Default::default() }],
            ..Default::default()
        };
        let text = of_task(&task(text_part(&"x".repeat(1_000_000))));
        assert!((1_000_000..1_000_100).contains(&text), "{text}");
        let nulls = task(data_part(&json!(vec![(); 100_000])));
        assert!(of_task(&nulls) > 100_000 * size_of::<serde_json::Value>());
        let page = v1::ListTasksResponse { tasks: vec![nulls.clone(), nulls.clone()], ..Default::default() };
        assert_eq!(of_page(&page), 2 * of_task(&nulls));
        assert_eq!(of_sent(&v1::SendMessageResponse { payload: Some(Payload::Task(nulls.clone())) }), of_task(&nulls));
    }
}
