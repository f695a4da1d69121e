//! The attention stage: in parallel over heads and blocks of tokens, or, for one token, over heads and segments of the
//! positions before it.
//!
//! A query's tiles, segments and sums are the same whatever the tasks, and so are the bits.

use super::Inner;
use super::kv_cache::KvCache;
use crate::Result;
use crate::backend::Shape;
use crate::cpu::lanes::{ATTENTION_SEGMENT, ATTENTION_TILE, SoftmaxState};
use crate::tensor::{Buffer, Disjoint, Residence, buffer_bytes};

/// Query tokens that one task takes together: they share the conversion of keys and values to f32.
const TOKENS: usize = 16;
/// Query heads that may share a kv head.
pub const GROUP_MAX: usize = 64;

const WHAT: &str = "activations";

/// Memory of the stage, for one session.
pub struct Scratch {
    per_thread: Buffer<f32>,      // (threads, thread_len())
    segments: Buffer<f32>,        // (segments of the context, query_heads, head_dim)
    states: Buffer<SoftmaxState>, // (segments of the context, query_heads)
}

impl Scratch {
    pub fn new(inner: &Inner, context_len: usize) -> Result<Self> {
        let shape = &inner.shape;
        let (what, states) = (WHAT, context_len.div_ceil(ATTENTION_SEGMENT) * shape.query_heads);
        Ok(Scratch {
            per_thread: Buffer::zeroed(what, inner.pool.threads() * thread_len(shape))?,
            segments: Buffer::zeroed(what, states * shape.head_dim)?,
            states: Buffer::zeroed(what, states)?,
        })
    }

    /// What [`Scratch::new`] takes.
    pub fn held_for(shape: &Shape, threads: usize, context_len: usize) -> u64 {
        let states = (context_len.div_ceil(ATTENTION_SEGMENT) * shape.query_heads) as u64;
        buffer_bytes::<f32>((threads * thread_len(shape)) as u64)
            + buffer_bytes::<f32>(states * shape.head_dim as u64)
            + buffer_bytes::<SoftmaxState>(states)
    }

    pub fn settle(&mut self, residence: Residence) -> Result<()> {
        self.per_thread.settle(WHAT, residence)?;
        self.segments.settle(WHAT, residence)?;
        self.states.settle(WHAT, residence)
    }

    /// Memory held, in whole pages.
    pub fn held(&self) -> u64 {
        self.per_thread.held() + self.segments.held() + self.states.held()
    }
}

/// Floats of a thread: a tile of keys, one of values, the sums of a segment and those of all before it.
fn thread_len(shape: &Shape) -> usize {
    let queries = TOKENS * (shape.query_heads / shape.kv_heads);
    shape.head_dim * 2 * (ATTENTION_TILE + queries)
}

/// A pass of the stage over one layer.
pub struct Pass<'a> {
    pub inner: &'a Inner,
    pub cache: &'a KvCache,
    pub layer: usize,
    /// Of the first token.
    pub position: usize,
    pub tokens: usize,
    /// (tokens, query_heads * head_dim).
    pub q: &'a [f32],
}

impl Pass<'_> {
    /// Writes the heads' outputs to `out`: (tokens, query_heads * head_dim).
    pub fn run(&self, scratch: &mut Scratch, out: &mut [f32]) -> Result<()> {
        if self.tokens == 1 { self.decode(scratch, out) } else { self.prefill(scratch, out) }
    }

    fn group(&self) -> usize {
        self.inner.shape.query_heads / self.inner.shape.kv_heads
    }

    /// One token: segment by segment at once, merged in order after.
    fn decode(&self, scratch: &mut Scratch, out: &mut [f32]) -> Result<()> {
        let (inner, shape) = (self.inner, &self.inner.shape);
        let (group, width) = (self.group(), shape.query_heads * shape.head_dim);
        let segments = (self.position + 1).div_ceil(ATTENTION_SEGMENT);
        let thread_len = thread_len(&inner.shape);
        let per_thread = Disjoint::new(&mut scratch.per_thread);
        let (all_sums, all_states) = (Disjoint::new(&mut scratch.segments), Disjoint::new(&mut scratch.states));
        inner.pool.each(segments * shape.kv_heads, 1, |thread, range| {
            // SAFETY: each thread has its own scratch.
            let tiles = unsafe { per_thread.range(thread * thread_len..(thread + 1) * thread_len) };
            for index in range {
                let (segment, kv_head) = (index / shape.kv_heads, index % shape.kv_heads);
                let task = Task { pass: self, kv_head, first: 0, count: 1, first_head: kv_head * group, heads: group };
                let at = segment * shape.query_heads + kv_head * group;
                // SAFETY: each segment of each kv head is taken by one job.
                let (sums, states) = unsafe {
                    let sums = all_sums.range(at * shape.head_dim..(at + group) * shape.head_dim);
                    (sums, all_states.range(at..at + group))
                };
                task.segment(segment, tiles, states, sums);
            }
        })?;
        for head in 0..shape.query_heads {
            let out = &mut out[head * shape.head_dim..][..shape.head_dim];
            let mut state = SoftmaxState::EMPTY;
            let total = &mut scratch.per_thread[..shape.head_dim];
            total.fill(0.0);
            for segment in 0..segments {
                let sums = &scratch.segments[segment * width + head * shape.head_dim..][..shape.head_dim];
                let segment_state = scratch.states[segment * shape.query_heads + head];
                inner.kernels.attend_merge(&mut state, total, segment_state, sums);
            }
            inner.kernels.attend_end(state, total, out);
        }
        Ok(())
    }

    /// Several tokens: a task takes all segments of a block of them.
    fn prefill(&self, scratch: &mut Scratch, out: &mut [f32]) -> Result<()> {
        let (inner, shape) = (self.inner, &self.inner.shape);
        let group = self.group();
        let blocks = self.tokens.div_ceil(TOKENS);
        // A task takes all query heads of a kv head, or one where that leaves threads without work.
        let heads = if blocks * shape.kv_heads >= inner.pool.threads() { group } else { 1 };
        let tasks = blocks * (shape.query_heads / heads);
        let thread_len = thread_len(&inner.shape);
        let per_thread = Disjoint::new(&mut scratch.per_thread);
        let out = Disjoint::new(out);
        inner.pool.each(tasks, 1, |thread, range| {
            // SAFETY: each thread has its own scratch.
            let scratch = unsafe { per_thread.range(thread * thread_len..(thread + 1) * thread_len) };
            for index in range {
                // The last blocks see the most positions: they go first.
                let (block, first_head) = (blocks - 1 - index % blocks, index / blocks * heads);
                let first = block * TOKENS;
                let count = (self.tokens - first).min(TOKENS);
                let task = Task { pass: self, kv_head: first_head / group, first, count, first_head, heads };
                task.run(scratch, |at, len| {
                    // SAFETY: each head of each row is taken by one job.
                    unsafe { out.range(at..at + len) }
                });
            }
        })
    }
}

