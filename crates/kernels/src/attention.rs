//! Attention over keys and values in blocks, with an online softmax.
//!
//! A block holds sixteen positions of all heads of a layer, in f16: keys as `[head][dim][16]`, so that sixteen scores
//! are one register, values as `[head][16][dim]`. A chunk is four blocks, from a position that is a multiple of 64.
//!
//! A query meets its chunks in order, and what it computes for a chunk does not depend on who else meets it. So a
//! chunk that many sequences share is read once for all of them (Hydragen, arXiv 2402.05099, merges such segments by
//! their log-sum-exp; the online softmax does it chunk by chunk), and a sequence gets the same bits alone, in a batch,
//! from a cached prefix or from a prefill cut into pieces.
#![expect(unsafe_code, reason = "vector kernels over raw tiles of memory")]

use std::ops::Range;

use half::f16;

use crate::{
    Buffer, Isa, Pool, TILE,
    float::{Half, tiles},
    format::SendPtr,
    isa::dispatch,
    simd::{self, Simd},
};

/// Positions of a block.
pub const BLOCK: usize = 16;
/// Blocks of a chunk.
const CHUNK_BLOCKS: usize = 4;
/// Positions of a chunk.
const CHUNK: usize = BLOCK * CHUNK_BLOCKS;
/// Tokens that one piece of work takes through the chunks together.
const GROUP_TOKENS: usize = 32;

/// Sizes of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Layers.
    pub layers: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Numbers of a head.
    pub head_dim: usize,
    /// Blocks of 16 positions.
    pub blocks: usize,
}

impl KvShape {
    fn padded(&self) -> usize {
        self.head_dim.next_multiple_of(TILE)
    }

    /// Bytes of one block over all layers, keys and values.
    pub fn block_bytes(&self) -> usize {
        self.layers * self.kv_heads * BLOCK * (self.head_dim + self.padded()) * 2
    }
}

/// Keys and values of all sequences. Memory is taken from the system when a block is first written.
#[derive(Debug)]
pub struct KvStore {
    shape: KvShape,
    keys: Vec<Buffer>,
    values: Vec<Buffer>,
}

impl KvStore {
    /// An empty store.
    pub fn new(shape: KvShape) -> Self {
        let keys = shape.blocks * shape.kv_heads * shape.head_dim * BLOCK * 2;
        let values = shape.blocks * shape.kv_heads * shape.padded() * BLOCK * 2;
        Self {
            shape,
            keys: (0..shape.layers).map(|_| Buffer::zeroed(keys)).collect(),
            values: (0..shape.layers).map(|_| Buffer::zeroed(values)).collect(),
        }
    }

    /// Its sizes.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// Writes keys and values `[kv_heads * head_dim]` of one position.
    ///
    /// Different positions may be written by different threads at once.
    ///
    /// # Panics
    /// When block or slot are not there.
    pub fn write(&self, layer: usize, block: u32, slot: usize, keys: &[f32], values: &[f32]) {
        let KvShape { kv_heads, head_dim, blocks, .. } = self.shape;
        assert!((block as usize) < blocks && slot < BLOCK, "a block of the store");
        assert!(keys.len() == kv_heads * head_dim && values.len() == keys.len(), "all heads");
        let padded = self.shape.padded();
        let key_start = self.keys[layer].as_mut_ptr().cast::<u16>();
        let value_start = self.values[layer].as_mut_ptr().cast::<u16>();
        for head in 0..kv_heads {
            let tile = block as usize * kv_heads + head;
            for i in 0..head_dim {
                let (k, v) = (keys[head * head_dim + i], values[head * head_dim + i]);
                // SAFETY: inside the buffers by the assertions; a position is written by one thread.
                unsafe {
                    *key_start.add((tile * head_dim + i) * BLOCK + slot) = f16::from_f32(k).to_bits();
                    *value_start.add((tile * BLOCK + slot) * padded + i) = f16::from_f32(v).to_bits();
                }
            }
        }
    }

