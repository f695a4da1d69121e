//! The KV cache of a sequence on a device: copied for a fork, to the host to be saved, and back.

use super::sequence::CudaSequence;
use crate::backend::Sink;
use crate::{Error, Result};

impl CudaSequence {
    /// A sequence with a copy of the whole cache, made on the device.
    pub(super) fn fork_all(&mut self) -> Result<CudaSequence> {
        self.wait_for_all()?;
        let fork = CudaSequence::new(self.inner.clone(), self.context_len(), self.batch())?;
        fork.stream.copy((self.kv(), 0), (fork.kv(), 0), self.kv_len())?;
        // What is copied may be written to again, or freed, by its owner.
        fork.stream.synchronize()?;
        Ok(fork)
    }

    pub(super) fn layout(&self) -> String {
        let shape = &self.inner.shape;
        format!("CUDA, f16, {} layers, {} kv heads of {}", shape.layers, shape.kv_heads, shape.head_dim)
    }

    /// Bytes of one position of a head.
    fn row_bytes(&self) -> usize {
        2 * self.inner.shape.head_dim
    }

    /// Heads of keys, then of values, of all layers.
    fn heads(&self) -> usize {
        2 * self.inner.shape.layers * self.inner.shape.kv_heads
    }

    pub(super) fn saved_bytes(&self, positions: usize) -> usize {
        self.heads() * positions * self.row_bytes()
    }

    /// Head by head.
    pub(super) fn save(&mut self, positions: usize, sink: Sink<'_>) -> Result<()> {
        self.wait_for_all()?;
        let bytes = positions * self.row_bytes();
        let mut rows = Vec::new();
        rows.try_reserve_exact(bytes).map_err(|_| Error::NoMemory { what: "a saved session", bytes })?;
        rows.resize(bytes, 0);
        for head in 0..self.heads() {
            self.stream.read(self.kv(), head * self.context_len() * self.row_bytes(), &mut rows)?;
            sink(&rows)?;
        }
        Ok(())
    }

    pub(super) fn restore(&mut self, positions: usize, saved: &[u8]) -> Result<()> {
        if saved.len() != self.saved_bytes(positions) || positions > self.context_len() {
            return Err(Error::Internal("what was saved of a KV cache has another length".into()));
        }
        self.wait_for_all()?;
        self.forget_next();
        let bytes = positions * self.row_bytes();
        for (head, rows) in saved.chunks_exact(bytes.max(1)).enumerate() {
            self.stream.write(self.kv(), head * self.context_len() * self.row_bytes(), rows)?;
        }
        Ok(())
    }
}
