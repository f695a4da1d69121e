"""Speed of libedgellm beside llama.cpp: same file, same threads, same run.

    pip install numpy gguf llama-cpp-python     (CMAKE_ARGS=-DGGML_NATIVE=ON for a native build)
    cargo build --release
    python benches/compare_llama_cpp.py MODEL.gguf... [--threads 1,2] [--repeats 7] [--json OUT.json]

Each side lives in a process of its own, so that neither's idle threads are in the other's way, and they take turns:
A B, B A, A B, ... with a pause before each. Numbers are medians; the page cache is warm; llama.cpp has its default
flags with n_batch = n_ubatch = 512. Neither side samples: the tokens are given.

  decode      tokens/s, one token at a time after a prompt of 16
  prefill     tokens/s of a prompt in one call
  first       ms from before the load to the logits of a 5-token prompt, in a fresh process
  memory      MiB, peak resident size of that process less what it had before the load (the mapped file counts)

Before and after each pair of runs on two or more threads placement_probe.c says whether the machine gives two threads
two cores. Below 1.5 the pair is dropped, both sides of it, and repeated. Nothing else may run on the machine: the load
average before and after is printed to show it.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "tests" / "reference"))

SIDES = ("edgellm", "llama.cpp")
PROMPT = [3 + 7 * i % 1000 for i in range(16)]
PAUSE = 0.3  # Seconds: OpenMP's threads spin for a while after their work.
RATIO_MIN = 1.5
TRIES = 4  # Times the repeats wanted, at most.


class EdgeLlm:
    """libedgellm, as a side of the comparison."""

    def __init__(self, path, threads):
        import edgellm

        self.model = edgellm.Model(path, threads)

    def rewind(self):
        self.model.rewind()

    def run(self, ids):
        self.model.append(ids)
        self.model.forward()
        return self.model.logits()


class LlamaCpp:
    """llama.cpp, as a side of the comparison."""

    def __init__(self, path, threads):
        import peer

        self.model = peer.Model(path, threads)

    def rewind(self):
        self.model.rewind()

    def run(self, ids):
        self.model.run(ids)
        return self.model.logits()


def open_side(side, path, threads):
    return (EdgeLlm if side == "edgellm" else LlamaCpp)(path, threads)


def decode(model, count):
    """Tokens per second, one at a time."""
    model.rewind()
    model.run(PROMPT)
    start = time.perf_counter()
    for i in range(count):
        model.run([5 + 11 * i % 1000])
    return count / (time.perf_counter() - start)


def prefill(model, count):
    """Tokens per second of one prompt."""
    model.rewind()
    ids = [3 + 7 * i % 1000 for i in range(count)]
    start = time.perf_counter()
    model.run(ids)
    return count / (time.perf_counter() - start)


def worker(side, path, threads):
    """Reads "decode N" or "prefill N" by line, answers with a number each."""
    model = open_side(side, path, threads)
    print("ready", flush=True)
    for line in sys.stdin:
        what, count = line.split()
        print((decode if what == "decode" else prefill)(model, int(count)), flush=True)


def status_kib(key):
    """A memory line of this process, in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1])
    raise KeyError(key)


def cold_start(side, path, threads):
    """In a fresh process: prints milliseconds to the first logits and MiB of memory."""
    __import__("edgellm" if side == "edgellm" else "peer")
    before, start = status_kib("VmRSS"), time.perf_counter()
    model = open_side(side, path, threads)
    model.run(PROMPT[:5])
    milliseconds = 1e3 * (time.perf_counter() - start)
    print(json.dumps({"first": milliseconds, "memory": (status_kib("VmHWM") - before) / 1024}))


