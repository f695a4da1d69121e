//! The CUDA backend: weights in tiles on the device; a generated token is one launch of a captured graph, a prompt goes
//! stage by stage. `kernels/README.md` is the contract with the device code.

mod kernels;
mod kv;
pub mod memory;
mod prefill;
mod rope;
mod sequence;
mod tiles;
mod weights;

use super::{Backend, Device, HostStream, KvFormat, Sequence, SequenceMemory, Shape, Weights};
use crate::cpu::threads::ThreadPool;
use crate::cuda::{Context, DeviceBuffer, DeviceInfo, Driver, Stream};
use crate::tensor::{Ledger, Taken};
use crate::{Error, Result};
use kernels::{Kernels, Matrix};
use std::sync::Arc;

/// Where to, and how.
#[derive(Clone, Copy)]
pub struct Place {
    /// The device, by the driver's number.
    pub index: usize,
    /// Generated tokens go stage by stage, as prompts do.
    pub f16_activations: bool,
    /// Where the work of steps goes; None = to a stream of each session's own.
    pub stream: Option<HostStream>,
    /// Of the sessions' own streams.
    pub priority: i32,
}

impl Place {
    /// A session's stream.
    fn stream(&self, context: &Arc<Context>) -> Result<Stream> {
        match self.stream {
            // SAFETY: it outlives the sessions, as `HostStream::new` was promised.
            Some(stream) => unsafe { Stream::borrow(context, stream.handle()) },
            None => Stream::new(context, self.priority),
        }
    }
}

/// See the module.
pub struct CudaBackend {
    inner: Arc<Inner>,
}

struct Inner {
    shape: Shape,
    context: Arc<Context>,
    kernels: Kernels,
    arch: &'static str,
    /// All weights; what the matrices and norms point into.
    weights: DeviceBuffer,
    embedding: Matrix,
    /// The embedding, when the file has no other.
    head: Matrix,
    output_norm: u64,
    layers: Vec<Layer>,
    bytes_per_token: usize,
    place: Place,
    /// Sequences are counted as if gate and up had to be apart.
    mixed: bool,
    ledger: Arc<Ledger>,
    _taken: Taken,
}

/// One layer's weights: matrices, and addresses of vectors (0: the architecture has no such vector).
struct Layer {
    attn_norm: u64,
    q: Matrix,
    k: Matrix,
    v: Matrix,
    q_norm: u64,
    k_norm: u64,
    attn_sub_norm: u64,
    attn_output: Matrix,
    ffn_norm: u64,
    gate: Matrix,
    up: Matrix,
    ffn_sub_norm: u64,
    down: Matrix,
}

/// The first device that this library has code for, or why there is none.
pub fn first_usable() -> Result<usize> {
    let driver = Driver::get()?;
    let count = DeviceInfo::count(driver)?;
    let mut reason = Error::device("the CUDA driver has no device");
    for index in 0..count {
        match DeviceInfo::new(driver, index).and_then(|info| info.check_usable()) {
            Ok(()) => return Ok(index),
            Err(error) => reason = error,
        }
    }
    Err(reason)
}

impl CudaBackend {
    /// Repacks the weights on the threads of `pool` and copies them to the device; `progress` is told the bytes done now
    /// and then and may stop it with an error.
    pub fn new(
        place: Place,
        shape: Shape,
        weights: &Weights<'_>,
        pool: &ThreadPool,
        ledger: &Arc<Ledger>,
        progress: &mut dyn FnMut(&[u8]) -> Result<()>,
    ) -> Result<Self> {
        check_shape(&shape)?;
        let memory = memory::weights(weights, pool.threads())?;
        let plan = weights::plan(weights)?;
        let context = Context::new(place.index)?;
        place.stream(&context)?; // What is wrong with it is said before the work is done.
        context.info().check_usable()?;
        let taken = ledger.take("the weights", memory.weights)?;
        let _loading = ledger.take("loading the weights", memory.loading)?;
        let kernels = Kernels::load(&context, &shape)?;
        let loaded = weights::load(&context, weights, plan, pool, progress)?;
        let weights::Loaded { buffer, embedding, head, output_norm, layers } = loaded;
        // A token reads one row of an embedding that is not the head.
        let one_row = weights.head.as_ref().map_or(0, |_| weights.embedding.bytes.len());
        let bytes_per_token = plan.saturating_sub(one_row);
        let arch = arch_name(context.info());
        let inner = Inner {
            shape,
            context,
            kernels,
            arch,
            weights: buffer,
            embedding,
            head,
            output_norm,
            layers,
            bytes_per_token,
            place,
            mixed: memory::may_be_mixed(weights),
            ledger: ledger.clone(),
            _taken: taken,
        };
        Ok(CudaBackend { inner: Arc::new(inner) })
    }
}

