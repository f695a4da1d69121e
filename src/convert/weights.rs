//! The tensors of a folder, by role: all that the architecture needs, and nothing else.

use super::config::{Config, Direction, Storage};
use super::folder::Folder;
use super::ternary::{Linear, Weight};
use super::values;
use crate::file::safetensors::{Dtype, Stored};
use crate::{Error, Result};
use std::collections::BTreeSet;

/// One tensor of the file to write.
pub(super) struct Planned<'a> {
    /// Its name there.
    pub(super) name: String,
    pub(super) content: Content<'a>,
}

/// What a tensor is made from.
pub(super) enum Content<'a> {
    /// A vector of f32.
    Vector(Vec<f32>),
    /// A table of floats: the embedding, or the head.
    Table { source: String, stored: Stored<'a> },
    /// A layer of ternary weights.
    Linear(Linear<'a>),
}

/// Everything to write, in order.
pub(super) fn plan<'a>(folder: &'a Folder, config: &Config) -> Result<Vec<Planned<'a>>> {
    let mut planner = Planner { folder, config, packed: is_packed(folder, config)?, seen: BTreeSet::new() };
    let mut planned = Vec::new();
    let mut put = |name: String, content| planned.push(Planned { name, content });
    let embedding = planner.table("model.embed_tokens.weight")?;
    let head = planner.head(&embedding)?;
    put("token_embd.weight".into(), embedding);
    let (hidden, intermediate) = (config.hidden, config.intermediate);
    let (q_width, kv_width) = (config.heads * config.head_dim, config.kv_heads * config.head_dim);
    for layer in 0..config.layers {
        let source = |part: &str| format!("model.layers.{layer}.{part}");
        let name = |part: &str| format!("blk.{layer}.{part}.weight");
        let norms = [("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm")];
        for (from, to) in norms {
            put(name(to), planner.norm(&[source(from)], hidden)?);
        }
        if config.sub_norms {
            // The second of each is what the first models called it.
            let attention = ["self_attn.attn_sub_norm", "self_attn.inner_attn_ln"].map(source);
            put(name("attn_sub_norm"), planner.norm(&attention, q_width)?);
            let ffn = ["mlp.ffn_sub_norm", "mlp.ffn_layernorm"].map(source);
            put(name("ffn_sub_norm"), planner.norm(&ffn, intermediate)?);
        }
        let linears = [
            ("self_attn.q_proj", "attn_q", q_width, hidden, Some(config.head_dim)),
            ("self_attn.k_proj", "attn_k", kv_width, hidden, Some(config.head_dim)),
            ("self_attn.v_proj", "attn_v", kv_width, hidden, None),
            ("self_attn.o_proj", "attn_output", hidden, q_width, None),
            ("mlp.gate_proj", "ffn_gate", intermediate, hidden, None),
            ("mlp.up_proj", "ffn_up", intermediate, hidden, None),
            ("mlp.down_proj", "ffn_down", hidden, intermediate, None),
        ];
        for (from, to, rows, columns, head_dim) in linears {
            let adjacent = head_dim.filter(|_| config.rope_adjacent);
            put(name(to), planner.linear(source(from), rows, columns, adjacent)?);
        }
    }
    put("output_norm.weight".into(), planner.norm(&["model.norm".into()], hidden)?);
    if let Some(head) = head {
        put("output.weight".into(), head);
    }
    if let Some(divisors) = config.rope_divisors() {
        put("rope_freqs.weight".into(), Content::Vector(divisors));
    }
    planner.refuse_strangers()?;
    Ok(planned)
}

/// Whether the linear layers are packed, and if so, what their scales mean.
fn is_packed(folder: &Folder, config: &Config) -> Result<Option<Direction>> {
    let of_linear = |name: &&str| name.starts_with("model.layers.") && name.ends_with("_proj.weight");
    let is_u8 = |name: &&str| folder.tensor(name).is_some_and(|stored| stored.dtype == Dtype::U8);
    let packed = folder.names().filter(of_linear).find(is_u8);
    match (packed, config.storage) {
        (Some(_), Storage::Packed(direction)) => Ok(Some(direction)),
        (Some(name), Storage::Masters) => {
            let text = "is packed, but config.json says `quantization_mode` = \"online\", which is for floats";
            Err(Error::Format(format!("tensor `{name}` {text}")))
        }
        (Some(name), Storage::Unsaid) => {
            let text = "is packed, but config.json has no `quantization_config` to say what its scale means";
            Err(Error::Unsupported(format!("tensor `{name}` {text}")))
        }
        (None, Storage::Packed(_)) if !config.sub_norms => {
            let text = "config.json says that the linear layers are packed, but none is U8";
            Err(Error::Format(text.into()))
        }
        (None, _) => Ok(None),
    }
}

struct Planner<'a, 'b> {
    folder: &'a Folder,
    config: &'b Config,
    packed: Option<Direction>,
    /// Names of the folder's tensors that have a place.
    seen: BTreeSet<String>,
}

