//! The command line's grammar, and the option structs of the library made from it.

use crate::failure::Failure;
use clap::{Args, Parser, Subcommand, ValueEnum};
use edgellm::convert::Options;
use edgellm::quant::Format;
use edgellm::{Device, I2sLayout, KvFormat, LoadOptions, Model, Sampling, SessionOptions, Source};
use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Runs GGUF language models on this machine.
///
/// Exit codes: 0 done, 1 failed (the reason is on stderr), 2 wrong usage. The environment variable LIBEDGELLM_LOG
/// (error, warn, info, debug, trace) makes the library talk on stderr.
#[derive(Parser)]
#[command(version)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    Run(RunArgs),
    Chat(ChatArgs),
    Info(InfoArgs),
    Tokenize(TokenizeArgs),
    Bench(BenchArgs),
    Convert(ConvertArgs),
}

/// Continues a prompt, or answers it with --chat; text streams to stdout
///
/// The prompt is tokenized as it stands, with BOS where the model wants one, and special tokens in it (such as
/// <|im_end|>) count as tokens: whoever writes the command line writes the whole prompt. The default is greedy, so two
/// runs print the same. A newline is written after the text.
#[derive(Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub load: LoadArgs,
    #[command(flatten)]
    pub prompt: PromptArgs,
    /// The prompt is a user's message: the model's chat template is put around it
    #[arg(long)]
    pub chat: bool,
    /// A system message before the prompt
    #[arg(long, value_name = "TEXT", requires = "chat", allow_hyphen_values = true)]
    pub system: Option<String>,
    /// Write one JSON object at the end, {"prompt_ids": [...], "ids": [...], "text": "..."}, in place of streaming
    ///
    /// `ids` are the generated tokens, without the one that ended the text.
    #[arg(long)]
    pub token_ids: bool,
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

/// Where a prompt comes from: exactly one of the two.
#[derive(Args)]
#[group(required = true, multiple = false)]
pub struct PromptArgs {
    /// The prompt
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    pub prompt: Option<String>,
    /// Read the prompt from a file, or from stdin with '-'; one newline at its end is dropped
    #[arg(short, long, value_name = "PROMPT_FILE")]
    pub file: Option<PathBuf>,
}

/// Talks with the model: each line is a message, /clear forgets, /exit or Ctrl-D ends
///
/// Ctrl-C stops the answer; while the program waits for a line it ends the program. Lines may come from a pipe. The
/// default temperature is 0.7.
#[derive(Args)]
pub struct ChatArgs {
    #[command(flatten)]
    pub load: LoadArgs,
    /// A system message before the first line
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub system: Option<String>,
    #[command(flatten)]
    pub sampling: SamplingArgs,
}

/// Says what a model is and how this machine would run it
#[derive(Args)]
pub struct InfoArgs {
    #[command(flatten)]
    pub load: LoadArgs,
    /// One JSON object in place of lines
    #[arg(long)]
    pub json: bool,
}

/// Writes the token ids of a text as a JSON array
#[derive(Args)]
pub struct TokenizeArgs {
    /// The GGUF file (of a split model: its first part)
    pub model: PathBuf,
    /// The text
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub text: String,
    /// Special tokens in the text are tokens; without this they are text
    #[arg(long)]
    pub special: bool,
    /// Add BOS where the model wants one
    #[arg(long)]
    pub bos: bool,
}

/// Measures prefill and decode speed beside the memory's own
///
/// Figures are medians over the repeats, read bandwidth is the best pass. The prompt is random tokens from a fixed
/// sequence, so a file without a vocabulary does as well. Decode is memory bound: its GB/s (bytes of weights read per
/// token times tokens per second) is to be compared with the read bandwidth of the same threads in the same run.
#[derive(Args)]
pub struct BenchArgs {
    #[command(flatten)]
    pub load: LoadArgs,
    /// Tokens to prefill
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = clap::value_parser!(u32).range(1..))]
    pub prompt_tokens: u32,
    /// Tokens to decode after the first
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    pub gen_tokens: u32,
    #[command(flatten)]
    pub kv: KvArgs,
    /// Repeats
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub repeat: u32,
    /// One JSON object in place of lines
    #[arg(long)]
    pub json: bool,
}

