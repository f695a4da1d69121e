//! Files that are good GGUF but no model that can run: each is refused with the name of what is wrong.

mod common;

use common::{Formats, GgufWriter, ModelSpec, Vocabulary, random_model_writer, refusal};
use edgellm::quant::Format;
use edgellm::{LoadOptions, Model, Source};

/// Loads the model and gives the error. Leaks the bytes when it loads, which fails the test anyway.
#[track_caller]
fn refused(writer: &GgufWriter) -> (&'static str, String) {
    let bytes = writer.write(3);
    // SAFETY: the load is refused, so nothing outlives the bytes; if it is not, `refusal` panics and the test ends.
    let forever: &'static [u8] = unsafe { std::mem::transmute(&bytes[..]) };
    let options = LoadOptions { threads: 1, ..LoadOptions::default() };
    refusal(Model::load(Source::Bytes(forever), options).map(|_| ()))
}

#[track_caller]
fn refused_after(architecture: &'static str, change: impl FnOnce(&mut GgufWriter)) -> (&'static str, String) {
    let spec = ModelSpec { vocabulary: Vocabulary::Gpt2 { pre: "qwen2" }, ..ModelSpec::tiny(architecture) };
    let mut writer = random_model_writer(&spec);
    change(&mut writer);
    refused(&writer)
}

#[test]
fn an_unknown_architecture_is_refused_by_name() {
    let (kind, text) = refused_after("llama", |writer| {
        writer.remove("general.architecture").kv_str("general.architecture", "mamba");
    });
    assert_eq!(kind, "Unsupported");
    assert_eq!(
        text,
        "architecture `mamba` is not supported; these are: llama, qwen2, qwen3, bitnet-b1.58, bitnet-25, bitnet"
    );
    let (kind, text) = refused_after("llama", |writer| {
        writer.remove("general.architecture");
    });
    assert_eq!((kind, text.as_str()), ("Format", "metadata key `general.architecture` is missing"));
}

#[test]
fn every_needed_key_is_missed_by_name() {
    for key in ["block_count", "embedding_length", "feed_forward_length", "attention.head_count", "context_length"] {
        let key = format!("llama.{key}");
        let (kind, text) = refused_after("llama", |writer| {
            writer.remove(&key);
        });
        assert_eq!(kind, "Format", "{text}");
        assert!(text.contains(&key), "{text}");
    }
}

#[test]
fn hostile_numbers_in_the_configuration_are_refused_by_name() {
    let integers = [
        "block_count",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.head_count_kv",
        "attention.key_length",
        "attention.value_length",
        "rope.dimension_count",
        "vocab_size",
    ];
    for key in integers {
        let key = format!("llama.{key}");
        for value in [0, 1, 3, (1 << 20) + 32, 1 << 31, u64::MAX] {
            let (kind, text) = refused_after("llama", |writer| {
                writer.remove(&key).kv_u64(&key, value);
            });
            assert!(matches!(kind, "Format" | "Unsupported"), "{key} = {value}: {kind} {text}");
        }
        let (kind, text) = refused_after("llama", |writer| {
            writer.remove(&key).kv_str(&key, "four");
        });
        assert!(kind == "Format" && text.contains(&key), "{text}");
        let (kind, text) = refused_after("llama", |writer| {
            writer.remove(&key).kv_i32s(&key, &[4, 4]);
        });
        assert!(matches!(kind, "Format" | "Unsupported") && text.contains(&key), "{text}");
    }
    for key in ["attention.layer_norm_rms_epsilon", "rope.freq_base"] {
        let key = format!("llama.{key}");
        for value in [f32::NAN, f32::INFINITY, -1.0] {
            let (kind, text) = refused_after("llama", |writer| {
                writer.remove(&key).kv_f32(&key, value);
            });
            assert!(kind == "Format" && text.contains(&key), "{key} = {value}: {text}");
        }
    }
}

