//! One thread a model. Requests wait in a bounded queue; admitted ones take turns, a token each, so a short answer
//! is not held up by a long one. A request whose receiver is gone is dropped before its next step.

use std::{sync::Arc, time::Duration};

use covey_domain::{
    caps,
    infer::{Finish, InferEvent, Sampling, Usage, Work},
};
use tokio::sync::mpsc::{self, error::TrySendError};

use crate::{Error, Generator, Model, decoder::Cache, sampler::Sampler, text};

/// Sequences that take turns at once; each holds a cache of its own.
const ACTIVE_MAX: usize = 16;

/// New tokens where a request names no bound.
const DEFAULT_NEW_TOKENS: usize = 512;

/// Events of a request that its reader has not taken yet. A full channel pauses that sequence only.
const UNREAD_MAX: usize = 64;

/// A request and where its answer goes.
#[derive(Debug)]
pub struct Request {
    /// What is asked.
    pub work: Work,
    /// Where the answer goes.
    pub events: mpsc::Sender<Result<InferEvent, Error>>,
}

/// A way to a model's thread. The thread ends when the last clone is gone.
#[derive(Clone, Debug)]
pub struct Engine {
    requests: mpsc::Sender<Request>,
}

impl Engine {
    /// Gives a model its thread.
    pub fn start(name: &str, model: Model) -> std::io::Result<Self> {
        let (requests, rx) = mpsc::channel(caps::MODEL_QUEUE_DEPTH_MAX);
        let model = Arc::new(model);
        std::thread::Builder::new().name(format!("covey-model-{name}")).spawn(move || match &*model {
            Model::Generate(generator) => generate(generator, rx),
            Model::Embed(embedder) => embed(embedder, rx),
        })?;
        Ok(Self { requests })
    }

    /// Asks; the answer streams from the receiver, and dropping that cancels the work.
    pub fn ask(&self, work: Work) -> Result<mpsc::Receiver<Result<InferEvent, Error>>, Error> {
        let (events, rx) = mpsc::channel(UNREAD_MAX);
        match self.requests.try_send(Request { work, events }) {
            Ok(()) => Ok(rx),
            Err(TrySendError::Full(_)) => Err(Error::Full),
            Err(TrySendError::Closed(_)) => Err(Error::Stopped),
        }
    }
}

fn embed(embedder: &crate::embed::Embedder, mut requests: mpsc::Receiver<Request>) {
    while let Some(Request { work, events }) = requests.blocking_recv() {
        let Work::Embed { texts } = work else {
            let _ = events.blocking_send(Err(Error::Request("this model makes vectors, not text".into())));
            continue;
        };
        match embedder.embed(&texts, || !events.is_closed()) {
            Ok(None) => {}
            Ok(Some((data, input))) => {
                let _ = events.blocking_send(Ok(InferEvent::Vectors { dims: embedder.dims(), data }));
                let done = InferEvent::Done { finish: Finish::Stop, usage: Usage { input, output: 0 } };
                let _ = events.blocking_send(Ok(done));
            }
            Err(error) => {
                let _ = events.blocking_send(Err(error));
            }
        }
    }
}

/// One sequence in work.
struct Sequence {
    events: mpsc::Sender<Result<InferEvent, Error>>,
    cache: Cache,
    next: Vec<u32>,
    sampler: Sampler,
    detokenizer: text::Detokenizer,
    stops: text::Stops,
    usage: Usage,
    room: u64,
    /// Made but not taken by the reader yet.
    unsent: Option<InferEvent>,
    finish: Option<Finish>,
}

