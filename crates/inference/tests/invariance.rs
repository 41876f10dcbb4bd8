//! One wrong token is a failure: an answer is the same alone or in a batch, with its prompt whole or in chunks, from a
//! cached prefix or computed, before and after its blocks were taken away, on one thread or several.

use std::path::{Path, PathBuf};

use covey_domain::infer::{
    Chat, ChatMessage, Constraint, Delta, Finish, InferEvent, Made, Prompt, Sampling, Terms, Work,
};
use covey_inference::{Compute, Engine, EngineConfig, EngineStats, Error, Format, Generator, LoadOptions, Model};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn load(path: &Path) -> Box<Generator> {
    load_on(path, Compute::Cpu)
}

fn load_on(path: &Path, compute: Compute) -> Box<Generator> {
    match Model::load_with(path, &LoadOptions { compute, ..LoadOptions::default() }).unwrap() {
        Model::Generate(generator) => generator,
        _ => panic!("a decoder was expected"),
    }
}

fn engine(path: &Path, config: EngineConfig) -> Engine {
    engine_on(path, Compute::Cpu, config)
}

fn engine_on(path: &Path, compute: Compute, config: EngineConfig) -> Engine {
    Engine::start_with("test", Model::Generate(load_on(path, compute)), config).unwrap()
}

fn work(tokens: &[u32], sampling: &Sampling) -> Work {
    Work::Complete { prompt: Prompt::Tokens(tokens.to_vec()), sampling: sampling.clone() }
}

/// Texts of all prompts, asked at once.
fn all_at_once(engine: &Engine, prompts: &[Vec<u32>], sampling: &Sampling) -> Vec<String> {
    let answers: Vec<_> = prompts.iter().map(|tokens| engine.ask(work(tokens, sampling)).unwrap()).collect();
    answers
        .into_iter()
        .map(|mut events| {
            let mut text = String::new();
            loop {
                match events.blocking_recv().expect("an end").unwrap() {
                    InferEvent::Delta(delta) => text.push_str(&delta.text),
                    InferEvent::Done { finish, usage } => {
                        assert_eq!((finish, usage.output), (Finish::Length, u64::from(sampling.max_tokens.unwrap())));
                        return text;
                    }
                    _ => panic!("text was asked for"),
                }
            }
        })
        .collect()
}

/// Prompts of many lengths; most begin like another one.
fn prompts(count: usize, vocab: u32, rng: &mut StdRng) -> Vec<Vec<u32>> {
    let row = |length: usize, rng: &mut StdRng| (0..length).map(|_| rng.random_range(3..vocab)).collect::<Vec<_>>();
    let beginnings: Vec<Vec<u32>> = (0..3).map(|i| row(20 + 45 * i, rng)).collect();
    (0..count)
        .map(|i| {
            let length = rng.random_range(1..50);
            let own = row(length, rng);
            if i % 4 == 3 { own } else { [beginnings[i % 3].clone(), own].concat() }
        })
        .collect()
}

fn invariant(path: &Path, vocab: u32, compute: Compute) -> Vec<EngineStats> {
    let mut rng = StdRng::seed_from_u64(11);
    let prompts = prompts(24, vocab, &mut rng);
    let greedy = Sampling { max_tokens: Some(24), ignore_eos: true, ..Sampling::default() };
    let warm = Sampling { temperature: Some(1.2), top_p: Some(0.9), seed: Some(5), ..greedy.clone() };
    let alone = engine_on(path, compute, EngineConfig { running_max: Some(1), ..EngineConfig::default() });
    let reference: Vec<Vec<String>> = [&greedy, &warm]
        .map(|s| prompts.iter().map(|p| all_at_once(&alone, std::slice::from_ref(p), s).remove(0)).collect())
        .to_vec();
    // The plain loop over the same weights knows nothing of batches and blocks.
    let plain = load_on(path, compute);
    let tokens = plain.greedy(&prompts[0], 24).unwrap();
    assert_eq!(plain.decode(&tokens), reference[0][0], "the engine says what the plain loop says");
    // Room for a few of the prompts; blocks on a device are larger.
    let few = alone.stats().kv_block_bytes * if compute == Compute::Cpu { 20 } else { 10 };
    let configs = [
        ("a batch", EngineConfig::default()),
        ("chunks of 16", EngineConfig { step_tokens_max: Some(16), ..EngineConfig::default() }),
        ("chunks of 7", EngineConfig { step_tokens_max: Some(7), ..EngineConfig::default() }),
        ("few blocks", EngineConfig { kv_bytes: Some(few), kv_blocks_min: Some(1), ..EngineConfig::default() }),
    ];
    configs
        .into_iter()
        .map(|(name, config)| {
            let engine = engine_on(path, compute, config);
            for (sampling, want) in [&greedy, &warm].into_iter().zip(&reference) {
                // Twice: the second time the cache knows the prompts.
                for round in 0..2 {
                    let got = all_at_once(&engine, &prompts, sampling);
                    for (i, (got, want)) in got.iter().zip(want).enumerate() {
                        assert_eq!(got, want, "{name}, round {round}, prompt {i}");
                    }
                }
            }
            engine.stats()
        })
        .collect()
}

