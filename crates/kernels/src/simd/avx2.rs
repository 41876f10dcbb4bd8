//! AVX2 with FMA and F16C: sixteen lanes are two registers.
use std::arch::x86_64::*;

use super::Simd;

#[derive(Clone, Copy)]
pub(crate) struct Lanes;

/// Four products added up in each of eight lanes; `a` unsigned, `b` signed, and no pair of products beyond an i16.
#[inline(always)]
unsafe fn quads(a: __m256i, b: __m256i) -> __m256i {
    unsafe { _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)) }
}

// SAFETY: instructions only, as the trait asks.
unsafe impl Simd for Lanes {
    type F = (__m256, __m256);
    type I = (__m256i, __m256i);
    type B = (__m256i, __m256i);
    const TOKENS: usize = 2;
    const TILES: usize = 1;
    const RAISED: bool = false;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        unsafe { (_mm256_set1_ps(x), _mm256_set1_ps(x)) }
    }
    #[inline(always)]
    unsafe fn load(at: *const f32) -> Self::F {
        unsafe { (_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(8))) }
    }
    #[inline(always)]
    unsafe fn store(at: *mut f32, x: Self::F) {
        unsafe {
            _mm256_storeu_ps(at, x.0);
            _mm256_storeu_ps(at.add(8), x.1);
        }
    }
    #[inline(always)]
    unsafe fn load_f16(at: *const u16) -> Self::F {
        unsafe {
            let low = _mm256_cvtph_ps(_mm_loadu_si128(at.cast()));
            (low, _mm256_cvtph_ps(_mm_loadu_si128(at.add(8).cast())))
        }
    }
    #[inline(always)]
    unsafe fn load_pairs(at: *const u32) -> (Self::F, Self::F) {
        unsafe {
            let (low, high) = (_mm256_loadu_si256(at.cast()), _mm256_loadu_si256(at.add(8).cast()));
            let mask = _mm256_set1_epi32(0xFFFF_0000_u32 as i32);
            let first = (_mm256_slli_epi32::<16>(low), _mm256_slli_epi32::<16>(high));
            let second = (_mm256_and_si256(low, mask), _mm256_and_si256(high, mask));
            (
                (_mm256_castsi256_ps(first.0), _mm256_castsi256_ps(first.1)),
                (_mm256_castsi256_ps(second.0), _mm256_castsi256_ps(second.1)),
            )
        }
    }
    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        unsafe { (_mm256_add_ps(a.0, b.0), _mm256_add_ps(a.1, b.1)) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        unsafe { (_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1)) }
    }
    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        unsafe { (_mm256_max_ps(a.0, b.0), _mm256_max_ps(a.1, b.1)) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { (_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1)) }
    }
    #[inline(always)]
    unsafe fn fnma(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        unsafe { (_mm256_fnmadd_ps(a.0, b.0, c.0), _mm256_fnmadd_ps(a.1, b.1, c.1)) }
    }
    #[inline(always)]
    unsafe fn round(x: Self::F) -> Self::F {
        const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
        unsafe { (_mm256_round_ps::<NEAREST>(x.0), _mm256_round_ps::<NEAREST>(x.1)) }
    }
    #[inline(always)]
    unsafe fn scale2(x: Self::F, n: Self::F) -> Self::F {
        unsafe {
            let power = |n: __m256| {
                let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
            };
            (_mm256_mul_ps(x.0, power(n.0)), _mm256_mul_ps(x.1, power(n.1)))
        }
    }
    #[inline(always)]
    unsafe fn isplat(x: i32) -> Self::I {
        unsafe { (_mm256_set1_epi32(x), _mm256_set1_epi32(x)) }
    }
    #[inline(always)]
    unsafe fn to_f(x: Self::I) -> Self::F {
        unsafe { (_mm256_cvtepi32_ps(x.0), _mm256_cvtepi32_ps(x.1)) }
    }
    #[inline(always)]
    unsafe fn ishl<const N: u32>(x: Self::I) -> Self::I {
        unsafe {
            (_mm256_sll_epi32(x.0, _mm_cvtsi32_si128(N as i32)), _mm256_sll_epi32(x.1, _mm_cvtsi32_si128(N as i32)))
        }
    }
    #[inline(always)]
    unsafe fn dot(sum: Self::I, weights: Self::B, x: i32) -> Self::I {
        unsafe {
            let x = _mm256_set1_epi32(x);
            (_mm256_add_epi32(sum.0, quads(weights.0, x)), _mm256_add_epi32(sum.1, quads(weights.1, x)))
        }
    }
    #[inline(always)]
    unsafe fn dot_wide(sum: Self::I, weights: Self::B, x: i32) -> Self::I {
        // |w| * (x with the sign of w): both stay in 8 bits, and 2 * 128 * 127 fits an i16.
        unsafe {
            let x = _mm256_set1_epi32(x);
            let low = quads(_mm256_abs_epi8(weights.0), _mm256_sign_epi8(x, weights.0));
            let high = quads(_mm256_abs_epi8(weights.1), _mm256_sign_epi8(x, weights.1));
            (_mm256_add_epi32(sum.0, low), _mm256_add_epi32(sum.1, high))
        }
    }
    #[inline(always)]
    unsafe fn load_bytes(at: *const u8) -> Self::B {
        unsafe { (_mm256_loadu_si256(at.cast()), _mm256_loadu_si256(at.add(32).cast())) }
    }
    #[inline(always)]
    unsafe fn store_bytes(at: *mut u8, x: Self::B) {
        unsafe {
            _mm256_storeu_si256(at.cast(), x.0);
            _mm256_storeu_si256(at.add(32).cast(), x.1);
        }
    }
    #[inline(always)]
    unsafe fn and(a: Self::B, mask: u8) -> Self::B {
        unsafe {
            let mask = _mm256_set1_epi8(mask as i8);
            (_mm256_and_si256(a.0, mask), _mm256_and_si256(a.1, mask))
        }
    }
    #[inline(always)]
    unsafe fn or(a: Self::B, b: Self::B) -> Self::B {
        unsafe { (_mm256_or_si256(a.0, b.0), _mm256_or_si256(a.1, b.1)) }
    }
    #[inline(always)]
    unsafe fn xor(a: Self::B, mask: u8) -> Self::B {
        unsafe {
            let mask = _mm256_set1_epi8(mask as i8);
            (_mm256_xor_si256(a.0, mask), _mm256_xor_si256(a.1, mask))
        }
    }
    #[inline(always)]
    unsafe fn shl<const N: u32>(x: Self::B) -> Self::B {
        unsafe {
            let n = _mm_cvtsi32_si128(N as i32);
            (_mm256_sll_epi16(x.0, n), _mm256_sll_epi16(x.1, n))
        }
    }
    #[inline(always)]
    unsafe fn shr<const N: u32>(x: Self::B) -> Self::B {
        unsafe {
            let n = _mm_cvtsi32_si128(N as i32);
            (_mm256_srl_epi16(x.0, n), _mm256_srl_epi16(x.1, n))
        }
    }
    #[inline(always)]
    unsafe fn prefetch(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[inline(always)]
    unsafe fn load_u8(at: *const u8) -> Self::F {
        unsafe {
            let x = _mm_loadu_si128(at.cast());
            let (low, high) = (_mm256_cvtepu8_epi32(x), _mm256_cvtepu8_epi32(_mm_srli_si128::<8>(x)));
            (_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(at: *const u8) -> Self::F {
        unsafe {
            let x = _mm_loadu_si128(at.cast());
            let (low, high) = (_mm256_cvtepi8_epi32(x), _mm256_cvtepi8_epi32(_mm_srli_si128::<8>(x)));
            (_mm256_cvtepi32_ps(low), _mm256_cvtepi32_ps(high))
        }
    }
}
