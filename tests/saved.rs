//! Saved sessions: what goes on bit for bit, and what is refused.

mod common;

use common::{ModelSpec, Rng, Vocabulary, forever, random_model, refusal};
use edgellm::{
    Error, EventKind, GrammarMode, KvFormat, LoadOptions, Model, OnFull, Sampling, Session, SessionOptions, Source,
};
use std::sync::Arc;

fn load(bytes: &'static [u8]) -> Arc<Model> {
    Model::load(Source::Bytes(bytes), LoadOptions { threads: 2, ..LoadOptions::default() }).expect("a good model")
}

fn spec() -> ModelSpec {
    ModelSpec { vocabulary: Vocabulary::Gpt2 { pre: "qwen2" }, ..ModelSpec::tiny("qwen2") }
}

fn model() -> Arc<Model> {
    load(forever(random_model(&spec())))
}

fn options(kv_format: KvFormat) -> SessionOptions {
    SessionOptions { context_len: 400, prefill_chunk: 64, kv_format, ..SessionOptions::default() }
}

/// Every setting other than its default.
fn settings() -> Sampling {
    Sampling {
        temperature: 0.9,
        top_k: 200,
        top_p: 0.99,
        min_p: 0.001,
        repeat_penalty: 1.1,
        frequency_penalty: 0.1,
        presence_penalty: 0.1,
        penalty_last_n: 20,
        seed: 1 << 40 | 9,
        max_tokens: 60,
        ignore_eos: true,
        bias: vec![(3, -0.5), (9, f32::NEG_INFINITY)],
        stops: vec!["no such text".into(), "h".repeat(30)],
        stop_tokens: vec![9],
        prompt_lookup: true,
        alternatives: 3,
        // A grammar is not saved.
        grammar: None,
        grammar_mode: GrammarMode::Now,
    }
}

fn tokens(count: usize) -> Vec<u32> {
    let mut rng = Rng::new(3);
    (0..count).map(|_| rng.below(spec().vocab) as u32).collect()
}

fn saved(session: &mut Session) -> Vec<u8> {
    let mut bytes = Vec::new();
    let saving = session.save().expect("memory");
    let len = saving.bytes();
    let mut sink = |part: &[u8]| {
        bytes.extend_from_slice(part);
        Ok(())
    };
    saving.write(&mut sink).expect("memory");
    assert_eq!(bytes.len(), len);
    bytes
}

/// One step: all that it says but its time.
fn step(session: &mut Session) -> (EventKind, Option<u32>, u32, String, [usize; 3]) {
    let event = session.step(None).expect("a good step");
    let counts = [event.prompt_done, event.prompt_total, event.length];
    (event.kind, event.token, event.logprob.to_bits(), event.text.to_owned(), counts)
}

#[test]
fn a_restored_session_goes_on_bit_for_bit_from_after_any_step() {
    let model = model();
    for (kv_format, prompt_len) in [(KvFormat::F16, 300), (KvFormat::I8, 70), (KvFormat::F16, 1)] {
        let mut session = Session::new(&model, &options(kv_format)).expect("memory");
        session.set_sampling(&settings()).expect("good settings");
        session.prompt(&tokens(prompt_len)).expect("room");
        let (mut states, mut steps) = (Vec::new(), Vec::new());
        loop {
            states.push(saved(&mut session));
            if !(prompt_len..prompt_len + 3).contains(&session.tokens().len()) {
                // Also where logits are there and no token was chosen.
                let mut forked = session.fork().expect("memory");
                if forked.forward(None).is_ok() {
                    let (bits, state) = (logits(&mut forked), saved(&mut forked));
                    let mut restored = Session::new(&model, &options(kv_format)).expect("memory");
                    restored.restore(&state).expect("as it was saved");
                    assert!(logits(&mut restored) == bits);
                }
            }
            steps.push(step(&mut session));
            if steps.last().is_some_and(|step| step.0 == EventKind::End) {
                break;
            }
        }
        assert!(steps.len() >= 60);
        // A session of another shape and in another state.
        let other = SessionOptions { context_len: 512, prefill_chunk: 64, ..options(kv_format) };
        let mut restored = Session::new(&model, &other).expect("memory");
        restored.prompt(&[1; 500]).expect("room");
        for (from, state) in states.iter().enumerate() {
            restored.restore(state).expect("as it was saved");
            assert_eq!(saved(&mut restored), *state, "what is restored is saved as the same bytes");
            for expected in &steps[from..] {
                assert_eq!(step(&mut restored), *expected, "{kv_format:?}, from step {from}");
            }
            assert_eq!(restored.tokens(), session.tokens());
        }
    }
}

