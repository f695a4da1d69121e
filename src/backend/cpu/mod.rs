//! The CPU backend: weights in tiles, stages as parallel regions over the thread pool.

mod attention;
mod key_bias;
mod kv_cache;
mod kv_pages;
mod matrix;
pub mod memory;
mod sequence;

use super::{Backend, KvFormat, LayerWeights, Linear, Sequence, SequenceMemory, Shape, Weights};
use crate::cpu::Kernels;
use crate::cpu::threads::ThreadPool;
use crate::file::{ModelFile, Tensor};
use crate::quant::{Format, I2sLayout};
use crate::tensor::{Arena, Buffer, Ledger, Residence, Taken};
use crate::{Error, Result};
use matrix::Matrix;
use std::sync::Arc;

/// How the weights are held.
pub struct Options {
    /// What computes.
    pub kernels: &'static Kernels,
    /// Who computes.
    pub pool: ThreadPool,
    /// All weights as f32, all activations and the KV cache in f32.
    pub exact: bool,
    /// The file stays mapped: rows of an untied embedding are read from it when needed. Else they are copied.
    pub keep_file: bool,
    /// Where the memory is taken from.
    pub ledger: Arc<Ledger>,
}

/// See the module.
pub struct CpuBackend {
    inner: Arc<Inner>,
}

struct Inner {
    shape: Shape,
    kernels: &'static Kernels,
    pool: ThreadPool,
    exact: bool,
    embedding: Embedding,
    layers: Vec<Layer>,
    output_norm: Vec<f32>,
    head: Matrix,
    ledger: Arc<Ledger>,
    _taken: Taken,
}

/// Where the rows of token ids come from.
enum Embedding {
    /// The head's rows.
    Tied,
    /// The file's tensor of this name.
    File(Arc<ModelFile>, String),
    /// The file's rows, copied, with the tensor's format and scale.
    Copied(Buffer<u8>, Format, f32),
}

struct Layer {
    attn_norm: Vec<f32>,
    q: Matrix,
    k: Matrix,
    v: Matrix,
    q_norm: Option<Vec<f32>>,
    k_norm: Option<Vec<f32>>,
    attn_sub_norm: Option<Vec<f32>>,
    attn_output: Matrix,
    ffn_norm: Vec<f32>,
    gate: Matrix,
    up: Matrix,
    ffn_sub_norm: Option<Vec<f32>>,
    down: Matrix,
}

impl CpuBackend {
    /// Repacks the weights; `progress` is told the bytes done now and then and may stop it with false.
    pub fn new(
        shape: Shape,
        weights: Weights<'_>,
        file: &Arc<ModelFile>,
        options: Options,
        progress: &mut dyn FnMut(usize) -> bool,
    ) -> Result<Self> {
        check_shape(&shape)?;
        let Options { kernels, pool, exact, keep_file, ledger } = options;
        let holding = memory::Holding { exact, threads: pool.threads(), keep_file };
        let memory = memory::weights(&weights, holding);
        let taken = ledger.take("the weights", memory.weights)?;
        let _loading = ledger.take("loading the weights", memory.loading)?;
        let linears = weights.layers.iter().flat_map(LayerWeights::linears).map(|linear| &linear.weight);
        let matrices = linears.chain([weights.head.as_ref().unwrap_or(&weights.embedding)]);
        let mut arena =
            Arena::new("the weights", ledger.residence(), matrices.map(|weight| Matrix::tiles_bytes(weight, exact)))?;
        let mut done = 0;
        let mut repack = |linear: Linear<'_>| {
            Matrix::repack(&linear, exact, &pool, &mut arena, &mut |bytes| {
                file.release(bytes);
                done += bytes.len();
                if progress(done) { Ok(()) } else { Err(Error::Cancelled) }
            })
        };
        let mut layers = Vec::with_capacity(shape.layers);
        for layer in weights.layers {
            layers.push(Layer::repack(layer, &mut repack)?);
        }
        let (embedding, head) = match weights.head {
            None => (Embedding::Tied, weights.embedding),
            Some(head) if !is_copied(&weights.embedding, keep_file) => {
                (Embedding::File(file.clone(), weights.embedding.name.to_owned()), head)
            }
            Some(head) => (copied(&weights.embedding, ledger.residence())?, head),
        };
        let head = repack(Linear { weight: head, bias: None })?;
        let output_norm = weights.output_norm;
        let inner = Inner { shape, kernels, pool, exact, embedding, layers, output_norm, head, ledger, _taken: taken };
        Ok(CpuBackend { inner: Arc::new(inner) })
    }
}