class Worker:
    """A side in a process of its own."""

    def __init__(self, side, path, threads):
        command = [sys.executable, __file__, "--worker", side, "--threads", str(threads), str(path)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._read(side)

    def _read(self, what):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{what}: the worker ended with status {self.process.wait()}")
        return line

    def ask(self, what, count):
        """One measurement."""
        time.sleep(PAUSE)
        self.process.stdin.write(f"{what} {count}\n")
        self.process.stdin.flush()
        return float(self._read(what))

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class Pairs:
    """Measurements of both sides taken in turns; pairs during which the placement was bad are dropped."""

    def __init__(self, probe, threads, repeats):
        self.probe = probe if threads > 1 else None
        self.repeats = repeats
        self.values = {side: [] for side in SIDES}
        self.dropped = 0

    def _placement_is_good(self):
        if not self.probe:
            return True
        return float(subprocess.run([self.probe], check=True, capture_output=True, text=True).stdout) >= RATIO_MIN

    def measure(self, sides, one):
        """Calls `one(side)` until enough pairs are good. Gives up with what there is."""
        for attempt in range(self.repeats * (TRIES if self.probe else 1)):
            order = sides if attempt % 2 == 0 else sides[::-1]
            good = self._placement_is_good()
            pair = {side: one(side) for side in order} if good else time.sleep(PAUSE)
            if not good or not self._placement_is_good():
                self.dropped += 1
                continue
            for side, value in pair.items():
                self.values[side].append(value)
            if all(len(self.values[side]) == self.repeats for side in sides):
                break
        return self


def compare(path, threads, arguments, probe):
    """All four measurements of one model on so many threads: a list of rows."""
    sides = [side for side in SIDES if side in arguments.sides]
    rows = []

    def add(what, pairs, key=None, smaller_is_better=False):
        values = {side: [v[key] if key else v for v in pairs.values[side]] for side in sides}
        medians = {side: statistics.median(v) if v else None for side, v in values.items()}
        ours, theirs = medians.get("edgellm"), medians.get("llama.cpp")
        ratio = None if not ours or not theirs else theirs / ours if smaller_is_better else ours / theirs
        row = {"model": path.name, "threads": threads, "what": what, "ratio": ratio, "dropped": pairs.dropped}
        rows.append(row | {"medians": medians, "values": values})

    workers = {side: Worker(side, path, threads) for side in sides}
    for what, count in (("decode", arguments.decode), ("prefill", arguments.prefill)):
        for side in sides:
            workers[side].ask(what, count)  # Warms up; not counted.
        pairs = Pairs(probe, threads, arguments.repeats)
        add(f"{what} {count}, tokens/s", pairs.measure(sides, lambda side: workers[side].ask(what, count)))
    for side in sides:
        workers[side].close()

    def start(side):
        time.sleep(PAUSE)
        command = [sys.executable, __file__, "--cold-start", side, "--threads", str(threads), str(path)]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    pairs = Pairs(probe, threads, min(arguments.repeats, 5)).measure(sides, start)
    add("load to first logits, ms", pairs, "first", smaller_is_better=True)
    add("peak memory, MiB", pairs, "memory", smaller_is_better=True)
    return rows


HEADING = """
| model | threads | what | edgellm | llama.cpp | ratio | pairs | dropped |
|---|---|---|---|---|---|---|---|"""


def report(rows):
    """Rows of the table; a ratio above 1 means libedgellm is better."""

    def cell(value, digits):
        return "-" if value is None else f"{value:.{digits}f}"

    for row in rows:
        medians, kept = row["medians"], max(map(len, row["values"].values()))
        print(
            f"| {row['model']} | {row['threads']} | {row['what']} | {cell(medians.get('edgellm'), 1)} "
            f"| {cell(medians.get('llama.cpp'), 1)} | {cell(row['ratio'], 2)} | {kept} | {row['dropped']} |",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--decode", type=int, default=96, help="tokens")
    parser.add_argument("--prefill", type=int, default=512, help="tokens, at most 512")
    parser.add_argument("--sides", default=",".join(SIDES), type=lambda text: text.split(","))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--cold-start", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        return worker(arguments.worker, arguments.models[0], int(arguments.threads))
    if arguments.cold_start:
        return cold_start(arguments.cold_start, arguments.models[0], int(arguments.threads))

    with tempfile.TemporaryDirectory() as folder:
        probe = f"{folder}/placement_probe"
        source = HERE / "placement_probe.c"
        subprocess.run(["cc", "-O3", "-march=native", "-pthread", source, "-o", probe], check=True)
        rows, load = [], os.getloadavg()[0]
        print(HEADING)
        for path in arguments.models:
            with path.open("rb") as file:
                while file.read(1 << 24):  # Into the page cache.
                    pass
            for threads in map(int, arguments.threads.split(",")):
                rows += compare(path, threads, arguments, probe)
                report(rows[-4:])
    print(f"\nload average {load:.1f} before, {os.getloadavg()[0]:.1f} after")
    if arguments.json:
        arguments.json.write_text(json.dumps({"machine": platform.platform(), "load_before": load, "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
