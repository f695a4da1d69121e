//! Configuration, architectures, weights, the forward pass.

pub mod architecture;
pub mod config;
pub mod forward;
pub mod plan;
pub mod weights;

pub use crate::backend::HostStream;
use crate::backend::cpu::{CpuBackend, Options};
#[cfg(feature = "cuda")]
use crate::backend::cuda::{self, CudaBackend};
use crate::backend::{Backend, Device, Weights};
use crate::cpu::energy::Meters;
use crate::cpu::environment::FloatEnvironment;
pub use crate::cpu::threads::{OnThread, Schedule};
use crate::cpu::threads::{PoolOptions, ThreadPool, cores};
pub use crate::file::Source;
use crate::file::{Metadata, ModelFile};
use crate::grammar::{Grammar, GrammarKind, Vocabulary};
use crate::quant::{Format, I2sLayout};
use crate::tensor::{Bytes, Ledger, Residence, Taken, settle_code, settle_stack, whole_pages};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result, cpu};
use config::Config;
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// How a model is loaded.
pub struct LoadOptions<'a> {
    /// Where the model runs.
    pub device: Device,
    /// Threads that compute, the caller's included: at most 1024. 1 = no other threads. 0 = one per CPU of `cpu_mask`, or
    /// without one per big core, in both cases as far as this process may use them. (A core is big when it is at least half
    /// as fast as the fastest one; its hyperthreads count once; a quota of the control group counts.)
    pub threads: usize,
    /// How long an idle worker spins before it sleeps; 0 = it sleeps at once.
    pub spin_us: u32,
    /// The CPUs that worker threads may run on: bit `i % 64` of word `i / 64` is CPU `i`. None = the big cores, when there
    /// are others and `threads` has a core for each; else any. The caller's own thread is left where it is.
    pub cpu_mask: Option<&'a [u64]>,
    /// How the system schedules worker threads; None = as the thread that loads.
    pub schedule: Option<Schedule>,
    /// Called in each worker thread when it starts, set up as asked, and when it ends.
    pub on_thread: Option<OnThread>,
    /// Map the file (default) or read it.
    pub mmap: bool,
    /// Whether weights, and the memory of sessions, are there before they are used.
    pub residence: Residence,
    /// Where a device that is free to choose has no CUDA device that can run the model: the CPU (default), or a failure.
    pub cpu_fallback: bool,
    /// Weights dequantized to f32, activations and KV cache in f32: slow and large, for checking. Activations that the model
    /// itself rounds to int8 (BitNet) are rounded.
    pub exact: bool,
    /// On a CUDA device: generated tokens take the way of prompts, with activations in f16 instead of int8. More exact, several
    /// times slower, and then a token's bits are the same whether it was generated or given.
    pub f16_activations: bool,
    /// On a CUDA device: the host's stream, for the work of all sessions; None = each has its own. On the CPU, when that was
    /// asked for, an error.
    pub cuda_stream: Option<HostStream>,
    /// On a CUDA device: the priority of the sessions' own streams; smaller numbers come first, 0 = as all. One that the
    /// device does not have is an error, as is any beside `cuda_stream`, and on the CPU when that was asked for.
    pub cuda_priority: i32,
    /// What the model and all its sessions may take together of the host's and the device's memory, in bytes; None = any.
    pub memory_limit: Option<u64>,
    /// The order of codes in I2_S tensors, which no file says of itself; of no effect on a file without them. A wrong one
    /// gives a model that talks nonsense.
    pub i2s_layout: I2sLayout,
    /// Kernel table by name (`x86_64-avx2`, `scalar`); None = `LIBEDGELLM_FORCE_ISA` or the best this CPU has.
    pub isa: Option<&'a str>,
    /// Called on this thread with what is done, 0 to 1; false stops the load with [`Error::Cancelled`].
    pub progress: Option<&'a mut dyn FnMut(f32) -> bool>,
}

