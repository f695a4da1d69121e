"""What the bench programs share: both sides, each in a process of its own, asked in turns.

Run as a program this is one side, which its `Worker` starts: python sides.py SIDE MODEL THREADS CONTEXT. It reads a
request a line, a JSON list of a method of `Side` and its arguments, and answers a line of JSON.

What is timed is one call into the library, from Python just around it: `edgellm_forward` of tokens that were appended
before, `llama_decode` of a batch that was filled before. What Python adds is under 1 us on both sides.
Neither side samples: the tokens are given, and token i of a sequence is the same one wherever it is cut.

Nothing else may run on the machine. llama.cpp's OpenMP threads spin for a while after their work, so there is a pause
before every measurement.
"""

import argparse
import contextlib
import gc
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
PAUSE = 0.3  # Seconds.
RATIO_MIN = 1.5  # Of the placement probe.
CHUNK = 512  # Tokens of a prompt per call, the default of both sides.
TRIES = 4  # Times the rounds wanted, at most.
WARM_UP = 8  # Steps that are not counted before those that are: threads wake up, caches fill.


def token(position):
    """The token at a position of every sequence: plain entries of any vocabulary."""
    return 3 + 7 * position % 1000


def status_mib(key):
    """A memory line of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    raise KeyError(key)


class Side:
    """One engine with a model and one sequence; what a worker can be asked."""

    def __init__(self, side, path, threads, context):
        engine = __import__("edgellm" if side == "edgellm" else "peer")
        self.before = status_mib("VmRSS")
        self.model = engine.Model(path, threads, context)
        self.length = 0

    def _run(self, end):
        """Runs the tokens up to position `end`, at most 512: nanoseconds."""
        self.model.append([token(position) for position in range(self.length, end)])
        forward = self.model.forward
        start = time.perf_counter_ns()
        forward()
        taken = time.perf_counter_ns() - start
        self.length = end
        return taken

    def _fill(self, length):
        """Makes the sequence `length` tokens long: nanoseconds of computing."""
        if length < self.length:
            self.model.rewind(length)
            self.length = length
        taken = 0
        while self.length < length:
            taken += self._run(min(self.length + CHUNK, length))
        return taken

    def _steps(self, count, seconds):
        times, end = [], time.monotonic() + seconds
        while len(times) < count and (not times or time.monotonic() < end):
            times.append(self._run(self.length + 1))
        return times

    def steps(self, at, count, seconds=1e9):
        """Nanoseconds of each of `count` steps after a sequence of `at` tokens, after some that do not count; of fewer
        steps, but one, once `seconds` are over."""
        self._fill(at)
        self._steps(min(WARM_UP, count), seconds)
        self._fill(at)
        return self._steps(count, seconds)

    def prefill(self, count):
        """Nanoseconds of a prompt of `count` tokens."""
        self._fill(0)
        return self._fill(count)

    def memory(self):
        """MiB: the most that was resident until now less what was before the load. The mapped file counts."""
        return status_mib("VmHWM") - self.before


class Worker:
    """A side in a process of its own."""

    def __init__(self, side, path, threads, context=1024, program=__file__):
        command = [sys.executable, program, side, str(path), str(threads), str(context)]
        self.name = f"{side} with {path.name} on {threads} threads"
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._read()

    def _read(self):
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name}: ended with status {self.process.wait()}")
        return json.loads(line)

    def ask(self, *request):
        """One measurement, after a pause."""
        time.sleep(PAUSE)
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return self._read()

    def close(self):
        self.process.stdin.close()
        self.process.wait()


@contextlib.contextmanager
def open_workers(sides, path, threads, context=1024):
    """A worker for every side, by its name."""
    workers = {}
    try:
        for side in sides:
            workers[side] = Worker(side, path, threads, context)
        yield workers
    finally:
        for worker in workers.values():
            worker.close()


SPINNER = """
import os, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
end = time.monotonic() + float(sys.argv[2])
print(flush=True)
while time.monotonic() < end and os.getppid() == int(sys.argv[3]):
    for _ in range(100_000):
        pass