#[test]
fn answers_do_not_depend_on_company_chunks_caches_or_preemption() {
    let stats = invariant(&root().join("../../models/tiny"), 1000, Compute::Cpu);
    assert!(stats[0].found_tokens > 24 * 20, "prefixes were shared: {:?}", stats[0]);
    assert!(stats[3].preemptions > 0 && stats[3].evictions > 0, "blocks were short: {:?}", stats[3]);
}

#[test]
fn nor_in_the_other_families() {
    for name in ["llama", "qwen2", "qwen3", "mistral", "smollm3", "qwen3_moe", "gemma3"] {
        invariant(&root().join("tests/goldens").join(name), 90, Compute::Cpu);
    }
}

/// The steps that a card computes, by candle's kernels on this processor. (A card's own products may round otherwise in
/// another company.)
#[test]
fn nor_do_they_on_a_device() {
    let stats = invariant(&root().join("../../models/tiny"), 1000, Compute::Candle);
    assert!(stats[0].found_tokens > 0 && stats[3].evictions > 0, "{stats:?}");
    invariant(&root().join("tests/goldens/mistral"), 90, Compute::Candle);
}

/// Texts and ends of all choices of one request.
fn choices(engine: &Engine, tokens: &[u32], sampling: &Sampling) -> (Vec<String>, Vec<Finish>) {
    let n = sampling.n.unwrap_or(1) as usize;
    let (mut texts, mut ends) = (vec![String::new(); n], vec![Finish::Length; n]);
    let mut events = engine.ask(work(tokens, sampling)).unwrap();
    loop {
        match events.blocking_recv().expect("an end").unwrap() {
            InferEvent::Delta(delta) => texts[delta.choice as usize].push_str(&delta.text),
            InferEvent::Ended { choice, finish } => ends[choice as usize] = finish,
            InferEvent::Done { usage, finish } => {
                assert!(n == 1 || finish == ends[0], "the whole ends like the first choice");
                assert_eq!(usage.input, tokens.len() as u64);
                return (texts, ends);
            }
            InferEvent::Vectors { .. } | InferEvent::Heard { .. } => panic!("text was asked for"),
        }
    }
}

#[test]
fn forked_choices_are_those_of_single_requests_also_where_blocks_are_short() {
    let path = root().join("../../models/tiny");
    let mut rng = StdRng::seed_from_u64(4);
    let prompts = prompts(6, 1000, &mut rng);
    let one = Sampling { temperature: Some(1.0), max_tokens: Some(30), seed: Some(40), ..Sampling::default() };
    let block = engine(&path, EngineConfig::default()).stats().kv_block_bytes;
    let short = EngineConfig { kv_bytes: Some(block * 14), kv_blocks_min: Some(1), ..EngineConfig::default() };
    for config in [EngineConfig::default(), short] {
        let engine = engine(&path, config);
        for prompt in &prompts {
            let (texts, _) = choices(&engine, prompt, &Sampling { n: Some(5), ..one.clone() });
            for (i, text) in texts.iter().enumerate() {
                let single = Sampling { seed: Some(40 + i as u64), ..one.clone() };
                assert_eq!(*text, choices(&engine, prompt, &single).0[0], "choice {i}");
            }
        }
    }
}

#[test]
fn guesses_are_made_and_change_nothing() {
    let engine = engine(&root().join("../../models/tiny"), EngineConfig::default());
    // The plain loop guesses nothing.
    let plain = load(&root().join("../../models/tiny"));
    for kind in 0..8u32 {
        let prompt: Vec<u32> = (0..60).map(|i| 100 + kind * 20 + i % 7).collect();
        let sampling = Sampling { max_tokens: Some(80), ignore_eos: true, ..Sampling::default() };
        let text = all_at_once(&engine, std::slice::from_ref(&prompt), &sampling).remove(0);
        assert_eq!(text, plain.decode(&plain.greedy(&prompt, 80).unwrap()));
    }
    let stats = engine.stats();
    assert!(stats.right_guesses > 50, "{stats:?}");
}

