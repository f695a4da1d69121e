"""Time to the first token after a prefix that many requests share: computed anew, forked, and restored from a file.

    pip install numpy gguf llama-cpp-python     (CMAKE_ARGS=-DGGML_NATIVE=ON for a native build)
    make && cargo build --release
    python benches/shared_prefix.py MODEL.gguf... [--threads 1,2] [--repeats 9] [--prefix 1500] [--question 16]

Each request is the prefix and a question of its own; the time ends with the likeliest first token. Milliseconds, medians
of rounds in which both sides are asked in turns.

  cold       an empty sequence computes prefix and question
  fork       a sequence with the prefix is there. libedgellm: edgellm_session_fork, then the question in the new session.
             llama.cpp: llama_memory_seq_cp to a second sequence of a unified cache, then the question in that
  restored   a file has the prefix. libedgellm: edgellm_session_restore_fd. llama.cpp: llama_state_seq_load_file
  evicted    the same, with the file evicted from the page cache before: it comes from the disk
  state      MB that the file has

Forked and restored sequences must give the same token as the cold one, and of libedgellm the same logits, bit for bit.
"""

import ctypes
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import sides
from sides import CHUNK, SIDES, Turns, Worker, cell, heading, median, ratio, row, token

WAYS = ("cold", "fork", "restored", "evicted")
MARGIN = 64  # Tokens of context beside prefix and question.


class Requests(sides.Side):
    """What both sides have in common."""

    def __init__(self, side, path, threads, context):
        super().__init__(side, path, threads, context)
        self.answers = {}

    def prepare(self, prefix, question, file):
        """The prefix is computed and saved: bytes of the file."""
        self.prefix = [token(position) for position in range(prefix)]
        self.question = [5 + 11 * position % 900 for position in range(question)]
        self.file = file
        self._begin()
        self._first(self.prefix)
        self._save()
        with open(file, "rb") as saved:
            os.fsync(saved.fileno())
        return os.path.getsize(file)

    def request(self, way):
        """Nanoseconds until the first token."""
        if way == "evicted":
            with open(self.file, "rb") as saved:
                os.posix_fadvise(saved.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter_ns()
        ids = getattr(self, f"_{'restored' if way == 'evicted' else way}")()
        logits = self._first(ids)
        best = int(logits.argmax())
        taken = time.perf_counter_ns() - start
        expected = self.answers.setdefault("logits", logits.copy())
        if int(expected.argmax()) != best or (self.exact and not np.array_equal(expected, logits)):
            raise SystemExit(f"{way}: another first token than before")
        self._end()
        return taken

    def _first(self, ids):
        """Computes these: the logits after them."""
        for at in range(0, len(ids), CHUNK):
            self.model.append(ids[at : at + CHUNK])
            self.model.forward()
        return self.model.logits()


class Ours(Requests):
    """A session with the prefix, and one for requests."""

    exact = True

    def _begin(self):
        self.c = self.model.library.c
        self.base, self.other = self.model.session, ctypes.c_void_p()
        params = self.model.library.new("session_params", n_ctx=len(self.prefix) + len(self.question) + MARGIN)
        self._check(self.c.edgellm_session_new(self.model.model, ctypes.byref(params), ctypes.byref(self.other)))

    def _check(self, status):
        self.model.library.check(status)

    def _save(self):
        with open(self.file, "wb") as file:
            self._check(self.c.edgellm_session_save_fd(self.base, file.fileno()))

    def _cold(self):
        self.model.session = self.other
        self.model.rewind()
        return self.prefix + self.question

    def _fork(self):
        self.model.session = ctypes.c_void_p()
        self._check(self.c.edgellm_session_fork(self.base, ctypes.byref(self.model.session)))
        return self.question

    def _restored(self):
        self.model.session = self.other
        with open(self.file, "rb") as file:
            self._check(self.c.edgellm_session_restore_fd(self.other, file.fileno()))
        return self.question

    def _end(self):
        if self.model.session not in (self.base, self.other):
            self.c.edgellm_session_free(self.model.session)
        self.model.session = self.base


class Theirs(Requests):
    """Sequence 0 has the prefix, sequence 1 is for requests."""

    exact = False

    def _begin(self):
        import llama_cpp

        self.c = llama_cpp
        self.memory = llama_cpp.llama_get_memory(self.model.context)
        self.tokens = (llama_cpp.llama_token * len(self.prefix))(*self.prefix)

    def _save(self):
        arguments = self.file.encode(), 0, self.tokens, len(self.prefix)
        if not self.c.llama_state_seq_save_file(self.model.context, *arguments):
            raise SystemExit("llama_state_seq_save_file failed")

    def _to(self, past):
        self.model.sequence, self.model.past = 1, past

    def _cold(self):
        self._to(0)
        return self.prefix + self.question

    def _fork(self):
        self.c.llama_memory_seq_cp(self.memory, 0, 1, -1, -1)
        self._to(len(self.prefix))
        return self.question

    def _restored(self):
        out, count = (self.c.llama_token * len(self.prefix))(), ctypes.c_size_t()
        arguments = self.file.encode(), 1, out, len(out), ctypes.byref(count)
        if not self.c.llama_state_seq_load_file(self.model.context, *arguments):
            raise SystemExit("llama_state_seq_load_file failed")
        self._to(count.value)
        return self.question

    def _end(self):
        self.c.llama_memory_seq_rm(self.memory, 1, -1, -1)
        self.model.sequence = 0


def measure(path, threads, tools, arguments):
    """One model on so many threads: its rows."""
    context = 2 * (arguments.prefix + arguments.question + MARGIN)
    turns, rows, workers = Turns(tools, threads, arguments), [], {}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        try:
            for side in arguments.sides:
                workers[side] = Worker(side, path, threads, context, program=__file__)
            prepare = {side: (arguments.prefix, arguments.question, f"{folder}/{side}") for side in workers}
            state = {side: worker.ask("prepare", *prepare[side]) / 1e6 for side, worker in workers.items()}
            for way in WAYS:
                for worker in workers.values():
                    worker.ask("request", way)  # Not counted: memory is touched for the first time.
                taken, dropped = turns.take(list(workers), arguments.repeats, lambda side: workers[side].ask("request", way))
                rows.append((way, {side: [round[side] / 1e6 for round in taken] for side in workers}, dropped))
            rows.append(("state", {side: [state[side]] for side in workers}, 0))
        finally:
            for worker in workers.values():
                worker.close()
    results = []
    for way, values, dropped in rows:
        medians = {side: median(values[side]) for side in values}
        ours, theirs = medians.get("edgellm"), medians.get("llama.cpp")
        better = ratio(theirs, ours)
        row(path.name, threads, way, cell(ours, 2), cell(theirs, 2), cell(better, 2), len(values[arguments.sides[0]]), dropped)
        results.append({"model": path.name, "threads": threads, "what": way, "ratio": better, "values": values})
    return results


def main():
    if len(sys.argv) == 5 and sys.argv[1] in SIDES:
        return sides.main(Ours if sys.argv[1] == "edgellm" else Theirs)
    parser = sides.parser(__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--prefix", type=int, default=1500)
    parser.add_argument("--question", type=int, default=16)
    parser.add_argument("--folder", type=Path, help="where the saved files are, on the disk that is to be measured")
    arguments = parser.parse_args()
    heading("model", "threads", "first token", "libedgellm", "llama.cpp", "ratio", "rounds", "dropped")
    sides.run(arguments, lambda path, threads, tools: measure(path, threads, tools, arguments))


if __name__ == "__main__":
    main()