fn generate(generator: &Generator, mut requests: mpsc::Receiver<Request>) {
    let mut active: Vec<Sequence> = Vec::new();
    loop {
        if active.is_empty() {
            match requests.blocking_recv() {
                Some(request) => admit(generator, request, &mut active),
                None => return,
            }
        }
        while active.len() < ACTIVE_MAX {
            match requests.try_recv() {
                Ok(request) => admit(generator, request, &mut active),
                Err(_) => break,
            }
        }
        let mut moved = false;
        active.retain_mut(|sequence| match step(generator, sequence) {
            Step::Moved => {
                moved = true;
                true
            }
            Step::Paused => true,
            Step::Over => {
                moved = true;
                false
            }
        });
        if !moved && !active.is_empty() {
            // All readers are slow: there is nothing to compute until one of them reads.
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

fn admit(generator: &Generator, request: Request, active: &mut Vec<Sequence>) {
    let Request { work, events } = request;
    match begin(generator, work) {
        Ok((tokens, sampling)) => {
            let context = generator.decoder.shape.context;
            let room = sampling.max_tokens.map_or(DEFAULT_NEW_TOKENS, |n| n as usize).min(context - tokens.len());
            active.push(Sequence {
                events,
                cache: generator.decoder.cache(tokens.len() + room),
                usage: Usage { input: tokens.len() as u64, output: 0 },
                next: tokens,
                sampler: Sampler::new(&sampling),
                detokenizer: text::Detokenizer::default(),
                stops: text::Stops::new(&sampling.stop),
                room: room as u64,
                unsent: None,
                finish: (room == 0).then_some(Finish::Length),
            });
        }
        Err(error) => {
            let _ = events.blocking_send(Err(error));
        }
    }
}

fn begin(generator: &Generator, work: Work) -> Result<(Vec<u32>, Sampling), Error> {
    let (prompt, sampling, special) = match work {
        Work::Chat { messages, tools, sampling } => {
            let template = generator
                .template
                .as_ref()
                .ok_or_else(|| Error::Request("this model has no chat template; use completions".into()))?;
            (template.render(&messages, &tools)?, sampling, false)
        }
        Work::Complete { prompt, sampling } => (prompt, sampling, true),
        Work::Embed { .. } => return Err(Error::Request("this model makes text, not vectors".into())),
    };
    let encoded =
        generator.tokenizer.encode(prompt, special).map_err(|e| Error::Request(format!("failed to tokenize: {e}")))?;
    let tokens = encoded.get_ids().to_vec();
    let context = generator.decoder.shape.context;
    if tokens.is_empty() {
        return Err(Error::Request("the prompt is empty".into()));
    }
    if tokens.len() >= context {
        return Err(Error::Request(format!("the prompt has {} tokens, the model takes {}", tokens.len(), context - 1)));
    }
    Ok((tokens, sampling))
}

enum Step {
    Moved,
    Paused,
    Over,
}

fn step(generator: &Generator, seq: &mut Sequence) -> Step {
    if seq.events.is_closed() {
        return Step::Over;
    }
    if let Some(event) = seq.unsent.take() {
        let last = matches!(event, InferEvent::Done { .. });
        match seq.events.try_send(Ok(event)) {
            Ok(()) if last => return Step::Over,
            Ok(()) => {}
            Err(TrySendError::Full(Ok(event))) => {
                seq.unsent = Some(event);
                return Step::Paused;
            }
            Err(_) => return Step::Over,
        }
    }
    if let Some(finish) = seq.finish {
        seq.unsent = Some(InferEvent::Done { finish, usage: seq.usage });
        return Step::Moved;
    }
    let drawn = generator
        .decoder
        .forward(&seq.next, &mut seq.cache)
        .and_then(|logits| logits.to_vec1::<f32>())
        .map(|logits| seq.sampler.draw(&logits));
    let token = match drawn {
        Ok(token) => token,
        Err(error) => {
            let _ = seq.events.try_send(Err(error.into()));
            return Step::Over;
        }
    };
    seq.usage.output += 1;
    let mut shown = String::new();
    if generator.eos.contains(&token) {
        seq.finish = Some(Finish::Stop);
    } else {
        let piece = seq.detokenizer.push(&generator.tokenizer, token);
        let (text, stopped) = seq.stops.push(&piece);
        shown = text;
        seq.next = vec![token];
        if stopped {
            seq.finish = Some(Finish::Stop);
        } else if seq.usage.output >= seq.room {
            seq.finish = Some(Finish::Length);
        }
    }
    if seq.finish.is_some() {
        shown.push_str(&seq.stops.flush());
    }
    if !shown.is_empty() {
        seq.unsent = Some(InferEvent::Delta { text: shown });
    }
    Step::Moved
}
