"""Makes tests/reference/fixtures/bitnet-*: tiny random BitNet models as GGUF and transformers' logits for them.

    python tests/reference/make_bitnet_fixtures.py
        (numpy 2.4, gguf 0.19, torch 2.15, transformers 5.24, accelerate; CPU)

The files are those of make_fixtures.py. transformers runs in float64, except that it rounds to float32 in its norms,
its RoPE tables, its softmax and where it makes int8 codes.

| name        | architecture        | weights                                  | embedding | covers                    |
|-------------|---------------------|------------------------------------------|-----------|---------------------------|
| bitnet-i2_s | bitnet-b1.58, relu2 | I2_S, f32 scale; bf16 masters, `online`  | F32, tied | two query heads a kv head |
| bitnet-tq2  | bitnet, SiLU        | TQ2_0, f16 scale; packed, `offline`      | F16, tied | one kv head for all       |

A correct program in f32 may take another int8 code than transformers where a value lies between two codes, which moves
logits by a hundred times more than all other rounding. So the tokens are chosen, one after the other, such that no
value of any layer is that near: none is within MARGIN of the middle between two codes, about ten times f32's error
there. What is left is f32's rounding, and the tests' tolerance is that of all other architectures.

The script fails when bitnet.py, which shares nothing with transformers, does not agree with the logits.
"""

import os

os.environ["TORCHDYNAMO_DISABLE"] = "1"  # transformers would compile its rounding of activations, which takes long.

import json
import tempfile
from pathlib import Path

import gguf_file
import numpy as np
import torch
import transformers
from bitnet import Bitnet, margin, masters_to_ternary
from safetensors.torch import save_file

FIXTURES = Path(__file__).parent / "fixtures"
TOKENS = 96
MARGIN = 4e-4
SHAPE = {"num_hidden_layers": 2, "vocab_size": 64, "tie_word_embeddings": True, "num_attention_heads": 4}
FIXTURE_MODELS = {
    "bitnet-i2_s": (
        SHAPE | {"hidden_size": 128, "intermediate_size": 384, "num_key_value_heads": 2, "hidden_act": "relu2"},
        "online", "bitnet-b1.58", "I2_S", gguf_file.F32,
    ),
    "bitnet-tq2": (
        SHAPE | {"hidden_size": 256, "intermediate_size": 256, "num_key_value_heads": 1, "hidden_act": "silu"},
        "offline", "bitnet", "TQ2_0", gguf_file.F16,
    ),
}  # fmt: skip


def tensor_shapes(config):
    """Every parameter of a BitNet model."""
    c, hidden, ffn = config, config["hidden_size"], config["intermediate_size"]
    kv = hidden // c["num_attention_heads"] * c["num_key_value_heads"]
    yield "model.embed_tokens.weight", (c["vocab_size"], hidden)
    for n in range(c["num_hidden_layers"]):
        for name, shape in {
            "input_layernorm": (hidden,), "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden), "self_attn.attn_sub_norm": (hidden,),
            "self_attn.o_proj": (hidden, hidden), "post_attention_layernorm": (hidden,),
            "mlp.gate_proj": (ffn, hidden), "mlp.up_proj": (ffn, hidden),
            "mlp.ffn_sub_norm": (ffn,), "mlp.down_proj": (hidden, ffn),
        }.items():  # fmt: skip
            yield f"model.layers.{n}.{name}.weight", shape
    yield "model.norm.weight", (hidden,)


