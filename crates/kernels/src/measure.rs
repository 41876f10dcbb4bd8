//! What this machine could do at best, measured: the roof that every kernel is held against (Williams' roofline model).
#![expect(unsafe_code, reason = "vector kernels")]

use std::{hint::black_box, time::Instant};

use crate::{Buffer, Isa, Pool, TILE, brain, float, isa::dispatch, simd::Simd};

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

/// Products of two bytes a second, from registers and the first cache.
pub fn integer_peak(pool: &Pool) -> f64 {
    best_of(3, || {
        pool.run(pool.threads() * 4, |_| {
            let isa = Isa::detect();
            // SAFETY: detected instructions.
            black_box(unsafe { dispatch!(isa, dots() -> f32) });
        });
        (pool.threads() * 4 * ROUNDS * 8 * 8 * 64) as f64
    })
}

const ROUNDS: usize = 20_000;

#[inline(always)]
unsafe fn dots<S: Simd>() -> f32 {
    let weights = black_box([1u8; 512]);
    let x = black_box([0x0101_0101i32; 8]);
    // SAFETY: 512 bytes of weights; the instructions are the caller's.
    unsafe {
        let mut sums = [S::isplat(0); 8];
        for _ in 0..ROUNDS {
            for quad in 0..8 {
                for (m, sum) in sums.iter_mut().enumerate() {
                    *sum = S::dot(*sum, S::load_bytes(weights.as_ptr().add(quad * 64)), x[m]);
                }
            }
        }
        let mut out = [0f32; TILE];
        sums.iter().for_each(|sum| S::store(out.as_mut_ptr(), S::to_f(*sum)));
        out[0]
    }
}

/// `f32` multiply-adds a second, from registers and the first cache.
pub fn float_peak(pool: &Pool) -> f64 {
    best_of(3, || {
        pool.run(pool.threads() * 4, |_| {
            let isa = Isa::detect();
            // SAFETY: detected instructions.
            black_box(unsafe { dispatch!(isa, products() -> f32) });
        });
        (pool.threads() * 4 * ROUNDS * 2 * 6 * TILE) as f64
    })
}

#[inline(always)]
unsafe fn products<S: Simd>() -> f32 {
    const COLS: usize = 200;
    let weights = black_box([1f32; COLS * TILE * 2]);
    let x = black_box([1f32; COLS]);
    // SAFETY: two tiles of 200 columns; the instructions are the caller's.
    unsafe {
        let mut sums = [[S::splat(0.0); 6]; 2];
        for _ in 0..ROUNDS / COLS {
            let w = [weights.as_ptr(), weights.as_ptr().add(COLS * TILE)];
            float::tiles::<S, f32, 2, 6, false>(w, TILE, [x.as_ptr(); 6], COLS, &mut sums);
        }
        let mut out = [0f32; TILE];
        sums.iter().flatten().for_each(|sum| S::store(out.as_mut_ptr(), *sum));
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
            black_box(unsafe { brain::peak(ROUNDS * 4) });
        });
        (pool.threads() * 4 * ROUNDS * 4 * 8 * 2 * TILE) as f64
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