/// Some query heads of one kv head, for some tokens.
struct Task<'a> {
    pass: &'a Pass<'a>,
    kv_head: usize,
    first: usize, // token of the pass
    count: usize, // of tokens
    first_head: usize,
    heads: usize,
}

impl Task<'_> {
    /// Where the heads of token `t` are among all heads of the pass.
    fn place(&self, t: usize) -> usize {
        let shape = &self.pass.inner.shape;
        ((self.first + t) * shape.query_heads + self.first_head) * shape.head_dim
    }

    /// Begins `states` (tokens, heads) and `sums` (tokens, heads, head_dim) anew, and adds the positions of one segment
    /// that each token sees. Returns the first token that sees any. `tiles`: room for a tile of keys and one of values.
    fn segment(&self, segment: usize, tiles: &mut [f32], states: &mut [SoftmaxState], sums: &mut [f32]) -> usize {
        let Pass { inner, cache, layer, position, q, .. } = *self.pass;
        let (kernels, head_dim) = (inner.kernels, inner.shape.head_dim);
        let position = position + self.first;
        let scale = 1.0 / (head_dim as f32).sqrt();
        states.fill(SoftmaxState::EMPTY);
        sums.fill(0.0);
        let (keys, values) = tiles[..2 * ATTENTION_TILE * head_dim].split_at_mut(ATTENTION_TILE * head_dim);
        let start = segment * ATTENTION_SEGMENT;
        let end = (position + self.count).min(start + ATTENTION_SEGMENT);
        for from in (start..end).step_by(ATTENTION_TILE) {
            let len = (end - from).min(ATTENTION_TILE);
            cache.read(kernels, layer, self.kv_head, from, keys, &mut values[..len * head_dim]);
            for t in from.saturating_sub(position)..self.count {
                let seen = (position + t + 1 - from).min(len) * head_dim;
                let query = &q[self.place(t)..][..self.heads * head_dim];
                let heads = t * self.heads..(t + 1) * self.heads;
                let sums = &mut sums[heads.start * head_dim..heads.end * head_dim];
                kernels.attend(query, keys, &values[..seen], scale, &mut states[heads], sums);
            }
        }
        start.saturating_sub(position)
    }

    /// All segments, merged in order; `out(at, len)` gives the place of heads among all heads of the pass.
    fn run<'o>(&self, scratch: &mut [f32], out: impl Fn(usize, usize) -> &'o mut [f32]) {
        let (kernels, head_dim) = (self.pass.inner.kernels, self.pass.inner.shape.head_dim);
        let queries = self.count * self.heads;
        let (tiles, scratch) = scratch.split_at_mut(2 * ATTENTION_TILE * head_dim);
        let (sums, totals) = scratch.split_at_mut(scratch.len() / 2);
        let (sums, totals) = (&mut sums[..queries * head_dim], &mut totals[..queries * head_dim]);
        let mut states = [[SoftmaxState::EMPTY; TOKENS * GROUP_MAX]; 2];
        let [states, total_states] = &mut states;
        totals.fill(0.0);
        let positions = self.pass.position + self.first + self.count;
        for segment in 0..positions.div_ceil(ATTENTION_SEGMENT) {
            let first = self.segment(segment, tiles, &mut states[..queries], sums);
            for query in first * self.heads..queries {
                let range = query * head_dim..(query + 1) * head_dim;
                let total = &mut totals[range.clone()];
                kernels.attend_merge(&mut total_states[query], total, states[query], &sums[range]);
            }
        }
        for t in 0..self.count {
            let out = out(self.place(t), self.heads * head_dim);
            for (h, out) in out.chunks_exact_mut(head_dim).enumerate() {
                let query = t * self.heads + h;
                kernels.attend_end(total_states[query], &totals[query * head_dim..][..head_dim], out);
            }
        }
    }
}
