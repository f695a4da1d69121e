//! The table of rotations on the device, filled as far as a sequence has come.

use super::Shape;
use crate::Result;
use crate::cuda::{Context, DeviceBuffer, PinnedBuffer, Stream};
use crate::tensor::Bytes;
use std::sync::Arc;

/// Positions that are computed at a time.
const BLOCK: usize = 64;

/// (context, pairs) of (cos, sin) in f32, each from f64.
pub struct Rope {
    table: DeviceBuffer,
    staging: PinnedBuffer,
    context_len: usize,
    filled: usize,
}

/// Bytes of the table, and of the host's memory that it goes through.
pub fn bytes(shape: &Shape, context_len: usize) -> (usize, usize) {
    let row_bytes = 8 * shape.rope_frequencies.len();
    (context_len.saturating_mul(row_bytes), (BLOCK * row_bytes).max(1))
}

impl Rope {
    pub fn new(context: &Arc<Context>, shape: &Shape, context_len: usize) -> Result<Self> {
        let (table, staging) = bytes(shape, context_len);
        Ok(Rope {
            table: DeviceBuffer::new(context, "the table of rotations", table)?,
            staging: PinnedBuffer::new(context, "the table of rotations", staging)?,
            context_len,
            filled: 0,
        })
    }

    /// What it holds.
    pub fn held(&self) -> Bytes {
        Bytes { host: self.staging.held(), device: self.table.held() }
    }

    pub fn pointer(&self) -> u64 {
        self.table.pointer()
    }

    /// Makes sure that the first `count` positions are there for what comes in the stream after this.
    pub fn fill(&mut self, shape: &Shape, stream: &Stream, count: usize) -> Result<()> {
        while self.filled < count {
            let block = BLOCK.min(self.context_len - self.filled);
            stream.synchronize()?; // The staging memory is read until the copy is done.
            // SAFETY: nothing copies from it any more.
            let bytes = unsafe { self.staging.bytes_mut() };
            let positions = self.filled..self.filled + block;
            let angles = positions.flat_map(|position| shape.rope_frequencies.iter().map(move |f| position as f64 * f));
            for (out, angle) in bytes.as_chunks_mut::<8>().0.iter_mut().zip(angles) {
                // libm's, as on the CPU.
                let (sin, cos) = libm::sincos(angle);
                out[..4].copy_from_slice(&(cos as f32).to_le_bytes());
                out[4..].copy_from_slice(&(sin as f32).to_le_bytes());
            }
            let row_bytes = 8 * shape.rope_frequencies.len();
            let (at, len) = (self.filled * row_bytes, block * row_bytes);
            // SAFETY: the staging memory lives as long as the table, and changes only after the wait above.
            unsafe { stream.write_later(&self.table, at, self.staging.as_ptr(), len)? };
            self.filled += block;
        }
        Ok(())
    }
}