fn logits(session: &mut Session) -> Vec<u32> {
    assert!(session.forward(None).expect("a good pass"));
    session.logits().expect("just computed").iter().map(|logit| logit.to_bits()).collect()
}

#[test]
fn text_that_was_held_back_comes_after_the_restore() {
    let model = model();
    let mut session = Session::new(&model, &options(KvFormat::Auto)).expect("memory");
    let sampling = Sampling { stops: vec!["hello world".into()], ignore_eos: true, ..Sampling::default() };
    session.set_sampling(&sampling).expect("good settings");
    session.prompt(&[1]).expect("room");
    let tokenizer = model.tokenizer().expect("a vocabulary");
    // "hello" may become the stop text; the last token is half of a character.
    let text = tokenizer.encode("hello", false, false).expect("text");
    let half = (0..spec().vocab as u32).find(|token| tokenizer.token_bytes(*token) == Some(&[0xC3]));
    for token in text.into_iter().chain(half) {
        session.forward(None).expect("a good pass");
        assert_eq!(session.accept(token).expect("in range").text, "");
    }
    let mut restored = Session::new(&model, &options(KvFormat::Auto)).expect("memory");
    restored.restore(&saved(&mut session)).expect("as it was saved");
    for session in [&mut session, &mut restored] {
        session.forward(None).expect("a good pass");
        let rest = (0..spec().vocab as u32).find(|token| tokenizer.token_bytes(*token) == Some(&[0xA9]));
        assert_eq!(session.accept(rest.expect("all bytes are tokens")).expect("in range").text, "hello\u{e9}");
    }
}

/// A state of few bytes with something of everything.
fn small() -> (Session, Vec<u8>) {
    let spec = ModelSpec { layers: 1, kv_heads: 1, heads: 2, head_dim: 16, ..spec() };
    let model = load(forever(random_model(&spec)));
    let mut session = Session::new(&model, &options(KvFormat::Auto)).expect("memory");
    session.set_sampling(&settings()).expect("good settings");
    session.prompt(&tokens(35)).expect("room");
    session.step(None).expect("a good step");
    let state = saved(&mut session);
    (session, state)
}

#[test]
fn every_flipped_byte_and_every_truncation_is_refused_and_changes_nothing() {
    let (mut session, mut state) = small();
    let before = (session.tokens().to_vec(), session.control().run());
    let refused = |session: &mut Session, state: &[u8], what: &str| match session.restore(state) {
        Err(Error::Integrity(_)) => {}
        other => panic!("{what}: {other:?}"),
    };
    for at in 0..state.len() {
        for flip in [0x01, 0x80, 0xFF] {
            state[at] ^= flip;
            refused(&mut session, &state, &format!("byte {at} ^ {flip:#x}"));
            state[at] ^= flip;
        }
    }
    for len in 0..state.len() {
        refused(&mut session, &state[..len], &format!("{len} bytes"));
        let mut reader = &state[..len];
        let read = session.restore_from(&mut reader);
        assert!(matches!(read, Err(Error::Integrity(_))), "{len} bytes: {read:?}");
    }
    let longer = [&state[..], &[0]].concat();
    refused(&mut session, &longer, "a byte more");
    assert_eq!((session.tokens().to_vec(), session.control().run()), before);
    assert_eq!(saved(&mut session), state);
    session.restore(&state).expect("as it was saved");
}

/// The state with its checksum made right again.
fn forged(mut state: Vec<u8>) -> Vec<u8> {
    let at = state.len() - 16;
    let checksum = xxhash_rust::xxh3::xxh3_128(&state[..at]);
    state[at..].copy_from_slice(&checksum.to_le_bytes());
    state
}

#[test]
fn forged_states_are_refused_or_harmless() {
    let (mut session, state) = small();
    let (mut accepted, mut refusals) = (0, 0);
    let kv_bytes = 2 * 2 * 16 * 35 + 2 * 16 * 29; // They say what they like.
    for at in 0..state.len() - 16 - kv_bytes {
        for flip in [0x01, 0x80, 0xFF] {
            let mut forgery = state.clone();
            forgery[at] ^= flip;
            match session.restore(&forged(forgery)) {
                Err(Error::Integrity(_) | Error::Mismatch(_) | Error::Context { .. } | Error::State(_)) => {
                    refusals += 1
                }
                Err(error) => panic!("byte {at} ^ {flip:#x}: {error}"),
                Ok(()) => {
                    accepted += 1;
                    let _ = session.step(None);
                }
            }
        }
    }
    assert!(accepted > 300 && refusals > 300, "{accepted} {refusals}");
}

