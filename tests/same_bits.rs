//! The promise that logits have the same bits whatever computes them: kernel table, threads, prompt's cut, machine.
//!
//! `tests/data/same_bits.txt` has a hash for each case, which every machine has to find. After a change of what the
//! scalar kernels compute, this writes it anew, with the scalar kernels on one thread:
//!
//! ```sh
//! UPDATE_BITS=1 cargo test --release --test same_bits
//! ```
//!
//! Under an emulator, which is slow, some tests go through fewer cases; each says which.

mod common;

use common::cross::emulated;
use common::{Formats, ModelSpec, Rng, Vocabulary, forever, random_model};
use edgellm::quant::Format;
use edgellm::{KvFormat, LoadOptions, Model, Session, SessionOptions, Source, cpu};
use std::path::Path;
use std::sync::Arc;

const THREADS: [usize; 5] = [1, 2, 3, 4, 7];
/// As many as `THREADS`.
const CHUNKS: [usize; 5] = [1, 7, 33, 64, 512];
const HASH_START: u64 = 0xcbf2_9ce4_8422_2325;

fn load(bytes: &'static [u8], isa: &str, threads: usize) -> Arc<Model> {
    let options = LoadOptions { threads, isa: Some(isa), ..LoadOptions::default() };
    Model::load(Source::Bytes(bytes), options).expect("a good model")
}

fn session(model: &Arc<Model>, prefill_chunk: usize) -> Session {
    session_with(model, prefill_chunk, KvFormat::default())
}

fn session_with(model: &Arc<Model>, prefill_chunk: usize, kv_format: KvFormat) -> Session {
    Session::new(model, &SessionOptions { prefill_chunk, kv_format, ..SessionOptions::default() }).expect("memory")
}

