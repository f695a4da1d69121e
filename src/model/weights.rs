//! The tensors of a file, by role, checked against the configuration: all that is needed, and nothing else.

use super::config::Config;
use crate::backend::{LayerWeights, Linear, Weights};
use crate::file::{ModelFile, Tensor};
use crate::{Error, Result};

/// Finds every tensor of the architecture, and refuses files with others.
pub fn find<'a>(file: &'a ModelFile, config: &Config) -> Result<Weights<'a>> {
    let shape = &config.shape;
    let mut finder = Finder { file, found: 0 };
    let (hidden, intermediate) = (shape.hidden, shape.intermediate);
    let (q_width, kv_width) = (shape.query_heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    let embedding = finder.matrix("token_embd.weight", shape.vocab_len, hidden)?;
    let mut layers = Vec::with_capacity(shape.layers);
    for layer in 0..shape.layers {
        let name = |part: &str| format!("blk.{layer}.{part}");
        let head_norm = |finder: &mut Finder<'a>, part: &str| match config.architecture.qk_norm {
            true => finder.vector(&name(part), shape.head_dim).map(Some),
            false => Ok(None),
        };
        let sub_norm = |finder: &mut Finder<'a>, part: &str, width| match config.architecture.sub_norms {
            true => finder.vector(&name(part), width).map(Some),
            false => Ok(None),
        };
        layers.push(LayerWeights {
            attn_norm: finder.vector(&name("attn_norm.weight"), hidden)?,
            q: finder.linear(&name("attn_q"), q_width, hidden)?,
            k: finder.linear(&name("attn_k"), kv_width, hidden)?,
            v: finder.linear(&name("attn_v"), kv_width, hidden)?,
            q_norm: head_norm(&mut finder, "attn_q_norm.weight")?,
            k_norm: head_norm(&mut finder, "attn_k_norm.weight")?,
            attn_sub_norm: sub_norm(&mut finder, "attn_sub_norm.weight", q_width)?,
            attn_output: finder.linear(&name("attn_output"), hidden, q_width)?,
            ffn_norm: finder.vector(&name("ffn_norm.weight"), hidden)?,
            gate: finder.linear(&name("ffn_gate"), intermediate, hidden)?,
            up: finder.linear(&name("ffn_up"), intermediate, hidden)?,
            ffn_sub_norm: sub_norm(&mut finder, "ffn_sub_norm.weight", intermediate)?,
            down: finder.linear(&name("ffn_down"), hidden, intermediate)?,
        });
    }
    let output_norm = finder.vector("output_norm.weight", hidden)?;
    let head = match file.tensor("output.weight") {
        Some(_) => Some(finder.matrix("output.weight", shape.vocab_len, hidden)?),
        None => None,
    };
    finder.found += file.tensor("rope_freqs.weight").iter().count(); // The configuration has read it.
    if finder.found < file.tensors().count() {
        return Err(stranger(file, config));
    }
    Ok(Weights { embedding, layers, output_norm, head })
}

/// Names a tensor that the architecture does not have.
fn stranger(file: &ModelFile, config: &Config) -> Error {
    const GLOBAL: [&str; 4] = ["token_embd.weight", "output_norm.weight", "output.weight", "rope_freqs.weight"];
    const LINEAR: [&str; 7] = ["attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"];
    const PARTS: [&str; 3] = ["weight", "scale", "bias"];
    let known = |name: &str| {
        let Some((layer, part)) = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else {
            return GLOBAL.contains(&name);
        };
        let in_range =
            layer.parse::<usize>().is_ok_and(|number| number < config.shape.layers && number.to_string() == layer);
        let linear = part.rsplit_once('.').is_some_and(|(part, kind)| LINEAR.contains(&part) && PARTS.contains(&kind));
        let norm = ["attn_norm.weight", "ffn_norm.weight"].contains(&part);
        let head_norm = ["attn_q_norm.weight", "attn_k_norm.weight"].contains(&part) && config.architecture.qk_norm;
        let sub_norm = ["attn_sub_norm.weight", "ffn_sub_norm.weight"].contains(&part) && config.architecture.sub_norms;
        in_range && (linear || norm || head_norm || sub_norm)
    };
    let name = file.tensors().map(|tensor| tensor.name).find(|name| !known(name)).unwrap_or("?");
    let architecture = config.architecture.name;
    Error::Unsupported(format!("tensor `{name}` is not one of architecture `{architecture}` as this library knows it"))
}

struct Finder<'a> {
    file: &'a ModelFile,
    /// Tensors asked for and found, each once.
    found: usize,
}

impl<'a> Finder<'a> {
    fn matrix(&mut self, name: &str, rows: usize, columns: usize) -> Result<Tensor<'a>> {
        let tensor = self.file.tensor(name).ok_or_else(|| missing(name))?;
        if tensor.shape != [columns, rows, 1, 1] {
            return Err(wrong_shape(&tensor, &format!("{columns} x {rows}")));
        }
        self.found += 1;
        Ok(tensor)
    }

    fn vector(&mut self, name: &str, len: usize) -> Result<Vec<f32>> {
        let tensor = self.file.tensor(name).ok_or_else(|| missing(name))?;
        self.found += 1;
        vector(&tensor, len)
    }

    /// `name.weight`, with `name.scale` and `name.bias` where the file has them.
    fn linear(&mut self, name: &str, rows: usize, columns: usize) -> Result<Linear<'a>> {
        let mut weight = self.matrix(&format!("{name}.weight"), rows, columns)?;
        if let Some(scale) = self.optional_vector(&format!("{name}.scale"), 1)? {
            weight.scale *= scale[0];
        }
        if !weight.scale.is_finite() {
            return Err(Error::Format(format!("tensor `{}` has the scale {}", weight.name, weight.scale)));
        }
        Ok(Linear { weight, bias: self.optional_vector(&format!("{name}.bias"), rows)? })
    }

    fn optional_vector(&mut self, name: &str, len: usize) -> Result<Option<Vec<f32>>> {
        if self.file.tensor(name).is_some() { self.vector(name, len).map(Some) } else { Ok(None) }
    }
}

fn missing(name: &str) -> Error {
    Error::Format(format!("tensor `{name}` is missing"))
}

fn wrong_shape(tensor: &Tensor<'_>, expected: &str) -> Error {
    let [a, b, c, d] = tensor.shape;
    Error::Format(format!("tensor `{}` has shape {a} x {b} x {c} x {d}, not {expected}", tensor.name))
}

/// A one-dimensional tensor as f32.
pub fn vector(tensor: &Tensor<'_>, len: usize) -> Result<Vec<f32>> {
    if tensor.shape != [len, 1, 1, 1] {
        return Err(wrong_shape(tensor, &len.to_string()));
    }
    let mut values = Vec::new();
    let what = "a vector of weights";
    values.try_reserve_exact(len).map_err(|_| crate::Error::NoMemory { what, bytes: 4 * len })?;
    values.resize(len, 0.0);
    tensor.format.dequantize(tensor.bytes, &mut values);
    values.iter_mut().for_each(|value| *value *= tensor.scale);
    Ok(values)
}
