"""How cost grows: decode time with the context, prefill time with the prompt, beside llama.cpp; a table and a plot.

    pip install numpy gguf llama-cpp-python matplotlib     (CMAKE_ARGS=-DGGML_NATIVE=ON for a native build)
    cargo build --release
    python benches/growth.py MODEL.gguf [--threads 2] [--svg PLOT.svg] [--json OUT.json]

  decode    ms per token: the median of the steps after a sequence of so many tokens
  prefill   ms of a prompt of so many tokens, in calls of 512

Both sides, in turns as in compare_llama_cpp.py, at every point: medians of the rounds, of only two where one takes
long. The lengths are powers of two and odd ones. Lines below the tables say what the curves are: decode must
grow by the same time for every token of context (the least-squares line, and how far the points are from it), prefill
hardly faster than the prompt (the time of a token of the longest prompt over that of one of 512).
"""

import sys
from pathlib import Path

import sides
from sides import Turns, cell, heading, median, open_workers, ratio, row

CONTEXTS = "0,64,256,500,1024,2048,3000,4096,6144,8128"
PROMPTS = "16,17,32,64,100,128,256,500,512,1024,1500,2048,4096,8192"
COLORS = {"edgellm": "#1f5fa8", "llama.cpp": "#b8651b"}


def measure_points(lengths, turns, arguments, one):
    """`one(side, length)` in ms for both sides at every length: rows of medians, and how many rounds were dropped."""
    rows = []
    for length in lengths:
        rounds, dropped = turns.take(
            arguments.sides, arguments.repeats, lambda side, length=length: one(side, length), arguments.seconds
        )
        medians = {side: median(taken[side] for taken in rounds) for side in arguments.sides}
        ours, theirs = medians.get("edgellm"), medians.get("llama.cpp")
        row(length, cell(ours, 2), cell(theirs, 2), cell(ratio(theirs, ours), 2), len(rounds), dropped)
        rows.append({"length": length, "ms": medians, "rounds": len(rounds), "dropped": dropped})
    return rows


def points(rows, side):
    """Lengths and milliseconds of a side."""
    known = [(point["length"], point["ms"][side]) for point in rows if point["ms"].get(side)]
    return [length for length, _ in known], [ms for _, ms in known]


def say_growth(side, decode, prefill):
    """One line a curve."""
    import numpy as np

    lengths, ms = map(np.array, points(decode, side))
    if len(lengths) > 2:
        slope, start = np.polyfit(lengths, ms, 1)
        off = np.max(np.abs(start + slope * lengths - ms) / ms)
        line = f"{start:.2f} ms + {1e3 * slope:.3f} us per token of context"
        print(f"{side}: decode {line}, points within {100 * off:.0f} % of it")
    of_token = {length: ms / length for length, ms in zip(*points(prefill, side), strict=True)}
    if 512 in of_token and max(of_token) > 512:
        times = of_token[max(of_token)] / of_token[512]
        print(f"{side}: a token of a prompt of {max(of_token)} takes {times:.2f} times what one of 512 does")


def plot(target, model, threads, decode, prefill, names):
    """All curves of every side, as SVG with text as text."""
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "growth", "font.size": 9}
    from matplotlib import pyplot

    figure, (left, middle, right) = pyplot.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for side in names:
        style = {"marker": "o", "markersize": 3, "color": COLORS[side], "label": side}
        left.plot(*points(decode, side), **style)
        lengths, ms = points(prefill, side)
        middle.plot(lengths, ms, **style)
        right.plot(lengths, [time / length for time, length in zip(ms, lengths, strict=True)], **style)
    left.set(title="decode", xlabel="tokens in the context", ylabel="ms per token", xlim=(0, None), ylim=(0, None))
    middle.set(title="prefill", xlabel="tokens of the prompt", ylabel="ms", yscale="log")
    right.set(title="prefill, per token", xlabel="tokens of the prompt", ylabel="ms per token")
    for axes in (middle, right):
        axes.set_xscale("log", base=4)
        axes.xaxis.set_major_formatter("{x:.0f}")
    right.set_ylim(bottom=0)
    for axes in (left, middle, right):
        axes.grid(color="#dddddd")
        axes.legend()
    figure.suptitle(f"{model}, threads: {threads}")
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, metadata={"Date": None})


def growth(path, threads, arguments, tools):
    """Both curves of one model: a row for --json."""
    turns = Turns(tools, threads, arguments)
    context = max(max(arguments.contexts) + arguments.steps, *arguments.prompts)
    with open_workers(arguments.sides, path, threads, context) as workers:

        def decode_ms(side, length):
            return 1e-6 * median(workers[side].ask("steps", length, arguments.steps))

        def prefill_ms(side, length):
            return 1e-6 * workers[side].ask("prefill", length)

        heading(f"{path.name}, threads: {threads}, context", "edgellm ms", "llama.cpp ms", "ratio", "rounds", "dropped")
        decode = measure_points(arguments.contexts, turns, arguments, decode_ms)
        heading("prompt", "edgellm ms", "llama.cpp ms", "ratio", "rounds", "dropped")
        prefill = measure_points(arguments.prompts, turns, arguments, prefill_ms)
    print()
    for side in arguments.sides:
        say_growth(side, decode, prefill)
    if arguments.svg:
        plot(arguments.svg, path.name, threads, decode, prefill, arguments.sides)
    return [{"model": path.name, "threads": threads, "decode": decode, "prefill": prefill}]


def main():
    parser = sides.parser(__doc__, models=1, threads="2")
    parser.add_argument("--svg", type=Path)
    parser.add_argument("--contexts", default=CONTEXTS, type=sides.numbers, help="tokens, ascending")
    parser.add_argument("--prompts", default=PROMPTS, type=sides.numbers, help="tokens")
    parser.add_argument("--steps", type=int, default=32, help="at every context")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=10, help="no new round at a point after so long")
    arguments = parser.parse_args()
    if len(arguments.threads) > 1:
        parser.error("one number of threads a run")
    sides.run(arguments, lambda path, threads, tools: growth(path, threads, arguments, tools))


if __name__ == "__main__":
    sys.exit(main())