/// Makes a GGUF file from a folder of Hugging Face's, so far of BitNet models
///
/// The folder holds config.json, tokenizer.json and the weights as safetensors: ternary ones packed in 2 bits, or the
/// floats that they are made from. Ternary weights lose nothing; the embedding is rounded as asked for. The file
/// appears when it is complete; when anything fails, or on Ctrl-C, there is none.
#[derive(Args)]
pub struct ConvertArgs {
    /// The folder
    pub folder: PathBuf,
    /// The file to write
    #[arg(short, long, value_name = "FILE")]
    pub out: PathBuf,
    /// Format of the ternary weights: tq2_0 and tq1_0 as in llama.cpp, i2_s as in bitnet.cpp
    #[arg(long = "type", value_name = "FORMAT", value_enum, default_value_t = LinearFormat::Tq2_0)]
    pub linear: LinearFormat,
    /// Format of the embedding, and of the head if it is another matrix
    #[arg(long, value_name = "FORMAT", value_enum, default_value_t = EmbeddingFormat::Q8_0)]
    pub embedding: EmbeddingFormat,
    /// Compare logits with those of the folder's own numbers, and keep the file if 90 % of the likeliest tokens agree
    #[arg(long)]
    pub verify: bool,
    /// Replace the file if it is there
    #[arg(long)]
    pub force: bool,
}

#[derive(Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
#[allow(non_camel_case_types)] // The field's own spellings.
pub enum LinearFormat {
    Tq2_0,
    Tq1_0,
    I2_S,
}

#[derive(Clone, Copy, ValueEnum)]
#[value(rename_all = "snake_case")]
#[allow(non_camel_case_types)]
pub enum EmbeddingFormat {
    Q8_0,
    Q6_K,
    F16,
}

impl ConvertArgs {
    /// The library's options.
    pub fn options(&self) -> Options {
        let linear = match self.linear {
            LinearFormat::Tq2_0 => Format::TQ2_0,
            LinearFormat::Tq1_0 => Format::TQ1_0,
            LinearFormat::I2_S => Format::I2_S,
        };
        let embedding = match self.embedding {
            EmbeddingFormat::Q8_0 => Format::Q8_0,
            EmbeddingFormat::Q6_K => Format::Q6_K,
            EmbeddingFormat::F16 => Format::F16,
        };
        Options { linear, embedding, force: self.force, verify: self.verify }
    }
}

/// What to load and onto what.
#[derive(Args)]
pub struct LoadArgs {
    /// The GGUF file (of a split model: its first part)
    pub model: PathBuf,
    /// Threads that compute; 0 = one per big core this process may use
    #[arg(short, long, value_name = "N", default_value_t = 0)]
    pub threads: usize,
    /// Where to run: cpu, cuda (the first device), cuda:N [default: a CUDA device that can run the model, else the CPU]
    #[arg(short, long, value_name = "DEVICE", value_parser = device)]
    pub device: Option<Device>,
    /// Kernel table, such as x86_64-avx2 or scalar [default: the best this CPU has]
    #[arg(long, value_name = "NAME")]
    pub isa: Option<String>,
    /// On a CUDA device, activations of generated tokens in f16: more exact, and several times slower
    #[arg(long)]
    pub f16_activations: bool,
    /// Weights and activations in f32: slow and large, for checking
    #[arg(long)]
    pub exact: bool,
    /// Order of the codes in I2_S tensors: block128 as in the official BitNet, block64 or rows4 [default: block128]
    ///
    /// No file says it of itself, and in a wrong one the model talks nonsense. bitnet.cpp's quantizer writes block64 on
    /// ARM, and on x86 rows4 where it was built without ACT_PARALLEL. Files without I2_S are not affected.
    #[arg(long, value_name = "LAYOUT", value_enum, hide_possible_values = true)]
    i2s_layout: Option<I2s>,
}

#[derive(Clone, Copy, ValueEnum)]
enum I2s {
    Block128,
    Block64,
    Rows4,
}

fn device(text: &str) -> Result<Device, String> {
    match text.split_once(':') {
        None if text == "cpu" => Ok(Device::Cpu),
        None if text == "cuda" => Ok(Device::Cuda(0)),
        Some(("cuda", number)) => number.parse().map(Device::Cuda).map_err(|error| format!("cuda:{number}: {error}")),
        _ => Err("is none of cpu, cuda and cuda:N".into()),
    }
}

