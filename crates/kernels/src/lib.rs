//! CPU kernels of the engine: weights packed for the machine's widest registers, dot products, attention over blocks of
//! keys and values, and the one pool of threads they run on.
//!
//! What holds for every kernel: the arithmetic of one output number depends on nothing but its own inputs. The same row
//! and token give the same bits whatever else is in the batch, however a prompt was cut into chunks, and whichever
//! thread computed it. Sequences can therefore be batched, forked and cached without a token changing.
//!
//! Instructions are chosen at run time ([`Isa::detect`]): AVX-512 with VNNI, AVX2 with FMA, or portable code that the
//! compiler vectorizes.

#![expect(clippy::needless_range_loop, reason = "kernels walk several arrays of registers by one index")]

mod attention;
mod brain;
mod buffer;
mod float;
mod format;
mod isa;
mod matmul;
pub mod measure;
mod pool;
mod quantize;
mod rows;
mod simd;

pub use attention::{Attention, BLOCK, KvShape, KvStore, Plan, attend};
pub use buffer::Buffer;
pub use format::{Format, Packed};
pub use isa::Isa;
pub use matmul::{Activations, Target, matmul};
pub use pool::Pool;
pub use rows::{
    argmax, gelu_erf, gelu_mul, layer_norm, log_sum_exp, rms_norm, rope_angles, rope_pairs, rotate, silu_mul,
};

/// Rows of a weight matrix that are packed together: one 512-bit register of `f32`.
pub const TILE: usize = 16;
