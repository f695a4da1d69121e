//! What backends ask of a file's tensors and of token ids.

use crate::cpu::threads::ThreadPool;
use crate::file::Tensor;
use crate::quant::{Format, ternary};
use crate::{Error, Result};
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

/// Fails when a token id is not below the vocabulary's length.
pub fn check_tokens(tokens: &[u32], vocab_len: usize) -> Result<()> {
    match tokens.iter().position(|&token| token as usize >= vocab_len) {
        None => Ok(()),
        Some(i) => Err(Error::argument(format!(
            "token {} at index {i} is out of range: the vocabulary has {vocab_len}",
            tokens[i]
        ))),
    }
}

/// Fails when a ternary tensor holds the code 3, which is no weight.
pub fn check_codes(tensor: &Tensor<'_>, pool: &ThreadPool) -> Result<()> {
    let (name, format) = (tensor.name, tensor.format);
    if matches!(format, Format::TQ2_0 | Format::I2_S) && has_code_3(format, tensor.bytes, pool)? {
        return Err(Error::Format(format!("tensor `{name}`: a weight of {} is none of -1, 0, 1", format.name())));
    }
    Ok(())
}

/// Whether a code of 2 bits is 3.
fn has_code_3(format: Format, bytes: &[u8], pool: &ThreadPool) -> Result<bool> {
    let found = AtomicBool::new(false);
    let (block_bytes, codes) = if format == Format::TQ2_0 { (66, 64) } else { (32, 32) };
    let blocks = bytes.len() / block_bytes;
    pool.each(blocks, pool.grain(blocks), |_, range| {
        let blocks = bytes[range.start * block_bytes..range.end * block_bytes].chunks_exact(block_bytes);
        if blocks.into_iter().any(|block| ternary::has_code_3(&block[..codes])) {
            found.store(true, Relaxed);
        }
    })?;
    Ok(found.into_inner())
}

/// The scale of all blocks of a ternary tensor that are not zero; None when they differ.
pub fn common_scale(format: Format, bytes: &[u8]) -> Option<f32> {
    let mut common = 0;
    for block in bytes.chunks_exact(format.block_bytes()) {
        let scale = u16::from_le_bytes([block[block.len() - 2], block[block.len() - 1]]);
        if scale & 0x7FFF != 0 && scale != common {
            if common != 0 {
                return None;
            }
            common = scale;
        }
    }
    Some(half::f16::from_bits(common).to_f32())
}
