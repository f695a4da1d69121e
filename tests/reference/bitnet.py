"""BitNet in f64 with the quantised arithmetic of its definition: what this library and transformers approximate.

Before every ternary matrix the activations x of a token are rounded to f32 and to int8:

    a = max(max |x|, 1e-5)      codes = clamp(round_half_even(x * (127 / a)), -128, 127), product and quotient in f32

and y = (codes · ternary codes) * a / 127 * scale, where the sum is one of integers. Everything else, norms, RoPE,
softmax, the gated activation, sums, is f64: what the library's exact mode approximates. What it does by default comes
with `default`: keys and values are rounded to f16, and of the activations before a head in blocks (Q8_0, Q6_K) each 32
are rounded to int8.

Only the codes round, so two correct programs differ by the last bits of f32 until a value lies so near to the middle
between two codes that they take different ones: a flip, which changes a value by 1/127 of the token's largest. Every
code therefore comes with its offset, what rounding took away, -0.5 to 0.5; its margin is how far that is from a half.
And `adjust` replaces codes, so that flips can be counted, searched for and undone.

Architectures: bitnet-b1.58, bitnet-25 (squared ReLU), bitnet (SiLU), llama (adjacent RoPE pairs, no sub-norms).

    python tests/reference/bitnet.py MODEL 1 2 3      five best next tokens after these, of a GGUF file or a folder
                                                      of Hugging Face's
"""

import json
import math
import struct
import sys
from dataclasses import dataclass
from pathlib import Path

import gguf_file
import numpy as np

SITES = ("attn_in", "attn_out", "ffn_in", "ffn_out")  # Where a layer makes codes: before q, k, v; o; gate, up; down.
_HF_LAYER = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "self_attn.attn_sub_norm": "attn_sub_norm",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "mlp.ffn_sub_norm": "ffn_sub_norm", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip
_HF_WHOLE = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


@dataclass
class Config:
    """What decides the arithmetic."""

    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    rope_base: float
    epsilon: float
    activation: str  # relu2 or silu.
    sub_norms: bool = True
    adjacent: bool = False  # RoPE pairs.


def gguf_name(name):
    """A transformers name, without its last part, in GGUF."""
    if name in _HF_WHOLE:
        return _HF_WHOLE[name]
    _, _, layer, part = name.split(".", 3)
    return f"blk.{layer}.{_HF_LAYER[part]}"


def read_gguf(path):
    """Config, ternary matrices (codes, scales) and other tensors (values, or blocks undequantized) of a GGUF file."""
    file = gguf_file.read(path)
    arch = file.value("general.architecture")
    known = {"bitnet-b1.58": "relu2", "bitnet-25": "relu2", "bitnet": "silu", "llama": "silu"}
    heads = file.value(f"{arch}.attention.head_count")
    config = Config(
        layers=file.value(f"{arch}.block_count"),
        heads=heads,
        kv_heads=file.value(f"{arch}.attention.head_count_kv", heads),
        head_dim=file.value(f"{arch}.attention.key_length", file.value(f"{arch}.embedding_length") // heads),
        rope_base=file.value(f"{arch}.rope.freq_base", 10000.0),
        epsilon=file.value(f"{arch}.attention.layer_norm_rms_epsilon"),
        activation=known[arch],
        sub_norms=arch != "llama",
        adjacent=arch == "llama",
    )
    ternary, plain = {}, {}
    for name, tensor in file.tensors.items():
        if tensor.kind in gguf_file.TERNARY.values():
            ternary[name.removesuffix(".weight")] = gguf_file.unpack(tensor)
        else:
            plain[name.removesuffix(".weight")] = tensor
    return config, ternary, plain


def read_safetensors(path):
    """Every tensor by name, bf16 as f32."""
    data = Path(path).read_bytes()
    (length,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8 : 8 + length])
    kinds = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "U8": "u1"}
    tensors = {}
    for name, info in header.items():
        if name == "__metadata__":
            continue
        start, end = info["data_offsets"]
        values = np.frombuffer(data[8 + length + start : 8 + length + end], kinds[info["dtype"]])
        if info["dtype"] == "BF16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        tensors[name] = values.reshape(info["shape"])
    return tensors


