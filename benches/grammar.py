"""Generation under JSON schemas: is all of it valid, and what does the grammar cost?

    pip install numpy jsonschema
    cargo build --release
    python benches/grammar.py MODEL.gguf [--each 20] [--threads 2] [--max-tokens 300] [--json OUT.json]

For each schema of grammar_schemas.py so many generations at temperature 1, each with a seed of its own. What came out whole
(the grammar or the model ended it; not max_tokens) is parsed and validated by Python's jsonschema, which shares no code with
the library. Cost: what the session's stats count as ns_grammar (finding the tokens that are allowed, and following the one
that came), token by token, beside the time of the decode steps in which it happened; and the time to compile a schema.
"""

import argparse
import ctypes
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "reference"))

import jsonschema
from edgellm import Model
from grammar_schemas import SCHEMAS


class Generator:
    """A model with a session, and grammars for it."""

    def __init__(self, path, threads, max_tokens):
        self.model = Model(path, threads, context=1024)
        self.lib, self.max_tokens = self.model.library, max_tokens
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        for name, arguments in {
            "edgellm_grammar_new": [pointer, ctypes.c_int32, ctypes.c_char_p, size, pointer],
            "edgellm_session_sampling": [pointer, pointer],
            "edgellm_session_prompt": [pointer, pointer, size, pointer],
            "edgellm_session_stats": [pointer, pointer, ctypes.c_uint32],
            "edgellm_step": [pointer, pointer],
        }.items():
            getattr(self.lib.c, name).argtypes = arguments
        self.lib.c.edgellm_grammar_free.argtypes = [pointer]

    def grammar(self, schema):
        """The grammar of a schema, and how long compiling took."""
        text, out, start = json.dumps(schema).encode(), ctypes.c_void_p(), time.perf_counter()
        kind = self.lib.constants["GRAMMAR_JSON_SCHEMA"]
        self.lib.check(self.lib.c.edgellm_grammar_new(self.model.model, kind, text, len(text), ctypes.byref(out)))
        return out, time.perf_counter() - start

    def run(self, prompt, grammar, seed):
        """The text, why it ended, and for each decode step (its ns, the grammar's ns)."""
        lib, session = self.lib, self.model.session
        sampling = lib.new("sampling", temperature=1, seed=seed, max_tokens=self.max_tokens, grammar=grammar)
        lib.check(lib.c.edgellm_session_sampling(session, ctypes.byref(sampling)))
        ids = (ctypes.c_int32 * len(prompt))(*prompt)
        lib.check(lib.c.edgellm_session_prompt(session, ids, len(prompt), None))
        event, stats = lib.new("event"), lib.new("stats")
        text, steps, before = b"", [], None
        while True:
            status = lib.check(lib.c.edgellm_step(session, ctypes.byref(event)))
            lib.check(lib.c.edgellm_session_stats(session, ctypes.byref(stats), 0))
            text += ctypes.string_at(event.text.ptr, event.text.len) if event.text.len else b""
            if before is not None and event.token >= 0:
                steps.append((event.ns, stats.ns_grammar - before))
            before = stats.ns_grammar if event.token >= 0 else None
            if status == lib.constants["END"]:
                return text.decode(), event.finish, steps


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--each", type=int, default=20, help="generations per schema")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-tokens", type=int, default=300)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    generator = Generator(arguments.model, arguments.threads, arguments.max_tokens)
    cut = generator.lib.constants["FINISH_LENGTH"]
    compiled, steps, rows = [], [], []
    for number, (what, schema) in enumerate(SCHEMAS.items()):
        jsonschema.Draft202012Validator.check_schema(schema)
        validator = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
        asked = f"<|im_start|>user\nInvent {what}. Answer in JSON.<|im_end|>\n<|im_start|>assistant\n"
        prompt = generator.model.tokenize(asked, special=True)
        grammar, seconds = generator.grammar(schema)
        compiled.append(seconds)
        row = {"schema": what, "whole": 0, "valid": 0, "cut": 0, "different": set(), "invalid": []}
        for seed in range(arguments.each):
            text, finish, taken = generator.run(prompt, grammar, 1000 * number + seed)
            steps += taken
            row["different"].add(text)
            if finish == cut:
                row["cut"] += 1
                continue
            row["whole"] += 1
            try:
                validator.validate(json.loads(text))
                row["valid"] += 1
            except (ValueError, jsonschema.ValidationError) as error:
                row["invalid"].append([text, str(error).splitlines()[0]])
        generator.lib.c.edgellm_grammar_free(grammar)
        row["different"] = len(row["different"])
        rows.append(row)
        print(f"{what}: {row['valid']} of {row['whole']} valid, {row['cut']} cut, {row['different']} different", flush=True)
        for text, error in row["invalid"]:
            print(f"  INVALID {text!r}: {error}")
    whole, valid, cuts = (sum(row[key] for row in rows) for key in ("whole", "valid", "cut"))
    costs = sorted(cost for _, cost in steps)
    total = sum(time for time, _ in steps)
    at = lambda percent: costs[len(costs) * percent // 100] / 1000  # noqa: E731
    share = 100 * sum(costs) / total
    print(f"{len(rows)} schemas, {whole + cuts} generations: {whole} whole, {valid} of them valid, {cuts} cut by max_tokens")
    print(f"compile: first {compiled[0] * 1e3:.0f} ms (builds the index), then median {statistics.median(compiled[1:]) * 1e3:.2f} ms, longest {max(compiled[1:]) * 1e3:.2f} ms")
    print(f"grammar per token, of {len(costs)}: p50 {at(50):.0f} us, p99 {at(99):.0f} us, longest {costs[-1] / 1000:.0f} us")
    print(f"decode step: median {statistics.median(time for time, _ in steps) / 1e6:.2f} ms; the grammar is {share:.2f} % of all decode time")
    if arguments.json:
        arguments.json.write_text(json.dumps({"rows": rows, "compile_s": compiled, "grammar_ns": costs, "steps_ns": [t for t, _ in steps]}))
    sys.exit(valid != whole)


main()
