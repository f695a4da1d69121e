"""How far llama.cpp and libedgellm are from the exact logits of the same model file.

    pip install numpy gguf llama-cpp-python     (CMAKE_ARGS=-DGGML_NATIVE=ON for a native build)
    cargo build --release
    python tests/reference/compare.py MODEL.gguf [--cache DIR] [--json OUT.json]

Three sets of token sequences:
  plain   English prose out of Python's own documentation (pydoc_data.topics: paragraphs without code, in the order of
          their topics; the text depends on the Python version, so its sha256 is printed), in windows of 512 tokens
  raw     prompts.json, each followed by the exact model's own 64 greedy tokens
  chat    the same with chat messages, rendered by the file's template

Every engine gives logits after every token of every sequence; per position we keep KL(exact || engine), whether the
likeliest token is the same, and -log p of the token that follows. Along raw and chat the first position where the
engine's likeliest token is not exact's is where its greedy text parts from the exact text (before it both have seen the
same tokens). There we print how close exact's two best tokens were, and how often the engine's error of that difference
is as large elsewhere: a text that parts where no error elsewhere is as large as the gap is a bug, not a near tie.

--cache keeps what is slow to make (the exact hidden states, each engine's statistics) by model, text and engine.
llama.cpp runs a window as one batch; libedgellm runs token by token, which has the bits of any other cut.
"""

import argparse
import hashlib
import json
import math
import pydoc_data.topics
import sys
import time
from pathlib import Path

import jinja2.sandbox
import numpy as np
from gguf import GGUFReader

import peer
from exact import Exact

HERE = Path(__file__).parent
WINDOW = 512
CONTINUATION = 64
ROWS = 32  # Rows of logits in f64 at a time.
OURS = {"edgellm": {}, "edgellm-kv-i8": {"kv": "I8"}, "edgellm-exact": {"exact": True}}


def plain_text():
    """Paragraphs of prose: unindented, no grammar productions, no headings, long enough to say something."""
    paragraphs = []
    for topic in sorted(pydoc_data.topics.topics):
        for paragraph in pydoc_data.topics.topics[topic].split("\n\n"):
            lines = paragraph.strip("\n").split("\n")
            prose = all(line[:1].isalpha() or line[:1] in "\"'(" for line in lines) and "::=" not in paragraph
            if prose and len(paragraph) > 200 and not any(set(line) <= set("*=-~") for line in lines):
                paragraphs.append(" ".join(lines))
    return "\n\n".join(paragraphs)


def render_chat(template, messages):
    """The chat template of the file, as transformers runs it."""
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = lambda message: (_ for _ in ()).throw(ValueError(message))
    return environment.from_string(template).render(messages=messages, tools=None, add_generation_prompt=True)


def tokens_of(path, arguments):
    """The sequences' given tokens by set."""
    tokenizer = peer.Model(path, 1, context=64)
    text = plain_text()
    ids = tokenizer.tokenize(text[: 16 * arguments.tokens])
    windows = [ids[i : i + WINDOW] for i in range(0, min(arguments.tokens, len(ids) - WINDOW + 1), WINDOW)]
    prompts = json.loads(arguments.prompts.read_text())
    template = GGUFReader(path).fields["tokenizer.chat_template"].contents()
    raw = [tokenizer.tokenize(prompt) for prompt in prompts["raw"]]
    chat = [tokenizer.tokenize(render_chat(template, messages), special=True) for messages in prompts["chat"]]
    tokenizer.close()
    return {"plain": windows, "raw": raw, "chat": chat}


class Cache:
    """Named arrays in a folder, or nowhere; the key is everything they depend on."""

    def __init__(self, folder, *key):
        digest = hashlib.sha256("\0".join(map(str, key)).encode()).hexdigest()[:16]
        self.folder = folder / digest if folder else None
        if self.folder:
            self.folder.mkdir(parents=True, exist_ok=True)

    def get(self, name, make):
        """A dict of arrays: from the folder, else made and kept."""
        path = self.folder / f"{name}.npz" if self.folder else None
        if path and path.exists():
            with np.load(path) as arrays:
                return dict(arrays)
        arrays = make()
        if path:
            np.savez(path, **arrays)
        return arrays


def log_softmax(logits):
    """In f64. (rows, vocab)"""
    logits = logits.astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    logits -= np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return logits


def statistics(exact, engine, ids):
    """Per position of one sequence: KL, both likeliest tokens, -log p of the next token, and the gaps.

    gap: exact's log p of its best less its second best token; engine_gap: the engine's of the same two tokens."""
    rows = {key: [] for key in ("kl", "exact_top", "top", "exact_nll", "nll", "gap", "engine_gap")}
    for start in range(0, len(ids), ROWS):
        p, q = log_softmax(exact[start : start + ROWS]), log_softmax(engine[start : start + ROWS])
        at = np.arange(len(p))
        second, best = np.argpartition(p, -2, axis=1)[:, -2:].T
        following = np.append(ids[start + 1 : start + ROWS + 1], [0])[: len(p)]
        rows["kl"].append((np.exp(p) * (p - q)).sum(axis=1))
        rows["exact_top"].append(best)
        rows["top"].append(q.argmax(axis=1))
        rows["exact_nll"].append(-p[at, following])
        rows["nll"].append(-q[at, following])
        rows["gap"].append(p[at, best] - p[at, second])
        rows["engine_gap"].append(q[at, best] - q[at, second])
    return {key: np.concatenate(value) for key, value in rows.items()}


