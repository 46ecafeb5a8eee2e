//! The heap of a guest. A call gets a fresh instance, and most calls need little memory: the heap begins in a
//! region that the module's memory has from the start, so that such a call never asks the host for more. Growing a
//! memory costs the host system calls that are dear beside a short call.
//!
//! `dlmalloc` is the allocator that Rust's own standard library uses on this target; only where it gets its memory is
//! ours.

#![allow(unsafe_code, reason = "an allocator; each use says why it holds")]

use core::alloc::{GlobalAlloc, Layout};
use core::cell::{Cell, UnsafeCell};

use dlmalloc::Dlmalloc;

/// Bytes of the region. Zeroes, so it takes up no room in the component.
const REGION: usize = 256 * 1024;

/// Bytes of a page of linear memory.
const PAGE: usize = 64 * 1024;

#[repr(align(16))]
struct Region(UnsafeCell<[u8; REGION]>);

// SAFETY: the target has one thread.
unsafe impl Sync for Region {}

static HEAP: Region = Region(UnsafeCell::new([0; REGION]));

/// Hands out the region once, then pages.
struct Pages {
    region_given: Cell<bool>,
}

// SAFETY: what it hands out is zeroed, is handed out once, and is never taken back.
unsafe impl dlmalloc::Allocator for Pages {
    fn alloc(&self, size: usize) -> (*mut u8, usize, u32) {
        if size <= REGION && !self.region_given.replace(true) {
            return (HEAP.0.get().cast(), REGION, 0);
        }
        let pages = size.div_ceil(PAGE);
        let before = core::arch::wasm32::memory_grow(0, pages);
        if before == usize::MAX { (core::ptr::null_mut(), 0, 0) } else { ((before * PAGE) as *mut u8, pages * PAGE, 0) }
    }

    fn remap(&self, _: *mut u8, _: usize, _: usize, _: bool) -> *mut u8 {
        core::ptr::null_mut()
    }

    fn free_part(&self, _: *mut u8, _: usize, _: usize) -> bool {
        false
    }

    fn free(&self, _: *mut u8, _: usize) -> bool {
        false
    }

    fn can_release_part(&self, _: u32) -> bool {
        false
    }

    fn allocates_zeros(&self) -> bool {
        true
    }

    fn page_size(&self) -> usize {
        PAGE
    }
}

struct Heap(UnsafeCell<Dlmalloc<Pages>>);

// SAFETY: the target has one thread.
unsafe impl Sync for Heap {}

#[global_allocator]
static ALLOCATOR: Heap = Heap(UnsafeCell::new(Dlmalloc::new_with_allocator(Pages { region_given: Cell::new(false) })));

// SAFETY: each method passes on to `Dlmalloc` what the caller promised to this trait. The exclusive borrow lasts for
// one call that calls back into nothing, on the one thread.
unsafe impl GlobalAlloc for Heap {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: see above.
        unsafe { (*self.0.get()).malloc(layout.size(), layout.align()) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: see above.
        unsafe { (*self.0.get()).free(block, layout.size(), layout.align()) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: see above.
        unsafe { (*self.0.get()).calloc(layout.size(), layout.align()) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: see above.
        unsafe { (*self.0.get()).realloc(block, layout.size(), layout.align(), size) }
    }
}
