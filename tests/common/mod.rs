//! What integration tests share: a GGUF writer, and tiny random models that are complete enough to run.
//!
//! ```ignore
//! mod common;
//! let bytes = common::random_model(&common::ModelSpec { tied: true, ..common::ModelSpec::tiny("qwen3") });
//! ```
#![allow(dead_code, unused_imports)] // Each test program uses a part.

pub mod cross;
#[cfg(feature = "cli")]
pub mod folder;
mod i2s;
mod model;
mod weights;
mod writer;

pub use i2s::in_i2s_layout;
pub use model::{Formats, ModelSpec, Vocabulary, random_model, random_model_writer};
pub use weights::{random_blocks, random_f32};
pub use writer::{Field, GgufWriter};

use edgellm::Error;
use edgellm::file::{ModelFile, Source};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// xorshift64*: the same numbers on every machine, from a seed.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// 0 to `end` - 1.
    pub fn below(&mut self, end: usize) -> usize {
        ((u128::from(self.next()) * end as u128) >> 64) as usize
    }

    /// From `low` up to `high`.
    pub fn range(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * (self.next() >> 40) as f32 / (1 << 24) as f32
    }

    pub fn byte(&mut self) -> u8 {
        (self.next() >> 56) as u8
    }
}

/// A directory of this test's own, deleted at the end.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new() -> TempDir {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("edgellm-test-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        TempDir(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes a file and returns its path.
    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// `bytes` as memory that outlives any model. Leaks: not for loops.
pub fn forever(bytes: Vec<u8>) -> &'static [u8] {
    bytes.leak()
}

/// Opens a file in memory and hands the result to `f`; nothing of it outlives the call, so nothing leaks.
pub fn with_model_file<T>(bytes: &[u8], f: impl FnOnce(Result<&ModelFile, &Error>) -> T) -> T {
    // SAFETY: the model file is dropped below, before the borrow of `bytes` ends, and `f` sees it by reference only.
    let forever: &'static [u8] = unsafe { std::mem::transmute(bytes) };
    let file = ModelFile::open(Source::Bytes(forever), true);
    f(file.as_ref())
}

/// The text of the error of a result that has to be one, with the name of its variant.
#[track_caller]
pub fn refusal<T>(result: Result<T, impl std::borrow::Borrow<Error>>) -> (&'static str, String) {
    let Err(error) = result else { panic!("accepted, but it should be refused") };
    let error = error.borrow();
    let variant = match error {
        Error::Argument(_) => "Argument",
        Error::State(_) => "State",
        Error::Busy => "Busy",
        Error::NoMemory { .. } => "NoMemory",
        Error::NotLocked { .. } => "NotLocked",
        Error::MemoryLimit { .. } => "MemoryLimit",
        Error::DeviceMemory { .. } => "DeviceMemory",
        Error::Io { .. } => "Io",
        Error::Format(_) => "Format",
        Error::Unsupported(_) => "Unsupported",
        Error::Integrity(_) => "Integrity",
        Error::Mismatch(_) => "Mismatch",
        Error::Context { .. } => "Context",
        Error::Grammar(_) => "Grammar",
        Error::Cancelled => "Cancelled",
        Error::Device(_) => "Device",
        Error::Forked => "Forked",
        Error::Internal(_) => "Internal",
    };
    (variant, error.to_string())
}
