//! A model's configuration, from metadata: every value checked, so that later sizes can be trusted.

use super::architecture::{self, Architecture};
use crate::backend::Shape;
use crate::file::{Metadata, ModelFile, Value};
use crate::{Error, Result};

/// What the metadata says, checked.
pub struct Config {
    /// Its row of the table.
    pub architecture: &'static Architecture,
    /// What the backend must know.
    pub shape: Shape,
    /// Tokens that the model was trained to see at once.
    pub context_len_max: usize,
}

/// The bounds of what is believed; far above any real model.
const LAYERS_MAX: u64 = 1024;
const WIDTH_MAX: u64 = 1 << 20;
const VOCAB_MAX: u64 = 1 << 24;
const CONTEXT_MAX: u64 = 1 << 24;

impl Config {
    /// Reads and checks the configuration.
    pub fn read(file: &ModelFile) -> Result<Self> {
        let metadata = &file.metadata;
        let name = metadata.string("general.architecture")?.ok_or_else(|| missing("general.architecture"))?;
        let architecture = architecture::find(name).ok_or_else(|| {
            let names: Vec<_> = architecture::ALL.iter().map(|architecture| architecture.name).collect();
            Error::Unsupported(format!("architecture `{name}` is not supported; these are: {}", names.join(", ")))
        })?;
        let keys = Keys { metadata, prefix: architecture.name };
        if metadata.uint(&keys.key("expert_count"))?.is_some_and(|experts| experts > 0) {
            return Err(Error::Unsupported(format!("`{name}` with experts (MoE) is not supported")));
        }
        let layers = keys.uint("block_count", LAYERS_MAX, None)?;
        let hidden = keys.uint("embedding_length", WIDTH_MAX, None)?;
        let intermediate = keys.uint("feed_forward_length", WIDTH_MAX, None)?;
        let query_heads = keys.uint("attention.head_count", WIDTH_MAX, None)?;
        let kv_heads = keys.uint("attention.head_count_kv", WIDTH_MAX, Some(query_heads))?;
        if query_heads % kv_heads != 0 {
            let heads =
                format!("{name}.attention.head_count {query_heads} is not a multiple of head_count_kv {kv_heads}");
            return Err(Error::Format(heads));
        }
        let head_dim = keys.uint("attention.key_length", WIDTH_MAX, Some(hidden / query_heads))?;
        let value_dim = keys.uint("attention.value_length", WIDTH_MAX, Some(head_dim))?;
        if value_dim != head_dim {
            let lengths = format!("{name}.attention: key_length {head_dim} and value_length {value_dim} differ");
            return Err(Error::Unsupported(lengths));
        }
        let norm_epsilon = keys.float("attention.layer_norm_rms_epsilon", None)?;
        if !(0.0..1.0).contains(&norm_epsilon) {
            let epsilon = format!("{name}.attention.layer_norm_rms_epsilon {norm_epsilon} is not in 0..1");
            return Err(Error::Format(epsilon));
        }
        let mut context_len_max = keys.uint("context_length", CONTEXT_MAX, None)?;
        if let Some(window) = metadata.uint(&keys.key("attention.sliding_window"))?.filter(|&window| window > 0) {
            // Within the window, sliding-window attention is plain attention.
            context_len_max = context_len_max.min(window as usize);
        }
        let vocab_len = vocab_len(file, &keys)?;
        let rope_frequencies = rope_frequencies(file, &keys, head_dim)?;
        let shape = Shape {
            layers,
            hidden,
            intermediate,
            query_heads,
            kv_heads,
            head_dim,
            vocab_len,
            norm_epsilon,
            rope_adjacent: architecture.rope_adjacent,
            rope_frequencies,
            activation: architecture.activation,
        };
        Ok(Config { architecture, shape, context_len_max })
    }
}

fn missing(key: &str) -> Error {
    Error::Format(format!("metadata key `{key}` is missing"))
}

/// Metadata under an architecture's prefix.
struct Keys<'a> {
    metadata: &'a Metadata,
    prefix: &'a str,
}

