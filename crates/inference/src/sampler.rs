//! Drawing the next token from logits.
//!
//! The dice of a position depend on the seed and the position alone. So a request gets the same answer whatever else is
//! in the batch, after it was preempted, when another worker goes on with it, and with guesses verified several at once.

use std::collections::HashMap;

use covey_domain::infer::Sampling;
use covey_kernels::{Isa, argmax, log_sum_exp};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

/// Candidates are sorted in portions of this size.
const PORTION: usize = 256;

/// One request's way to draw.
#[derive(Clone, Debug)]
pub(crate) struct Sampler {
    temperature: f64,
    top_p: f64,
    top_k: usize,
    min_p: f64,
    presence: f32,
    frequency: f32,
    repetition: f32,
    bias: Vec<(u32, f32)>,
    /// Seed of the dice.
    pub seed: u64,
    isa: Isa,
    /// Times that each token stands in the answer, and whether in the prompt.
    seen: HashMap<u32, (u32, bool)>,
}

/// A drawn token.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Drawn {
    pub token: u32,
    /// Natural logarithm of its probability, before temperature; where asked for.
    pub logprob: Option<f32>,
    /// The likeliest tokens and theirs.
    pub top: Vec<(u32, f32)>,
    /// Nothing may follow: the grammar is at its end.
    pub ended: bool,
}

impl Sampler {
    pub fn new(sampling: &Sampling, prompt: &[u32]) -> Self {
        let mut sampler = Self {
            temperature: sampling.temperature.unwrap_or(0.0),
            top_p: sampling.top_p.unwrap_or(1.0),
            top_k: sampling.top_k.unwrap_or(0),
            min_p: sampling.min_p.unwrap_or(0.0),
            presence: sampling.presence_penalty.unwrap_or(0.0) as f32,
            frequency: sampling.frequency_penalty.unwrap_or(0.0) as f32,
            repetition: sampling.repetition_penalty.filter(|p| *p > 0.0).unwrap_or(1.0) as f32,
            bias: sampling.logit_bias.iter().map(|(token, by)| (*token, *by as f32)).collect(),
            seed: sampling.seed.unwrap_or_else(rand::random),
            isa: Isa::detect(),
            seen: HashMap::new(),
        };
        if sampler.repetition != 1.0 {
            for token in prompt {
                sampler.seen.entry(*token).or_default().1 = true;
            }
        }
        sampler
    }

    /// Takes note of a token of the answer.
    pub fn saw(&mut self, token: u32) {
        if self.presence != 0.0 || self.frequency != 0.0 || self.repetition != 1.0 {
            self.seen.entry(token).or_default().0 += 1;
        }
    }