#[test]
fn logprobs_are_those_of_the_logits() {
    let path = root().join("../../models/tiny");
    let (engine, plain) = (engine(&path, EngineConfig::default()), load(&path));
    let prompt: Vec<u32> = (20..50).collect();
    let sampling = Sampling { max_tokens: Some(1), ignore_eos: true, logprobs: Some(3), ..Sampling::default() };
    let mut events = engine.ask(work(&prompt, &sampling)).unwrap();
    let Ok(InferEvent::Delta(Delta { logprobs, .. })) = events.blocking_recv().unwrap() else {
        panic!("a token was asked for")
    };
    let logits = plain.logits(&prompt).unwrap();
    let total = logits.iter().map(|l| f64::from(*l).exp()).sum::<f64>().ln();
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    assert!((f64::from(logprobs[0].logprob) - (f64::from(most) - total)).abs() < 1e-4);
    assert_eq!((logprobs[0].top.len(), logprobs[0].top[0].1), (3, logprobs[0].logprob));
}

#[test]
fn tenants_share_nothing_and_time_is_kept() {
    let engine = engine(&root().join("../../models/tiny"), EngineConfig::default());
    let prompt: Vec<u32> = (100..200).collect();
    let sampling = Sampling { max_tokens: Some(2), ignore_eos: true, ..Sampling::default() };
    let found = |tenant: &str| {
        let before = engine.stats().found_tokens;
        let terms = Terms { tenant: tenant.into(), ..Terms::default() };
        let mut events = engine.ask_with(work(&prompt, &sampling), terms, vec![]).unwrap();
        while events.blocking_recv().is_some() {}
        // The numbers are told after the step that ended the request.
        all_at_once(&engine, &[vec![5]], &sampling);
        engine.stats().found_tokens - before
    };
    assert_eq!((found("a"), found("b"), found("a"), found("")), (0, 0, 96, 0));
    let long = Sampling { max_tokens: Some(900), ignore_eos: true, ..Sampling::default() };
    let terms = Terms { timeout_ms: Some(20), ..Terms::default() };
    let mut events = engine.ask_with(work(&prompt, &long), terms, vec![]).unwrap();
    let mut last = None;
    while let Some(event) = events.blocking_recv() {
        last = Some(event);
    }
    assert!(matches!(last, Some(Err(Error::Late(20)))), "{last:?}");
}

