//! A million native actors on one worker, and virtual actors of which few are awake. Needs a running cluster
//! (`COVEY_ADDRESS` and `COVEY_TOKEN`). `covey-million <actors> <addressed>`; prints one JSON object.

use std::time::Instant;

use covey_client::{Client, NewActor, NewCall, Target};
use covey_domain::{ActorId, Error};
use covey_proto::codec;
use futures::{StreamExt as _, stream};

const IN_FLIGHT: usize = 1_000;

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mut args = std::env::args().skip(1).filter_map(|a| a.parse::<usize>().ok());
    let (actors, addressed) = (args.next().unwrap_or(1_000_000), args.next().unwrap_or(10_000));
    let client = Client::connect_default().await?;
    let calls = client.calls("million").await?;
    let begin = Instant::now();
    let make = |_| {
        let client = client.clone();
        async move {
            let new = NewActor { agent: "counter".into(), session: "million".into(), ..NewActor::default() };
            client.create_actor(new).await.map(|reply| reply.actor)
        }
    };
    let made: Vec<_> = stream::iter(0..actors).map(make).buffer_unordered(IN_FLIGHT).collect().await;
    let made = made.into_iter().collect::<Result<Vec<_>, _>>()?;
    let made_s = begin.elapsed().as_secs_f64();
    let begin = Instant::now();
    let every = (actors / 10_000).max(1);
    let asked = made.iter().step_by(every);
    let call = |actor: &String| {
        let target = Target::Actor(actor.as_str().into());
        let calls = calls.clone();
        async move { calls.value_of(NewCall::new(target, "add", codec::encode(&Some(1i64))?)).await }
    };
    let failed = stream::iter(asked).map(call).buffer_unordered(IN_FLIGHT).filter(|r| std::future::ready(r.is_err()));
    let failed = failed.count().await;
    let called_s = begin.elapsed().as_secs_f64();
    let begin = Instant::now();
    let wake = |key: usize| {
        let target = Target::Actor(ActorId::of_key(&"counter".into(), &key.to_string()));
        let calls = calls.clone();
        async move { calls.value_of(NewCall::new(target, "add", codec::encode(&Some(1i64))?)).await }
    };
    let asleep = stream::iter(0..addressed).map(wake).buffer_unordered(IN_FLIGHT);
    let unwoken = asleep.filter(|r| std::future::ready(r.is_err())).count().await;
    println!(
        "{}",
        serde_json::json!({
            "actors": actors, "made_per_s": (actors as f64 / made_s) as u64, "called": actors.div_ceil(every),
            "calls_per_s": (actors.div_ceil(every) as f64 / called_s) as u64, "failed": failed,
            "virtual_woken": addressed, "woken_per_s": (addressed as f64 / begin.elapsed().as_secs_f64()) as u64,
            "not_woken": unwoken,
        })
    );
    Ok(())
}
