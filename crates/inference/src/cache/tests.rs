use std::collections::HashSet;

use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::*;

const BLOCK: usize = 16;

impl Cache {
    /// How many whole blocks of `tokens` the tree knows.
    fn known(&self, salt: u64, tokens: &[u32]) -> usize {
        self.walk(salt, tokens).count()
    }

    /// Forgets every beginning that nobody holds.
    pub fn clear(&mut self) {
        while self.evict().is_ok() {}
    }
}

/// Every block is in exactly one place, holders are counted right, and idle nodes are those that may go.
fn check(cache: &Cache, holdings: &[(Holding, Vec<u32>)]) {
    let mut seen: HashSet<u32> = HashSet::new();
    for block in &cache.free {
        assert!(seen.insert(*block), "block {block} is free twice");
    }
    for node in cache.nodes.values() {
        assert!(seen.insert(node.block), "block {} of a node is elsewhere, too", node.block);
    }
    for (holding, tokens) in holdings {
        for block in &holding.table[holding.path.len()..] {
            assert!(seen.insert(*block), "block {block} is owned and elsewhere");
        }
        let mut parent = None;
        for (i, id) in holding.path.iter().enumerate() {
            let node = &cache.nodes[id];
            assert_eq!((node.parent, node.salt), (parent, holding.salt), "paths follow the tree");
            assert_eq!(node.key[..], tokens[i * BLOCK..(i + 1) * BLOCK], "a node has its holder's tokens");
            assert_eq!(node.block, holding.table[i], "the table begins with the path");
            parent = Some(*id);
        }
    }
    assert_eq!(seen.len(), cache.stats.blocks, "no block is lost");
    for (id, node) in &cache.nodes {
        let holders = holdings.iter().filter(|(h, _)| h.path.contains(id)).count();
        assert_eq!(node.holders as usize, holders, "holders of node {id}");
        let idle = node.holders == 0 && node.children.is_empty();
        assert_eq!(cache.idle.contains(&(node.last_used, *id)), idle, "idle node {id}");
        for child in node.children.values() {
            assert_eq!(cache.nodes[child].parent, Some(*id), "children know their parent");
        }
    }
    let idle_nodes = cache.nodes.values().filter(|n| n.holders == 0 && n.children.is_empty()).count();
    assert_eq!(cache.idle.len(), idle_nodes, "nothing else is idle");
    let held: HashSet<u32> = holdings.iter().flat_map(|(h, _)| h.table.iter().copied()).collect();
    assert_eq!(cache.available(), cache.stats.blocks - held.len(), "what is not held can be had");
}

#[test]
fn ten_thousand_random_operations_keep_the_invariants_and_leak_nothing() {
    for seed in 0..4 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut cache = Cache::new(60, BLOCK);
        let mut holdings: Vec<(Holding, Vec<u32>)> = Vec::new();
        for step in 0..10_000 {
            match rng.random_range(0..7) {
                0 if holdings.len() < 12 => {
                    // Few different beginnings, so that many are shared.
                    let (salt, kind) = (rng.random_range(0..2), rng.random_range(0..3u32));
                    let length = rng.random_range(1..150);
                    let branch = rng.random_range(0..length);
                    let tokens: Vec<u32> =
                        (0..length).map(|i| if i < branch { kind } else { rng.random_range(0..2) }).collect();
                    let mut holding = Holding::new(salt);
                    let found = cache.attach(&mut holding, &tokens);
                    assert!(found <= tokens.len() && found.is_multiple_of(BLOCK));
                    holdings.push((holding, tokens));
                }
                1 | 2 if !holdings.is_empty() => {
                    let i = rng.random_range(0..holdings.len());
                    let (holding, tokens) = &mut holdings[i];
                    let before = holding.table.clone();
                    if rng.random_bool(0.3) {
                        let more = rng.random_range(1..40);
                        tokens.extend((0..more).map(|_| rng.random_range(0..2u32)));
                    }
                    match cache.grow(holding, tokens.len()) {
                        Ok(()) => assert!(holding.table.len() * BLOCK >= tokens.len()),
                        Err(Exhausted) => assert_eq!(holding.table, before, "all or nothing"),
                    }
                }
                3 if !holdings.is_empty() => {
                    let i = rng.random_range(0..holdings.len());
                    let (holding, tokens) = &mut holdings[i];
                    let computed = tokens.len().min(holding.table.len() * BLOCK);
                    cache.publish(holding, &tokens[..computed]);
                }
                4 if !holdings.is_empty() && holdings.len() < 12 => {
                    let i = rng.random_range(0..holdings.len());
                    if let Ok((fork, copies)) = cache.fork(&holdings[i].0) {
                        assert_eq!(fork.table.len(), holdings[i].0.table.len());
                        assert_eq!(copies.len(), fork.table.len() - fork.path.len());
                        let tokens = holdings[i].1.clone();
                        holdings.push((fork, tokens));
                    }
                }
                5 if !holdings.is_empty() => {
                    let i = rng.random_range(0..holdings.len());
                    let (mut holding, _) = holdings.swap_remove(i);
                    cache.release(&mut holding);
                }
                6 if !holdings.is_empty() => {
                    let i = rng.random_range(0..holdings.len());
                    let (holding, tokens) = &mut holdings[i];
                    let computed = holding.path.len() * BLOCK;
                    assert!(cache.advance(holding, tokens, computed) >= computed);
                }
                _ => {}
            }
            if step % 7 == 0 {
                check(&cache, &holdings);
            }
        }
        for (mut holding, _) in holdings {
            cache.release(&mut holding);
        }
        check(&cache, &[]);
        cache.clear();
        assert_eq!(cache.stats().free, 60, "every block comes back");
    }
}

#[test]
fn a_beginning_is_found_again_by_its_tenant_only_and_the_oldest_goes_first() {
    let mut cache = Cache::new(8, BLOCK);
    let prompt = |kind: u32| vec![kind; 3 * BLOCK + 5];
    let mut first = Holding::new(1);
    assert_eq!(cache.attach(&mut first, &prompt(7)), 0);
    cache.grow(&mut first, 53).unwrap();
    cache.publish(&mut first, &prompt(7));
    cache.release(&mut first);
    assert_eq!(cache.known(1, &prompt(7)), 3);
    assert_eq!(cache.known(2, &prompt(7)), 0, "another tenant's salt");
    let mut second = Holding::new(1);
    cache.grow(&mut second, 4 * BLOCK).unwrap();
    cache.publish(&mut second, &vec![9; 4 * BLOCK]);
    cache.release(&mut second);
    assert_eq!((cache.known(1, &prompt(7)), cache.known(1, &[9; 64])), (3, 4));
    // Eight blocks: seven are cached, so two more push out the end of the older path.
    let mut third = Holding::new(1);
    cache.grow(&mut third, 2 * BLOCK).unwrap();
    assert_eq!((cache.known(1, &prompt(7)), cache.known(1, &[9; 64])), (2, 4));
    assert_eq!(cache.grow(&mut third, 9 * BLOCK), Err(Exhausted));
}
