//! One sequence on a device: its memory, its stream, and the graph that decodes a token.

use super::kernels::{
    Attention, GateUp, HEAD_ROWS, Head, Launch, Project, Quantized, ROW_COLUMNS, State, attention_grid, gemm_turns,
};
use super::rope::Rope;
use super::{Inner, Layer, memory};
use crate::backend::{Activation, Sequence, SequenceMemory, Shape, tensors};
use crate::cuda::{DeviceBuffer, Graph, PinnedBuffer, Stream};
use crate::tensor::{Bytes, Taken};
use crate::{Error, Result};
use std::sync::Arc;

/// Layers of a decode pass between two borders at which a deadline can stop it.
const PIECE_LAYERS: usize = 8;

/// See [`Sequence`].
pub struct CudaSequence {
    pub(super) inner: Arc<Inner>,
    pub(super) stream: Stream,
    context_len: usize,
    batch: usize,
    kv: DeviceBuffer,
    scratch: DeviceBuffer,
    pub(super) at: Places,
    pub(super) rope: Rope,
    /// What the device hands to the host: a [`State`].
    mailbox: PinnedBuffer,
    /// What the host hands to the device: a token and a position, or a pass's tokens.
    outbox: PinnedBuffer,
    logits: PinnedBuffer, // (vocab_len)
    logits_are_here: bool,
    /// The whole pass, and the same in pieces.
    decode: Graph,
    pieces: Vec<Graph>,
    /// The token and position with which the device would go on.
    next: Option<(u32, u32)>,
    /// The stream has work that was not waited for.
    running: bool,
    /// That work ends with a head.
    head_is_running: bool,
    found: State,
    /// The pass: how many tokens, and the position of the first.
    pub(super) tokens: u32,
    pub(super) position: u32,
    _taken: Taken,
}

/// Addresses in the scratch memory.
#[derive(Clone, Copy, Default)]
pub(super) struct Places {
    pub state: u64,
    pub tokens: u64,    // (batch) u32
    pub residual: u64,  // (batch, hidden)
    pub qkv: u64,       // (batch, query_heads * head_dim + 2 * kv_heads * head_dim)
    pub attended: u64,  // (batch, query_heads * head_dim)
    pub activated: u64, // (batch, intermediate)
    pub up: u64,        // (batch, intermediate): when kernels cannot take gate and up at once
    pub rows: u64,      // (batch, widest, in 128s) f16
    pub row_scale: u64, // (batch)
    pub q: u64,         // (batch, query_heads * head_dim) f16
    pub partials: u64,  // of attention
    pub counters: u64,  // of attention
    pub turns: u64,     // of prefill_gemm
    pub codes: u64,     // (intermediate) int8
    pub groups: u64,    // (intermediate / 32) of 2 f32
    pub head_partials: u64,
    pub logits: u64, // (vocab_len)
    pub keys: u64,   // (layers, kv_heads, context, head_dim) f16
    pub values: u64,
}

impl CudaSequence {
    pub fn new(inner: Arc<Inner>, context_len: usize, batch: usize) -> Result<Self> {
        let (shape, context) = (&inner.shape, &inner.context);
        let SequenceMemory { kv, scratch } = memory::sequence(shape, inner.mixed, context_len, batch)?;
        let taken = inner.ledger.take("keys, values and activations", kv + scratch)?;
        // The host's stream cannot be captured: others may put work into it.
        let (stream, setup) = (inner.place.stream(context)?, Stream::new(context, 0)?);
        let no_memory = Error::DeviceMemory { what: "keys and values", bytes: usize::MAX };
        let kv_len = kv_len(shape, context_len).ok_or(no_memory)?;
        let kv = DeviceBuffer::new(context, "keys and values", 2 * kv_len)?;
        let mut plan = Plan::default();
        let mixed = inner.layers.iter().any(|layer| !layer.gate.is_like(&layer.up));
        let mut at = plan.places(shape, mixed, batch);
        let scratch = DeviceBuffer::new(context, "activations", plan.bytes)?;
        at.shift(scratch.pointer());
        (at.keys, at.values) = (kv.pointer(), kv.pointer() + kv_len as u64);
        // Attention counts from zero, and what the kernels do not write must not be noise.
        setup.fill(&scratch, 0, scratch.len(), 0)?;
        setup.fill(&kv, 0, kv.len(), 0)?;
        let mailbox = PinnedBuffer::new(context, "results", size_of::<State>())?;
        let rope = Rope::new(context, shape, context_len)?;
        let step = Step { inner: &inner, at, context_len, rope: rope.pointer(), mailbox: mailbox.pointer() };
        let layers = shape.layers;
        let decode = setup.capture(|stream| step.run(stream, 0..layers))?;
        let starts = (0..layers).step_by(PIECE_LAYERS);
        let piece = |start| setup.capture(|stream| step.run(stream, start..layers.min(start + PIECE_LAYERS)));
        let pieces = starts.map(piece).collect::<Result<_>>()?;
        setup.synchronize()?;
        Ok(CudaSequence {
            outbox: PinnedBuffer::new(context, "tokens", 4 * batch.max(2))?,
            logits: PinnedBuffer::new(context, "logits", 4 * shape.vocab_len)?,
            inner: inner.clone(),
            stream,
            context_len,
            batch,
            kv,
            scratch,
            at,
            rope,
            mailbox,
            logits_are_here: false,
            decode,
            pieces,
            next: None,
            running: false,
            head_is_running: false,
            found: State::default(),
            tokens: 0,
            position: 0,
            _taken: taken,
        })
    }

