//! Memory for weights and caches: aligned to cache lines, zeroed, in large pages where the system has them.
#![expect(unsafe_code, reason = "raw allocation with an alignment that `Vec` cannot ask for")]

use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    ptr::NonNull,
};

/// Bytes from which a buffer is worth large pages; their size on x86-64 and most arm64 systems.
const HUGE_PAGE: usize = 2 << 20;
const CACHE_LINE: usize = 64;

/// Zeroed bytes at an address that is a multiple of 64. Pages are only taken from the system when they are touched.
#[derive(Debug)]
pub struct Buffer {
    start: NonNull<u8>,
    len: usize,
    align: usize,
}

// SAFETY: a buffer owns its bytes like a `Vec<u8>` does.
unsafe impl Send for Buffer {}
// SAFETY: shared access only reads, or writes through kernels that split it into disjoint parts.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// `len` zero bytes.
    pub fn zeroed(len: usize) -> Self {
        let align = if len >= HUGE_PAGE { HUGE_PAGE } else { CACHE_LINE };
        let layout = Layout::from_size_align(len.max(1), align).expect("a buffer is smaller than the address space");
        // SAFETY: the layout has a size above zero.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start) else { handle_alloc_error(layout) };
        #[cfg(target_os = "linux")]
        if len >= HUGE_PAGE {
            // Advice only: walking 4 KiB pages costs a third of the bandwidth of one core. Nothing depends on it.
            // SAFETY: the range was just allocated.
            unsafe { libc::madvise(start.as_ptr().cast(), len, libc::MADV_HUGEPAGE) };
        }
        Self { start, len, align }
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
        let layout = Layout::from_size_align(self.len.max(1), self.align).expect("it was a layout before");
        // SAFETY: allocated by `zeroed` with this layout.
        unsafe { dealloc(self.start.as_ptr(), layout) };
    }
}