/// FNV-1a, a word at a time, over the bits of the session's logits, going on from `hash`.
fn add_logits(hash: u64, session: &mut Session) -> u64 {
    session.logits().expect("just computed").iter().fold(hash, |hash, logit| {
        assert!(logit.is_finite());
        (hash ^ u64::from(logit.to_bits())).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

/// The hash of the logits after `tokens[..len]` for each `len` of `at`, fed in the cut that the session's chunk makes.
fn hash(session: &mut Session, tokens: &[u32], at: &[usize]) -> u64 {
    let mut hash = HASH_START;
    let mut from = 0;
    for &to in at {
        session.append(&tokens[from..to]).expect("room");
        assert!(session.forward(None).expect("a good model"));
        hash = add_logits(hash, session);
        from = to;
    }
    hash
}

fn tokens(count: usize, vocab: usize) -> Vec<u32> {
    let mut rng = Rng::new(11);
    (0..count).map(|_| rng.below(vocab) as u32).collect()
}

/// Models that between them use every format, architecture and shape of head: name, file, tokens in the vocabulary. The
/// first one has most formats in it.
fn models() -> Vec<(String, &'static [u8], usize)> {
    let mixed = Formats {
        embedding: Format::F16,
        head: Format::Q6_K,
        query: Format::Q4_0,
        key: Format::Q4_1,
        value: Format::Q8_0,
        attention_out: Format::Q5_0,
        gate: Format::Q4_K,
        up: Format::Q5_K,
        down: Format::Q5_1,
    };
    let biased = ModelSpec { formats: Formats::q4_k_m(), ..ModelSpec::tiny("qwen2") };
    let mut specs = vec![("qwen3 mixed".to_owned(), ModelSpec { formats: mixed, ..ModelSpec::tiny("qwen3") })];
    for &format in Format::ALL {
        let name = format!("llama {}", format.name());
        specs.push((name, ModelSpec { formats: Formats::all(format), ..ModelSpec::tiny("llama") }));
    }
    let odd = ModelSpec { heads: 6, kv_heads: 2, head_dim: 80, hidden: 96, vocab: 333, ..ModelSpec::tiny("qwen3") };
    let ternary =
        |architecture, format| ModelSpec { formats: Formats::ternary(format), ..ModelSpec::tiny(architecture) };
    let vocabulary = Vocabulary::Gpt2 { pre: "qwen2" };
    specs.extend([
        ("qwen2 Q4_K_M".to_owned(), biased.clone()),
        ("llama Q4_K_M rope_freqs".to_owned(), ModelSpec { architecture: "llama", rope_freqs: true, ..biased.clone() }),
        ("qwen3 Q8_0 odd".to_owned(), odd),
        ("bitnet-b1.58 I2_S".to_owned(), ternary("bitnet-b1.58", Format::I2_S)),
        ("bitnet TQ2_0".to_owned(), ternary("bitnet", Format::TQ2_0)),
        ("qwen2 Q8_0 vocabulary".to_owned(), ModelSpec { vocabulary, ..ModelSpec::tiny("qwen2") }),
    ]);
    specs.into_iter().map(|(name, spec)| (name, forever(random_model(&spec)), spec.vocab)).collect()
}

/// A model and how its keys and values are kept.
struct Case {
    name: String,
    bytes: &'static [u8],
    vocab: usize,
    kv_format: KvFormat,
}

/// Every model, and those with normed and with biased keys with int8 keys and values as well.
fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for (name, bytes, vocab) in models() {
        if ["qwen3 mixed", "qwen2 Q4_K_M"].contains(&name.as_str()) {
            cases.push(Case { name: format!("{name}, int8 KV"), bytes, vocab, kv_format: KvFormat::I8 });
        }
        cases.push(Case { name, bytes, vocab, kv_format: KvFormat::default() });
    }
    cases
}

/// The committed hash of each case, computed anew first where the environment asks for it.
fn committed(cases: &[Case]) -> Vec<u64> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/same_bits.txt");
    if std::env::var_os("UPDATE_BITS").is_some() {
        let lines = cases.iter().map(|Case { name, bytes, vocab, kv_format }| {
            let mut session = session_with(&load(bytes, "scalar", 1), 0, *kv_format);
            let hash = hash(&mut session, &tokens(100, *vocab), &[100]);
            format!("{hash:016x} {name}\n")
        });
        std::fs::write(&path, lines.collect::<String>()).expect("tests/data/same_bits.txt cannot be written");
    }
    let text = std::fs::read_to_string(&path).expect("tests/data/same_bits.txt");
    let lines: Vec<_> = text.lines().map(|line| line.split_once(' ').expect("a hash and a name")).collect();
    let names = |names: Vec<&str>| names.join("\n");
    assert_eq!(
        names(lines.iter().map(|line| line.1).collect()),
        names(cases.iter().map(|case| case.name.as_str()).collect()),
        "tests/data/same_bits.txt has other cases; the comment at the top of this file says how to write it"
    );
    lines.iter().map(|line| u64::from_str_radix(line.0, 16).expect("a hash")).collect()
}

/// Each thread count with each chunk for the first case. For the others too, but each once for the scalar kernels, which
/// are slow, and for all kernels under an emulator.
#[test]
fn logits_have_the_committed_bits_for_every_kernel_table_thread_count_and_chunk() {
    let cases = cases();
    let committed = committed(&cases);
    for (index, (case, expected)) in cases.iter().zip(committed).enumerate() {
        let Case { name, bytes, vocab, kv_format } = case;
        let tokens = tokens(100, *vocab);
        for isa in cpu::available().map(|kernels| kernels.name()) {
            let all = index == 0 || (isa != "scalar" && !emulated());
            for (i, threads) in THREADS.into_iter().enumerate() {
                let model = load(bytes, isa, threads);
                for &chunk in if all { &CHUNKS[..] } else { &CHUNKS[i..][..1] } {
                    let found = hash(&mut session_with(&model, chunk, *kv_format), &tokens, &[100]);
                    assert_eq!(
                        found, expected,
                        "{name}: {isa}, {threads} threads, chunks of {chunk}: {found:x}, not {expected:x}"
                    );
                }
            }
        }
    }
}

/// Under an emulator with two chunks and one thread count only.
#[test]
fn a_prompt_longer_than_the_longest_chunk_has_the_same_bits_in_every_cut() {
    let spec = ModelSpec { formats: Formats::q4_k_m(), context_len: 1024, ..ModelSpec::tiny("qwen2") };
    let bytes = forever(random_model(&spec));
    let tokens = tokens(700, spec.vocab);
    let expected = hash(&mut session(&load(bytes, "scalar", 2), 512), &tokens, &[tokens.len()]);
    for kernels in cpu::available() {
        let chunks: &[usize] = match kernels.name() {
            "scalar" => &[64],
            _ if emulated() => &[64, 700],
            _ => &[1, 7, 64, 512, 700],
        };
        for &threads in if emulated() { &[3][..] } else { &[1, 3] } {
            let model = load(bytes, kernels.name(), threads);
            for &chunk in chunks {
                let found = hash(&mut session(&model, chunk), &tokens, &[tokens.len()]);
                assert_eq!(found, expected, "{}, {threads} threads, chunks of {chunk}", kernels.name());
            }
        }
    }
}

/// Under an emulator 20 tokens instead of 70.
#[test]
fn decoding_gives_the_bits_of_prefill() {
    for (name, bytes, vocab) in models() {
        let tokens = tokens(if emulated() { 20 } else { 70 }, vocab);
        let model = load(bytes, cpu::available().next().expect("scalar at least").name(), 2);
        let every: Vec<usize> = (1..=tokens.len()).collect();
        let decoded = hash(&mut session(&model, 0), &tokens, &every);
        let mut prefilled = HASH_START;
        for &len in &every {
            let mut session = session(&model, 0);
            session.prompt(&tokens[..len]).expect("room");
            assert!(session.forward(None).expect("a good model"));
            prefilled = add_logits(prefilled, &mut session);
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
        let again = add_logits(HASH_START, &mut replayed);
        replayed.append(&tokens[60..]).expect("room");
        assert!(replayed.forward(None).expect("a good model"));
        assert_eq!(add_logits(again, &mut replayed), expected, "rewound to {keep}");
    }
    // Other tokens in between leave nothing behind.
    let other: Vec<u32> = tokens.iter().rev().copied().collect();
    replayed.prompt(&other).expect("room");
    assert!(replayed.forward(None).expect("a good model"));
    assert_eq!(replayed.prompt(&tokens[..60]).expect("room"), 0);
    assert_eq!(hash(&mut session(&model, 0), &tokens, &[60]), {
        assert!(replayed.forward(None).expect("a good model"));
        add_logits(HASH_START, &mut replayed)
    });
}

/// The processor's floating-point mode, or the one before `set`.
#[cfg(target_arch = "x86_64")]
fn floating_point_mode(set: Option<u32>) -> u32 {
    let mut value = 0u32;
    // SAFETY: stores and loads MXCSR, whose exceptions are masked in every value here.
    unsafe {
        std::arch::asm!("stmxcsr [{}]", in(reg) &mut value, options(nostack));
        if let Some(set) = set {
            std::arch::asm!("ldmxcsr [{}]", in(reg) &set, options(nostack, readonly));
        }
    }
    value & !0x3F // Without the exception flags.
}

#[cfg(target_arch = "aarch64")]
fn floating_point_mode(set: Option<u32>) -> u32 {
    let value: u64;
    // SAFETY: reads and writes FPCR, with no trap enabled in any value here.
    unsafe {
        std::arch::asm!("mrs {}, fpcr", out(reg) value, options(nomem, nostack));
        if let Some(set) = set {
            std::arch::asm!("msr fpcr, {}", in(reg) u64::from(set), options(nostack));
        }
    }
    value as u32
}

/// The FP environment of a host built with -ffast-math, or one that rounds up, changes nothing, and comes back.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
#[test]
fn a_host_in_flush_to_zero_and_another_rounding_changes_no_bit() {
    // Flush to zero and round up; on x86-64, denormals are zero as well.
    const HOSTILE: u32 = if cfg!(target_arch = "x86_64") { 0x1F80 | 0x8040 | 0x4000 } else { 1 << 24 | 1 << 22 };
    for (name, bytes, vocab) in models() {
        let tokens = tokens(40, vocab);
        let expected = hash(&mut session(&load(bytes, "scalar", 2), 16), &tokens, &[1, 2, 40]);
        let host = floating_point_mode(Some(HOSTILE));
        let model = load(bytes, cpu::available().next().expect("scalar at least").name(), 2);
        let mut session = session(&model, 16);
        let found = hash(&mut session, &tokens, &[1, 2, 40]);
        let control = floating_point_mode(Some(host));
        assert_eq!(found, expected, "{name}");
        assert_eq!(control, HOSTILE, "the host's mode came back");
    }
}
