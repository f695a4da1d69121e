//! What weights and sequences take of memory, said by their shapes before any of it is asked for.

use super::kernels::State;
use super::sequence::{Plan, kv_len};
use super::{rope, weights};
use crate::backend::{SequenceMemory, Shape, Weights, WeightsMemory};
use crate::cpu::threads::ThreadPool;
use crate::cuda::DeviceBuffer;
use crate::tensor::{Bytes, whole_pages};
use crate::{Error, Result};

/// Weights on the device; while they are loaded, the memory that they go through and the threads that repack them.
pub fn weights(weights: &Weights<'_>, threads: usize) -> Result<WeightsMemory> {
    let loading = 2 * whole_pages(weights::PART_BYTES as u64)
        + whole_pages(weights::reordering_bytes(weights, threads))
        + ThreadPool::stacks_bytes(threads);
    Ok(WeightsMemory {
        weights: Bytes { host: 0, device: DeviceBuffer::held_for(weights::plan_max(weights)? as u64) },
        loading: Bytes::host(loading),
    })
}

/// Whether a sequence may need room for gate and up apart.
pub fn may_be_mixed(weights: &Weights<'_>) -> bool {
    // Ternary weights may have one scale or many, which only their blocks say.
    weights.layers.iter().any(|layer| {
        let [gate, up] = [&layer.gate, &layer.up].map(|linear| linear.weight.format);
        gate != up || gate.is_ternary()
    })
}

/// KV cache and scratch memory; on the host the memory that the device reaches.
pub fn sequence(shape: &Shape, mixed: bool, context_len: usize, batch: usize) -> Result<SequenceMemory> {
    let no_memory = Error::DeviceMemory { what: "keys and values", bytes: usize::MAX };
    let kv_len = kv_len(shape, context_len).ok_or(no_memory)?;
    let mut plan = Plan::default();
    plan.places(shape, mixed, batch);
    let (table, staging) = rope::bytes(shape, context_len);
    let [state, tokens, logits] = [size_of::<State>(), 4 * batch.max(2), 4 * shape.vocab_len];
    let pinned = [state, tokens, logits, staging].map(|bytes| whole_pages(bytes as u64));
    Ok(SequenceMemory {
        kv: Bytes { host: 0, device: DeviceBuffer::held_for(2 * kv_len as u64) },
        scratch: Bytes {
            host: pinned.iter().sum(),
            device: DeviceBuffer::held_for(plan.bytes as u64) + DeviceBuffer::held_for(table as u64),
        },
    })
}
