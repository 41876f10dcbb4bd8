//! Speech to text: Whisper of candle-transformers as it is, with what it does not bring: reading sound, its spectrum,
//! times, languages, and windows one after the other (after Radford et al., arXiv 2212.04356, sections 3 and 4.5).

use std::path::{Path, PathBuf};

use candle_core::{D, DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::whisper::{self, model::Whisper};
use covey_domain::infer::Sampling;
use serde_json::Value;
use tokenizers::Tokenizer;

use crate::{Error, sampler::Sampler};

mod sound;

use sound::{FRAMES, RATE, WINDOW};

/// Seconds between two time tokens.
const TICK: f32 = 0.02;

/// The first time of a window is not later than this, in ticks.
const FIRST_MAX: u32 = 50;

/// Tokens of what was said before that the model is told.
const BEFORE_MAX: usize = 128;

/// Probability of silence above which a window whose words are unlikely is taken as silent.
const SILENCE: f32 = 0.6;

/// Mean logarithm of probability below which words are unlikely.
const UNLIKELY: f32 = -1.0;

/// What is asked.
#[derive(Clone, Debug, Default)]
pub struct Hearing {
    /// Which language is spoken, as ISO 639-1; found out if nothing is said.
    pub language: Option<String>,
    /// English comes out, whatever went in.
    pub translate: bool,
    /// What was said before, or names that may come.
    pub prompt: String,
    /// 0 = greedy.
    pub temperature: f64,
}

/// A piece of what was said.
#[derive(Clone, Debug, PartialEq)]
pub struct Heard {
    /// Its beginning and end in the sound, seconds.
    pub seconds: (f32, f32),
    /// In words.
    pub text: String,
    /// Tokens it took.
    pub tokens: u64,
}

/// A Whisper with its tokenizer.
pub struct Listener {
    model: Whisper,
    tokenizer: Tokenizer,
    filters: Vec<f32>,
    /// Tokens that never come, and that do not come first.
    never: Vec<u32>,
    not_first: Vec<u32>,
    /// Languages and their tokens; empty = English only.
    languages: Vec<(String, u32)>,
    begin: u32,
    end: u32,
    /// Behind it are the times.
    no_times: u32,
    silence: Option<u32>,
    before: Option<u32>,
    /// Of its weights in memory.
    pub(crate) bytes: u64,
}

impl std::fmt::Debug for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Listener")
    }
}

/// What came out of one window.
struct Window {
    tokens: Vec<u32>,
    mean_logprob: f32,
    silence: f32,
}

impl Listener {
    pub(crate) fn load(path: &Path, config: &Value, files: &[PathBuf], tokenizer: Tokenizer) -> Result<Self, String> {
        let tensors = crate::weights::tensors(files)?;
        let bytes = crate::weights::float_bytes(&tensors);
        let vars = VarBuilder::from_tensors(tensors, DType::F32, &Device::Cpu);
        let shape: whisper::Config = serde_json::from_value(config.clone()).map_err(|e| format!("config.json: {e}"))?;
        let generation: Value = std::fs::read_to_string(path.join("generation_config.json"))
            .ok()
            .and_then(|text| serde_json::from_str(&text).ok())
            .unwrap_or_default();
        let ids = |key: &str| -> Vec<u32> {
            let value = if generation[key].is_array() { &generation[key] } else { &config[key] };
            value.as_array().into_iter().flatten().filter_map(|v| Some(v.as_u64()? as u32)).collect()
        };
        let token = |text: &str| tokenizer.token_to_id(text);
        let need = |text: &str| token(text).ok_or(format!("the tokenizer has no `{text}`"));
        let (begin, no_times) = (need("<|startoftranscript|>")?, need("<|notimestamps|>")?);
        // Languages stand between the beginning and the tasks, as <|en|>.
        let task = token("<|translate|>").or(token("<|transcribe|>")).unwrap_or(begin);
        let languages = (begin + 1..task.max(begin + 1))
            .filter_map(|id| {
                let name = tokenizer.id_to_token(id)?;
                Some((name.strip_prefix("<|")?.strip_suffix("|>")?.to_owned(), id))
            })
            .filter(|(name, _)| name.len() <= 3)
            .collect();
        Ok(Self {
            filters: sound::filters(shape.num_mel_bins),
            model: Whisper::load(&vars, shape).map_err(|e| e.to_string())?,
            never: ids("suppress_tokens"),
            not_first: ids("begin_suppress_tokens"),
            languages,
            begin,
            bytes,
            end: need("<|endoftext|>")?,
            no_times,
            silence: token("<|nospeech|>").or(token("<|nocaptions|>")),
            before: token("<|startofprev|>"),
            tokenizer,
        })
    }

