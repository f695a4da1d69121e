"""Makes tests/reference/fixtures: tiny random models as GGUF and transformers' logits for them.

    python tests/reference/make_fixtures.py            (numpy 2.4, gguf 0.19, torch 2.15, transformers 5.23; CPU)

NAME.gguf       the model, without a vocabulary (tokenizer.ggml.model = no_vocab)
NAME.ids        the token ids, u32 little-endian
NAME.logits     transformers' logits, eager attention in float64 (its norms and RoPE tables stay float32), as f32
                little-endian, (tokens, vocab)

| name         | covers                                                                           | weights |
|--------------|----------------------------------------------------------------------------------|---------|
| qwen3        | q/k norm, head_dim that is not hidden / heads, two query heads per kv head       | BF16    |
| llama3-rope  | rope_type llama3 as rope_freqs.weight, q/k rows permuted to adjacent pairs, tied | F32     |
| llama-linear | linear RoPE scaling, three query heads per kv head                               | F16     |
| qwen2        | QKV bias, tied head, one kv head for all                                         | F32     |

The script fails when exact.py, which shares nothing with transformers, does not agree with the logits.
"""

from pathlib import Path

import gguf
import numpy as np
import torch
import transformers

from exact import Exact, llama3_factors

FIXTURES = Path(__file__).parent / "fixtures"
TOKENS = 96
SHAPE = {"vocab_size": 192, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}


def models():
    """Name, architecture, transformers model, weight type."""
    t = transformers
    yield "qwen3", "qwen3", t.Qwen3ForCausalLM, t.Qwen3Config(
        **SHAPE, num_attention_heads=4, num_key_value_heads=2, head_dim=32, rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
    ), "BF16"
    yield "llama3-rope", "llama", t.LlamaForCausalLM, t.LlamaConfig(
        **SHAPE, num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5, rope_parameters=LLAMA3,
        max_position_embeddings=2048, tie_word_embeddings=True,
    ), "F32"
    yield "llama-linear", "llama", t.LlamaForCausalLM, t.LlamaConfig(
        **SHAPE | {"hidden_size": 96}, num_attention_heads=6, num_key_value_heads=2, rms_norm_eps=1e-5,
        rope_parameters=LINEAR, max_position_embeddings=2048,
    ), "F16"
    yield "qwen2", "qwen2", t.Qwen2ForCausalLM, t.Qwen2Config(
        **SHAPE, num_attention_heads=4, num_key_value_heads=1, rms_norm_eps=1e-6, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
    ), "F32"


def randomize(model, weights):
    """Weights large enough that attention is sharp and every part matters; then rounded to what the file will hold."""
    dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[weights]
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
            elif name.endswith("bias"):
                parameter.copy_(0.5 * torch.randn_like(parameter))
            else:
                gain = 1.5 if "q_proj" in name or "k_proj" in name else 1.0
                parameter.copy_(gain * parameter.shape[-1] ** -0.5 * torch.randn_like(parameter))
                parameter.copy_(parameter.to(dtype).float())


def gguf_name(name):
    """A transformers parameter's name in GGUF."""
    parts = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    whole = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem, kind = name.rsplit(".", 1)
    if stem in whole:
        return f"{whole[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{parts[part]}.{kind}"


def adjacent_pairs(w, heads):
    """Rows of each head from rotate-half order to adjacent pairs, as GGUF's llama wants them."""
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def write(path, arch, model, weights):
    """The model as GGUF v3."""
    c = model.config
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    rope = c.rope_parameters
    w = gguf.GGUFWriter(path, arch)
    w.add_name(f"fixture {path.stem}")
    w.add_context_length(2048)
    w.add_embedding_length(c.hidden_size)
    w.add_block_count(c.num_hidden_layers)
    w.add_feed_forward_length(c.intermediate_size)
    w.add_head_count(c.num_attention_heads)
    w.add_head_count_kv(c.num_key_value_heads)
    w.add_key_length(head_dim)
    w.add_value_length(head_dim)
    w.add_layer_norm_rms_eps(c.rms_norm_eps)
    w.add_rope_dimension_count(head_dim)
    w.add_rope_freq_base(rope["rope_theta"])
    w.add_vocab_size(c.vocab_size)
    w.add_tokenizer_model("no_vocab")
    if rope["rope_type"] == "linear":
        w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        w.add_rope_scaling_factor(rope["factor"])
    if rope["rope_type"] == "llama3":
        keys = ["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]
        factors = llama3_factors(head_dim, rope["rope_theta"], *(rope[key] for key in keys))
        w.add_tensor("rope_freqs.weight", factors.astype(np.float32))
    matrices = {"F32": gguf.GGMLQuantizationType.F32, "F16": gguf.GGMLQuantizationType.F16,
                "BF16": gguf.GGMLQuantizationType.BF16}[weights]  # fmt: skip
    for name, parameter in model.named_parameters():
        value = parameter.detach().numpy()
        if arch == "llama" and ".q_proj" in name:
            value = adjacent_pairs(value, c.num_attention_heads)
        if arch == "llama" and ".k_proj" in name:
            value = adjacent_pairs(value, c.num_key_value_heads)
        kind = matrices if value.ndim == 2 else gguf.GGMLQuantizationType.F32
        w.add_tensor(gguf_name(name), gguf.quants.quantize(value, kind), raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def main():
    FIXTURES.mkdir(exist_ok=True)
    torch.set_num_threads(1)
    for seed, (name, arch, kind, config, weights) in enumerate(models()):
        torch.manual_seed(seed)
        config._attn_implementation = "eager"
        model = kind(config).eval().float()
        randomize(model, weights)
        write(FIXTURES / f"{name}.gguf", arch, model, weights)
        ids = np.random.default_rng(seed).integers(0, config.vocab_size, TOKENS)
        with torch.no_grad():
            golden = model.double()(torch.tensor(ids)[None]).logits[0].numpy()
        ids.astype("<u4").tofile(FIXTURES / f"{name}.ids")
        golden.astype("<f4").tofile(FIXTURES / f"{name}.logits")
        exact = Exact(FIXTURES / f"{name}.gguf", np.float64)
        scale = np.abs(golden).max()
        error = np.abs(exact.logits(exact.hidden([ids])[0]) - golden).max() / scale
        print(f"{name:13} largest logit {scale:.3f}, exact.py differs by at most {error:.1e} of it")
        assert error < 5e-6, name  # NaN fails too.


if __name__ == "__main__":
    main()
