//! `x [tokens, cols] × weights [rows, cols]ᵀ → y [tokens, rows]`.
//!
//! Quantized weights: a unit (16 rows × 256 columns) is expanded once into cache, to bytes and float scales, and then
//! meets all tokens. One expansion and one integer kernel therefore serve every format and every batch. At one token
//! the machine waits for memory and the expansion is hidden; from a few tokens on it is shared.
#![expect(unsafe_code, reason = "vector kernels over raw tiles of memory")]

use std::mem::MaybeUninit;

use crate::{
    Format, Isa, Packed, Pool, TILE, brain,
    float::{self, Element, Half},
    format::{K_HEAD, Q6_HEAD, SUB, SendPtr, UNIT, scale_bytes},
    isa::dispatch,
    quantize::{self, Quantized, RECORD},
    simd::Simd,
};

/// Inputs of one or several matmuls, `[tokens, cols]`: the floats, and their quantized form where a matmul wants it.
/// Made for one level of instructions.
#[derive(Debug)]
pub struct Activations {
    isa: Isa,
    floats: Vec<f32>,
    cols: usize,
    quantized: Quantized,
    is_quantized: bool,
    /// The same as pairs of brain floats, where a matmul wants them.
    pairs: Vec<u32>,
    is_paired: bool,
}

impl Activations {
    /// Room for activations of a machine with `isa`.
    pub fn new(isa: Isa) -> Self {
        Self {
            isa,
            floats: Vec::new(),
            cols: 1,
            quantized: Quantized::empty(tokens_of(isa)),
            is_quantized: false,
            pairs: Vec::new(),
            is_paired: false,
        }
    }

    /// Room for `tokens × cols` numbers, to be written; what was there is gone.
    pub fn reset(&mut self, tokens: usize, cols: usize) -> &mut [f32] {
        self.cols = cols;
        (self.is_quantized, self.is_paired) = (false, false);
        self.floats.resize(tokens * cols, 0.0);
        &mut self.floats
    }

    /// The numbers, `[tokens, cols]`.
    pub fn floats(&self) -> &[f32] {
        &self.floats
    }

    /// Tokens held.
    pub fn tokens(&self) -> usize {
        self.floats.len() / self.cols
    }

    fn quantize(&mut self, pool: &Pool) {
        if !std::mem::replace(&mut self.is_quantized, true) {
            self.quantized.fill(self.isa, &self.floats, self.cols, pool);
        }
    }
}

impl Activations {
    fn pair(&mut self, pool: &Pool) {
        if std::mem::replace(&mut self.is_paired, true) {
            return;
        }
        let (tokens, half) = (self.tokens(), self.cols.div_ceil(2));
        self.pairs.resize(tokens * half, 0);
        let (x, cols) = (&self.floats, self.cols);
        pool.rows(&mut self.pairs, half, 16, |t, row| brain::pair(&x[t * cols..][..cols], row));
    }
}

fn tokens_of(isa: Isa) -> usize {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => crate::simd::avx512::Lanes::TOKENS,
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => crate::simd::avx2::Lanes::TOKENS,
        _ => crate::simd::portable::Lanes::TOKENS,
    }
}

/// Where a matmul's results go: columns `at..at + rows` of `y [tokens, cols]`.
#[derive(Debug)]
pub struct Target<'a> {
    /// All numbers.
    pub y: &'a mut [f32],
    /// Width of a row of `y`.
    pub cols: usize,
    /// First column.
    pub at: usize,
    /// Whether results are added to what is there.
    pub add: bool,
}

impl<'a> Target<'a> {
    /// The whole of `y [tokens, cols]`.
    pub fn whole(y: &'a mut [f32], cols: usize) -> Self {
        Self { y, cols, at: 0, add: false }
    }

    /// Adds to the whole of `y [tokens, cols]`.
    pub fn add(y: &'a mut [f32], cols: usize) -> Self {
        Self { y, cols, at: 0, add: true }
    }
}