    /// Writes words to the start of `place` in the scratch memory, for what comes in the stream after this.
    fn hand_over(&mut self, place: u64, words: impl Iterator<Item = u32>) -> Result<()> {
        let mut count = 0;
        for (index, word) in words.enumerate() {
            self.outbox.store(index, word);
            count = index + 1;
        }
        let at = (place - self.scratch.pointer()) as usize;
        // SAFETY: the outbox lives as long as the sequence, whose drop waits, and changes only after a wait.
        unsafe { self.stream.write_later(&self.scratch, at, self.outbox.as_ptr(), 4 * count) }
    }

    /// Waits for work of an abandoned pass.
    fn settle(&mut self) -> Result<()> {
        self.head_is_running = false;
        if self.running { self.wait() } else { Ok(()) }
    }

    /// RMSNorm and head of one row of the residual stream, then the best token, which the device would go on with.
    pub(super) fn head_of(&mut self, residual: u64, token: u32, position: u32) -> Result<()> {
        // The pass's tokens are on their way from the outbox: they are before this in the stream, but not yet copied.
        self.stream.synchronize()?;
        self.hand_over(self.at.state, [token, position].into_iter())?;
        let step = Step {
            inner: &self.inner,
            at: self.at,
            context_len: self.context_len,
            rope: self.rope.pointer(),
            mailbox: self.mailbox.pointer(),
        };
        step.head(&self.stream, residual)?;
        (self.running, self.head_is_running, self.next) = (true, true, None);
        Ok(())
    }

    /// Begins a pass of the prompt: its tokens to the device.
    pub(super) fn begin(&mut self, tokens: &[u32], position: usize) -> Result<()> {
        let shape = &self.inner.shape;
        tensors::check_tokens(tokens, shape.vocab_len)?;
        assert!(tokens.len() <= self.batch && position + tokens.len() <= self.context_len);
        self.settle()?;
        (self.tokens, self.position) = (tokens.len() as u32, position as u32);
        self.rope.fill(&self.inner.shape, &self.stream, position + tokens.len())?;
        self.running = true;
        self.hand_over(self.at.tokens, tokens.iter().copied())
    }

    pub(super) fn last_token(&self) -> u32 {
        self.outbox.load(self.tokens as usize - 1)
    }

    pub(super) fn context_len(&self) -> usize {
        self.context_len
    }

    pub(super) fn batch(&self) -> usize {
        self.batch
    }

    pub(super) fn kv(&self) -> &DeviceBuffer {
        &self.kv
    }

    pub(super) fn decode_pieces_of(&self, paced: bool) -> usize {
        match (self.inner.place.f16_activations, paced) {
            (true, _) => 0,
            (false, true) => self.pieces.len(),
            (false, false) => 1,
        }
    }

