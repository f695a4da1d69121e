"""Writes a model of a real one's shape with random weights, for speed: no download, and a file that llama.cpp runs too.

    python benches/synthetic_model.py SHAPE OUT.gguf [--type Q4_0] [--embedding TYPE] [--layers N]     (numpy, gguf)

The head is tied to the embedding, whose type is that of the other matrices unless said. Rows that are no multiple of
256 are Q8_0 where a type of such blocks is asked for. There is no vocabulary. Codes are random, each as likely as the
others; ternary ones have one scale for all.

`bitnet2b` is bitnet-b1.58-2B-4T as the architecture `bitnet`, which has SiLU where that model has squared ReLU: the only
BitNet of llama.cpp.
"""

import argparse

import gguf
import numpy as np

#            architecture, layers, hidden, heads, kv heads, intermediate, vocabulary
SHAPES = {
    "qwen0.5b": ("qwen2", 24, 896, 14, 2, 4864, 151936),
    "qwen1.5b": ("qwen2", 28, 1536, 12, 2, 8960, 151936),
    "qwen3b": ("qwen2", 36, 2048, 16, 2, 11008, 151936),
    "llama1b": ("llama", 16, 2048, 32, 8, 8192, 128256),
    "bitnet2b": ("bitnet", 30, 2560, 20, 5, 6912, 128256),
}
ROPE_BASE = {"qwen2": 1e6, "llama": 5e5, "bitnet": 5e5}
TYPES = gguf.GGMLQuantizationType
POOL = 1 << 14  # Blocks that differ; then they repeat.
SCALE = 0.02  # Standard deviation of the weights, about.
#          where the scales are in a block, and what a block's codes are worth in units of them (standard deviation)
SCALES = {
    "Q4_0": [(0, 4.6)],
    "Q8_0": [(0, 74.0)],
    "Q4_K": [(0, 170.0), (2, 1300.0)],
    "Q6_K": [(208, 18.5 * 74)],
}


def half_bytes(values):
    return np.asarray(values, np.float16).reshape(-1, 1).view(np.uint8)


def pool(rng, name):
    """Random blocks of a type."""
    kind = TYPES[name]
    length, size = gguf.GGML_QUANT_SIZES[kind]
    if name == "F16":
        return half_bytes(rng.standard_normal(POOL) * SCALE)
    if name in ("TQ1_0", "TQ2_0"):
        codes = rng.integers(-1, 2, (POOL, length)).astype(np.float32)
        codes[:, 0] = 1  # The package's quantizer takes the largest value as the scale.
        return gguf.quants.quantize(codes * np.float32(np.float16(SCALE)), kind).reshape(POOL, size)
    blocks = rng.integers(0, 256, (POOL, size), dtype=np.uint8)
    for at, deviation in SCALES[name]:
        blocks[:, at : at + 2] = half_bytes(SCALE / deviation * (0.5 + rng.random(POOL)))
    return blocks


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("out")
    parser.add_argument("--type", choices=["Q4_0", "Q4_K", "Q8_0", "TQ1_0", "TQ2_0"])
    parser.add_argument("--embedding", choices=["F16", "Q4_0", "Q4_K", "Q6_K", "Q8_0"])
    parser.add_argument("--layers", type=int)
    arguments = parser.parse_args()
    architecture, layers, hidden, heads, kv_heads, intermediate, vocabulary = SHAPES[arguments.shape]
    ternary = architecture == "bitnet"
    types = arguments.type or ("TQ2_0" if ternary else "Q4_0")
    embedding = arguments.embedding or ("Q6_K" if ternary else types)
    head_dim = hidden // heads
    rng = np.random.default_rng(1)
    pools = {}

    writer = gguf.GGUFWriter(arguments.out, architecture)
    writer.add_context_length(4096 if ternary else 32768)
    writer.add_embedding_length(hidden)
    writer.add_block_count(arguments.layers or layers)
    writer.add_feed_forward_length(intermediate)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5 if ternary else 1e-6)
    writer.add_rope_freq_base(ROPE_BASE[architecture])
    writer.add_rope_dimension_count(head_dim)
    writer.add_vocab_size(vocabulary)
    writer.add_tokenizer_model("no_vocab")

    def matrix(name, rows, columns, kind):
        if columns % gguf.GGML_QUANT_SIZES[TYPES[kind]][0]:
            kind = "Q8_0"
        length, size = gguf.GGML_QUANT_SIZES[TYPES[kind]]
        if kind not in pools:
            pools[kind] = pool(rng, kind)
        blocks = np.resize(pools[kind], (rows * columns // length, size))
        writer.add_tensor(name, blocks.reshape(rows, columns // length * size), raw_dtype=TYPES[kind])

    def vector(name, length, values=None):
        writer.add_tensor(name, np.ones(length, np.float32) if values is None else values.astype(np.float32))

    matrix("token_embd.weight", vocabulary, hidden, embedding)
    vector("output_norm.weight", hidden)
    for layer in range(arguments.layers or layers):
        prefix = f"blk.{layer}."
        for name in ("attn_norm", "ffn_norm", *(["attn_sub_norm"] if ternary else [])):
            vector(f"{prefix}{name}.weight", hidden)
        if ternary:
            vector(f"{prefix}ffn_sub_norm.weight", intermediate)
        for name, rows, columns in [
            ("attn_q", hidden, hidden),
            ("attn_k", kv_heads * head_dim, hidden),
            ("attn_v", kv_heads * head_dim, hidden),
            ("attn_output", hidden, hidden),
            ("ffn_gate", intermediate, hidden),
            ("ffn_up", intermediate, hidden),
            ("ffn_down", hidden, intermediate),
        ]:
            matrix(f"{prefix}{name}.weight", rows, columns, types)
            if architecture == "qwen2" and name in ("attn_q", "attn_k", "attn_v"):
                vector(f"{prefix}{name}.bias", rows, rng.standard_normal(rows) * 0.1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


main()
