//! `config.json`: which architecture, how large, and what the weights' scales mean.

use super::folder::Fields;
use crate::file::Value;
use crate::{Error, Result};
use serde_json::Value as Json;

const FILE: &str = "config.json";
/// Far above any real model, as the loader has it.
const LAYERS_MAX: u64 = 1024;
const WIDTH_MAX: u64 = 1 << 20;
const VOCAB_MAX: u64 = 1 << 24;
const CONTEXT_MAX: u64 = 1 << 24;

/// What `weight_scale` beside packed weights means: see [`Direction::magnitude`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// It is the mean magnitude of the weights.
    Multiply,
    /// It is one over the mean magnitude.
    Divide,
}

impl Direction {
    /// The magnitude of the weights that are not zero.
    pub fn magnitude(self, weight_scale: f32) -> f32 {
        match self {
            Direction::Multiply => weight_scale,
            Direction::Divide => 1.0 / weight_scale,
        }
    }
}

/// How the linear layers are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Storage {
    /// Two bits a weight and a scale beside each tensor.
    Packed(Direction),
    /// Floats that become ternary when they are used.
    Masters,
    /// The configuration does not say: packed weights would have no known meaning.
    Unsaid,
}

/// How positions become angles.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Rope {
    Plain,
    Linear { factor: f32 },
    Llama3 { factor: f64, low: f64, high: f64, context: f64 },
}

/// What the configuration says, checked.
#[derive(Debug)]
pub(super) struct Config {
    /// `general.architecture` of the file to write.
    pub(super) architecture: &'static str,
    /// RMSNorm before the output projections of attention and feed-forward.
    pub(super) sub_norms: bool,
    /// The loader rotates adjacent pairs: rows of q and k are to be rearranged.
    pub(super) rope_adjacent: bool,
    pub(super) storage: Storage,
    pub(super) layers: usize,
    pub(super) hidden: usize,
    pub(super) intermediate: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_dim: usize,
    /// `head_dim` is in the configuration.
    head_dim_said: bool,
    pub(super) vocab: usize,
    context: usize,
    epsilon: f32,
    rope_base: f64,
    pub(super) rope: Rope,
    pub(super) tied: bool,
}

impl Config {
    pub(super) fn read(json: &Json) -> Result<Config> {
        let fields = Fields { file: FILE, object: json };
        let hf_architecture = hf_architecture(&fields)?;
        let is_bitnet = matches!(hf_architecture, "BitNetForCausalLM" | "BitnetForCausalLM");
        let act = fields.string("hidden_act")?.unwrap_or(if is_bitnet { "relu2" } else { "silu" });
        let architecture = match (is_bitnet, act) {
            (true, "relu2") => "bitnet-b1.58",
            (true, "silu") => "bitnet",
            (false, "silu") => "llama",
            _ => {
                let text = format!("{FILE}: `hidden_act` = {act:?} of {hf_architecture} is not supported");
                return Err(Error::Unsupported(text));
            }
        };
        refuse_features(&fields)?;
        let needed = |key: &str, max| fields.count(key, max)?.ok_or_else(|| missing(key));
        let hidden = needed("hidden_size", WIDTH_MAX)?;
        let heads = needed("num_attention_heads", WIDTH_MAX)?;
        let kv_heads = fields.count("num_key_value_heads", WIDTH_MAX)?.unwrap_or(heads);
        let head_dim = fields.count("head_dim", WIDTH_MAX)?;
        let divides = |whole: usize, part: usize| whole % part == 0;
        if !divides(heads, kv_heads) || head_dim.is_none() && !divides(hidden, heads) {
            let text = format!("{heads} heads and {kv_heads} kv heads do not divide {hidden} values");
            return Err(Error::Format(format!("{FILE}: {text}")));
        }
        let head_dim_found = head_dim.unwrap_or(hidden / heads);
        if head_dim_found % 2 != 0 {
            return Err(Error::Format(format!("{FILE}: heads of {head_dim_found} values have no pairs to rotate")));
        }
        let epsilon = fields.float("rms_norm_eps")?.ok_or_else(|| missing("rms_norm_eps"))?;
        let (rope_base, rope) = rope(&fields)?;
        if is_bitnet && matches!(rope, Rope::Llama3 { .. }) {
            let text = format!("{FILE}: RoPE scaling `llama3` of {hf_architecture} is not supported");
            return Err(Error::Unsupported(text));
        }
        Ok(Config {
            architecture,
            sub_norms: is_bitnet,
            rope_adjacent: !is_bitnet,
            storage: storage(&fields, is_bitnet)?,
            layers: needed("num_hidden_layers", LAYERS_MAX)?,
            hidden,
            intermediate: needed("intermediate_size", WIDTH_MAX)?,
            heads,
            kv_heads,
            head_dim: head_dim_found,
            head_dim_said: head_dim.is_some(),
            vocab: needed("vocab_size", VOCAB_MAX)?,
            context: needed("max_position_embeddings", CONTEXT_MAX)?,
            epsilon: epsilon as f32,
            rope_base,
            rope,
            tied: fields.bool("tie_word_embeddings")?.unwrap_or(false),
        })
    }

