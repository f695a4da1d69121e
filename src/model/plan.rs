//! What a model and a session take of memory, before either is made.

use super::{Checked, LoadOptions, Wanted, weights};
use crate::backend::cpu::memory::{Holding, SequenceKind};
#[cfg(feature = "cuda")]
use crate::backend::cuda;
use crate::backend::{Device, SequenceMemory, Shape, Weights, WeightsMemory, cpu};
use crate::cpu::threads::ThreadPool;
use crate::file::{ModelFile, Source};
use crate::tensor::{Bytes, Residence, host_memory};
use crate::{KvFormat, Result};

/// What loading a model takes, and what is needed to say what its sequences take. All in bytes.
pub struct MemoryPlan {
    /// Where the model would run.
    pub device: Device,
    /// What is there as long as the model: weights, tokenizer, stacks of threads.
    pub model: Bytes,
    /// While it is loaded, beside that.
    pub loading: Bytes,
    /// Of the file, mapped while it is loaded and perhaps longer. The system takes these pages back when it needs them, so
    /// they count for nothing else here.
    pub mapped_file: u64,
    /// What could be had now.
    pub available: Bytes,
    /// The device's memory is the host's.
    pub unified: bool,
    /// What one session's work needs beside its sequence.
    pub vocab_len: usize,
    /// Tokens that a session may hold at the most.
    pub context_len_max: usize,
    limit: Option<u64>,
    shape: Shape,
    sequences: Sequences,
}

/// What the memory of sequences depends on.
enum Sequences {
    Cpu {
        exact: bool,
        threads: usize,
        key_bias: bool,
    },
    #[cfg(feature = "cuda")]
    Cuda {
        mixed: bool,
    },
}

impl MemoryPlan {
    /// Reads what files say of themselves; no weight is touched, and nothing is left behind.
    pub fn new(source: Source<'_>, options: &LoadOptions<'_>) -> Result<MemoryPlan> {
        let wanted = Wanted::of(options)?;
        let in_memory = matches!(source, Source::Bytes(_));
        let mut file = ModelFile::open(source, true)?;
        let checked = Checked::new(&mut file, options.i2s_layout)?;
        let weights = weights::find(&file, &checked.config)?;
        let shape = checked.config.shape.clone();
        let holding = Holding {
            exact: options.exact,
            threads: ThreadPool::count(&options.pool())?,
            keep_file: options.keep_file(in_memory),
        };
        let (device, memory, sequences, unified, available) = place(wanted, &shape, &weights, holding)?;
        let read = if options.mmap || in_memory { 0 } else { file.held_when_read() };
        Ok(MemoryPlan {
            device,
            model: memory.weights + Bytes::host(checked.memory()),
            loading: memory.loading + Bytes::host(read),
            mapped_file: if in_memory || !options.mmap { 0 } else { file.bytes() },
            available: Bytes { host: host_memory().map_or(u64::MAX, |memory| memory.available), device: available },
            unified,
            vocab_len: shape.vocab_len,
            context_len_max: checked.config.context_len_max,
            limit: options.memory_limit,
            shape,
            sequences,
        })
    }

    /// What a sequence takes.
    pub fn sequence(&self, context_len: usize, batch: usize, format: KvFormat) -> Result<SequenceMemory> {
        match self.sequences {
            Sequences::Cpu { exact, threads, key_bias } => {
                SequenceKind { shape: &self.shape, exact, threads, key_bias }.memory(context_len, batch, format)
            }
            #[cfg(feature = "cuda")]
            Sequences::Cuda { mixed } => {
                cuda::check_format(format)?;
                cuda::memory::sequence(&self.shape, mixed, context_len, batch)
            }
        }
    }

    /// The most that is taken at a time until the model is loaded.
    pub fn peak_load(&self) -> Bytes {
        self.model + self.loading
    }

    /// The least limit with which the model can be loaded and a session made that takes so much.
    pub fn needed(&self, session: Bytes) -> u64 {
        self.peak_load().total().max((self.model + session).total())
    }

    /// Whether the model and a session that takes so much are within the limit and what could be had now.
    pub fn fits(&self, session: Bytes) -> bool {
        let (loading, running) = (self.peak_load(), self.model + session);
        let there = |needed: Bytes| {
            needed.host <= self.available.host
                && needed.device <= self.available.device
                && (!self.unified || needed.total() <= self.available.host.min(self.available.device))
        };
        self.limit.is_none_or(|limit| self.needed(session) <= limit) && there(loading) && there(running)
    }
}

impl LoadOptions<'_> {
    /// Whether the file stays open for what is read of it later.
    pub(super) fn keep_file(&self, in_memory: bool) -> bool {
        // What is mapped comes when it is read, and goes when the system likes.
        (self.mmap || in_memory) && self.residence == Residence::Lazy
    }
}

/// Where the model would run: the device, what the weights take there, what sequences depend on, whether its memory is the
/// host's, and how much of it could be had.
type Place = (Device, WeightsMemory, Sequences, bool, u64);

fn place(wanted: Wanted, shape: &Shape, weights: &Weights<'_>, holding: Holding) -> Result<Place> {
    if let Some(place) = place_on_device(wanted, shape, weights, holding)? {
        return Ok(place);
    }
    cpu::check_shape(shape)?;
    let SequenceKind { exact, threads, key_bias, .. } = SequenceKind::of_weights(shape, weights, holding);
    let memory = cpu::memory::weights(weights, holding);
    Ok((Device::Cpu, memory, Sequences::Cpu { exact, threads, key_bias }, false, 0))
}

/// None when the model would run on the CPU.
#[cfg(feature = "cuda")]
fn place_on_device(wanted: Wanted, shape: &Shape, weights: &Weights<'_>, holding: Holding) -> Result<Option<Place>> {
    let Some(index) = wanted.index(holding.exact)? else { return Ok(None) };
    let place = || {
        cuda::check_shape(shape)?;
        let memory = cuda::memory::weights(weights, holding.threads)?;
        let (unified, available) = cuda::available(index)?;
        let mixed = cuda::memory::may_be_mixed(weights);
        Ok((Device::Cuda(index), memory, Sequences::Cuda { mixed }, unified, available))
    };
    match place() {
        Ok(place) => Ok(Some(place)),
        Err(error) if wanted.falls_back(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(not(feature = "cuda"))]
fn place_on_device(wanted: Wanted, _: &Shape, _: &Weights<'_>, _: Holding) -> Result<Option<Place>> {
    wanted.check_without_cuda().map(|()| None)
}
