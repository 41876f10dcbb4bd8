//! One thread a model. It takes requests, plans a step, computes the packed tokens of all sequences, draws, and sends.
//!
//! A request whose receiver is gone is dropped before the next step and its blocks are free (C-1). A reader that is slow
//! pauses its own sequence only (B-2). The queue is bounded and says no when full (B-1).

use std::{
    collections::{BTreeMap, HashSet, VecDeque},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use covey_domain::{
    caps,
    infer::{Delta, Finish, InferEvent, Made, Terms, TokenLogprob, Usage, Work},
    status::EngineStats,
};
use parking_lot::RwLock;
use tokio::sync::mpsc::{self, error::TrySendError};

use crate::{
    Error, Generator, Model,
    body::{Session, Token},
    cache::Cache,
    draft::{Draft, Wanting},
    sampler::Drawn,
    scheduler::{Limits, Rank, Scheduler, SequenceId},
    text,
};

mod alone;
mod stream;

use stream::{Begun, Digested, Stream};

/// New tokens where a request names no bound.
const DEFAULT_NEW_TOKENS: usize = 512;

/// Events of a request that its reader has not taken yet. A full channel pauses that sequence only.
const UNREAD_MAX: usize = 256;

/// Share of the machine's free memory that keys and values may take where nothing is said.
const KV_SHARE: f64 = 0.25;

/// Blocks of keys and values that every engine has at least.
const KV_BLOCKS_MIN: usize = 64;

/// How an engine is set up.
#[derive(Clone, Debug, Default)]
pub struct EngineConfig {
    /// Bytes for keys and values; a quarter of the free memory by default.
    pub kv_bytes: Option<u64>,
    /// Blocks of positions (16 on the processor) that it has at least; 64 by default.
    pub kv_blocks_min: Option<usize>,
    /// Tokens of a step; 512 by default.
    pub step_tokens_max: Option<usize>,
    /// Sequences that hold blocks at once; 256 by default.
    pub running_max: Option<usize>,
    /// Requests that wait for their first step before others are refused; 1,024 by default.
    pub waiting_max: Option<usize>,
}

/// A request and where its answer goes.
struct Request {
    asked: Asked,
    /// How it is ranked.
    terms: Terms,
    /// What was made of it before, elsewhere.
    made: Vec<Made>,
    /// Where the answer goes.
    events: mpsc::Sender<Result<InferEvent, Error>>,
}

/// What is asked.
enum Asked {
    /// As it came.
    Work(Box<Work>),
    /// Of a model that makes text: in tokens, with its grammar, as the asking thread has read it.
    Read(Box<(Begun, Stream)>),
}

/// A way to a model's thread. The thread ends when the last clone is gone.
#[derive(Clone, Debug)]
pub struct Engine {
    requests: mpsc::Sender<Request>,
    waiting_max: usize,
    stats: Arc<RwLock<EngineStats>>,
    /// A model that makes text, and its positions: requests are read before they are queued.
    reader: Option<(Arc<Generator>, usize)>,
}

impl Engine {
    /// Gives a model its thread.
    pub fn start(name: &str, model: Model) -> std::io::Result<Self> {
        Self::start_with(name, model, EngineConfig::default())
    }

    /// Gives a model its thread, with bounds.
    pub fn start_with(name: &str, model: Model, config: EngineConfig) -> std::io::Result<Self> {
        Self::start_with_draft(name, model, None, config)
    }

    /// Gives a model its thread, with bounds and perhaps a smaller model that guesses ahead (see
    /// [`Model::takes_draft`]).
    pub fn start_with_draft(
        name: &str,
        model: Model,
        draft: Option<Model>,
        config: EngineConfig,
    ) -> std::io::Result<Self> {
        let waiting_max = config.waiting_max.unwrap_or(caps::MODEL_QUEUE_DEPTH_MAX).max(1);
        let (requests, rx) = mpsc::channel(waiting_max);
        let stats = Arc::new(RwLock::new(EngineStats::default()));
        let told = stats.clone();
        let thread = std::thread::Builder::new().name(format!("covey-model-{name}"));
        let mut reader = None;
        match model {
            Model::Generate(generator) => {
                let generator: Arc<Generator> = Arc::from(generator);
                let limits = limits(&config);
                let blocks = blocks(&generator, &config, limits);
                let session = generator.body.session(blocks).map_err(std::io::Error::other)?;
                stats.write().kv_block_bytes = generator.body.block_bytes() as u64;
                reader = Some((generator.clone(), blocks * generator.body.block()));
                let draft = match draft {
                    Some(Model::Generate(small)) => Some(Draft::new(small).map_err(std::io::Error::other)?),
                    _ => None,
                };
                thread.spawn(move || {
                    Loop::new(&generator, draft, session, limits, waiting_max, blocks, told).run(rx);
                })?;
            }
            Model::Embed(embedder) => drop(thread.spawn(move || alone::embed(&embedder, rx))?),
            Model::Hear(listener) => drop(thread.spawn(move || alone::hear(*listener, rx))?),
            Model::See(seer) => drop(thread.spawn(move || alone::see(*seer, rx))?),
        }
        Ok(Self { requests, waiting_max, stats, reader })
    }

    /// Asks; the answer streams from the receiver, and dropping that cancels the work.
    pub fn ask(&self, work: Work) -> Result<mpsc::Receiver<Result<InferEvent, Error>>, Error> {
        self.ask_with(work, Terms::default(), Vec::new())
    }

    /// Asks as somebody, with a priority and a bound of time; goes on behind what was `made` elsewhere.
    ///
    /// Templates, tokens and grammars are made here, so that answers in the making do not wait for them: some
    /// milliseconds for long prompts and many tools.
    pub fn ask_with(
        &self,
        work: Work,
        terms: Terms,
        made: Vec<Made>,
    ) -> Result<mpsc::Receiver<Result<InferEvent, Error>>, Error> {
        let (events, rx) = mpsc::channel(UNREAD_MAX);
        let queued = self.requests.max_capacity() - self.requests.capacity();
        if queued + self.stats.read().waiting as usize >= self.waiting_max {
            return Err(Error::Full);
        }
        let at = Instant::now();
        let asked = match &self.reader {
            None => Asked::Work(Box::new(work)),
            Some((generator, places)) => {
                let read = Begun::read(generator, work, *places).and_then(|begun| {
                    let stream = Stream::new(generator, &begun, at)?;
                    Ok(Asked::Read(Box::new((begun, stream))))
                });
                match read {
                    Ok(read) => read,
                    Err(error) => {
                        // There is room for one.
                        let _ = events.try_send(Err(error));
                        return Ok(rx);
                    }
                }
            }
        };
        match self.requests.try_send(Request { asked, terms, made, events }) {
            Ok(()) => Ok(rx),
            Err(TrySendError::Full(_)) => Err(Error::Full),
            Err(TrySendError::Closed(_)) => Err(Error::Stopped),
        }
    }

    /// Numbers as of the last step.
    pub fn stats(&self) -> EngineStats {
        *self.stats.read()
    }
}

/// Which request.
type AnswerId = u64;

/// What one request gets back.
struct Answer {
    events: mpsc::Sender<Result<InferEvent, Error>>,
    /// Made but not taken by the reader yet.
    unsent: VecDeque<InferEvent>,
    usage: Usage,
    /// Why the first choice ended.
    finish: Finish,
    choices: u32,
    /// Whether each choice has a sequence of its own from the beginning.
    parted: bool,
    /// When its time is up, and how long that was.
    deadline: Option<(Instant, u64)>,
    /// That time, once it was up.
    late: Option<u64>,
    sequences: Vec<SequenceId>,
}

impl Answer {
    /// A choice is over; its reader is told unless it knows.
    fn end(&mut self, choice: u32, finish: Finish, tell: bool) {
        if self.choices > 1 && tell {
            self.unsent.push_back(InferEvent::Ended { choice, finish });
        }
        if choice == 0 {
            self.finish = finish;
        }
    }
}

/// A sequence whose logits were computed.
struct Row {
    sequence: SequenceId,
    guesses: Vec<u32>,
    /// Whether the small model made them.
    drafted: bool,
    /// Position of the first token to draw.
    position: usize,
}

/// Rows of a step that cost no more than one: guesses fill what is left of them.
const ROWS_FOR_ONE: usize = 4;

/// Bounds of a scheduler for this configuration.
fn limits(config: &EngineConfig) -> Limits {
    let defaults = Limits::default();
    let step_tokens_max = config.step_tokens_max.unwrap_or(defaults.step_tokens_max).max(1);
    Limits {
        step_tokens_max,
        beside_decode_max: defaults.beside_decode_max.min(step_tokens_max),
        running_max: config.running_max.unwrap_or(defaults.running_max).max(1),
    }
}

/// Blocks of keys and values that a model gets.
fn blocks(generator: &Generator, config: &EngineConfig, limits: Limits) -> usize {
    let one = generator.body.block_bytes() as u64;
    let room = config.kv_bytes.unwrap_or_else(|| (generator.body.free_memory() as f64 * KV_SHARE) as u64);
    let most = generator.body.shape().context.div_ceil(generator.body.block()) * limits.running_max;
    ((room / one) as usize).clamp(config.kv_blocks_min.unwrap_or(KV_BLOCKS_MIN).clamp(1, most), most)
}

struct Loop<'a> {
    generator: &'a Generator,
    draft: Option<Draft>,
    scheduler: Scheduler,
    session: Session,
    blocks: usize,
    answers: BTreeMap<AnswerId, Answer>,
    streams: BTreeMap<SequenceId, Stream>,
    /// Sequences for which the small model guessed in this step.
    drafted: HashSet<SequenceId>,
    next: AnswerId,
    /// Deadlines are told to the scheduler in milliseconds from here.
    began: Instant,
    limits: Limits,
    waiting_max: usize,
    stats: EngineStats,
    told: Arc<RwLock<EngineStats>>,
}

