use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::*;

const BLOCK: usize = 16;

/// A cache that holds, for each position, a digest of all tokens up to it: what attention would read.
struct World {
    scheduler: Scheduler,
    kv: Vec<[u64; BLOCK]>,
    salts: BTreeMap<SequenceId, u64>,
}

fn digest(salt: u64, tokens: &[u32]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (salt, tokens).hash(&mut hasher);
    hasher.finish()
}

impl World {
    fn new(blocks: usize, limits: Limits) -> Self {
        Self {
            scheduler: Scheduler::new(Cache::new(blocks, BLOCK), limits),
            kv: vec![[0; BLOCK]; blocks],
            salts: BTreeMap::new(),
        }
    }

    fn add(&mut self, tokens: Vec<u32>, salt: u64, rank: Rank) -> SequenceId {
        let id = self.scheduler.add(tokens, salt, rank);
        self.salts.insert(id, salt);
        id
    }

    /// Plans a step and "computes" it; every token must then see just the tokens before it.
    fn step(&mut self) -> Vec<Part> {
        let plan = self.scheduler.plan();
        for part in &plan {
            let s = &self.scheduler.sequences[&part.sequence];
            for at in part.from..part.from + part.count {
                self.kv[s.table()[at / BLOCK] as usize][at % BLOCK] =
                    digest(self.salts[&part.sequence], &s.tokens[..=at]);
            }
        }
        for part in &plan {
            let s = &self.scheduler.sequences[&part.sequence];
            assert_eq!(s.computed, part.from + part.count, "a part ends where the sequence is computed");
            assert_eq!(part.last, s.computed == s.tokens.len(), "logits are wanted of the last token only");
            for at in 0..s.computed {
                let seen = self.kv[s.table()[at / BLOCK] as usize][at % BLOCK];
                assert_eq!(seen, digest(self.salts[&part.sequence], &s.tokens[..=at]), "{part:?} reads position {at}");
            }
        }
        plan
    }

    fn remove(&mut self, id: SequenceId) {
        self.scheduler.remove(id);
        self.salts.remove(&id);
    }
}

fn small() -> Limits {
    Limits { step_tokens_max: 48, beside_decode_max: 24, running_max: 9 }
}

#[test]
fn in_random_worlds_every_token_sees_its_own_past_and_nothing_leaks() {
    for seed in 0..40 {
        let mut rng = StdRng::seed_from_u64(seed);
        let blocks = rng.random_range(12..60);
        let mut world = World::new(blocks, small());
        let mut made = 0;
        for _ in 0..600 {
            if rng.random_bool(0.3) && world.salts.len() < 20 {
                let kind = rng.random_range(0..3u32);
                let shared = rng.random_range(0..80);
                let own = rng.random_range(1..60);
                let tokens = (0..shared).map(|_| kind).chain((0..own).map(|_| rng.random_range(0..2))).collect();
                let rank = Rank {
                    caller: format!("caller {}", rng.random_range(0..3)),
                    priority: rng.random_range(0..2),
                    deadline_ms: None,
                };
                world.add(tokens, rng.random_range(0..2), rank);
            }
            for part in world.step() {
                if !part.last {
                    continue;
                }
                let id = part.sequence;
                made += 1;
                let guessed = world.scheduler.sequences[&id].guessed;
                if guessed > 0 {
                    world.scheduler.judge(id, rng.random_range(0..=guessed));
                }
                match rng.random_range(0..100) {
                    0..6 => world.remove(id),
                    6..10 if world.salts.len() < 20 => {
                        if let Ok((fork, copies)) = world.scheduler.fork(id) {
                            for (from, to) in copies {
                                world.kv[to as usize] = world.kv[from as usize];
                            }
                            let salt = world.salts[&id];
                            world.salts.insert(fork, salt);
                            world.scheduler.push(fork, rng.random_range(0..2));
                        }
                        world.scheduler.push(id, rng.random_range(0..2));
                    }
                    10..30 => {
                        world.scheduler.push(id, rng.random_range(0..2));
                        let guesses: Vec<u32> = (0..rng.random_range(1..5)).map(|_| rng.random_range(0..2)).collect();
                        world.scheduler.guess(id, &guesses);
                    }
                    _ => world.scheduler.push(id, rng.random_range(0..2)),
                }
                if let Some(s) = world.scheduler.get(id)
                    && s.tokens.len() > blocks * BLOCK / 2
                {
                    world.remove(id);
                }
            }
            let ids: Vec<SequenceId> = world.salts.keys().copied().collect();
            for id in ids {
                if rng.random_bool(0.01) {
                    world.remove(id);
                } else if rng.random_bool(0.05) {
                    world.scheduler.pause(id, rng.random_bool(0.3));
                }
            }
        }
        assert!(made > 300, "seed {seed} made {made} tokens only");
        for id in world.salts.keys().copied().collect::<Vec<_>>() {
            world.remove(id);
        }
        world.scheduler.cache.clear();
        assert_eq!(world.scheduler.cache.stats().free, blocks, "seed {seed} leaks blocks");
        assert!(world.scheduler.callers.is_empty(), "nobody is remembered who has nothing here");
    }
}

