"""The exact forward pass of a GGUF model: what every engine approximates.

Weights are dequantized by the `gguf` package; activations are never quantized and the KV cache keeps full precision.
Norms, softmax, RoPE and the residual stream are f64; matrix products are f32 (BLAS), or f64 with dtype=np.float64:
on 512 tokens of SmolLM2-135M KL(f64 || f32) is 1e-11 in the mean and 5e-11 at most.
Architectures: llama (adjacent RoPE pairs), qwen2 (QKV bias), qwen3 (q/k norm); the last two with rotate-half pairs.

    python tests/reference/exact.py MODEL.gguf 1 2 3      prints the five best next tokens after these ids
"""

import math
import sys
from dataclasses import dataclass

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize

ROWS_MAX = 1024  # Rows per matrix product: bounds the temporaries of a long batch.


@dataclass
class Config:
    """The keys of the file that decide the arithmetic; absent ones have llama.cpp's defaults."""

    architecture: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_dim: int
    rope_base: float
    epsilon: float
    scaling: str
    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int

    @staticmethod
    def read(reader):
        def value(key, default=None):
            field = reader.fields.get(key)
            if field is None and default is None:
                raise SystemExit(f"{key}: missing")
            return default if field is None else field.contents()

        arch = value("general.architecture")
        if arch not in ("llama", "qwen2", "qwen3"):
            raise SystemExit(f"architecture {arch}: not one of llama, qwen2, qwen3")
        hidden, heads = value(f"{arch}.embedding_length"), value(f"{arch}.attention.head_count")
        head_dim = value(f"{arch}.attention.key_length", hidden // heads)
        factor = value(f"{arch}.rope.scaling.factor", value(f"{arch}.rope.scale_linear", 1.0))
        scaling = value(f"{arch}.rope.scaling.type", "linear")
        if scaling not in ("none", "linear", "llama3"):
            raise SystemExit(f"rope scaling {scaling}: not one of none, linear, llama3")
        return Config(
            architecture=arch,
            layers=value(f"{arch}.block_count"),
            hidden=hidden,
            heads=heads,
            kv_heads=value(f"{arch}.attention.head_count_kv", heads),
            head_dim=head_dim,
            rope_dim=value(f"{arch}.rope.dimension_count", head_dim),
            rope_base=value(f"{arch}.rope.freq_base", 10000.0),
            epsilon=value(f"{arch}.attention.layer_norm_rms_epsilon"),
            scaling=scaling,
            factor=factor or 1.0,
            low_freq_factor=value(f"{arch}.rope.scaling.low_freq_factor", 1.0),
            high_freq_factor=value(f"{arch}.rope.scaling.high_freq_factor", 4.0),
            original_context=value(f"{arch}.rope.scaling.original_context_length", 8192),
        )


def llama3_factors(dim, base, factor, low_freq_factor, high_freq_factor, original_context):
    """What rope_freqs.weight holds for `rope_type: llama3`: the number each frequency is divided by. (dim / 2)"""
    factors = []
    for i in range(0, dim, 2):
        wavelength = 2 * math.pi * base ** (i / dim)
        if wavelength < original_context / high_freq_factor:
            factors.append(1.0)
        elif wavelength > original_context / low_freq_factor:
            factors.append(float(factor))
        else:
            smooth = (original_context / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor)
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(factors)


class Sequence:
    """The keys and values of one sequence's past, per layer: (past, kv_heads, head_dim)."""

    def __init__(self, layers):
        self.past = 0
        self.keys = [None] * layers
        self.values = [None] * layers

    def extend(self, layer, k, v):
        """Appends one layer's new keys and values; returns all of them."""
        if self.keys[layer] is not None:
            k, v = np.concatenate([self.keys[layer], k]), np.concatenate([self.values[layer], v])
        self.keys[layer], self.values[layer] = k, v
        return k, v


class Exact:
    """A model file and its exact arithmetic. `keep_bytes`: how much of the dequantized weights stays in memory."""

    def __init__(self, path, dtype=np.float32, keep_bytes=9 << 30):
        reader = GGUFReader(path)
        self.dtype = dtype
        self.config = Config.read(reader)
        self.tensors = {tensor.name: tensor for tensor in reader.tensors}
        self.keep_bytes = keep_bytes
        self.kept = {}
        self.vocab = int(self.tensors["token_embd.weight"].shape[1])
        self.inverse_frequencies = self._inverse_frequencies()

    def weight(self, name):
        """A tensor, dequantized: (out, in) or (n)."""
        if name not in self.kept:
            tensor = self.tensors[name]
            value = dequantize(tensor.data, tensor.tensor_type).astype(self.dtype, copy=False)
            if value.nbytes > self.keep_bytes:
                return value
            self.keep_bytes -= value.nbytes
            self.kept[name] = value
        return self.kept[name]

    def _inverse_frequencies(self):
        """Radians per position of each rotated pair, f64: (rope_dim / 2)"""
        c = self.config
        frequencies = c.rope_base ** (-np.arange(0, c.rope_dim, 2) / c.rope_dim)
        if c.scaling == "linear":
            frequencies = frequencies / c.factor
        if c.scaling == "llama3":
            frequencies = frequencies / llama3_factors(
                c.rope_dim, c.rope_base, c.factor, c.low_freq_factor, c.high_freq_factor, c.original_context
            )
        if "rope_freqs.weight" in self.tensors:
            frequencies = frequencies / self.weight("rope_freqs.weight").astype(np.float64)
        return frequencies

    def _linear(self, name, x):
        """y = W x + b for each row of x: (rows, out)"""
        y = x.astype(self.dtype, copy=False) @ self.weight(f"{name}.weight").T
        if f"{name}.bias" in self.tensors:
            y += self.weight(f"{name}.bias")
        return y

    def _norm(self, name, x):
        """RMSNorm over the last axis, in f64."""
        x = x.astype(np.float64, copy=False)
        scale = 1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.config.epsilon)
        return x * scale * self.weight(f"{name}.weight")

    def _rope(self, x, positions):
        """Rotates the first rope_dim of each head, in f64. x: (tokens, heads, head_dim)"""
        angles = positions[:, None, None] * self.inverse_frequencies
        cos, sin = np.cos(angles), np.sin(angles)
        out = x.astype(np.float64)
        half = self.config.rope_dim // 2
        if self.config.architecture == "llama":
            first, second = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
        else:
            first, second = slice(0, half), slice(half, 2 * half)
        a, b = x[..., first].astype(np.float64), x[..., second].astype(np.float64)
        out[..., first], out[..., second] = a * cos - b * sin, a * sin + b * cos
        return out

    def _attention(self, q, k, v):
        """Causal attention of the last len(q) positions over all of k and v. q: (tokens, heads, head_dim)"""
        c = self.config
        tokens, total = len(q), len(k)
        group = c.heads // c.kv_heads
        # (kv_heads, group * tokens, head_dim) by (kv_heads, head_dim, total)
        q = q.astype(self.dtype).reshape(tokens, c.kv_heads, group, c.head_dim).transpose(1, 2, 0, 3)
        scores = q.reshape(c.kv_heads, group * tokens, c.head_dim) @ k.transpose(1, 2, 0)
        scores = scores.astype(np.float64).reshape(c.kv_heads, group, tokens, total) / math.sqrt(c.head_dim)
        scores[..., np.triu(np.ones((tokens, total), bool), total - tokens + 1)] = -np.inf  # The future.
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        out = scores.astype(self.dtype).reshape(c.kv_heads, group * tokens, total) @ v.transpose(1, 0, 2)
        return out.reshape(c.heads, tokens, c.head_dim).transpose(1, 0, 2).reshape(tokens, -1)

    def _attention_block(self, layer, x, spans, sequences):
        """Adds the attention of each sequence's rows to the residual stream x: (rows, hidden)"""
        c, blk = self.config, f"blk.{layer}"
        normed = self._norm(f"{blk}.attn_norm", x)
        q = self._linear(f"{blk}.attn_q", normed).reshape(-1, c.heads, c.head_dim)
        k = self._linear(f"{blk}.attn_k", normed).reshape(-1, c.kv_heads, c.head_dim)
        v = self._linear(f"{blk}.attn_v", normed).reshape(-1, c.kv_heads, c.head_dim)
        if c.architecture == "qwen3":
            q, k = self._norm(f"{blk}.attn_q_norm", q), self._norm(f"{blk}.attn_k_norm", k)
        out = np.empty((len(x), c.heads * c.head_dim))
        for (start, end), sequence in zip(spans, sequences):
            positions = np.arange(sequence.past, sequence.past + end - start)
            keys, values = sequence.extend(layer, self._rope(k[start:end], positions).astype(self.dtype), v[start:end])
            out[start:end] = self._attention(self._rope(q[start:end], positions), keys, values)
        x += self._linear(f"{blk}.attn_output", out)

    def _feed_forward_block(self, layer, x):
        """Adds SwiGLU to the residual stream x: (rows, hidden)"""
        blk = f"blk.{layer}"
        for start in range(0, len(x), ROWS_MAX):
            rows = x[start : start + ROWS_MAX]
            normed = self._norm(f"{blk}.ffn_norm", rows)
            gate = self._linear(f"{blk}.ffn_gate", normed)
            with np.errstate(over="ignore"):  # exp(-gate) = inf is silu = -0, which is right.
                gate = gate / (1 + np.exp(-gate))
            rows += self._linear(f"{blk}.ffn_down", gate * self._linear(f"{blk}.ffn_up", normed))

    def advance(self, sequences, tokens):
        """Runs new tokens of each sequence; returns the normed final hidden rows of each, (tokens, hidden) f64."""
        ends = np.cumsum([len(ids) for ids in tokens])
        spans = [(int(end) - len(ids), int(end)) for ids, end in zip(tokens, ends)]
        x = self.weight("token_embd.weight")[np.concatenate(tokens)].astype(np.float64)
        for layer in range(self.config.layers):
            self._attention_block(layer, x, spans, sequences)
            self._feed_forward_block(layer, x)
        for sequence, ids in zip(sequences, tokens):
            sequence.past += len(ids)
        x = self._norm("output_norm", x)
        return [x[start:end] for start, end in spans]

    def new_sequence(self):
        """A sequence without a past."""
        return Sequence(self.config.layers)

    def hidden(self, tokens):
        """The normed final hidden rows of whole sequences: a list of (tokens, hidden)."""
        return self.advance([self.new_sequence() for _ in tokens], tokens)

    def logits(self, hidden):
        """(rows, hidden) to (rows, vocab)"""
        head = "output" if "output.weight" in self.tensors else "token_embd"
        return self._linear(head, hidden)

    def greedy(self, prompts, count):
        """`count` tokens after each prompt, always the likeliest; all prompts at once, without regard to EOS."""
        sequences = [self.new_sequence() for _ in prompts]
        step, out = [np.asarray(p) for p in prompts], [[] for _ in prompts]
        for _ in range(count):
            last = np.concatenate([rows[-1:] for rows in self.advance(sequences, step)])
            step = [np.array([token]) for token in self.logits(last).argmax(axis=1)]
            for ids, token in zip(out, step):
                ids.append(int(token[0]))
        return out


def main():
    model = Exact(sys.argv[1])
    logits = model.logits(model.hidden([np.array([int(token) for token in sys.argv[2:]])])[0][-1:])[0]
    for token in np.argsort(-logits)[:5]:
        print(f"{token:8d} {logits[token]:.6f}")


if __name__ == "__main__":
    main()
