//! The int8 KV cache: the same bits whatever computes them, close to f16, and half as large.

mod common;

use common::{Formats, ModelSpec, Rng, forever, random_f32, random_model, random_model_writer, refusal};
use edgellm::quant::Format;
use edgellm::{KvFormat, LoadOptions, Model, Session, SessionOptions, Source, cpu};
use std::sync::Arc;

fn load(bytes: &'static [u8], isa: &str, threads: usize) -> Arc<Model> {
    let options = LoadOptions { threads, isa: Some(isa), ..LoadOptions::default() };
    Model::load(Source::Bytes(bytes), options).expect("a good model")
}

fn best(bytes: &'static [u8]) -> Arc<Model> {
    load(bytes, cpu::available().next().expect("scalar at least").name(), 2)
}

fn session(model: &Arc<Model>, prefill_chunk: usize, kv_format: KvFormat) -> Session {
    Session::new(model, &SessionOptions { prefill_chunk, kv_format, ..SessionOptions::default() }).expect("memory")
}

fn tokens(count: usize, vocab: usize) -> Vec<u32> {
    let mut rng = Rng::new(11);
    (0..count).map(|_| rng.below(vocab) as u32).collect()
}

/// The bits of the logits after `tokens[..len]` for each `len` of `at`.
fn logits(session: &mut Session, tokens: &[u32], at: &[usize]) -> Vec<Vec<u32>> {
    let mut from = 0;
    at.iter()
        .map(|&to| {
            session.append(&tokens[from..to]).expect("room");
            from = to;
            assert!(session.forward(None).expect("a good model"));
            session.logits().expect("just computed").iter().map(|logit| logit.to_bits()).collect()
        })
        .collect()
}

/// A qwen2 whose keys have biases far larger than the rest of them, as Qwen2.5's have.
fn large_bias() -> Vec<u8> {
    let spec = ModelSpec::tiny("qwen2");
    let mut writer = random_model_writer(&spec);
    let (width, mut rng) = (spec.kv_heads * spec.head_dim, Rng::new(5));
    for layer in 0..spec.layers {
        let name = format!("blk.{layer}.attn_k.bias");
        let mut bias = random_f32(&mut rng, width, -0.5, 0.5);
        for d in [7, 30, 61, 90] {
            bias[4 * d..][..4].copy_from_slice(&rng.range(-200.0, 200.0).to_le_bytes());
        }
        writer.remove_tensor(&name).tensor(&name, &[width as u64], Format::F32, bias);
    }
    writer.write(3)
}

/// Both ways of making keys small, both layouts of RoPE, and heads that are not a whole number of blocks.
fn models() -> [(&'static str, &'static [u8], usize); 4] {
    let odd = ModelSpec { heads: 6, kv_heads: 2, head_dim: 80, hidden: 96, ..ModelSpec::tiny("qwen3") };
    let mixed = ModelSpec { formats: Formats::q4_k_m(), tied: true, ..ModelSpec::tiny("llama") };
    [
        ("llama", forever(random_model(&mixed)), mixed.vocab),
        ("qwen3, heads of 80", forever(random_model(&odd)), odd.vocab),
        ("qwen2", forever(random_model(&ModelSpec::tiny("qwen2"))), 320),
        ("qwen2, large bias", forever(large_bias()), 320),
    ]
}

#[test]
fn int8_logits_are_the_same_for_every_kernel_table_thread_count_and_chunk() {
    let tables: Vec<_> = cpu::available().map(|kernels| kernels.name()).collect();
    for (name, bytes, vocab) in models() {
        let tokens = tokens(100, vocab);
        let every: Vec<usize> = (1..=tokens.len()).collect();
        // Token by token; what follows compares some of these with prefills.
        let expected = logits(&mut session(&best(bytes), 0, KvFormat::I8), &tokens, &every);
        for isa in &tables {
            for threads in [1, 3] {
                let model = load(bytes, isa, threads);
                let chunks: &[usize] = if *isa == "scalar" { &[7 * threads] } else { &[1, 7, 64, 512] };
                for &chunk in chunks {
                    let found = logits(&mut session(&model, chunk, KvFormat::I8), &tokens, &[33, 100]);
                    let same = found[0] == expected[32] && found[1] == expected[99];
                    assert!(same, "{name}: {isa}, {threads} threads, chunks of {chunk}");
                }
            }
        }
        let f16 = logits(&mut session(&best(bytes), 0, KvFormat::F16), &tokens, &[100]);
        assert!(f16[0] != expected[99], "{name}: int8 was not used, or this test sees nothing");
        assert_eq!(f16, logits(&mut session(&best(bytes), 0, KvFormat::Auto), &tokens, &[100]), "{name}");
    }
}

