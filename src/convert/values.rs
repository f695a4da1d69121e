//! Floats of a safetensors file.

use crate::file::safetensors::{Dtype, Stored};
use crate::quant::Format;
use crate::{Error, Result};

/// The format that these floats are in; None when they are not floats that can be read.
pub(super) fn format(dtype: Dtype) -> Option<Format> {
    match dtype {
        Dtype::F32 => Some(Format::F32),
        Dtype::F16 => Some(Format::F16),
        Dtype::BF16 => Some(Format::BF16),
        _ => None,
    }
}

/// Refuses what is not floats; of tensor `name`.
pub(super) fn check_dtype(name: &str, dtype: Dtype) -> Result<Format> {
    format(dtype)
        .ok_or_else(|| Error::Unsupported(format!("tensor `{name}` is {dtype:?}; F32, F16 and BF16 can be read")))
}

/// The values from index `first` on, which are finite.
pub(super) fn read(name: &str, stored: &Stored<'_>, first: usize, out: &mut [f32]) -> Result<()> {
    let format = check_dtype(name, stored.dtype)?;
    let width = format.block_bytes();
    // The reader has checked that the bytes are as many as the shape says.
    format.dequantize(&stored.bytes[first * width..][..out.len() * width], out);
    match out.iter().position(|value| !value.is_finite()) {
        Some(at) => Err(Error::Format(format!("tensor `{name}` holds {} at index {}", out[at], first + at))),
        None => Ok(()),
    }
}