    /// Launches piece `index` of `pieces` over one token.
    pub(super) fn launch_piece(&mut self, index: usize, pieces: usize, token: u32, position: usize) -> Result<()> {
        if index == 0 {
            tensors::check_tokens(&[token], self.inner.shape.vocab_len)?;
            assert!(position < self.context_len);
            self.settle()?;
            self.rope.fill(&self.inner.shape, &self.stream, position + 1)?;
            if self.next != Some((token, position as u32)) {
                self.hand_over(self.at.state, [token, position as u32].into_iter())?;
            }
        }
        let graph = if pieces == 1 { &self.decode } else { &self.pieces[index] };
        // SAFETY: what the graph uses is this sequence's and its model's, which it keeps; the drop waits.
        unsafe { graph.launch(&self.stream)? };
        (self.running, self.head_is_running, self.next) = (true, index + 1 == pieces, None);
        Ok(())
    }

    pub(super) fn wait_for_all(&mut self) -> Result<()> {
        if !self.running {
            return Ok(());
        }
        self.stream.synchronize()?;
        self.running = false;
        if self.head_is_running {
            self.head_is_running = false;
            self.logits_are_here = false;
            let word = |index| self.mailbox.load(index);
            self.found = State {
                token: word(0),
                position: word(1),
                best: word(2),
                best_logit: f32::from_bits(word(3)),
                log_sum_exp: f32::from_bits(word(4)),
                done: word(5),
            };
            if self.found.best == u32::MAX {
                return Err(Error::Format("the logits are not finite: the weights hold NaN or infinity".into()));
            }
            self.next = Some((self.found.token, self.found.position));
        }
        Ok(())
    }

    pub(super) fn best_found(&self) -> (u32, f32) {
        (self.found.best, self.found.best_logit)
    }

    pub(super) fn log_sum_exp_found(&self) -> f32 {
        self.found.log_sum_exp
    }

    /// The logits, fetched from the device when they are not here yet.
    pub(super) fn fetch_logits(&mut self) -> Result<&[f32]> {
        if !self.logits_are_here {
            let at = (self.at.logits - self.scratch.pointer()) as usize;
            // SAFETY: pinned memory of this sequence; the wait is next.
            unsafe { self.stream.read_later(&self.scratch, at, self.logits.as_ptr(), self.logits.len())? };
            self.stream.synchronize()?;
            self.logits_are_here = true;
        }
        // SAFETY: the copy is done, and the next one needs `&mut self`.
        let bytes = unsafe { self.logits.bytes() };
        // SAFETY: pages are aligned for f32, every pattern of bits is one, and the length is a multiple of 4.
        Ok(unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / 4) })
    }

    pub(super) fn kv_len(&self) -> usize {
        self.kv.len()
    }

    /// The device does not go on by itself: the next token and position come from the host.
    pub(super) fn forget_next(&mut self) {
        self.next = None;
    }

    /// Takes these for what the last head found.
    pub(super) fn set_logits_found(&mut self, logits: &[f32], log_sum_exp: f32) -> Result<()> {
        self.settle()?;
        let best = logits.iter().fold(f32::NEG_INFINITY, |best, logit| best.max(*logit));
        let token = logits.iter().position(|logit| *logit == best);
        let token = token.ok_or(Error::Format("the logits are not finite".into()))?;
        self.found = State { best: token as u32, best_logit: best, log_sum_exp, ..State::default() };
        for (index, logit) in logits.iter().enumerate() {
            self.logits.store(index, logit.to_bits());
        }
        (self.logits_are_here, self.next) = (true, None);
        Ok(())
    }

    pub(super) fn memory_held(&self) -> SequenceMemory {
        let pinned = self.mailbox.held() + self.outbox.held() + self.logits.held();
        let scratch = Bytes { host: pinned, device: self.scratch.held() };
        SequenceMemory { kv: Bytes { host: 0, device: self.kv.held() }, scratch: scratch + self.rope.held() }
    }
}

impl Drop for CudaSequence {
    fn drop(&mut self) {
        // The device may still use what goes now.
        let _ = self.stream.synchronize();
    }
}

/// Values of the keys and values of so many positions; None when they are more than there is address space.
pub(super) fn kv_len(shape: &Shape, context_len: usize) -> Option<usize> {
    let len = (2 * shape.layers * shape.kv_heads * shape.head_dim).checked_mul(context_len)?;
    len.checked_mul(2).map(|_| len)
}

/// Scratch memory, laid out.
#[derive(Default)]
pub(super) struct Plan {
    pub bytes: usize,
}

