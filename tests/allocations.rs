//! With the feature `count-allocations`, statistics say how often steps ask for memory: never after the first.

mod common;

use common::{ModelSpec, Vocabulary, forever, random_model};
use edgellm::tensor::allocations;
use edgellm::{LoadOptions, Model, Sampling, Session, SessionOptions, Source};

#[test]
fn steps_that_ask_for_memory_are_counted_and_there_are_none() {
    let before = allocations().expect("counted");
    let kept = std::hint::black_box(vec![1u8; 1000]);
    assert_eq!(allocations(), Some(before + 1), "the counter sees a vector");
    drop(kept);
    let spec = ModelSpec { vocabulary: Vocabulary::Gpt2 { pre: "qwen2" }, ..ModelSpec::tiny("qwen2") };
    let options = LoadOptions { threads: 2, ..LoadOptions::default() };
    let model = Model::load(Source::Bytes(forever(random_model(&spec))), options).expect("a good model");
    let session_options = SessionOptions { prefill_chunk: 16, ..SessionOptions::default() };
    let mut session = Session::new(&model, &session_options).expect("memory");
    let sampling = Sampling { temperature: 0.8, top_k: 20, max_tokens: 50, ignore_eos: true, ..Sampling::default() };
    session.set_sampling(&sampling).expect("good settings");
    session.prompt(&(0..100).collect::<Vec<_>>()).expect("room");
    session.step(None).expect("a good model");
    session.control().stats(true);
    for _ in 0..56 {
        session.step(None).expect("a good model");
    }
    let stats = session.control().stats(false);
    assert!(stats.tokens_out > 40);
    assert_eq!(stats.allocations, Some(0));
}