/// Whether the memory of a device is the host's, and how much could be had now.
pub fn available(index: usize) -> Result<(bool, u64)> {
    let context = Context::new(index)?;
    context.info().check_usable()?;
    Ok((context.info().unified_memory, context.memory_available()?))
}

/// What the kernels can take of keys and values.
pub fn check_format(format: KvFormat) -> Result<()> {
    match format {
        KvFormat::Auto | KvFormat::F16 => Ok(()),
        KvFormat::I8 => Err(Error::Unsupported("keys and values in int8 do not run on CUDA".into())),
    }
}

/// Names of the architectures that there are, for [`Backend::name`].
fn arch_name(info: &DeviceInfo) -> &'static str {
    match info.capability {
        (7, 5) => "cuda-sm_75",
        (8, 0) => "cuda-sm_80",
        (8, 6) => "cuda-sm_86",
        (8, 7) => "cuda-sm_87",
        (8, 9) => "cuda-sm_89",
        (9, 0) => "cuda-sm_90",
        (10, _) => "cuda-sm_10x",
        (11, _) => "cuda-sm_11x",
        (12, _) => "cuda-sm_12x",
        _ => "cuda",
    }
}

/// What the kernels can take.
pub fn check_shape(shape: &Shape) -> Result<()> {
    if !kernels::HEAD_DIMS.contains(&shape.head_dim) {
        let text = format!("head size {} does not run on CUDA: {:?} do", shape.head_dim, kernels::HEAD_DIMS);
        return Err(Error::Unsupported(text));
    }
    let attention = shape.query_heads * shape.head_dim;
    for (what, value, max) in [
        ("hidden size", shape.hidden, kernels::COLUMNS_MAX),
        ("intermediate size", shape.intermediate, kernels::COLUMNS_MAX),
        ("width of attention (heads * head size)", attention, kernels::COLUMNS_MAX),
    ] {
        if value > max {
            return Err(Error::Unsupported(format!("{what} {value} does not run on CUDA: at most {max}")));
        }
    }
    for (what, value, multiple) in [
        ("hidden size", shape.hidden, 32),
        ("intermediate size", shape.intermediate, 32),
        ("width of attention (heads * head size)", attention, 32),
    ] {
        if value % multiple != 0 {
            let text = format!("{what} {value} does not run on CUDA: not a multiple of {multiple}");
            return Err(Error::Unsupported(text));
        }
    }
    Ok(())
}

impl Backend for CudaBackend {
    fn name(&self) -> &'static str {
        self.inner.arch
    }

    fn device(&self) -> Device {
        Device::Cuda(self.inner.context.info().index)
    }

    fn threads(&self) -> usize {
        1
    }

    fn run_on_threads(&self, job: &(dyn Fn(usize) + Sync)) -> Result<()> {
        job(0);
        Ok(())
    }

    fn weights_bytes(&self) -> usize {
        self.inner.weights.len()
    }

    fn weights_bytes_per_token(&self) -> usize {
        self.inner.bytes_per_token
    }

    fn sequence_memory(&self, context_len: usize, batch: usize, format: KvFormat) -> Result<SequenceMemory> {
        check_format(format)?;
        memory::sequence(&self.inner.shape, self.inner.mixed, context_len, batch)
    }

    fn new_sequence(&self, context_len: usize, batch: usize, format: KvFormat) -> Result<Box<dyn Sequence>> {
        check_format(format)?;
        Ok(Box::new(sequence::CudaSequence::new(self.inner.clone(), context_len, batch)?))
    }
}