    /// Hears a file; tells its language and length, then piece after piece, until `told` says no.
    pub fn hear(
        &mut self,
        file: &[u8],
        asked: &Hearing,
        mut told: impl FnMut(Result<Heard, (String, f32)>) -> bool,
    ) -> Result<(), Error> {
        let samples = sound::samples(file)?;
        let first = self.encode(&samples)?;
        let language = match &asked.language {
            _ if self.languages.is_empty() => None,
            Some(name) => {
                let known = self.languages.iter().find(|(known, _)| known == name);
                let known = known.ok_or_else(|| Error::Request(format!("language `{name}` is not known")))?;
                Some(known.clone())
            }
            None => Some(self.language(&first)?),
        };
        let name = language.as_ref().map_or("en", |(name, _)| name).to_owned();
        if !told(Err((name, samples.len() as f32 / RATE as f32))) {
            return Ok(());
        }
        let (mut seek, mut states) = (0, Some(first));
        let mut before = match asked.prompt.trim() {
            "" => Vec::new(),
            text => self.encode_text(&format!(" {text}"))?,
        };
        while seek < samples.len() {
            let states = match states.take() {
                Some(states) => states,
                None => self.encode(&samples[seek..])?,
            };
            let window = self.window(&states, language.as_ref().map(|(_, id)| *id), asked, &before, true)?;
            let (start, left) = (seek as f32 / RATE as f32, (samples.len() - seek).min(WINDOW));
            if window.silence > SILENCE && window.mean_logprob < UNLIKELY {
                seek += left;
                continue;
            }
            let (pieces, used) = self.pieces(&window.tokens, left as f32 / RATE as f32);
            for (from, to, tokens) in pieces.into_iter().filter(|(from, ..)| *from < left as f32 / RATE as f32) {
                let text = self.tokenizer.decode(&tokens, true).unwrap_or_default();
                if text.trim().is_empty() {
                    continue;
                }
                let seconds = (start + from, start + to);
                if !told(Ok(Heard { seconds, text, tokens: tokens.len() as u64 })) {
                    return Ok(());
                }
                before.extend(tokens);
            }
            before.drain(..before.len().saturating_sub(BEFORE_MAX));
            // A window that says nothing of times is used up.
            seek += ((used * RATE as f32) as usize).clamp(RATE / 10, left.max(RATE / 10));
        }
        Ok(())
    }

    fn encode_text(&self, text: &str) -> Result<Vec<u32>, Error> {
        let encoded = self.tokenizer.encode(text, false);
        Ok(encoded.map_err(|e| Error::Request(format!("failed to tokenize: {e}")))?.get_ids().to_vec())
    }

    /// What the encoder makes of the first 30 seconds.
    fn encode(&mut self, samples: &[f32]) -> Result<Tensor, Error> {
        let mel = sound::spectrum(samples, &self.filters);
        let mel = Tensor::from_vec(mel, (1, self.model.config.num_mel_bins, FRAMES), &Device::Cpu)?;
        // Smaller models (of tests) look at fewer frames.
        let frames = (self.model.config.max_source_positions * 2).min(FRAMES);
        Ok(self.model.encoder.forward(&mel.narrow(2, 0, frames)?.contiguous()?, true)?)
    }

    fn logits(&mut self, tokens: &[u32], states: &Tensor, fresh: bool) -> Result<Tensor, Error> {
        let tokens = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?;
        Ok(self.model.decoder.forward(&tokens, states, fresh)?)
    }

    fn language(&mut self, states: &Tensor) -> Result<(String, u32), Error> {
        let hidden = self.logits(&[self.begin], states, true)?;
        let logits = self.model.decoder.final_linear(&hidden)?.flatten_all()?.to_vec1::<f32>()?;
        let best = self.languages.iter().max_by(|a, b| logits[a.1 as usize].total_cmp(&logits[b.1 as usize]));
        Ok(best.cloned().unwrap_or_else(|| ("en".into(), self.begin)))
    }

    /// Tokens of one window.
    fn window(
        &mut self,
        states: &Tensor,
        language: Option<u32>,
        asked: &Hearing,
        before: &[u32],
        times: bool,
    ) -> Result<Window, Error> {
        let mut tokens = Vec::new();
        if let (Some(mark), false) = (self.before, before.is_empty()) {
            tokens.push(mark);
            tokens.extend(&before[before.len().saturating_sub(BEFORE_MAX)..]);
        }
        let begins = tokens.len();
        tokens.push(self.begin);
        let task = if asked.translate { "<|translate|>" } else { "<|transcribe|>" };
        tokens.extend(language);
        tokens.extend(language.and(self.tokenizer.token_to_id(task)));
        if !times {
            tokens.push(self.no_times);
        }
        let prompt = tokens.len();
        let room = (self.model.config.max_target_positions / 2).min(self.model.config.max_target_positions - prompt);
        let sampling = Sampling { temperature: Some(asked.temperature), seed: Some(0), ..Sampling::default() };
        let sampler = Sampler::new(&sampling, &[]);
        let (mut sum, mut silence) = (0.0, 0.0);
        for step in 0..room {
            let hidden = self.logits(&tokens, states, step == 0)?;
            let count = tokens.len();
            if let (0, Some(token)) = (step, self.silence) {
                let at = self.model.decoder.final_linear(&hidden.narrow(1, begins, 1)?)?;
                silence = softmax(&at.flatten_all()?.to_vec1::<f32>()?)[token as usize];
            }
            let last = self.model.decoder.final_linear(&hidden.narrow(1, count - 1, 1)?)?;
            let mut logits = last.squeeze(0)?.get_on_dim(D::Minus2, 0)?.to_vec1::<f32>()?;
            self.hide(&mut logits, &tokens[prompt..], times);
            let chances = softmax(&logits);
            let next = sampler.draw(&mut logits, count, None).token;
            sum += chances[next as usize].max(f32::MIN_POSITIVE).ln();
            if next == self.end {
                break;
            }
            tokens.push(next);
        }
        let tokens = tokens.split_off(prompt);
        let mean_logprob = sum / (tokens.len() + 1) as f32;
        Ok(Window { tokens, mean_logprob, silence })
    }