/// Whether the rows of an untied embedding are copied.
fn is_copied(embedding: &Tensor<'_>, keep_file: bool) -> bool {
    !keep_file || embedding.i2s_layout != I2sLayout::Block128
}

fn copied(tensor: &Tensor<'_>, residence: Residence) -> Result<Embedding> {
    let mut bytes = Buffer::zeroed("the embedding", tensor.bytes.len())?;
    bytes.settle("the embedding", residence)?;
    tensor.i2s_layout.to_block128(tensor.bytes, tensor.shape[0], &mut bytes);
    Ok(Embedding::Copied(bytes, tensor.format, tensor.scale))
}

impl Layer {
    fn repack(weights: LayerWeights<'_>, repack: &mut dyn FnMut(Linear<'_>) -> Result<Matrix>) -> Result<Self> {
        Ok(Layer {
            attn_norm: weights.attn_norm,
            q: repack(weights.q)?,
            k: repack(weights.k)?,
            v: repack(weights.v)?,
            q_norm: weights.q_norm,
            k_norm: weights.k_norm,
            attn_sub_norm: weights.attn_sub_norm,
            attn_output: repack(weights.attn_output)?,
            ffn_norm: weights.ffn_norm,
            gate: repack(weights.gate)?,
            up: repack(weights.up)?,
            ffn_sub_norm: weights.ffn_sub_norm,
            down: repack(weights.down)?,
        })
    }

    fn matrices(&self) -> [&Matrix; 7] {
        [&self.q, &self.k, &self.v, &self.attn_output, &self.gate, &self.up, &self.down]
    }
}

/// Columns of a matrix: 32-bit sums of int8 products over a whole row, some of them times 64, stay below 2^31.
const COLUMNS_MAX: usize = 1 << 18;

/// Widths that the kernels can take.
pub fn check_shape(shape: &Shape) -> Result<()> {
    let attention = shape.query_heads * shape.head_dim;
    for (what, value, multiple) in [
        ("hidden size", shape.hidden, 32),
        ("intermediate size", shape.intermediate, 32),
        ("width of attention (heads * head size)", attention, 32),
        ("head size", shape.head_dim, 16),
    ] {
        if value % multiple != 0 {
            return Err(Error::Unsupported(format!("{what} {value} is not a multiple of {multiple}")));
        }
        if value > COLUMNS_MAX {
            return Err(Error::Unsupported(format!("{what}: {value}, at most {COLUMNS_MAX}")));
        }
    }
    for (what, value, max) in [
        ("query heads per kv head", shape.query_heads / shape.kv_heads, attention::GROUP_MAX),
        ("head size", shape.head_dim, kv_cache::HEAD_DIM_MAX),
    ] {
        if value > max {
            return Err(Error::Unsupported(format!("{what}: {value}, at most {max}")));
        }
    }
    Ok(())
}

impl Backend for CpuBackend {
    fn name(&self) -> &'static str {
        self.inner.kernels.name()
    }

    fn threads(&self) -> usize {
        self.inner.pool.threads()
    }

    fn run_on_threads(&self, job: &(dyn Fn(usize) + Sync)) -> Result<()> {
        self.inner.pool.run(job)
    }

    fn page_faults(&self) -> u64 {
        self.inner.pool.page_faults()
    }

    fn weights_bytes(&self) -> usize {
        let copied = if let Embedding::Copied(bytes, ..) = &self.inner.embedding { bytes.bytes() } else { 0 };
        self.weights_bytes_per_token() + copied
    }

    fn weights_bytes_per_token(&self) -> usize {
        let layers = self.inner.layers.iter().flat_map(Layer::matrices).map(Matrix::bytes).sum::<usize>();
        layers + self.inner.head.bytes()
    }

    fn sequence_memory(&self, context_len: usize, batch: usize, format: KvFormat) -> Result<SequenceMemory> {
        memory::SequenceKind::of(&self.inner).memory(context_len, batch, format)
    }

    fn new_sequence(&self, context_len: usize, batch: usize, format: KvFormat) -> Result<Box<dyn Sequence>> {
        Ok(Box::new(sequence::CpuSequence::new(self.inner.clone(), context_len, batch, format)?))
    }
}
