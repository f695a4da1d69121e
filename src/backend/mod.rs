//! The seam between model and machine: a layer is five stages, and a backend carries them out.
//!
//! A backend holds a model's weights in the layout its machine likes; a [`Sequence`] is one session's side of it: the
//! KV cache, the scratch memory and the stages. The forward pass (`model::forward`) calls the stages in order, and may
//! stop between any two.

pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod tensors;

use crate::file::Tensor;
use crate::tensor::Bytes;
use crate::{Error, Result};
use std::ffi::c_void;
use std::ptr::NonNull;

/// The shape of a model: what a backend must know beside the weights.
#[derive(Clone, Debug)]
pub struct Shape {
    /// Layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward.
    pub intermediate: usize,
    /// Heads of queries: a multiple of `kv_heads`.
    pub query_heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// Tokens of the vocabulary.
    pub vocab_len: usize,
    /// Added to the mean square in RMSNorm.
    pub norm_epsilon: f32,
    /// Pairs of a head to rotate are adjacent (GGUF `llama`) or half a head apart.
    pub rope_adjacent: bool,
    /// Radians per position of each rotated pair: (rotated values / 2).
    pub rope_frequencies: Vec<f64>,
    /// What the gate of the feed-forward goes through.
    pub activation: Activation,
}

/// A function on the gate of the feed-forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + e^-x)`.
    Silu,
    /// `max(x, 0)²`.
    Relu2,
}

/// A projection: weights (rows = outputs, columns = inputs) and perhaps a bias (outputs).
pub struct Linear<'a> {
    /// (outputs, inputs).
    pub weight: Tensor<'a>,
    /// (outputs).
    pub bias: Option<Vec<f32>>,
}

/// One layer's weights, checked against the shape.
pub struct LayerWeights<'a> {
    /// (hidden).
    pub attn_norm: Vec<f32>,
    /// (query_heads * head_dim, hidden).
    pub q: Linear<'a>,
    /// (kv_heads * head_dim, hidden).
    pub k: Linear<'a>,
    /// (kv_heads * head_dim, hidden).
    pub v: Linear<'a>,
    /// (head_dim).
    pub q_norm: Option<Vec<f32>>,
    /// (head_dim).
    pub k_norm: Option<Vec<f32>>,
    /// (query_heads * head_dim).
    pub attn_sub_norm: Option<Vec<f32>>,
    /// (hidden, query_heads * head_dim).
    pub attn_output: Linear<'a>,
    /// (hidden).
    pub ffn_norm: Vec<f32>,
    /// (intermediate, hidden).
    pub gate: Linear<'a>,
    /// (intermediate, hidden).
    pub up: Linear<'a>,
    /// (intermediate).
    pub ffn_sub_norm: Option<Vec<f32>>,
    /// (hidden, intermediate).
    pub down: Linear<'a>,
}

impl<'a> LayerWeights<'a> {
    /// The projections.
    pub fn linears(&self) -> [&Linear<'a>; 7] {
        [&self.q, &self.k, &self.v, &self.attn_output, &self.gate, &self.up, &self.down]
    }

    /// The vectors that there are.
    pub fn norms(&self) -> impl Iterator<Item = &Vec<f32>> {
        let LayerWeights { attn_norm, q_norm, k_norm, attn_sub_norm, ffn_norm, ffn_sub_norm, .. } = self;
        [
            Some(attn_norm),
            q_norm.as_ref(),
            k_norm.as_ref(),
            attn_sub_norm.as_ref(),
            Some(ffn_norm),
            ffn_sub_norm.as_ref(),
        ]
        .into_iter()
        .flatten()
    }
}

/// What weights take of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WeightsMemory {
    /// As long as the model lives.
    pub weights: Bytes,
    /// While it is loaded.
    pub loading: Bytes,
}

/// What a sequence takes of memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SequenceMemory {
    /// The KV cache.
    pub kv: Bytes,
    /// Everything else.
    pub scratch: Bytes,
}

/// A model's weights as they lie in the file, checked against the shape.
pub struct Weights<'a> {
    /// (vocab_len, hidden).
    pub embedding: Tensor<'a>,
    /// In order.
    pub layers: Vec<LayerWeights<'a>>,
    /// (hidden).
    pub output_norm: Vec<f32>,
    /// None: tied to the embedding.
    /// (vocab_len, hidden).
    pub head: Option<Tensor<'a>>,
}

/// What a session keeps of the keys and values of past positions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvFormat {
    /// F16; an exact model's are f32.
    #[default]
    Auto,
    /// Half precision.
    F16,
    /// int8 in blocks of 32 with a 16-bit scale: 53 % of the memory of F16, at a price in accuracy that
    /// include/edgellm.h states.
    I8,
}

/// Which machine a model is loaded onto.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The first CUDA device that can run the model, else the CPU. Without the feature `cuda`: the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// This CUDA device, by the driver's number, or the load fails.
    Cuda(usize),
}

impl Device {
    /// The CPU, where the choice is ours.
    pub fn or_cpu(self) -> Device {
        if self == Device::Auto { Device::Cpu } else { self }
    }
}

/// A stream of the host's on a CUDA device, a `CUstream`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostStream(NonNull<c_void>);

// SAFETY: streams of the driver may be used from any thread, by several at once.
unsafe impl Send for HostStream {}
// SAFETY: as above.
unsafe impl Sync for HostStream {}

impl HostStream {
    /// # Safety
    /// `handle` is a `CUstream` that lives until the model that is loaded with it and its sessions are gone.
    pub unsafe fn new(handle: NonNull<c_void>) -> Self {
        HostStream(handle)
    }

