//! A small model that guesses ahead for a larger one with the same vocabulary. Guesses are verified: they change the
//! speed of an answer and never the answer.

use std::collections::HashMap;

use covey_kernels::{Isa, argmax};

use crate::{
    Error, Generator,
    body::{Session, Token},
    cache::{Cache, Holding},
    scheduler::SequenceId,
};

/// Share of the guesses below which a sequence is not guessed for any more, for a while.
const WORTH_IT: f32 = 0.35;

/// Tokens of a sequence after which guessing is tried again.
const PATIENCE: usize = 64;

/// How fast the share of right guesses follows: one guess in this many.
const MEMORY: f32 = 8.0;

/// Blocks of keys and values for a sequence, on average, before the oldest are given up.
const CONTEXTS: usize = 4;

/// Guesses for the sequences of one engine.
pub(crate) struct Draft {
    generator: Box<Generator>,
    session: Session,
    cache: Cache,
    known: HashMap<SequenceId, Known>,
}

/// What the small model has seen of a sequence.
struct Known {
    holding: Holding,
    /// Tokens whose keys and values are there.
    seen: Vec<u32>,
    /// Share of its guesses that were right.
    right: f32,
    /// Not before the sequence has this many tokens.
    again_at: usize,
}

/// A sequence that wants guesses.
pub(crate) struct Wanting<'a> {
    pub sequence: SequenceId,
    pub tokens: &'a [u32],
    pub count: usize,
}

impl Draft {
    pub fn new(generator: Box<Generator>) -> Result<Self, Error> {
        let block = generator.body.block();
        let blocks = generator.body.shape().context.div_ceil(block) * CONTEXTS;
        let session = generator.body.session(blocks)?;
        Ok(Self { session, cache: Cache::new(blocks, block), known: HashMap::new(), generator })
    }

    /// What may follow each sequence; nothing where it was wrong too often, or where there is no room.
    pub fn guess(&mut self, wanting: &[Wanting<'_>]) -> Result<HashMap<SequenceId, Vec<u32>>, Error> {
        let mut guesses: HashMap<SequenceId, Vec<u32>> = HashMap::new();
        let context = self.generator.body.shape().context;
        for want in wanting {
            let end = want.tokens.len() + want.count;
            let fresh = || Known { holding: Holding::new(0), seen: Vec::new(), right: 1.0, again_at: 0 };
            let known = self.known.entry(want.sequence).or_insert_with(fresh);
            if want.count == 0 || end > context || want.tokens.len() < known.again_at {
                continue;
            }
            // What was guessed wrong is computed again.
            let same = known.seen.iter().zip(want.tokens).take_while(|(a, b)| a == b).count();
            known.seen.truncate(same.min(want.tokens.len() - 1));
            if self.cache.grow(&mut known.holding, end).is_ok() {
                guesses.insert(want.sequence, Vec::with_capacity(want.count));
            }
        }
        let most = wanting.iter().map(|w| w.count).max().unwrap_or(0);
        for round in 0..most {
            let mut batch = Vec::new();
            let mut order = Vec::new();
            for want in wanting.iter().filter(|w| w.count > round) {
                let (Some(made), Some(known)) = (guesses.get(&want.sequence), self.known.get(&want.sequence)) else {
                    continue;
                };
                let all = want.tokens.iter().chain(made).copied();
                let from = known.seen.len();
                let end = want.tokens.len() + made.len();
                batch.extend(all.enumerate().skip(from).map(|(at, id)| Token {
                    id,
                    position: at as u32,
                    table: known.holding.table(),
                    wanted: at + 1 == end,
                }));
                order.push(want);
            }
            if batch.is_empty() {
                break;
            }
            let vocab = self.generator.body.logits();
            let logits = self.session.step(&self.generator.body, &batch)?;
            let next: Vec<u32> = logits.chunks(vocab).map(|row| argmax(Isa::detect(), row) as u32).collect();
            for (want, next) in order.into_iter().zip(next) {
                let (Some(made), Some(known)) = (guesses.get_mut(&want.sequence), self.known.get_mut(&want.sequence))
                else {
                    continue;
                };
                let from = known.seen.len();
                known.seen.extend(want.tokens.iter().chain(made.iter()).skip(from));
                made.push(next);
            }
        }
        Ok(guesses)
    }

    /// How many of its guesses were right; `tokens` the sequence has now.
    pub fn judge(&mut self, sequence: SequenceId, guessed: usize, right: usize, tokens: usize) {
        let Some(known) = self.known.get_mut(&sequence) else { return };
        for guess in 0..guessed {
            let was_right = if guess < right { 1.0 } else { 0.0 };
            known.right += (was_right - known.right) / MEMORY;
        }
        if known.right < WORTH_IT {
            known.again_at = tokens + PATIENCE;
            known.right = 1.0;
        }
    }

    /// A sequence is over.
    pub fn forget(&mut self, sequence: SequenceId) {
        if let Some(mut known) = self.known.remove(&sequence) {
            self.cache.release(&mut known.holding);
        }
    }
}