    /// The token of `position`; penalties and biases are written into `logits`. `tops` likeliest ones are told.
    pub fn draw(&self, logits: &mut [f32], position: usize, tops: Option<usize>) -> Drawn {
        for (token, (times, in_prompt)) in &self.seen {
            let Some(logit) = logits.get_mut(*token as usize) else { continue };
            if *times > 0 || *in_prompt {
                *logit = if *logit > 0.0 { *logit / self.repetition } else { *logit * self.repetition };
            }
            if *times > 0 {
                *logit -= self.presence + self.frequency * *times as f32;
            }
        }
        for (token, by) in &self.bias {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit += by;
            }
        }
        let token =
            if self.temperature <= 0.0 { argmax(self.isa, logits) as u32 } else { self.throw(logits, position) };
        let Some(tops) = tops else { return Drawn { token, ..Drawn::default() } };
        let total = log_sum_exp(logits);
        let mut top = best(logits, tops);
        top.iter_mut().for_each(|(_, l)| *l -= total);
        Drawn {
            token,
            logprob: Some(logits.get(token as usize).map_or(f32::NEG_INFINITY, |l| l - total)),
            top,
            ended: false,
        }
    }

    fn throw(&self, logits: &[f32], position: usize) -> u32 {
        let peak = logits[argmax(self.isa, logits)];
        let weight = |logit: f32| ((f64::from(logit) - f64::from(peak)) / self.temperature).exp();
        let mut dice = StdRng::seed_from_u64(self.seed ^ (position as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let roll: f64 = dice.random();
        if self.top_k == 0 && self.top_p >= 1.0 && self.min_p <= 0.0 {
            // All tokens are candidates: nothing needs sorting.
            let total: f64 = logits.iter().map(|l| weight(*l)).sum();
            return dart(logits.iter().enumerate().map(|(i, l)| (i as u32, weight(*l))), roll * total);
        }
        let mass: f64 = if self.top_p < 1.0 && self.top_k == 0 { logits.iter().map(|l| weight(*l)).sum() } else { 0.0 };
        let mut wanted = if self.top_k > 0 { self.top_k } else { PORTION };
        let pool = loop {
            let mut pool: Vec<(u32, f64)> = best(logits, wanted).into_iter().map(|(t, l)| (t, weight(l))).collect();
            let whole = pool.len() == logits.len();
            // The likeliest weighs one.
            let enough = pool.iter().take_while(|(_, w)| *w >= self.min_p).count();
            let cut = enough < pool.len();
            pool.truncate(enough.max(1));
            let total = if self.top_k > 0 || cut || whole { pool.iter().map(|(_, w)| w).sum() } else { mass };
            let (mut sum, mut kept) = (0.0, 0);
            while kept < pool.len() && (kept == 0 || sum < self.top_p * total) {
                sum += pool[kept].1;
                kept += 1;
            }
            if kept < pool.len() || self.top_k > 0 || cut || whole {
                pool.truncate(kept);
                break pool;
            }
            wanted *= 8;
        };
        let total: f64 = pool.iter().map(|(_, w)| w).sum();
        dart(pool.into_iter(), roll * total)
    }
}

fn dart(pool: impl Iterator<Item = (u32, f64)>, mut at: f64) -> u32 {
    let mut last = 0;
    for (token, weight) in pool {
        if weight > 0.0 {
            last = token;
        }
        at -= weight;
        if at <= 0.0 && weight > 0.0 {
            return token;
        }
    }
    last
}

/// The `count` largest, in order; of equals the first come first, so that a seed means the same on every machine.
fn best(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    let order = |a: &(u32, f32), b: &(u32, f32)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    if count == 0 {
        return Vec::new();
    }
    // Twice as many are kept at most; of a large vocabulary nearly all fall under what the worst of them has.
    let mut kept: Vec<(u32, f32)> = Vec::with_capacity(2 * count.min(logits.len()));
    let mut least: Option<f32> = None;
    for (i, logit) in logits.iter().enumerate() {
        if least.is_some_and(|least| logit.total_cmp(&least).is_le()) {
            continue;
        }
        kept.push((i as u32, *logit));
        if kept.len() >= 2 * count {
            kept.select_nth_unstable_by(count - 1, order);
            kept.truncate(count);
            least = kept.last().map(|(_, logit)| *logit);
        }
    }
    kept.sort_unstable_by(order);
    kept.truncate(count);
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_are_those_of_a_whole_sort() {
        let mut dice = StdRng::seed_from_u64(4);
        for count in [1, 2, 7, 64, 999, 1000, 5000] {
            // Many are equal, so that the order among them shows.
            let logits: Vec<f32> = (0..1000).map(|_| (dice.random_range(0..120) as f32) * 0.1 - 6.0).collect();
            let mut all: Vec<(u32, f32)> = logits.iter().enumerate().map(|(i, l)| (i as u32, *l)).collect();
            all.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            all.truncate(count);
            assert_eq!(best(&logits, count), all, "{count}");
        }
    }

    fn draws(sampling: Sampling, logits: &[f32], times: usize) -> Vec<u32> {
        let sampler = Sampler::new(&Sampling { seed: sampling.seed.or(Some(3)), ..sampling }, &[]);
        (0..times).map(|at| sampler.draw(&mut logits.to_vec(), at, None).token).collect()
    }

    fn warm(temperature: f64) -> Sampling {
        Sampling { temperature: Some(temperature), ..Sampling::default() }
    }

    #[test]
    fn greedy_takes_the_best_and_a_seed_repeats() {
        let logits = [0.1, 2.0, 1.9, -3.0];
        assert_eq!(draws(warm(0.0), &logits, 1), [1]);
        let run = |seed| draws(Sampling { seed: Some(seed), ..warm(1.5) }, &logits, 50);
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
    }

    #[test]
    fn a_draw_depends_on_its_position_and_not_on_those_before() {
        let logits: Vec<f32> = (0..1000).map(|i| (i as f32 * 0.37).sin()).collect();
        let sampler = Sampler::new(&Sampling { seed: Some(5), ..warm(1.0) }, &[]);
        let forward: Vec<_> = (0..20).map(|at| sampler.draw(&mut logits.clone(), at, None).token).collect();
        let mut backward: Vec<_> = (0..20).rev().map(|at| sampler.draw(&mut logits.clone(), at, None).token).collect();
        backward.reverse();
        assert_eq!(forward, backward);
    }

    #[test]
    fn top_k_top_p_and_min_p_keep_the_tail_out() {
        let logits = [5.0, 4.9, 0.0, 0.0];
        for sampling in [
            Sampling { top_k: Some(2), ..warm(2.0) },
            Sampling { top_p: Some(0.5), ..warm(2.0) },
            Sampling { min_p: Some(0.5), ..warm(2.0) },
        ] {
            let drawn = draws(sampling, &logits, 200);
            assert!(drawn.iter().all(|t| *t < 2) && drawn.contains(&0) && drawn.contains(&1));
        }
        assert!(draws(warm(5.0), &logits, 200).iter().any(|t| *t >= 2));
        // A flat distribution wants more candidates than one portion.
        let flat = vec![0f32; 5000];
        let drawn = draws(Sampling { top_p: Some(0.9), ..warm(1.0) }, &flat, 300);
        assert!(drawn.iter().any(|t| *t > 4000) && drawn.iter().all(|t| *t < 4501));
    }

    #[test]
    fn frequencies_are_those_of_the_softmax() {
        let logits = [1.0f32, 0.0, -1.0];
        let drawn = draws(warm(1.0), &logits, 20_000);
        let total: f64 = logits.iter().map(|l| f64::from(*l).exp()).sum();
        for (token, logit) in logits.iter().enumerate() {
            let share = drawn.iter().filter(|t| **t == token as u32).count() as f64 / drawn.len() as f64;
            assert!((share - f64::from(*logit).exp() / total).abs() < 0.015, "token {token}: {share}");
        }
    }

    #[test]
    fn penalties_biases_and_logprobs() {
        let sampling = Sampling { frequency_penalty: Some(0.6), presence_penalty: Some(0.5), ..Sampling::default() };
        let mut sampler = Sampler::new(&sampling, &[]);
        let logits = [2.0f32, 1.5, 0.0];
        assert_eq!(sampler.draw(&mut logits.to_vec(), 0, None).token, 0);
        sampler.saw(0);
        assert_eq!(sampler.draw(&mut logits.to_vec(), 1, None).token, 1);
        let once = Sampling { repetition_penalty: Some(2.0), ..Sampling::default() };
        assert_eq!(Sampler::new(&once, &[0]).draw(&mut logits.to_vec(), 0, None).token, 1);
        let biased = Sampling { logit_bias: [(2, 100.0), (9, 5.0)].into(), ..Sampling::default() };
        assert_eq!(Sampler::new(&biased, &[]).draw(&mut logits.to_vec(), 0, None).token, 2);
        let told = Sampler::new(&Sampling::default(), &[]).draw(&mut logits.to_vec(), 0, Some(2));
        let total = logits.iter().map(|l| l.exp()).sum::<f32>().ln();
        assert_eq!(told.top.iter().map(|(t, _)| *t).collect::<Vec<_>>(), [0, 1]);
        assert!((told.logprob.unwrap() - (2.0 - total)).abs() < 1e-6);
    }
}