impl Default for LoadOptions<'_> {
    fn default() -> Self {
        LoadOptions {
            device: Device::Auto,
            threads: 0,
            spin_us: 100,
            cpu_mask: None,
            schedule: None,
            on_thread: None,
            mmap: true,
            residence: Residence::Lazy,
            cpu_fallback: true,
            exact: false,
            f16_activations: false,
            cuda_stream: None,
            cuda_priority: 0,
            memory_limit: None,
            i2s_layout: I2sLayout::default(),
            isa: None,
            progress: None,
        }
    }
}

impl LoadOptions<'_> {
    fn pool(&self) -> PoolOptions {
        PoolOptions {
            threads: self.threads,
            spin: Duration::from_micros(self.spin_us as u64),
            cpus: self.cpu_mask.map(cores::from_mask),
            schedule: self.schedule,
            on_thread: self.on_thread.clone(),
        }
    }
}

/// Arrays of metadata longer than this (vocabularies) are not kept after the load.
const ARRAY_KEPT_MAX: usize = 4096;

/// A loaded model: immutable weights, configuration and tokenizer, shared by its sessions and by threads.
pub struct Model {
    config: Config,
    metadata: Metadata,
    tokenizer: Option<Arc<Tokenizer>>,
    /// What grammars need of the tokenizer, made with the first of them.
    vocabulary: OnceLock<Arc<Vocabulary>>,
    backend: Box<dyn Backend>,
    name: String,
    quant: String,
    tensors: Vec<TensorSummary>,
    parameters: u64,
    fingerprint: [u8; 32],
    load_ns: u64,
    ledger: Arc<Ledger>,
    meters: Arc<Meters>,
    _taken: Taken,
}

/// Tensors of one format.
#[derive(Clone, Copy, Debug)]
pub struct TensorSummary {
    /// Their format.
    pub format: Format,
    /// How many there are.
    pub count: usize,
    /// Their bytes in the file.
    pub bytes: u64,
}

/// What a model is, for people and for hosts.
pub struct ModelInfo<'a> {
    /// `general.architecture`.
    pub architecture: &'a str,
    /// `general.name`, or empty.
    pub name: &'a str,
    /// The formats of its matrices, the most bytes first: `Q4_K+Q6_K`.
    pub quant: &'a str,
    /// Tokens of the vocabulary.
    pub vocab_len: usize,
    /// Tokens that a session may hold at the most.
    pub context_len_max: usize,
    /// Layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward.
    pub intermediate: usize,
    /// Heads of queries.
    pub query_heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// Values of all tensors.
    pub parameters: u64,
    /// Per format, the most bytes first.
    pub tensors: &'a [TensorSummary],
    /// Memory that the weights take in this process.
    pub weights_bytes: u64,
    /// Bytes of weights read to decode one token.
    pub weights_bytes_per_token: u64,
    /// Where it runs.
    pub device: Device,
    /// The kernel table.
    pub isa: &'static str,
    /// Threads that compute.
    pub threads: usize,
    /// How long the load took.
    pub load_ns: u64,
}