    /// Leaves only what may follow `made`.
    fn hide(&self, logits: &mut [f32], made: &[u32], times: bool) {
        let first_time = self.no_times + 1;
        let all = logits.len() as u32;
        let is_time = |token: &u32| *token >= first_time;
        let mut hide = |tokens: std::ops::Range<u32>| {
            for token in tokens {
                if let Some(logit) = logits.get_mut(token as usize) {
                    *logit = f32::NEG_INFINITY;
                }
            }
        };
        self.never.iter().for_each(|t| hide(*t..*t + 1));
        if made.is_empty() {
            self.not_first.iter().for_each(|t| hide(*t..*t + 1));
        }
        if !times {
            return;
        }
        hide(self.no_times..first_time);
        match made {
            // A window begins with a time, and not a late one.
            [] => {
                hide(0..first_time);
                hide(first_time + FIRST_MAX + 1..all);
            }
            // Times come in twos: the end of a piece and the beginning of the next.
            [.., a, b] if is_time(a) && is_time(b) => hide(first_time..all),
            [b] if is_time(b) => hide(first_time..all),
            [.., b] if is_time(b) => hide(0..self.end),
            _ => {}
        }
        if let Some(last) = made.iter().rev().find(|t| is_time(t)) {
            // They do not go back, and a piece is not empty.
            let ends = made.last().is_some_and(is_time) && made.len() > 1 && !is_time(&made[made.len() - 2]);
            hide(first_time..if ends { *last } else { last + 1 });
        }
        // When a time is likelier than any word, it comes.
        let chances = softmax(logits);
        let at = (first_time as usize).min(chances.len());
        let word = chances[..at].iter().copied().fold(0.0, f32::max);
        if chances[at..].iter().sum::<f32>() > word {
            logits[..at].iter_mut().for_each(|l| *l = f32::NEG_INFINITY);
        }
    }

    /// Pieces between times, in seconds of the window, and how much of the window they use.
    fn pieces(&self, tokens: &[u32], seconds: f32) -> (Vec<(f32, f32, Vec<u32>)>, f32) {
        let time = |token: u32| (token > self.no_times).then(|| (token - self.no_times - 1) as f32 * TICK);
        let (mut pieces, mut from, mut words) = (Vec::new(), 0.0, Vec::new());
        let mut closed = 0.0;
        for token in tokens {
            match time(*token) {
                None => words.push(*token),
                Some(at) if words.is_empty() => from = at,
                Some(at) => {
                    pieces.push((from, at.min(seconds), std::mem::take(&mut words)));
                    closed = at;
                    from = at;
                }
            }
        }
        if !words.is_empty() && pieces.is_empty() {
            // Nothing was closed: all of the window is one piece.
            pieces.push((from, seconds, words));
            return (pieces, seconds);
        }
        // Words behind the last time are heard again in the next window.
        let open = !words.is_empty() || tokens.len() > 1 && time(tokens[tokens.len() - 2]).is_some();
        (pieces, if open && closed > 0.0 { closed } else { seconds })
    }

    /// Tokens of one window, with times or without: for parity tests.
    pub fn tokens(&mut self, samples: &[f32], language: Option<&str>, times: bool) -> Result<Vec<u32>, Error> {
        let states = self.encode(samples)?;
        let language = language.and_then(|name| self.languages.iter().find(|(n, _)| n == name)).map(|(_, id)| *id);
        Ok(self.window(&states, language, &Hearing::default(), &[], times)?.tokens)
    }

    /// The spectrum of a window, `[mels, 3000]`: for parity tests.
    pub fn spectrum(&self, samples: &[f32]) -> Vec<f32> {
        sound::spectrum(samples, &self.filters)
    }
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut out: Vec<f32> = logits.iter().map(|l| (l - most).exp()).collect();
    let sum: f32 = out.iter().sum();
    out.iter_mut().for_each(|x| *x /= sum);
    out
}