    /// The pairs under the architecture's prefix.
    pub(super) fn metadata(&self) -> Vec<(String, Value)> {
        let mut pairs = Vec::new();
        let mut put = |key: &str, value| pairs.push((format!("{}.{key}", self.architecture), value));
        let count = |count: usize| Value::U32(count as u32); // The bounds above are far below 2^32.
        put("block_count", count(self.layers));
        put("context_length", count(self.context));
        put("embedding_length", count(self.hidden));
        put("feed_forward_length", count(self.intermediate));
        put("attention.head_count", count(self.heads));
        put("attention.head_count_kv", count(self.kv_heads));
        if self.head_dim_said {
            put("attention.key_length", count(self.head_dim));
            put("attention.value_length", count(self.head_dim));
        }
        put("attention.layer_norm_rms_epsilon", Value::F32(self.epsilon));
        put("vocab_size", count(self.vocab));
        put("rope.dimension_count", count(self.head_dim));
        put("rope.freq_base", Value::F32(self.rope_base as f32));
        let linear = match self.rope {
            Rope::Linear { factor } => Some(factor),
            Rope::Plain if self.sub_norms => Some(1.0), // As other files of these architectures say it.
            _ => None,
        };
        if let Some(factor) = linear {
            put("rope.scaling.type", Value::String("linear".into()));
            put("rope.scaling.factor", Value::F32(factor));
        }
        pairs
    }

    /// What each frequency of RoPE is divided by, for Llama 3.1's scaling; else None.
    ///
    /// Frequencies with few turns in the context that the model was first trained for are slowed down by the factor,
    /// those with many are left alone, and between the two the change is smooth.
    pub(super) fn rope_divisors(&self) -> Option<Vec<f32>> {
        let Rope::Llama3 { factor, low, high, context } = self.rope else { return None };
        let divisor = |i: usize| {
            let frequency = libm::pow(self.rope_base, -((2 * i) as f64) / self.head_dim as f64);
            let turns = context * frequency / (2.0 * std::f64::consts::PI);
            let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
            (1.0 / ((1.0 - kept) / factor + kept)) as f32
        };
        Some((0..self.head_dim / 2).map(divisor).collect())
    }
}

fn missing(key: &str) -> Error {
    Error::Format(format!("{FILE}: `{key}` is missing"))
}

/// The one architecture that the file names, when it is one of ours.
fn hf_architecture<'a>(fields: &Fields<'a>) -> Result<&'a str> {
    const KNOWN: [&str; 3] = ["BitNetForCausalLM", "BitnetForCausalLM", "LlamaForCausalLM"];
    let names: Option<Vec<&str>> = match fields.get("architectures") {
        Some(Json::Array(names)) => names.iter().map(Json::as_str).collect(),
        _ => None,
    };
    match names.as_deref() {
        Some([name]) if KNOWN.contains(name) => Ok(*name),
        Some([name]) => {
            let known = KNOWN.join(", ");
            Err(Error::Unsupported(format!("{FILE}: architecture {name:?} cannot be converted; these can: {known}")))
        }
        _ => Err(fields.wrong("architectures", "a list of one name")),
    }
}

