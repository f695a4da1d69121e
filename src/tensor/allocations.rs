//! How often a thread asks for memory; with the feature `count-allocations` only, since a program has one allocator.

/// How often this thread has asked the allocator for memory; None without the feature.
#[cfg(feature = "count-allocations")]
pub fn allocations() -> Option<u64> {
    counting::COUNT.try_with(std::cell::Cell::get).ok()
}

/// How often this thread has asked the allocator for memory; None without the feature.
#[cfg(not(feature = "count-allocations"))]
pub fn allocations() -> Option<u64> {
    None
}

#[cfg(feature = "count-allocations")]
mod counting {
    use std::alloc::{GlobalAlloc, Layout, System};
    use std::cell::Cell;

    thread_local! {
        // In place and without a destructor: counting asks for no memory itself.
        pub static COUNT: Cell<u64> = const { Cell::new(0) };
    }

    struct Counting;

    fn count() {
        // A thread that ends may ask after its counter is gone.
        let _ = COUNT.try_with(|count| count.set(count.get() + 1));
    }

    // SAFETY: everything is passed on to the system's allocator.
    unsafe impl GlobalAlloc for Counting {
        unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
            count();
            // SAFETY: as for this function.
            unsafe { System.alloc(layout) }
        }

        unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
            count();
            // SAFETY: as for this function.
            unsafe { System.alloc_zeroed(layout) }
        }

        unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, len: usize) -> *mut u8 {
            count();
            // SAFETY: as for this function.
            unsafe { System.realloc(pointer, layout, len) }
        }

        unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
            // SAFETY: as for this function.
            unsafe { System.dealloc(pointer, layout) }
        }
    }

    #[global_allocator]
    static ALLOCATOR: Counting = Counting;
}