    /// Copies a block in all layers: the tail that a forked sequence writes on.
    ///
    /// # Panics
    /// When a block is not there.
    pub fn copy(&mut self, from: u32, to: u32) {
        for buffer in self.keys.iter_mut().chain(&mut self.values) {
            let size = buffer.len() / self.shape.blocks;
            let at = from as usize * size;
            buffer.bytes_mut().copy_within(at..at + size, to as usize * size);
        }
    }

    unsafe fn key(&self, layer: usize, block: u32, head: usize) -> *const Half {
        let at = (block as usize * self.shape.kv_heads + head) * self.shape.head_dim * BLOCK;
        // SAFETY: the plan names blocks of this store.
        unsafe { self.keys[layer].as_ptr().cast::<Half>().add(at) }
    }

    unsafe fn value(&self, layer: usize, block: u32, head: usize) -> *const Half {
        let at = (block as usize * self.shape.kv_heads + head) * self.shape.padded() * BLOCK;
        // SAFETY: the plan names blocks of this store.
        unsafe { self.values[layer].as_ptr().cast::<Half>().add(at) }
    }
}

/// Tokens that go through chunks together.
#[derive(Debug)]
pub struct Group {
    /// Index in the batch, and position in its sequence.
    rows: Vec<(u32, u32)>,
    chunks: Vec<Chunk>,
}

/// Four blocks and who looks at them.
#[derive(Debug)]
pub struct Chunk {
    first: u32,
    blocks: [u32; CHUNK_BLOCKS],
    /// Range of the group's rows.
    rows: Range<u32>,
}

/// Which token of a batch looks at which blocks.
#[derive(Debug, Default)]
pub struct Plan {
    groups: Vec<Group>,
}

impl Plan {
    /// A plan for tokens at `(position, block table of its sequence)`. A token sees the positions up to its own.
    ///
    /// # Panics
    /// When a table is too short for its token's position.
    pub fn new(tokens: &[(u32, &[u32])]) -> Self {
        let mut order: Vec<u32> = (0..tokens.len() as u32).collect();
        // Beside each other: who shares most of its beginning.
        order.sort_by(|a, b| {
            let ((at, left), (bt, right)) = (tokens[*a as usize], tokens[*b as usize]);
            // Tokens of one sequence have the very same table.
            let tables = if std::ptr::eq(left, right) { std::cmp::Ordering::Equal } else { left.cmp(right) };
            tables.then(at.cmp(&bt)).then(a.cmp(b))
        });
        let groups = order
            .chunks(GROUP_TOKENS)
            .map(|members| {
                let rows: Vec<(u32, u32)> = members.iter().map(|t| (*t, tokens[*t as usize].0)).collect();
                let last = rows.iter().map(|(_, position)| *position).max().unwrap_or(0);
                let mut chunks: Vec<Chunk> = Vec::new();
                for first in (0..=last).step_by(CHUNK) {
                    for (row, (token, position)) in rows.iter().enumerate().filter(|(_, (_, at))| *at >= first) {
                        let table = tokens[*token as usize].1;
                        let start = first as usize / BLOCK;
                        assert!(table.len() > *position as usize / BLOCK, "a block for each position");
                        let blocks = std::array::from_fn(|i| table.get(start + i).copied().unwrap_or(u32::MAX));
                        let row = row as u32;
                        match chunks.last_mut() {
                            Some(open) if open.first == first && open.rows.end == row && open.blocks == blocks => {
                                open.rows.end = row + 1;
                            }
                            _ => chunks.push(Chunk { first, blocks, rows: row..row + 1 }),
                        }
                    }
                }
                Group { rows, chunks }
            })
            .collect();
        Self { groups }
    }

    /// Chunks read of one head, over all groups: what sharing saves shows here.
    pub fn chunk_reads(&self) -> usize {
        self.groups.iter().map(|g| g.chunks.len()).sum()
    }
}

/// What differs between layers and models.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Instructions.
    pub isa: Isa,
    /// Which layer of the store.
    pub layer: usize,
    /// Heads of queries.
    pub heads: usize,
    /// Scores are multiplied by this.
    pub scale: f32,
    /// How many positions back a token sees, itself included; all where `None`.
    pub window: Option<usize>,
}

