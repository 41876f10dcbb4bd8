//! What anybody may send to a client, for `fuzz/`: nothing of it may panic.

use bytes::Bytes;
use covey_a2a::{card::canonical, v1};
use futures::StreamExt as _;

use crate::{Binding, card, follow::Seen, keys, wire};

/// A card, and a set of keys behind an empty line.
pub async fn card(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let (card, keys) = text.split_once("\n\n").unwrap_or((&text, "{\"keys\": []}"));
    let Ok(value) = serde_json::from_str(card) else { return };
    let Ok(card) = card::read(&value) else { return };
    // What is signed does not depend on how often it was written.
    let form = canonical(&card);
    let again: v1::AgentCard = serde_json::from_str(&form).expect("the canonical form is a card");
    assert_eq!(canonical(&again), form);
    let from = "https://h/.well-known/agent-card.json".parse().expect("an address");
    let found = card::Found { card, from };
    if let Ok(face) = card::choose(&found, &[]) {
        assert_eq!(face.url.origin(), found.from.origin(), "nobody is sent elsewhere");
    }
    if keys.trim_start().starts_with('{') {
        let _ = keys::check(&reqwest::Client::new(), keys, &found.card).await;
    }
}

/// A stream of events, cut into pieces of the size that the first byte says, by every binding.
pub async fn stream(bytes: &[u8]) {
    let Some((first, rest)) = bytes.split_first() else { return };
    for binding in [Binding::JsonRpc, Binding::Rest, Binding::Old] {
        let pieces: Vec<_> = rest.chunks(usize::from(*first) + 1).map(|p| Ok(Bytes::copy_from_slice(p))).collect();
        let mut events = wire::events(binding, futures::stream::iter(pieces));
        let mut seen = Seen::default();
        while let Some(event) = events.next().await {
            let Ok((_, event)) = event else { break };
            // Told again it is no news, unless it adds by its nature.
            let snapshot = matches!(&event.payload, Some(v1::stream_response::Payload::Task(_)));
            let Ok(_) = seen.take(event.clone()) else { break };
            if snapshot {
                assert!(seen.take(event).is_ok_and(|news| news.is_empty()), "a snapshot is told once");
            }
        }
    }
}
