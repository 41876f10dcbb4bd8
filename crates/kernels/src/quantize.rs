//! Activations as 8-bit integers, for dot products with quantized weights.
//!
//! Each 32 numbers of a token share a scale (`max |x| / 127`), finer than llama.cpp's 256 for the K formats. Tokens lie
//! in groups as wide as the kernel, side by side, so that one pointer walks through all of them:
//!
//! for each group of `w` tokens, for each sub-block of 32 columns, a record of `13 w` words:
//! `q[8][w]` (four columns in a word), `scale[w]` f32, `scaled_sum[w]` f32, and the sums with their sign turned,
//! `minus_sum[w]` i32, `minus_sum16[2][w]` i32.
#![expect(unsafe_code, reason = "groups are written by many threads into disjoint parts of one buffer")]

use crate::{
    Buffer, Isa, Pool,
    format::{SUB, SendPtr},
    isa::dispatch,
    simd::Simd,
};

/// Words of a record for one token.
pub(crate) const RECORD: usize = 13;
/// Where the parts of a record begin, in units of `w` words.
pub(crate) const SCALE: usize = 8;
pub(crate) const SCALED_SUM: usize = 9;
pub(crate) const MINUS_SUM: usize = 10;
pub(crate) const MINUS_SUM16: usize = 11;

/// Tokens quantized for a kernel of `width` tokens.
#[derive(Debug)]
pub(crate) struct Quantized {
    pub tokens: usize,
    pub cols: usize,
    pub width: usize,
    data: Buffer,
}

impl Quantized {
    pub fn empty(width: usize) -> Self {
        Self { tokens: 0, cols: 0, width, data: Buffer::zeroed(0) }
    }

    /// Where the records of group `group` begin.
    pub fn group(&self, group: usize) -> *const i32 {
        // Groups before it are full.
        let words = group * self.width * self.cols / SUB * RECORD;
        self.data.as_ptr().cast::<i32>().wrapping_add(words)
    }

    /// Quantizes `x [tokens, cols]`; `cols` is a multiple of 32.
    pub fn fill(&mut self, isa: Isa, x: &[f32], cols: usize, pool: &Pool) {
        debug_assert_eq!(cols % SUB, 0, "whole sub-blocks");
        let tokens = x.len() / cols;
        let bytes = tokens * cols / SUB * RECORD * 4;
        if self.data.len() < bytes {
            self.data = Buffer::zeroed(bytes.next_power_of_two());
        }
        (self.tokens, self.cols) = (tokens, cols);
        let width = self.width;
        let start = SendPtr(self.data.as_mut_ptr().cast::<i32>());
        // A few tokens are done before a helper would have come.
        let grain = if tokens * cols < 1 << 15 { tokens } else { width };
        let groups = tokens.div_ceil(width);
        pool.ranges(groups, grain.div_ceil(width), |range| {
            for group in range {
                let first = group * width;
                let w = width.min(tokens - first);
                for m in 0..w {
                    let row = &x[(first + m) * cols..][..cols];
                    // SAFETY: the records of a group are its own, and inside the buffer.
                    unsafe {
                        let out = start.at(first * cols / SUB * RECORD);
                        dispatch!(isa, token(row: &[f32], out: *mut i32, w: usize, m: usize));
                    }
                }
            }
        });
    }
}

/// Writes token `m` of a group of `w` whose records begin at `out`.
///
/// # Safety
/// `out` has room for the group, and nobody else writes this token.
#[inline(always)]
unsafe fn token<S: Simd>(row: &[f32], out: *mut i32, w: usize, m: usize) {
    for (s, x) in row.as_chunks::<SUB>().0.iter().enumerate() {
        let mut lanes = [0f32; 16];
        for i in 0..16 {
            let (a, b) = (x[i].abs(), x[16 + i].abs());
            lanes[i] = if a > b { a } else { b };
        }
        let mut width = 16;
        while width > 1 {
            width /= 2;
            for i in 0..width {
                lanes[i] = if lanes[i] > lanes[i + width] { lanes[i] } else { lanes[i + width] };
            }
        }
        let most = lanes[0];
        let scale = most / 127.0;
        let inverse = if most > 0.0 { 127.0 / most } else { 0.0 };
        let mut whole = [0i32; SUB];
        for i in 0..SUB {
            // Adding 1.5 * 2^23 rounds to even, and leaves the whole number in the low bits.
            whole[i] = (x[i] * inverse + 12_582_912.0).to_bits() as i32 - 0x4B40_0000;
        }
        let mut q = [0u8; SUB];
        for i in 0..SUB {
            q[i] = whole[i] as u8;
        }
        let mut sums = [0i32; 2];
        for i in 0..16 {
            sums[0] += whole[i];
            sums[1] += whole[16 + i];
        }
        let sum = sums[0] + sums[1];
        // SAFETY: the caller's.
        unsafe {
            let record = out.add(s * RECORD * w + m);
            for (quad, q) in q.as_chunks::<4>().0.iter().enumerate() {
                record.add(quad * w).write(i32::from_le_bytes(*q));
            }
            record.add(SCALE * w).write(scale.to_bits() as i32);
            record.add(SCALED_SUM * w).write((scale * sum as f32).to_bits() as i32);
            record.add(MINUS_SUM * w).write(-sum);
            record.add(MINUS_SUM16 * w).write(-sums[0]);
            record.add((MINUS_SUM16 + 1) * w).write(-sums[1]);
        }
    }
}