impl Model {
    /// Loads a model. Everything in the file is checked before a weight is touched.
    pub fn load(source: Source<'_>, options: LoadOptions<'_>) -> Result<Arc<Model>> {
        let _environment = FloatEnvironment::enter();
        let start = Instant::now();
        let wanted = Wanted::of(&options)?;
        let (pool, ledger) = (options.pool(), Ledger::new(options.memory_limit, options.residence));
        let keep_file = options.keep_file(matches!(source, Source::Bytes(_)));
        let LoadOptions { mmap, exact, i2s_layout, isa, progress, .. } = options;
        let forced = std::env::var("LIBEDGELLM_FORCE_ISA").ok();
        let kernels = cpu::select(isa.or(forced.as_deref()))?;
        let mut file = ModelFile::open_within(source, mmap, &ledger)?;
        let checked = Checked::new(&mut file, i2s_layout)?;
        let taken = ledger.take("the tokenizer", Bytes::host(checked.memory()))?;
        let Checked { config, tokenizer, metadata } = checked;
        let mut progress = Reporter { inner: progress, total: file.tensors().map(|tensor| tensor.bytes.len()).sum() };
        progress.report(0)?;
        let file = Arc::new(file);
        let weights = weights::find(&file, &config)?;
        let pool = ThreadPool::start(pool)?;
        let backend_options = Options { kernels, pool, exact, keep_file, ledger: ledger.clone() };
        let backend = backend(wanted, &config, weights, &file, backend_options, &mut progress)?;
        // After the weights have been read: what it samples is in the system's cache.
        let fingerprint = file.fingerprint();
        if ledger.residence() != Residence::Lazy {
            settle_code();
            backend.run_on_threads(&|_| settle_stack())?;
        }
        let (tensors, quant) = summary(&file);
        let model = Model {
            name: metadata.string("general.name").ok().flatten().unwrap_or_default().to_owned(),
            parameters: file.tensors().map(|tensor| tensor.shape.iter().product::<usize>() as u64).sum(),
            quant,
            tensors,
            config,
            metadata,
            tokenizer: tokenizer.map(Arc::new),
            vocabulary: OnceLock::new(),
            backend,
            fingerprint,
            load_ns: start.elapsed().as_nanos() as u64,
            ledger,
            meters: Arc::new(Meters::open(Path::new("/sys"))),
            _taken: taken,
        };
        log::info!(
            "loaded `{}`: {} {}, {} layers, kernels {}, {} threads, {} MB of weights",
            model.name,
            model.config.architecture.name,
            model.quant,
            model.config.shape.layers,
            model.backend.name(),
            model.backend.threads(),
            model.backend.weights_bytes() / 1_000_000
        );
        Ok(Arc::new(model))
    }

    /// What this model is.
    pub fn info(&self) -> ModelInfo<'_> {
        let shape = &self.config.shape;
        ModelInfo {
            architecture: self.config.architecture.name,
            name: &self.name,
            quant: &self.quant,
            vocab_len: shape.vocab_len,
            context_len_max: self.config.context_len_max,
            layers: shape.layers,
            hidden: shape.hidden,
            intermediate: shape.intermediate,
            query_heads: shape.query_heads,
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
            parameters: self.parameters,
            tensors: &self.tensors,
            weights_bytes: self.backend.weights_bytes() as u64,
            weights_bytes_per_token: self.backend.weights_bytes_per_token() as u64,
            device: self.backend.device(),
            isa: self.backend.name(),
            threads: self.backend.threads(),
            load_ns: self.load_ns,
        }
    }

    /// Scalars and strings of the file's metadata, and arrays shorter than a vocabulary.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Names the model as the owner of a saved session: see [`ModelFile::fingerprint`].
    ///
    /// [`ModelFile::fingerprint`]: crate::file::ModelFile::fingerprint
    pub fn fingerprint(&self) -> &[u8; 32] {
        &self.fingerprint
    }

    /// None when the file has no vocabulary.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_deref()
    }

    /// Compiles a grammar for sessions of this model. Any thread; the first one of a model also builds an index of its
    /// vocabulary. [`Error::Grammar`] says what is wrong with the text and where.
    pub fn grammar(&self, kind: GrammarKind, text: &str) -> Result<Arc<Grammar>> {
        let vocabulary = match self.vocabulary.get() {
            Some(vocabulary) => vocabulary,
            None => {
                let Some(tokenizer) = &self.tokenizer else {
                    return Err(Error::Unsupported("a grammar needs a vocabulary: the model file has none".into()));
                };
                let vocabulary = Vocabulary::new(tokenizer, self.config.shape.vocab_len)?;
                self.vocabulary.get_or_init(|| vocabulary) // Of two that come at once, one is kept.
            }
        };
        Grammar::new(vocabulary, kind, text).map(Arc::new)
    }

    /// Whether the grammar was compiled for this model.
    pub(crate) fn owns(&self, grammar: &Grammar) -> bool {
        self.vocabulary.get().is_some_and(|vocabulary| Arc::ptr_eq(vocabulary, grammar.vocabulary()))
    }

    /// Runs `job` on each of the model's threads at once with its index: for measurements over the same threads.
    pub fn run_on_threads(&self, job: &(dyn Fn(usize) + Sync)) -> Result<()> {
        self.backend.run_on_threads(job)
    }

    /// What measures the machine's energy.
    pub(crate) fn meters(&self) -> &Arc<Meters> {
        &self.meters
    }

    /// The memory of the model and all its sessions.
    pub fn ledger(&self) -> &Arc<Ledger> {
        &self.ledger
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn backend(&self) -> &dyn Backend {
        &*self.backend
    }
}