class Reference:
    """The exact model over all sequences: hidden states kept, logits made when asked for."""

    def __init__(self, path, given, cache):
        self.model = Exact(path)
        continuations = cache.get("greedy", lambda: self._greedy(given))
        self.sequences = {"plain": [np.array(ids) for ids in given["plain"]]}
        for name in ("raw", "chat"):
            self.sequences[name] = [np.append(a, b).astype(int) for a, b in zip(given[name], continuations[name])]
        self.hidden = {name: self._hidden(name, cache) for name in self.sequences}

    def _greedy(self, given):
        tokens = self.model.greedy(given["raw"] + given["chat"], CONTINUATION)
        return {"raw": np.array(tokens[: len(given["raw"])]), "chat": np.array(tokens[len(given["raw"]) :])}

    def _hidden(self, name, cache):
        """The final hidden rows of one set, a list per sequence."""
        made = cache.get(f"hidden-{name}", lambda: {"rows": np.concatenate(self.model.hidden(self.sequences[name]))})
        return np.split(made["rows"], np.cumsum([len(ids) for ids in self.sequences[name]])[:-1])

    def statistics(self, logits_of, limit, label):
        """The statistics of an engine over every set, concatenated; of each set sequences until `limit` tokens."""
        out = {}
        for name, sequences in self.sequences.items():
            done = []
            for ids, hidden in zip(sequences, self.hidden[name]):
                if limit and sum(len(d["kl"]) for d in done) >= limit:
                    break
                done.append(statistics(self.model.logits(hidden), logits_of(ids), ids))
                progress(f"{label}: {name} {len(done)}/{len(sequences)}")
            out |= {f"{name}.{key}": np.concatenate([d[key] for d in done]) for key in done[0]}
        return out


def progress(text):
    if sys.stderr.isatty():
        print(f"\r{text:<60}", end="", file=sys.stderr, flush=True)


def summary(stats, name, lengths):
    """What the table says of one set."""
    kl = stats[f"{name}.kl"]
    lasts = np.cumsum(lengths) - 1
    lasts = lasts[lasts < len(kl)]
    inner = np.delete(np.arange(len(kl)), lasts)  # The last token of a sequence has no successor.
    return {
        "positions": len(kl),
        "kl_mean": float(kl.mean()),
        "kl_p99": float(np.quantile(kl, 0.99)),
        "kl_max": float(kl.max()),
        "top1": float((stats[f"{name}.top"] == stats[f"{name}.exact_top"]).mean()),
        "perplexity": math.exp(stats[f"{name}.nll"][inner].mean()),
        "perplexity_exact": math.exp(stats[f"{name}.exact_nll"][inner].mean()),
    }


def partings(stats, reference, given):
    """Where each greedy text leaves the exact one: set, prompt, token, the exact top-two gap there, the engine's error
    of that gap, and how many of all other positions have an error at least as large as the gap."""
    errors = {name: np.abs(stats[f"{name}.gap"] - stats[f"{name}.engine_gap"]) for name in reference.sequences}
    everywhere = np.concatenate(list(errors.values()))
    found = []
    for name in ("raw", "chat"):
        end = 0
        for prompt, (ids, sequence) in enumerate(zip(given[name], reference.sequences[name])):
            start, end = end, end + len(sequence)
            if end > len(errors[name]):
                break
            at = np.arange(start + len(ids) - 1, end - 1)  # The positions whose logits chose the continuation.
            other = at[stats[f"{name}.top"][at] != sequence[at - start + 1]]
            if len(other):
                gap, error = float(stats[f"{name}.gap"][other[0]]), float(errors[name][other[0]])
                as_large = int((everywhere >= gap).sum() - (error >= gap)) / len(everywhere)
                place = {"set": name, "prompt": prompt, "token": int(other[0] - at[0])}
                found.append(place | {"gap": gap, "error": error, "as_large": as_large})
    return found