def random_folder(folder, config, mode, seed):
    """A random model as a Hugging Face folder: bf16 masters (`online`) or packed weights (`offline`)."""
    torch.manual_seed(seed)
    tensors = {}
    for name, shape in tensor_shapes(config):
        stem = name.removesuffix(".weight")
        value = torch.randn(shape)
        if len(shape) == 1:
            tensors[name] = (1 + 0.2 * value).bfloat16()
            continue
        gain = 2.0 if "q_proj" in name or "k_proj" in name else 1.0  # Attention is to be sharp.
        value = (gain * shape[-1] ** -0.5 * value).bfloat16()
        tensors[name] = value
        if mode == "offline" and "_proj" in name:
            codes, scale = masters_to_ternary(value.float().numpy())
            parts = torch.from_numpy((codes + 1).astype(np.uint8)).chunk(4)
            tensors[name] = parts[0] | parts[1] << 2 | parts[2] << 4 | parts[3] << 6
            tensors[f"{stem}.weight_scale"] = torch.tensor([scale]).bfloat16()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    quantization = {"quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": mode}
    whole = {"architectures": ["BitNetForCausalLM"], "model_type": "bitnet", "rms_norm_eps": 1e-5}
    whole |= {"rope_theta": 10000.0, "max_position_embeddings": 2048, "torch_dtype": "bfloat16"}
    whole |= {"quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(whole | config))


def load_transformers(folder, dtype):
    """The model with every weight in one dtype: from_pretrained leaves what is not packed in the file's bf16."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager")
    return torch.nn.Module.to(model.eval(), dtype)


def write_gguf(path, folder, architecture, ternary, embedding):
    """The folder's model as GGUF, without a vocabulary."""
    model = Bitnet(folder)
    c = model.config
    hidden = model.values["output_norm"].shape[0]
    file = gguf_file.File()
    file.set("general.architecture", 8, architecture)
    file.set("general.name", 8, f"fixture {path.stem}")
    for key, value in {
        "context_length": 2048, "embedding_length": hidden, "block_count": c.layers,
        "feed_forward_length": model.values["blk.0.ffn_sub_norm"].shape[0], "attention.head_count": c.heads,
        "attention.head_count_kv": c.kv_heads, "rope.dimension_count": c.head_dim,
        "vocab_size": model.values["token_embd"].shape[0],
    }.items():  # fmt: skip
        file.set(f"{architecture}.{key}", 4, value)
    file.set(f"{architecture}.attention.layer_norm_rms_epsilon", 6, c.epsilon)
    file.set(f"{architecture}.rope.freq_base", 6, c.rope_base)
    file.set("tokenizer.ggml.model", 8, "no_vocab")
    for name, value in model.values.items():
        kind = embedding if name == "token_embd" else gguf_file.F32
        file.tensors[f"{name}.weight"] = gguf_file.quantize(value, kind)
    # A down projection last, where the tests find it: no norm follows that would take out a change of its scale.
    for name, (codes, scale) in sorted(model.ternary.items(), key=lambda item: "down" in item[0]):
        file.tensors[f"{name}.weight"] = gguf_file.pack(codes.astype(np.int8), scale, gguf_file.TERNARY[ternary])
    gguf_file.write(path, file)


def choose_tokens(model, vocab, seed):
    """TOKENS ids at which no code of any layer has a margin below MARGIN. What comes later changes nothing before."""
    rng = np.random.default_rng(seed)
    ids = []
    while len(ids) < TOKENS:
        for candidate in rng.permutation(vocab):
            margins = []

            def look(n, site, codes, offsets, margins=margins):
                margins.append(margin(offsets[-1]).min())
                return codes

            model.residuals([*ids, candidate], look)
            if min(margins) >= MARGIN:
                ids.append(int(candidate))
                break
        else:
            raise SystemExit(f"no token fits at position {len(ids)}: another seed, please")
    return np.array(ids)


def main():
    torch.set_num_threads(1)
    for seed, (name, (config, mode, architecture, ternary, embedding)) in enumerate(FIXTURE_MODELS.items()):
        with tempfile.TemporaryDirectory() as folder:
            random_folder(Path(folder), config, mode, seed)
            write_gguf(FIXTURES / f"{name}.gguf", Path(folder), architecture, ternary, embedding)
            reference = load_transformers(folder, torch.float64)
        model = Bitnet(FIXTURES / f"{name}.gguf")
        ids = choose_tokens(model, config["vocab_size"], seed)
        with torch.no_grad():
            golden = reference(torch.tensor(ids)[None]).logits[0].numpy()
        ids.astype("<u4").tofile(FIXTURES / f"{name}.ids")
        golden.astype("<f4").tofile(FIXTURES / f"{name}.logits")
        scale = np.abs(golden).max()
        error = np.abs(model.logits(ids) - golden).max() / scale
        print(f"{name:13} largest logit {scale:.3f}, bitnet.py differs by at most {error:.1e} of it")
        assert error < 5e-6, name  # NaN fails too.


if __name__ == "__main__":
    main()
