//! Products of brain floats with brain floats, where the machine has them (AVX-512 BF16): twice as many as of floats.
//!
//! Activations are rounded to brain floats, too, as every framework does with models of this type on such hardware.
#![expect(unsafe_code, reason = "vector instructions and raw tiles of memory")]

use half::bf16;

use crate::{Packed, matmul::Out};

/// Whether this machine multiplies brain floats. `COVEY_BF16=0` says no, to compare.
pub(crate) fn available() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        use std::sync::OnceLock;
        static FOUND: OnceLock<bool> = OnceLock::new();
        *FOUND.get_or_init(|| {
            is_x86_feature_detected!("avx512bf16") && std::env::var("COVEY_BF16").map_or(true, |v| v != "0")
        })
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// Rounds `x` to pairs; an odd last number is paired with zero.
pub(crate) fn pair(x: &[f32], out: &mut [u32]) {
    let bits = |x: f32| u32::from(bf16::from_f32(x).to_bits());
    for (pair, out) in x.chunks(2).zip(out) {
        *out = bits(pair[0]) | pair.get(1).map_or(0, |x| bits(*x) << 16);
    }
}

/// Tiles `range` for all tokens of `x [tokens, pairs]`.
///
/// # Safety
/// The machine has the instructions ([`available`]); `range` and `x` are inside matrix and output; nobody else writes.
#[cfg(not(target_arch = "x86_64"))]
pub(crate) unsafe fn tiles(_: &Packed, _: &[u32], _: usize, _: std::ops::Range<usize>, _: Out) {
    unreachable!("no other machine says that it is available")
}

/// Tiles `range` for all tokens of `x [tokens, pairs]`.
///
/// # Safety
/// The machine has the instructions ([`available`]); `range` and `x` are inside matrix and output; nobody else writes.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")]
pub(crate) unsafe fn tiles(weights: &Packed, x: &[u32], pairs: usize, range: std::ops::Range<usize>, out: Out) {
    let tokens = x.len() / pairs;
    let mut tile = range.start;
    // SAFETY: the caller's.
    unsafe {
        while tile < range.end {
            let left = range.end - tile;
            if tokens <= 2 && left >= 4 {
                every::<4, 2>(weights, x, pairs, tile, out);
                tile += 4;
            } else if left >= 2 {
                every::<2, 8>(weights, x, pairs, tile, out);
                tile += 2;
            } else {
                every::<1, 8>(weights, x, pairs, tile, out);
                tile += 1;
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn every<const R: usize, const M: usize>(weights: &Packed, x: &[u32], pairs: usize, tile: usize, out: Out) {
    let tokens = x.len() / pairs;
    let mut token = 0;
    // SAFETY: the caller's.
    unsafe {
        while token < tokens {
            let left = tokens - token;
            let at = x.as_ptr().add(token * pairs);
            if left >= M {
                kernel::<R, M>(weights, at, pairs, tile, token, out);
                token += M;
            } else if M > 4 && left >= 4 {
                kernel::<R, 4>(weights, at, pairs, tile, token, out);
                token += 4;
            } else if M > 2 && left >= 2 {
                kernel::<R, 2>(weights, at, pairs, tile, token, out);
                token += 2;
            } else {
                kernel::<R, 1>(weights, at, pairs, tile, token, out);
                token += 1;
            }
        }
    }
}

/// One sum a number, pairs in order: the result does not depend on `R` and `M`.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn kernel<const R: usize, const M: usize>(
    weights: &Packed,
    x: *const u32,
    pairs: usize,
    tile: usize,
    token: usize,
    out: Out,
) {
    use std::arch::x86_64::*;

    use crate::{TILE, simd::avx512::Lanes};
    // SAFETY: the caller's.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); M]; R];
        let mut tiles = [weights.tile(tile).cast::<u32>(); R];
        for (r, at) in tiles.iter_mut().enumerate() {
            *at = weights.tile(tile + r).cast();
        }
        for i in 0..pairs {
            let mut w = [_mm512_setzero_si512(); R];
            for r in 0..R {
                let at = tiles[r].add(i * TILE);
                w[r] = _mm512_loadu_si512(at.cast());
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(32 * TILE).cast());
            }
            for m in 0..M {
                let x = _mm512_set1_epi32(*x.add(m * pairs + i) as i32);
                for r in 0..R {
                    let (w, x) =
                        (std::mem::transmute::<__m512i, __m512bh>(w[r]), std::mem::transmute::<__m512i, __m512bh>(x));
                    sums[r][m] = _mm512_dpbf16_ps(sums[r][m], w, x);
                }
            }
        }
        for r in 0..R {
            for m in 0..M {
                out.put::<Lanes>(tile + r, token + m, sums[r][m]);
            }
        }
    }
}

/// `rounds` times `SUMS` products of registers, for [`crate::measure`].
///
/// # Safety
/// The machine has the instructions.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bf16")]
pub(crate) unsafe fn peak(rounds: usize) -> f32 {
    use std::{arch::x86_64::*, hint::black_box};

    use crate::measure::SUMS;
    let one = black_box(_mm512_set1_epi32(0x3F80_3F80));
    // SAFETY: both are 512 bits.
    let one = unsafe { std::mem::transmute::<__m512i, __m512bh>(one) };
    let mut sums = [_mm512_setzero_ps(); SUMS];
    for (i, sum) in sums.iter_mut().enumerate() {
        *sum = _mm512_set1_ps(black_box(i as f32));
    }
    for _ in 0..rounds {
        for sum in &mut sums {
            *sum = _mm512_dpbf16_ps(*sum, one, one);
        }
    }
    sums.iter().map(|sum| _mm512_reduce_add_ps(*sum)).sum()
}

/// Never called: see [`available`].
#[cfg(not(target_arch = "x86_64"))]
pub(crate) unsafe fn peak(_: usize) -> f32 {
    0.0
}
