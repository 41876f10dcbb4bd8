//! Dot products of float weights: tiles of sixteen outputs, a few tokens at a time.
#![expect(unsafe_code, reason = "raw tiles of memory")]

use crate::{TILE, simd::Simd};

/// How a float tile is read.
///
/// # Safety
/// `load` reads sixteen elements.
pub(crate) unsafe trait Element: Copy {
    unsafe fn load<S: Simd>(at: *const Self) -> S::F;
}

#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Half(u16);

// SAFETY: sixteen elements.
unsafe impl Element for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(at: *const Self) -> S::F {
        // SAFETY: the caller's.
        unsafe { S::load(at) }
    }
}

// SAFETY: sixteen elements.
unsafe impl Element for Half {
    #[inline(always)]
    unsafe fn load<S: Simd>(at: *const Self) -> S::F {
        // SAFETY: the caller's.
        unsafe { S::load_f16(at.cast()) }
    }
}

/// Adds to `sums[r][m]` the products of `k` columns of tile `r` with token `m`: the columns of a tile are `step`
/// elements apart, the numbers of a token lie side by side. One sum a number, columns in order: the result does not
/// depend on `R` and `M`.
/// `STREAM` where what is read next has to be asked for: sixteen elements of each `next`, column after column.
///
/// # Safety
/// The instructions of `S`; `k` columns at each `weights`, `k` numbers at each `x`. `next` may be anything.
#[inline(always)]
pub(crate) unsafe fn tiles<S: Simd, E: Element, const R: usize, const M: usize, const STREAM: bool>(
    weights: [*const E; R],
    step: usize,
    next: [*const E; R],
    x: [*const f32; M],
    k: usize,
    sums: &mut [[S::F; M]; R],
) {
    // SAFETY: the caller's.
    unsafe {
        for i in 0..k {
            let mut w = [S::splat(0.0); R];
            for r in 0..R {
                w[r] = E::load::<S>(weights[r].add(i * step));
                // Half floats for eight tokens came twice as fast when they were asked for.
                if STREAM {
                    S::prefetch(next[r].wrapping_add(i * TILE).cast());
                }
            }
            for m in 0..M {
                let x = S::splat(*x[m].add(i));
                for r in 0..R {
                    sums[r][m] = S::fma(w[r], x, sums[r][m]);
                }
            }
        }
    }
}

/// As [`tiles`], for pairs of columns of brain floats, sixteen pairs beside each other.
///
/// # Safety
/// As for [`tiles`].
#[inline(always)]
pub(crate) unsafe fn pairs<S: Simd, const R: usize, const M: usize>(
    weights: [*const u32; R],
    x: [*const f32; M],
    pairs: usize,
    sums: &mut [[S::F; M]; R],
) {
    // SAFETY: the caller's.
    unsafe {
        for i in 0..pairs {
            for r in 0..R {
                let at = weights[r].add(i * TILE);
                let (first, second) = S::load_pairs(at);
                if M <= 4 {
                    S::prefetch(at.wrapping_add(32 * TILE).cast());
                }
                for m in 0..M {
                    sums[r][m] = S::fma(first, S::splat(*x[m].add(2 * i)), sums[r][m]);
                    sums[r][m] = S::fma(second, S::splat(*x[m].add(2 * i + 1)), sums[r][m]);
                }
            }
        }
    }
}