#[test]
fn scalings_and_experts_that_are_not_known_are_refused_by_name() {
    for scaling in ["yarn", "longrope", "llama3", ""] {
        let (kind, text) = refused_after("llama", |writer| {
            writer.kv_str("llama.rope.scaling.type", scaling);
        });
        assert!(kind == "Unsupported" && text.contains(&format!("`{scaling}`")), "{text}");
    }
    let (kind, text) = refused_after("llama", |writer| {
        writer.kv_str("llama.rope.scaling.type", "linear").kv_f32("llama.rope.scaling.factor", 0.0);
    });
    assert!(kind == "Format" && text.contains("llama.rope.scaling.factor"), "{text}");
    let (kind, text) = refused_after("llama", |writer| {
        writer.kv_u32("llama.expert_count", 8);
    });
    assert!(kind == "Unsupported" && text.contains("experts"), "{text}");
}

#[test]
fn every_missing_tensor_is_named() {
    let spec = ModelSpec { rope_freqs: true, ..ModelSpec::tiny("qwen3") };
    let names = random_model_writer(&spec).tensor_names();
    assert!(names.len() > 20);
    for name in names {
        // These three may be absent: tied heads, plain RoPE; and without biases qwen3 has none.
        if ["output.weight", "rope_freqs.weight"].contains(&name.as_str()) {
            continue;
        }
        let mut writer = random_model_writer(&spec);
        writer.remove_tensor(&name);
        assert_eq!(refused(&writer), ("Format", format!("tensor `{name}` is missing")));
    }
}

#[test]
fn every_tensor_of_a_wrong_shape_is_named() {
    let spec = ModelSpec { rope_freqs: true, ..ModelSpec::tiny("qwen2") };
    for name in random_model_writer(&spec).tensor_names() {
        for shape in [&[32u64, 5][..], &[32], &[64, 32, 2]] {
            let mut writer = random_model_writer(&spec);
            let count: u64 = shape.iter().product();
            writer.remove_tensor(&name).tensor(&name, shape, Format::F32, vec![0; 4 * count as usize]);
            let (kind, text) = refused(&writer);
            let vocabulary = name == "token_embd.weight" && text.contains("vocab_size");
            assert!(
                kind == "Format" && (vocabulary || text.contains(&format!("`{name}`"))),
                "{name} {shape:?}: {text}"
            );
        }
    }
}

#[test]
fn a_tensor_that_the_architecture_does_not_have_is_named() {
    for name in
        ["blk.0.ssm_in.weight", "blk.2.attn_q.weight", "blk.00.attn_q.weight", "extra", "blk.0.attn_q_norm.weight"]
    {
        let (kind, text) = refused_after("llama", |writer| {
            writer.tensor(name, &[64], Format::F32, vec![0; 256]);
        });
        assert!(kind == "Unsupported" && text.contains(&format!("`{name}`")), "{text}");
    }
}

#[test]
fn a_format_that_is_not_known_is_refused_by_name() {
    let (kind, text) = refused_after("llama", |writer| {
        writer.tensor_raw(b"blk.0.attn_q.extra", &[256], 23, None, vec![0; 136]); // IQ4_XS
    });
    assert!(kind == "Unsupported" && text.contains("IQ4_XS") && text.contains("blk.0.attn_q.extra"), "{text}");
}

#[test]
fn a_pre_tokenizer_that_is_not_known_is_refused_by_name() {
    for pre in ["deepseek-llm", "default", "no such thing"] {
        let (kind, text) = refused_after("llama", |writer| {
            writer.remove("tokenizer.ggml.pre").kv_str("tokenizer.ggml.pre", pre);
        });
        assert!(kind == "Unsupported" && text.contains(pre), "{text}");
    }
}

#[test]
fn widths_that_the_kernels_cannot_take_are_refused() {
    let formats = Formats::all(Format::F32);
    let spec = ModelSpec { heads: 2, kv_heads: 2, head_dim: 24, formats, ..ModelSpec::tiny("llama") };
    let (kind, text) = refused(&random_model_writer(&spec));
    assert_eq!(kind, "Unsupported", "{text}");
}

