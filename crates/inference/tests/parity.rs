//! Logits, greedy tokens and vectors agree with Hugging Face `transformers` (goldens made by `goldens/make.py`), for
//! safetensors and for the same weights as GGUF; the shipped tiny model does what it was trained for.

use std::{
    fs,
    path::{Path, PathBuf},
};

use candle_core::{
    Device,
    quantized::{GgmlDType, QTensor, gguf_file},
};
use covey_domain::infer::{Chat, ChatMessage, Finish, InferEvent, Made, Prompt, Sampling, Speech, Terms, Work};
use covey_inference::{Compute, Engine, Error, Format, Generator, LoadOptions, Model};

/// Largest difference of a logit from transformers' in float32, in units of the logits' root mean square: keys and
/// values are held in 16 bits here, as in llama.cpp, which is as far off on the deepest of them.
const LOGIT_TOLERANCE: f32 = 1e-2;

fn goldens() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens")
}

fn json(path: PathBuf) -> serde_json::Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn numbers<T: serde::de::DeserializeOwned>(value: &serde_json::Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

fn generator(model: Model) -> Box<Generator> {
    match model {
        Model::Generate(generator) => generator,
        _ => panic!("a decoder was expected"),
    }
}

fn agrees(name: &str, model: &Generator) {
    for (at, case) in json(goldens().join(name).join("golden.json"))["cases"].as_array().unwrap().iter().enumerate() {
        let prompt: Vec<u32> = numbers(&case["prompt"]);
        let want: Vec<f32> = numbers(&case["logits"]);
        let got = model.logits(&prompt).unwrap();
        let size = (want.iter().map(|x| x * x).sum::<f32>() / want.len() as f32).sqrt();
        let worst = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / size;
        assert!(worst < LOGIT_TOLERANCE, "{name} case {at}: logits differ by {worst}");
        assert_eq!(model.greedy(&prompt, 12).unwrap(), numbers::<Vec<u32>>(&case["greedy"]), "{name} case {at}");
    }
}

#[test]
fn decoders_agree_with_transformers() {
    for name in ["llama", "qwen2", "qwen3", "qwen3_yarn", "mistral", "smollm3", "qwen3_moe", "gemma3", "gemma3_other"] {
        agrees(name, &generator(Model::load(&goldens().join(name)).unwrap()));
    }
}

/// Writes a golden checkpoint as a GGUF file, with llama.cpp's names, rows permuted and norms shifted where its
/// converter does so.
fn as_gguf(name: &str, dtype: GgmlDType) -> (tempfile::TempDir, PathBuf) {
    let folder = goldens().join(name);
    let config = json(folder.join("config.json"));
    let heads = config["num_attention_heads"].as_u64().unwrap() as usize;
    let kv_heads = config["num_key_value_heads"].as_u64().unwrap() as usize;
    let mut tensors = candle_core::safetensors::load(folder.join("model.safetensors"), &Device::Cpu).unwrap();
    let experts = config["num_experts"].as_u64().or(config["num_local_experts"].as_u64());
    for layer in 0..experts.map_or(0, |_| config["num_hidden_layers"].as_u64().unwrap()) {
        for part in ["gate_proj", "up_proj", "down_proj"] {
            let name = |i: u64| format!("model.layers.{layer}.mlp.experts.{i}.{part}.weight");
            let all: Vec<_> = (0..experts.unwrap()).map(|i| tensors.remove(&name(i)).unwrap()).collect();
            let all = candle_core::Tensor::stack(&all, 0).unwrap();
            tensors.insert(format!("model.layers.{layer}.mlp.experts_{part}.weight"), all);
        }
    }
    let gemma = name == "gemma3";
    let arch = name.replace('_', "");
    let mut out = Vec::new();
    for (hf, tensor) in tensors {
        let gguf = hf
            .replace("model.embed_tokens", "token_embd")
            .replace("model.norm", "output_norm")
            .replace("lm_head", "output")
            .replace("model.layers.", "blk.")
            .replace("self_attn.q_proj", "attn_q")
            .replace("self_attn.k_proj", "attn_k")
            .replace("self_attn.v_proj", "attn_v")
            .replace("self_attn.o_proj", "attn_output")
            .replace("self_attn.q_norm", "attn_q_norm")
            .replace("self_attn.k_norm", "attn_k_norm")
            .replace("mlp.experts_gate_proj", "ffn_gate_exps")
            .replace("mlp.experts_up_proj", "ffn_up_exps")
            .replace("mlp.experts_down_proj", "ffn_down_exps")
            .replace("mlp.gate.weight", "ffn_gate_inp.weight")
            .replace("mlp.gate_proj", "ffn_gate")
            .replace("mlp.up_proj", "ffn_up")
            .replace("mlp.down_proj", "ffn_down")
            .replace("input_layernorm", "attn_norm")
            .replace("post_attention_layernorm", if gemma { "post_attention_norm" } else { "ffn_norm" })
            .replace("pre_feedforward_layernorm", "ffn_norm")
            .replace("post_feedforward_layernorm", "post_ffw_norm");
        let tensor = if gemma && gguf.ends_with("norm.weight") { (tensor + 1.0).unwrap() } else { tensor };
        let permuted = |n: usize| {
            let (rows, cols) = tensor.dims2().unwrap();
            let t = tensor.reshape((n, 2, rows / n / 2, cols)).unwrap().transpose(1, 2).unwrap();
            t.contiguous().unwrap().reshape((rows, cols)).unwrap()
        };
        let tensor = match (name, gguf.as_str()) {
            ("llama" | "smollm3", g) if g.contains("attn_q.") => permuted(heads),
            ("llama" | "smollm3", g) if g.contains("attn_k.") => permuted(kv_heads),
            _ => tensor,
        };
        let kind = if tensor.rank() >= 2 { dtype } else { GgmlDType::F32 };
        out.push((gguf, QTensor::quantize(&tensor, kind).unwrap()));
    }
    let int = |key: &str| gguf_file::Value::U32(config[key].as_u64().unwrap() as u32);
    let word = |i: u32| gguf_file::Value::String(format!("w{i}"));
    let vocab = config["vocab_size"].as_u64().unwrap() as u32;
    let head_dim = config["head_dim"].as_u64().unwrap_or(config["hidden_size"].as_u64().unwrap() / heads as u64);
    let rope = &config["rope_parameters"];
    let theta = rope["rope_theta"].as_f64().or(rope["full_attention"]["rope_theta"].as_f64()).unwrap_or(10_000.0);
    let key = |k: &str| format!("{arch}.{k}");
    let mut meta: Vec<(String, gguf_file::Value)> = vec![
        ("general.architecture".into(), gguf_file::Value::String(arch.clone())),
        (key("embedding_length"), int("hidden_size")),
        (key("block_count"), int("num_hidden_layers")),
        (key("attention.head_count"), int("num_attention_heads")),
        (key("attention.head_count_kv"), int("num_key_value_heads")),
        (key("attention.key_length"), gguf_file::Value::U32(head_dim as u32)),
        (
            key("attention.layer_norm_rms_epsilon"),
            gguf_file::Value::F32(config["rms_norm_eps"].as_f64().unwrap() as f32),
        ),
        (key("rope.freq_base"), gguf_file::Value::F32(theta as f32)),
        (key("context_length"), int("max_position_embeddings")),
        ("tokenizer.ggml.model".into(), gguf_file::Value::String("gpt2".into())),
        ("tokenizer.ggml.tokens".into(), gguf_file::Value::Array((0..vocab).map(word).collect())),
        ("tokenizer.ggml.merges".into(), gguf_file::Value::Array(vec![])),
        ("tokenizer.ggml.eos_token_id".into(), gguf_file::Value::U32(0)),
    ];
    if let Some(count) = experts {
        meta.push((key("expert_count"), gguf_file::Value::U32(count as u32)));
        meta.push((key("expert_used_count"), int("num_experts_per_tok")));
    }
    if gemma {
        meta.push((key("attention.sliding_window"), int("sliding_window")));
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(format!("{name}.gguf"));
    let meta: Vec<_> = meta.iter().map(|(k, v)| (k.as_str(), v)).collect();
    let tensors: Vec<_> = out.iter().map(|(k, v)| (k.as_str(), v)).collect();
    gguf_file::write(&mut fs::File::create(&path).unwrap(), &meta, &tensors).unwrap();
    (dir, path)
}

#[test]
fn the_same_weights_as_gguf_agree_too() {
    // The golden Llama stretches its positions, which GGUF carries in a tensor that is not read yet.
    for name in ["qwen2", "qwen3", "qwen3_moe", "smollm3", "gemma3"] {
        let (_dir, path) = as_gguf(name, GgmlDType::F32);
        agrees(name, &generator(Model::load(&path).unwrap()));
    }
}

/// The steps that a card computes, by candle's kernels on this processor.
#[test]
fn decoders_on_a_device_agree_with_transformers() {
    let on_candle = |path: &Path| {
        let options = LoadOptions { compute: Compute::Candle, ..LoadOptions::default() };
        generator(Model::load_with(path, &options).unwrap())
    };
    for name in ["llama", "qwen2", "qwen3", "qwen3_yarn", "mistral", "smollm3", "qwen3_moe", "gemma3", "gemma3_other"] {
        agrees(name, &on_candle(&goldens().join(name)));
    }
    for name in ["qwen2", "qwen3_moe", "smollm3", "gemma3"] {
        let (_dir, path) = as_gguf(name, GgmlDType::F32);
        agrees(name, &on_candle(&path));
    }
    // In blocks of eight bits, too: activations are rounded otherwise.
    let tiny = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny");
    let eight = |compute| {
        let options = LoadOptions { compute, quantize: Some(Format::Q8_0) };
        let prompt: Vec<u32> = (3..40).collect();
        generator(Model::load_with(&tiny, &options).unwrap()).logits(&prompt).unwrap()
    };
    let (ours, candle) = (eight(Compute::Cpu), eight(Compute::Candle));
    let size = (ours.iter().map(|x| x * x).sum::<f32>() / ours.len() as f32).sqrt();
    let worst = ours.iter().zip(&candle).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / size;
    assert!(worst > 0.0 && worst < 0.2, "{worst}");
}

#[test]
fn permuted_llama_rows_of_gguf_rotate_as_the_plain_ones() {
    let (_dir, path) = as_gguf("llama", GgmlDType::F32);
    let dir = tempfile::tempdir().unwrap();
    for file in ["model.safetensors", "tokenizer.json"] {
        fs::copy(goldens().join("llama").join(file), dir.path().join(file)).unwrap();
    }
    let mut config = json(goldens().join("llama/config.json"));
    config["rope_parameters"] = serde_json::json!({"rope_type": "default", "rope_theta": 10_000.0});
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let (plain, permuted) = (generator(Model::load(dir.path()).unwrap()), generator(Model::load(&path).unwrap()));
    let prompt: Vec<u32> = (3..40).collect();
    assert_eq!(plain.greedy(&prompt, 20).unwrap(), permuted.greedy(&prompt, 20).unwrap());
}

#[test]
fn eight_bits_cost_less_than_a_hundredth_of_perplexity() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny");
    let whole = generator(Model::load(&path).unwrap());
    let options = |format| LoadOptions { quantize: Some(format), ..LoadOptions::default() };
    let held_out = json(goldens().join("tiny_held_out.json"));
    let encode = |messages: &[serde_json::Value]| {
        let said = |m: &serde_json::Value| {
            format!("<|{}|>{}<|end|>", m["role"].as_str().unwrap(), m["content"].as_str().unwrap())
        };
        whole.encode(&messages.iter().map(said).collect::<String>()).unwrap()
    };
    // Prompts, and what should be answered: the model was taught nothing else.
    let texts: Vec<(usize, Vec<u32>)> = ["copy", "lookup", "tool"]
        .into_iter()
        .flat_map(|kind| held_out[kind].as_array().unwrap())
        .map(|messages| {
            let messages = messages.as_array().unwrap();
            (encode(&messages[..messages.len() - 1]).len() + 1, encode(messages))
        })
        .collect();
    let perplexity = |model: &Generator| {
        let (mut sum, mut count) = (0.0, 0);
        for (prompt, tokens) in &texts {
            let logits = model.all_logits(tokens).unwrap();
            for (row, next) in logits.chunks(logits.len() / tokens.len()).zip(&tokens[1..]).skip(prompt - 1) {
                let total = row.iter().map(|l| f64::from(*l).exp()).sum::<f64>().ln();
                sum += total - f64::from(row[*next as usize]);
                count += 1;
            }
        }
        (sum / f64::from(count)).exp()
    };
    let reference = perplexity(&whole);
    let eight = perplexity(&generator(Model::load_with(&path, &options(Format::Q8_0)).unwrap()));
    let four = perplexity(&generator(Model::load_with(&path, &options(Format::Q4_0)).unwrap()));
    println!("perplexity {reference:.4}, q8_0 {eight:.4}, q4_0 {four:.4}");
    assert!((eight / reference - 1.0).abs() < 0.01, "{eight} is not {reference}");
    assert!(four > reference && four < reference * 1.5, "four bits are rougher: {four}");
}

#[test]
fn encoders_agree_with_transformers() {
    for name in ["bert", "xlm_roberta", "distilbert", "modernbert"] {
        let golden = json(goldens().join(name).join("golden.json"));
        let Model::Embed(model) = Model::load(&goldens().join(name)).unwrap() else { panic!("{name} makes vectors") };
        let texts: Vec<String> = numbers(&golden["texts"]);
        let (data, tokens) = model.embed(&texts, || true).unwrap().unwrap();
        assert_eq!(tokens, 44);
        for (row, want) in golden["vectors"].as_array().unwrap().iter().enumerate() {
            let want: Vec<f32> = numbers(want);
            let got = &data[row * model.dims()..(row + 1) * model.dims()];
            let cosine: f32 = got.iter().zip(&want).map(|(a, b)| a * b).sum();
            assert!(cosine > 0.9999, "{name} text {row}: cosine {cosine}");
        }
        assert!(model.embed(&texts, || false).unwrap().is_none(), "a cancelled request stops before its first pass");
    }
}

/// Two tones that rise, three seconds: what the golden Whisper heard.
fn tones() -> Vec<f32> {
    let at = |i: usize| {
        let t = i as f64 / 16_000.0;
        let tone = |hz: f64| (std::f64::consts::TAU * hz * t * (1.0 + 0.2 * t)).sin();
        (0.4 * tone(220.0) + 0.2 * tone(1_730.0)) as f32
    };
    (0..48_000).map(at).collect()
}

#[test]
fn whisper_agrees_with_transformers() {
    let golden = json(goldens().join("whisper/golden.json"));
    let Model::Hear(mut model) = Model::load(&goldens().join("whisper")).unwrap() else { panic!("it hears") };
    let spectrum = model.spectrum(&tones());
    let want: Vec<f32> = numbers(&golden["mel"]);
    let every = spectrum.iter().step_by(97);
    let worst = every.zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 2e-4 && want.len() > 2_000, "the spectrum differs by {worst}");
    for (times, key) in [(false, "plain"), (true, "times")] {
        let tokens = model.tokens(&tones(), Some("de"), times).unwrap();
        // With times, transformers leaves out what no time closes.
        let want = numbers::<Vec<u32>>(&golden[key]);
        assert!(tokens == want || times && tokens.starts_with(&want), "{key}: {tokens:?}");
    }
}