impl LoadArgs {
    /// Loads the model; a load that people have to wait for shows its progress on a terminal.
    pub fn load(&self) -> Result<Arc<Model>, Failure> {
        let mut progress = Progress::new();
        let mut report = |done: f32| {
            progress.report(done);
            true
        };
        let options = LoadOptions {
            device: self.device.unwrap_or_default(),
            threads: self.threads,
            isa: self.isa.as_deref(),
            exact: self.exact,
            f16_activations: self.f16_activations,
            i2s_layout: match self.i2s_layout {
                None | Some(I2s::Block128) => I2sLayout::Block128,
                Some(I2s::Block64) => I2sLayout::Block64,
                Some(I2s::Rows4) => I2sLayout::Rows4,
            },
            progress: Some(&mut report),
            ..LoadOptions::default()
        };
        let model = Model::load(Source::Path(&self.model), options);
        progress.clear();
        Ok(model?)
    }
}

/// How tokens are chosen and how many.
#[derive(Args)]
pub struct SamplingArgs {
    /// Tokens to generate; 0 = until the model ends its text or the context is full
    #[arg(short = 'n', long = "max-tokens", value_name = "N", default_value_t = 0)]
    pub max_tokens: usize,
    /// 0 = greedy, always the most likely token [default: 0; in a chat: 0.7]
    #[arg(long, value_name = "T")]
    pub temperature: Option<f32>,
    /// Choose among the K most likely tokens; 0 = off
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub top_k: usize,
    /// Choose among the most likely tokens that reach this probability together; 1 = off
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    pub top_p: f32,
    /// Choose among tokens at least this fraction as likely as the most likely one; 0 = off
    #[arg(long, value_name = "P", default_value_t = 0.0)]
    pub min_p: f32,
    /// Make recent tokens less likely; 1 = off
    #[arg(long, value_name = "R", default_value_t = 1.0)]
    pub repeat_penalty: f32,
    /// Same seed, same text
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub seed: u64,
    /// Go on after the model has ended its text
    #[arg(long)]
    pub ignore_eos: bool,
    /// Tokens the session can hold, prompt and text together; 0 = the model's own, at most 4096
    #[arg(long = "ctx", value_name = "N", default_value_t = 0)]
    pub context_len: usize,
    #[command(flatten)]
    pub kv: KvArgs,
}

/// What a session keeps of past tokens.
#[derive(Args)]
pub struct KvArgs {
    /// Keys and values as f16 or i8, which is half the memory and a little less exact [default: f16; with --exact: f32]
    #[arg(long = "kv", value_name = "FORMAT", value_enum, hide_possible_values = true)]
    format: Option<Kv>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kv {
    F16,
    I8,
}

impl KvArgs {
    /// The library's name of it.
    pub fn format(&self) -> KvFormat {
        match self.format {
            None => KvFormat::Auto,
            Some(Kv::F16) => KvFormat::F16,
            Some(Kv::I8) => KvFormat::I8,
        }
    }
}

impl SamplingArgs {
    /// How the session is made.
    pub fn session(&self) -> SessionOptions {
        let kv_format = self.kv.format();
        SessionOptions { context_len: self.context_len, kv_format, ..SessionOptions::default() }
    }

    /// The library's options; `temperature` is for when the command line has none.
    pub fn sampling(&self, temperature: f32) -> Sampling {
        Sampling {
            temperature: self.temperature.unwrap_or(temperature),
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repeat_penalty: self.repeat_penalty,
            seed: self.seed,
            max_tokens: self.max_tokens,
            ignore_eos: self.ignore_eos,
            ..Sampling::default()
        }
    }
}

/// One line on a terminal's stderr that says how far a load is, gone when it is done.
struct Progress {
    from: Option<Instant>, // None: stderr is no terminal.
    shown: Option<u32>,    // Percent.
}

impl Progress {
    fn new() -> Self {
        Progress { from: std::io::stderr().is_terminal().then(Instant::now), shown: None }
    }

    fn report(&mut self, done: f32) {
        let percent = (done.clamp(0.0, 1.0) * 100.0) as u32;
        let slow = self.from.is_some_and(|from| from.elapsed() > Duration::from_millis(300));
        if slow && self.shown != Some(percent) {
            let _ = write!(std::io::stderr(), "\rloading {percent} %");
            self.shown = Some(percent);
        }
    }

    fn clear(&self) {
        if self.shown.is_some() {
            let _ = write!(std::io::stderr(), "\r{:16}\r", "");
        }
    }
}
