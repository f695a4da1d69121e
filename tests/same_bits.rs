//! The promise that logits have the same bits whatever computes them: kernel table, threads, cut of the prompt.

mod common;

use common::{Formats, ModelSpec, Rng, Vocabulary, forever, random_model};
use edgellm::quant::Format;
use edgellm::{LoadOptions, Model, Session, SessionOptions, Source, cpu};
use std::sync::Arc;

fn load(bytes: &'static [u8], isa: &str, threads: usize) -> Arc<Model> {
    let options = LoadOptions { threads, isa: Some(isa), ..LoadOptions::default() };
    Model::load(Source::Bytes(bytes), options).expect("a good model")
}

fn session(model: &Arc<Model>, prefill_chunk: usize) -> Session {
    Session::new(model, &SessionOptions { context_len: 0, prefill_chunk }).expect("memory")
}

/// FNV-1a over the bits of the logits after `tokens[..len]` for each `len` of `at`, fed in the cut that `chunk` makes.
fn hash(session: &mut Session, tokens: &[u32], at: &[usize]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    let mut from = 0;
    for &to in at {
        session.append(&tokens[from..to]).expect("room");
        assert!(session.forward(None).expect("a good model"));
        for logit in session.logits().expect("just computed") {
            assert!(logit.is_finite());
            hash = (hash ^ logit.to_bits() as u64).wrapping_mul(0x0000_0100_0000_01b3);
        }
        from = to;
    }
    hash
}

fn tokens(count: usize, vocab: usize) -> Vec<u32> {
    let mut rng = Rng::new(11);
    (0..count).map(|_| rng.below(vocab) as u32).collect()
}

/// Models that between them use every format, architecture and shape of head.
fn models() -> Vec<(String, &'static [u8], usize)> {
    let mut specs = Vec::new();
    for &format in Format::ALL {
        specs.push(ModelSpec { formats: Formats::all(format), ..ModelSpec::tiny("llama") });
    }
    specs.push(ModelSpec { formats: Formats::q4_k_m(), tied: false, ..ModelSpec::tiny("qwen2") });
    specs.push(ModelSpec { formats: Formats::q4_k_m(), rope_freqs: true, ..ModelSpec::tiny("llama") });
    specs.push(ModelSpec { heads: 6, kv_heads: 2, head_dim: 80, hidden: 96, vocab: 333, ..ModelSpec::tiny("qwen3") });
    specs.push(ModelSpec { vocabulary: Vocabulary::Gpt2 { pre: "qwen2" }, vocab: 320, ..ModelSpec::tiny("qwen2") });
    specs
        .into_iter()
        .map(|spec| {
            let name = format!("{} {}", spec.architecture, spec.formats.gate.name());
            (name, forever(random_model(&spec)), spec.vocab)
        })
        .collect()
}

#[test]
fn logits_are_the_same_for_every_kernel_table_thread_count_and_chunk() {
    let tables: Vec<_> = cpu::available().map(|kernels| kernels.name()).collect();
    for (name, bytes, vocab) in models() {
        let tokens = tokens(100, vocab);
        let mut expected = None;
        for &isa in &tables {
            for threads in [1, 2, 3, 5] {
                let model = load(bytes, isa, threads);
                // The reference is slow: it has each chunk once, with some threads; the others all of them with all threads.
                let chunks = [1, 7, 64, 512];
                let chunks = if isa == "scalar" { &chunks[threads - 1 - threads / 5..][..1] } else { &chunks[..] };
                for &chunk in chunks {
                    let found = hash(&mut session(&model, chunk), &tokens, &[tokens.len()]);
                    let expected = *expected.get_or_insert(found);
                    assert_eq!(found, expected, "{name}: {isa}, {threads} threads, chunks of {chunk}");
                }
            }
        }
    }
}

#[test]
fn a_prompt_longer_than_the_longest_chunk_has_the_same_bits_in_every_cut() {
    let spec = ModelSpec { formats: Formats::q4_k_m(), context_len: 1024, ..ModelSpec::tiny("qwen2") };
    let bytes = forever(random_model(&spec));
    let tokens = tokens(700, spec.vocab);
    let expected = hash(&mut session(&load(bytes, "scalar", 2), 512), &tokens, &[tokens.len()]);
    for kernels in cpu::available() {
        let chunks: &[usize] = if kernels.name() == "scalar" { &[64] } else { &[1, 7, 64, 512, 700] };
        for threads in [1, 3] {
            let model = load(bytes, kernels.name(), threads);
            for &chunk in chunks {
                let found = hash(&mut session(&model, chunk), &tokens, &[tokens.len()]);
                assert_eq!(found, expected, "{}, {threads} threads, chunks of {chunk}", kernels.name());
            }
        }
    }
}

