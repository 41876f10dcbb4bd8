//! Calls from the Rust client through the head to a native actor: latency, throughput, stream items. Prints one JSON
//! object. Needs a running cluster (`COVEY_ADDRESS` and `COVEY_TOKEN`); `benches/first_table.py` starts one.

use std::time::Instant;

use covey_client::{Client, NewActor, Target};
use covey_domain::Error;
use covey_proto::{codec, payload_json};
use futures::{StreamExt as _, stream};

/// Calls one after the other.
const SEQUENTIAL: usize = 2_000;
/// Calls in all, and at once.
const CONCURRENT: usize = 50_000;
const IN_FLIGHT: usize = 1_000;
/// Words of one stream.
const ITEMS: usize = 50_000;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let client = Client::connect_default().await?;
    let calls = client.calls("bench").await?;
    let make = |agent: &str| NewActor { agent: agent.to_owned(), session: "bench".into(), ..NewActor::default() };
    let counter = Target::Actor(client.create_actor(make("counter")).await?.actor.into());
    let add = || async { calls.value(counter.clone(), "add", codec::encode(&Some(1i64))?).await };
    for _ in 0..200 {
        add().await?;
    }
    let mut micros = Vec::with_capacity(SEQUENTIAL);
    for _ in 0..SEQUENTIAL {
        let begin = Instant::now();
        add().await?;
        micros.push(begin.elapsed().as_micros() as u64);
    }
    micros.sort_unstable();
    let begin = Instant::now();
    let done = stream::iter(0..CONCURRENT).map(|_| add()).buffer_unordered(IN_FLIGHT);
    let failed = done.filter(|r| std::future::ready(r.is_err())).count().await;
    let per_second = CONCURRENT as f64 / begin.elapsed().as_secs_f64();
    if failed > 0 {
        return Err(Error::internal(format!("{failed} calls failed")));
    }
    let echo = Target::Actor(client.create_actor(make("echo")).await?.actor.into());
    let text = "word ".repeat(ITEMS);
    let args = payload_json(&serde_json::json!({"args": [text], "kwargs": {}}));
    let begin = Instant::now();
    let items = calls.stream(echo, "run", args).count().await;
    let items_per_second = items as f64 / begin.elapsed().as_secs_f64();
    println!(
        "{}",
        serde_json::json!({
            "call_p50_us": micros[SEQUENTIAL / 2], "call_p99_us": micros[SEQUENTIAL * 99 / 100],
            "calls_per_s": per_second as u64, "items": items, "items_per_s": items_per_second as u64,
        })
    );
    Ok(())
}
