"""What decoding keeps of its speed when it does not have the machine to itself, beside llama.cpp.

    pip install numpy gguf llama-cpp-python     (CMAKE_ARGS=-DGGML_NATIVE=ON for a native build)
    cargo build --release
    python benches/contention.py MODEL.gguf... [--repeats 7] [--json OUT.json]

Tokens/s of decoding after a prompt of 16, medians, with as many threads as there are CPUs and with twice as many
(--threads), in turns as in compare_llama_cpp.py:

  quiet   nothing else runs
  taken   another process computes all the time on one CPU, the last: Python, pinned to it, of the same priority

and what that is of the quiet speed with as many threads as CPUs. Every measurement ends after --steps or --seconds,
whichever is first: a side whose threads wait for each other by spinning can need seconds for a token. The placement
probe runs while the machine is quiet, before and after each round of both sides.
"""

import os
import sys

import sides
from sides import Turns, cell, heading, median, open_workers, ratio, row, spinners, tokens_per_s

AT = 16


def contention(path, threads, arguments, tools, quiet):
    """One model on so many threads: a row for --json. `quiet` holds each side's speed to compare with, once known."""
    turns = Turns(tools, threads, arguments)
    cpu = max(os.sched_getaffinity(0))
    with open_workers(arguments.sides, path, threads) as workers:

        def one(name):
            side, taken = name
            with spinners([cpu] if taken else []):
                return tokens_per_s(workers[side].ask("steps", AT, arguments.steps, arguments.seconds))

        names = [(side, taken) for side in arguments.sides for taken in (False, True)]
        rounds, dropped = turns.take(names, arguments.repeats, one)
    medians = {}
    for side, taken in names:
        speed = medians[f"{side}, {'taken' if taken else 'quiet'}"] = median(values[side, taken] for values in rounds)
        quiet.setdefault((path, side), speed)
        kept = ratio(speed, quiet[path, side])
        what = "one CPU taken" if taken else "quiet"
        row(path.name, threads, side, what, cell(speed), cell(kept and 100 * kept), len(rounds), dropped)
    values = {f"{side}, {'taken' if taken else 'quiet'}": [v[side, taken] for v in rounds] for side, taken in names}
    return [{"model": path.name, "threads": threads, "medians": medians, "values": values, "dropped": dropped}]


def main():
    cpus = len(os.sched_getaffinity(0))
    parser = sides.parser(__doc__, threads=f"{cpus},{2 * cpus}")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--steps", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=3)
    arguments = parser.parse_args()
    heading(
        "model",
        "threads",
        "side",
        "machine",
        "tokens/s",
        f"% of quiet, {arguments.threads[0]} threads",
        "rounds",
        "dropped",
    )
    quiet = {}
    sides.run(arguments, lambda path, threads, tools: contention(path, threads, arguments, tools, quiet))


if __name__ == "__main__":
    sys.exit(main())