impl<'a> Planner<'a, '_> {
    fn find(&mut self, name: &str, shape: &[usize]) -> Result<Stored<'a>> {
        let stored = self.folder.tensor(name).ok_or_else(|| Error::Format(format!("tensor `{name}` is missing")))?;
        self.seen.insert(name.to_owned());
        if stored.shape != shape {
            let found = stored.shape;
            return Err(Error::Format(format!("tensor `{name}` has shape {found:?}, not {shape:?}")));
        }
        Ok(stored)
    }

    /// A norm under one of these names.
    fn norm(&mut self, names: &[String], len: usize) -> Result<Content<'a>> {
        let names: Vec<String> = names.iter().map(|name| format!("{name}.weight")).collect();
        let present = |name: &&String| self.folder.tensor(name).is_some();
        let name = names.iter().find(present).or(names.first()).map_or("", String::as_str);
        let stored = self.find(name, &[len])?;
        let mut vector = vec![0.0; len];
        values::read(name, &stored, 0, &mut vector)?;
        Ok(Content::Vector(vector))
    }

    fn table(&mut self, name: &str) -> Result<Content<'a>> {
        let stored = self.find(name, &[self.config.vocab, self.config.hidden])?;
        values::check_dtype(name, stored.dtype)?;
        Ok(Content::Table { source: name.into(), stored })
    }

    /// The head, unless it is the embedding.
    fn head(&mut self, embedding: &Content<'a>) -> Result<Option<Content<'a>>> {
        let name = "lm_head.weight";
        if !self.config.tied {
            return self.table(name).map(Some);
        }
        if self.folder.tensor(name).is_none() {
            return Ok(None);
        }
        let (Content::Table { stored: head, .. }, Content::Table { stored: embedding, .. }) =
            (self.table(name)?, embedding)
        else {
            return Ok(None);
        };
        if head.dtype != embedding.dtype || head.bytes != embedding.bytes {
            let text = "differs from the embedding, but config.json says `tie_word_embeddings` = true";
            return Err(Error::Format(format!("tensor `{name}` {text}")));
        }
        Ok(None)
    }

    fn linear(&mut self, name: String, rows: usize, columns: usize, adjacent: Option<usize>) -> Result<Content<'a>> {
        let weight_name = format!("{name}.weight");
        let weight = match self.packed {
            Some(direction) => {
                if rows % 4 != 0 {
                    return Err(Error::Format(format!("tensor `{weight_name}`: {rows} rows are not a multiple of 4")));
                }
                let dtype = self.folder.tensor(&weight_name).map(|stored| stored.dtype);
                if let Some(dtype) = dtype.filter(|dtype| *dtype != Dtype::U8) {
                    let text = format!("is {dtype:?}, but other linear layers are packed (U8)");
                    return Err(Error::Unsupported(format!("tensor `{weight_name}` {text}")));
                }
                let stored = self.find(&weight_name, &[rows / 4, columns])?;
                let weight_scale = self.weight_scale(&format!("{name}.weight_scale"))?;
                Weight::Packed { stored, weight_scale, direction }
            }
            None => {
                let stored = self.find(&weight_name, &[rows, columns])?;
                values::check_dtype(&weight_name, stored.dtype)?;
                Weight::Master { stored }
            }
        };
        Ok(Content::Linear(Linear { name: weight_name, rows, columns, adjacent, weight }))
    }

    /// One number above zero.
    fn weight_scale(&mut self, name: &str) -> Result<f32> {
        let one_dimension = self.folder.tensor(name).is_none_or(|stored| !stored.shape.is_empty());
        let stored = self.find(name, if one_dimension { &[1] } else { &[] })?;
        let mut scale = [0.0];
        values::read(name, &stored, 0, &mut scale)?;
        // One over it has to be a number as well.
        if !(scale[0].is_normal() && scale[0] > 0.0 && (1.0 / scale[0]).is_normal()) {
            return Err(Error::Format(format!("tensor `{name}` holds {}, not a scale above 0", scale[0])));
        }
        Ok(scale[0])
    }

    fn refuse_strangers(&self) -> Result<()> {
        // Old files keep RoPE's frequencies, which follow from the configuration.
        let known = |name: &str| self.seen.contains(name) || name.ends_with(".rotary_emb.inv_freq");
        let Some(name) = self.folder.names().find(|name| !known(name)) else { return Ok(()) };
        let why = if name.ends_with("_proj.norm.weight") || name.ends_with("_proj.rms_norm.weight") {
            "a norm before a projection, as BitNet embedding models have it, is not supported"
        } else if name.ends_with(".weight_scale") {
            "a scale beside floats: packed (U8) weights have one"
        } else if name.ends_with(".bias") {
            "biases are not supported here"
        } else {
            "this architecture has no such tensor"
        };
        Err(Error::Unsupported(format!("tensor `{name}`: {why}")))
    }
}
