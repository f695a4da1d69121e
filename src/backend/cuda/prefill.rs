//! The stages on the device, for passes over a prompt.

use super::kernels::{
    Launch, Matrix, PrefillAttention, PrefillEmbed, PrefillGemm, PrefillRope, PrefillRows, ROW_COLUMNS,
};
use super::sequence::{CudaSequence, activation, is_ternary};
use crate::Result;
use crate::backend::{Sequence, SequenceMemory, Sink};

impl CudaSequence {
    /// Rows of f32 to rows of half precision: (`up`: activation(x) * up,) norm, then rounding as the matrices want it.
    fn rows(&self, x: u64, up: u64, norm: u64, columns: usize, matrices: &[&Matrix]) -> Result<()> {
        let shape = &self.inner.shape;
        let parameters = PrefillRows {
            x,
            up,
            norm,
            out: self.at.rows,
            row_scale: self.at.row_scale,
            columns: columns as u32,
            x_stride: columns as u32,
            out_stride: columns.next_multiple_of(ROW_COLUMNS) as u32,
            epsilon: shape.norm_epsilon,
            activation: activation(shape.activation),
            ternary: u32::from(matrices.iter().any(|matrix| is_ternary(matrix.format))),
        };
        let threads = (columns.div_ceil(32).next_multiple_of(32) as u32).max(128);
        let function = &self.inner.kernels.prefill_rows;
        let launch = Launch { function, grid: [self.tokens, 1, 1], threads, shared_bytes: 0, overlap: false };
        // SAFETY: prefill_rows(PrefillRows); the memory is this sequence's, whose drop waits, and the model's, which it
        // keeps. Buffers hold `batch` rows, of which `tokens` are used.
        unsafe { launch.run(&self.stream, parameters) }
    }

    /// Multiplies `rows` with matrices side by side. y: (tokens, outputs).
    fn gemm(&self, matrices: &[&Matrix], mode: u32, y: u64) -> Result<()> {
        let columns = matrices[0].columns as usize;
        let outputs: u32 = match mode {
            PrefillGemm::GATE_UP => matrices[0].rows,
            _ => matrices.iter().map(|matrix| matrix.rows).sum(),
        };
        let mut parameters = PrefillGemm {
            x: self.at.rows,
            row_scale: self.at.row_scale,
            y,
            turns: self.at.turns,
            y_scale: 1.0,
            x_scale: 1.0,
            count: matrices.len() as u32,
            tokens: self.tokens,
            x_stride: columns.next_multiple_of(ROW_COLUMNS) as u32,
            y_stride: outputs,
            mode,
            activation: activation(self.inner.shape.activation),
            ..PrefillGemm::default()
        };
        for (place, matrix) in parameters.matrices.iter_mut().zip(matrices) {
            *place = **matrix;
        }
        // SAFETY: prefill_gemm_RxT(PrefillGemm); memory as in `rows`.
        unsafe { self.inner.kernels.gemm(&parameters).run(&self.stream, parameters) }
    }
}

impl Sequence for CudaSequence {
    fn embed(&mut self, tokens: &[u32], position: usize) -> Result<()> {
        self.begin(tokens, position)?;
        let parameters =
            PrefillEmbed { embedding: self.inner.embedding, tokens: self.at.tokens, residual: self.at.residual };
        let blocks = self.inner.shape.hidden.div_ceil(256) as u32;
        let function = &self.inner.kernels.prefill_embed;
        let launch = Launch { function, grid: [blocks, self.tokens, 1], threads: 256, shared_bytes: 0, overlap: false };
        // SAFETY: prefill_embed(PrefillEmbed); memory as in `rows`.
        unsafe { launch.run(&self.stream, parameters) }
    }

    fn attn_in(&mut self, index: usize) -> Result<()> {
        let (shape, layer) = (&self.inner.shape, &self.inner.layers[index]);
        let matrices = [&layer.q, &layer.k, &layer.v];
        self.rows(self.at.residual, 0, layer.attn_norm, shape.hidden, &matrices)?;
        self.gemm(&matrices, PrefillGemm::STORE, self.at.qkv)?;
        let cache = (2 * index * shape.kv_heads * self.context_len() * shape.head_dim) as u64;
        let heads = shape.query_heads + 2 * shape.kv_heads;
        let parameters = PrefillRope {
            qkv: self.at.qkv,
            q_norm: layer.q_norm,
            k_norm: layer.k_norm,
            table: self.rope.pointer(),
            q: self.at.q,
            keys: self.at.keys + cache,
            values: self.at.values + cache,
            tokens: self.tokens,
            position: self.position,
            stride: (heads * shape.head_dim) as u32,
            query_heads: shape.query_heads as u32,
            kv_heads: shape.kv_heads as u32,
            head_dim: shape.head_dim as u32,
            pairs: shape.rope_frequencies.len() as u32,
            capacity: self.context_len() as u32,
            epsilon: shape.norm_epsilon,
            q_scale: (std::f64::consts::LOG2_E / (shape.head_dim as f64).sqrt()) as f32,
            adjacent: u32::from(shape.rope_adjacent),
            reserved: 0,
        };
        let blocks = (self.tokens as usize * heads).div_ceil(8) as u32;
        let function = &self.inner.kernels.prefill_rope;
        let launch = Launch { function, grid: [blocks, 1, 1], threads: 256, shared_bytes: 0, overlap: false };
        // SAFETY: prefill_rope_append(PrefillRope); memory as in `rows`.
        unsafe { launch.run(&self.stream, parameters) }
    }

