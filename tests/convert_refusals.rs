//! Folders that cannot be converted: each is refused with what is wrong and where, and no file is written.
#![cfg(feature = "cli")]

mod common;

use common::folder::{Dtype, Folder, HIDDEN, Stored};
use common::refusal;
use edgellm::convert::{self, Options};
use edgellm::quant::Format;
use serde_json::{Value as Json, json};
use std::path::Path;

const BITNET: &str = "BitNetForCausalLM";
const OPTIONS: Options = Options { linear: Format::TQ2_0, embedding: Format::Q8_0, force: false, verify: false };
const QUERY: &str = "model.layers.0.self_attn.q_proj.weight";
const SCALE: &str = "model.layers.0.self_attn.q_proj.weight_scale";

/// Refuses to convert the folder at `path`, with each of these words, and writes nothing beside it.
#[track_caller]
fn assert_refused_at(path: &Path, options: &Options, words: &[&str]) {
    let out = path.with_extension("gguf");
    let (variant, text) = refusal(convert::convert(path, &out, options, &mut |_, _, _| true));
    assert!(["Format", "Unsupported", "Argument", "Io"].contains(&variant), "{variant}: {text}");
    for word in words {
        assert!(text.contains(word), "no {word:?} in {text:?}");
    }
    assert!(text.chars().count() < 1600 && !text.contains(char::is_control), "{text}");
    assert_eq!(std::fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "something was written");
}

#[track_caller]
fn assert_refused(folder: &Folder, words: &[&str]) {
    let (_temporary, path) = folder.place();
    assert_refused_at(&path, &OPTIONS, words);
}

/// What a random folder is refused with after a change.
#[track_caller]
fn spoiled(stored: Stored, spoil: impl FnOnce(&mut Folder), words: &[&str]) {
    let mut folder = Folder::random(BITNET, stored);
    spoil(&mut folder);
    assert_refused(&folder, words);
}

#[test]
fn configurations_that_would_mean_something_else_are_refused() {
    let cases: [(&str, Json, &[&str]); 18] = [
        ("architectures", json!(["MambaForCausalLM"]), &["MambaForCausalLM", "BitNetForCausalLM"]),
        ("architectures", json!([]), &["`architectures`"]),
        ("hidden_act", json!("gelu"), &["`hidden_act`", "gelu"]),
        ("hidden_size", Json::Null, &["`hidden_size` is missing"]),
        ("hidden_size", json!(-1), &["`hidden_size` is -1"]),
        ("hidden_size", json!(1u64 << 40), &["`hidden_size`"]),
        ("num_hidden_layers", json!(3), &["model.layers.2.", "missing"]),
        ("num_hidden_layers", json!(1), &["model.layers.1.", "no such tensor"]),
        ("num_key_value_heads", json!(3), &["4 heads and 3 kv heads"]),
        ("vocab_size", json!(300), &["model.embed_tokens.weight", "320", "300"]),
        ("vocab_size", json!(270), &["model.embed_tokens.weight"]),
        ("attention_bias", json!(true), &["`attention_bias`"]),
        ("sliding_window", json!(128), &["`sliding_window`"]),
        ("tie_word_embeddings", json!(false), &["`lm_head.weight` is missing"]),
        ("rms_norm_eps", json!("x"), &["`rms_norm_eps`"]),
        ("rope_scaling", json!({ "type": "yarn", "factor": 4.0 }), &["yarn", "llama3"]),
        ("rope_scaling", json!({ "type": "linear" }), &["`factor`"]),
        ("quantization_config", Json::Null, &["no `quantization_config`"]),
    ];
    for (key, value, words) in cases {
        spoiled(Stored::Multiply, |folder| folder.config[key] = value, words);
    }
    let cases: [(&str, Json, &[&str]); 6] = [
        ("quant_method", json!("awq"), &["awq", "bitnet"]),
        ("quant_method", Json::Null, &["`quantization_config.quant_method`"]),
        ("linear_class", json!("otherlinear"), &["otherlinear", "autobitlinear"]),
        ("quantization_mode", json!("sideways"), &["sideways", "offline"]),
        ("quantization_mode", json!("online"), &["online", "packed"]),
        ("use_rms_norm", json!(true), &["use_rms_norm", "before every projection"]),
    ];
    for (key, value, words) in cases {
        spoiled(Stored::Multiply, |folder| folder.config["quantization_config"][key] = value, words);
    }
}