#[test]
fn weights_that_are_not_finite_are_an_error_and_no_token() {
    let spec = ModelSpec::tiny("llama");
    for value in [f32::NAN, f32::INFINITY] {
        let mut writer = random_model_writer(&spec);
        let mut norm = vec![1.0f32; spec.hidden];
        norm[77] = value;
        let bytes = norm.iter().flat_map(|value| value.to_le_bytes()).collect();
        writer.remove_tensor("blk.1.ffn_norm.weight");
        writer.tensor("blk.1.ffn_norm.weight", &[spec.hidden as u64], Format::F32, bytes);
        let options = LoadOptions { threads: 1, ..LoadOptions::default() };
        let model = Model::load(Source::Bytes(common::forever(writer.write(3))), options).expect("it loads");
        let mut session = edgellm::Session::new(&model, &Default::default()).expect("memory");
        session.prompt(&[1, 2, 3]).expect("room");
        let (kind, text) = refusal(session.step(None).map(|_| ()));
        assert!(kind == "Format" && text.contains("not finite"), "{text}");
        assert_eq!(session.tokens(), [1, 2, 3]);
    }
}

#[test]
fn options_that_are_wrong_are_refused() {
    let bytes = common::forever(random_model_writer(&ModelSpec::tiny("llama")).write(3));
    let load = |options| refusal(Model::load(Source::Bytes(bytes), options).map(|_| ()));
    let (kind, text) = load(LoadOptions { isa: Some("mmx"), ..LoadOptions::default() });
    assert!(kind == "Argument" && text.contains("`mmx`") && text.contains("scalar"), "{text}");
    let (kind, _) = load(LoadOptions { threads: 100_000, ..LoadOptions::default() });
    assert_eq!(kind, "Argument");
    let mut calls = 0;
    let mut progress = |done: f32| {
        calls += 1;
        done < 0.5
    };
    let (kind, _) = load(LoadOptions { progress: Some(&mut progress), ..LoadOptions::default() });
    assert_eq!(kind, "Cancelled");
    assert!(calls > 2);
}

#[test]
fn a_weight_that_is_not_ternary_is_refused_with_the_tensor_s_name() {
    for (format, last) in [(Format::I2_S, 31), (Format::TQ2_0, 63)] {
        let formats = Formats::ternary(format);
        let spec = ModelSpec { formats, ..ModelSpec::tiny("bitnet-b1.58") };
        for at in [0, last] {
            let mut writer = random_model_writer(&spec);
            let name = "blk.1.ffn_up.weight";
            let mut bytes = common::random_blocks(&mut common::Rng::new(3), format, 256 * 512, 0.1);
            bytes[at] = 0b0011_0001;
            writer.remove_tensor(name).tensor(name, &[256, 512], format, bytes);
            let (kind, text) = refused(&writer);
            assert_eq!(kind, "Format");
            assert_eq!(text, format!("tensor `{name}`: a weight of {} is none of -1, 0, 1", format.name()));
        }
    }
}

#[test]
fn a_scale_that_is_not_finite_is_refused_with_the_tensor_s_name() {
    let spec = ModelSpec { formats: Formats::ternary(Format::I2_S), ..ModelSpec::tiny("bitnet-b1.58") };
    let name = "blk.0.attn_k.weight";
    let mut writer = random_model_writer(&spec);
    let mut bytes = common::random_blocks(&mut common::Rng::new(3), Format::I2_S, 256 * 128, 0.1);
    let blocks = bytes.len() - Format::I2_S.tail_bytes();
    bytes[blocks..blocks + 4].copy_from_slice(&f32::INFINITY.to_le_bytes());
    writer.remove_tensor(name).tensor(name, &[256, 128], Format::I2_S, bytes);
    assert_eq!(refused(&writer), ("Format", format!("tensor `{name}` has the scale inf")));
    let mut writer = random_model_writer(&spec);
    writer.tensor("blk.0.attn_k.scale", &[1], Format::F32, f32::NAN.to_le_bytes().to_vec());
    assert_eq!(refused(&writer), ("Format", format!("tensor `{name}` has the scale NaN")));
}
