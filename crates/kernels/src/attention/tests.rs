use rand::{Rng as _, SeedableRng as _, rngs::StdRng, seq::SliceRandom as _};

use super::*;

struct World {
    kv: KvStore,
    attention: Attention,
    /// Block tables.
    tables: Vec<Vec<u32>>,
    /// `[sequence][position][kv_heads * head_dim]`, rounded to f16.
    keys: Vec<Vec<Vec<f32>>>,
    values: Vec<Vec<Vec<f32>>>,
}

const KV_HEADS: usize = 2;
const HEADS: usize = 6;

/// Sequences of random lengths; all share their first `shared` positions.
fn world(head_dim: usize, lengths: &[usize], shared: usize, window: Option<usize>, rng: &mut StdRng) -> World {
    let kv = KvStore::new(KvShape { layers: 2, kv_heads: KV_HEADS, head_dim, blocks: 400 });
    let mut free: Vec<u32> = (0..400).collect();
    free.shuffle(rng);
    let mut row = |_| (0..KV_HEADS * head_dim).map(|_| f16::from_f32(rng.random_range(-2f32..2.0)).to_f32()).collect();
    let (mut tables, mut keys, mut values) = (vec![], vec![], vec![]);
    let prefix: Vec<u32> = (0..shared / BLOCK).map(|_| free.pop().unwrap()).collect();
    let (shared_keys, shared_values): (Vec<Vec<f32>>, Vec<Vec<f32>>) =
        ((0..shared).map(&mut row).collect(), (0..shared).map(&mut row).collect());
    for length in lengths {
        let mut table = prefix.clone();
        table.extend((prefix.len()..length.div_ceil(BLOCK)).map(|_| free.pop().unwrap()));
        let mut k = shared_keys.clone();
        let mut v = shared_values.clone();
        k.extend((shared..*length).map(&mut row));
        v.extend((shared..*length).map(&mut row));
        for at in 0..*length {
            kv.write(1, table[at / BLOCK], at % BLOCK, &k[at], &v[at]);
        }
        tables.push(table);
        keys.push(k);
        values.push(v);
    }
    let attention =
        Attention { isa: Isa::Portable, layer: 1, heads: HEADS, scale: (head_dim as f32).powf(-0.5), window };
    World { kv, attention, tables, keys, values }
}

fn plainly(world: &World, sequence: usize, position: usize, head: usize, q: &[f32]) -> Vec<f64> {
    let d = world.kv.shape.head_dim;
    let kv_head = head / (HEADS / KV_HEADS);
    let from = world.attention.window.map_or(0, |w| (position + 1).saturating_sub(w));
    let part = |rows: &[Vec<f32>], at: usize| rows[at][kv_head * d..][..d].to_vec();
    let scores: Vec<f64> = (from..=position)
        .map(|at| {
            let dot: f64 = part(&world.keys[sequence], at).iter().zip(q).map(|(k, q)| f64::from(k * q)).sum();
            dot * f64::from(world.attention.scale)
        })
        .collect();
    let most = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let total: f64 = scores.iter().map(|s| (s - most).exp()).sum();
    let mut out = vec![0f64; d];
    for (i, s) in scores.iter().enumerate() {
        for (o, v) in out.iter_mut().zip(part(&world.values[sequence], from + i)) {
            *o += (s - most).exp() / total * f64::from(v);
        }
    }
    out
}

fn run(isa: Isa, world: &World, tokens: &[(usize, usize)], q: &[f32], pool: &Pool) -> Vec<f32> {
    let rows: Vec<_> = tokens.iter().map(|(s, at)| (*at as u32, world.tables[*s].as_slice())).collect();
    let mut out = vec![f32::NAN; q.len()];
    let attention = Attention { isa, ..world.attention };
    attend(attention, &world.kv, &Plan::new(&rows), q, HEADS * world.kv.shape.head_dim, &mut out, pool);
    out
}

#[test]
fn attention_is_that_of_the_formula_and_the_same_in_any_batch() {
    let mut rng = StdRng::seed_from_u64(3);
    let pool = Pool::new(3);
    for (head_dim, window) in [(32, None), (128, None), (24, Some(40)), (64, Some(100))] {
        let world = world(head_dim, &[1, 17, 64, 65, 200, 333, 150, 151], 0, window, &mut rng);
        // Last positions, and the run of a prefill.
        let mut tokens: Vec<(usize, usize)> = world.keys.iter().enumerate().map(|(s, k)| (s, k.len() - 1)).collect();
        tokens.extend((90..170).map(|at| (4, at)));
        let width = HEADS * head_dim;
        let q: Vec<f32> = (0..tokens.len() * width).map(|_| rng.random_range(-1f32..1.0)).collect();
        for isa in Isa::available() {
            let got = run(isa, &world, &tokens, &q, &pool);
            for (t, (sequence, position)) in tokens.iter().enumerate() {
                for head in 0..HEADS {
                    let at = t * width + head * head_dim;
                    let want = plainly(&world, *sequence, *position, head, &q[at..at + head_dim]);
                    for (a, b) in got[at..].iter().zip(&want) {
                        assert!(
                            (f64::from(*a) - b).abs() < 2e-5,
                            "{isa:?} dim {head_dim} token {t} head {head}: {a} {b}"
                        );
                    }
                }
                let alone = run(isa, &world, &[(*sequence, *position)], &q[t * width..(t + 1) * width], &pool);
                assert_eq!(alone, got[t * width..(t + 1) * width], "{isa:?} token {t} alone");
            }
        }
    }
}

#[test]
fn a_shared_prefix_is_read_once() {
    let mut rng = StdRng::seed_from_u64(4);
    let pool = Pool::new(2);
    let world = world(32, &[300; 20], 256, None, &mut rng);
    let tokens: Vec<_> = (0..20).map(|s| (s, 299)).collect();
    let rows: Vec<_> = tokens.iter().map(|(s, at)| (*at as u32, world.tables[*s].as_slice())).collect();
    assert_eq!(Plan::new(&rows).chunk_reads(), 4 + 20);
    let q: Vec<f32> = (0..20 * HEADS * 32).map(|_| rng.random_range(-1f32..1.0)).collect();
    let got = run(Isa::detect(), &world, &tokens, &q, &pool);
    let alone: Vec<f32> = tokens
        .iter()
        .enumerate()
        .flat_map(|(t, token)| run(Isa::detect(), &world, &[*token], &q[t * HEADS * 32..(t + 1) * HEADS * 32], &pool))
        .collect();
    assert_eq!(got, alone);
}

#[test]
fn a_copied_block_is_the_same() {
    let mut rng = StdRng::seed_from_u64(5);
    let pool = Pool::new(1);
    let mut world = world(32, &[30], 0, None, &mut rng);
    let q: Vec<f32> = (0..HEADS * 32).map(|_| rng.random_range(-1f32..1.0)).collect();
    let before = run(Isa::detect(), &world, &[(0, 29)], &q, &pool);
    let to = (0..400).find(|b| !world.tables[0].contains(b)).unwrap();
    world.kv.copy(world.tables[0][1], to);
    world.tables[0][1] = to;
    assert_eq!(run(Isa::detect(), &world, &[(0, 29)], &q, &pool), before);
}
