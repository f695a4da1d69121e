"""Speed and memory of libedgellm beside llama.cpp and beside the memory: same file, same threads, same run.

    pip install numpy gguf llama-cpp-python     (CMAKE_ARGS=-DGGML_NATIVE=ON for a native build)
    cargo build --release
    python benches/compare_llama_cpp.py MODEL.gguf... [--threads 1,2] [--repeats 7] [--prefill 512] [--json OUT.json]

Each side lives in a process of its own (sides.py), and they take turns: A B, B A, A B, ... with a pause before each.
Numbers are medians; the page cache is warm; llama.cpp has its default flags with n_batch = n_ubatch = 512.

  read         GB/s that so many threads read of memory, the best of the passes of read_bandwidth.c, once every round
  decode       tokens/s, one token at a time after a prompt of 16, no sampling
  of read      bytes of weights in the file that decoding reads per second, in % of `read` in the same round
  prefill      tokens/s of a prompt in calls of 512, no sampling
  peak         MiB, the most that was resident after all that, less what was before the load; the mapped file counts
  first token  ms from the start of a process (exec) to the first token after "The capital of France is", chosen
               greedily: first_token.c, a C program for each side; linking, loading and building the tokenizer count.
               Just before, another process writes and frees memory, which a virtual machine may have to get first
  loaded       ms of these until there were model and sequence
  its peak     MiB, the most that was resident in that process, less what was before the load

A file without a vocabulary, as synthetic_model.py writes it, has no rows of first tokens.

Before and after each round on two or more threads placement_probe.c says whether the machine gives two threads two
cores. Below 1.5 the round is dropped, of both sides, and repeated; the table says how many were. Nothing else may run
on the machine: the load average before and after is printed to show it.
"""

import json
import time
from pathlib import Path

import sides
from sides import SIDES, Turns, cell, heading, median, open_workers, ratio, row, tokens_per_s

PROMPT = "The capital of France is"
AT = 16  # Tokens before those that are decoded.
CONTEXT = 1024  # Tokens that a sequence can hold, where more are not needed.


def build_first_token(tools):
    """first_token.c for each side: its command without the arguments."""
    import edgellm
    import llama_cpp

    include, library = edgellm.HEADER.parent, edgellm.LIBRARY.parent
    ours = tools.build("first_token_edgellm", *_link(include, library, "edgellm"), source="first_token")
    package = Path(llama_cpp.__file__).parent
    flags = _link(package.parent / "include", package / "lib", "llama")
    theirs = tools.build("first_token_llama", "-DLLAMA_CPP", *flags, source="first_token")
    return dict(zip(SIDES, (ours, theirs), strict=True))


def _link(include, library, name):
    return [f"-I{include}", f"-L{library}", f"-l{name}", f"-Wl,-rpath,{library}"]


class Comparison:
    """One model on so many threads. Rows of results, printed as they come; a ratio above 1: libedgellm is better."""

    def __init__(self, path, threads, arguments, tools):
        self.path, self.threads, self.arguments, self.tools = path, threads, arguments, tools
        self.turns, self.rows = Turns(tools, threads, arguments), []

    def add(self, what, rounds, dropped, value, smaller_is_better=False):
        """`value(round, side)` is the number of a side in a round."""
        values = {side: [value(taken, side) for taken in rounds] for side in self.arguments.sides}
        medians = {side: median(values[side]) for side in values}
        ours, theirs = medians.get("edgellm"), medians.get("llama.cpp")
        better = ratio(theirs, ours) if smaller_is_better else ratio(ours, theirs)
        row(self.path.name, self.threads, what, cell(ours), cell(theirs), cell(better, 2), len(rounds), dropped)
        result = {"model": self.path.name, "threads": self.threads, "what": what, "ratio": better, "dropped": dropped}
        self.rows.append(result | {"medians": medians, "values": values})

    def decode(self, workers):
        """Beside the memory, which takes part in the rounds."""
        count, weights = self.arguments.decode, sides.weight_bytes_per_token(self.path)

        def one(name):
            if name == "read":
                return self.tools.read_gb_per_s(self.threads)
            return tokens_per_s(workers[name].ask("steps", AT, count))

        rounds, dropped = self.turns.take(["read", *workers], self.arguments.repeats, one)
        self.add(f"decode {count}, tokens/s", rounds, dropped, lambda taken, side: taken[side])
        read = median(taken["read"] for taken in rounds)
        self.add(
            f"of the {cell(read)} GB/s read, %",
            rounds,
            dropped,
            lambda taken, side: 100 * (taken[side] * weights) / (1e9 * taken["read"]),
        )
        self.rows[-1] |= {"weight_bytes_per_token": weights, "rounds": rounds}

    def prefill(self, workers, count):
        """A prompt of `count` tokens."""

        def one(side):
            return 1e9 * count / workers[side].ask("prefill", count)

        for side in workers:
            one(side)  # Warms up; not counted.
        rounds, dropped = self.turns.take(list(workers), self.arguments.repeats, one)
        self.add(f"prefill {count}, tokens/s", rounds, dropped, lambda taken, side: taken[side])

    def first_token(self, programs):
        """A fresh process every time."""
        enough = 2 * self.path.stat().st_size + (1 << 28)  # Weights, repacked, and all else, of either side.

        def one(side):
            time.sleep(sides.PAUSE)
            sides.back_memory(enough)
            return json.loads(sides.output(programs[side], self.path, str(self.threads), str(CONTEXT), PROMPT))

        rounds, dropped = self.turns.take(self.arguments.sides, self.arguments.repeats, one)
        if len({taken[side]["tokens"] for taken in rounds for side in taken}) > 1:
            raise SystemExit(f"{self.path.name}: the sides make different tokens of {PROMPT!r}")
        for what, key in (("first token, ms", "first"), ("loaded, ms", "loaded"), ("its peak, MiB", "memory")):
            self.add(what, rounds, dropped, lambda taken, side, key=key: taken[side][key], smaller_is_better=True)
        self.rows[-1]["rounds"] = rounds

    def run(self, programs):
        """All measurements: the rows."""
        longest = max(self.arguments.prefill)
        context = max(CONTEXT, AT + self.arguments.decode, longest)
        with open_workers(self.arguments.sides, self.path, self.threads, context) as workers:
            self.decode(workers)
            for count in self.arguments.prefill:
                self.prefill(workers, count)
            peaks = {side: worker.ask("memory") for side, worker in workers.items()}
            what = f"peak after {longest}, MiB"
            self.add(what, [peaks], 0, lambda taken, side: taken[side], smaller_is_better=True)
        if sides.has_vocabulary(self.path):
            self.first_token(programs)
        return self.rows


def main():
    parser = sides.parser(__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--decode", type=int, default=96, help="tokens")
    parser.add_argument("--prefill", default="512", type=sides.numbers, help="tokens, a list")
    arguments = parser.parse_args()
    heading("model", "threads", "what", "edgellm", "llama.cpp", "ratio", "rounds", "dropped")
    programs = {}

    def measure(path, threads, tools):
        if not programs:
            programs.update(build_first_token(tools))
        return Comparison(path, threads, arguments, tools).run(programs)

    sides.run(arguments, measure)


if __name__ == "__main__":
    main()