#[test]
fn a_whisper_answers_as_any_model_does() {
    use base64::Engine as _;
    // 48,000 samples of two channels in a WAV file at 8,000 a second: six seconds.
    let body: Vec<u8> = tones().iter().flat_map(|x| [(x * 3e4) as i16, 0]).flat_map(i16::to_le_bytes).collect();
    let mut wav = b"RIFF\0\0\0\0WAVEfmt ".to_vec();
    let size = 36 + body.len() as u32;
    wav[4..8].copy_from_slice(&size.to_le_bytes());
    wav.extend(16u32.to_le_bytes());
    wav.extend([1u16, 2].into_iter().flat_map(u16::to_le_bytes));
    wav.extend([8_000u32, 32_000].into_iter().flat_map(u32::to_le_bytes));
    wav.extend([4u16, 16].into_iter().flat_map(u16::to_le_bytes));
    wav.extend(b"data");
    wav.extend((body.len() as u32).to_le_bytes());
    wav.extend(body);
    let engine = Engine::start("whisper", Model::load(&goldens().join("whisper")).unwrap()).unwrap();
    let say = |sound: &[u8], language: Option<&str>| {
        let sound = base64::engine::general_purpose::STANDARD.encode(sound);
        let language = language.map(str::to_owned);
        let mut events = engine.ask(Work::Transcribe(Speech { sound, language, ..Speech::default() })).unwrap();
        std::iter::from_fn(|| events.blocking_recv()).collect::<Vec<_>>()
    };
    let events = say(&wav, None);
    let Some(Ok(InferEvent::Heard { language, seconds })) = events.first() else { panic!("{events:?}") };
    assert!(["en", "de"].contains(&language.as_str()) && (seconds - 6.0).abs() < 0.01, "{language} {seconds}");
    assert!(matches!(events.last(), Some(Ok(InferEvent::Done { .. }))), "{events:?}");
    let mut before = 0.0;
    for event in &events[1..events.len() - 1] {
        let Ok(InferEvent::Delta(delta)) = event else { panic!("{event:?}") };
        let (from, to) = delta.seconds.unwrap();
        assert!(from >= before && to >= from && to <= 6.01, "{from} {to} after {before}");
        before = from;
    }
    assert!(matches!(&say(&wav, Some("xx"))[..], [Err(Error::Request(why))] if why.contains("xx")));
    assert!(matches!(&say(b"no sound at all", None)[..], [Err(Error::Request(why))] if why.contains("failed to read")));
}

