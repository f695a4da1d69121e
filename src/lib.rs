//! libedgellm: LLM inference for robots and devices, behind a small C ABI.
//!
//! The layers, bottom up; each uses only those before it (`tests/tidy.rs` checks):
//!
//! | module | what it is |
//! |---|---|
//! | [`error`] | every way this crate can fail |
//! | [`tensor`] | aligned memory and shapes, no maths |
//! | `cuda` | NVIDIA's driver, opened at run time: devices, memory, streams, graphs; with the feature `cuda` |
//! | [`quant`] | weight formats: block layout, dequantization, of some quantization |
//! | [`mod@file`] | GGUF and safetensors: parsing, limits, memory mapping |
//! | [`tokenizer`] | text to tokens and back, chat templates |
//! | [`cpu`] | kernels, one table per instruction set, and the thread pool |
//! | [`grammar`] | constrained output: which tokens may come next |
//! | [`backend`] | the five stages of a layer, carried out by a machine |
//! | [`model`] | configuration, architectures, weights, the forward pass |
//! | [`sampler`] | logits to a token |
//! | [`session`] | one sequence being generated |
//! | `capi` | the C ABI of `include/edgellm.h` |
//! | `convert` | other models' folders to GGUF; with the feature `cli` |

#![warn(missing_docs)]

#[cfg(not(panic = "unwind"))]
compile_error!("libedgellm catches panics at its C boundary: build it with panic = \"unwind\"");

pub mod backend;
#[allow(non_camel_case_types)]
mod capi;
#[cfg(feature = "cli")]
pub mod convert;
pub mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod error;
pub mod file;
pub mod grammar;
pub mod model;
pub mod quant;
pub mod sampler;
pub mod session;
pub mod tensor;
pub mod tokenizer;

pub use backend::{Device, KvFormat};
pub use error::{Error, Result};
pub use grammar::{Grammar, GrammarKind, GrammarMode};
pub use model::{LoadOptions, Model, Source};
pub use quant::I2sLayout;
pub use sampler::Sampling;
pub use session::{Alternative, Event, EventKind, Finish, OnFull, Session, SessionOptions};