/// `x × weightsᵀ`, with the instructions that `x` was made for.
///
/// # Panics
/// When the shapes do not fit.
pub fn matmul(weights: &Packed, x: &mut Activations, target: Target<'_>, pool: &Pool) {
    let (isa, tokens) = (x.isa, x.tokens());
    assert_eq!(x.cols, weights.cols(), "inputs are as wide as the matrix");
    assert!(target.at + weights.rows() <= target.cols, "outputs have room for the rows of the matrix");
    assert_eq!(target.y.len(), tokens * target.cols, "outputs for each token");
    let at = target.at.min(target.y.len());
    let y = SendPtr(target.y[at..].as_mut_ptr());
    let out = Out { y, stride: target.cols, rows: weights.rows(), add: target.add };
    let tiles = weights.rows().div_ceil(TILE);
    if weights.format() == Format::Bf16 && isa == Isa::Avx512 && brain::available() {
        x.pair(pool);
        let (x, half) = (&x.pairs, weights.cols().div_ceil(2));
        pool.ranges(tiles, FLOAT_TILES_MAX, |range| {
            // SAFETY: just detected; tiles and tokens are inside their matrices; ranges are disjoint.
            unsafe { brain::tiles(weights, x, half, range, out) };
        });
    } else if weights.format().is_float() {
        let x = &x.floats;
        pool.ranges(tiles, FLOAT_TILES_MAX, |range| {
            // SAFETY: `isa` was detected; tiles and tokens are inside their matrices; ranges are disjoint.
            unsafe { dispatch!(isa, float_tiles(weights: &Packed, x: &[f32], range: std::ops::Range<usize>, out: Out)) }
        });
    } else {
        x.quantize(pool);
        let x = &x.quantized;
        pool.ranges(tiles, TILES_MAX, |range| {
            // SAFETY: as above.
            unsafe {
                dispatch!(isa, quantized_tiles(weights: &Packed, x: &Quantized, range: std::ops::Range<usize>, out: Out))
            }
        });
    }
}

/// Where results go.
#[derive(Clone, Copy)]
pub(crate) struct Out {
    y: SendPtr<f32>,
    stride: usize,
    rows: usize,
    add: bool,
}

impl Out {
    /// Sixteen results of token `token`.
    ///
    /// # Safety
    /// The instructions of `S`; the tile and the token are inside; nobody else writes them.
    #[inline(always)]
    pub unsafe fn put<S: Simd>(self, tile: usize, token: usize, sums: S::F) {
        // SAFETY: the caller's.
        unsafe {
            let at = self.y.at(token * self.stride + tile * TILE);
            let room = self.rows - tile * TILE;
            if room >= TILE {
                let sums = if self.add { S::add(S::load(at), sums) } else { sums };
                S::store(at, sums);
            } else {
                let mut all = [0f32; TILE];
                S::store(all.as_mut_ptr(), sums);
                for (i, x) in all[..room].iter().enumerate() {
                    let at = at.add(i);
                    *at = if self.add { *at + x } else { *x };
                }
            }
        }
    }
}

// ---- floats ----

/// Columns that are asked for ahead of the one that is multiplied.
const COLS_AHEAD: usize = 64;

/// Tiles that a float kernel works on at once.
const FLOAT_TILES_MAX: usize = 4;

#[inline(always)]
unsafe fn float_tiles<S: Simd>(weights: &Packed, x: &[f32], range: std::ops::Range<usize>, out: Out) {
    // SAFETY: the caller's.
    unsafe {
        match weights.format() {
            Format::F32 => float_range::<S, f32>(weights, x, range, out),
            Format::F16 => float_range::<S, Half>(weights, x, range, out),
            _ => brain_range::<S>(weights, x, range, out),
        }
    }
}

#[inline(always)]
unsafe fn float_range<S: Simd, E: Element>(weights: &Packed, x: &[f32], range: std::ops::Range<usize>, out: Out) {
    let tokens = x.len() / weights.cols();
    let mut tile = range.start;
    // SAFETY: the caller's.
    unsafe {
        while tile < range.end {
            // Few tokens need more tiles at once: a sum is a chain of dependent additions.
            let at_once = if tokens <= 2 { 4 } else { 2 };
            if range.end - tile >= at_once {
                if at_once == 4 {
                    float_tokens::<S, E, 4, 2>(weights, x, tile, out);
                } else if S::TOKENS >= 8 {
                    float_tokens::<S, E, 2, 8>(weights, x, tile, out);
                } else {
                    float_tokens::<S, E, 2, 2>(weights, x, tile, out);
                }
                tile += at_once;
            } else {
                float_tokens::<S, E, 1, 4>(weights, x, tile, out);
                tile += 1;
            }
        }
    }
}