    /// The driver's handle.
    pub fn handle(self) -> *mut c_void {
        self.0.as_ptr()
    }
}

/// A machine that holds a model's weights. Shared by sessions and threads.
pub trait Backend: Send + Sync {
    /// What computes, for people: `x86_64-avx2`.
    fn name(&self) -> &'static str;

    /// Where it computes: never [`Device::Auto`].
    fn device(&self) -> Device {
        Device::Cpu
    }

    /// How many threads compute.
    fn threads(&self) -> usize;

    /// Runs `job(thread index)` on each of them at once.
    fn run_on_threads(&self, job: &(dyn Fn(usize) + Sync)) -> Result<()>;

    /// Page faults of the threads that compute, but for the caller's, since they began; some may be told later.
    fn page_faults(&self) -> u64 {
        0
    }

    /// Memory that the weights take.
    fn weights_bytes(&self) -> usize;

    /// Bytes of weights that decoding one token reads.
    fn weights_bytes_per_token(&self) -> usize;

    /// What `new_sequence` takes for the same.
    fn sequence_memory(&self, context_len: usize, batch: usize, format: KvFormat) -> Result<SequenceMemory>;

    /// KV cache of `format` for `context_len` tokens and scratch for passes of at most `batch` tokens.
    fn new_sequence(&self, context_len: usize, batch: usize, format: KvFormat) -> Result<Box<dyn Sequence>>;
}

/// One sequence on a backend. A pass is `embed`, then the five stages for each layer in order, then perhaps `head`.
///
/// Stages write the KV cache only at the pass's own positions: a pass that is abandoned has changed nothing.
pub trait Sequence: Send {
    /// Begins a pass over these tokens, the first of which has this position: token ids to the residual stream.
    fn embed(&mut self, tokens: &[u32], position: usize) -> Result<()>;
    /// RMSNorm → Q, K, V (+ bias, q/k norm) → RoPE → K and V appended to the cache.
    fn attn_in(&mut self, layer: usize) -> Result<()>;
    /// Scores, softmax and weighted sum over the KV cache (→ RMSNorm).
    fn attention(&mut self, layer: usize) -> Result<()>;
    /// Output projection + residual.
    fn attn_out(&mut self, layer: usize) -> Result<()>;
    /// RMSNorm → gate and up projections → activation(gate) · up (→ RMSNorm).
    fn ffn_in(&mut self, layer: usize) -> Result<()>;
    /// Down projection + residual.
    fn ffn_out(&mut self, layer: usize) -> Result<()>;
    /// RMSNorm and output projection of the pass's last token.
    fn head(&mut self) -> Result<()>;
    /// The same of another row of the pass, which has no head itself; more than one in any order.
    fn head_of_row(&mut self, row: usize) -> Result<()>;
    /// In how many pieces a machine takes a pass over one generated token, when it does so in larger ones than stages;
    /// 0 = the stages it is. `paced`: somebody wants to stop between them.
    fn decode_pieces(&self, paced: bool) -> usize {
        let _ = paced;
        0
    }
    /// One of so many pieces, in order; the last leaves the logits.
    fn decode_piece(&mut self, index: usize, pieces: usize, token: u32, position: usize) -> Result<()> {
        let _ = (index, pieces, token, position);
        Err(Error::Internal("this backend decodes by stages".into()))
    }
    /// Waits until the stages so far are done, where they are done elsewhere. A pass is complete after it.
    fn wait(&mut self) -> Result<()> {
        Ok(())
    }
    /// What a complete pass with a head left: one logit per vocabulary entry.
    fn logits(&mut self) -> Result<&[f32]>;
    /// The highest logit and its token, the lowest among equals, where the machine has found them by itself.
    fn best(&self) -> Option<(u32, f32)> {
        None
    }
    /// log Σ e^logit, with the machine's own fast sums.
    fn log_sum_exp(&self) -> f32;
    /// Memory of the KV cache.
    fn kv_bytes(&self) -> usize;
    /// Another sequence with the first `positions` of this one's KV cache, whose memory they may share. Its logits are
    /// nothing's.
    fn fork(&mut self, positions: usize) -> Result<Box<dyn Sequence>>;
    /// Memory of its own for positions from `from` on, so that passes can write there. To be called when they were not the
    /// next ones to be written at the last fork; a failure has changed nothing.
    fn unshare(&mut self, from: usize) -> Result<()> {
        let _ = from;
        Ok(())
    }
    /// Describes what `kv_save` saves: what has the same layout can be restored.
    fn kv_layout(&self) -> String;
    /// How many bytes `kv_save` gives for the first `positions`.
    fn kv_saved_bytes(&self, positions: usize) -> usize;
    /// Gives the first `positions` of the KV cache, part by part.
    fn kv_save(&mut self, positions: usize, sink: Sink<'_>) -> Result<()>;
    /// Takes what `kv_save` gave of a sequence of the same model and layout, all of it. On the CPU a failure has changed
    /// nothing.
    fn kv_restore(&mut self, positions: usize, saved: &[u8]) -> Result<()>;
    /// Makes these the logits of the last pass: (vocab_len), and what `log_sum_exp` said of them.
    fn set_logits(&mut self, logits: &[f32], log_sum_exp: f32) -> Result<()>;
    /// What it holds, as [`Backend::sequence_memory`] said.
    fn held(&self) -> SequenceMemory;
}

/// What becomes of bytes that are saved.
pub type Sink<'a> = &'a mut dyn FnMut(&[u8]) -> Result<()>;
