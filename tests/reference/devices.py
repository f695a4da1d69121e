"""Greedy text of a CUDA device beside the CPU's, where they part, and how near a tie the CPU was there.

    cargo build --release --features cuda
    python tests/reference/devices.py MODEL.gguf [--tokens 64] [--device 0]     (numpy)

For each prompt of prompts.json, as it stands and as a chat message: up to so many of the likeliest tokens on the CPU, and
on the device, which decodes tokens of its own choice. At the first difference it prints the two tokens and by how much the
CPU's logits differ; a difference far above the int8 activations' error (some 0.1 where logits are around 20) is a bug.
"""

import argparse
import json
from pathlib import Path

from edgellm import Model

CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--device", type=int, default=0)
    arguments = parser.parse_args()
    cpu = Model(arguments.model, 0, device=-2)
    gpu = Model(arguments.model, 0, device=arguments.device)
    prompts = json.loads(Path(__file__).with_name("prompts.json").read_text())
    equal = total = 0
    margins = []
    for text in prompts["raw"] + [CHAT.format(text) for text in prompts["chat"]]:
        ids = cpu.tokenize(text, special=True)
        expected, found = cpu.greedy(ids, arguments.tokens), gpu.greedy(ids, arguments.tokens)
        total += 1
        at = next((i for i, (a, b) in enumerate(zip(expected, found)) if a != b), None)
        if at is None:
            equal += 1
            continue
        cpu.rewind()
        cpu.append(ids + expected[:at])
        cpu.forward()
        logits = cpu.logits()
        margin = float(logits[expected[at]] - logits[found[at]])
        margins.append(margin)
        words = [cpu.detokenize([token[at]], special=True) for token in (expected, found)]
        print(f"parts at token {at:3}, margin {margin:.3f} of {logits.max():.1f}: {words[0]!r} {words[1]!r} after {text[-40:]!r}")
    print(f"{equal} of {total} texts equal; margins where they part: {sorted(round(margin, 3) for margin in margins)}")


main()