const _: () = {
    const fn any_thread<T: Send + Sync>() {}
    any_thread::<Model>();
};

/// What a file says beside its weights.
struct Checked {
    config: Config,
    tokenizer: Option<Tokenizer>,
    metadata: Metadata,
}

impl Checked {
    /// Takes the metadata out of the file.
    fn new(file: &mut ModelFile, i2s_layout: I2sLayout) -> Result<Checked> {
        file.set_i2s_layout(i2s_layout)?;
        let config = Config::read(file)?;
        let tokenizer = Tokenizer::from_metadata(&file.metadata)?;
        check_vocabulary(tokenizer.as_ref(), config.shape.vocab_len)?;
        file.metadata.drop_arrays(ARRAY_KEPT_MAX);
        Ok(Checked { config, tokenizer, metadata: std::mem::take(&mut file.metadata) })
    }

    /// What stays of it, in bytes.
    fn memory(&self) -> u64 {
        whole_pages(self.tokenizer.as_ref().map_or(0, |tokenizer| tokenizer.bytes() as u64))
    }
}

/// The machine that was asked for.
#[derive(Clone, Copy)]
struct Wanted {
    device: Device,
    #[cfg_attr(not(feature = "cuda"), expect(dead_code))]
    f16_activations: bool,
    stream: Option<HostStream>,
    priority: i32,
    cpu_fallback: bool,
}

impl Wanted {
    fn of(options: &LoadOptions<'_>) -> Result<Wanted> {
        // Who asks for what only the CPU has means the CPU.
        let cpu = options.exact || options.isa.is_some();
        if cpu && options.device == Device::Auto && !options.cpu_fallback {
            return Err(Error::Unsupported("exact mode and kernel tables are of the CPU only".into()));
        }
        let wanted = Wanted {
            device: if cpu { options.device.or_cpu() } else { options.device },
            f16_activations: options.f16_activations,
            stream: options.cuda_stream,
            priority: options.cuda_priority,
            cpu_fallback: options.cpu_fallback,
        };
        wanted.check()?;
        Ok(wanted)
    }

    /// Whether the CPU is taken after this failure of a device.
    fn falls_back(&self, error: &Error) -> bool {
        let lacking = matches!(error, Error::Device(_) | Error::DeviceMemory { .. } | Error::Unsupported(_));
        lacking && self.device == Device::Auto && self.cpu_fallback
    }

    /// The CUDA device; None when none was asked for, or none is there and the choice is ours.
    #[cfg(feature = "cuda")]
    fn index(&self, exact: bool) -> Result<Option<usize>> {
        match self.device {
            Device::Cpu => Ok(None),
            Device::Cuda(_) if exact => Err(Error::Unsupported("exact mode runs on the CPU only".into())),
            Device::Cuda(index) => Ok(Some(index)),
            Device::Auto => match cuda::first_usable() {
                Ok(index) => Ok(Some(index)),
                Err(error) if !self.cpu_fallback => Err(error),
                Err(error) => {
                    log::debug!("runs on the CPU: {error}");
                    Ok(None)
                }
            },
        }
    }

    #[cfg(not(feature = "cuda"))]
    fn check_without_cuda(&self) -> Result<()> {
        match self.device {
            Device::Auto if self.cpu_fallback => Ok(()),
            Device::Cpu => Ok(()),
            Device::Auto | Device::Cuda(_) => Err(Error::device("this build has no CUDA (feature `cuda`)")),
        }
    }

    fn check(&self) -> Result<()> {
        match (self.stream, self.priority) {
            (None, 0) => Ok(()),
            (Some(_), priority) if priority != 0 => {
                Err(Error::argument("cuda_priority beside cuda_stream, which has a priority of its own"))
            }
            _ if self.device == Device::Cpu => Err(Error::argument("cuda_stream or cuda_priority, but on the CPU")),
            _ => Ok(()),
        }
    }
}

