//! Hugging Face folders of tiny random BitNet models, with everything that is in them, for tests that convert them and
//! for tests that spoil a part first.

use super::model::{CHATML, MERGES, byte_alphabet};
use super::{Rng, TempDir};
use half::{bf16, f16};
pub use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value as Json, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// How the linear layers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stored {
    /// Packed, `weight_scale` is the magnitude.
    Multiply,
    /// Packed, `weight_scale` is one over it.
    Divide,
    /// Floats of this type.
    Masters(Dtype),
}

/// A tensor of the folder.
#[derive(Clone, Debug)]
pub struct FolderTensor {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// A linear layer as it is meant: each weight is `codes * scale`.
#[derive(Clone, Debug)]
pub struct Layer {
    pub rows: usize,
    pub columns: usize,
    pub codes: Vec<i8>,
    pub scale: f32,
}

/// A folder before it is written.
#[derive(Clone, Debug)]
pub struct Folder {
    pub config: Json,
    pub generation: Json,
    pub tokenizer: Json,
    pub tokenizer_config: Json,
    pub tensors: BTreeMap<String, FolderTensor>,
    /// What the linear layers are, by the names of their weights.
    pub layers: BTreeMap<String, Layer>,
    /// Other files.
    pub files: BTreeMap<String, String>,
}

pub const HIDDEN: usize = 256;
pub const INTERMEDIATE: usize = 512;
pub const HEADS: usize = 4;
pub const KV_HEADS: usize = 2;
pub const HEAD_DIM: usize = 64;
pub const VOCAB: usize = 320;
pub const LAYERS: usize = 2;

impl Folder {
    /// Two layers of 256. `BitNetForCausalLM` has squared ReLU and a tied head, `LlamaForCausalLM` a head of its own.
    pub fn random(architecture: &str, stored: Stored) -> Folder {
        let bitnet = architecture != "LlamaForCausalLM";
        let mut folder = Folder {
            config: config(architecture, stored, bitnet),
            generation: json!({ "eos_token_id": [274, 275], "bos_token_id": 273 }),
            tokenizer: tokenizer(),
            tokenizer_config: json!({ "eos_token": "<|im_end|>", "chat_template": CHATML }),
            tensors: BTreeMap::new(),
            layers: BTreeMap::new(),
            files: BTreeMap::new(),
        };
        let mut rng = Rng::new(7);
        folder.table(&mut rng, "model.embed_tokens.weight", VOCAB, 1.0);
        folder.norm(&mut rng, "model.norm.weight", HIDDEN);
        if !bitnet {
            folder.table(&mut rng, "lm_head.weight", VOCAB, 0.1);
        }
        for layer in 0..LAYERS {
            let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
            folder.norm(&mut rng, &name("input_layernorm"), HIDDEN);
            folder.norm(&mut rng, &name("post_attention_layernorm"), HIDDEN);
            if bitnet {
                folder.norm(&mut rng, &name("self_attn.attn_sub_norm"), HIDDEN);
                folder.norm(&mut rng, &name("mlp.ffn_sub_norm"), INTERMEDIATE);
            }
            for (part, rows, columns) in [
                ("self_attn.q_proj", HIDDEN, HIDDEN),
                ("self_attn.k_proj", KV_HEADS * HEAD_DIM, HIDDEN),
                ("self_attn.v_proj", KV_HEADS * HEAD_DIM, HIDDEN),
                ("self_attn.o_proj", HIDDEN, HIDDEN),
                ("mlp.gate_proj", INTERMEDIATE, HIDDEN),
                ("mlp.up_proj", INTERMEDIATE, HIDDEN),
                ("mlp.down_proj", HIDDEN, INTERMEDIATE),
            ] {
                folder.linear(&mut rng, &name(part), rows, columns, stored);
            }
        }
        folder
    }

    fn put(&mut self, name: &str, dtype: Dtype, shape: &[usize], bytes: Vec<u8>) {
        self.tensors.insert(name.into(), FolderTensor { dtype, shape: shape.into(), bytes });
    }

