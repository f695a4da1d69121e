//! libedgellm: LLM inference for robots and devices, behind a small C ABI.
//!
//! The layers, bottom up; each uses only those before it (`tests/tidy.rs` checks):
//!
//! | module | what it is |
//! |---|---|
//! | [`error`] | every way this crate can fail |
//! | [`tensor`] | aligned memory and shapes, no maths |
//! | [`quant`] | weight formats: block layout and dequantization, one file each |
//! | [`file`] | GGUF: parsing, limits, memory mapping |
//! | [`tokenizer`] | text to tokens and back, chat templates |
//! | [`cpu`] | kernels, one table per instruction set, and the thread pool |

#[cfg(not(panic = "unwind"))]
compile_error!("libedgellm catches panics at its C boundary: build it with panic = \"unwind\"");

pub mod cpu;
pub mod error;
pub mod file;
pub mod quant;
pub mod tensor;
pub mod tokenizer;

pub use error::{Error, Result};