#[test]
fn int8_rewind_and_replay_gives_the_same_bits() {
    for (name, bytes, vocab) in models() {
        let tokens = tokens(70, vocab);
        let model = best(bytes);
        let expected = logits(&mut session(&model, 0, KvFormat::I8), &tokens, &[70]);
        let mut replayed = session(&model, 16, KvFormat::I8);
        let other: Vec<u32> = tokens.iter().rev().copied().collect();
        logits(&mut replayed, &other, &[70]);
        for keep in [0, 1, 31, 32, 33, 69] {
            replayed.prompt(&tokens[..keep.max(1)]).expect("room");
            replayed.append(&tokens[keep.max(1)..]).expect("room");
            assert!(replayed.forward(None).expect("a good model"));
            let found = replayed.logits().expect("just computed").iter().map(|logit| logit.to_bits());
            assert!(found.eq(expected[0].iter().copied()), "{name}: kept {keep}");
        }
    }
}

/// KL(a || b) of the distributions that two rows of logits stand for.
fn divergence(a: &[u32], b: &[u32]) -> f64 {
    let log_probabilities = |logits: &[u32]| {
        let logits: Vec<f64> = logits.iter().map(|&bits| f32::from_bits(bits) as f64).collect();
        let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
        logits.iter().map(|logit| logit - sum.ln()).collect::<Vec<_>>()
    };
    let (a, b) = (log_probabilities(a), log_probabilities(b));
    a.iter().zip(&b).map(|(a, b)| a.exp() * (a - b)).sum()
}

/// These models give 2e-4 to 7e-4; with its bias in the cache the last one gives 3e-3.
const MEAN_KL_MAX: f64 = 1e-3;

#[test]
fn int8_logits_are_close_to_those_of_f16() {
    let means = models().map(|(name, bytes, vocab)| {
        let tokens = tokens(128, vocab);
        let every: Vec<usize> = (1..=tokens.len()).collect();
        let model = best(bytes);
        let f16 = logits(&mut session(&model, 0, KvFormat::F16), &tokens, &every);
        let i8 = logits(&mut session(&model, 0, KvFormat::I8), &tokens, &every);
        let total: f64 = f16.iter().zip(&i8).map(|(f16, i8)| divergence(f16, i8)).sum();
        (name, total / every.len() as f64)
    });
    assert!(means.iter().all(|&(_, mean)| mean > 0.0 && mean < MEAN_KL_MAX), "mean KL {means:?}");
}

#[test]
fn int8_takes_53_percent_of_the_memory_of_f16() {
    let spec = ModelSpec::tiny("llama");
    let model = best(forever(random_model(&spec)));
    let bytes = |format| session(&model, 0, format).control().stats(false).kv_bytes as usize;
    let heads = 2 * spec.layers * spec.kv_heads * spec.context_len;
    assert_eq!(bytes(KvFormat::F16), heads * spec.head_dim * 2);
    assert_eq!(bytes(KvFormat::I8), heads * (spec.head_dim + spec.head_dim / 32 * 2));
    // The biases and the tables that rotate them are counted and small.
    let model = best(forever(large_bias()));
    let with_bias = session(&model, 0, KvFormat::I8).control().stats(false).kv_bytes as usize;
    let (width, tables) = (spec.kv_heads * spec.head_dim, (spec.context_len / 32 + 32) * spec.head_dim);
    assert_eq!(with_bias, bytes(KvFormat::I8) + 4 * (spec.layers * width + tables));
}

#[test]
fn an_exact_model_has_its_own_format_only() {
    let bytes = forever(random_model(&ModelSpec::tiny("llama")));
    let options = LoadOptions { threads: 1, exact: true, ..LoadOptions::default() };
    let model = Model::load(Source::Bytes(bytes), options).expect("a good model");
    for kv_format in [KvFormat::F16, KvFormat::I8] {
        let options = SessionOptions { kv_format, ..SessionOptions::default() };
        let (kind, text) = refusal(Session::new(&model, &options).map(|_| ()));
        assert!(kind == "Argument" && text.contains("exact"), "{kind}: {text}");
    }
    session(&model, 0, KvFormat::Auto);
}