/// The weights on the machine that was asked for.
fn backend(
    wanted: Wanted,
    config: &Config,
    weights: Weights<'_>,
    file: &Arc<ModelFile>,
    options: Options,
    progress: &mut Reporter<'_>,
) -> Result<Box<dyn Backend>> {
    match cuda_backend(wanted, config, &weights, file, &options, progress) {
        Ok(Some(backend)) => return Ok(backend),
        Ok(None) => {}
        Err(error) if wanted.falls_back(&error) => log::warn!("runs on the CPU: {error}"),
        Err(error) => return Err(error),
    }
    let mut report = |done| progress.report(done).is_ok();
    Ok(Box::new(CpuBackend::new(config.shape.clone(), weights, file, options, &mut report)?))
}

/// The weights on a CUDA device; None when none was asked for, or none is there and the choice is ours.
#[cfg(feature = "cuda")]
fn cuda_backend(
    wanted: Wanted,
    config: &Config,
    weights: &Weights<'_>,
    file: &ModelFile,
    options: &Options,
    progress: &mut Reporter<'_>,
) -> Result<Option<Box<dyn Backend>>> {
    let Some(index) = wanted.index(options.exact)? else { return Ok(None) };
    let mut done = 0;
    let mut release = |bytes: &[u8]| {
        file.release(bytes);
        done += bytes.len();
        progress.report(done)
    };
    let Wanted { f16_activations, stream, priority, .. } = wanted;
    let place = cuda::Place { index, f16_activations, stream, priority };
    let backend = CudaBackend::new(place, config.shape.clone(), weights, &options.pool, &options.ledger, &mut release)?;
    Ok(Some(Box::new(backend)))
}

#[cfg(not(feature = "cuda"))]
fn cuda_backend(
    wanted: Wanted,
    _: &Config,
    _: &Weights<'_>,
    _: &ModelFile,
    _: &Options,
    _: &mut Reporter<'_>,
) -> Result<Option<Box<dyn Backend>>> {
    wanted.check_without_cuda().map(|()| None)
}

/// Tells the caller of a load how far it is.
struct Reporter<'a> {
    inner: Option<&'a mut dyn FnMut(f32) -> bool>,
    total: usize,
}

impl Reporter<'_> {
    fn report(&mut self, done: usize) -> Result<()> {
        let fraction = done as f32 / self.total.max(1) as f32;
        let go_on = self.inner.as_mut().is_none_or(|inner| inner(fraction));
        if go_on { Ok(()) } else { Err(Error::Cancelled) }
    }
}

fn check_vocabulary(tokenizer: Option<&Tokenizer>, rows: usize) -> Result<()> {
    match tokenizer.map(Tokenizer::vocab_len) {
        Some(tokens) if tokens > rows => Err(Error::Format(format!(
            "`tokenizer.ggml.tokens` has {tokens} tokens, tensor `token_embd.weight` only {rows} rows"
        ))),
        _ => Ok(()),
    }
}

/// Tensors per format, the most bytes first, and the formats of the matrices as a name.
fn summary(file: &ModelFile) -> (Vec<TensorSummary>, String) {
    let mut summaries: Vec<TensorSummary> = Vec::new();
    let mut matrices: Vec<Format> = Vec::new();
    for tensor in file.tensors() {
        let bytes = tensor.bytes.len() as u64;
        match summaries.iter_mut().find(|summary| summary.format == tensor.format) {
            Some(summary) => (summary.count, summary.bytes) = (summary.count + 1, summary.bytes + bytes),
            None => summaries.push(TensorSummary { format: tensor.format, count: 1, bytes }),
        }
        if tensor.shape[1] > 1 && !matrices.contains(&tensor.format) {
            matrices.push(tensor.format);
        }
    }
    summaries.sort_by_key(|summary| std::cmp::Reverse(summary.bytes));
    let names = summaries.iter().map(|summary| summary.format).filter(|format| matrices.contains(format));
    let quant = names.map(Format::name).collect::<Vec<_>>().join("+");
    (summaries, quant)
}