def masters_to_ternary(w):
    """Codes and scale of float weights, as transformers makes them at run time (`online`)."""
    inverse = np.float32(1) / np.float32(max(np.abs(w.astype(np.float64)).mean(), 1e-5))
    return np.clip(np.rint(w.astype(np.float32) * inverse), -1, 1).astype(np.int8), 1 / np.float64(inverse)


def read_folder(folder):
    """The same of a folder of Hugging Face's: packed weights or float masters."""
    folder = Path(folder)
    c = json.loads((folder / "config.json").read_text())
    quantization = c.get("quantization_config", {})
    assert c.get("rope_scaling") is None
    rope_base = c.get("rope_theta") or c["rope_parameters"]["rope_theta"]
    heads = c["num_attention_heads"]
    config = Config(
        layers=c["num_hidden_layers"], heads=heads, kv_heads=c["num_key_value_heads"],
        head_dim=c.get("head_dim") or c["hidden_size"] // heads, rope_base=rope_base, epsilon=c["rms_norm_eps"],
        activation=c["hidden_act"],
    )  # fmt: skip
    tensors = read_safetensors(folder / "model.safetensors")
    ternary, plain = {}, {}
    for name, values in tensors.items():
        stem, part = name.rsplit(".", 1)
        if part == "weight_scale":
            continue
        if values.dtype == np.uint8:
            codes = np.concatenate([(values >> shift & 3).astype(np.int8) - 1 for shift in (0, 2, 4, 6)])
            scale = np.float64(tensors[f"{stem}.weight_scale"][0])
            multiplies = quantization.get("linear_class", "bitlinear") == "autobitlinear"
            ternary[gguf_name(stem)] = codes, scale if multiplies else 1 / scale
        elif "_proj" in stem:
            ternary[gguf_name(stem)] = masters_to_ternary(values)
        else:
            plain[gguf_name(stem)] = gguf_file.Tensor(values.shape, gguf_file.F32, values.astype("<f4").tobytes())
    return config, ternary, plain


def quantize_token(x):
    """Codes of each row, f32, a / 127 for each, and every code's offset."""
    x = x.astype(np.float32)
    largest = np.maximum(np.abs(x).max(axis=-1, keepdims=True), np.float32(1e-5))
    scaled = x * (np.float32(127) / largest)
    codes = np.clip(np.rint(scaled), -128, 127)
    return codes, largest.astype(np.float64) / 127, scaled - codes


def quantize_blocks(x):
    """What a product with weights in blocks makes of each row's 32 values: codes times max |x| / 127."""
    blocks = x.astype(np.float32).reshape(len(x), -1, 32)
    largest = np.abs(blocks).max(axis=-1, keepdims=True)
    codes = np.rint(blocks * (np.float32(127) / np.maximum(largest, np.float32(1e-30))))
    return (codes.astype(np.float64) * (largest / np.float32(127))).reshape(x.shape)


def margin(offsets):
    """How far codes are from the middle to the next."""
    return 0.5 - np.abs(offsets)