impl Plan {
    fn take(&mut self, bytes: usize) -> u64 {
        let at = self.bytes;
        self.bytes += bytes.next_multiple_of(256);
        at as u64
    }

    /// Offsets of everything.
    pub fn places(&mut self, shape: &Shape, mixed: bool, batch: usize) -> Places {
        let attention = shape.query_heads * shape.head_dim;
        let qkv = attention + 2 * shape.kv_heads * shape.head_dim;
        let widest = shape.hidden.max(attention).max(shape.intermediate).next_multiple_of(ROW_COLUMNS);
        let [splits, lines, _] = attention_grid(shape).map(|n| n as usize);
        Places {
            state: self.take(size_of::<State>()),
            counters: self.take(4 * lines),
            turns: self.take(4 * gemm_turns(batch, shape.hidden)),
            tokens: self.take(4 * batch),
            residual: self.take(4 * batch * shape.hidden),
            qkv: self.take(4 * batch * qkv),
            attended: self.take(4 * batch * attention),
            activated: self.take(4 * batch * shape.intermediate),
            up: self.take(if mixed { 4 * batch * shape.intermediate } else { 0 }),
            rows: self.take(2 * batch * widest),
            row_scale: self.take(4 * batch),
            q: self.take(2 * batch * attention),
            partials: self.take(4 * splits * shape.query_heads * (shape.head_dim + 2)),
            codes: self.take(shape.intermediate),
            groups: self.take(shape.intermediate / 32 * 8),
            head_partials: self.take(16 * shape.vocab_len.div_ceil(HEAD_ROWS)),
            logits: self.take(4 * shape.vocab_len),
            keys: 0,
            values: 0,
        }
    }
}

impl Places {
    /// Offsets to addresses.
    fn shift(&mut self, start: u64) {
        for place in [
            &mut self.state,
            &mut self.counters,
            &mut self.turns,
            &mut self.tokens,
            &mut self.residual,
            &mut self.qkv,
            &mut self.attended,
            &mut self.activated,
            &mut self.up,
            &mut self.rows,
            &mut self.row_scale,
            &mut self.q,
            &mut self.partials,
            &mut self.codes,
            &mut self.groups,
            &mut self.head_partials,
            &mut self.logits,
        ] {
            *place += start;
        }
    }
}

/// The launches of a decode pass.
struct Step<'a> {
    inner: &'a Inner,
    at: Places,
    context_len: usize,
    rope: u64,
    mailbox: u64,
}

