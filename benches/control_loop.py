"""How late a control loop of 100 Hz is beside a language model, with edgellm_step_until and with plain steps.

    make
    python benches/control_loop.py MODEL.gguf... [--seconds 10] [--repeats 6] [--fifo]

c_examples/control_loop.c runs on the first CPU, model and loop in one thread; on the last CPU another process computes all
the time. In turns, `until` and `step`: in each round both, in one order and in the next round in the other. How late a
period begins is measured from its due time, an absolute time of CLOCK_MONOTONIC; a period is missed when it is late by a
whole period. The table has the medians of the rounds' p50 and p99, the longest of all rounds, and sums. `none` is the loop
without a model: what the machine itself does. --fifo gives the loop the real-time policy that it should have on a robot; Linux
then takes its CPU away when it has used 95 % of a second (/proc/sys/kernel/sched_rt_runtime_us).
"""

import argparse
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from sides import HERE, cell, heading, median, read_all, row, spinners

ROOT = HERE.parent
MODES = ("until", "step", "none")
LINE = re.compile(
    r"(?P<periods>\d+) periods, (?P<missed>\d+) missed, late by us: p50 (?P<p50>[\d.]+) p99 (?P<p99>[\d.]+) "
    r"max (?P<max>[\d.]+); (?P<tokens>\d+) tokens, (?P<again>\d+) interruptions"
)


def one(program, model, mode, arguments, cpu):
    """One run: its numbers by their names."""

    def prepare():
        os.sched_setaffinity(0, [cpu])
        if arguments.fifo:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(10))

    command = [program, model, str(arguments.seconds), mode]
    output = subprocess.run(command, check=True, capture_output=True, text=True, preexec_fn=prepare)
    return {name: float(value) for name, value in LINE.search(output.stderr).groupdict().items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--fifo", action="store_true")
    arguments = parser.parse_args()
    cpus = sorted(os.sched_getaffinity(0))
    load = os.getloadavg()[0]
    heading("model", "mode", "periods", "missed", "late by ms, p50", "p99", "max", "tokens/s", "interruptions")
    with tempfile.TemporaryDirectory() as folder:
        program, library = f"{folder}/control_loop", ROOT / "target/release/package"
        flags = ["-std=c99", "-O2", f"-I{ROOT}/include", f"-L{library}", "-ledgellm", f"-Wl,-rpath,{library}"]
        subprocess.run(["cc", ROOT / "c_examples/control_loop.c", "-o", program, *flags], check=True)
        for model in arguments.models:
            read_all(model)
            rounds = {mode: [] for mode in MODES}
            with spinners([cpus[-1]], arguments.seconds * arguments.repeats * 4 + 60):
                for index in range(arguments.repeats):
                    for mode in MODES if index % 2 == 0 else MODES[::-1]:
                        rounds[mode].append(one(program, model, mode, arguments, cpus[0]))
            for mode, runs in rounds.items():
                total = {name: sum(run[name] for run in runs) for name in runs[0]}
                late = [1e-3 * median(run[name] for run in runs) for name in ("p50", "p99")]
                late.append(1e-3 * max(run["max"] for run in runs))
                counts = f"{total['periods']:.0f}", f"{total['missed']:.0f}"
                speed = total["tokens"] / (arguments.seconds * arguments.repeats)
                again = f"{total['again']:.0f}"
                row(model.name, mode, *counts, *(cell(value, 2) for value in late), cell(speed), again)
    print(f"\nload average {load:.1f} before, {os.getloadavg()[0]:.1f} after")


if __name__ == "__main__":
    sys.exit(main())
