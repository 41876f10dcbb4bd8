//! What this machine could do at best, measured: the roof that every kernel is held against (Williams' roofline model).
#![expect(unsafe_code, reason = "vector kernels")]

use std::{hint::black_box, time::Instant};

use crate::{Buffer, Isa, Pool, TILE, brain, isa::dispatch, simd::Simd};

/// Bytes read a second from memory that no cache holds, all threads together; the best of several passes.
pub fn read_bandwidth(pool: &Pool) -> f64 {
    const SIZE: usize = 1 << 30;
    const PIECE: usize = 1 << 20;
    let mut buffer = Buffer::zeroed(SIZE);
    // Pages that were never written are all the same zero page.
    buffer.bytes_mut().chunks_mut(4096).for_each(|page| page[0] = 1);
    let buffer = &buffer;
    best_of(4, || {
        pool.run(SIZE / PIECE, |i| {
            let part = &buffer.bytes()[i * PIECE..(i + 1) * PIECE];
            let isa = Isa::detect();
            // SAFETY: detected instructions.
            black_box(unsafe { dispatch!(isa, sum(part: &[u8]) -> u64) });
        });
        SIZE as f64
    })
}

#[inline(always)]
unsafe fn sum<S: Simd>(bytes: &[u8]) -> u64 {
    let _ = size_of::<S>();
    let mut lanes = [0u64; 64];
    for chunk in bytes.as_chunks::<512>().0 {
        for (lane, x) in lanes.iter_mut().zip(chunk.as_chunks::<8>().0) {
            *lane ^= u64::from_le_bytes(*x);
        }
    }
    lanes.iter().fold(0, |a, b| a ^ b)
}

/// Products of a byte with a byte a second, from registers.
pub fn integer_peak(pool: &Pool) -> f64 {
    best_of(3, || {
        pool.run(pool.threads() * 4, |_| {
            let isa = Isa::detect();
            // SAFETY: detected instructions.
            black_box(unsafe { dispatch!(isa, dots() -> f32) });
        });
        (pool.threads() * 4 * ROUNDS * SUMS * 64) as f64
    })
}

const ROUNDS: usize = 100_000;

/// Sums that do not wait for each other: more than a processor has multiply-adds under way.
pub(crate) const SUMS: usize = 12;

#[inline(always)]
unsafe fn dots<S: Simd>() -> f32 {
    let weights = black_box([1u8; 64]);
    let x = black_box(0x0101_0101i32);
    // SAFETY: 64 bytes of weights; the instructions are the caller's.
    unsafe {
        let weights = S::load_bytes(weights.as_ptr());
        // Sums that begin alike would be one sum.
        let mut sums = [S::isplat(0); SUMS];
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = S::isplat(black_box(i as i32));
        }
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = S::dot(*sum, weights, x);
            }
        }
        let mut out = [0f32; TILE];
        let mut all = S::splat(0.0);
        for sum in sums {
            all = S::add(all, S::to_f(sum));
        }
        S::store(out.as_mut_ptr(), all);
        out[0]
    }
}

/// `f32` multiply-adds a second, from registers.
pub fn float_peak(pool: &Pool) -> f64 {
    best_of(3, || {
        pool.run(pool.threads() * 4, |_| {
            let isa = Isa::detect();
            // SAFETY: detected instructions.
            black_box(unsafe { dispatch!(isa, products() -> f32) });
        });
        (pool.threads() * 4 * ROUNDS * SUMS * TILE) as f64
    })
}

#[inline(always)]
unsafe fn products<S: Simd>() -> f32 {
    let x = black_box([1f32; TILE]);
    // SAFETY: sixteen numbers; the instructions are the caller's.
    unsafe {
        let x = S::load(x.as_ptr());
        let mut sums = [S::splat(0.0); SUMS];
        for (i, sum) in sums.iter_mut().enumerate() {
            *sum = S::splat(black_box(i as f32));
        }
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = S::fma(x, x, *sum);
            }
        }
        let mut all = S::splat(0.0);
        for sum in sums {
            all = S::add(all, sum);
        }
        let mut out = [0f32; TILE];
        S::store(out.as_mut_ptr(), all);
        out[0]
    }
}

/// Products of two brain floats a second; those of `f32` where the machine has no others.
pub fn brain_peak(pool: &Pool) -> f64 {
    if !brain::available() {
        return float_peak(pool);
    }
    best_of(3, || {
        pool.run(pool.threads() * 4, |_| {
            // SAFETY: just detected.
            black_box(unsafe { brain::peak(ROUNDS) });
        });
        (pool.threads() * 4 * ROUNDS * SUMS * 2 * TILE) as f64
    })
}

fn best_of(times: usize, mut work: impl FnMut() -> f64) -> f64 {
    (0..times)
        .map(|_| {
            let start = Instant::now();
            work() / start.elapsed().as_secs_f64()
        })
        .fold(0.0, f64::max)
}