#[test]
fn everyone_is_served_in_the_end_however_small_the_cache() {
    let mut world = World::new(10, small());
    let ids: Vec<SequenceId> = (0..30u32).map(|i| world.add(vec![i % 4; 100], 0, Rank::default())).collect();
    let mut left: BTreeMap<SequenceId, usize> = ids.iter().map(|id| (*id, 20)).collect();
    for _ in 0..5_000 {
        for part in world.step().into_iter().filter(|p| p.last) {
            world.scheduler.push(part.sequence, 7);
            let n = left.get_mut(&part.sequence).unwrap();
            *n -= 1;
            if *n == 0 {
                left.remove(&part.sequence);
                world.remove(part.sequence);
            }
        }
        if left.is_empty() {
            return;
        }
    }
    panic!("{} sequences were never finished", left.len());
}

#[test]
fn a_swarm_computes_its_shared_prompt_once_also_when_all_come_at_once() {
    let mut world = World::new(1000, Limits::default());
    for i in 0..20u32 {
        world.add([vec![5; 320], vec![100 + i; 10]].concat(), 0, Rank::default());
    }
    let computed: usize = (0..4).flat_map(|_| world.step()).filter(|p| p.from < 330).map(|p| p.count).sum();
    assert_eq!(computed, 320 + 20 * 10);
    let stats = world.scheduler.cache.stats();
    assert_eq!(stats.found_tokens, 19 * 320);
}

#[test]
fn a_caller_with_one_request_does_not_wait_for_a_thousand_of_another() {
    let mut world = World::new(1000, small());
    let rank = |caller: &str| Rank { caller: caller.into(), ..Rank::default() };
    for i in 0..8u32 {
        world.add(vec![i; 200], 0, rank("many"));
    }
    world.step();
    let one = world.add(vec![99; 20], 0, rank("one"));
    assert!(world.step().iter().any(|p| p.sequence == one), "the next step has a part of it");
    assert!(world.step().iter().any(|p| p.sequence == one && p.last), "the second has the rest");
}

#[test]
fn the_urgent_go_first_and_the_least_urgent_give_their_blocks() {
    let mut world = World::new(16, Limits::default());
    let rank = |priority| Rank { priority, ..Rank::default() };
    let low = world.add(vec![1; 100], 0, rank(0));
    let high = world.add(vec![2; 100], 0, rank(5));
    let first = world.step();
    assert_eq!(first[0].sequence, high);
    for _ in 0..80 {
        for part in world.step().into_iter().filter(|p| p.last) {
            world.scheduler.push(part.sequence, 3);
        }
    }
    assert!(world.scheduler.load().preemptions > 0);
    assert!(world.scheduler.sequences[&high].tokens.len() > 170);
    assert!(world.scheduler.sequences[&low].tokens.len() < 150);
}