    fn attention(&mut self, index: usize) -> Result<()> {
        let (shape, layer) = (&self.inner.shape, &self.inner.layers[index]);
        let cache = (2 * index * shape.kv_heads * self.context_len() * shape.head_dim) as u64;
        let width = shape.query_heads * shape.head_dim;
        let parameters = PrefillAttention {
            q: self.at.q,
            keys: self.at.keys + cache,
            values: self.at.values + cache,
            out_half: 0,
            out: self.at.attended,
            tokens: self.tokens,
            position: self.position,
            query_heads: shape.query_heads as u32,
            kv_heads: shape.kv_heads as u32,
            capacity: self.context_len() as u32,
            out_stride: width as u32,
        };
        let launch = self.inner.kernels.prefill_attention(shape, self.tokens);
        // SAFETY: prefill_attention_D(PrefillAttention); memory as in `rows`.
        unsafe { launch.run(&self.stream, parameters)? };
        self.rows(self.at.attended, 0, layer.attn_sub_norm, width, &[&layer.attn_output])
    }

    fn attn_out(&mut self, index: usize) -> Result<()> {
        self.gemm(&[&self.inner.layers[index].attn_output], PrefillGemm::ADD, self.at.residual)
    }

    fn ffn_in(&mut self, index: usize) -> Result<()> {
        let (shape, layer) = (&self.inner.shape, &self.inner.layers[index]);
        self.rows(self.at.residual, 0, layer.ffn_norm, shape.hidden, &[&layer.gate, &layer.up])?;
        let up = if layer.gate.is_like(&layer.up) {
            self.gemm(&[&layer.gate, &layer.up], PrefillGemm::GATE_UP, self.at.activated)?;
            0
        } else {
            self.gemm(&[&layer.gate], PrefillGemm::STORE, self.at.activated)?;
            self.gemm(&[&layer.up], PrefillGemm::STORE, self.at.up)?;
            self.at.up
        };
        self.rows(self.at.activated, up, layer.ffn_sub_norm, shape.intermediate, &[&layer.down])
    }

    fn ffn_out(&mut self, index: usize) -> Result<()> {
        self.gemm(&[&self.inner.layers[index].down], PrefillGemm::ADD, self.at.residual)
    }

    fn head(&mut self) -> Result<()> {
        let last = u64::from(self.tokens - 1);
        let residual = self.at.residual + last * 4 * self.inner.shape.hidden as u64;
        self.head_of(residual, self.last_token(), self.position + self.tokens - 1)
    }

    fn head_of_row(&mut self, row: usize) -> Result<()> {
        let residual = self.at.residual + (row * 4 * self.inner.shape.hidden) as u64;
        // Any token: the device does not go on from here.
        self.head_of(residual, 0, self.position)?;
        self.wait_for_all()?;
        self.forget_next();
        Ok(())
    }

    fn decode_pieces(&self, paced: bool) -> usize {
        self.decode_pieces_of(paced)
    }

    fn decode_piece(&mut self, index: usize, pieces: usize, token: u32, position: usize) -> Result<()> {
        self.launch_piece(index, pieces, token, position)
    }

    fn wait(&mut self) -> Result<()> {
        self.wait_for_all()
    }

    fn logits(&mut self) -> Result<&[f32]> {
        self.fetch_logits()
    }

    fn best(&self) -> Option<(u32, f32)> {
        Some(self.best_found())
    }

    fn log_sum_exp(&self) -> f32 {
        self.log_sum_exp_found()
    }

    fn kv_bytes(&self) -> usize {
        self.kv_len()
    }

    fn fork(&mut self, _: usize) -> Result<Box<dyn Sequence>> {
        Ok(Box::new(self.fork_all()?))
    }

    fn kv_layout(&self) -> String {
        self.layout()
    }

    fn kv_saved_bytes(&self, positions: usize) -> usize {
        self.saved_bytes(positions)
    }

    fn kv_save(&mut self, positions: usize, sink: Sink<'_>) -> Result<()> {
        self.save(positions, sink)
    }

    fn kv_restore(&mut self, positions: usize, saved: &[u8]) -> Result<()> {
        self.restore(positions, saved)
    }

    fn set_logits(&mut self, logits: &[f32], log_sum_exp: f32) -> Result<()> {
        self.set_logits_found(logits, log_sum_exp)
    }

    fn held(&self) -> SequenceMemory {
        self.memory_held()
    }
}