/// `softmax(q kᵀ) v` for every token of the plan. `q` is `[tokens, stride]`, its first `heads * head_dim` columns the
/// queries; `out` is `[tokens, heads * head_dim]`.
///
/// # Panics
/// When the shapes do not fit.
pub fn attend(attention: Attention, kv: &KvStore, plan: &Plan, q: &[f32], stride: usize, out: &mut [f32], pool: &Pool) {
    let KvShape { kv_heads, head_dim, .. } = kv.shape;
    let width = attention.heads * head_dim;
    let tokens = plan.groups.iter().map(|g| g.rows.len()).sum::<usize>();
    assert!(stride >= width && q.len() == tokens * stride && out.len() == tokens * width, "a query for each token");
    assert_eq!(attention.heads % kv_heads, 0, "heads share keys evenly");
    let out = SendPtr(out.as_mut_ptr());
    let isa = attention.isa;
    pool.run(plan.groups.len() * kv_heads, |piece| {
        let job = Job { attention, kv, group: &plan.groups[piece / kv_heads], head: piece % kv_heads, q, stride, out };
        // SAFETY: detected instructions; a piece writes its own heads of its own tokens.
        unsafe { dispatch!(isa, work(job: Job<'_>)) }
    });
}

#[derive(Clone, Copy)]
struct Job<'a> {
    attention: Attention,
    kv: &'a KvStore,
    group: &'a Group,
    head: usize,
    q: &'a [f32],
    stride: usize,
    out: SendPtr<f32>,
}

/// What a piece knows of its query vectors so far.
struct State {
    most: Vec<f32>,
    total: Vec<f32>,
    /// `[vector][padded head dim]`.
    sums: Vec<f32>,
}

#[inline(always)]
unsafe fn work<S: Simd>(job: Job<'_>) {
    let KvShape { kv_heads, head_dim, .. } = job.kv.shape;
    let padded = job.kv.shape.padded();
    let share = job.attention.heads / kv_heads;
    let vectors = job.group.rows.len() * share;
    let mut state =
        State { most: vec![f32::NEG_INFINITY; vectors], total: vec![0.0; vectors], sums: vec![0.0; vectors * padded] };
    for (c, chunk) in job.group.chunks.iter().enumerate() {
        let (mut at, end) = (chunk.rows.start as usize * share, chunk.rows.end as usize * share);
        // Who is first waits for memory, and asks for what comes next.
        let next = job.group.chunks.get(c + 1).unwrap_or(chunk);
        // SAFETY: vectors of the chunk's rows; the instructions are the caller's.
        unsafe {
            at += some::<S, true>(&job, chunk, next, at, end, &mut state);
            while at < end {
                at += some::<S, false>(&job, chunk, next, at, end, &mut state);
            }
        }
    }
    for vector in 0..vectors {
        let token = job.group.rows[vector / share].0 as usize;
        let head = job.head * share + vector % share;
        // A token sees itself at least, so the total is not zero.
        let inverse = 1.0 / state.total[vector];
        for (i, x) in state.sums[vector * padded..][..head_dim].iter().enumerate() {
            // SAFETY: this head of this token belongs to this piece.
            unsafe { *job.out.at((token * job.attention.heads + head) * head_dim + i) = x * inverse };
        }
    }
}

/// As many vectors of `at..end` as a kernel takes meet a chunk; gives how many.
#[inline(always)]
unsafe fn some<S: Simd, const STREAM: bool>(
    job: &Job<'_>,
    chunk: &Chunk,
    next: &Chunk,
    at: usize,
    end: usize,
    state: &mut State,
) -> usize {
    // SAFETY: the caller's.
    unsafe {
        match end - at {
            0 => 0,
            left if S::TOKENS >= 8 && left >= 8 => vectors_of::<S, 8, 2, STREAM>(job, chunk, next, at, state),
            left if S::TOKENS >= 8 && left >= 4 => vectors_of::<S, 4, 4, STREAM>(job, chunk, next, at, state),
            1 => vectors_of::<S, 1, 4, STREAM>(job, chunk, next, at, state),
            _ => vectors_of::<S, 2, 4, STREAM>(job, chunk, next, at, state),
        }
    }
}

/// `M` query vectors from `at` meet a chunk, `R` tiles of keys or values at a time. While keys are read their values are
/// asked for, and while these are read the keys of the `next` chunk.
#[inline(always)]
unsafe fn vectors_of<S: Simd, const M: usize, const R: usize, const STREAM: bool>(
    job: &Job<'_>,
    chunk: &Chunk,
    next: &Chunk,
    at: usize,
    state: &mut State,
) -> usize {
    let KvShape { kv_heads, head_dim, .. } = job.kv.shape;
    let padded = job.kv.shape.padded();
    let share = job.attention.heads / kv_heads;
    let mut scores = [[0f32; CHUNK]; M];
    let mut seen = [(0usize, 0usize); M];
    let q: [*const f32; M] = std::array::from_fn(|m| {
        let (token, position) = job.group.rows[(at + m) / share];
        let until = (position as usize + 1 - chunk.first as usize).min(CHUNK);
        let from = job.attention.window.map_or(0, |w| (position as usize + 1).saturating_sub(w));
        seen[m] = (from.saturating_sub(chunk.first as usize).min(until), until);
        let head = job.head * share + (at + m) % share;
        &raw const job.q[token as usize * job.stride + head * head_dim]
    });
    if seen.iter().all(|(from, until)| from == until) {
        return M;
    }
    let blocks = seen.iter().map(|(_, until)| until.div_ceil(BLOCK)).max().unwrap_or(0);
    // SAFETY: every block that a row sees is in the store; scores and sums are local.
    unsafe {
        let scale = S::splat(job.attention.scale);
        let mut b = 0;
        while b < blocks {
            if blocks - b >= R {
                let keys: [*const Half; R] =
                    std::array::from_fn(|r| job.kv.key(job.attention.layer, chunk.blocks[b + r], job.head));
                let values: [*const Half; R] =
                    std::array::from_fn(|r| job.kv.value(job.attention.layer, chunk.blocks[b + r], job.head));
                let mut dots = [[S::splat(0.0); M]; R];
                tiles::<S, Half, R, M, STREAM>(keys, BLOCK, values, q, head_dim, &mut dots);
                for (r, dots) in dots.iter().enumerate() {
                    for (m, dot) in dots.iter().enumerate() {
                        S::store(scores[m].as_mut_ptr().add((b + r) * BLOCK), S::mul(*dot, scale));
                    }
                }
                b += R;
            } else {
                let mut dots = [[S::splat(0.0); M]; 1];
                let block = chunk.blocks[b];
                tiles::<S, Half, 1, M, STREAM>(
                    [job.kv.key(job.attention.layer, block, job.head)],
                    BLOCK,
                    [job.kv.value(job.attention.layer, block, job.head)],
                    q,
                    head_dim,
                    &mut dots,
                );
                for (m, dot) in dots[0].iter().enumerate() {
                    S::store(scores[m].as_mut_ptr().add(b * BLOCK), S::mul(*dot, scale));
                }
                b += 1;
            }
        }
        let mut shrink = [1f32; M];
        for m in 0..M {
            shrink[m] = soften::<S>(&mut scores[m], seen[m], &mut state.most[at + m], &mut state.total[at + m]);
        }
        let p: [*const f32; M] = std::array::from_fn(|m| scores[m].as_ptr());
        let sums = state.sums.as_mut_ptr().add(at * padded);
        let mut i = 0;
        while i < padded {
            if padded - i >= R * TILE {
                weigh::<S, M, R, STREAM>(job, (chunk, next), blocks, p, &shrink, sums, i);
                i += R * TILE;
            } else {
                weigh::<S, M, 1, STREAM>(job, (chunk, next), blocks, p, &shrink, sums, i);
                i += TILE;
            }
        }
    }
    M
}

/// Scores to weights `e^(score - most)`, 0 where the token does not look; gives what older sums shrink by.
#[inline(always)]
unsafe fn soften<S: Simd>(scores: &mut [f32; CHUNK], seen: (usize, usize), most: &mut f32, total: &mut f32) -> f32 {
    let (from, until) = seen;
    if from == until {
        scores.fill(0.0);
        return 1.0;
    }
    scores[..from].fill(f32::NEG_INFINITY);
    scores[until..].fill(f32::NEG_INFINITY);
    // SAFETY: the chunk's scores; the instructions are the caller's.
    unsafe {
        let at = scores.as_ptr();
        let low = S::max(S::load(at), S::load(at.add(TILE)));
        let high = S::max(S::load(at.add(2 * TILE)), S::load(at.add(3 * TILE)));
        let peak = fold::<S>(S::max(low, high), |a, b| if b > a { b } else { a });
        let new = if peak > *most { peak } else { *most };
        let mut old = [0f32; TILE];
        S::store(old.as_mut_ptr(), simd::exp::<S>(S::splat(*most - new)));
        let shift = S::splat(-new);
        for i in 0..CHUNK_BLOCKS {
            let at = scores.as_mut_ptr().add(i * TILE);
            S::store(at, simd::exp::<S>(S::add(S::load(at), shift)));
        }
        // `exp` has no zero; what a token does not see must weigh nothing at all.
        scores[..from].fill(0.0);
        scores[until..].fill(0.0);
        let at = scores.as_ptr();
        let low = S::add(S::load(at), S::load(at.add(TILE)));
        let high = S::add(S::load(at.add(2 * TILE)), S::load(at.add(3 * TILE)));
        let sum = fold::<S>(S::add(low, high), |a, b| a + b);
        *total = *total * old[0] + sum;
        *most = new;
        old[0]
    }
}

/// Folds sixteen lanes in a fixed order.
#[inline(always)]
unsafe fn fold<S: Simd>(x: S::F, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [0f32; TILE];
    // SAFETY: sixteen lanes.
    unsafe { S::store(lanes.as_mut_ptr(), x) };
    let mut width = TILE;
    while width > 1 {
        width /= 2;
        for i in 0..width {
            lanes[i] = f(lanes[i], lanes[i + width]);
        }
    }
    lanes[0]
}

/// Adds weighted values to the sums, `R` times sixteen numbers of the head from `i`.
#[inline(always)]
unsafe fn weigh<S: Simd, const M: usize, const R: usize, const STREAM: bool>(
    job: &Job<'_>,
    (chunk, next): (&Chunk, &Chunk),
    blocks: usize,
    p: [*const f32; M],
    shrink: &[f32; M],
    sums: *mut f32,
    i: usize,
) {
    let padded = job.kv.shape.padded();
    // SAFETY: the caller's.
    unsafe {
        let mut acc = [[S::splat(0.0); M]; R];
        for (r, acc) in acc.iter_mut().enumerate() {
            for (m, acc) in acc.iter_mut().enumerate() {
                *acc = S::mul(S::load(sums.add(m * padded + i + r * TILE)), S::splat(shrink[m]));
            }
        }
        for b in 0..blocks {
            let values = job.kv.value(job.attention.layer, chunk.blocks[b], job.head).add(i);
            // A block of keys is as large as one of values: as much of it as is read of those.
            let next = job.kv.key(job.attention.layer, *next.blocks.get(b).unwrap_or(&chunk.blocks[b]), job.head);
            let (mut w, mut keys, mut x) = ([values; R], [next; R], p);
            for r in 0..R {
                w[r] = values.add(r * TILE);
                keys[r] = next.wrapping_add((i + r * TILE) * BLOCK);
            }
            for x in &mut x {
                *x = x.add(b * BLOCK);
            }
            tiles::<S, Half, R, M, STREAM>(w, padded, keys, x, BLOCK, &mut acc);
        }
        for (r, acc) in acc.iter().enumerate() {
            for (m, acc) in acc.iter().enumerate() {
                S::store(sums.add(m * padded + i + r * TILE), *acc);
            }
        }
    }
}

#[cfg(test)]
mod tests;
