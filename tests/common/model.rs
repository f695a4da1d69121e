//! Complete random models: every key and tensor that an architecture needs, tiny, the same bytes for the same seed on
//! every machine. Of float arithmetic only what IEEE 754 rounds correctly is used, so no `powf` and no `sin`.

use super::{GgufWriter, Rng, random_blocks, random_f32};
use edgellm::quant::Format;

/// Which format each kind of matrix is in. K-quants need `hidden` and `intermediate` in multiples of 256.
#[derive(Clone, Copy, Debug)]
pub struct Formats {
    pub embedding: Format,
    /// Not written when the head is tied to the embedding.
    pub head: Format,
    pub query: Format,
    pub key: Format,
    pub value: Format,
    pub attention_out: Format,
    pub gate: Format,
    pub up: Format,
    pub down: Format,
}

impl Formats {
    /// The same everywhere.
    pub fn all(format: Format) -> Formats {
        Formats {
            embedding: format,
            head: format,
            query: format,
            key: format,
            value: format,
            attention_out: format,
            gate: format,
            up: format,
            down: format,
        }
    }

    /// As BitNet models have them.
    pub fn ternary(format: Format) -> Formats {
        Formats { embedding: Format::Q8_0, head: Format::Q6_K, ..Formats::all(format) }
    }

    /// As in files called Q4_K_M: value and down projections and the head in Q6_K.
    pub fn q4_k_m() -> Formats {
        let more = Format::Q6_K;
        Formats { head: more, value: more, down: more, ..Formats::all(Format::Q4_K) }
    }
}

/// What the model knows of text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vocabulary {
    /// `tokenizer.ggml.model` = `no_vocab`.
    None,
    /// Byte-level BPE: the 256 byte tokens, a few merges (`hello`, ` the`, …), the ChatML control tokens and a chat
    /// template, filled up with unused tokens. `pre` is `tokenizer.ggml.pre`.
    Gpt2 { pre: &'static str },
}

/// What to build; [`ModelSpec::tiny`] is the start.
#[derive(Clone, Debug)]
pub struct ModelSpec {
    pub architecture: &'static str,
    pub seed: u64,
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub intermediate: usize,
    pub vocab: usize,
    pub context_len: usize,
    pub freq_base: f32,
    pub formats: Formats,
    /// No `output.weight`: the embedding is the head.
    pub tied: bool,
    /// Writes `rope_freqs.weight`, as Llama 3.2 has it.
    pub rope_freqs: bool,
    pub vocabulary: Vocabulary,
}

impl ModelSpec {
    /// Two layers of 256, Q8_0, no vocabulary. `architecture`: `llama`, `qwen2` (biases), `qwen3` (q/k norms) or
    /// `bitnet…` (sub-norms).
    pub fn tiny(architecture: &'static str) -> ModelSpec {
        ModelSpec {
            architecture,
            seed: 1,
            hidden: 256,
            layers: 2,
            heads: 4,
            kv_heads: 2,
            head_dim: 64,
            intermediate: 512,
            vocab: 320,
            context_len: 512,
            freq_base: 10_000.0,
            formats: Formats::all(Format::Q8_0),
            tied: false,
            rope_freqs: false,
            vocabulary: Vocabulary::None,
        }
    }
}

/// The model as a GGUF v3 file.
pub fn random_model(spec: &ModelSpec) -> Vec<u8> {
    random_model_writer(spec).write(3)
}

/// The model before it is written, for tests that want to spoil a part of it.
pub fn random_model_writer(spec: &ModelSpec) -> GgufWriter {
    let mut writer = GgufWriter::new();
    write_config(&mut writer, spec);
    match spec.vocabulary {
        Vocabulary::None => {
            writer.kv_str("tokenizer.ggml.model", "no_vocab");
        }
        Vocabulary::Gpt2 { pre } => write_vocabulary(&mut writer, spec.vocab, pre),
    }
    write_tensors(&mut writer, spec);
    writer
}

fn write_config(writer: &mut GgufWriter, spec: &ModelSpec) {
    let key = |name: &str| format!("{}.{name}", spec.architecture);
    writer.kv_str("general.architecture", spec.architecture).kv_str("general.name", "random");
    for (name, value) in [
        ("context_length", spec.context_len),
        ("embedding_length", spec.hidden),
        ("block_count", spec.layers),
        ("feed_forward_length", spec.intermediate),
        ("attention.head_count", spec.heads),
        ("attention.head_count_kv", spec.kv_heads),
        ("attention.key_length", spec.head_dim),
        ("attention.value_length", spec.head_dim),
        ("rope.dimension_count", spec.head_dim),
        ("vocab_size", spec.vocab),
    ] {
        writer.kv_u32(&key(name), value as u32);
    }
    writer.kv_f32(&key("attention.layer_norm_rms_epsilon"), 1e-5);
    writer.kv_f32(&key("rope.freq_base"), spec.freq_base);
}

