//! `x [tokens, cols] × weights [rows, cols]ᵀ → y [tokens, rows]`.
//!
//! Quantized weights: a unit (16 rows × 256 columns) is expanded once into cache, to bytes and float scales, and then
//! meets all tokens. One expansion and one integer kernel therefore serve every format and every batch. At one token
//! the machine waits for memory and the expansion is hidden; from a few tokens on it is shared.
#![expect(unsafe_code, reason = "vector kernels over raw tiles of memory")]

use crate::{
    Format, Isa, Packed, Pool, TILE,
    float::{self, Brain, Element, Half},
    format::{K_HEAD, Q6_HEAD, SUB, SendPtr, UNIT, scale_bytes},
    isa::dispatch,
    quantize::{self, Quantized, RECORD},
    simd::Simd,
};

/// Inputs of one or several matmuls, `[tokens, cols]`: the floats, and their quantized form where a matmul wants it.
#[derive(Debug)]
pub struct Activations {
    isa: Isa,
    floats: Vec<f32>,
    cols: usize,
    quantized: Quantized,
    is_quantized: bool,
}

impl Activations {
    /// Room for activations of a machine with `isa`.
    pub fn new(isa: Isa) -> Self {
        Self { isa, floats: Vec::new(), cols: 1, quantized: Quantized::empty(tokens_of(isa)), is_quantized: false }
    }

