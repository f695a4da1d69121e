//! What a hostile file can make the parser allocate.

mod common;

use common::GgufWriter;
use edgellm::file::{gguf, kind};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Counts what this thread holds.
struct Counting;

thread_local! {
    static HELD: Cell<isize> = const { Cell::new(0) };
    static HELD_MAX: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // A thread that ends may free after its counters are gone.
    let _ = HELD.try_with(|held| {
        held.set(held.get() + bytes);
        HELD_MAX.with(|max| max.set(max.get().max(held.get())));
    });
}

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as for this function.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as for this function.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn a_bad_file_costs_at_most_twice_its_bytes() {
    let mut keys = GgufWriter::new();
    let mut tensors = GgufWriter::new();
    for i in 0..65_535 {
        let name = format!("{i:x}");
        keys.kv_u8(&name, 0);
        tensors.tensor_raw(name.as_bytes(), &[1], 0, Some(i * 32), vec![]);
    }
    keys.kv_raw(b"last", kind::BOOL, &[2]);
    let twice = keys.clone().remove("last").kv_u8("0", 0).write(3);
    let strings = GgufWriter::new().kv_strings("s", &vec!["x"; 200_000]).kv_raw(b"b", 99, &[]).write(3);
    let mut lie = keys.write(3);
    lie[8..16].copy_from_slice(&65_536u64.to_le_bytes());
    for (what, bytes) in
        [("keys", keys.write(3)), ("twice", twice), ("tensors", tensors.write(3)), ("strings", strings), ("lie", lie)]
    {
        let before = HELD.get();
        HELD_MAX.set(before);
        assert!(gguf::parse(&bytes).is_err(), "{what}");
        let cost = HELD_MAX.get() - before;
        assert!(cost <= 2 * bytes.len() as isize + 4096, "{what}: {cost} bytes for a file of {}", bytes.len());
        assert_eq!(HELD.get(), before, "{what} leaks");
    }
}