/// The golden picture as a PNG file.
fn png() -> Vec<u8> {
    let pixels: Vec<u8> = (0..28 * 28 * 3).map(|x| (x * 7 % 256) as u8).collect();
    let mut file = std::io::Cursor::new(Vec::new());
    image::RgbImage::from_raw(28, 28, pixels).unwrap().write_to(&mut file, image::ImageFormat::Png).unwrap();
    file.into_inner()
}

#[test]
fn paligemma_agrees_with_transformers() {
    use base64::Engine as _;
    let golden = json(goldens().join("paligemma/golden.json"));
    let Model::See(mut model) = Model::load(&goldens().join("paligemma")).unwrap() else { panic!("it sees") };
    let question: Vec<u32> = numbers(&golden["question"]);
    let picture = model.picture(&png()).unwrap();
    let (logits, places) = model.begin(&[picture], &question).unwrap();
    assert_eq!(places, 4 + question.len());
    let want: Vec<f32> = numbers(&golden["logits"]);
    let worst = logits.iter().zip(&want).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst < 1e-3, "logits differ by {worst}");
    let mut tokens = vec![covey_kernels::argmax(covey_kernels::Isa::detect(), &logits) as u32];
    while tokens.len() < 12 {
        let logits = model.next(tokens[tokens.len() - 1], places + tokens.len() - 1).unwrap();
        tokens.push(covey_kernels::argmax(covey_kernels::Isa::detect(), &logits) as u32);
    }
    let want: Vec<u32> = numbers(&golden["greedy"]);
    assert_eq!(tokens, want);
    // As a request, and once more from the middle.
    let engine = Engine::start("sees", Model::load(&goldens().join("paligemma")).unwrap()).unwrap();
    let picture = base64::engine::general_purpose::STANDARD.encode(png());
    let chat = |images: Vec<String>| {
        let messages = vec![ChatMessage { images, ..ChatMessage::new("user", "w5 w9 w33") }];
        let sampling = Sampling { max_tokens: Some(8), ..Sampling::default() };
        Work::Chat(Chat { messages, sampling, ..Chat::default() })
    };
    let ask = |work: Work, made: Vec<Made>| {
        let mut events = engine.ask_with(work, Terms::default(), made).unwrap();
        let mut text = String::new();
        while let Some(event) = events.blocking_recv() {
            if let InferEvent::Delta(delta) = event? {
                text.push_str(&delta.text);
            }
        }
        Ok::<_, Error>(text)
    };
    let whole = ask(chat(vec![picture.clone()]), vec![]).unwrap();
    assert!(!whole.is_empty());
    let first: Vec<u32> = {
        let mut events = engine.ask(chat(vec![picture.clone()])).unwrap();
        let Some(Ok(InferEvent::Delta(delta))) = events.blocking_recv() else { panic!("a first piece") };
        delta.tokens
    };
    let rest = ask(chat(vec![picture]), vec![Made { tokens: first, ..Made::default() }]).unwrap();
    assert!(whole.ends_with(&rest) && rest.len() < whole.len(), "{whole} goes on with {rest}");
    assert!(
        matches!(ask(chat(vec!["bm90aGluZw==".into()]), vec![]), Err(Error::Request(why)) if why.contains("picture"))
    );
}