    fn table(&mut self, rng: &mut Rng, name: &str, rows: usize, spread: f32) {
        let bytes = (0..rows * HIDDEN).flat_map(|_| bf16::from_f32(rng.range(-spread, spread)).to_le_bytes());
        self.put(name, Dtype::BF16, &[rows, HIDDEN], bytes.collect());
    }

    fn norm(&mut self, rng: &mut Rng, name: &str, len: usize) {
        let bytes = (0..len).flat_map(|_| bf16::from_f32(rng.range(0.5, 1.5)).to_le_bytes());
        self.put(name, Dtype::BF16, &[len], bytes.collect());
    }

    fn linear(&mut self, rng: &mut Rng, name: &str, rows: usize, columns: usize, stored: Stored) {
        let mut layer = Layer { rows, columns, codes: Vec::new(), scale: 0.0 };
        match stored {
            Stored::Masters(dtype) => {
                let floats: Vec<f32> = (0..rows * columns).map(|_| round(dtype, rng.range(-0.1, 0.1))).collect();
                let bytes = floats.iter().flat_map(|value| to_bytes(dtype, *value)).collect();
                self.put(name, dtype, &[rows, columns], bytes);
                // The definition: s = 1 / mean, t = round(w s), w' = t / s.
                let mean = floats.iter().map(|value| f64::from(value.abs())).sum::<f64>() / floats.len() as f64;
                let inverse = 1.0 / (mean as f32).max(1e-5);
                let code = |value: &f32| (value * inverse).round_ties_even().clamp(-1.0, 1.0) as i8;
                layer.codes = floats.iter().map(code).collect();
                layer.scale = 1.0 / inverse;
            }
            Stored::Multiply | Stored::Divide => {
                layer.codes = (0..rows * columns).map(|_| rng.below(3) as i8 - 1).collect();
                let said = if stored == Stored::Divide { rng.range(15.0, 60.0) } else { rng.range(0.02, 0.07) };
                let said = bf16::from_f32(said);
                layer.scale = if stored == Stored::Divide { 1.0 / said.to_f32() } else { said.to_f32() };
                let quarter = rows / 4 * columns;
                let code = |block: usize, at: usize| ((layer.codes[block * quarter + at] + 1) as u8) << (2 * block);
                let bytes = (0..quarter).map(|at| (0..4).fold(0, |byte, block| byte | code(block, at))).collect();
                self.put(name, Dtype::U8, &[rows / 4, columns], bytes);
                self.put(&format!("{name}_scale"), Dtype::BF16, &[1], said.to_le_bytes().into());
            }
        }
        self.layers.insert(name.into(), layer);
    }

    /// Writes the folder, weights in one file.
    pub fn write(&self, path: &Path) {
        self.write_settings(path);
        let all: Vec<&str> = self.tensors.keys().map(String::as_str).collect();
        std::fs::write(path.join("model.safetensors"), self.file(&all)).unwrap();
    }

    /// Writes the folder with this many files of weights and their index.
    pub fn write_sharded(&self, path: &Path, count: usize) {
        self.write_settings(path);
        let all: Vec<&str> = self.tensors.keys().map(String::as_str).collect();
        let mut map = serde_json::Map::new();
        for (i, names) in all.chunks(all.len().div_ceil(count)).enumerate() {
            let file = format!("model-{:05}-of-{count:05}.safetensors", i + 1);
            std::fs::write(path.join(&file), self.file(names)).unwrap();
            map.extend(names.iter().map(|name| (name.to_string(), json!(file))));
        }
        let index = json!({ "metadata": {}, "weight_map": map });
        std::fs::write(path.join("model.safetensors.index.json"), index.to_string()).unwrap();
    }