#[test]
fn decoding_gives_the_bits_of_prefill() {
    for (name, bytes, vocab) in models() {
        let tokens = tokens(70, vocab);
        let model = load(bytes, cpu::available().next().expect("scalar at least").name(), 2);
        let every: Vec<usize> = (1..=tokens.len()).collect();
        let decoded = hash(&mut session(&model, 0), &tokens, &every);
        let mut prefilled = 0xcbf2_9ce4_8422_2325u64;
        for &len in &every {
            let mut session = session(&model, 0);
            session.prompt(&tokens[..len]).expect("room");
            assert!(session.forward(None).expect("a good model"));
            for logit in session.logits().expect("just computed") {
                prefilled = (prefilled ^ logit.to_bits() as u64).wrapping_mul(0x0000_0100_0000_01b3);
            }
        }
        assert_eq!(decoded, prefilled, "{name}");
    }
}

#[test]
fn rewind_and_replay_gives_the_same_bits() {
    let (_, bytes, vocab) = models().remove(0);
    let tokens = tokens(100, vocab);
    let model = load(bytes, "scalar", 1);
    let mut fresh = session(&model, 0);
    let expected = hash(&mut fresh, &tokens, &[60, 100]);
    let mut replayed = session(&model, 16);
    hash(&mut replayed, &tokens, &[100]);
    for keep in [0, 1, 31, 32, 33, 59] {
        replayed.rewind(keep).expect("shorter");
        replayed.append(&tokens[keep..60]).expect("room");
        assert!(replayed.forward(None).expect("a good model"));
        replayed.rewind(60).expect("it has 60");
        assert!(replayed.forward(None).expect("a good model"));
        let mut again = 0xcbf2_9ce4_8422_2325u64;
        let mut add = |session: &Session| {
            for logit in session.logits().expect("just computed") {
                again = (again ^ logit.to_bits() as u64).wrapping_mul(0x0000_0100_0000_01b3);
            }
        };
        add(&replayed);
        replayed.append(&tokens[60..]).expect("room");
        assert!(replayed.forward(None).expect("a good model"));
        add(&replayed);
        assert_eq!(again, expected, "rewound to {keep}");
    }
    // Other tokens in between leave nothing behind.
    let other: Vec<u32> = tokens.iter().rev().copied().collect();
    replayed.prompt(&other).expect("room");
    assert!(replayed.forward(None).expect("a good model"));
    assert_eq!(replayed.prompt(&tokens[..60]).expect("room"), 0);
    assert_eq!(hash(&mut session(&model, 0), &tokens, &[60]), {
        assert!(replayed.forward(None).expect("a good model"));
        replayed.logits().expect("just computed").iter().fold(0xcbf2_9ce4_8422_2325u64, |hash, logit| {
            (hash ^ logit.to_bits() as u64).wrapping_mul(0x0000_0100_0000_01b3)
        })
    });
}

/// The FP environment of a host built with -ffast-math, or one that rounds up, changes nothing, and comes back.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_host_in_flush_to_zero_and_another_rounding_changes_no_bit() {
    fn mxcsr(set: Option<u32>) -> u32 {
        let mut value = set.unwrap_or(0);
        // SAFETY: loads or stores MXCSR with masked exceptions.
        unsafe {
            match set {
                Some(_) => std::arch::asm!("ldmxcsr [{}]", in(reg) &value, options(nostack, readonly)),
                None => std::arch::asm!("stmxcsr [{}]", in(reg) &mut value, options(nostack)),
            }
        }
        value
    }
    const HOSTILE: u32 = 0x1F80 | 0x8040 | 0x4000; // Flush to zero, denormals are zero, round up.
    for (name, bytes, vocab) in models() {
        let tokens = tokens(40, vocab);
        let expected = hash(&mut session(&load(bytes, "scalar", 2), 16), &tokens, &[1, 2, 40]);
        let host = mxcsr(None);
        mxcsr(Some(HOSTILE));
        let model = load(bytes, cpu::available().next().expect("scalar at least").name(), 2);
        let mut session = session(&model, 16);
        let found = hash(&mut session, &tokens, &[1, 2, 40]);
        let control = mxcsr(None) & !0x3F; // Without the exception flags.
        mxcsr(Some(host));
        assert_eq!(found, expected, "{name}");
        assert_eq!(control, HOSTILE, "the host's mode came back");
    }
}