#[test]
fn tensors_that_are_missing_strange_or_of_a_wrong_kind_are_named() {
    let packed = Stored::Multiply;
    spoiled(packed, |folder| drop(folder.tensors.remove(SCALE)), &[SCALE, "missing"]);
    spoiled(packed, |folder| drop(folder.tensors.remove("model.norm.weight")), &["`model.norm.weight` is missing"]);
    spoiled(packed, |folder| folder.tensors.get_mut(QUERY).unwrap().shape = vec![32, 512], &[QUERY, "[32, 512]"]);
    spoiled(packed, |folder| folder.tensors.get_mut(QUERY).unwrap().dtype = Dtype::I8, &[QUERY, "I8", "packed"]);
    let add = |name: &str| {
        let name = name.to_owned();
        move |folder: &mut Folder| {
            let tensor = folder.tensors["model.norm.weight"].clone();
            folder.tensors.insert(name, tensor);
        }
    };
    spoiled(packed, add("model.layers.0.mlp.up_proj.norm.weight"), &["up_proj.norm.weight", "embedding models"]);
    spoiled(packed, add("model.layers.0.self_attn.q_proj.bias"), &["q_proj.bias", "biases"]);
    spoiled(packed, add("something.else"), &["`something.else`"]);
    spoiled(packed, add(&"\u{1b}[2J\n".repeat(10_000)), &["\u{fffd}[2J", "…"]);
    spoiled(packed, add("lm_head.weight"), &["lm_head.weight", "shape"]);
    let head = |folder: &mut Folder| {
        let mut head = folder.tensors["model.embed_tokens.weight"].clone();
        head.bytes[0] ^= 1;
        folder.tensors.insert("lm_head.weight".into(), head);
    };
    spoiled(packed, head, &["lm_head.weight", "tie_word_embeddings"]);
    // Floats among packed layers, and a scale beside floats.
    let master = Folder::random(BITNET, Stored::Masters(Dtype::BF16)).tensors[QUERY].clone();
    spoiled(packed, |folder| drop(folder.tensors.insert(QUERY.into(), master)), &[QUERY, "BF16", "packed"]);
    let scale = Folder::random(BITNET, packed).tensors[SCALE].clone();
    let masters = Stored::Masters(Dtype::F32);
    spoiled(masters, |folder| drop(folder.tensors.insert(SCALE.into(), scale)), &[SCALE, "beside floats"]);
}

#[test]
fn numbers_that_mean_nothing_are_named_with_their_place() {
    let scales = [(0.0, "above 0"), (-0.5, "above 0"), (1e-39, "above 0"), (f32::NAN, "NaN"), (f32::INFINITY, "inf")];
    for (scale, word) in scales {
        let spoil = |folder: &mut Folder| {
            let tensor = folder.tensors.get_mut(SCALE).unwrap();
            (tensor.dtype, tensor.bytes) = (Dtype::F32, scale.to_le_bytes().into());
        };
        spoiled(Stored::Divide, spoil, &[SCALE, word]);
    }
    // Byte (5, 7) of 64 rows: its third field is row 2 * 64 + 5.
    let code_3 = |folder: &mut Folder| folder.tensors.get_mut(QUERY).unwrap().bytes[5 * HIDDEN + 7] |= 3 << 4;
    spoiled(Stored::Multiply, code_3, &[QUERY, "code 3", "row 133, column 7"]);
    let nan = |name: &str, at: usize| {
        let name = name.to_owned();
        move |folder: &mut Folder| {
            folder.tensors.get_mut(&name).unwrap().bytes[2 * at..][..2].copy_from_slice(&[0xC0, 0x7F])
        }
    };
    spoiled(Stored::Multiply, nan("model.norm.weight", 3), &["`model.norm.weight`", "NaN", "index 3"]);
    spoiled(Stored::Multiply, nan("model.embed_tokens.weight", 777), &["embed_tokens", "NaN", "index 777"]);
    spoiled(Stored::Masters(Dtype::BF16), nan(QUERY, 900), &[QUERY, "NaN", "index 900"]);
    let large = |folder: &mut Folder| {
        folder.tensors.get_mut("model.embed_tokens.weight").unwrap().bytes[2..4]
            .copy_from_slice(&half::bf16::from_f32(1e5).to_le_bytes());
    };
    spoiled(Stored::Multiply, large, &["embed_tokens", "row 0, column 1", "Q8_0"]);
}

#[test]
fn scales_and_rows_that_a_format_cannot_hold_name_one_that_can() {
    let mut folder = Folder::random(BITNET, Stored::Multiply);
    let tensor = folder.tensors.get_mut(SCALE).unwrap();
    (tensor.dtype, tensor.bytes) = (Dtype::F32, 1e-6f32.to_le_bytes().into());
    assert_refused(&folder, &[QUERY, "f16", "i2_s"]);

    let mut folder = Folder::random(BITNET, Stored::Multiply);
    folder.config["intermediate_size"] = json!(384);
    for (name, tensor) in &mut folder.tensors {
        if name.ends_with("gate_proj.weight") || name.ends_with("up_proj.weight") {
            tensor.shape[0] = 96;
        } else if name.ends_with("down_proj.weight") {
            tensor.shape[1] = 384;
        } else if name.ends_with("ffn_sub_norm.weight") {
            tensor.shape[0] = 384;
        } else {
            continue;
        }
        let len = tensor.shape.iter().product::<usize>() * if tensor.dtype == Dtype::U8 { 1 } else { 2 };
        tensor.bytes.truncate(len);
    }
    assert_refused(&folder, &["down_proj", "384", "TQ2_0", "i2_s"]);
    let (_temporary, path) = folder.place();
    let options = Options { linear: Format::I2_S, ..OPTIONS };
    assert!(convert::convert(&path, &path.with_extension("gguf"), &options, &mut |_, _, _| true).is_ok());
}