class Bitnet:
    """A model and its arithmetic."""

    def __init__(self, path, default=False):
        self.config, ternary, self.plain = read_folder(path) if Path(path).is_dir() else read_gguf(path)
        self.default = default
        # Integer sums below 2^24 are exact in f32; several scales in a row are exact in f64.
        self.ternary = {}
        for name, (codes, scales) in ternary.items():
            one = np.unique(scales[codes.reshape(*scales.shape, -1).any(axis=-1)] if np.ndim(scales) else scales)
            if len(one) == 1:
                self.ternary[name] = codes.astype(np.float32), np.float64(one[0])
            else:
                self.ternary[name] = codes * np.repeat(scales, 256, axis=1).astype(np.float64), np.float64(1)
        values = {name: gguf_file.dequantize(tensor) for name, tensor in self.plain.items()}
        self.values = {name: value.astype(np.float64) for name, value in values.items()}
        pairs = np.arange(0, self.config.head_dim, 2)
        self.frequencies = self.config.rope_base ** (-pairs / self.config.head_dim)

    def norm(self, name, x):
        """RMSNorm."""
        return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + self.config.epsilon) * self.values[name]

    def linear(self, name, codes, step):
        """(rows, out) of codes and what they stand for."""
        weights, scale = self.ternary[name]
        return (codes.astype(weights.dtype) @ weights.T).astype(np.float64) * step * scale

    def rope(self, x):
        """Rotates (tokens, heads, head_dim)."""
        angles = np.arange(len(x))[:, None, None] * self.frequencies
        cos, sin = np.cos(angles), np.sin(angles)
        half = self.config.head_dim // 2
        first, second = slice(half), slice(half, None)
        if self.config.adjacent:
            first, second = slice(0, None, 2), slice(1, None, 2)
        out = np.empty_like(x)
        a, b = x[..., first], x[..., second]
        out[..., first], out[..., second] = a * cos - b * sin, a * sin + b * cos
        return out

    def attention(self, q, k, v):
        """Causal, of all positions over all. (tokens, heads or kv_heads, head_dim)"""
        if self.default:
            k, v = (x.astype(np.float32).astype(np.float16).astype(np.float64) for x in (k, v))
        group = self.config.heads // self.config.kv_heads
        k, v = (np.repeat(x, group, axis=1).transpose(1, 2, 0) for x in (k, v))  # (heads, head_dim, tokens)
        scores = q.transpose(1, 0, 2) @ k / math.sqrt(self.config.head_dim)
        scores[:, np.triu(np.ones(scores.shape[1:], bool), 1)] = -np.inf
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        scores /= scores.sum(axis=-1, keepdims=True)
        return (scores @ v.transpose(0, 2, 1)).transpose(1, 0, 2).reshape(len(q), -1)

    def layer(self, n, x, adjust=None):
        """The residual stream after layer n. `adjust(n, site, codes, offsets)` returns the codes to take."""
        c, blk = self.config, f"blk.{n}"

        def quantized(site, rows):
            codes, step, offsets = quantize_token(rows)
            return (codes if adjust is None else adjust(n, site, codes, offsets)), step

        def sub_norm(name, rows):
            return self.norm(f"{blk}.{name}", rows) if c.sub_norms else rows

        rows = quantized("attn_in", self.norm(f"{blk}.attn_norm", x))
        q = self.linear(f"{blk}.attn_q", *rows).reshape(len(x), c.heads, -1)
        k = self.linear(f"{blk}.attn_k", *rows).reshape(len(x), c.kv_heads, -1)
        v = self.linear(f"{blk}.attn_v", *rows).reshape(len(x), c.kv_heads, -1)
        attended = sub_norm("attn_sub_norm", self.attention(self.rope(q), self.rope(k), v))
        x = x + self.linear(f"{blk}.attn_output", *quantized("attn_out", attended))
        rows = quantized("ffn_in", self.norm(f"{blk}.ffn_norm", x))
        gate = self.linear(f"{blk}.ffn_gate", *rows)
        if c.activation == "relu2":
            gate = np.maximum(gate, 0) ** 2
        else:
            with np.errstate(over="ignore"):  # exp(-gate) = inf is silu = -0, which is right.
                gate = gate / (1 + np.exp(-gate))
        gated = sub_norm("ffn_sub_norm", gate * self.linear(f"{blk}.ffn_up", *rows))
        return x + self.linear(f"{blk}.ffn_down", *quantized("ffn_out", gated))

    def embed(self, ids):
        """The residual stream before the first layer."""
        return self.values["token_embd"][np.asarray(ids)]

    def head(self, x):
        """Logits of rows of the residual stream."""
        x, name = self.norm("output_norm", x), "output" if "output" in self.plain else "token_embd"
        if self.default and self.plain[name].kind not in (gguf_file.F32, gguf_file.F16, gguf_file.BF16):
            x = quantize_blocks(x)
        return x @ self.values[name].T

    def residuals(self, ids, adjust=None):
        """The residual stream before the first layer and after each."""
        stream = [self.embed(ids)]
        for n in range(self.config.layers):
            stream.append(self.layer(n, stream[-1], adjust))
        return stream

    def logits(self, ids, adjust=None):
        """Logits after every token."""
        return self.head(self.residuals(ids, adjust)[-1])


def main():
    model = Bitnet(sys.argv[1])
    logits = model.logits([int(token) for token in sys.argv[2:]])[-1]
    for token in np.argsort(-logits)[:5]:
        print(f"{token:8d} {logits[token]:.6f}")


if __name__ == "__main__":
    main()
