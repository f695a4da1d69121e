"""A CUDA device beside the CPU and beside exact arithmetic: how far its logits are off, and where greedy texts part.

    cargo build --release --features cuda
    python tests/reference/devices.py MODEL.gguf [--tokens 64] [--texts 24] [--device 0]     (numpy)

For each prompt of prompts.json, as it stands and as a chat message, up to so many of the likeliest tokens on the CPU and on
the device, which decodes tokens of its own choice. Where they part, it prints the two tokens and by how much exact logits
(f32 weights and activations, on the CPU) prefer the CPU's: far above what the engines are off by, that is a bug.

Then the logits after every token of these texts against exact ones: mean KL divergence, the 99th percentile, how often
the likeliest token is the same; for the CPU, for the device's prefill, and for its decode.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from edgellm import Model

CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


def log_softmax(logits):
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def generated(model, ids):
    """Logits after every token, each but the first taken as generated."""
    model.rewind()
    model.append(ids[:1])
    out = np.empty((len(ids), model.vocab), np.float32)
    for row, token in enumerate(ids):
        if row > 0:
            model.accept(token)
        model.forward()
        out[row] = model.logits()
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--texts", type=int, default=24)
    parser.add_argument("--device", type=int, default=0)
    arguments = parser.parse_args()
    cpu, gpu = Model(arguments.model, 0), Model(arguments.model, 0, device=arguments.device)
    exact = Model(arguments.model, 0, exact=True)
    prompts = json.loads(Path(__file__).with_name("prompts.json").read_text())
    half = arguments.texts // 2
    texts = prompts["raw"][:half] + [CHAT.format(text) for text in prompts["chat"][:half]]
    equal, margins = 0, []
    off = {"CPU": [], "device, prefill": [], "device, decode": []}
    for text in texts:
        ids = cpu.tokenize(text, special=True)
        expected, found = cpu.greedy(ids, arguments.tokens), gpu.greedy(ids, arguments.tokens)
        whole = ids + expected
        reference = log_softmax(exact.logits_of(whole))
        at = next((i for i, (a, b) in enumerate(zip(expected, found)) if a != b), None)
        equal += at is None
        if at is not None:
            row = reference[len(ids) + at - 1]
            margins.append(row[expected[at]] - row[found[at]])
            print(f"{text[-32:]!r} parts at token {at}: {expected[at]}, {found[at]}; exact margin {margins[-1]:.3f}")
        sides = (cpu.logits_of(whole), gpu.logits_of(whole), generated(gpu, whole))
        for side, logits in zip(off.values(), sides):
            found = log_softmax(logits)
            kl = (np.exp(reference) * (reference - found)).sum(axis=1)
            side += zip(kl, found.argmax(axis=1) == reference.argmax(axis=1))
    print(f"{equal} of {len(texts)} texts equal; margins: {' '.join(f'{margin:.3f}' for margin in sorted(margins))}")
    for name, values in off.items():
        kl, same = np.array(values).T
        print(f"{name:16} KL {kl.mean():.5f}, 99 % {np.percentile(kl, 99):.4f}, top-1 {100 * same.mean():.2f} %")


main()