#[test]
fn tokenizers_that_would_cut_text_otherwise_are_refused() {
    let packed = Stored::Multiply;
    let none = |folder: &mut Folder| folder.tokenizer = Json::Null;
    spoiled(packed, none, &["tokenizer.json", "missing"]);
    let regex = |folder: &mut Folder| {
        folder.tokenizer["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = json!("\\w+|\\s+");
    };
    spoiled(packed, regex, &["pre-tokenizer", "\\\\w+|\\\\s+"]);
    for (pointer, value, word) in [
        ("/model/type", json!("Unigram"), "Unigram"),
        ("/model/byte_fallback", json!(true), "byte_fallback"),
        ("/model/vocab/A", json!(64), "same id 64"),
        ("/model/vocab/A", json!(320), "320"),
        ("/model/merges/0", json!(["h"]), "merge 0"),
        ("/model/merges/0", json!("h zz"), "zz"),
        ("/normalizer", json!({ "type": "Lowercase" }), "Lowercase"),
        ("/added_tokens/0/lstrip", json!(true), "lstrip"),
        ("/added_tokens/0/id", json!(5), "same id 5"),
        ("/post_processor/type", json!("BertProcessing"), "BertProcessing"),
    ] {
        let spoil = |folder: &mut Folder| *folder.tokenizer.pointer_mut(pointer).unwrap() = value;
        spoiled(packed, spoil, &[word]);
    }
    let many = |folder: &mut Folder| folder.generation["eos_token_id"] = json!([1, 2, 3]);
    spoiled(packed, many, &["eos_token_id", "no keys for so many"]);
    let far = |folder: &mut Folder| folder.generation["eos_token_id"] = json!(320);
    spoiled(packed, far, &["320", "vocab_size"]);
    let text = |folder: &mut Folder| folder.tokenizer_config["eos_token"] = json!("<nowhere>");
    spoiled(packed, text, &["`eos_token`", "<nowhere>"]);
}

#[test]
fn folders_that_are_none_say_what_they_are() {
    let folder = Folder::random(BITNET, Stored::Multiply);
    let without_weights = || {
        let (temporary, path) = folder.place();
        std::fs::remove_file(path.join("model.safetensors")).unwrap();
        (temporary, path)
    };
    for (name, word) in
        [("model_state_int2.pt", "GPU kernels"), ("pytorch_model.bin", "safe_serialization"), ("x", "neither")]
    {
        let (_temporary, path) = without_weights();
        std::fs::write(path.join(name), "").unwrap();
        assert_refused_at(&path, &OPTIONS, &[word]);
    }
    let (_temporary, path) = folder.place();
    std::fs::write(path.join("config.json"), "{").unwrap();
    assert_refused_at(&path, &OPTIONS, &["config.json"]);
    std::fs::remove_file(path.join("config.json")).unwrap();
    assert_refused_at(&path, &OPTIONS, &["no config.json"]);
    std::fs::write(path.join("model.safetensors"), [0xFF; 64]).unwrap();
    assert_refused_at(&path, &OPTIONS, &["model.safetensors", "safetensors file"]);
    assert_refused_at(&path.with_file_name("absent"), &OPTIONS, &["absent"]);
}

#[test]
fn an_index_that_leads_elsewhere_is_refused() {
    let folder = Folder::random(BITNET, Stored::Multiply);
    let cases: [(&str, Json, &str); 5] = [
        (QUERY, json!("../model-00001-of-00002.safetensors"), "not a file of this folder"),
        (QUERY, json!("/etc/passwd"), "not a file of this folder"),
        (QUERY, json!(7), "not a file of this folder"),
        (QUERY, json!("model-00003-of-00002.safetensors"), "model-00003"),
        ("strange", json!("model-00001-of-00002.safetensors"), "strange"),
    ];
    for (name, file, word) in cases {
        let temporary = common::TempDir::new();
        let path = temporary.path().join("random");
        folder.write_sharded(&path, 2);
        let index = path.join("model.safetensors.index.json");
        let mut json: Json = serde_json::from_slice(&std::fs::read(&index).unwrap()).unwrap();
        json["weight_map"][name] = file;
        std::fs::write(&index, json.to_string()).unwrap();
        assert_refused_at(&path, &OPTIONS, &[word]);
    }
}

#[test]
fn a_stop_is_an_error_and_leaves_nothing() {
    let (temporary, path) = Folder::random(BITNET, Stored::Multiply).place();
    let out = temporary.path().join("out.gguf");
    let options = Options { verify: true, ..OPTIONS };
    // At any of the times when the caller is asked.
    let mut calls = 0;
    convert::convert(&path, &out, &options, &mut |_, _, _| {
        calls += 1;
        true
    })
    .unwrap();
    std::fs::remove_file(&out).unwrap();
    for stop in [1, 2, 5, calls / 2, calls] {
        let mut call = 0;
        let result = convert::convert(&path, &out, &options, &mut |_, _, _| {
            call += 1;
            call < stop
        });
        assert_eq!(refusal(result).0, "Cancelled");
        assert_eq!(std::fs::read_dir(temporary.path()).unwrap().count(), 1);
    }
}
