//! Which instructions this machine has.

/// A level of instructions that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Whatever the target always has; the compiler vectorizes.
    Portable,
    /// AVX2, FMA, F16C.
    Avx2,
    /// AVX-512 F, BW, VL, DQ with VNNI.
    Avx512,
}

impl Isa {
    /// The best of this machine. `COVEY_ISA=portable|avx2|avx512` asks for less, to compare.
    pub fn detect() -> Self {
        use std::sync::OnceLock;
        static FOUND: OnceLock<Isa> = OnceLock::new();
        *FOUND.get_or_init(|| {
            let best = *Self::available().last().expect("portable code runs everywhere");
            match std::env::var("COVEY_ISA").as_deref() {
                Ok("portable") => Self::Portable,
                Ok("avx2") => best.min(Self::Avx2),
                _ => best,
            }
        })
    }

    /// All levels of this machine, the best last.
    pub fn available() -> Vec<Self> {
        #[allow(unused_mut, reason = "only one architecture adds to it")]
        let mut all = vec![Self::Portable];
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
                all.push(Self::Avx2);
                let needed = is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vnni");
                if needed {
                    all.push(Self::Avx512);
                }
            }
        }
        all
    }
}

/// Runs a generic kernel compiled for `$isa`: `dispatch!(isa, kernel::<S>(args))` with `S` the lanes of that level.
macro_rules! dispatch {
    ($isa:expr, $kernel:ident ( $($name:ident : $type:ty),* $(,)? ) $(-> $out:ty)?) => {{
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
        unsafe fn avx512($($name: $type),*) $(-> $out)? {
            // SAFETY: the caller of `dispatch!` answers for the pointers, the detection for the instructions.
            unsafe { $kernel::<$crate::simd::avx512::Lanes>($($name),*) }
        }
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma,f16c")]
        unsafe fn avx2($($name: $type),*) $(-> $out)? {
            // SAFETY: as above.
            unsafe { $kernel::<$crate::simd::avx2::Lanes>($($name),*) }
        }
        match $isa {
            #[cfg(target_arch = "x86_64")]
            $crate::Isa::Avx512 => avx512($($name),*),
            #[cfg(target_arch = "x86_64")]
            $crate::Isa::Avx2 => avx2($($name),*),
            _ => $kernel::<$crate::simd::portable::Lanes>($($name),*),
        }
    }};
}
pub(crate) use dispatch;