impl Step<'_> {
    /// These layers; before the first of all the embedding, after the last one the head.
    fn run(&self, stream: &Stream, layers: std::ops::Range<usize>) -> Result<()> {
        if layers.start == 0 {
            self.embed(stream)?;
        }
        for layer in layers.clone() {
            self.layer(stream, layer)?;
        }
        if layers.end == self.inner.shape.layers { self.head(stream, self.at.residual) } else { Ok(()) }
    }

    fn embed(&self, stream: &Stream) -> Result<()> {
        let (mut state, mut embedding, mut residual) = (self.at.state, self.inner.embedding, self.at.residual);
        let mut parameters = [(&raw mut state).cast(), (&raw mut embedding).cast(), (&raw mut residual).cast()];
        let blocks = (self.inner.shape.hidden as u32 / 32).div_ceil(256);
        let launch = Launch {
            function: &self.inner.kernels.embed,
            grid: [blocks, 1, 1],
            threads: 256,
            shared_bytes: 0,
            overlap: true,
        };
        // SAFETY: decode_embed(const State*, Matrix, float*); the memory is the sequence's, whose drop waits, and the
        // model's, which it keeps.
        unsafe { launch.run_all(stream, &mut parameters) }
    }

    fn layer(&self, stream: &Stream, index: usize) -> Result<()> {
        let (shape, at) = (&self.inner.shape, &self.at);
        let layer = &self.inner.layers[index];
        let epsilon = shape.norm_epsilon;
        let Layer { q, k, v, attn_output, gate, up, down, .. } = *layer;
        let project = Project { epsilon, ..Project::default() };
        let attn_in =
            Project { x: at.residual, norm: layer.attn_norm, y: at.qkv, matrix: [q, k, v], matrices: 3, ..project };
        self.project(stream, attn_in)?;
        self.attention(stream, index)?;
        let add = Project { y: at.residual, matrices: 1, add: 1, ..project };
        let one = |matrix| [matrix, Default::default(), Default::default()];
        self.project(stream, Project { x: at.attended, norm: layer.attn_sub_norm, matrix: one(attn_output), ..add })?;
        // A following norm or rounding of whole rows needs the values themselves.
        let whole = layer.ffn_sub_norm != 0 || is_ternary(down.format) || shape.intermediate % 32 != 0;
        let quantized = Quantized { codes: at.codes, groups: at.groups };
        let gate_up = GateUp {
            x: at.residual,
            norm: layer.ffn_norm,
            gate,
            up,
            activated: if whole { at.activated } else { 0 },
            quantized: if whole { Quantized::default() } else { quantized },
            epsilon,
            activation: activation(shape.activation),
        };
        // SAFETY: decode_gate_up_F(GateUp); memory as in `embed`.
        unsafe { self.inner.kernels.gate_up(&gate_up)?.run(stream, gate_up)? };
        let (x, quantized) = if whole { (at.activated, Quantized::default()) } else { (0, quantized) };
        self.project(stream, Project { x, quantized, norm: layer.ffn_sub_norm, matrix: one(down), ..add })
    }

    fn project(&self, stream: &Stream, parameters: Project) -> Result<()> {
        // SAFETY: decode_project_F(Project); memory as in `embed`.
        unsafe { self.inner.kernels.project(&parameters)?.run(stream, parameters) }
    }

    fn attention(&self, stream: &Stream, index: usize) -> Result<()> {
        let (shape, at, layer) = (&self.inner.shape, &self.at, &self.inner.layers[index]);
        let (q_bytes, kv_bytes) = (4 * shape.query_heads * shape.head_dim, 4 * shape.kv_heads * shape.head_dim);
        let cache = (2 * index * shape.kv_heads * self.context_len * shape.head_dim) as u64;
        let parameters = Attention {
            state: at.state,
            q: at.qkv,
            k: at.qkv + q_bytes as u64,
            v: at.qkv + (q_bytes + kv_bytes) as u64,
            q_norm: layer.q_norm,
            k_norm: layer.k_norm,
            rope: self.rope,
            keys: at.keys + cache,
            values: at.values + cache,
            partials: at.partials,
            counters: at.counters,
            attended: at.attended,
            query_heads: shape.query_heads as u32,
            kv_heads: shape.kv_heads as u32,
            head_dim: shape.head_dim as u32,
            context: self.context_len as u32,
            pairs: shape.rope_frequencies.len() as u32,
            adjacent: u32::from(shape.rope_adjacent),
            epsilon: shape.norm_epsilon,
            unused: 0,
        };
        // SAFETY: decode_attention_N(Attention); memory as in `embed`.
        unsafe { self.inner.kernels.attention(shape).run(stream, parameters) }
    }

    fn head(&self, stream: &Stream, residual: u64) -> Result<()> {
        let (inner, at) = (self.inner, &self.at);
        let parameters = Head {
            x: residual,
            norm: inner.output_norm,
            matrix: inner.head,
            logits: at.logits,
            partials: at.head_partials,
            epsilon: inner.shape.norm_epsilon,
            unused: 0,
        };
        // SAFETY: decode_head_F(Head); memory as in `embed`.
        unsafe { inner.kernels.head(&parameters)?.run(stream, parameters)? };
        let (mut state, mut mailbox, mut partials) = (at.state, self.mailbox, at.head_partials);
        let mut count = inner.head.rows.div_ceil(HEAD_ROWS as u32);
        let mut parameters =
            [(&raw mut state).cast(), (&raw mut mailbox).cast(), (&raw mut partials).cast(), (&raw mut count).cast()];
        let launch =
            Launch { function: &inner.kernels.finish, grid: [1, 1, 1], threads: 512, shared_bytes: 0, overlap: true };
        // SAFETY: decode_finish(State*, State*, const Partial*, u32); memory as in `embed`.
        unsafe { launch.run_all(stream, &mut parameters) }
    }
}

/// Whether rows of activations are rounded as a whole for it.
pub(super) fn is_ternary(format: u32) -> bool {
    format == crate::quant::Format::TQ2_0 as u32
}

/// The kernels' number of it.
pub(super) fn activation(activation: Activation) -> u32 {
    match activation {
        Activation::Silu => 0,
        Activation::Relu2 => 1,
    }
}