#[test]
fn two_thousand_cancels_at_random_times_leave_every_block_free() {
    let engine = engine(&root().join("../../models/tiny"), EngineConfig::default());
    let mut rng = StdRng::seed_from_u64(2);
    let prompts = prompts(50, 1000, &mut rng);
    let sampling = Sampling { max_tokens: Some(200), ignore_eos: true, ..Sampling::default() };
    let mut open = Vec::new();
    for i in 0..2_000 {
        match engine.ask(work(&prompts[i % 50], &sampling)) {
            Ok(events) => open.push(events),
            Err(Error::Full) => open.clear(),
            Err(error) => panic!("{error}"),
        }
        while open.len() > 40 || (!open.is_empty() && rng.random_bool(0.4)) {
            let mut events = open.swap_remove(rng.random_range(0..open.len()));
            for _ in 0..rng.random_range(0..4) {
                let _ = events.try_recv();
            }
        }
        if rng.random_bool(0.05) {
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }
    drop(open);
    let last = all_at_once(&engine, &prompts[..1], &Sampling { max_tokens: Some(3), ..sampling });
    assert_eq!(last.len(), 1);
    // The engine tells its numbers after each step; the one that ended the last request may not be told yet.
    for _ in 0..500 {
        let stats = engine.stats();
        if stats.running == 0 && stats.waiting == 0 {
            assert_eq!(stats.kv_free + stats.kv_cached, stats.kv_blocks, "{stats:?}");
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    panic!("sequences are left: {:?}", engine.stats());
}

#[test]
fn a_draft_model_changes_the_speed_and_nothing_else() {
    let path = root().join("../../models/tiny");
    let rough = LoadOptions { quantize: Some(Format::Q4_0), ..LoadOptions::default() };
    let mut rng = StdRng::seed_from_u64(5);
    let prompts = prompts(6, 1024, &mut rng);
    // The same weights guess right, rougher ones mostly, and other numbers of blocks change nothing either.
    for (name, draft) in [("itself", Model::load(&path).unwrap()), ("rough", Model::load_with(&path, &rough).unwrap())]
    {
        let plain = engine(&path, EngineConfig::default());
        let model = Model::load(&path).unwrap();
        model.takes_draft(&draft).unwrap();
        let quick = Engine::start_with_draft("quick", model, Some(draft), EngineConfig::default()).unwrap();
        for sampling in [
            Sampling { max_tokens: Some(60), ignore_eos: true, ..Sampling::default() },
            Sampling {
                max_tokens: Some(60),
                ignore_eos: true,
                temperature: Some(0.8),
                seed: Some(2),
                ..Sampling::default()
            },
        ] {
            for prompt in &prompts {
                let one = std::slice::from_ref(prompt);
                assert_eq!(all_at_once(&quick, one, &sampling), all_at_once(&plain, one, &sampling), "{name}");
            }
            assert_eq!(
                all_at_once(&quick, &prompts[..2], &sampling),
                all_at_once(&plain, &prompts[..2], &sampling),
                "{name}"
            );
        }
        let (with, without) = (quick.stats(), plain.stats());
        assert!(with.right_guesses * 2 > with.guessed_tokens, "{name}: {with:?}");
        assert!(with.right_guesses > without.right_guesses, "{name}: {with:?} {without:?}");
    }
    let other = Model::load(&root().join("tests/goldens/qwen3")).unwrap();
    assert!(Model::load(&path).unwrap().takes_draft(&other).is_err(), "another vocabulary is refused");
}

/// All events of an answer, and what they say: text, calls and end of each choice.
type Said = (Vec<(String, String, Option<Finish>)>, Finish, u64);

fn said(choices: usize, events: impl Iterator<Item = InferEvent>) -> Said {
    let mut all = vec![(String::new(), String::new(), None); choices];
    for event in events {
        match event {
            InferEvent::Delta(delta) => {
                let one = &mut all[delta.choice as usize];
                one.0.push_str(&delta.text);
                delta.calls.iter().for_each(|c| one.1.extend([c.name.as_str(), c.arguments.as_str()]));
            }
            InferEvent::Ended { choice, finish } => all[choice as usize].2 = Some(finish),
            InferEvent::Done { finish, usage } => return (all, finish, usage.output),
            InferEvent::Vectors { .. } | InferEvent::Heard { .. } => panic!("text was asked for"),
        }
    }
    panic!("an answer ends")
}

#[test]
fn an_answer_goes_on_elsewhere_as_if_nothing_had_happened() {
    let path = root().join("../../models/tiny");
    let [one, other] = [(); 2].map(|()| engine(&path, EngineConfig::default()));
    let say = |text: &str| vec![ChatMessage::new("user", text)];
    let schema = serde_json::json!({"type": "object", "properties": {"a": {"type": "string", "maxLength": 9}},
        "required": ["a"], "additionalProperties": false});
    let tool = serde_json::json!({"type": "function", "function": {"name": "add", "parameters": {"type": "object",
        "properties": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "required": ["a", "b"]}}});
    let warm = Sampling {
        temperature: Some(1.1),
        top_p: Some(0.95),
        seed: Some(3),
        frequency_penalty: Some(0.4),
        max_tokens: Some(40),
        ..Sampling::default()
    };
    let works = [
        Chat { messages: say("Repeat: sun moon é star"), sampling: warm.clone(), ..Chat::default() },
        Chat {
            messages: say("river"),
            sampling: Sampling { n: Some(3), ignore_eos: true, stop: vec!["e".into()], ..warm.clone() },
            ..Chat::default()
        },
        Chat {
            messages: say("moon"),
            sampling: Sampling { constraint: Some(Constraint::JsonSchema(schema)), n: Some(2), ..warm.clone() },
            ..Chat::default()
        },
        Chat { messages: say("add 17 and 4"), tools: vec![tool], sampling: warm, ..Chat::default() },
    ];
    let mut cuts = 0;
    for chat in works {
        let choices = chat.sampling.n.unwrap_or(1) as usize;
        let work = Work::Chat(chat);
        let mut events = one.ask(work.clone()).unwrap();
        let all: Vec<InferEvent> = std::iter::from_fn(|| events.blocking_recv()).map(Result::unwrap).collect();
        let whole = said(choices, all.iter().cloned());
        for cut in 1..all.len() {
            let mut made: Vec<Made> = (0..choices as u32).map(|choice| Made { choice, ..Made::default() }).collect();
            for event in &all[..cut] {
                match event {
                    InferEvent::Delta(d) => made[d.choice as usize].tokens.extend(&d.tokens),
                    InferEvent::Ended { choice, finish } => made[*choice as usize].ended = Some(*finish),
                    _ => panic!("the end comes last"),
                }
            }
            let mut rest = other.ask_with(work.clone(), Terms::default(), made).unwrap();
            let rest = std::iter::from_fn(|| rest.blocking_recv()).map(Result::unwrap);
            assert_eq!(said(choices, all[..cut].iter().cloned().chain(rest)), whole, "cut after {cut} of {work:?}");
            cuts += 1;
        }
    }
    assert!(cuts > 60, "only {cuts} places were tried");
}