#[test]
fn cross_encoders_agree_with_transformers() {
    for name in ["bert_ranker", "roberta_ranker"] {
        let golden = json(goldens().join(name).join("golden.json"));
        let Model::Embed(model) = Model::load(&goldens().join(name)).unwrap() else { panic!("{name} ranks") };
        let texts: Vec<String> = numbers(&golden["texts"]);
        let want: Vec<f32> = numbers(&golden["scores"]);
        let (got, _) = model.rank(golden["query"].as_str().unwrap(), &texts, || true).unwrap().unwrap();
        let logit = |p: &f32| (p / (1.0 - p)).ln();
        // Matrices are held in 16 bits, and the head makes much of little.
        let (least, most) = want.iter().map(logit).fold((f32::MAX, f32::MIN), |(a, b), x| (a.min(x), b.max(x)));
        assert!(most - least > 0.9, "the goldens differ: {want:?}");
        for (got, want) in got.iter().zip(&want) {
            assert!((logit(got) - logit(want)).abs() < 0.2, "{name}: {got} is not {want}");
        }
        assert!(model.embed(&texts, || true).is_err(), "a cross-encoder makes no vectors");
    }
    let plain = Model::load(&goldens().join("bert")).unwrap();
    let Model::Embed(model) = plain else { panic!("bert makes vectors") };
    let (scores, _) = model.rank("w4 w2", &["w7 w8".into(), "w4 w2".into()], || true).unwrap().unwrap();
    assert!((scores[1] - 1.0).abs() < 1e-4 && scores[0] < scores[1], "others compare vectors: {scores:?}");
}