/// Refuses what would change the result in silence.
fn refuse_features(fields: &Fields<'_>) -> Result<()> {
    for key in ["attention_bias", "mlp_bias", "use_rms_norm"] {
        if fields.bool(key)?.unwrap_or(false) {
            return Err(Error::Unsupported(format!("{FILE}: `{key}` = true is not supported")));
        }
    }
    if fields.float("partial_rotary_factor")?.is_some_and(|factor| factor != 1.0) {
        return Err(Error::Unsupported(format!("{FILE}: `partial_rotary_factor` other than 1 is not supported")));
    }
    if let Some(window) = fields.get("sliding_window") {
        return Err(Error::Unsupported(format!("{FILE}: `sliding_window` = {window} is not supported")));
    }
    Ok(())
}

/// What `quantization_config` says of the linear layers.
fn storage(fields: &Fields<'_>, is_bitnet: bool) -> Result<Storage> {
    let Some(object) = fields.get("quantization_config") else {
        if is_bitnet {
            return Ok(Storage::Unsaid);
        }
        let text = "no `quantization_config`: only ternary models (BitNet) can be converted yet";
        return Err(Error::Unsupported(format!("{FILE}: {text}")));
    };
    let fields = Fields { file: FILE, object };
    let refuse = |key: &str, value: &str, what: &str| {
        Err(Error::Unsupported(format!("{FILE}: `quantization_config.{key}` = {value:?} is not supported; {what}")))
    };
    match fields.string("quant_method")? {
        Some("bitnet") => {}
        method => return refuse("quant_method", method.unwrap_or(""), "\"bitnet\" is"),
    }
    if fields.bool("use_rms_norm")?.unwrap_or(false) {
        let text = "`quantization_config.use_rms_norm` = true (a norm before every projection) is not supported";
        return Err(Error::Unsupported(format!("{FILE}: {text}")));
    }
    let mode = fields.string("quantization_mode")?.unwrap_or("offline");
    match (fields.string("linear_class")?.unwrap_or("bitlinear"), mode) {
        ("bitlinear", _) => Ok(Storage::Packed(Direction::Divide)),
        ("autobitlinear", "offline") => Ok(Storage::Packed(Direction::Multiply)),
        ("autobitlinear", "online") => Ok(Storage::Masters),
        ("autobitlinear", mode) => refuse("quantization_mode", mode, "\"offline\" and \"online\" are"),
        (class, _) => refuse("linear_class", class, "\"bitlinear\" and \"autobitlinear\" are"),
    }
}

/// The base of RoPE and its scaling, in the old way (`rope_theta`, `rope_scaling`) or the new (`rope_parameters`).
fn rope(fields: &Fields<'_>) -> Result<(f64, Rope)> {
    let none = Json::Null;
    let scaling = fields.get("rope_parameters").or_else(|| fields.get("rope_scaling")).unwrap_or(&none);
    let scaling = Fields { file: FILE, object: scaling };
    let base = match scaling.float("rope_theta")? {
        Some(base) => base,
        None => fields.float("rope_theta")?.unwrap_or(10_000.0),
    };
    if base <= 0.0 {
        return Err(Error::Format(format!("{FILE}: `rope_theta` is {base}")));
    }
    let positive = |key: &str| match scaling.float(key)? {
        Some(value) if value > 0.0 => Ok(value),
        _ => Err(scaling.wrong(key, "a number above 0 (of RoPE's scaling)")),
    };
    let kind = match scaling.string("rope_type")? {
        Some(kind) => kind,
        None => scaling.string("type")?.unwrap_or("default"),
    };
    let rope = match kind {
        "default" | "none" => Rope::Plain,
        "linear" => Rope::Linear { factor: positive("factor")? as f32 },
        "llama3" => {
            let (low, high) = (positive("low_freq_factor")?, positive("high_freq_factor")?);
            if low >= high {
                return Err(scaling.wrong("low_freq_factor", "below `high_freq_factor`"));
            }
            let context = positive("original_max_position_embeddings")?;
            Rope::Llama3 { factor: positive("factor")?, low, high, context }
        }
        kind => {
            let text = format!("{FILE}: RoPE scaling {kind:?} is not supported; default, linear and llama3 are");
            return Err(Error::Unsupported(text));
        }
    };
    Ok((base, rope))
}
