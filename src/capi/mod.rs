//! The C ABI of `include/edgellm.h`: every `edgellm_*` function, and nothing else exports symbols.
//!
//! The doc comments of exported items are the header's text, so they speak to a C programmer. Rules held here:
//!
//! - Every `extern "C"` function runs its body in [`guard`]: nothing unwinds into the caller.
//! - Memory of the caller is read and written through raw pointers (checked for NULL, alignment and length); inputs and
//!   outputs may be the same variable. Outputs are written last, in one go, after everything that can fail.
//! - The safety contract of all of them is the header's: every pointer is NULL, or valid for the length that goes with it,
//!   and every handle is NULL or not yet freed.
//! - A handle starts with a tag word and the fork generation that made it ([`handle`]); a session is entered by an
//!   atomic try-lock, so a second thread gets `EDGELLM_E_BUSY` and never a data race.

pub mod chat;
pub mod device;
pub mod generate;
pub mod grammar;
pub mod log;
pub mod model;
pub mod plan;
pub mod saved;
pub mod session;
pub mod status;
pub mod tokens;
pub mod types;
pub mod version;

mod guard;
mod handle;
mod memory;
mod sized;
mod text;
