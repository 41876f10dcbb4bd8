//! Sixteen lanes of numbers on each level of instructions. Kernels are written once, over [`Simd`].
#![expect(unsafe_code, reason = "vector instructions and raw tiles of memory")]

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
pub(crate) mod portable;

/// Sixteen lanes.
///
/// # Safety
/// Every function needs the instructions of its level; those with pointers need as many readable or writable elements
/// there as they say. All are inlined into functions that enable the instructions.
pub(crate) unsafe trait Simd: Copy {
    /// 16 × `f32`.
    type F: Copy;
    /// 16 × `i32`.
    type I: Copy;
    /// 64 bytes: four columns of sixteen rows.
    type B: Copy;

    /// Tokens whose sums a kernel keeps in registers at once.
    const TOKENS: usize;
    /// Tiles that an integer kernel works on at once, where there are many tokens.
    const TILES: usize;
    /// Whether [`Simd::dot_wide`] takes weights raised by 128 (and its caller subtracts 128 × the sum of the others).
    const RAISED: bool;

    unsafe fn splat(x: f32) -> Self::F;
    /// 16 elements.
    unsafe fn load(at: *const f32) -> Self::F;
    /// 16 elements.
    unsafe fn store(at: *mut f32, x: Self::F);
    /// 16 elements.
    unsafe fn load_f16(at: *const u16) -> Self::F;
    /// 16 pairs of brain floats: the first of each, and the second.
    unsafe fn load_pairs(at: *const u32) -> (Self::F, Self::F);
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// `c - a * b`.
    unsafe fn fnma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The nearest whole numbers.
    unsafe fn round(x: Self::F) -> Self::F;
    /// `x * 2^n` for whole `n` in -127..128 given as floats.
    unsafe fn scale2(x: Self::F, n: Self::F) -> Self::F;

    unsafe fn isplat(x: i32) -> Self::I;
    unsafe fn ishl<const N: u32>(x: Self::I) -> Self::I;
    unsafe fn to_f(x: Self::I) -> Self::F;
    /// Adds to each lane the products of its four bytes of `weights` (unsigned, at most 127) with the four signed
    /// bytes of `x`.
    unsafe fn dot(sum: Self::I, weights: Self::B, x: i32) -> Self::I;
    /// The same for weights of eight bits: raised by 128 where [`Simd::RAISED`], else signed.
    unsafe fn dot_wide(sum: Self::I, weights: Self::B, x: i32) -> Self::I;

    /// 64 bytes.
    unsafe fn load_bytes(at: *const u8) -> Self::B;
    /// 64 bytes.
    unsafe fn store_bytes(at: *mut u8, x: Self::B);
    unsafe fn and(a: Self::B, mask: u8) -> Self::B;
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B;
    unsafe fn xor(a: Self::B, mask: u8) -> Self::B;
    /// Shifts that may carry bits from byte to byte: what would cross is masked away before or after.
    unsafe fn shl<const N: u32>(x: Self::B) -> Self::B;
    unsafe fn shr<const N: u32>(x: Self::B) -> Self::B;
    /// Says that the cache line there will be read. The address may be anything.
    unsafe fn prefetch(at: *const u8);
    /// Sixteen unsigned bytes.
    unsafe fn load_u8(at: *const u8) -> Self::F;
    /// Sixteen signed bytes.
    unsafe fn load_i8(at: *const u8) -> Self::F;
}

/// `e^x` for `x <= 0`, within 2 units of the last place; 0 below -87.
///
/// # Safety
/// As for [`Simd`].
#[inline(always)]
pub(crate) unsafe fn exp<S: Simd>(x: S::F) -> S::F {
    // Cody and Waite: x = n ln 2 + r, then a polynomial in r (Cephes' expf).
    // SAFETY: the caller has the instructions.
    unsafe {
        let x = S::max(x, S::splat(-87.3));
        let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
        let r = S::fnma(n, S::splat(0.693_359_4), x);
        let r = S::fnma(n, S::splat(-2.121_944_4e-4), r);
        let mut p = S::splat(1.987_569_1e-4);
        for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = S::fma(p, r, S::splat(c));
        }
        let y = S::add(S::fma(S::mul(r, r), p, r), S::splat(1.0));
        S::scale2(y, n)
    }
}