    /// Room for `tokens × cols` numbers, to be written; what was there is gone.
    pub fn reset(&mut self, tokens: usize, cols: usize) -> &mut [f32] {
        self.cols = cols;
        self.is_quantized = false;
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
            self.quantized.fill(&self.floats, self.cols, pool);
        }
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

/// Writes `x × weightsᵀ` to `y [tokens, rows]`, or adds it where `add` is set.
///
/// # Panics
/// When the shapes do not fit.
pub fn matmul(weights: &Packed, x: &mut Activations, y: &mut [f32], add: bool, pool: &Pool) {
    matmul_with(x.isa, weights, x, y, add, pool);
}

/// [`matmul`] with the instructions of `isa`, which are those `x` was made for.
///
/// # Panics
/// As [`matmul`], and when `isa` is not that of `x`.
pub fn matmul_with(isa: Isa, weights: &Packed, x: &mut Activations, y: &mut [f32], add: bool, pool: &Pool) {
    let tokens = x.tokens();
    assert_eq!(isa, x.isa, "activations are laid out for one level of instructions");
    assert_eq!(x.cols, weights.cols(), "inputs are as wide as the matrix");
    assert_eq!(y.len(), tokens * weights.rows(), "outputs are as many as the matrix has rows");
    let out = Out { y: SendPtr(y.as_mut_ptr()), rows: weights.rows(), add };
    let tiles = weights.rows().div_ceil(TILE);
    if weights.format().is_float() {
        let x = &x.floats;
        pool.ranges(tiles, FLOAT_TILES_MAX, |range| {
            // SAFETY: `isa` was detected; tiles and tokens are inside their matrices; ranges are disjoint.
            unsafe { dispatch!(isa, float_tiles(weights: &Packed, x: &[f32], range: std::ops::Range<usize>, out: Out)) }
        });
    } else {
        x.quantize(pool);
        let x = &x.quantized;
        pool.ranges(tiles, 1, |range| {
            // SAFETY: as above.
            unsafe {
                dispatch!(isa, quantized_tiles(weights: &Packed, x: &Quantized, range: std::ops::Range<usize>, out: Out))
            }
        });
    }
}

/// Where results go.
#[derive(Clone, Copy)]
struct Out {
    y: SendPtr<f32>,
    rows: usize,
    add: bool,
}

impl Out {
    /// Sixteen results of token `token`.
    ///
    /// # Safety
    /// The instructions of `S`; the tile and the token are inside; nobody else writes them.
    #[inline(always)]
    unsafe fn put<S: Simd>(self, tile: usize, token: usize, sums: S::F) {
        // SAFETY: the caller's.
        unsafe {
            let at = self.y.at(token * self.rows + tile * TILE);
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

/// Tiles that a float kernel works on at once.
const FLOAT_TILES_MAX: usize = 4;

#[inline(always)]
unsafe fn float_tiles<S: Simd>(weights: &Packed, x: &[f32], range: std::ops::Range<usize>, out: Out) {
    // SAFETY: the caller's.
    unsafe {
        match weights.format() {
            Format::F32 => float_range::<S, f32>(weights, x, range, out),
            Format::F16 => float_range::<S, Half>(weights, x, range, out),
            _ => float_range::<S, Brain>(weights, x, range, out),
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
        float::tiles::<S, E, R, M>(weights, TILE, std::array::from_fn(|m| x.add(m * cols)), cols, &mut sums);
        for (r, sums) in sums.iter().enumerate() {
            for (m, sum) in sums.iter().enumerate() {
                out.put::<S>(tile + r, token + m, *sum);
            }
        }
    }
}

// ---- integers ----

/// A unit as the kernel reads it.
#[repr(align(64))]
struct Expanded {
    /// `[8 sub-blocks][8 quads of columns][16 rows][4]`.
    quants: [u8; UNIT * TILE],
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
            Format::Q8_0 => quantized_range::<S, { Q8 }>(weights, x, range, out),
            Format::Q4_0 => quantized_range::<S, { Q4 }>(weights, x, range, out),
            Format::Q4K => quantized_range::<S, { K4 }>(weights, x, range, out),
            Format::Q5K => quantized_range::<S, { K5 }>(weights, x, range, out),
            _ => quantized_range::<S, { K6 }>(weights, x, range, out),
        }
    }
}

const Q8: u8 = 0;
const Q4: u8 = 1;
const K4: u8 = 2;
const K5: u8 = 3;
const K6: u8 = 4;

#[inline(always)]
unsafe fn quantized_range<S: Simd, const KIND: u8>(
    weights: &Packed,
    x: &Quantized,
    range: std::ops::Range<usize>,
    out: Out,
) {
    let format = weights.format();
    let cols = weights.cols();
    let groups = x.tokens.div_ceil(x.width);
    let mut unit = Expanded { quants: [0; UNIT * TILE], scales: [0.0; UNIT / 16 * TILE], mins: [0.0; UNIT / SUB * TILE] };
    let mut few = [0f32; 8 * TILE];
    let mut many = Vec::new();
    let sums: &mut [f32] = if x.tokens <= 8 {
        &mut few[..x.tokens * TILE]
    } else {
        many.resize(x.tokens * TILE, 0.0);
        &mut many
    };
    for tile in range {
        sums.fill(0.0);
        let mut source = weights.tile(tile);
        let mut col = 0;
        while col < cols {
            let subs = (cols - col).min(UNIT) / SUB;
            // SAFETY: the caller's; the records of a group go on from sub-block to sub-block.
            unsafe {
                let quants = expand::<S, KIND>(source, subs, &mut unit);
                for group in 0..groups {
                    let m = x.width.min(x.tokens - group * x.width);
                    let records = x.group(group).add(col / SUB * RECORD * m);
                    let sums = sums.as_mut_ptr().add(group * x.width * TILE);
                    let (quants, unit) = (quants, &raw const unit);
                    match m {
                        1 => tokens::<S, KIND, 1>(quants, unit, subs, records, sums),
                        2 => tokens::<S, KIND, 2>(quants, unit, subs, records, sums),
                        3 => tokens::<S, KIND, 3>(quants, unit, subs, records, sums),
                        4 => tokens::<S, KIND, 4>(quants, unit, subs, records, sums),
                        5 => tokens::<S, KIND, 5>(quants, unit, subs, records, sums),
                        6 => tokens::<S, KIND, 6>(quants, unit, subs, records, sums),
                        7 => tokens::<S, KIND, 7>(quants, unit, subs, records, sums),
                        _ => tokens::<S, KIND, 8>(quants, unit, subs, records, sums),
                    }
                }
                source = source.add(format.unit_bytes(subs));
            }
            col += subs * SUB;
        }
        for token in 0..x.tokens {
            // SAFETY: the caller's.
            unsafe { out.put::<S>(tile, token, S::load(sums.as_ptr().add(token * TILE))) };
        }
    }
}

/// Bytes and float scales of a unit; gives where the bytes lie.
#[inline(always)]
unsafe fn expand<S: Simd, const KIND: u8>(source: *const u8, subs: usize, unit: &mut Expanded) -> *const u8 {
    // SAFETY: the caller gives a whole unit.
    unsafe {
        match KIND {
            Q8 | Q4 => {
                for s in 0..subs {
                    S::store(unit.scales.as_mut_ptr().add(s * TILE), S::load_f16(source.add(s * 32).cast()));
                }
                let data = source.add(scale_bytes(subs));
                if KIND == Q4 {
                    halves(data, subs, &mut unit.quants);
                } else if S::RAISED {
                    return data;
                } else {
                    for i in 0..subs * 512 {
                        unit.quants[i] = *data.add(i) ^ 0x80;
                    }
                }
            }
            K4 | K5 => {
                let (d, dmin) = (S::load_f16(source.cast()), S::load_f16(source.add(32).cast()));
                for s in 0..UNIT / SUB {
                    S::store(unit.scales.as_mut_ptr().add(s * TILE), S::mul(d, bytes::<S>(source.add(64 + s * TILE))));
                    S::store(unit.mins.as_mut_ptr().add(s * TILE), S::mul(dmin, bytes::<S>(source.add(192 + s * TILE))));
                }
                halves(source.add(K_HEAD), subs, &mut unit.quants);
                if KIND == K5 {
                    let high = source.add(K_HEAD + 2048);
                    for s in 0..UNIT / SUB {
                        for part in 0..8 {
                            for i in 0..64 {
                                unit.quants[s * 512 + part * 64 + i] |= (*high.add(s * 64 + i) >> part & 1) << 4;
                            }
                        }
                    }
                }
            }
            _ => {
                let d = S::load_f16(source.cast());
                for s in 0..UNIT / 16 {
                    let scale: [f32; TILE] = std::array::from_fn(|r| f32::from(*source.add(64 + s * TILE + r) as i8));
                    S::store(unit.scales.as_mut_ptr().add(s * TILE), S::mul(d, S::load(scale.as_ptr())));
                }
                halves(source.add(Q6_HEAD), subs, &mut unit.quants);
                let high = source.add(Q6_HEAD + 2048);
                for s in 0..UNIT / SUB {
                    for part in 0..4 {
                        for i in 0..128 {
                            unit.quants[s * 512 + part * 128 + i] |= (*high.add(s * 128 + i) >> (2 * part) & 3) << 4;
                        }
                    }
                }
            }
        }
        unit.quants.as_ptr()
    }
}

/// Half bytes to bytes.
#[inline(always)]
unsafe fn halves(data: *const u8, subs: usize, quants: &mut [u8; UNIT * TILE]) {
    for s in 0..subs {
        for i in 0..256 {
            // SAFETY: the caller gives `subs` sub-blocks.
            let both = unsafe { *data.add(s * 256 + i) };
            quants[s * 512 + i] = both & 15;
            quants[s * 512 + 256 + i] = both >> 4;
        }
    }
}

#[inline(always)]
unsafe fn bytes<S: Simd>(at: *const u8) -> S::F {
    // SAFETY: the caller gives sixteen bytes.
    unsafe {
        let wide: [f32; TILE] = std::array::from_fn(|r| f32::from(*at.add(r)));
        S::load(wide.as_ptr())
    }
}

/// Adds the products of a unit with `M` tokens to `sums [M][16]`.
#[inline(always)]
unsafe fn tokens<S: Simd, const KIND: u8, const M: usize>(
    quants: *const u8,
    unit: *const Expanded,
    subs: usize,
    records: *const i32,
    sums: *mut f32,
) {
    // SAFETY: the caller's: `subs` sub-blocks and records of `M` tokens.
    unsafe {
        let (scales, mins) = ((&raw const (*unit).scales).cast::<f32>(), (&raw const (*unit).mins).cast::<f32>());
        let mut sum: [S::F; M] = std::array::from_fn(|m| S::load(sums.add(m * TILE)));
        for s in 0..subs {
            let q = quants.add(s * 512);
            let record = records.add(s * RECORD * M);
            let scale_of = |m: usize| S::splat(f32::from_bits(*record.add(quantize::SCALE * M + m) as u32));
            if KIND == K6 {
                for half in 0..2 {
                    let mut dots: [S::I; M] =
                        std::array::from_fn(|m| S::isplat(*record.add((quantize::SUM16 + half) * M + m) * -32));
                    for quad in 0..4 {
                        for (m, dot) in dots.iter_mut().enumerate() {
                            *dot = S::dot(*dot, q.add(half * 256 + quad * 64), *record.add((half * 4 + quad) * M + m));
                        }
                    }
                    let scale = S::load(scales.add((s * 2 + half) * TILE));
                    for m in 0..M {
                        sum[m] = S::fma(S::mul(S::to_f(dots[m]), scale_of(m)), scale, sum[m]);
                    }
                }
                continue;
            }
            let raised = match KIND {
                Q8 if S::RAISED => 128,
                Q4 => 8,
                _ => 0,
            };
            let mut dots: [S::I; M] = std::array::from_fn(|m| {
                if raised == 0 { S::isplat(0) } else { S::isplat(*record.add(quantize::SUM * M + m) * -raised) }
            });
            for quad in 0..8 {
                for (m, dot) in dots.iter_mut().enumerate() {
                    let (w, x) = (q.add(quad * 64), *record.add(quad * M + m));
                    *dot = if KIND == Q8 { S::dot_wide(*dot, w, x) } else { S::dot(*dot, w, x) };
                }
            }
            let scale = S::load(scales.add(s * TILE));
            for m in 0..M {
                sum[m] = S::fma(S::mul(S::to_f(dots[m]), scale_of(m)), scale, sum[m]);
            }
            if KIND == K4 || KIND == K5 {
                let min = S::load(mins.add(s * TILE));
                for (m, sum) in sum.iter_mut().enumerate() {
                    let x = S::splat(f32::from_bits(*record.add(quantize::SCALED_SUM * M + m) as u32));
                    *sum = S::fnma(min, x, *sum);
                }
            }
        }
        for (m, sum) in sum.iter().enumerate() {
            S::store(sums.add(m * TILE), *sum);
        }
    }
}

#[cfg(test)]
mod tests;
