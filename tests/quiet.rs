//! After `Session::new` a step asks for no memory, on any thread.

mod common;

use common::{ModelSpec, Vocabulary, forever, random_model};
use edgellm::{EventKind, LoadOptions, Model, Sampling, Session, SessionOptions, Source};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;
static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn steps_allocate_nothing() {
    let spec = ModelSpec { vocabulary: Vocabulary::Gpt2 { pre: "qwen2" }, ..ModelSpec::tiny("qwen2") };
    for threads in [1, 3] {
        let options = LoadOptions { threads, ..LoadOptions::default() };
        let model = Model::load(Source::Bytes(forever(random_model(&spec))), options).expect("a good model");
        let mut session =
            Session::new(&model, &SessionOptions { context_len: 256, prefill_chunk: 16, ..SessionOptions::default() })
                .expect("memory");
        let greedy = Sampling { ignore_eos: true, ..Sampling::default() };
        let everything = Sampling {
            temperature: 0.9,
            top_k: 50,
            top_p: 0.9,
            min_p: 0.01,
            repeat_penalty: 1.1,
            frequency_penalty: 0.1,
            presence_penalty: 0.1,
            bias: vec![(3, 1.0)],
            stops: vec!["never to be found".into(), "\u{FFFD}!".into()],
            stop_tokens: vec![319],
            ..greedy.clone()
        };
        for sampling in [greedy, everything] {
            session.set_sampling(&sampling).expect("good settings");
            session.rewind(0).expect("shorter");
            session.prompt(&(0..100).collect::<Vec<_>>()).expect("room");
            let mut steps = 0;
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            while session.step(None).expect("a good step").kind != EventKind::End {
                steps += 1;
            }
            let allocated = ALLOCATIONS.load(Ordering::Relaxed) - before;
            assert_eq!(allocated, 0, "{allocated} allocations in {steps} steps with {threads} threads");
            assert!(steps > 20, "{steps} steps");
        }
    }
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    std::hint::black_box(vec![1]);
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 1, "the counter counts");
}