/// Brain floats where the machine cannot multiply them: widened.
#[inline(always)]
unsafe fn brain_range<S: Simd>(weights: &Packed, x: &[f32], range: std::ops::Range<usize>, out: Out) {
    let tokens = x.len() / weights.cols();
    for tile in range {
        let mut token = 0;
        // SAFETY: the caller's.
        unsafe {
            while token < tokens {
                if tokens - token >= 4 {
                    brain_kernel::<S, 4>(weights, x, tile, token, out);
                    token += 4;
                } else {
                    brain_kernel::<S, 1>(weights, x, tile, token, out);
                    token += 1;
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn brain_kernel<S: Simd, const M: usize>(weights: &Packed, x: &[f32], tile: usize, token: usize, out: Out) {
    let cols = weights.cols();
    // SAFETY: the caller's; an odd last column has a pair of its own.
    unsafe {
        let mut sums = [[S::splat(0.0); M]; 1];
        let at = weights.tile(tile).cast::<u32>();
        let mut rows = [x.as_ptr(); M];
        for (m, row) in rows.iter_mut().enumerate() {
            *row = x.as_ptr().add((token + m) * cols);
        }
        float::pairs::<S, 1, M>([at], rows, cols / 2, &mut sums);
        for m in 0..M {
            if cols % 2 == 1 {
                let (last, _) = S::load_pairs(at.add(cols / 2 * TILE));
                sums[0][m] = S::fma(last, S::splat(*rows[m].add(cols - 1)), sums[0][m]);
            }
            out.put::<S>(tile, token + m, sums[0][m]);
        }
    }
}

/// All tokens, `M` at a time, then one at a time.
#[inline(always)]
unsafe fn float_tokens<S: Simd, E: Element, const R: usize, const M: usize>(
    weights: &Packed,
    x: &[f32],
    tile: usize,
    out: Out,
) {
    let cols = weights.cols();
    let tokens = x.len() / cols;
    let w: [*const E; R] = std::array::from_fn(|r| weights.tile(tile + r).cast());
    let mut token = 0;
    // SAFETY: the caller's.
    unsafe {
        while token < tokens {
            match tokens - token {
                left if left >= M => {
                    float_kernel::<S, E, R, M>(w, x.as_ptr().add(token * cols), cols, tile, token, out);
                    token += M;
                }
                left if M > 4 && left >= 4 => {
                    float_kernel::<S, E, R, 4>(w, x.as_ptr().add(token * cols), cols, tile, token, out);
                    token += 4;
                }
                left if M > 2 && left >= 2 => {
                    float_kernel::<S, E, R, 2>(w, x.as_ptr().add(token * cols), cols, tile, token, out);
                    token += 2;
                }
                _ => {
                    float_kernel::<S, E, R, 1>(w, x.as_ptr().add(token * cols), cols, tile, token, out);
                    token += 1;
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn float_kernel<S: Simd, E: Element, const R: usize, const M: usize>(
    weights: [*const E; R],
    x: *const f32,
    cols: usize,
    tile: usize,
    token: usize,
    out: Out,
) {
    // SAFETY: the caller's.
    unsafe {
        let mut sums = [[S::splat(0.0); M]; R];
        let x = std::array::from_fn(|m| x.add(m * cols));
        float::tiles::<S, E, R, M, true>(
            weights,
            TILE,
            weights.map(|w| w.wrapping_add(COLS_AHEAD * TILE)),
            x,
            cols,
            &mut sums,
        );
        for (r, sums) in sums.iter().enumerate() {
            for (m, sum) in sums.iter().enumerate() {
                out.put::<S>(tile + r, token + m, *sum);
            }
        }
    }
}

// ---- integers ----

const Q8: u8 = 0;
const Q4: u8 = 1;
const K4: u8 = 2;
const K5: u8 = 3;
const K6: u8 = 4;

/// Tokens up to which a kernel takes quants from where they are packed, one tile at a time.
const FEW: usize = 4;
/// Units that are asked for ahead of the one that is computed.
const AHEAD: usize = 2;
/// Tiles that many tokens meet at once, at most.
const TILES_MAX: usize = 2;

/// A unit as the kernel for many tokens reads it.
#[repr(align(64))]
struct Expanded {
    /// `[8 sub-blocks][8 quads of columns][16 rows][4]`.
    quants: [u8; UNIT * TILE],
    scales: Scales,
}

/// Float scales of a unit.
#[repr(align(64))]
struct Scales {
    /// `[sub-block][16]`, or `[half of a sub-block][16]` for `Q6_K`.
    scales: [f32; UNIT / 16 * TILE],
    /// `[sub-block][16]`.
    mins: [f32; UNIT / SUB * TILE],
}

#[inline(always)]
unsafe fn quantized_tiles<S: Simd>(weights: &Packed, x: &Quantized, range: std::ops::Range<usize>, out: Out) {
    // SAFETY: the caller's.
    unsafe {
        match weights.format() {
            Format::Q8_0 => quantized_range::<S, Q8>(weights, x, range, out),
            Format::Q4_0 => quantized_range::<S, Q4>(weights, x, range, out),
            Format::Q4K => quantized_range::<S, K4>(weights, x, range, out),
            Format::Q5K => quantized_range::<S, K5>(weights, x, range, out),
            _ => quantized_range::<S, K6>(weights, x, range, out),
        }
    }
}

#[inline(always)]
unsafe fn quantized_range<S: Simd, const KIND: u8>(
    weights: &Packed,
    x: &Quantized,
    range: std::ops::Range<usize>,
    out: Out,
) {
    // SAFETY: the caller's.
    unsafe {
        match x.tokens {
            1 => range.for_each(|tile| few::<S, KIND, 1>(weights, x, tile, out)),
            2 => range.for_each(|tile| few::<S, KIND, 2>(weights, x, tile, out)),
            3 if S::TOKENS > 2 => range.for_each(|tile| few::<S, KIND, 3>(weights, x, tile, out)),
            4 if S::TOKENS > 2 => range.for_each(|tile| few::<S, KIND, FEW>(weights, x, tile, out)),
            _ => {
                let mut sums = vec![0f32; x.tokens * TILE * TILES_MAX];
                let mut tile = range.start;
                while tile < range.end {
                    if S::TILES == 2 && range.end - tile >= 2 {
                        many::<S, KIND, 2>(weights, x, tile, &mut sums, out);
                        tile += 2;
                    } else {
                        many::<S, KIND, 1>(weights, x, tile, &mut sums, out);
                        tile += 1;
                    }
                }
            }
        }
    }
}

/// Units of a row: first column and sub-blocks of each.
fn units(cols: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..cols).step_by(UNIT).map(move |col| (col, (cols - col).min(UNIT) / SUB))
}

/// One tile for `M` tokens, straight from the packed bytes.
#[inline(always)]
unsafe fn few<S: Simd, const KIND: u8, const M: usize>(weights: &Packed, x: &Quantized, tile: usize, out: Out) {
    let mut source = weights.tile(tile);
    let mut scales = MaybeUninit::<Scales>::uninit();
    // SAFETY: the caller's; units lie one after another, and so do the records of a group.
    unsafe {
        let mut sums = [[S::splat(0.0); M]; 1];
        for (col, subs) in units(weights.cols()) {
            floats::<S, KIND>(source, subs, scales.as_mut_ptr());
            let data = source.add(head_bytes(KIND, subs));
            let records = x.group(0).add(col / SUB * RECORD * M);
            let one = [(data, scales.as_ptr())];
            let bytes = weights.format().unit_bytes(subs);
            let next = Next { at: [source.wrapping_add(AHEAD * bytes)], bytes };
            unit::<S, KIND, 1, M, false>(one, subs, records, M, next, &mut sums);
            source = source.add(bytes);
        }
        for (m, sum) in sums[0].iter().enumerate() {
            out.put::<S>(tile, m, *sum);
        }
    }
}

/// `R` tiles for many tokens: each unit is expanded into the first cache and meets them all. `sums` is room.
#[inline(always)]
unsafe fn many<S: Simd, const KIND: u8, const R: usize>(
    weights: &Packed,
    x: &Quantized,
    tile: usize,
    sums: &mut [f32],
    out: Out,
) {
    // What is read of it was written for each unit.
    let mut expanded = [const { MaybeUninit::<Expanded>::uninit() }; R];
    let mut sources: [*const u8; R] = std::array::from_fn(|r| weights.tile(tile + r));
    sums.fill(0.0);
    let sums = sums.as_mut_ptr();
    // SAFETY: the caller's.
    unsafe {
        for (col, subs) in units(weights.cols()) {
            let mut both = [(sources[0], std::ptr::null::<Scales>()); R];
            let bytes = weights.format().unit_bytes(subs);
            let mut next = Next { at: sources, bytes };
            for r in 0..R {
                let to = expanded[r].as_mut_ptr();
                floats::<S, KIND>(sources[r], subs, &raw mut (*to).scales);
                let data = sources[r].add(head_bytes(KIND, subs));
                sources[r] = sources[r].add(bytes);
                next.at[r] = sources[r].wrapping_add((AHEAD - 1) * bytes);
                both[r] = ((&raw const (*to).quants).cast(), &raw const (*to).scales);
                if KIND == Q8 && S::RAISED {
                    both[r].0 = data;
                    continue;
                }
                for s in 0..subs {
                    let quads = quads::<S, KIND>(data, subs, s);
                    for (quad, x) in quads.iter().enumerate() {
                        S::store_bytes((&raw mut (*to).quants).cast::<u8>().add(s * 512 + quad * 64), *x);
                    }
                }
            }
            for first in (0..x.tokens).step_by(x.width) {
                let width = x.width.min(x.tokens - first);
                let records = x.group(first / x.width).add(col / SUB * RECORD * width);
                let mut m = 0;
                while m < width {
                    let (records, sums) = (records.add(m), sums.add((first + m) * TILE * R));
                    match width - m {
                        8 if S::TOKENS == 8 => grouped::<S, KIND, R, 8>(both, subs, records, width, next, sums),
                        1 => grouped::<S, KIND, R, 1>(both, subs, records, width, next, sums),
                        2 => grouped::<S, KIND, R, 2>(both, subs, records, width, next, sums),
                        3 if S::TOKENS > 2 => grouped::<S, KIND, R, 3>(both, subs, records, width, next, sums),
                        _ if S::TOKENS > 2 => grouped::<S, KIND, R, 4>(both, subs, records, width, next, sums),
                        _ => grouped::<S, KIND, R, 2>(both, subs, records, width, next, sums),
                    }
                    // Once is enough.
                    next.bytes = 0;
                    m += if S::TOKENS == 8 && width - m == 8 {
                        8
                    } else if S::TOKENS > 2 {
                        4
                    } else {
                        2
                    };
                }
            }
        }
        for token in 0..x.tokens {
            for r in 0..R {
                out.put::<S>(tile + r, token, S::load(sums.add((token * R + r) * TILE)));
            }
        }
    }
}

/// A unit of `R` tiles for `M` tokens whose sums `[M][R][16]` lie in memory.
#[inline(always)]
unsafe fn grouped<S: Simd, const KIND: u8, const R: usize, const M: usize>(
    tiles: [(*const u8, *const Scales); R],
    subs: usize,
    records: *const i32,
    width: usize,
    next: Next<R>,
    sums: *mut f32,
) {
    // SAFETY: the caller's.
    unsafe {
        let mut acc = [[S::splat(0.0); M]; R];
        for (r, acc) in acc.iter_mut().enumerate() {
            for (m, acc) in acc.iter_mut().enumerate() {
                *acc = S::load(sums.add((m * R + r) * TILE));
            }
        }
        unit::<S, KIND, R, M, true>(tiles, subs, records, width, next, &mut acc);
        for (r, acc) in acc.iter().enumerate() {
            for (m, acc) in acc.iter().enumerate() {
                S::store(sums.add((m * R + r) * TILE), *acc);
            }
        }
    }
}

/// Bytes in front of a unit's quants.
#[inline(always)]
fn head_bytes(kind: u8, subs: usize) -> usize {
    match kind {
        Q8 | Q4 => scale_bytes(subs),
        K4 | K5 => K_HEAD,
        _ => Q6_HEAD,
    }
}

/// Float scales of a unit.
#[inline(always)]
unsafe fn floats<S: Simd, const KIND: u8>(source: *const u8, subs: usize, to: *mut Scales) {
    // SAFETY: the caller gives a whole unit, and room.
    unsafe {
        let (scales, mins) = ((&raw mut (*to).scales).cast::<f32>(), (&raw mut (*to).mins).cast::<f32>());
        match KIND {
            Q8 | Q4 => {
                for s in 0..subs {
                    S::store(scales.add(s * TILE), S::load_f16(source.add(s * 32).cast()));
                }
            }
            K4 | K5 => {
                let (d, dmin) = (S::load_f16(source.cast()), S::load_f16(source.add(32).cast()));
                for s in 0..UNIT / SUB {
                    S::store(scales.add(s * TILE), S::mul(d, S::load_u8(source.add(64 + s * TILE))));
                    S::store(mins.add(s * TILE), S::mul(dmin, S::load_u8(source.add(192 + s * TILE))));
                }
            }
            _ => {
                let d = S::load_f16(source.cast());
                for s in 0..UNIT / 16 {
                    S::store(scales.add(s * TILE), S::mul(d, S::load_i8(source.add(64 + s * TILE))));
                }
            }
        }
    }
}

// No closures below: a closure is compiled without its caller's instructions, and where the compiler does not inline it,
// each vector instruction becomes a call.

/// The eight quads of sub-block `s`, as bytes, in order; `data` are the unit's quants.
#[inline(always)]
unsafe fn quads<S: Simd, const KIND: u8>(data: *const u8, subs: usize, s: usize) -> [S::B; 8] {
    // SAFETY: the caller gives the quants of a whole unit.
    unsafe {
        if KIND == Q8 {
            let at = data.add(s * 512);
            let mut all = [S::load_bytes(at); 8];
            for (quad, x) in all.iter_mut().enumerate() {
                *x = S::load_bytes(at.add(quad * 64));
                if !S::RAISED {
                    *x = S::xor(*x, 0x80);
                }
            }
            return all;
        }
        let at = data.add(s * 256);
        let mut q = [S::load_bytes(at); 8];
        for i in 0..4 {
            let both = S::load_bytes(at.add(i * 64));
            q[i] = S::and(both, 15);
            q[4 + i] = S::and(S::shr::<4>(both), 15);
        }
        if KIND == K5 {
            let fifth = S::load_bytes(data.add(subs * 256 + s * 64));
            q[0] = S::or(q[0], S::shl::<4>(S::and(fifth, 1)));
            q[1] = S::or(q[1], S::shl::<3>(S::and(fifth, 2)));
            q[2] = S::or(q[2], S::shl::<2>(S::and(fifth, 4)));
            q[3] = S::or(q[3], S::shl::<1>(S::and(fifth, 8)));
            q[4] = S::or(q[4], S::and(fifth, 16));
            q[5] = S::or(q[5], S::shr::<1>(S::and(fifth, 32)));
            q[6] = S::or(q[6], S::shr::<2>(S::and(fifth, 64)));
            q[7] = S::or(q[7], S::shr::<3>(S::and(fifth, 128)));
        }
        if KIND == K6 {
            let at = data.add(subs * 256 + s * 128);
            for i in 0..2 {
                let upper = S::load_bytes(at.add(i * 64));
                q[i] = S::or(q[i], S::shl::<4>(S::and(upper, 3)));
                q[2 + i] = S::or(q[2 + i], S::shl::<2>(S::and(upper, 12)));
                q[4 + i] = S::or(q[4 + i], S::and(upper, 48));
                q[6 + i] = S::or(q[6 + i], S::shr::<2>(S::and(upper, 192)));
            }
        }
        q
    }
}

/// One part of a sub-block's record, as a float of token `m`.
#[inline(always)]
unsafe fn float<S: Simd>(record: *const i32, part: usize, width: usize, m: usize) -> S::F {
    // SAFETY: the caller gives a record.
    unsafe { S::splat(f32::from_bits(*record.add(part * width + m) as u32)) }
}

/// What is read next: the processor follows a stream within a page of 4 KiB; a unit ahead we say ourselves what comes, a
/// few lines at a time, since it keeps only some under way.
#[derive(Clone, Copy)]
struct Next<const R: usize> {
    at: [*const u8; R],
    /// None where it was said already.
    bytes: usize,
}

/// Adds the products of a unit of `R` tiles with `M` tokens to `sums`. The records of the tokens are `width` wide.
#[inline(always)]
unsafe fn unit<S: Simd, const KIND: u8, const R: usize, const M: usize, const EXPANDED: bool>(
    tiles: [(*const u8, *const Scales); R],
    subs: usize,
    records: *const i32,
    width: usize,
    next: Next<R>,
    sums: &mut [[S::F; M]; R],
) {
    // SAFETY: the caller's: `subs` sub-blocks and records of `M` tokens.
    unsafe {
        let share = next.bytes.div_ceil(64 * subs) * 64;
        for s in 0..subs {
            for at in next.at {
                for line in (0..share).step_by(64) {
                    S::prefetch(at.wrapping_add(s * share + line));
                }
            }
            let record = records.add(s * RECORD * width);
            let mut dots = [[S::isplat(0); M]; R];
            for m in 0..M {
                // What a raised weight adds too much is where the sum begins.
                let start = match KIND {
                    Q8 if S::RAISED => S::ishl::<7>(S::isplat(*record.add(quantize::MINUS_SUM * width + m))),
                    Q4 => S::ishl::<3>(S::isplat(*record.add(quantize::MINUS_SUM * width + m))),
                    K6 => S::ishl::<5>(S::isplat(*record.add(quantize::MINUS_SUM16 * width + m))),
                    _ => S::isplat(0),
                };
                for dots in &mut dots {
                    dots[m] = start;
                }
            }
            let mut w = [[S::load_bytes(tiles[0].0); 8]; R];
            for r in 0..R {
                if !EXPANDED {
                    w[r] = quads::<S, KIND>(tiles[r].0, subs, s);
                }
            }
            for quad in 0..8 {
                if KIND == K6 && quad == 4 {
                    for r in 0..R {
                        scaled::<S, M>(&dots[r], record, width, scale::<S>(tiles[r].1, s * 2), &mut sums[r]);
                        for m in 0..M {
                            let minus = *record.add((quantize::MINUS_SUM16 + 1) * width + m);
                            dots[r][m] = S::ishl::<5>(S::isplat(minus));
                        }
                    }
                }
                if EXPANDED {
                    for r in 0..R {
                        w[r][quad] = S::load_bytes(tiles[r].0.add(s * 512 + quad * 64));
                    }
                }
                for m in 0..M {
                    let x = *record.add(quad * width + m);
                    for r in 0..R {
                        let (dot, w) = (dots[r][m], w[r][quad]);
                        dots[r][m] = if KIND == Q8 { S::dot_wide(dot, w, x) } else { S::dot(dot, w, x) };
                    }
                }
            }
            for r in 0..R {
                let last = if KIND == K6 { s * 2 + 1 } else { s };
                scaled::<S, M>(&dots[r], record, width, scale::<S>(tiles[r].1, last), &mut sums[r]);
                if KIND == K4 || KIND == K5 {
                    let min = S::load((&raw const (*tiles[r].1).mins).cast::<f32>().add(s * TILE));
                    for m in 0..M {
                        sums[r][m] = S::fnma(min, float::<S>(record, quantize::SCALED_SUM, width, m), sums[r][m]);
                    }
                }
            }
        }
    }
}

#[inline(always)]
unsafe fn scale<S: Simd>(scales: *const Scales, i: usize) -> S::F {
    // SAFETY: the caller gives a scale's place.
    unsafe { S::load((&raw const (*scales).scales).cast::<f32>().add(i * TILE)) }
}

/// Adds integer sums times both scales.
#[inline(always)]
unsafe fn scaled<S: Simd, const M: usize>(
    dots: &[S::I; M],
    record: *const i32,
    width: usize,
    scale: S::F,
    sums: &mut [S::F; M],
) {
    // SAFETY: instructions only, and a record.
    unsafe {
        for m in 0..M {
            let x = float::<S>(record, quantize::SCALE, width, m);
            sums[m] = S::fma(S::mul(S::to_f(dots[m]), x), scale, sums[m]);
        }
    }
}

#[cfg(test)]
mod tests;
