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
    let inverse = 1.0 / (sum_of(x, |x| x * x) / x.len() as f32 + eps).sqrt();
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
    gated::<S>(gate, up, out, |x| x);
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
    gated::<S>(gate, up, out, |x| 1.595_769 * (x + 0.044_715 * x * x * x));
}

/// `gate * sigmoid(z(gate)) * up`, where `z` has the sign of its argument; by `e^-|z|`, so that nothing overflows.
#[inline(always)]
fn gated<S: Simd>(gate: &[f32], up: &[f32], out: &mut [f32], z: impl Fn(f32) -> f32) {
    for ((gate, up), out) in gate.chunks(TILE).zip(up.chunks(TILE)).zip(out.chunks_mut(TILE)) {
        let mut decay = [0f32; TILE];
        for (d, x) in decay.iter_mut().zip(gate) {
            *d = -z(*x).abs();
        }
        // SAFETY: sixteen lanes; the instructions are the caller's.
        unsafe { S::store(decay.as_mut_ptr(), simd::exp::<S>(S::load(decay.as_ptr()))) };
        for (((out, x), up), d) in out.iter_mut().zip(gate).zip(up).zip(decay) {
            let positive = 1.0 / (1.0 + d);
            *out = x * if *x >= 0.0 { positive } else { d * positive } * up;
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

/// `(x - mean) / deviation * weight + bias`, written over `x`.
///
/// # Panics
/// When the lengths differ.
pub fn layer_norm(isa: Isa, x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    assert!(x.len() == weight.len() && x.len() == bias.len(), "a weight and a bias for each number");
    // SAFETY: detected instructions.
    unsafe { dispatch!(isa, center(x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32)) }
}

#[inline(always)]
unsafe fn center<S: Simd>(x: &mut [f32], weight: &[f32], bias: &[f32], eps: f32) {
    let count = x.len() as f32;
    let mean = sum_of(x, |x| x) / count;
    let inverse = 1.0 / (sum_of(x, |x| (x - mean) * (x - mean)) / count + eps).sqrt();
    for ((x, w), b) in x.iter_mut().zip(weight).zip(bias) {
        *x = (*x - mean) * inverse * w + b;
    }
}

/// Sums `f` over sixteen lanes and then over those, in a fixed order.
#[inline(always)]
fn sum_of(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; TILE];
    let (whole, rest) = x.as_chunks::<TILE>();
    for x in whole {
        for i in 0..TILE {
            lanes[i] += f(x[i]);
        }
    }
    lanes.iter().copied().chain(rest.iter().map(|x| f(*x))).fold(0.0, |a, b| a + b)
}

/// `x (1 + erf(x / sqrt 2)) / 2`, written over `x`; the error function within 1.5e-7 (Abramowitz and Stegun 7.1.26).
pub fn gelu_erf(isa: Isa, x: &mut [f32]) {
    // SAFETY: detected instructions.
    unsafe { dispatch!(isa, erf(x: &mut [f32])) }
}

#[inline(always)]
unsafe fn erf<S: Simd>(x: &mut [f32]) {
    for x in x.chunks_mut(TILE) {
        let mut decay = [0f32; TILE];
        for (d, x) in decay.iter_mut().zip(&*x) {
            *d = -0.5 * x * x;
        }
        // SAFETY: sixteen lanes; the instructions are the caller's.
        unsafe { S::store(decay.as_mut_ptr(), simd::exp::<S>(S::load(decay.as_ptr()))) };
        for (x, d) in x.iter_mut().zip(decay) {
            let t = 1.0 / (1.0 + 0.327_591_1 * std::f32::consts::FRAC_1_SQRT_2 * x.abs());
            let p = t * (0.254_829_6 + t * (-0.284_496_74 + t * (1.421_413_7 + t * (-1.453_152 + t * 1.061_405_4))));
            let half = 0.5 * (1.0 - p * d);
            *x *= 0.5 + if *x >= 0.0 { half } else { -half };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn norms_and_gates_are_those_of_the_formulas() {
        let x: Vec<f32> = (0..53).map(|i| (i as f32 * 0.7).sin() * 3.0).collect();
        let (w, b): (Vec<f32>, Vec<f32>) = (0..53).map(|i| (1.0 + i as f32 * 0.01, i as f32 * 0.1)).unzip();
        let mean = x.iter().sum::<f32>() / 53.0;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / 53.0;
        let square = x.iter().map(|x| x * x).sum::<f32>() / 53.0;
        // Integral of the density, by small steps.
        let phi = |x: f64| {
            let n = 4000;
            let step = x / f64::from(n);
            let density = |t: f64| (-t * t / 2.0).exp() / (2.0 * std::f64::consts::PI).sqrt();
            0.5 + (0..n).map(|i| density((f64::from(i) + 0.5) * step) * step).sum::<f64>()
        };
        for isa in Isa::available() {
            let (mut layer, mut rms, mut gelu) = (x.clone(), x.clone(), x.clone());
            layer_norm(isa, &mut layer, &w, &b, 1e-5);
            rms_norm(isa, &mut rms, &w, 1e-5, 1.0);
            gelu_erf(isa, &mut gelu);
            let both: Vec<f32> = x.iter().chain(&b).copied().collect();
            let (mut silu, mut tanh) = (vec![0f32; 53], vec![0f32; 53]);
            silu_mul(isa, &both, &mut silu);
            gelu_mul(isa, &both, &mut tanh);
            for i in 0..53 {
                let near = |got: f32, want: f32, what: &str| {
                    assert!((got - want).abs() < 2e-5 * (1.0 + want.abs()), "{isa:?} {what} {i}: {got}, not {want}");
                };
                near(layer[i], (x[i] - mean) / (variance + 1e-5).sqrt() * w[i] + b[i], "layer norm");
                near(rms[i], x[i] / (square + 1e-5).sqrt() * (w[i] + 1.0), "rms norm");
                near(gelu[i], (f64::from(x[i]) * phi(f64::from(x[i]))) as f32, "gelu");
                near(silu[i], x[i] / (1.0 + (-x[i]).exp()) * b[i], "silu");
                let z = 0.797_884_6 * (x[i] + 0.044_715 * x[i].powi(3));
                near(tanh[i], 0.5 * x[i] * (1.0 + z.tanh()) * b[i], "gelu by tanh");
            }
        }
    }

    #[test]
    fn rotations_keep_lengths_and_turn_by_the_angle() {
        let mut angles = vec![0f32; 8];
        rope_angles(&[0.5, 0.25, 0.1, 0.01], 3, 1.0, &mut angles);
        let head: Vec<f32> = (1..=8).map(|x| x as f32).collect();
        let (mut halves, mut pairs) = (head.clone(), head.clone());
        rotate(&mut halves, &angles);
        rope_pairs(&mut pairs, &angles);
        let (s, c) = 1.5f32.sin_cos();
        assert!((halves[0] - (c - 5.0 * s)).abs() < 1e-5 && (halves[4] - (5.0 * c + s)).abs() < 1e-5);
        assert!((pairs[0] - (c - 2.0 * s)).abs() < 1e-5 && (pairs[1] - (2.0 * c + s)).abs() < 1e-5);
    }

    #[test]
    fn the_first_of_the_largest_wins() {
        for isa in Isa::available() {
            for n in [1, 15, 16, 300, 1000] {
                let mut x: Vec<f32> = (0..n).map(|i| -(i as f32)).collect();
                assert_eq!(argmax(isa, &x), 0);
                x[n - 1] = 5.0;
                x[n / 2] = 5.0;
                assert_eq!(argmax(isa, &x), n / 2);
            }
            assert_eq!(argmax(isa, &[f32::NAN, f32::NEG_INFINITY, 1.0, f32::NAN]), 2);
        }
    }
}
