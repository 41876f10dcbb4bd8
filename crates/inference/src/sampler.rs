//! Drawing the next token from logits.

use covey_domain::infer::Sampling;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

/// One request's dice. The same seed and logits give the same tokens.
#[derive(Debug)]
pub(crate) struct Sampler {
    temperature: f64,
    top_p: f64,
    top_k: usize,
    rng: StdRng,
}

impl Sampler {
    pub fn new(sampling: &Sampling) -> Self {
        let seed = sampling.seed.unwrap_or_else(rand::random);
        Self {
            temperature: sampling.temperature.unwrap_or(0.0),
            top_p: sampling.top_p.unwrap_or(1.0),
            top_k: sampling.top_k.unwrap_or(0),
            rng: StdRng::seed_from_u64(seed),
        }
    }

    /// The next token.
    pub fn draw(&mut self, logits: &[f32]) -> u32 {
        if self.temperature <= 0.0 {
            return argmax(logits);
        }
        let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let mut pool: Vec<(u32, f64)> = logits
            .iter()
            .enumerate()
            .map(|(i, l)| (i as u32, ((f64::from(*l) - f64::from(most)) / self.temperature).exp()))
            .collect();
        // Ties keep the order of token ids, so that a seed means the same on every machine.
        pool.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        if self.top_k > 0 {
            pool.truncate(self.top_k);
        }
        let total: f64 = pool.iter().map(|(_, p)| p).sum();
        if self.top_p < 1.0 {
            let (mut mass, mut kept) = (0.0, 0);
            while kept < pool.len() && (kept == 0 || mass < self.top_p * total) {
                mass += pool[kept].1;
                kept += 1;
            }
            pool.truncate(kept);
        }
        let total: f64 = pool.iter().map(|(_, p)| p).sum();
        let mut dart = self.rng.random::<f64>() * total;
        for (token, p) in &pool {
            dart -= p;
            if dart <= 0.0 {
                return *token;
            }
        }
        pool.last().map_or(0, |(token, _)| *token)
    }
}

/// The likeliest token; the first of equals.
pub(crate) fn argmax(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (i, l) in logits.iter().enumerate() {
        if *l > best.1 {
            best = (i, *l);
        }
    }
    best.0 as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(temperature: f64, top_k: usize, top_p: f64, seed: u64) -> Sampler {
        let sampling = Sampling {
            temperature: Some(temperature),
            top_k: Some(top_k),
            top_p: Some(top_p),
            seed: Some(seed),
            ..Sampling::default()
        };
        Sampler::new(&sampling)
    }

    #[test]
    fn greedy_takes_the_best_and_a_seed_repeats() {
        let logits = [0.1, 2.0, 1.9, -3.0];
        assert_eq!(with(0.0, 0, 1.0, 1).draw(&logits), 1);
        let run = |seed| {
            let mut sampler = with(1.5, 0, 1.0, seed);
            (0..50).map(|_| sampler.draw(&logits)).collect::<Vec<_>>()
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
    }

    #[test]
    fn top_k_and_top_p_keep_the_tail_out() {
        let logits = [5.0, 4.9, 0.0, 0.0];
        let (mut k, mut p) = (with(2.0, 2, 1.0, 3), with(2.0, 0, 0.5, 3));
        for _ in 0..200 {
            assert!(k.draw(&logits) < 2);
            assert!(p.draw(&logits) < 2);
        }
        let mut free = with(5.0, 0, 1.0, 3);
        assert!((0..200).any(|_| free.draw(&logits) >= 2));
    }
}