"""


@contextlib.contextmanager
def spinners(cpus, seconds=600):
    """On each of these CPUs a process computes all the time; it ends with the block, with us, or after so long."""
    processes = []
    try:
        for cpu in cpus:
            command = [sys.executable, "-c", SPINNER, str(cpu), str(seconds), str(os.getpid())]
            processes.append(subprocess.Popen(command, stdout=subprocess.PIPE))
            processes[-1].stdout.readline()  # It spins from now on.
        yield
        if any(process.poll() is not None for process in processes):
            raise SystemExit("a spinning process ended during the measurement")
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdout.close()


TOUCHER = """
import mmap, sys
size = int(sys.argv[1])
memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_HUGEPAGE)  # What is freed is then in one piece, and can be had as huge pages again.
memory[:: mmap.PAGESIZE] = bytes(-(-size // mmap.PAGESIZE))
"""


def back_memory(size):
    """Writes and frees so many bytes of memory, so that the machine has them. A virtual machine may have given free
    memory back to its host, and getting it again can take seconds per GB, which are nobody's but the host's."""
    subprocess.run([sys.executable, "-c", TOUCHER, str(size)], check=True)


class Tools:
    """The C programs, built for this machine."""

    def __init__(self, folder):
        self.folder = folder
        self.placement = self.build("placement_probe")
        self.bandwidth = self.build("read_bandwidth")

    def build(self, name, *flags, source=None):
        """Compiles NAME.c of this folder."""
        program = f"{self.folder}/{name}"
        source = HERE / f"{source or name}.c"
        subprocess.run(["cc", "-O3", "-march=native", "-pthread", source, "-o", program, *flags], check=True)
        return program

    def placement_is_good(self):
        """Whether two threads get two cores now."""
        return float(output(self.placement)) >= RATIO_MIN

    def read_gb_per_s(self, threads):
        """The best that so many threads read of memory now."""
        time.sleep(PAUSE)
        return float(output(self.bandwidth, str(threads)).split()[0])


def output(*command):
    """What a program prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class Turns:
    """Rounds in which everyone is asked once, in one order and then in the other; those with a bad placement before or
    after them are dropped, all of it, and repeated."""

    def __init__(self, tools, threads, arguments):
        self.good = tools.placement_is_good if threads > 1 and not arguments.any_placement else lambda: True

    def take(self, names, rounds, one, seconds=1e9):
        """Calls `one(name)` for every name until there are so many rounds, or so many seconds are over after the first
        that was kept. Returns the rounds as dictionaries, and how many were dropped."""
        kept, dropped, end = [], 0, None
        for attempt in range(rounds * TRIES):
            if len(kept) == rounds or (end and time.monotonic() > end):
                break
            taken = None
            if self.good():
                taken = {name: one(name) for name in (names if attempt % 2 == 0 else names[::-1])}
            else:
                time.sleep(PAUSE)
            if taken and self.good():
                kept.append(taken)
                end = end or time.monotonic() + seconds
            else:
                dropped += 1
        return kept, dropped


def tokens_per_s(times):
    """Of steps that took so many nanoseconds."""
    return 1e9 * len(times) / sum(times)


def median(values):
    """None where there are none."""
    values = list(values)
    return statistics.median(values) if values else None


def ratio(above, below):
    """None where either is not known."""
    return above / below if above and below else None


def cell(value, digits=1):
    """A number of a table."""
    return "-" if value is None else f"{value:.{digits}f}"


def row(*cells):
    """Prints a line of a table."""
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def heading(*cells):
    """Prints the first two lines of a table."""
    print()
    row(*cells)
    row(*("---" for _ in cells))


def weight_bytes_per_token(path):
    """Bytes of weights in the file that a decode step reads: every matrix, but not an embedding that is not the head,
    of which it reads a row. What `edgellm info` says, and the same for both sides, whatever they repack it to."""
    from gguf import GGUFReader

    matrices = {tensor.name: int(tensor.n_bytes) for tensor in GGUFReader(path).tensors if len(tensor.shape) > 1}
    return sum(matrices.values()) - (matrices["token_embd.weight"] if "output.weight" in matrices else 0)


def has_vocabulary(path):
    """Whether text can be made tokens of."""
    from gguf import GGUFReader

    return GGUFReader(path).get_field("tokenizer.ggml.tokens") is not None


def provenance():
    """What was measured, and where."""
    import edgellm
    import llama_cpp

    library = edgellm.Library().c
    library.edgellm_build_info.restype = edgellm.ctypes.c_char_p
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "platform": platform.platform(),
        "cpu": cpu[0].split(":")[1].strip() if cpu else platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "edgellm": json.loads(library.edgellm_build_info()),
        "llama-cpp-python": llama_cpp.__version__,
    }


def numbers(text):
    """The numbers of a list with commas, as an argument."""
    return [int(number) for number in text.split(",")]


def parser(description, models="+", threads="1,2"):
    """The arguments that every program has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs=models)
    parser.add_argument("--threads", default=threads, type=numbers)
    parser.add_argument("--sides", default=",".join(SIDES), type=lambda text: text.split(","))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--any-placement", action="store_true", help="drop nothing: to try the program, not to measure")
    return parser


def read_all(path):
    """Brings a file into the page cache."""
    with path.open("rb") as file:
        while file.read(1 << 24):
            pass


def run(arguments, measure):
    """Calls `measure(path, threads, tools)` for every model and number of threads; the rows it returns go to --json."""
    with tempfile.TemporaryDirectory() as folder:
        tools, rows, load = Tools(folder), [], os.getloadavg()[0]
        for path in arguments.models:
            read_all(path)
            for threads in arguments.threads:
                rows += measure(path, threads, tools)
    print(f"\nload average {load:.1f} before, {os.getloadavg()[0]:.1f} after")
    if arguments.json:
        report = provenance() | {"arguments": sys.argv[1:], "load_before": load, "rows": rows}
        arguments.json.write_text(json.dumps(report, indent=1))


def main(kind=Side):
    """A worker that answers with the methods of `kind`."""
    side, path, threads, context = sys.argv[1:]
    model = kind(side, path, int(threads), int(context))
    print("true", flush=True)
    for line in sys.stdin:
        what, *values = json.loads(line)
        gc.disable()
        answer = getattr(model, what)(*values)
        gc.enable()
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
