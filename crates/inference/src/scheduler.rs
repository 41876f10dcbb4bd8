//! Which sequences the next step computes, and how many tokens of each. Pure: blocks and tokens in, a plan out.
//!
//! Rows that decode go first, one token each; what is left of the step's budget goes to prompts, in chunks. Prompts are
//! taken by priority, then from the caller who was served least, each caller's within its share of the step, then by deadline and arrival (fair queueing by tokens,
//! after VTC, arXiv 2401.00588). When blocks run out, the least urgent and youngest sequence gives its blocks back and is
//! computed again later, mostly from what the cache still knows. A prompt's blocks are published when they are planned,
//! so that sequences with the same beginning share it in the very same step.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
};

use crate::cache::{Cache, Exhausted, Holding};

/// Bounds of a scheduler.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Tokens of a step where nobody decodes.
    pub step_tokens_max: usize,
    /// Tokens of prompts beside rows that decode: what a long prompt may add to their latency.
    pub beside_decode_max: usize,
    /// Sequences that hold blocks at once.
    pub running_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { step_tokens_max: 512, beside_decode_max: 256, running_max: 256 }
    }
}

/// Which sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SequenceId(pub u64);

/// How a sequence is ranked among others.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rank {
    /// Who asked: turns are fair between callers.
    pub caller: String,
    /// Higher goes first.
    pub priority: i32,
    /// Milliseconds of the engine's clock; earlier goes first among equals.
    pub deadline_ms: Option<u64>,
}

/// A sequence in work.
#[derive(Debug)]
pub(crate) struct Sequence {
    /// Prompt and what was made.
    pub tokens: Vec<u32>,
    /// Tokens behind the others that were guessed and wait to be verified.
    pub guessed: usize,
    /// Positions whose keys and values are there.
    computed: usize,
    holding: Holding,
    rank: Rank,
    /// Its reader is slow, or its request is over: it is not planned.
    pub paused: bool,
    admitted: bool,
}

impl Sequence {
    /// Its blocks.
    pub fn table(&self) -> &[u32] {
        self.holding.table()
    }

    fn left(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Whether its next step computes a token that was just drawn (and guesses behind it).
    pub fn decodes(&self) -> bool {
        self.admitted && self.left() == 1 + self.guessed
    }
}

/// A part of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub sequence: SequenceId,
    /// First position.
    pub from: usize,
    pub count: usize,
    /// Whether its last token is the sequence's last: then logits are wanted.
    pub last: bool,
}

/// Numbers for metrics.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Load {
    pub waiting: usize,
    pub running: usize,
    pub preemptions: u64,
}

/// Somebody with sequences here.
#[derive(Debug)]
struct Caller {
    sequences: usize,
    /// Tokens computed.
    served: u64,
}

/// All sequences of an engine.
#[derive(Debug)]
pub(crate) struct Scheduler {
    limits: Limits,
    pub cache: Cache,
    sequences: BTreeMap<SequenceId, Sequence>,
    /// Of those with sequences here.
    callers: HashMap<String, Caller>,
    /// Sequences that hold blocks.
    running: usize,
    next: u64,
    preemptions: u64,
}

impl Scheduler {
    pub fn new(cache: Cache, limits: Limits) -> Self {
        Self { limits, cache, sequences: BTreeMap::new(), callers: HashMap::new(), running: 0, next: 0, preemptions: 0 }
    }

    /// Takes a prompt. It is not empty.
    pub fn add(&mut self, tokens: Vec<u32>, salt: u64, rank: Rank) -> SequenceId {
        debug_assert!(!tokens.is_empty(), "a prompt has tokens");
        let holding = Holding::new(salt);
        self.insert(Sequence { tokens, guessed: 0, computed: 0, holding, rank, paused: false, admitted: false })
    }

    fn insert(&mut self, sequence: Sequence) -> SequenceId {
        let id = SequenceId(self.next);
        self.next += 1;
        match self.callers.get_mut(&sequence.rank.caller) {
            Some(caller) => caller.sequences += 1,
            None => {
                // Who comes anew has been served as much as the one served least: nobody saves turns up.
                let served = self.callers.values().map(|c| c.served).min().unwrap_or(0);
                self.callers.insert(sequence.rank.caller.clone(), Caller { sequences: 1, served });
            }
        }
        self.running += usize::from(sequence.admitted);
        self.sequences.insert(id, sequence);
        id
    }