    fn write_settings(&self, path: &Path) {
        std::fs::create_dir_all(path).unwrap();
        let jsons = [
            ("config.json", &self.config),
            ("generation_config.json", &self.generation),
            ("tokenizer.json", &self.tokenizer),
            ("tokenizer_config.json", &self.tokenizer_config),
        ];
        for (name, json) in jsons.into_iter().filter(|(_, json)| !json.is_null()) {
            std::fs::write(path.join(name), json.to_string()).unwrap();
        }
        for (name, text) in &self.files {
            std::fs::write(path.join(name), text).unwrap();
        }
    }

    fn file(&self, names: &[&str]) -> Vec<u8> {
        let views = names.iter().map(|&name| {
            let FolderTensor { dtype, shape, bytes } = &self.tensors[name];
            (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap())
        });
        safetensors::serialize(views, None).unwrap()
    }

    /// Writes the folder into a temporary one, and says where.
    pub fn place(&self) -> (TempDir, PathBuf) {
        let temporary = TempDir::new();
        let path = temporary.path().join("random");
        self.write(&path);
        (temporary, path)
    }

    /// The values of a tensor of floats.
    pub fn floats(&self, name: &str) -> Vec<f32> {
        let tensor = &self.tensors[name];
        let halves = tensor.bytes.as_chunks::<2>().0.iter();
        match tensor.dtype {
            Dtype::F32 => tensor.bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect(),
            Dtype::F16 => halves.map(|bytes| f16::from_le_bytes(*bytes).to_f32()).collect(),
            Dtype::BF16 => halves.map(|bytes| bf16::from_le_bytes(*bytes).to_f32()).collect(),
            other => panic!("{name} is {other:?}"),
        }
    }
}

fn round(dtype: Dtype, value: f32) -> f32 {
    match dtype {
        Dtype::F16 => f16::from_f32(value).to_f32(),
        Dtype::BF16 => bf16::from_f32(value).to_f32(),
        _ => value,
    }
}

fn to_bytes(dtype: Dtype, value: f32) -> Vec<u8> {
    match dtype {
        Dtype::F16 => f16::from_f32(value).to_le_bytes().into(),
        Dtype::BF16 => bf16::from_f32(value).to_le_bytes().into(),
        _ => value.to_le_bytes().into(),
    }
}

fn config(architecture: &str, stored: Stored, bitnet: bool) -> Json {
    let (class, mode) = match stored {
        Stored::Multiply => ("autobitlinear", "offline"),
        Stored::Divide => ("bitlinear", "offline"),
        Stored::Masters(_) => ("autobitlinear", "online"),
    };
    json!({
        "architectures": [architecture],
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "hidden_act": if bitnet { "relu2" } else { "silu" },
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 512,
        "rope_theta": 500000.0,
        "tie_word_embeddings": bitnet,
        "quantization_config": { "quant_method": "bitnet", "linear_class": class, "quantization_mode": mode },
    })
}

/// The expression of Qwen 2's pre-tokenizer.
pub const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
/// That of Llama 3's.
pub const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Byte-level BPE with a few merges, in the manner of Qwen 2. No merge makes token 272; 273 to 275 are special.
fn tokenizer() -> Json {
    let mut words = byte_alphabet();
    words.extend(MERGES.iter().map(|(a, b)| format!("{a}{b}")));
    words.push("stop".into());
    assert_eq!(words.len(), 273);
    let vocab: serde_json::Map<_, _> = words.into_iter().enumerate().map(|(id, word)| (word, json!(id))).collect();
    let merges: Vec<Json> = MERGES.iter().map(|(a, b)| json!([a, b])).collect();
    let added = |id: usize, text: &str, special: bool| {
        json!({
            "id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false,
            "special": special
        })
    };
    json!({
        "version": "1.0",
        "added_tokens": [
            added(273, "<|im_start|>", true),
            added(274, "<|im_end|>", true),
            added(275, "<|stop|>", true),
            added(276, "<tool>", false),
        ],
        "normalizer": null,
        "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
            { "type": "Split", "pattern": { "Regex": QWEN2 }, "behavior": "Isolated", "invert": false },
            { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false },
        ] },
        "post_processor": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": false, "use_regex": true },
        "decoder": { "type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true },
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": merges,
        },
    })
}