fn tiny() -> Engine {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../models/tiny");
    Engine::start("tiny", Model::load(&path).unwrap()).unwrap()
}

fn ask(engine: &Engine, work: Work) -> (String, Finish) {
    let mut events = engine.ask(work).unwrap();
    let mut text = String::new();
    loop {
        match events.blocking_recv().expect("an end").unwrap() {
            InferEvent::Delta(delta) => text.push_str(&delta.text),
            InferEvent::Done { finish, .. } => return (text, finish),
            _ => panic!("text was asked for"),
        }
    }
}

fn chat(messages: Vec<ChatMessage>, sampling: Sampling) -> Work {
    Work::Chat(Chat { messages, sampling, ..Chat::default() })
}

#[test]
fn the_tiny_model_copies_looks_up_and_chooses_tools() {
    let engine = tiny();
    let held_out = json(goldens().join("tiny_held_out.json"));
    for (kind, examples) in held_out.as_object().unwrap() {
        let examples = examples.as_array().unwrap();
        let mut right = 0;
        for example in examples {
            let mut messages: Vec<ChatMessage> = numbers(example);
            let want = messages.pop().unwrap().content;
            right += usize::from(ask(&engine, chat(messages, Sampling::default())).0 == want);
        }
        assert!(right * 100 >= examples.len() * 95, "{kind}: {right} of {}", examples.len());
    }
}