impl<'a> Loop<'a> {
    fn new(
        generator: &'a Generator,
        draft: Option<Draft>,
        session: Session,
        limits: Limits,
        waiting_max: usize,
        blocks: usize,
        told: Arc<RwLock<EngineStats>>,
    ) -> Self {
        let one = generator.body.block_bytes() as u64;
        Self {
            generator,
            draft,
            scheduler: Scheduler::new(Cache::new(blocks, generator.body.block()), limits),
            session,
            blocks,
            answers: BTreeMap::new(),
            streams: BTreeMap::new(),
            drafted: HashSet::new(),
            next: 0,
            began: Instant::now(),
            limits,
            waiting_max,
            stats: EngineStats { kv_block_bytes: one, ..EngineStats::default() },
            told,
        }
    }

    fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        self.tell();
        loop {
            if self.answers.is_empty() {
                match requests.blocking_recv() {
                    Some(request) => self.admit(request),
                    None => return,
                }
            }
            while self.scheduler.load().waiting < self.waiting_max {
                match requests.try_recv() {
                    Ok(request) => self.admit(request),
                    Err(_) => break,
                }
            }
            self.flush();
            self.guess();
            if self.step() == 0 && !self.answers.is_empty() {
                // All readers are slow: there is nothing to compute until one of them reads.
                std::thread::sleep(Duration::from_millis(1));
            }
            self.tell();
        }
    }

    fn tell(&mut self) {
        let (load, cache) = (self.scheduler.load(), self.scheduler.cache.stats());
        self.stats = EngineStats {
            asked_tokens: cache.asked_tokens,
            found_tokens: cache.found_tokens,
            waiting: load.waiting as u64,
            running: load.running as u64,
            preemptions: load.preemptions,
            kv_blocks: cache.blocks as u64,
            kv_free: cache.free as u64,
            kv_cached: cache.cached as u64,
            evictions: cache.evictions,
            ..self.stats
        };
        *self.told.write() = self.stats;
    }

    fn admit(&mut self, request: Request) {
        let Request { asked, terms, made, events } = request;
        // Only models that answer one at a time are asked otherwise.
        let Asked::Read(read) = asked else { return };
        let (Begun { tokens, sampling, .. }, stream) = *read;
        let id = self.next;
        self.next += 1;
        let mut answer = Answer {
            events,
            unsent: VecDeque::new(),
            usage: Usage { input: tokens.len() as u64, output: 0 },
            finish: Finish::Length,
            choices: sampling.n.unwrap_or(1).max(1),
            parted: !made.is_empty(),
            late: None,
            deadline: terms.timeout_ms.map(|ms| (Instant::now() + Duration::from_millis(ms), ms)),
            sequences: Vec::new(),
        };
        // Choices part where the first token is drawn, unless an earlier worker had parted them.
        let streams = if answer.parted { answer.choices } else { 1 };
        for choice in 0..streams {
            let mut stream = Stream { answer: id, choice, ..stream.clone() };
            stream.sampler.seed = stream.sampler.seed.wrapping_add(u64::from(choice));
            let made = made.iter().find(|m| m.choice == choice).cloned().unwrap_or_default();
            answer.usage.output += made.tokens.len() as u64;
            let replayed = made.tokens.iter().find_map(|token| {
                let ended = stream.matcher.as_mut().is_some_and(|m| m.consume_token(*token).is_err() || m.is_stopped());
                stream.sampler.saw(*token);
                // Its reader was told already.
                stream.digest(self.generator, *token, ended).finish
            });
            stream.untold.clear();
            let nothing = (stream.made >= stream.room).then_some(Finish::Length);
            if let Some(finish) = made.ended.or(replayed).or(nothing) {
                answer.end(choice, finish, made.ended.is_none());
                continue;
            }
            let sequence = self.scheduler.add(
                [&tokens[..], &made.tokens].concat(),
                salt(&terms.tenant),
                Rank {
                    caller: terms.caller.clone(),
                    priority: terms.priority,
                    deadline_ms: terms.timeout_ms.map(|ms| self.began.elapsed().as_millis() as u64 + ms),
                },
            );
            answer.sequences.push(sequence);
            self.streams.insert(sequence, stream);
        }
        self.answers.insert(id, answer);
    }

    /// Sends what is unsent, ends what is over, and pauses who does not read.
    fn flush(&mut self) {
        let (mut over, mut ended) = (Vec::new(), Vec::new());
        for (id, answer) in &mut self.answers {
            let mut closed = answer.events.is_closed();
            if let Some((deadline, ms)) = answer.deadline
                && !answer.sequences.is_empty()
                && Instant::now() >= deadline
            {
                answer.late = Some(ms);
                ended.append(&mut answer.sequences);
                answer.unsent.clear();
            }
            while let Some(event) = answer.unsent.pop_front() {
                match answer.events.try_send(Ok(event)) {
                    Ok(()) => {}
                    Err(TrySendError::Full(event)) => {
                        answer.unsent.extend(event.ok());
                        answer.unsent.rotate_right(1);
                        break;
                    }
                    Err(TrySendError::Closed(_)) => {
                        closed = true;
                        break;
                    }
                }
            }
            if !closed && answer.sequences.is_empty() && answer.unsent.is_empty() {
                let last = match answer.late {
                    Some(ms) => Err(Error::Late(ms)),
                    None => Ok(InferEvent::Done { finish: answer.finish, usage: answer.usage }),
                };
                closed = !matches!(answer.events.try_send(last), Err(TrySendError::Full(_)));
            }
            for sequence in &answer.sequences {
                self.scheduler.pause(*sequence, !answer.unsent.is_empty());
            }
            if closed {
                over.push(*id);
            }
        }
        ended.extend(over.iter().filter_map(|id| self.answers.remove(id)).flat_map(|a| a.sequences));
        for sequence in ended {
            self.streams.remove(&sequence);
            self.remove(sequence);
        }
    }

    /// Guesses what follows, where a step has rows to spare: agents repeat what stands in their prompts (prompt lookup).
    fn guess(&mut self) {
        self.drafted.clear();
        let decoding: Vec<SequenceId> = self
            .streams
            .keys()
            .copied()
            .filter(|id| self.scheduler.get(*id).is_some_and(|s| s.decodes() && s.guessed == 0))
            .collect();
        let spare = (ROWS_FOR_ONE / decoding.len().max(1)).saturating_sub(1);
        if spare == 0 {
            return;
        }
        let mut wanting = Vec::new();
        for id in &decoding {
            let (Some(stream), Some(sequence)) = (self.streams.get(id), self.scheduler.get(*id)) else { continue };
            let room = (stream.room - stream.made).saturating_sub(1) as usize;
            let guesses = text::look_up(&sequence.tokens, spare.min(room));
            if guesses.is_empty() && self.draft.is_some() {
                wanting.push((*id, spare.min(room)));
                continue;
            }
            self.stats.guessed_tokens += guesses.len() as u64;
            self.scheduler.guess(*id, &guesses);
        }
        let Some(draft) = self.draft.as_mut().filter(|_| !wanting.is_empty()) else { return };
        let wanting: Vec<Wanting<'_>> = wanting
            .into_iter()
            .filter_map(|(id, count)| Some(Wanting { sequence: id, tokens: &self.scheduler.get(id)?.tokens, count }))
            .collect();
        let guessed = std::panic::catch_unwind(AssertUnwindSafe(|| draft.guess(&wanting)));
        let Ok(Ok(guessed)) = guessed else {
            // The answers do not need it.
            self.draft = None;
            return;
        };
        for (id, guesses) in guessed {
            self.stats.guessed_tokens += guesses.len() as u64;
            self.scheduler.guess(id, &guesses);
            self.drafted.insert(id);
        }
    }

    /// Computes a step; gives the tokens in it.
    fn step(&mut self) -> usize {
        let plan = self.scheduler.plan();
        if plan.is_empty() {
            return 0;
        }
        let mut tokens = Vec::new();
        let mut rows = Vec::new();
        for part in &plan {
            let Some(sequence) = self.scheduler.get(part.sequence) else { continue };
            let end = part.from + part.count;
            let position = end - sequence.guessed;
            tokens.extend((part.from..end).map(|at| Token {
                id: sequence.tokens[at],
                position: at as u32,
                table: sequence.table(),
                wanted: part.last && at + 1 >= position,
            }));
            if part.last {
                let guesses = sequence.tokens[position..].to_vec();
                let drafted = self.drafted.contains(&part.sequence);
                rows.push(Row { sequence: part.sequence, guesses, drafted, position });
            }
        }
        let count = tokens.len();
        let (body, session) = (&self.generator.body, &mut self.session);
        let computed = std::panic::catch_unwind(AssertUnwindSafe(|| session.step(body, &tokens).map(drop)));
        if let Err(error) = computed.unwrap_or(Err(Error::Broken)) {
            self.fail(&error);
            return count;
        }
        self.stats.steps += 1;
        self.stats.batch = plan.len() as u64;
        self.stats.prompt_tokens += count as u64 - rows.iter().map(|r| 1 + r.guesses.len() as u64).sum::<u64>();
        let forks = self.fork(&rows);
        let drawn = self.draw(&rows);
        for (row, drawn) in rows.iter().zip(drawn) {
            let right = drawn.len().saturating_sub(1);
            self.stats.right_guesses += right as u64;
            self.scheduler.judge(row.sequence, right);
            if let Some(draft) = self.draft.as_mut().filter(|_| row.drafted) {
                draft.judge(row.sequence, row.guesses.len(), right, row.position + right);
            }
            for (i, drawn) in drawn.into_iter().enumerate() {
                self.take(row.sequence, drawn, i < right);
            }
        }
        for (sequence, drawn) in forks {
            self.take(sequence, drawn, false);
        }
        count
    }

    /// Answers with several choices part where the first token is drawn: they share the prompt's blocks.
    fn fork(&mut self, rows: &[Row]) -> Vec<(SequenceId, Drawn)> {
        let vocab = self.generator.body.logits();
        let mut first = 0;
        let mut forks = Vec::new();
        for row in rows {
            let at = first;
            first += 1 + row.guesses.len();
            let Some(leader) = self.streams.get(&row.sequence).filter(|s| s.made == 0 && s.choice == 0) else {
                continue;
            };
            let Some(answer) = self.answers.get_mut(&leader.answer).filter(|a| a.choices > 1 && !a.parted) else {
                continue;
            };
            let leader = leader.clone();
            for choice in 1..answer.choices {
                let mut fork = Stream { choice, ..leader.clone() };
                fork.sampler.seed = fork.sampler.seed.wrapping_add(u64::from(choice));
                let forked = self.scheduler.fork(row.sequence).ok().filter(|(id, copies)| {
                    let copied = copies.iter().all(|(from, to)| self.session.copy(*from, *to).is_ok());
                    if !copied {
                        self.scheduler.remove(*id);
                    }
                    copied
                });
                let id = match forked {
                    Some((id, _)) => {
                        let mut logits = self.session.logits()[at * vocab..(at + 1) * vocab].to_vec();
                        let drawn = fork.draw(&self.generator.eos, &mut logits, row.position);
                        forks.push((id, drawn));
                        id
                    }
                    // No blocks for a copy now: it waits its turn like any prompt, and draws the same.
                    None => match self.scheduler.again(row.sequence) {
                        Some(id) => id,
                        None => continue,
                    },
                };
                answer.sequences.push(id);
                self.streams.insert(id, fork);
            }
        }
        forks
    }

    /// Draws for each row of logits, on all threads: the guesses that are right, and the token behind them.
    fn draw(&mut self, rows: &[Row]) -> Vec<Vec<Drawn>> {
        struct Job<'j> {
            stream: Option<&'j mut Stream>,
            logits: &'j mut [f32],
            drawn: Vec<Drawn>,
        }
        let vocab = self.generator.body.logits();
        let (pool, eos) = (crate::pool(), &self.generator.eos);
        let dialect = self.generator.template.as_ref().map(|t| &t.dialect);
        let mut streams: BTreeMap<SequenceId, &mut Stream> = self.streams.iter_mut().map(|(id, s)| (*id, s)).collect();
        let mut rest = self.session.logits();
        let mut jobs: Vec<Job<'_>> = Vec::with_capacity(rows.len());
        for row in rows {
            let (logits, after) = std::mem::take(&mut rest).split_at_mut((1 + row.guesses.len()) * vocab);
            rest = after;
            jobs.push(Job { stream: streams.remove(&row.sequence), logits, drawn: Vec::new() });
        }
        pool.rows(&mut jobs, 1, 1, |i, job| {
            let Job { stream: Some(stream), logits, drawn } = &mut job[0] else { return };
            let row = &rows[i];
            // A constraint may begin behind a mark: nothing is taken for granted there.
            let waits = stream.matcher.is_none() && (stream.pending.is_some() || stream.call.is_some());
            let turns = |token| waits && dialect.is_some_and(|d| d.may_turn(token));
            for (k, logits) in logits.chunks_mut(vocab).enumerate() {
                let next = stream.draw(eos, logits, row.position + k);
                let right = row.guesses.get(k) == Some(&next.token) && !next.ended && !turns(next.token);
                drawn.push(next);
                if !right {
                    break;
                }
            }
        });
        jobs.into_iter().map(|job| job.drawn).collect()
    }

    /// Puts a drawn token behind its sequence (a right guess is there already) and into its reader's stream.
    fn take(&mut self, id: SequenceId, drawn: Drawn, guessed: bool) {
        let Some(mut stream) = self.streams.remove(&id) else { return };
        if !self.answers.contains_key(&stream.answer) {
            return;
        }
        if !guessed {
            self.scheduler.push(id, drawn.token);
        }
        self.stats.made_tokens += 1;
        let Digested { mut delta, finish, shown } = stream.digest(self.generator, drawn.token, drawn.ended);
        let took = stream.at.elapsed();
        stream.at += took;
        let latency = if stream.made == 1 { &mut self.stats.first_token } else { &mut self.stats.between_tokens };
        latency.add(took);
        let Some(answer) = self.answers.get_mut(&stream.answer) else { return };
        answer.usage.output += 1;
        if let Some(logprob) = drawn.logprob.filter(|_| shown) {
            let name = |token: u32| self.generator.tokenizer.decode(&[token], false).unwrap_or_default();
            let top = drawn.top.iter().map(|(token, logprob)| (name(*token), *logprob)).collect();
            delta.logprobs.push(TokenLogprob { token: name(drawn.token), logprob, top });
        }
        // The last tokens of a choice are told also where they bring nothing, so that another worker counts right.
        if delta != Delta::default() || finish.is_some() && answer.choices > 1 {
            let tokens = std::mem::take(&mut stream.untold);
            answer.unsent.push_back(InferEvent::Delta(Delta { choice: stream.choice, tokens, ..delta }));
        }
        let Some(finish) = finish else {
            self.streams.insert(id, stream);
            return;
        };
        answer.end(stream.choice, finish, true);
        answer.sequences.retain(|s| *s != id);
        self.remove(id);
    }

    fn remove(&mut self, sequence: SequenceId) {
        self.scheduler.remove(sequence);
        if let Some(draft) = &mut self.draft {
            draft.forget(sequence);
        }
    }

    /// A step failed: everyone is told, and the engine begins anew.
    fn fail(&mut self, error: &Error) {
        for (_, answer) in std::mem::take(&mut self.answers) {
            let _ = answer.events.try_send(Err(match error {
                Error::Compute(why) => Error::Compute(candle_core::Error::Msg(why.to_string())),
                _ => Error::Broken,
            }));
        }
        for (sequence, _) in std::mem::take(&mut self.streams) {
            if let Some(draft) = &mut self.draft {
                draft.forget(sequence);
            }
        }
        self.scheduler = Scheduler::new(Cache::new(self.blocks, self.generator.body.block()), self.limits);
        self.session.clear();
    }
}

/// What keeps tenants' beginnings apart in the cache.
fn salt(tenant: &str) -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    use std::sync::OnceLock;
    // Keyed, so that nobody can choose a name that falls together with another's.
    static KEYS: OnceLock<RandomState> = OnceLock::new();
    if tenant.is_empty() { 0 } else { KEYS.get_or_init(RandomState::new).hash_one(tenant) }
}
