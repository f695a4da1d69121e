"""How evenly decode steps come, on an idle machine and with every CPU taken, beside llama.cpp.

    pip install numpy gguf llama-cpp-python     (CMAKE_ARGS=-DGGML_NATIVE=ON for a native build)
    cargo build --release
    python benches/jitter.py MODEL.gguf [--threads 2] [--steps 10000] [--json OUT.json]

Times of single decode steps in ms: the median, what 99 and 99.9 of 100 steps took at most, and the longest.

  idle     nothing else runs
  loaded   on every CPU another process computes all the time: Python, pinned to it, of the same priority

The steps are taken in blocks of 256, at positions 16 to 271 every time, so that a growing context is not jitter; the
sides take turns, block by block, each after a pause and 8 steps that do not count. A block ends early when it has had
its share of --seconds: then there are fewer steps than asked for, and a percentile that fewer than ten steps are beyond
is not given. The placement probe runs while the machine is quiet, before and after each round of blocks.
"""

import os
import sys

import sides
from sides import Turns, cell, heading, open_workers, row, spinners

AT, BLOCK = 16, 256
PERCENTILES = (50, 99, 99.9)


def percentile(values, percent):
    """What so many of 100 values are at most; None where fewer than ten values are beyond."""
    values = sorted(values)
    index = -int(-len(values) * percent // 100) - 1  # The smallest with enough values up to it.
    return values[index] if len(values) - index > 10 else None


def jitter(path, threads, arguments, tools):
    """One model on so many threads: rows for --json."""
    turns, rows = Turns(tools, threads, arguments), []
    blocks = -(-arguments.steps // BLOCK)
    with open_workers(arguments.sides, path, threads) as workers:
        for condition, cpus in (("idle", []), ("loaded", sorted(os.sched_getaffinity(0)))):

            def one(side, cpus=cpus):
                with spinners(cpus):
                    return workers[side].ask("steps", AT, BLOCK, arguments.seconds / blocks)

            rounds, dropped = turns.take(arguments.sides, blocks, one)
            for side in arguments.sides:
                steps = [1e-6 * time for values in rounds for time in values[side]]
                found = {f"p{percent}": percentile(steps, percent) for percent in PERCENTILES}
                found["max"] = max(steps, default=None)
                row(path.name, threads, condition, side, len(steps), *(cell(v, 3) for v in found.values()), dropped)
                what = {"model": path.name, "threads": threads, "condition": condition, "side": side}
                rows.append(what | found | {"dropped": dropped, "steps_ms": [round(step, 4) for step in steps]})
    return rows


def main():
    parser = sides.parser(__doc__, threads="2")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=600, help="of steps, at most, per side and condition")
    arguments = parser.parse_args()
    heading(
        "model", "threads", "machine", "side", "steps", *(f"p{p} ms" for p in PERCENTILES), "max ms", "rounds dropped"
    )
    sides.run(arguments, lambda path, threads, tools: jitter(path, threads, arguments, tools))


if __name__ == "__main__":
    sys.exit(main())
