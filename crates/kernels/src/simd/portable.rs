//! Plain loops over sixteen lanes; the compiler makes vectors of them. The reference for the other levels.
use std::array::from_fn;

use half::f16;

use super::Simd;

#[derive(Clone, Copy)]
pub(crate) struct Lanes;

// SAFETY: reads and writes just the elements that the trait names.
unsafe impl Simd for Lanes {
    type F = [f32; 16];
    type I = [i32; 16];
    type B = [u8; 64];
    const TOKENS: usize = 2;
    const TILES: usize = 1;
    const RAISED: bool = false;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [x; 16]
    }
    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self::F {
        from_fn(|i| unsafe { at.add(i).read_unaligned() })
    }
    #[inline(always)]
    unsafe fn store(at: *mut f32, x: Self::F) {
        for (i, x) in x.into_iter().enumerate() {
            unsafe { at.add(i).write_unaligned(x) };
        }
    }
    #[inline(always)]
    unsafe fn load_f16(at: *const u16) -> Self::F {
        from_fn(|i| f16::from_bits(unsafe { at.add(i).read_unaligned() }).to_f32())
    }
    #[inline(always)]
    unsafe fn load_pairs(at: *const u32) -> (Self::F, Self::F) {
        let both: [u32; 16] = from_fn(|i| unsafe { at.add(i).read_unaligned() });
        (both.map(|b| f32::from_bits(b << 16)), both.map(|b| f32::from_bits(b & 0xFFFF_0000)))
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // Without the instruction `mul_add` is a call into the C library.
        if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
            from_fn(|i| a[i].mul_add(b[i], c[i]))
        } else {
            from_fn(|i| a[i] * b[i] + c[i])
        }
    }
    #[inline(always)]
    unsafe fn fnma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { Self::fma(from_fn(|i| -a[i]), b, c) }
    }
    #[inline(always)]
    unsafe fn round(x: Self::F) -> Self::F {
        from_fn(|i| x[i].round_ties_even())
    }
    #[inline(always)]
    unsafe fn scale2(x: Self::F, n: Self::F) -> Self::F {
        from_fn(|i| x[i] * f32::from_bits(((n[i] as i32 + 127) << 23) as u32))
    }
    #[inline(always)]
    unsafe fn isplat(x: i32) -> Self::I {
        [x; 16]
    }
    #[inline(always)]
    unsafe fn to_f(x: Self::I) -> Self::F {
        from_fn(|i| x[i] as f32)
    }
    #[inline(always)]
    unsafe fn ishl<const N: u32>(x: Self::I) -> Self::I {
        x.map(|x| x << N)
    }
    #[inline(always)]
    unsafe fn dot(sum: Self::I, weights: Self::B, x: i32) -> Self::I {
        let x = x.to_le_bytes();
        from_fn(|i| {
            let four = (0..4).map(|j| i32::from(weights[4 * i + j]) * i32::from(x[j] as i8));
            sum[i] + four.sum::<i32>()
        })
    }
    #[inline(always)]
    unsafe fn dot_wide(sum: Self::I, weights: Self::B, x: i32) -> Self::I {
        let x = x.to_le_bytes();
        from_fn(|i| {
            let four = (0..4).map(|j| i32::from(weights[4 * i + j] as i8) * i32::from(x[j] as i8));
            sum[i] + four.sum::<i32>()
        })
    }
    #[inline(always)]
    unsafe fn load_bytes(at: *const u8) -> Self::B {
        unsafe { at.cast::<[u8; 64]>().read() }
    }
    #[inline(always)]
    unsafe fn store_bytes(at: *mut u8, x: Self::B) {
        unsafe { at.cast::<[u8; 64]>().write(x) };
    }
    #[inline(always)]
    unsafe fn and(a: Self::B, mask: u8) -> Self::B {
        a.map(|x| x & mask)
    }
    #[inline(always)]
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B {
        from_fn(|i| a[i] | b[i])
    }
    #[inline(always)]
    unsafe fn xor(a: Self::B, mask: u8) -> Self::B {
        a.map(|x| x ^ mask)
    }
    #[inline(always)]
    unsafe fn shl<const N: u32>(x: Self::B) -> Self::B {
        x.map(|x| x << N)
    }
    #[inline(always)]
    unsafe fn shr<const N: u32>(x: Self::B) -> Self::B {
        x.map(|x| x >> N)
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
    #[inline(always)]
    unsafe fn load_u8(at: *const u8) -> Self::F {
        from_fn(|i| f32::from(unsafe { *at.add(i) }))
    }
    #[inline(always)]
    unsafe fn load_i8(at: *const u8) -> Self::F {
        from_fn(|i| f32::from(unsafe { *at.add(i) } as i8))
    }
}