#[test]
fn stop_texts_lengths_and_seeds_hold() {
    let engine = tiny();
    let say = |text: &str| vec![ChatMessage::new("user", format!("Repeat: {text}"))];
    let stop = Sampling { stop: vec!["moon".into()], ..Sampling::default() };
    assert_eq!(ask(&engine, chat(say("sun moon star"), stop)), ("sun ".into(), Finish::Stop));
    let short = Sampling { max_tokens: Some(1), ..Sampling::default() };
    assert_eq!(ask(&engine, chat(say("sun moon star"), short)).1, Finish::Length);
    let hot = |seed| Sampling { temperature: Some(3.0), seed: Some(seed), max_tokens: Some(20), ..Sampling::default() };
    let (a, b) = (ask(&engine, chat(say("sun"), hot(1))), ask(&engine, chat(say("sun"), hot(1))));
    assert_eq!(a, b);
    assert_ne!(a.0, ask(&engine, chat(say("sun"), hot(2))).0);
}

#[test]
fn many_at_once_answer_as_one_alone_and_a_dropped_one_frees_its_turn() {
    let engine = tiny();
    let say = |i: usize| chat(vec![ChatMessage::new("user", format!("Repeat: river {i} stone"))], Sampling::default());
    for _ in 0..100 {
        drop(engine.ask(say(0)).unwrap());
    }
    let threads: Vec<_> = (0..40)
        .map(|i| {
            let engine = engine.clone();
            std::thread::spawn(move || (i, ask(&engine, say(i)).0))
        })
        .collect();
    for thread in threads {
        let (i, text) = thread.join().unwrap();
        assert_eq!(text, format!("river {i} stone"));
    }
}

