//! The kernels alone: what the machine could do, and what each format reaches of it at several batch sizes.
//!
//! `kernels [threads] [format] [tokens]` prints a table. Weights are those of a 0.6B model's layers, so they do not fit the caches.

use std::time::Instant;

use covey_kernels::{Activations, Format, Isa, Packed, Pool, Target, matmul};

/// Layers, and the matrices `(rows, cols)` of each, in the shape of Qwen3-0.6B.
const LAYERS: usize = 14;
const MATRICES: [(usize, usize); 4] = [(4096, 1024), (1024, 2048), (6144, 1024), (1024, 3072)];

fn main() {
    let threads = std::env::args().nth(1).and_then(|n| n.parse().ok());
    let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()));
    let pool = Pool::new(threads);
    println!("{threads} threads, {:?}", Isa::detect());
    let bandwidth = covey_kernels::measure::read_bandwidth(&pool);
    let integer = covey_kernels::measure::integer_peak(&pool);
    let float = covey_kernels::measure::float_peak(&pool);
    println!(
        "read {:.1} GB/s, 8-bit products {:.0} G/s, f32 multiply-adds {:.0} G/s",
        bandwidth / 1e9,
        integer / 1e9,
        float / 1e9
    );
    println!("{:6} {:>6} {:>10} {:>8} {:>10} {:>8}", "format", "tokens", "us/layer", "GB/s", "G mul/s", "of roof");
    let only = (std::env::args().nth(2), std::env::args().nth(3).and_then(|n| n.parse::<usize>().ok()));
    for format in [Format::Q4_0, Format::Q8_0, Format::Q4K, Format::Q5K, Format::Q6K, Format::F16, Format::Bf16] {
        if only.0.as_ref().is_some_and(|name| *name != format!("{format:?}")) {
            continue;
        }
        let layers: Vec<Vec<Packed>> = (0..LAYERS)
            .map(|layer| MATRICES.iter().map(|(rows, cols)| random(format, *rows, *cols, layer, &pool)).collect())
            .collect();
        let bytes: usize = layers.iter().flatten().map(Packed::bytes).sum();
        let products: usize = layers.iter().flatten().map(|w| w.rows() * w.cols()).sum();
        for tokens in [1, 2, 4, 8, 16, 64, 512] {
            if only.1.is_some_and(|n| n != tokens) {
                continue;
            }
            let mut x: Vec<Activations> = MATRICES
                .iter()
                .map(|(_, cols)| {
                    let mut x = Activations::new(Isa::detect());
                    x.reset(tokens, *cols)
                        .iter_mut()
                        .enumerate()
                        .for_each(|(i, x)| *x = ((i * 37) % 101) as f32 / 50.0 - 1.0);
                    x
                })
                .collect();
            let mut y = vec![0f32; tokens * 6144];
            let mut best = f64::MAX;
            for _ in 0..(if tokens > 64 { 2 } else { 12 }) {
                let start = Instant::now();
                for layer in &layers {
                    for (w, x) in layer.iter().zip(&mut x) {
                        matmul(w, x, Target::whole(&mut y[..tokens * w.rows()], w.rows()), &pool);
                    }
                }
                best = best.min(start.elapsed().as_secs_f64());
            }
            let work = (products * tokens) as f64;
            let peak = if format.is_float() { float } else { integer };
            let roof = (bytes as f64 / bandwidth).max(work / peak);
            println!(
                "{:6} {tokens:6} {:10.0} {:8.1} {:10.0} {:7.0}%",
                format!("{format:?}"),
                best * 1e6 / LAYERS as f64,
                bytes as f64 / best / 1e9,
                work / best / 1e9,
                roof / best * 100.0
            );
        }
    }
}

/// Bytes that are valid in any format: small scales, arbitrary quants.
fn random(format: Format, rows: usize, cols: usize, seed: usize, pool: &Pool) -> Packed {
    let mut state = seed as u64 * 0x9E37_79B9_7F4A_7C15 + 1;
    let mut source = vec![0u8; rows * cols / format.block_cols() * format.block_bytes()];
    for x in &mut source {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        // Exponents below 0x3f keep 16-bit floats finite.
        *x = (state >> 33) as u8 & 0x3f;
    }
    Packed::pack(format, rows, cols, &source, pool)
}
