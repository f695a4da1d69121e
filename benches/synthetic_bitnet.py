"""Writes a BitNet of the shape of bitnet-b1.58-2B-4T with random weights, for speed: no download, and a file that
llama.cpp runs too.

    python benches/synthetic_bitnet.py OUT.gguf [--type TQ2_0] [--embedding Q6_K] [--layers 30]     (numpy, gguf)

The architecture is `bitnet`, which has SiLU where bitnet-b1.58-2B-4T has squared ReLU: the only BitNet of llama.cpp. There
is no vocabulary. Codes are random, each as likely as the others, with one scale for all.
"""

import argparse

import gguf
import numpy as np

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, HEAD_DIM, VOCAB = 2560, 6912, 20, 5, 128, 128256
TYPES = gguf.GGMLQuantizationType
POOL = 1 << 14  # Blocks that differ; then they repeat.
SCALE = 0.02


def half_bytes(values):
    return np.asarray(values, np.float16).reshape(-1, 1).view(np.uint8)


def pool(rng, kind):
    """Random blocks of a type."""
    length, size = gguf.GGML_QUANT_SIZES[kind]
    if kind == TYPES.F16:
        return half_bytes(rng.standard_normal(POOL) * SCALE)
    if kind in (TYPES.TQ1_0, TYPES.TQ2_0):
        codes = rng.integers(-1, 2, (POOL, length)).astype(np.float32)
        codes[:, 0] = 1  # The package's quantizer takes the largest value as the scale.
        return gguf.quants.quantize(codes * np.float32(np.float16(SCALE)), kind).reshape(POOL, size)
    if kind == TYPES.Q8_0:
        values = (rng.standard_normal((POOL, length)) * SCALE).astype(np.float32)
        return gguf.quants.quantize(values, kind).reshape(POOL, size)
    blocks = rng.integers(0, 256, (POOL, size), dtype=np.uint8)
    blocks[:, 208:] = half_bytes(np.full(POOL, SCALE / (18.5 * 74)))
    return blocks


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--type", default="TQ2_0", choices=["TQ1_0", "TQ2_0"])
    parser.add_argument("--embedding", default="Q6_K", choices=["F16", "Q8_0", "Q6_K"])
    parser.add_argument("--layers", type=int, default=30)
    arguments = parser.parse_args()
    rng = np.random.default_rng(1)
    pools = {name: pool(rng, TYPES[name]) for name in (arguments.type, arguments.embedding)}

    writer = gguf.GGUFWriter(arguments.out, "bitnet")
    writer.add_context_length(4096)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(arguments.layers)
    writer.add_feed_forward_length(INTERMEDIATE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(500000.0)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_vocab_size(VOCAB)
    writer.add_tokenizer_model("no_vocab")

    def matrix(name, rows, columns, kind):
        length, size = gguf.GGML_QUANT_SIZES[TYPES[kind]]
        blocks = np.resize(pools[kind], (rows * columns // length, size))
        writer.add_tensor(name, blocks.reshape(rows, columns // length * size), raw_dtype=TYPES[kind])

    def ones(name, length):
        writer.add_tensor(name, np.ones(length, np.float32))

    matrix("token_embd.weight", VOCAB, HIDDEN, arguments.embedding)
    ones("output_norm.weight", HIDDEN)
    for layer in range(arguments.layers):
        prefix = f"blk.{layer}."
        for name in ("attn_norm", "attn_sub_norm", "ffn_norm"):
            ones(f"{prefix}{name}.weight", HIDDEN)
        ones(f"{prefix}ffn_sub_norm.weight", INTERMEDIATE)
        for name, rows, columns in [
            ("attn_q", HIDDEN, HIDDEN),
            ("attn_k", KV_HEADS * HEAD_DIM, HIDDEN),
            ("attn_v", KV_HEADS * HEAD_DIM, HIDDEN),
            ("attn_output", HIDDEN, HIDDEN),
            ("ffn_gate", INTERMEDIATE, HIDDEN),
            ("ffn_up", INTERMEDIATE, HIDDEN),
            ("ffn_down", HIDDEN, INTERMEDIATE),
        ]:
            matrix(f"{prefix}{name}.weight", rows, columns, arguments.type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


main()