#[test]
fn what_is_broken_on_disk_is_named() {
    let missing = Model::load(&goldens().join("nothing-here")).unwrap_err().to_string();
    assert!(missing.contains("nothing-here") && missing.contains("no such folder"), "{missing}");
    let dir = tempfile::tempdir().unwrap();
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        fs::copy(goldens().join("qwen3").join(file), dir.path().join(file)).unwrap();
    }
    let weights = dir.path().join("model.safetensors");
    let whole = fs::read(&weights).unwrap();
    fs::write(&weights, &whole[..whole.len() / 2]).unwrap();
    let cut = Model::load(dir.path()).unwrap_err().to_string();
    assert!(cut.contains("model.safetensors is damaged or cut short"), "{cut}");
    let (_keep, path) = as_gguf("qwen3", GgmlDType::F32);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() / 2]).unwrap();
    let cut = Model::load(&path).unwrap_err().to_string();
    assert!(cut.contains("ends behind the file"), "{cut}");
}

#[test]
fn the_layout_of_the_hugging_face_cache_is_found_and_loads() {
    let dir = tempfile::tempdir().unwrap();
    let hub = dir.path().join("models--org--small");
    let snapshot = hub.join("snapshots/abc123");
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(hub.join("refs")).unwrap();
    fs::write(hub.join("refs/main"), "abc123").unwrap();
    for file in ["config.json", "tokenizer.json", "model.safetensors"] {
        fs::copy(goldens().join("qwen3").join(file), snapshot.join(file)).unwrap();
    }
    let (_keep, gguf) = as_gguf("qwen2", GgmlDType::F16);
    fs::copy(&gguf, dir.path().join("other.gguf")).unwrap();
    let found = covey_inference::discover(dir.path());
    let names: Vec<_> = found.iter().map(|m| (m.name.as_str(), m.task)).collect();
    assert_eq!(names, [("org/small", "generate"), ("other", "generate")]);
    for model in found {
        Model::load(&model.path).unwrap();
    }
}

#[test]
fn a_prompt_that_does_not_fit_is_refused_and_the_engine_lives() {
    let engine = tiny();
    let mut events = engine
        .ask(Work::Complete { prompt: Prompt::Text("moon ".repeat(3_000)), sampling: Sampling::default() })
        .unwrap();
    assert!(matches!(events.blocking_recv().unwrap(), Err(Error::Request(why)) if why.contains("tokens")));
    let mut events = engine.ask(Work::Embed { texts: vec!["x".into()] }).unwrap();
    assert!(events.blocking_recv().unwrap().is_err());
    assert_eq!(ask(&engine, chat(vec![ChatMessage::new("user", "repeat sun")], Sampling::default())).0, "sun");
}
