//! `covey bench model`.

use std::time::{Duration, Instant};

use covey_client::{Calls, Client, Target};
use covey_domain::{
    Error,
    infer::{InferEvent, InferRequest, Prompt, Sampling, Terms, Work},
};
use futures::StreamExt as _;

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Measure a served model: first token, time between tokens, tokens a second at several numbers of requests at once
    Model(Args),
}

#[derive(clap::Args)]
#[command(after_help = "Example:\n  covey bench model tiny --at-once 1,4,16 --prompt 256 --shared 192")]
pub(crate) struct Args {
    /// Name
    model: String,
    /// Requests at once, a row of the table each
    #[arg(long, value_delimiter = ',', default_value = "1,4,8,16")]
    at_once: Vec<usize>,
    /// Requests of a row [default: four times those at once]
    #[arg(long)]
    requests: Option<usize>,
    /// Tokens of a prompt
    #[arg(long, default_value_t = 128)]
    prompt: usize,
    /// Of those, the same in all prompts
    #[arg(long, default_value_t = 0)]
    shared: usize,
    /// Tokens of an answer
    #[arg(long, default_value_t = 64)]
    tokens: u32,
}

pub(crate) async fn run(command: Command) -> Result<(), Error> {
    let Command::Model(args) = command;
    if args.prompt == 0 || args.shared > args.prompt || args.tokens == 0 || args.at_once.contains(&0) {
        return Err(Error::invalid(
            "a prompt and an answer have a token at least, and no more are shared than there are",
        ));
    }
    let client = Client::connect_default().await?;
    let calls = client.calls_without_session().await?;
    // The first request loads the model.
    ask(&calls, &args, 0, 0).await?;
    outln!("{}: prompts of {} tokens ({} shared), answers of {}", args.model, args.prompt, args.shared, args.tokens);
    outln!("| at once | requests | made t/s | prompt t/s | first token p50 / p95 ms | between tokens p50 / p95 ms |");
    outln!("|---:|---:|---:|---:|---:|---:|");
    for (row, at_once) in args.at_once.iter().enumerate() {
        let requests = args.requests.unwrap_or(at_once * 4);
        let begin = Instant::now();
        let asked = futures::stream::iter(0..requests).map(|i| ask(&calls, &args, row + 1, i));
        let answers: Vec<_> = asked.buffer_unordered(*at_once).collect().await;
        let took = begin.elapsed().as_secs_f64();
        let (mut first, mut between) = (Vec::new(), Vec::new());
        for answer in answers {
            let times = answer?;
            first.extend(times.first().copied());
            between.extend(times.into_iter().skip(1));
        }
        let made = requests as f64 * f64::from(args.tokens) / took;
        let read = (requests * args.prompt) as f64 / took;
        let (first, between) = (quantiles(first), quantiles(between));
        outln!("| {at_once} | {requests} | {made:.1} | {read:.0} | {first} | {between} |");
    }
    // Workers tell once a second.
    tokio::time::sleep(Duration::from_millis(1_200)).await;
    for node in client.status().await?.nodes.iter().filter(|n| n.state == "live") {
        for model in node.models.iter().filter(|m| m.name == args.model) {
            let Some(e) = &model.engine else { continue };
            let share = |part: u64, whole: u64| 100.0 * part as f64 / whole.max(1) as f64;
            outln!(
                "{}: {} steps, {:.1} tokens made a step, {:.0} % of prompt tokens from the prefix cache, {:.0} % of {} guesses \
                 right, {} preemptions, {} blocks of keys and values ({:.0} % hold prefixes), {:.0} MiB",
                node.name,
                e.steps,
                e.made_tokens as f64 / e.steps.max(1) as f64,
                share(e.found_tokens, e.asked_tokens),
                share(e.right_guesses, e.guessed_tokens),
                e.guessed_tokens,
                e.preemptions,
                e.kv_blocks,
                share(e.kv_cached, e.kv_blocks),
                model.memory as f64 / 1048576.0
            );
        }
    }
    Ok(())
}

/// Asks once; gives the time to each piece of the answer since the one before.
async fn ask(calls: &Calls, args: &Args, row: usize, i: usize) -> Result<Vec<Duration>, Error> {
    // Tokens that any vocabulary has, the same in every run and different in every request.
    let mut state = (row * 1_000_003 + i + 1) as u64;
    let mut next = || -> u32 {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        20 + (state >> 33) as u32 % 400
    };
    let tokens = (0..args.prompt).map(|at| if at < args.shared { 20 + (at * 37 % 400) as u32 } else { next() });
    let sampling = Sampling { max_tokens: Some(args.tokens), ignore_eos: true, ..Sampling::default() };
    let request = InferRequest {
        model: args.model.as_str().into(),
        work: Work::Complete { prompt: Prompt::Tokens(tokens.collect()), sampling },
        terms: Terms::default(),
        made: Vec::new(),
    };
    let mut items = calls.stream(Target::Model(args.model.clone()), "infer", covey_proto::payload_json(&request));
    let (mut at, mut times) = (Instant::now(), Vec::new());
    while let Some(item) = items.next().await {
        if let InferEvent::Delta(delta) = covey_proto::infer_event(&item?)? {
            let now = Instant::now();
            // A later piece may bring several tokens: each had its share of the time.
            let tokens = if times.is_empty() { 1 } else { delta.tokens.len().max(1) as u32 };
            times.extend(std::iter::repeat_n((now - at) / tokens, tokens as usize));
            at = now;
        }
    }
    Ok(times)
}

fn quantiles(times: Vec<Duration>) -> String {
    let mut times: Vec<f64> = times.iter().map(|t| t.as_secs_f64() * 1e3).collect();
    times.sort_by(f64::total_cmp);
    let at = |q: f64| times.get(((times.len() as f64 - 1.0) * q).round().max(0.0) as usize).copied().unwrap_or(0.0);
    format!("{:.1} / {:.1}", at(0.5), at(0.95))
}