    /// A sequence.
    pub fn get(&self, id: SequenceId) -> Option<&Sequence> {
        self.sequences.get(&id)
    }

    /// A sequence, to pause it.
    pub fn pause(&mut self, id: SequenceId, paused: bool) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.paused = paused;
        }
    }

    /// Adds a token that was drawn, behind the verified ones.
    pub fn push(&mut self, id: SequenceId, token: u32) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.tokens.push(token);
        }
    }

    /// Adds tokens that are guessed to follow.
    pub fn guess(&mut self, id: SequenceId, tokens: &[u32]) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.tokens.extend(tokens);
            sequence.guessed = tokens.len();
        }
    }

    /// Keeps the first `right` guesses of a step that computed them, and forgets the others.
    pub fn judge(&mut self, id: SequenceId, right: usize) {
        if let Some(s) = self.sequences.get_mut(&id) {
            let wrong = s.guessed - right.min(s.guessed);
            s.tokens.truncate(s.tokens.len() - wrong);
            s.computed = s.computed.min(s.tokens.len());
            s.guessed = 0;
        }
    }

    /// Another sequence that goes on from where this one is; pairs of blocks to copy.
    pub fn fork(&mut self, id: SequenceId) -> Result<(SequenceId, Vec<(u32, u32)>), Exhausted> {
        let from = self.sequences.get(&id).ok_or(Exhausted)?;
        let (holding, copies) = self.cache.fork(&from.holding)?;
        let sequence = Sequence {
            tokens: from.tokens.clone(),
            guessed: from.guessed,
            computed: from.computed,
            holding,
            rank: from.rank.clone(),
            paused: from.paused,
            admitted: from.admitted,
        };
        Ok((self.insert(sequence), copies))
    }

    /// Another sequence with the same tokens and rank, computed anew when its turn comes.
    pub fn again(&mut self, id: SequenceId) -> Option<SequenceId> {
        let from = self.sequences.get(&id)?;
        let (tokens, salt, rank) = (from.tokens.clone(), from.holding.salt(), from.rank.clone());
        Some(self.add(tokens, salt, rank))
    }

    /// Ends a sequence and takes its blocks back.
    pub fn remove(&mut self, id: SequenceId) {
        let Some(mut sequence) = self.sequences.remove(&id) else { return };
        self.cache.release(&mut sequence.holding);
        self.running -= usize::from(sequence.admitted);
        if let Some(caller) = self.callers.get_mut(&sequence.rank.caller) {
            caller.sequences -= 1;
            if caller.sequences == 0 {
                self.callers.remove(&sequence.rank.caller);
            }
        }
    }

    /// Numbers for metrics.
    pub fn load(&self) -> Load {
        let running = self.running;
        Load { waiting: self.sequences.len() - running, running, preemptions: self.preemptions }
    }

    /// The next step; empty when nothing can be computed.
    pub fn plan(&mut self) -> Vec<Part> {
        let mut plan = self.decodes();
        let mut budget = if plan.is_empty() {
            self.limits.step_tokens_max
        } else {
            let used: usize = plan.iter().map(|p| p.count).sum();
            self.limits.beside_decode_max.min(self.limits.step_tokens_max.saturating_sub(used))
        };
        self.prompts(&mut plan, &mut budget);
        if plan.is_empty() && self.sequences.values().any(|s| s.admitted && !s.paused) {
            // Prompts that each hold a part of the blocks: the most urgent one gets what the others have.
            while plan.is_empty() && self.preempt(None) {
                self.prompts(&mut plan, &mut budget);
            }
        }
        for part in &plan {
            let s = self.sequences.get_mut(&part.sequence).expect("planned sequences are there");
            s.computed += part.count;
            if let Some(caller) = self.callers.get_mut(&s.rank.caller) {
                caller.served += part.count as u64;
            }
        }
        plan
    }

    fn decodes(&mut self) -> Vec<Part> {
        let mut plan: Vec<Part> = Vec::new();
        let mut rows: Vec<SequenceId> =
            self.sequences.iter().filter(|(_, s)| s.decodes() && !s.paused).map(|(id, _)| *id).collect();
        // When blocks run out, the most urgent have theirs already.
        rows.sort_by_key(|id| (Reverse(self.sequences[id].rank.priority), *id));
        for id in rows {
            // An earlier row may have taken this one's blocks.
            while let Some(s) = self.sequences.get_mut(&id).filter(|s| s.decodes()) {
                // Blocks that decoding filled are complete only now.
                let computed = s.computed;
                self.cache.publish(&mut s.holding, &s.tokens[..computed]);
                let (from, count) = (s.computed, 1 + s.guessed);
                match self.cache.grow(&mut s.holding, from + count) {
                    Ok(()) => {
                        plan.push(Part { sequence: id, from, count, last: true });
                        break;
                    }
                    Err(Exhausted) => {
                        if !self.preempt(Some(&plan)) {
                            break;
                        }
                    }
                }
            }
        }
        plan
    }

    fn prompts(&mut self, plan: &mut Vec<Part>, budget: &mut usize) {
        let mut order: Vec<SequenceId> =
            self.sequences.iter().filter(|(_, s)| !s.decodes() && !s.paused).map(|(id, _)| *id).collect();
        if order.is_empty() {
            return;
        }
        let mut served: HashMap<String, u64> = self.callers.iter().map(|(name, c)| (name.clone(), c.served)).collect();
        // A long prompt leaves a part of the step to every other caller.
        let callers: std::collections::HashSet<&str> =
            order.iter().map(|id| self.sequences[id].rank.caller.as_str()).collect();
        let block = self.cache.block();
        let share_max = (*budget / callers.len().max(1) / block * block).max(block);
        while *budget > 0 && !order.is_empty() {
            // Each chunk changes who was served least.
            let best = order
                .iter()
                .enumerate()
                .min_by_key(|(_, id)| {
                    let s = &self.sequences[id];
                    let share = served.get(&s.rank.caller).copied().unwrap_or(0);
                    (Reverse(s.rank.priority), share, s.rank.deadline_ms.unwrap_or(u64::MAX), **id)
                })
                .map(|(i, _)| i);
            let Some(best) = best else { return };
            let id = order.swap_remove(best);
            let reserve = self.running;
            let s = self.sequences.get_mut(&id).expect("just listed");
            if !s.admitted && reserve >= self.limits.running_max {
                continue;
            }
            // At least the last token is computed, for its logits.
            let known = &s.tokens[..s.tokens.len() - 1];
            if s.holding.table().is_empty() {
                s.computed = self.cache.attach(&mut s.holding, known);
            } else {
                s.computed = self.cache.advance(&mut s.holding, known, s.computed);
            }
            if !s.admitted {
                // Room for the whole prompt, and a block for each row that decodes: else it would be preempted soon.
                let missing = s.tokens.len().div_ceil(block) - s.holding.table().len();
                if missing + reserve > self.cache.available() && reserve > 0 {
                    self.cache.release(&mut s.holding);
                    s.computed = 0;
                    continue;
                }
            }
            let mut count = s.left().min(*budget).min(share_max);
            if count < s.left() {
                // Chunks end with a block, so that others can take it over.
                let end = (s.computed + count) / block * block;
                count = if end > s.computed { end - s.computed } else { count };
            }
            if self.cache.grow(&mut s.holding, s.computed + count).is_err() {
                if !s.admitted {
                    self.cache.release(&mut s.holding);
                    s.computed = 0;
                }
                continue;
            }
            if !s.admitted {
                self.running += 1;
                self.cache.count(s.tokens.len(), s.computed);
            }
            s.admitted = true;
            let end = s.computed + count;
            self.cache.publish(&mut s.holding, &s.tokens[..end.min(s.tokens.len() - s.guessed)]);
            plan.push(Part { sequence: id, from: s.computed, count, last: end == s.tokens.len() });
            *served.entry(s.rank.caller.clone()).or_default() += count as u64;
            *budget -= count;
        }
    }

    /// Takes the blocks of the least urgent, youngest sequence that is not planned; false when there is none.
    fn preempt(&mut self, planned: Option<&[Part]>) -> bool {
        let planned = planned.unwrap_or_default();
        if self.running < 2 {
            return false;
        }
        let victim = self
            .sequences
            .iter()
            .filter(|(id, s)| s.admitted && !planned.iter().any(|p| p.sequence == **id))
            .min_by_key(|(id, s)| (s.rank.priority, Reverse(**id)))
            .map(|(id, _)| *id);
        let Some(id) = victim else { return false };
        let s = self.sequences.get_mut(&id).expect("just found");
        self.cache.release(&mut s.holding);
        s.computed = 0;
        s.admitted = false;
        self.running -= 1;
        // What was only guessed is not worth a prefill.
        s.tokens.truncate(s.tokens.len() - s.guessed);
        s.guessed = 0;
        self.preemptions += 1;
        true
    }
}

#[cfg(test)]
mod tests;