def paired(stats, peer_stats, reference):
    """Per set, this engine less llama.cpp over the same positions: (mean KL, its standard error, top-1, its standard
    error). Errors are between sequences, because positions of one sequence are not independent."""
    out = {}
    for name, sequences in reference.sequences.items():
        length = min(len(stats[f"{name}.kl"]), len(peer_stats[f"{name}.kl"]))
        ends = np.cumsum([len(ids) for ids in sequences])
        count = int((ends <= length).sum())
        row = []
        for value in (lambda s: s[f"{name}.kl"], lambda s: s[f"{name}.top"] == s[f"{name}.exact_top"]):
            difference = value(stats)[:length].astype(float) - value(peer_stats)[:length]
            parts = np.split(difference, ends)[:count]
            deviations = [part.sum() - len(part) * difference.mean() for part in parts]
            error = math.sqrt(count / max(count - 1, 1) * np.square(deviations).sum()) / length
            row += [float(difference.mean()), error]
        out[name] = row
    return out


def report(path, results, text_sha):
    """The table, for people."""
    print(f"\n{path.name}, text {text_sha[:16]} of Python {sys.version.split()[0]}\n")
    print("| engine | set | positions | mean KL | 99 % | max | same top-1 | perplexity | exact |")
    print("|---|---|---|---|---|---|---|---|---|")
    for engine, result in results.items():
        for name, s in result["sets"].items():
            print(
                f"| {engine} | {name} | {s['positions']} | {s['kl_mean']:.3g} | {s['kl_p99']:.3g} | {s['kl_max']:.3g} "
                f"| {100 * s['top1']:.2f} % | {s['perplexity']:.4f} | {s['perplexity_exact']:.4f} |"
            )
    for engine, result in results.items():
        for name, (kl, kl_error, top1, top1_error) in result.get("less_llama_cpp", {}).items():
            print(f"\n{engine} less llama.cpp, {name}: mean KL {kl:+.2e} ± {kl_error:.0e}, "
                  f"top-1 {100 * top1:+.2f} ± {100 * top1_error:.2f} points", end="")  # fmt: skip
    print()
    for engine, result in results.items():
        parted = result["partings"]
        print(f"\n{engine}: {len(parted)} of {result['prompts']} greedy texts part from the exact one within "
              f"{CONTINUATION} tokens; error of the exact top-two gap, 99 %: {result['gap_error']:.3g}")  # fmt: skip
        for p in parted:
            verdict = f"so large at {100 * p['as_large']:.2f} % of positions" if p["as_large"] else "NOT A NEAR TIE"
            print(f"  {p['set']:4} {p['prompt']:2}  token {p['token']:2}  exact gap {p['gap']:.4f}  "
                  f"error there {p['error']:.4f}  {verdict}")  # fmt: skip


def engines(names, path, threads):
    """Name, how to open it, and what its numbers depend on."""
    for name in names:
        if name == "llama.cpp":
            yield name, lambda: peer.Model(path, threads), peer.c.__version__
        else:
            import edgellm  # Only here: llama.cpp's half needs no library of ours.

            sha = hashlib.sha256(edgellm.LIBRARY.read_bytes()).hexdigest()
            options = OURS[name]
            yield name, lambda options=options: edgellm.Model(path, threads, **options), sha


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--tokens", type=int, default=6000, help="of plain text, rounded up to windows of 512")
    parser.add_argument("--exact-tokens", type=int, default=512, help="of each set for edgellm-exact, which is slow")
    parser.add_argument("--prompts", type=Path, default=HERE / "prompts.json")
    parser.add_argument("--engines", default="llama.cpp,edgellm,edgellm-exact", help="also: edgellm-kv-i8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cache", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()

    given = tokens_of(arguments.model, arguments)
    text_sha = hashlib.sha256(plain_text().encode()).hexdigest()
    cache = Cache(arguments.cache, arguments.model.stat().st_size, arguments.model.name, json.dumps(given))
    reference = Reference(arguments.model, given, cache)
    results, peer_stats = {}, None
    for engine, open_engine, version in engines(arguments.engines.split(","), arguments.model, arguments.threads):
        start = time.monotonic()

        def run():
            model = open_engine()
            try:
                limit = arguments.exact_tokens if engine == "edgellm-exact" else None
                return reference.statistics(model.logits_of, limit, engine)
            finally:
                model.close()

        stats = cache.get(f"{engine}-{version[:16]}", run)
        gap_errors = np.concatenate([np.abs(stats[f"{n}.gap"] - stats[f"{n}.engine_gap"]) for n in reference.sequences])
        results[engine] = {
            "sets": {n: summary(stats, n, [len(ids) for ids in s]) for n, s in reference.sequences.items()},
            "partings": partings(stats, reference, given),
            "prompts": sum(
                int((np.cumsum([len(ids) for ids in reference.sequences[n]]) <= len(stats[f"{n}.kl"])).sum())
                for n in ("raw", "chat")
            ),
            "gap_error": float(np.quantile(gap_errors, 0.99)),
            "seconds": time.monotonic() - start,
        }
        if engine == "llama.cpp":
            peer_stats = stats
        elif peer_stats:
            results[engine]["less_llama_cpp"] = paired(stats, peer_stats, reference)
    report(arguments.model, results, text_sha)
    if arguments.json:
        document = {"model": arguments.model.name, "text": text_sha, "engines": results}
        arguments.json.write_text(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