impl Keys<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.prefix)
    }

    /// A count: 1 to `max`, or the default when the key is absent (None: it must be there).
    fn uint(&self, key: &str, max: u64, default: Option<usize>) -> Result<usize> {
        let key = self.key(key);
        if let Some(Value::Array(_)) = self.metadata.get(&key) {
            return Err(Error::Unsupported(format!("`{key}` is an array: layers that differ are not supported")));
        }
        match (self.metadata.uint(&key)?, default) {
            (None, Some(default)) => Ok(default),
            (None, None) => Err(missing(&key)),
            (Some(value), _) if (1..=max).contains(&value) => Ok(value as usize),
            (Some(value), _) => Err(Error::Format(format!("`{key}` is {value}, not in 1..={max}"))),
        }
    }

    fn float(&self, key: &str, default: Option<f32>) -> Result<f32> {
        let key = self.key(key);
        self.metadata.float(&key)?.or(default).ok_or_else(|| missing(&key))
    }
}

/// The rows of the embedding, which the vocabulary must equal where the file has one.
fn vocab_len(file: &ModelFile, keys: &Keys<'_>) -> Result<usize> {
    let embedding = file.tensor("token_embd.weight");
    let rows = embedding.ok_or_else(|| Error::Format("tensor `token_embd.weight` is missing".into()))?.shape[1];
    if rows as u64 > VOCAB_MAX {
        return Err(Error::Format(format!("tensor `token_embd.weight` has {rows} rows, at most {VOCAB_MAX}")));
    }
    let said = keys.uint("vocab_size", VOCAB_MAX, Some(rows))?;
    if said != rows {
        let text = format!("`{}` is {said}, tensor `token_embd.weight` has {rows} rows", keys.key("vocab_size"));
        return Err(Error::Format(text));
    }
    Ok(rows)
}

/// Radians per position of each rotated pair: base^(-2i/n), then the model's scaling.
///
/// Su et al., RoFormer (2021); Llama 3.1's long-context scaling comes as divisors in `rope_freqs.weight`.
fn rope_frequencies(file: &ModelFile, keys: &Keys<'_>, head_dim: usize) -> Result<Vec<f64>> {
    let rotated = keys.uint("rope.dimension_count", head_dim as u64, Some(head_dim))?;
    if rotated % 2 != 0 {
        return Err(Error::Format(format!("`{}` is {rotated}, not even", keys.key("rope.dimension_count"))));
    }
    let base = keys.float("rope.freq_base", Some(10_000.0))?;
    if !(base.is_finite() && base > 0.0) {
        return Err(Error::Format(format!("`{}` is {base}", keys.key("rope.freq_base"))));
    }
    let kind_key = keys.key("rope.scaling.type");
    let kind = keys.metadata.string(&kind_key)?.unwrap_or("none");
    let factors = file.tensor("rope_freqs.weight");
    let factor = match kind {
        "none" => 1.0,
        // The oldest files say `rope.scale_linear`.
        "linear" => keys.float("rope.scaling.factor", keys.metadata.float(&keys.key("rope.scale_linear"))?)?,
        // Its divisors come as a tensor.
        "llama3" if factors.is_some() => 1.0,
        other => {
            let text =
                format!("`{kind_key}` = `{other}` is not supported; linear, and llama3 with `rope_freqs.weight`, are");
            return Err(Error::Unsupported(text));
        }
    };
    if !(factor.is_finite() && factor > 0.0) {
        return Err(Error::Format(format!("`{}` is {factor}", keys.key("rope.scaling.factor"))));
    }
    let mut frequencies: Vec<f64> =
        (0..rotated / 2).map(|i| libm::pow(base as f64, -((2 * i) as f64) / rotated as f64) / factor as f64).collect();
    if let Some(tensor) = factors {
        let divisors = super::weights::vector(&tensor, rotated / 2)?;
        for (frequency, divisor) in frequencies.iter_mut().zip(divisors) {
            if !(divisor.is_finite() && divisor > 0.0) {
                return Err(Error::Format(format!("tensor `rope_freqs.weight` holds {divisor}")));
            }
            *frequency /= divisor as f64;
        }
    }
    Ok(frequencies)
}