#[test]
fn what_was_saved_of_something_else_is_a_mismatch() {
    let (mut session, state) = small();
    let before = session.tokens().to_vec();
    let version = {
        let mut state = state.clone();
        state[8] = 2;
        forged(state)
    };
    assert_eq!(refusal(session.restore(&version)).1, "saved session of version 2: this library reads version 1");
    let other_model = saved(&mut Session::new(&model(), &options(KvFormat::Auto)).expect("memory"));
    assert_eq!(refusal(session.restore(&other_model)).0, "Mismatch");
    let mut int8 = Session::new(session.model(), &options(KvFormat::I8)).expect("memory");
    let (kind, text) = refusal(session.restore(&saved(&mut int8)));
    assert!(kind == "Mismatch" && text.contains("int8") && text.contains("f16"), "{kind}: {text}");
    let short = SessionOptions { context_len: 20, ..SessionOptions::default() };
    let mut short = Session::new(session.model(), &short).expect("memory");
    assert!(matches!(short.restore(&state), Err(Error::Context { capacity: 20, wanted: 36 })));
    assert_eq!(short.tokens(), [0u32; 0]);
    let mut huge = state.clone();
    huge[16..24].copy_from_slice(&(1u64 << 50).to_le_bytes());
    assert_eq!(refusal(session.restore_from(&mut &forged(huge)[..])).0, "Mismatch", "no memory is asked for that");
    assert_eq!(session.tokens(), before);
}

#[test]
fn the_fingerprint_tells_models_apart_and_not_how_they_are_loaded() {
    let spec = spec();
    let bytes = random_model(&spec);
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("saved-{}.gguf", std::process::id()));
    std::fs::write(&path, &bytes).expect("the model is written");
    let expected = *load(forever(bytes.clone())).fingerprint();
    for (mmap, exact) in [(true, false), (false, false), (true, true)] {
        let options = LoadOptions { threads: 1, mmap, exact, ..LoadOptions::default() };
        let model = Model::load(Source::Path(&path), options).expect("a good model");
        assert_eq!(*model.fingerprint(), expected, "mapped or read, as it is or exact");
    }
    let _ = std::fs::remove_file(path);
    let others = [
        random_model(&ModelSpec { seed: spec.seed + 1, ..spec.clone() }),
        random_model(&ModelSpec { vocabulary: Vocabulary::Gpt2 { pre: "smollm" }, ..spec.clone() }),
        random_model(&ModelSpec { freq_base: 12345.0, ..spec }),
    ];
    for other in others {
        assert_ne!(*load(forever(other)).fingerprint(), expected);
    }
}

#[test]
fn several_states_follow_one_another_in_a_stream() {
    let (mut session, first) = small();
    session.step(None).expect("a good step");
    let second = saved(&mut session);
    let both = [&first[..], &second[..]].concat();
    let mut reader = &both[..];
    for state in [&first, &second] {
        session.restore_from(&mut reader).expect("as it was saved");
        assert_eq!(saved(&mut session), *state);
    }
    assert!(reader.is_empty());
}

#[test]
fn an_empty_session_and_a_shifted_one_are_restored_too() {
    let model = model();
    let shift = SessionOptions { context_len: 48, on_full: OnFull::Shift { keep: 4 }, ..options(KvFormat::Auto) };
    let mut session = Session::new(&model, &shift).expect("memory");
    let mut restored = Session::new(&model, &shift).expect("memory");
    restored.restore(&saved(&mut session)).expect("as it was saved");
    assert!(restored.tokens().is_empty() && refusal(restored.step(None).map(|_| ())).0 == "State");
    session.set_sampling(&settings()).expect("good settings");
    session.prompt(&tokens(40)).expect("room");
    for _ in 0..30 {
        step(&mut session);
    }
    restored.restore(&saved(&mut session)).expect("as it was saved");
    for _ in 0..40 {
        assert_eq!(step(&mut session), step(&mut restored), "random numbers go on from the same position");
    }
}
