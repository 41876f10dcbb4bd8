//! Memory for weights and caches: aligned to cache lines, zeroed, in large pages where the system has them.
#![expect(unsafe_code, reason = "raw allocation with an alignment that `Vec` cannot ask for")]

use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    ptr::NonNull,
};

/// Bytes from which a buffer is mapped, in large pages where the system has them; their size on x86-64 and most arm64.
const HUGE_PAGE: usize = 2 << 20;
const CACHE_LINE: usize = 64;

/// Zeroed bytes at an address that is a multiple of 64. Pages of a large buffer are only taken from the system when they
/// are touched: a cache may promise more than it uses.
#[derive(Debug)]
pub struct Buffer {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a buffer owns its bytes like a `Vec<u8>` does.
unsafe impl Send for Buffer {}
// SAFETY: shared access only reads, or writes through kernels that split it into disjoint parts.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        if len >= HUGE_PAGE {
            return Self { start: map(len), len };
        }
        // SAFETY: the layout has a size above zero.
        let start = unsafe { alloc_zeroed(layout(len)) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout(len)) };
        Self { start, len }
    }

    /// Where it begins.
    pub fn as_ptr(&self) -> *const u8 {
        self.start.as_ptr()
    }

    /// Where it begins, to write. The writer answers for not writing where another reads or writes.
    pub fn as_mut_ptr(&self) -> *mut u8 {
        self.start.as_ptr()
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `len` bytes are allocated and were zeroed.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// All bytes, to write.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` is the only way in.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// Bytes held.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.len >= HUGE_PAGE {
            // SAFETY: mapped by `map` with this length.
            unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
        } else {
            // SAFETY: allocated by `zeroed` with this layout.
            unsafe { dealloc(self.start.as_ptr(), layout(self.len)) };
        }
    }
}

fn layout(len: usize) -> Layout {
    Layout::from_size_align(len.max(1), CACHE_LINE).expect("a small buffer fits the address space")
}

/// Memory from the system, zero when first touched. The allocator would zero an aligned block by writing it.
fn map(len: usize) -> NonNull<u8> {
    let (protection, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new private mapping touches nothing else.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, kind, -1, 0) };
    if start == libc::MAP_FAILED {
        handle_alloc_error(Layout::from_size_align(len, CACHE_LINE).expect("a size that a mapping can have"));
    }
    #[cfg(target_os = "linux")]
    // Advice only: walking 4 KiB pages costs a third of the bandwidth of one core. Nothing depends on it.
    // SAFETY: the range was just mapped.
    unsafe {
        libc::madvise(start, len, libc::MADV_HUGEPAGE);
    }
    NonNull::new(start.cast()).expect("a mapping that did not fail is somewhere")
}
