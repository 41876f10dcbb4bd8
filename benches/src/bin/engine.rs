//! Covey's side of `make bench-llama`: the engine, without HTTP.
//!
//! ```text
//! engine MODEL THREADS roof                                    what the machine could do
//! engine MODEL THREADS prefill LENGTH                          tokens/s of one prompt
//! engine MODEL THREADS decode BATCH PROMPT NEW                 tokens/s of a prompt each, and of greedy decoding
//! engine MODEL THREADS swarm AGENTS SYSTEM OWN NEW             a whole job
//! engine MODEL THREADS embed SENTENCES.json VECTORS.f32        sentences/s of an embedding model
//! ```
//! Prints one JSON object. `COVEY_BENCH_DEVICE` names another device than the processor: `cuda`.

use std::{path::Path, time::Instant};

use covey_domain::infer::{InferEvent, Prompt, Sampling, Work};
use covey_inference::{Compute, Engine, EngineConfig, LoadOptions, Model};
use covey_kernels::{Pool, measure};
use serde_json::json;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let number = |i: usize| {
        args.get(i).and_then(|a| a.parse::<usize>().ok()).unwrap_or_else(|| panic!("argument {i} is a number"))
    };
    let threads = number(2);
    covey_inference::set_threads(threads);
    if args[3] == "roof" {
        let pool = Pool::new(threads);
        let Ok(Model::Generate(model)) = Model::load(Path::new(&args[1])) else { panic!("a decoder") };
        let roof = json!({
            "bandwidth": measure::read_bandwidth(&pool),
            "int8": measure::integer_peak(&pool),
            "f32": measure::float_peak(&pool),
            "bf16": measure::brain_peak(&pool),
            "step_bytes": model.step_bytes(),
            "products": model.step_products(),
        });
        println!("{roof}");
        return;
    }
    let compute = std::env::var("COVEY_BENCH_DEVICE").map_or(Compute::Cpu, |d| d.parse().expect("a device"));
    let options = LoadOptions { compute, ..LoadOptions::default() };
    let model = Model::load_with(Path::new(&args[1]), &options).unwrap_or_else(|e| panic!("{e}"));
    if args[3] == "embed" {
        println!("{}", embed(Engine::start("bench", model).expect("a thread"), &args[4], &args[5]));
        return;
    }
    let engine =
        Engine::start_with("bench", model, EngineConfig { kv_bytes: Some(4 << 30), ..EngineConfig::default() })
            .expect("a thread");
    run(&engine, vec![prompt(777, 64)], 4);
    let result = match args[3].as_str() {
        "prefill" => {
            let seconds = run(&engine, vec![prompt(1, number(4))], 1);
            json!({"prefill": number(4) as f64 / seconds})
        }
        "decode" => {
            let (batch, length, new) = (number(4), number(5), number(6));
            let before = engine.stats();
            let start = Instant::now();
            let answers = submit(&engine, (0..batch).map(|s| prompt(s + 1, length)).collect(), new + 1);
            // Decoding alone begins when the last prompt is computed; who was earlier has made some tokens by then.
            let all = (batch * (length - 1)) as u64;
            let (middle, made) = loop {
                let stats = engine.stats();
                if stats.prompt_tokens - before.prompt_tokens >= all {
                    break (start.elapsed().as_secs_f64(), stats.made_tokens - before.made_tokens);
                }
                std::thread::sleep(std::time::Duration::from_micros(200));
            };
            finish(answers, new + 1);
            let decoded = (batch * (new + 1)) as f64 - made as f64;
            json!({
                "prefill": (batch * length) as f64 / middle,
                "decode": decoded / (start.elapsed().as_secs_f64() - middle),
            })
        }
        _ => {
            let (agents, system, own, new) = (number(4), number(5), number(6), number(7));
            let common = prompt(0, system);
            let prompts = (0..agents).map(|s| [common.clone(), prompt(s + 1, own)].concat()).collect();
            let seconds = run(&engine, prompts, new);
            let stats = engine.stats();
            json!({"seconds": seconds, "computed_prompt_tokens": stats.prompt_tokens, "found": stats.found_tokens})
        }
    };
    println!("{result}");
}

/// Sentences a second; writes the vectors.
fn embed(engine: Engine, sentences: &str, out: &str) -> serde_json::Value {
    let texts: Vec<String> = serde_json::from_str(&std::fs::read_to_string(sentences).expect("a file")).expect("texts");
    let ask = |texts: Vec<String>| {
        let mut answer = engine.ask(Work::Embed { texts }).expect("room in the queue");
        let mut all = Vec::new();
        while let Some(event) = answer.blocking_recv() {
            if let InferEvent::Vectors { data, .. } = event.expect("vectors") {
                all = data;
            }
        }
        all
    };
    ask(texts[..64].to_vec());
    let start = Instant::now();
    let vectors = ask(texts.clone());
    let seconds = start.elapsed().as_secs_f64();
    std::fs::write(out, vectors.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()).expect("room on the disk");
    json!({"rate": texts.len() as f64 / seconds})
}

/// The same prompts as the peer's.
fn prompt(seed: usize, length: usize) -> Vec<u32> {
    (0..length).map(|i| ((seed * 7919 + i * 104_729) % (151_936 - 1000)) as u32).collect()
}

/// Seconds until all prompts have `new` tokens.
fn run(engine: &Engine, prompts: Vec<Vec<u32>>, new: usize) -> f64 {
    let start = Instant::now();
    finish(submit(engine, prompts, new), new);
    start.elapsed().as_secs_f64()
}

type Answer = tokio::sync::mpsc::Receiver<Result<InferEvent, covey_inference::Error>>;

fn submit(engine: &Engine, prompts: Vec<Vec<u32>>, new: usize) -> Vec<Answer> {
    let sampling = Sampling { max_tokens: Some(new as u32), ignore_eos: true, ..Sampling::default() };
    let work = |tokens| Work::Complete { prompt: Prompt::Tokens(tokens), sampling: sampling.clone() };
    prompts.into_iter().map(|tokens| engine.ask(work(tokens)).expect("room in the queue")).collect()
}

fn finish(answers: Vec<Answer>, new: usize) {
    for mut answer in answers {
        loop {
            match answer.blocking_recv() {
                Some(Ok(InferEvent::Done { usage, .. })) => {
                    assert_eq!(usage.output, new as u64, "all tokens were made");
                    break;
                }
                Some(Ok(_)) => {}
                other => panic!("the engine ended: {other:?}"),
            }
        }
    }
}
