use half::f16;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};

use super::*;

const ALL: [Format; 8] =
    [Format::F32, Format::F16, Format::Bf16, Format::Q4_0, Format::Q8_0, Format::Q4K, Format::Q5K, Format::Q6K];

/// Random quants with scales near 0.01, as bytes of a file.
fn source(format: Format, rows: usize, cols: usize, rng: &mut StdRng) -> Vec<u8> {
    let blocks = rows * cols / format.block_cols();
    let mut bytes = Vec::with_capacity(blocks * format.block_bytes());
    for _ in 0..blocks {
        let mut block = vec![0u8; format.block_bytes()];
        rng.fill(&mut block[..]);
        let d = f16::from_f32(rng.random_range(0.001..0.02)).to_le_bytes();
        match format {
            Format::F32 => block.copy_from_slice(&rng.random_range(-1f32..1.0).to_le_bytes()),
            Format::F16 => block.copy_from_slice(&f16::from_f32(rng.random_range(-1f32..1.0)).to_le_bytes()),
            Format::Bf16 => block.copy_from_slice(&half::bf16::from_f32(rng.random_range(-1f32..1.0)).to_le_bytes()),
            Format::Q4_0 | Format::Q8_0 => block[..2].copy_from_slice(&d),
            Format::Q4K | Format::Q5K => {
                block[..2].copy_from_slice(&d);
                block[2..4].copy_from_slice(&d);
            }
            Format::Q6K => block[208..].copy_from_slice(&d),
        }
        bytes.extend(block);
    }
    bytes
}

fn product(isa: Isa, weights: &Packed, x: &[f32], pool: &Pool) -> Vec<f32> {
    let tokens = x.len() / weights.cols();
    let mut activations = Activations::new(isa);
    activations.reset(tokens, weights.cols()).copy_from_slice(x);
    let mut y = vec![0f32; tokens * weights.rows()];
    matmul(weights, &mut activations, Target::whole(&mut y, weights.rows()), pool);
    y
}

#[test]
fn every_format_on_every_level_is_near_the_plain_product_and_the_same_in_any_batch() {
    let mut rng = StdRng::seed_from_u64(1);
    let pool = Pool::new(3);
    for format in ALL {
        for (rows, cols) in [
            (16, 256),
            (37, 512),
            (150, 768),
            (16, if format.block_cols() <= 32 { 96 } else { 256 }),
            (33, if format.is_float() { 51 } else { 256 }),
        ] {
            let weights = Packed::pack(format, rows, cols, &source(format, rows, cols, &mut rng), &pool);
            let tokens = 21;
            let x: Vec<f32> = (0..tokens * cols).map(|_| rng.random_range(-2f32..2.0)).collect();
            let mut row = vec![0f32; cols];
            let mut want = vec![0f64; tokens * rows];
            for r in 0..rows {
                weights.row(r, &mut row);
                for t in 0..tokens {
                    let dot = row.iter().zip(&x[t * cols..]).map(|(w, x)| f64::from(*w) * f64::from(*x));
                    want[t * rows + r] = dot.sum();
                }
            }
            let size = (want.iter().map(|y| y * y).sum::<f64>() / want.len() as f64).sqrt();
            for isa in Isa::available() {
                let got = product(isa, &weights, &x, &pool);
                let error = got.iter().zip(&want).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum::<f64>();
                let relative = (error / want.len() as f64).sqrt() / size;
                // Eight bits an activation cost about half a percent; floats only their rounding.
                let rounded = format == Format::Bf16 && isa == Isa::Avx512;
                let bound = if format.is_float() && !rounded { 1e-5 } else { 1e-2 };
                assert!(relative < bound, "{format:?} {isa:?} {rows}x{cols}: off by {relative}");
                for (from, until) in [(0, 1), (3, 5), (4, 12), (20, 21), (1, 21)] {
                    let part = product(isa, &weights, &x[from * cols..until * cols], &pool);
                    assert_eq!(part, got[from * rows..until * rows], "{format:?} {isa:?} tokens {from}..{until}");
                }
            }
        }
    }
}

#[test]
fn extremes_do_not_overflow() {
    let pool = Pool::new(1);
    for format in [Format::Q8_0, Format::Q4_0] {
        let mut block = vec![if format == Format::Q8_0 { 0x80 } else { 0xff }; format.block_bytes()];
        block[..2].copy_from_slice(&f16::from_f32(1.0).to_le_bytes());
        let weights = Packed::pack(format, 16, 32, &block.repeat(16), &pool);
        let x = vec![-3f32; 32];
        let mut row = vec![0f32; 32];
        weights.row(0, &mut row);
        let want: f32 = row.iter().map(|w| w * -3.0).sum();
        for isa in Isa::available() {
            let got = product(isa, &weights, &x, &pool);
            assert!((got[0] - want).abs() <= want.abs() * 1e-5, "{format:?} {isa:?}: {} is not {want}", got[0]);
        }
    }
}

#[test]
fn stacked_matrices_give_stacked_results_and_results_add_up() {
    let mut rng = StdRng::seed_from_u64(2);
    let pool = Pool::new(2);
    let part =
        |rows, rng: &mut StdRng| Packed::pack(Format::Q8_0, rows, 64, &source(Format::Q8_0, rows, 64, rng), &pool);
    let (a, b) = (part(32, &mut rng), part(24, &mut rng));
    let both = Packed::stack(&[&a, &b]);
    let x: Vec<f32> = (0..64).map(|i| (i as f32).sin()).collect();
    let isa = Isa::detect();
    let whole = product(isa, &both, &x, &pool);
    assert_eq!(whole, [product(isa, &a, &x, &pool), product(isa, &b, &x, &pool)].concat());
    let mut activations = Activations::new(isa);
    activations.reset(1, 64).copy_from_slice(&x);
    let mut y = vec![1f32; 56];
    matmul(&both, &mut activations, Target::add(&mut y, 56), &pool);
    assert!(y.iter().zip(&whole).all(|(y, w)| *y == 1.0 + w));
    let mut wide = vec![7f32; 60];
    matmul(&b, &mut activations, Target { y: &mut wide, cols: 60, at: 36, add: false }, &pool);
    assert_eq!(wide, [vec![7f32; 36], whole[32..].to_vec()].concat());
}