fn write_tensors(writer: &mut GgufWriter, spec: &ModelSpec) {
    let mut rng = Rng::new(spec.seed);
    let formats = &spec.formats;
    // One number for all: a row's dot product with a normalised vector is then about 1.
    let matrix = |writer: &mut GgufWriter, rng: &mut Rng, name: &str, format, columns: usize, rows: usize| {
        let bytes = random_blocks(rng, format, columns * rows, 1.0 / (columns as f32).sqrt());
        writer.tensor(name, &[columns as u64, rows as u64], format, bytes);
    };
    let vector = |writer: &mut GgufWriter, rng: &mut Rng, name: &str, len: usize, low, high| {
        writer.tensor(name, &[len as u64], Format::F32, random_f32(rng, len, low, high));
    };

    let (hidden, query, key_value) = (spec.hidden, spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
    let spread = if spec.tied { 1.0 / (hidden as f32).sqrt() } else { 0.5 };
    let embedding = random_blocks(&mut rng, formats.embedding, hidden * spec.vocab, spread);
    writer.tensor("token_embd.weight", &[hidden as u64, spec.vocab as u64], formats.embedding, embedding);
    vector(writer, &mut rng, "output_norm.weight", hidden, 0.5, 1.5);
    if !spec.tied {
        matrix(writer, &mut rng, "output.weight", formats.head, hidden, spec.vocab);
    }
    if spec.rope_freqs {
        vector(writer, &mut rng, "rope_freqs.weight", spec.head_dim / 2, 1.0, 32.0);
    }
    for layer in 0..spec.layers {
        let name = |part: &str| format!("blk.{layer}.{part}");
        for (part, format, columns, rows) in [
            ("attn_q.weight", formats.query, hidden, query),
            ("attn_k.weight", formats.key, hidden, key_value),
            ("attn_v.weight", formats.value, hidden, key_value),
            ("attn_output.weight", formats.attention_out, query, hidden),
            ("ffn_gate.weight", formats.gate, hidden, spec.intermediate),
            ("ffn_up.weight", formats.up, hidden, spec.intermediate),
            ("ffn_down.weight", formats.down, spec.intermediate, hidden),
        ] {
            matrix(writer, &mut rng, &name(part), format, columns, rows);
        }
        vector(writer, &mut rng, &name("attn_norm.weight"), hidden, 0.5, 1.5);
        vector(writer, &mut rng, &name("ffn_norm.weight"), hidden, 0.5, 1.5);
        let (norms, biases) = (spec.architecture == "qwen3", spec.architecture == "qwen2");
        for part in ["attn_q_norm.weight", "attn_k_norm.weight"].into_iter().filter(|_| norms) {
            vector(writer, &mut rng, &name(part), spec.head_dim, 0.5, 1.5);
        }
        for (part, len) in [("attn_sub_norm.weight", query), ("ffn_sub_norm.weight", spec.intermediate)] {
            if spec.architecture.starts_with("bitnet") {
                vector(writer, &mut rng, &name(part), len, 0.5, 1.5);
            }
        }
        let lens = [("attn_q.bias", query), ("attn_k.bias", key_value), ("attn_v.bias", key_value)];
        for (part, len) in lens.into_iter().filter(|_| biases) {
            vector(writer, &mut rng, &name(part), len, -0.5, 0.5);
        }
    }
}

/// Merges in order of rank; both halves of each are bytes or made by a merge before it. `Ġ` is the space.
pub(super) const MERGES: [(&str, &str); 16] = [
    ("h", "e"),
    ("l", "l"),
    ("he", "ll"),
    ("hell", "o"),
    ("Ġ", "t"),
    ("Ġt", "he"),
    ("Ġ", "a"),
    ("i", "n"),
    ("e", "r"),
    ("Ġ", "Ġ"),
    ("ĠĠ", "ĠĠ"),
    ("1", "2"),
    ("o", "r"),
    ("Ġ", "w"),
    ("Ġw", "or"),
    ("Ã", "©"), // The two bytes of é.
];

pub(super) const CHATML: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + \
    '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

fn write_vocabulary(writer: &mut GgufWriter, len: usize, pre: &str) {
    let mut tokens = byte_alphabet();
    tokens.extend(MERGES.iter().map(|(a, b)| format!("{a}{b}")));
    let mut types = vec![1; tokens.len()]; // Normal.
    let (start, end) = (tokens.len(), tokens.len() + 1);
    tokens.extend(["<|im_start|>".into(), "<|im_end|>".into()]);
    types.resize(tokens.len(), 3); // Control.
    assert!(tokens.len() <= len, "the vocabulary needs at least {} tokens", tokens.len());
    tokens.extend((tokens.len()..len).map(|i| format!("[UNUSED_{i}]")));
    types.resize(len, 5); // Unused.
    let merges: Vec<String> = MERGES.iter().map(|(a, b)| format!("{a} {b}")).collect();
    writer
        .kv_str("tokenizer.ggml.model", "gpt2")
        .kv_str("tokenizer.ggml.pre", pre)
        .kv_strings("tokenizer.ggml.tokens", &tokens)
        .kv_i32s("tokenizer.ggml.token_type", &types)
        .kv_strings("tokenizer.ggml.merges", &merges)
        .kv_u32("tokenizer.ggml.bos_token_id", start as u32)
        .kv_u32("tokenizer.ggml.eos_token_id", end as u32)
        .kv_bool("tokenizer.ggml.add_bos_token", false)
        .kv_str("tokenizer.chat_template", CHATML);
}

/// The 256 characters that stand for bytes in byte-level BPE, in the order of the bytes: printable ones for themselves,
/// the others from U+0100 on.
pub(super) fn byte_alphabet() -> Vec<String> {
    let mut next = 0x100;
    (0..=255u8)
        .map(|byte| match byte {
            b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte).to_string(),
            _ => {
                next += 1;
                char::from_u32(next - 1).unwrap().to_string()
            }
        })
        .collect()
}
