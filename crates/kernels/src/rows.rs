//! What happens to single rows: norms, rotations, gates, and the likeliest token.
#![expect(unsafe_code, reason = "vector kernels")]

use crate::{
    Isa, TILE,
    isa::dispatch,
    simd::{self, Simd},
};

/// `x / rms(x) * weight`, written over `x`; `offset` is added to each weight (Gemma's are stored less one).
///
/// # Panics
/// When the lengths differ.
pub fn rms_norm(isa: Isa, x: &mut [f32], weight: &[f32], eps: f32, offset: f32) {
    assert_eq!(x.len(), weight.len(), "a weight for each number");
    // SAFETY: detected instructions.
    unsafe { dispatch!(isa, norm(x: &mut [f32], weight: &[f32], eps: f32, offset: f32)) }
}

#[inline(always)]
unsafe fn norm<S: Simd>(x: &mut [f32], weight: &[f32], eps: f32, offset: f32) {
    let mut lanes = [0f32; TILE];
    let (whole, rest) = x.as_chunks::<TILE>();
    for x in whole {
        for i in 0..TILE {
            lanes[i] += x[i] * x[i];
        }
    }
    let mut sum = 0f32;
    for lane in lanes {
        sum += lane;
    }
    for x in rest {
        sum += x * x;
    }
    let inverse = 1.0 / (sum / x.len() as f32 + eps).sqrt();
    for (x, w) in x.iter_mut().zip(weight) {
        *x = *x * inverse * (w + offset);
    }
}

/// `silu(gate) * up` for `both = [gate.., up..]`, written to `out`.
///
/// # Panics
/// When `both` is not twice as long as `out`.
pub fn silu_mul(isa: Isa, both: &[f32], out: &mut [f32]) {
    assert_eq!(both.len(), out.len() * 2, "a gate and a value for each output");
    // SAFETY: detected instructions.
    unsafe { dispatch!(isa, silu(both: &[f32], out: &mut [f32])) }
}

#[inline(always)]
unsafe fn silu<S: Simd>(both: &[f32], out: &mut [f32]) {
    let n = out.len();
    let (gate, up) = both.split_at(n);
    // 1 / (1 + e^-x), by e^-|x| so that nothing overflows.
    gated::<S>(
        gate,
        up,
        out,
        |x, decay| {
            let positive = 1.0 / (1.0 + decay);
            x * if x >= 0.0 { positive } else { decay * positive }
        },
        |x| x.abs(),
    );
}

/// `gelu(gate) * up` (by `tanh`, as Gemma has it) for `both = [gate.., up..]`, written to `out`.
///
/// # Panics
/// When `both` is not twice as long as `out`.
pub fn gelu_mul(isa: Isa, both: &[f32], out: &mut [f32]) {
    assert_eq!(both.len(), out.len() * 2, "a gate and a value for each output");
    // SAFETY: detected instructions.
    unsafe { dispatch!(isa, gelu(both: &[f32], out: &mut [f32])) }
}

#[inline(always)]
unsafe fn gelu<S: Simd>(both: &[f32], out: &mut [f32]) {
    let n = out.len();
    let (gate, up) = both.split_at(n);
    // x * sigmoid(2 z), z = sqrt(2 / pi) (x + 0.044715 x^3), equals x (1 + tanh z) / 2.
    let twice_z = |x: f32| 1.595_769 * (x + 0.044_715 * x * x * x);
    gated::<S>(
        gate,
        up,
        out,
        |x, decay| {
            let positive = 1.0 / (1.0 + decay);
            x * if x >= 0.0 { positive } else { decay * positive }
        },
        |x| twice_z(x).abs(),
    );
}

/// `f(gate, e^-size(gate)) * up`.
#[inline(always)]
fn gated<S: Simd>(gate: &[f32], up: &[f32], out: &mut [f32], f: impl Fn(f32, f32) -> f32, size: impl Fn(f32) -> f32) {
    for ((gate, up), out) in gate.chunks(TILE).zip(up.chunks(TILE)).zip(out.chunks_mut(TILE)) {
        let mut decay = [0f32; TILE];
        for (d, x) in decay.iter_mut().zip(gate) {
            *d = -size(*x);
        }
        // SAFETY: sixteen lanes; the instructions are the caller's.
        unsafe { S::store(decay.as_mut_ptr(), simd::exp::<S>(S::load(decay.as_ptr()))) };
        for (((out, x), up), d) in out.iter_mut().zip(gate).zip(up).zip(decay) {
            *out = f(*x, d) * up;
        }
    }
}

/// Writes the cosines and then the sines of `position * frequency`, times `factor`: in double precision until the end.
///
/// # Panics
/// When `out` is not twice as long as `frequencies`.
pub fn rope_angles(frequencies: &[f64], position: u32, factor: f64, out: &mut [f32]) {
    assert_eq!(out.len(), frequencies.len() * 2, "a cosine and a sine for each");
    let (cos, sin) = out.split_at_mut(frequencies.len());
    for ((f, cos), sin) in frequencies.iter().zip(cos).zip(sin) {
        let (s, c) = (f64::from(position) * f).sin_cos();
        (*cos, *sin) = ((c * factor) as f32, (s * factor) as f32);
    }
}

/// Rotates a head: number `i` with number `i + half` (Hugging Face's convention). `angles` are the cosines and sines.
pub fn rotate(head: &mut [f32], angles: &[f32]) {
    let half = angles.len() / 2;
    let (cos, sin) = angles.split_at(half);
    let (low, high) = head[..2 * half].split_at_mut(half);
    for i in 0..half {
        let (a, b) = (low[i], high[i]);
        low[i] = a * cos[i] - b * sin[i];
        high[i] = b * cos[i] + a * sin[i];
    }
}

/// Rotates a head: each number with its neighbour (the order in which GGUF holds Llama's queries and keys).
pub fn rope_pairs(head: &mut [f32], angles: &[f32]) {
    let half = angles.len() / 2;
    let (cos, sin) = angles.split_at(half);
    for (i, pair) in head[..2 * half].as_chunks_mut::<2>().0.iter_mut().enumerate() {
        let [a, b] = *pair;
        *pair = [a * cos[i] - b * sin[i], b * cos[i] + a * sin[i]];
    }
}

/// The largest number's index; the first of equals. Numbers that are not numbers lose.
pub fn argmax(isa: Isa, x: &[f32]) -> usize {
    // SAFETY: detected instructions.
    unsafe { dispatch!(isa, best(x: &[f32]) -> usize) }
}

#[inline(always)]
unsafe fn best<S: Simd>(x: &[f32]) -> usize {
    // Blocks first: only the winning one is looked through for the place.
    const WIDE: usize = 256;
    let (mut winner, mut peak) = (0, f32::NEG_INFINITY);
    for (at, x) in x.chunks(WIDE).enumerate() {
        let mut lanes = [f32::NEG_INFINITY; TILE];
        let (whole, rest) = x.as_chunks::<TILE>();
        for x in whole {
            for i in 0..TILE {
                lanes[i] = if x[i] > lanes[i] { x[i] } else { lanes[i] };
            }
        }
        let most = lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, b| if *b > a { *b } else { a });
        if most > peak {
            (winner, peak) = (at, most);
        }
    }
    let start = winner * WIDE;
    x[start..].iter().position(|x| *x == peak).map_or(0, |i| start + i)
}

/// `ln Σ e^x`.
pub fn log_sum_exp(x: &[f32]) -> f32 {
    let most = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = x.iter().map(|x| f64::from(x - most).exp()).sum();
    most + sum.ln() as f32
}
