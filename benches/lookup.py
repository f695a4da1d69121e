"""Prompt lookup: is the text the same, and how much sooner does it come?

    pip install numpy
    cargo build --release
    python benches/lookup.py MODEL.gguf [--threads 2] [--rounds 3] [--max-tokens 400] [--json OUT.json]

Greedy generations in which much of the text was there before (code to be edited, JSON to be echoed) and one in which it was
not (prose), each with and without EDGELLM_SAMPLING_PROMPT_LOOKUP, in turns. The rate is that of the tokens after the first, of
which the time is that of their steps; a ratio is that of the medians of the rounds. The model's template is taken to be ChatML.
"""

import argparse
import ctypes
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "reference"))

from edgellm import Model

CODE = '''import time


class Motor:
    """One wheel's motor behind a serial line."""

    def __init__(self, port, gear_ratio=30.0):
        self.port = port
        self.gear_ratio = gear_ratio
        self.speed = 0.0
        self.last_update = time.monotonic()

    def set_speed(self, radians_per_second):
        """Sets the speed of the wheel, in radians per second."""
        ticks = int(radians_per_second * self.gear_ratio * 1024 / 6.28318)
        self.port.write(f"S{ticks}\\n".encode())
        self.speed = radians_per_second
        self.last_update = time.monotonic()

    def stop(self):
        """Stops the wheel."""
        self.port.write(b"S0\\n")
        self.speed = 0.0
        self.last_update = time.monotonic()

    def position(self):
        """Reads the position of the wheel, in radians."""
        self.port.write(b"P\\n")
        ticks = int(self.port.readline())
        return ticks * 6.28318 / (self.gear_ratio * 1024)
'''

RECORD = json.dumps(
    {
        "robot": "carrier-7",
        "battery": {"volts": 24.6, "percent": 81, "charging": False},
        "pose": {"x": 12.25, "y": -3.5, "yaw": 1.57},
        "tasks": [
            {"id": 101, "action": "pick", "object": "blue crate", "from": "shelf A3"},
            {"id": 102, "action": "goto", "place": "loading dock"},
            {"id": 103, "action": "place", "object": "blue crate", "to": "pallet 2"},
        ],
        "sensors": [{"name": "lidar", "ok": True}, {"name": "bumper", "ok": True}, {"name": "imu", "ok": False}],
    },
    indent=2,
)

PROMPTS = {
    "code, a method renamed": f"Rename the method `stop` to `halt` and answer with the whole file, nothing else.\n\n```python\n{CODE}```",
    "code, a parameter added": f"Give set_speed a parameter `limit=20.0` that bounds the speed. Answer with the whole file.\n\n```python\n{CODE}```",
    "JSON, a value changed": f"Set battery.percent to 79 and answer with the whole JSON, nothing else.\n\n{RECORD}",
    "JSON, repeated": f"Repeat this JSON exactly, nothing else.\n\n{RECORD}",
    "prose": "Tell a short story of a robot that learns to bake bread.",
}


class Generator:
    """A model with a session."""

    def __init__(self, path, threads, max_tokens):
        self.model = Model(path, threads, context=2048)
        self.lib, self.max_tokens = self.model.library, max_tokens
        pointer = ctypes.c_void_p
        for name, arguments in {
            "edgellm_session_sampling": [pointer, pointer],
            "edgellm_session_prompt": [pointer, pointer, ctypes.c_size_t, pointer],
            "edgellm_session_stats": [pointer, pointer, ctypes.c_uint32],
            "edgellm_step": [pointer, pointer],
        }.items():
            getattr(self.lib.c, name).argtypes = arguments

    def run(self, prompt, lookup):
        """The text, tokens per second after the first, and how many were drafted and accepted."""
        lib, session = self.lib, self.model.session
        flags = lib.constants["SAMPLING_PROMPT_LOOKUP"] if lookup else 0
        sampling = lib.new("sampling", flags=flags, max_tokens=self.max_tokens)
        lib.check(lib.c.edgellm_session_sampling(session, ctypes.byref(sampling)))
        ids = (ctypes.c_int32 * len(prompt))(*prompt)
        lib.check(lib.c.edgellm_session_prompt(session, ids, len(prompt), None))
        event, stats = lib.new("event"), lib.new("stats")
        lib.check(lib.c.edgellm_session_stats(session, ctypes.byref(stats), 1))
        text, times = b"", []
        while True:
            status = lib.check(lib.c.edgellm_step(session, ctypes.byref(event)))
            text += ctypes.string_at(event.text.ptr, event.text.len) if event.text.len else b""
            if event.token >= 0:
                times.append(event.ns)
            if status == lib.constants["END"]:
                break
        lib.check(lib.c.edgellm_session_stats(session, ctypes.byref(stats), 0))
        rate = 1e9 * (len(times) - 1) / sum(times[1:])
        return text.decode(errors="replace"), rate, len(times), stats.tokens_drafted, stats.tokens_accepted


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--max-tokens", type=int, default=400)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    generator = Generator(arguments.model, arguments.threads, arguments.max_tokens)
    rows, same = [], True
    print("| prompt | tokens | drafted | accepted | tokens/s without | with | ratio | text |\n|---|---|---|---|---|---|---|---|")
    for what, asked in PROMPTS.items():
        chat = f"<|im_start|>user\n{asked}<|im_end|>\n<|im_start|>assistant\n"
        prompt = generator.model.tokenize(chat, special=True)
        found = {False: [], True: []}
        for turn in range(arguments.rounds):
            for lookup in (False, True) if turn % 2 == 0 else (True, False):
                found[lookup].append(generator.run(prompt, lookup))
        texts = {run[0] for runs in found.values() for run in runs}
        without, with_ = (statistics.median(run[1] for run in found[lookup]) for lookup in (False, True))
        _, _, tokens, drafted, accepted = found[True][0]
        same &= len(texts) == 1
        print(f"| {what} | {tokens} | {drafted} | {accepted} | {without:.2f} | {with_:.2f} | {with_ / without:.2f} | {'same' if len(texts) == 1 else 'DIFFERS'} |", flush=True)
        rows.append({"prompt": what, "tokens": tokens, "drafted": drafted, "accepted": accepted, "without": [run[1] for run in found[False]], "with": [run[1] for run in found[True]]})
    if arguments.json:
        arguments.json.write_text(json.dumps(rows))
    sys.exit(not same)


main()
