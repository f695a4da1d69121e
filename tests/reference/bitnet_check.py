"""How well this library, transformers and llama.cpp agree with bitnet.py, the exact arithmetic of BitNet models.

    pip install numpy gguf torch transformers accelerate    (llama-cpp: llama-cpp-python)
    cargo build --release
    python tests/reference/bitnet_check.py COMMAND ...

    random FOLDER            writes a random model in the shape of bitnet-b1.58-2B-4T (hidden 2560, MLP 6912, 20 heads
                             of 128, 5 KV heads), with --layers 4 and --vocab 32000, and the same as model.gguf
    transformers FOLDER      transformers in float32 and float64 against bitnet.py: the residual stream after every
                             layer and the logits, as they are and with bitnet.py taking transformers' codes
    library FILE             the library against bitnet.py on a file: the model cut after every layer, and every flip
                             found that explains a difference
    references FILE FOLDER   the library against kept answers of transformers: ids of the text, greedy ids, logits
    commands FILE JSONL      how many requests get exactly their answer: {"request": ..., "answer": ...} a line
    answers FOLDER JSONL     writes tests/data/bitnet_tiny.json: what transformers in float32 says to some of them
    llama-cpp FILE           the library against llama.cpp, which rounds activations to int8 in blocks of 256 and not
                             by token: the file's weights as `bitnet` and as `llama`, in TQ2_0 and TQ1_0

A code flips where a value lies between two int8 codes and the last bits of f32 decide. With transformers we see its
codes: bitnet.py takes them, and wherever it would itself have taken another, the value must have been that near to the
middle, or one of the two is wrong. The library's codes cannot be seen, so flips are searched for: at the first layer
and position where the logits of the cut model differ, one by one the codes nearest to a middle are moved to the other
side, until the difference is gone. That is in exact mode. With --default (--tolerance 1e-4 --margin 5e-3, and a file
whose embedding is F16), keys and values in f16 flip too, which the search does not know: some positions stay
unexplained.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path

import gguf_file
import numpy as np
from bitnet import SITES, Bitnet, margin, quantize_token

PROJECTIONS = {"q_proj": "attn_in", "o_proj": "attn_out", "gate_proj": "ffn_in", "down_proj": "ffn_out"}
SHAPE_2B = {
    "hidden_size": 2560, "intermediate_size": 6912, "num_attention_heads": 20, "num_key_value_heads": 5,
    "hidden_act": "relu2", "tie_word_embeddings": True,
}  # fmt: skip
CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
ENDS = ("<|im_end|>", "<|endoftext|>")
ANSWERS = Path(__file__).parents[1] / "data/bitnet_tiny.json"
GREEDY = [  # Chat or not, and the text.
    (True, "Go to the kitchen, then pick up the red cup from the table."),
    (False, "Once upon a time, there was a little fox named Finn."),
    (True, "Tell me a story about a robot named Beep who helps Lily."),
]


def relative(found, expected):
    """Largest error of each row as a part of the largest value of all."""
    return np.abs(found - expected).max(axis=-1) / np.abs(expected).max()


def sequences(arguments, vocab):
    """Token ids: those of the reference texts, or random ones."""
    if arguments.references:
        for path in sorted(arguments.references.glob("*.json")):
            reference = json.loads(path.read_text())
            yield path.stem, np.array(reference["ids"] + reference["greedy_ids"])
    else:
        yield "random", np.random.default_rng(0).integers(0, vocab, arguments.tokens)


def transformers_trace(model, ids):
    """Residual stream after every layer, (layers + 1, tokens, hidden), codes by (layer, site), and logits."""
    import torch

    stream, codes, hooks = [], {}, []

    def record_codes(layer, site):
        def hook(module, inputs):
            x = inputs[0][0].float()
            scale = 127 / x.abs().max(dim=-1, keepdim=True).values.clamp(min=1e-5)  # As its ActQuant has it.
            codes[layer, site] = (x * scale).round().clamp(-128, 127).numpy()

        return hook

    hooks.append(model.model.layers[0].register_forward_pre_hook(lambda _, inputs: stream.append(inputs[0][0])))
    for n, layer in enumerate(model.model.layers):
        hooks.append(layer.register_forward_hook(lambda _, inputs, out: stream.append(out[0])))
        for name, site in PROJECTIONS.items():
            part = layer.self_attn if site.startswith("attn") else layer.mlp
            hooks.append(getattr(part, name).register_forward_pre_hook(record_codes(n, site)))
    with torch.no_grad():
        logits = model(torch.tensor(ids)[None]).logits[0]
    for hook in hooks:
        hook.remove()
    return [x.double().numpy() for x in stream], codes, logits.double().numpy()


def check_transformers(arguments):
    import torch
    from make_bitnet_fixtures import load_transformers

    exact = Bitnet(arguments.model)
    for dtype in (torch.float32, torch.float64):
        model = load_transformers(arguments.model, dtype)
        for name, ids in sequences(arguments, len(exact.values["token_embd"])):
            stream, codes, logits = transformers_trace(model, ids)
            flips, total = {}, 0

            def follow(n, site, own, offsets, codes=codes, flips=flips):
                other = codes[n, site]
                apart = own != other
                assert (np.abs(own - other)[apart] == 1).all(), (n, site)
                flips.setdefault(n, []).extend(margin(offsets[apart]))
                return other

            free, forced = exact.residuals(ids), exact.residuals(ids, follow)
            total = sum(c.size for c in codes.values())
            print(f"\n{name}, {len(ids)} tokens, {dtype}: error of the residual stream, free and with its codes; flips")
            for n in range(exact.config.layers):
                margins = flips[n]
                worst = f", margin at most {max(margins):.1e}" if margins else ""
                print(f"  layer {n:2}: {relative(free[n + 1], stream[n + 1]).max():.1e}  "
                      f"{relative(forced[n + 1], stream[n + 1]).max():.1e}  {len(margins):4}{worst}")  # fmt: skip
            margins = sum(flips.values(), [])
            print(f"  logits:   {relative(exact.head(free[-1]), logits).max():.1e}  "
                  f"{relative(exact.head(forced[-1]), logits).max():.1e}  {len(margins):4} of {total} codes, "
                  f"margin at most {max(margins, default=0):.1e}")  # fmt: skip
            likeliest = (exact.head(free[-1]).argmax(axis=1) == logits.argmax(axis=1)).mean()
            print(f"  likeliest token the same at {100 * likeliest:.1f} % of positions")


def cut(path, out, layers):
    """Writes the model with its first layers only: its logits show the residual stream after them."""
    file = gguf_file.read(path)
    arch = file.value("general.architecture")
    file.set(f"{arch}.block_count", 4, layers)
    beyond = [name for name in file.tensors if name.startswith("blk.") and int(name.split(".")[1]) >= layers]
    for name in beyond:
        del file.tensors[name]
    gguf_file.write(out, file)


class FlipSearch:
    """One layer of bitnet.py made to follow the library, whose logits after that layer are given."""

    def __init__(self, exact, n, x, logits, arguments):
        self.exact, self.n, self.x, self.logits = exact, n, x, logits
        self.tolerance, self.margin = arguments.tolerance, arguments.margin
        self.moves = {site: {} for site in SITES}  # (position, column) to the code that is taken.
        self.flips, self.unexplained = [], []

    def run(self):
        """(residual stream, codes and offsets by site) with the moves so far."""
        seen = {}

        def adjust(n, site, codes, offsets):
            seen[site] = codes.copy(), offsets
            for (position, column), code in self.moves[site].items():
                codes[position, column] = code
            return codes

        return self.exact.layer(self.n, self.x, adjust), seen

    def errors(self, stream, rows=slice(None), of=np.max):
        """Of positions, as a part of the largest logit of all: the largest error, or the mean."""
        return of(np.abs(self.exact.head(stream[rows]) - self.logits[rows]), axis=-1) / np.abs(self.logits).max()

    def candidates(self, seen, position):
        """Codes of a position that lie near the middle: (margin, site, column, the code on the other side)."""
        for site in SITES:
            codes, offsets = (rows[position] for rows in seen[site])
            for column in np.nonzero(margin(offsets) < self.margin)[0]:
                if (position, column) not in self.moves[site]:
                    yield margin(offsets[column]), site, column, codes[column] + np.sign(offsets[column])

    def try_one(self, position):
        """Moves the code of this position that helps most, if one does. Of many flips at once, each helps a little."""
        stream, seen = self.run()
        before, best = self.errors(stream, [position], np.mean)[0], None
        for near, site, column, code in self.candidates(seen, position):
            self.moves[site][position, column] = code
            found = self.errors(self.run()[0], [position], np.mean)[0]
            del self.moves[site][position, column]
            if found < (best[0] if best else 0.98 * before):
                best = found, near, site, column, code
        if best:
            _, near, site, column, code = best
            self.moves[site][position, column] = code
            self.flips.append((position, site, near))
        return best is not None

    def try_factor(self, position):
        """Moves the first codes to what the norm gives in f32 with another last bit of its factor, if that is all.

        The rows of the embedding are bf16 and so are the norm's weights: by the dozen, their products can lie exactly
        between two codes of a token, and several flip at once."""
        x, name = self.x[position].astype(np.float32), f"blk.{self.n}.attn_norm"
        factor = np.float32(1 / np.sqrt(np.mean(self.x[position] ** 2) + self.exact.config.epsilon))
        codes, offsets = (rows[position] for rows in self.run()[1]["attn_in"])
        kept = self.moves["attn_in"]
        for i in range(1, 10):
            other, *_ = quantize_token((x * factor * self.exact.values[name].astype(np.float32))[None])
            apart = np.nonzero(other[0] != codes)[0]
            self.moves["attn_in"] = kept | {(position, column): other[0][column] for column in apart}
            if self.errors(self.run()[0], [position])[0] < self.tolerance:
                self.flips += [(position, "attn_in", margin(offsets[column])) for column in apart]
                return True
            # The next by distance: one bit more, one less, two more, ...
            factor = (factor.view(np.int32) + np.int32(i * (-1) ** i)).view(np.float32)
        self.moves["attn_in"] = kept
        return False

    def explain(self):
        """The residual stream with all flips found; positions that no flip explains stay as they are."""
        while True:
            stream, _ = self.run()
            errors = self.errors(stream)
            bad = [int(p) for p in np.nonzero(~(errors < self.tolerance))[0] if p not in self.unexplained]
            if not bad:
                return stream
            if not (self.n == 0 and self.try_factor(bad[0])) and not self.try_one(bad[0]):
                self.unexplained.append(bad[0])


def check_library(arguments):
    import edgellm

    exact = Bitnet(arguments.model, arguments.default)
    for name, ids in sequences(arguments, len(exact.values["token_embd"])):
        ids = ids[: arguments.tokens]
        x = free = exact.embed(ids)
        flips, unexplained = 0, 0
        print(f"\n{name}, {len(ids)} tokens: error of the cut model's logits, free and with the flips found; flips")
        for n in range(exact.config.layers):
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "cut.gguf"
                cut(arguments.model, path, n + 1)
                model = edgellm.Model(path, arguments.threads, exact=not arguments.default)
                logits = model.logits_of(ids)
                model.close()
            search = FlipSearch(exact, n, x, logits, arguments)
            free, x = exact.layer(n, free), search.explain()
            flips, unexplained = flips + len(search.flips), unexplained + len(search.unexplained)
            worst = f", margin at most {max(near for *_, near in search.flips):.1e}" if search.flips else ""
            worst += f", NOT EXPLAINED at {search.unexplained}" if search.unexplained else ""
            print(f"  layer {n:2}: {relative(exact.head(free), logits).max():.1e}  "
                  f"{relative(exact.head(x), logits).max():.1e}  {len(search.flips):4}{worst}", flush=True)  # fmt: skip
        same = (exact.head(free).argmax(axis=1) == logits.argmax(axis=1)).mean()
        print(f"  {flips} flips, {unexplained} positions not explained; likeliest token that of bitnet.py at "
              f"{100 * same:.1f} % of positions")  # fmt: skip


def check_references(arguments):
    import edgellm

    model = edgellm.Model(arguments.model, arguments.threads, exact=arguments.exact)
    for path in sorted(arguments.folder.glob("*.json")):
        reference = json.loads(path.read_text())
        ids, greedy = reference["ids"], reference["greedy_ids"]
        assert model.tokenize(reference["text"], special=True) == ids, path.stem
        found = model.greedy(ids, len(greedy))
        parts = next((i for i, (a, b) in enumerate(zip(found, greedy, strict=True)) if a != b), None)
        model.rewind()
        model.append(ids)
        model.forward()
        logits = np.load(path.with_suffix(".npy"))
        error = np.abs(model.logits() - logits).max() / np.abs(logits).max()
        text = model.detokenize(found, special=True) == reference["greedy_text"]
        print(f"{path.stem:10} {'all greedy ids equal' if text and parts is None else f'parts at {parts}'}, "
              f"error of the prompt's logits {error:.1e}")  # fmt: skip
        if parts is not None:
            exactly = Bitnet(arguments.model, not arguments.exact).logits(ids + greedy[:parts])[-1]
            print(f"  transformers' two best there are {reference['greedy_margins'][parts]} apart; bitnet.py has its "
                  f"{exactly[greedy[parts]] - exactly[found[parts]]:+.5f} above ours")  # fmt: skip
    model.close()


def check_commands(arguments):
    import edgellm

    pairs = [json.loads(line) for line in arguments.jsonl.read_text().splitlines()]
    model = edgellm.Model(arguments.model, arguments.threads)
    stop = [token for end in ENDS for token in model.tokenize(end, special=True)]
    right = valid = 0
    for pair in pairs:
        ids = model.tokenize(CHAT.format(pair["request"]), special=True)
        text = model.detokenize(model.greedy(ids, 160, stop))
        right += text == pair["answer"]
        try:
            json.loads(text)
            valid += 1
        except ValueError:
            pass
        if text != pair["answer"]:
            print(f"  {pair['request']}\n    wanted {pair['answer']}\n    got    {text}")
    model.close()
    share = 100 * right / len(pairs)
    print(f"{arguments.model.name}: {right} of {len(pairs)} exact ({share:.1f} %), {valid} valid JSON")


def write_answers(arguments):
    """The tests' goldens. Where margins are small int8 flips decide, so the tests look no further than that."""
    import torch
    import transformers
    from make_bitnet_fixtures import load_transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(arguments.model)
    model = load_transformers(arguments.model, torch.float32)
    end = tokenizer.convert_tokens_to_ids(ENDS[0])

    def answer(text, count):
        ids = tokenizer(text, add_special_tokens=False).input_ids
        with torch.no_grad():
            options = {"max_new_tokens": count, "do_sample": False, "eos_token_id": end, "output_logits": True}
            out = model.generate(torch.tensor([ids]), return_dict_in_generate=True, **options)
        best = torch.stack(out.logits)[:, 0].topk(2).values
        margins = [round(float(margin), 3) for margin in best[:, 0] - best[:, 1]]
        return {"prompt": text, "ids": ids, "greedy_ids": out.sequences[0, len(ids) :].tolist(), "margins": margins}

    pairs = [json.loads(line) for line in arguments.jsonl.read_text().splitlines()]
    commands, tried = [], 0
    for pair in pairs:
        tried += 1
        found = answer(CHAT.format(pair["request"]), 160)
        if min(found["margins"]) < arguments.margin or found["greedy_ids"][-1] != end:
            continue
        text = tokenizer.decode(found["greedy_ids"], skip_special_tokens=True)
        commands.append({"request": pair["request"], "answer": text, "expected": pair["answer"]})
        if len(commands) == 50:
            break
    versions = f"transformers {transformers.__version__}, torch {torch.__version__.split('+')[0]}"
    data = {
        "made_by": f"python tests/reference/bitnet_check.py answers {arguments.model.name} {arguments.jsonl.name}; "
        f"{versions}, float32 on a CPU. commands: the first {len(commands)} of {tried} held-back requests at all of "
        f"whose tokens the two best logits are at least {arguments.margin} apart. greedy: with these margins.",
        "greedy": [answer(CHAT.format(text) if chat else text, 64) for chat, text in GREEDY],
        "commands": commands,
    }
    rows = ["{", *(f"{json.dumps(key)}: {json.dumps(data[key])}," for key in ("made_by",))]
    for key in ("greedy", "commands"):
        items = ",\n".join(json.dumps(item, ensure_ascii=False) for item in data[key])
        rows.append(f'"{key}": [\n{items}\n]' + ("," if key == "greedy" else ""))
    ANSWERS.write_text("\n".join([*rows, "}"]) + "\n")


def rewrite(path, out, architecture, ternary):
    """The model's weights as another architecture and in another ternary format. Only llama.cpp's `bitnet` and `llama`,
    which have SiLU, can be compared: another model than was trained, but one with the same weights."""
    file = gguf_file.read(path)
    old = file.value("general.architecture")
    keys = {"attn_q": "head_count", "attn_k": "head_count_kv"}
    heads = {part: file.value(f"{old}.attention.{key}") for part, key in keys.items()}
    file.metadata = {key.replace(f"{old}.", f"{architecture}.", 1): value for key, value in file.metadata.items()}
    file.set("general.architecture", 8, architecture)
    for name, tensor in list(file.tensors.items()):
        if architecture == "llama" and "sub_norm" in name:
            del file.tensors[name]
        if tensor.kind in gguf_file.TERNARY.values():
            codes, scales = gguf_file.unpack(tensor)
            part = name.split(".")[2]
            if architecture == "llama" and part in heads:  # Rows of each head to adjacent RoPE pairs.
                codes = codes.reshape(heads[part], 2, -1, codes.shape[1]).swapaxes(1, 2).reshape(codes.shape)
            file.tensors[name] = gguf_file.pack(codes, np.max(scales), gguf_file.TERNARY[ternary])
    gguf_file.write(out, file)


def check_llama_cpp(arguments):
    with tempfile.TemporaryDirectory() as folder:
        for architecture in ("bitnet", "llama"):
            ours = {}
            for ternary in ("TQ2_0", "TQ1_0"):
                path = Path(folder) / f"{architecture}-{ternary}.gguf"
                rewrite(arguments.model, path, architecture, ternary)
                ours[ternary] = compare_llama_cpp(path, arguments)
            same = "the same bits" if ours["TQ1_0"] == ours["TQ2_0"] else "NOT THE SAME"
            print(f"{architecture}: our logits of TQ1_0 and TQ2_0 are {same}")


def compare_llama_cpp(path, arguments):
    """Prints how far our likeliest tokens are llama.cpp's; returns our logits' bytes."""
    import edgellm
    import peer

    theirs, ours, seen = peer.Model(path, arguments.threads), edgellm.Model(path, arguments.threads), []
    for name, ids in sequences(arguments, ours.vocab):
        a, b = ours.logits_of(ids), theirs.logits_of(ids).astype(np.float64)
        seen.append(a.tobytes())
        apart = np.nonzero(a.argmax(axis=1) != b.argmax(axis=1))[0]
        prompt = [int(token) for token in ids[: max(1, len(ids) - 64)]]
        mine, its, step = ours.greedy(prompt, 64), [], prompt
        theirs.rewind()
        while len(its) < 64:
            theirs.run(step)
            step = [int(theirs.logits().argmax())]
            its += step
        equal = next((i for i, (x, y) in enumerate(zip(mine, its, strict=True)) if x != y), 64)
        error = np.sqrt(np.mean((a - b) ** 2) / np.mean(b**2))
        print(f"{path.stem} {name}: likeliest token the same at {len(ids) - len(apart)} of {len(ids)} positions, "
              f"greedy the same for {equal} of 64; error rms {error:.1e}")  # fmt: skip
        for p in apart:
            x, y = a[p].argmax(), b[p].argmax()
            print(f"  at {p} llama.cpp has its token {b[p][y] - b[p][x]:.4f} above ours, we ours "
                  f"{a[p][x] - a[p][y]:.4f} above its; logits differ by {np.std(a[p] - b[p]):.4f} (rms)")  # fmt: skip
    ours.close()
    theirs.close()
    return seen


def write_random(arguments):
    from make_bitnet_fixtures import random_folder, write_gguf

    arguments.model.mkdir(parents=True, exist_ok=True)
    config = SHAPE_2B | {"num_hidden_layers": arguments.layers, "vocab_size": arguments.vocab}
    random_folder(arguments.model, config, "offline", 1)
    write_gguf(arguments.model / "model.gguf", arguments.model, "bitnet-b1.58", "TQ2_0", gguf_file.F16)


def main():
    os.environ["TORCHDYNAMO_DISABLE"] = "1"  # As in make_bitnet_fixtures.py.
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, run in {
        "random": write_random, "transformers": check_transformers, "library": check_library,
        "references": check_references, "commands": check_commands, "answers": write_answers,
        "llama-cpp": check_llama_cpp,
    }.items():  # fmt: skip
        command = commands.add_parser(name)
        command.set_defaults(run=run)
        command.add_argument("model", type=Path)
        command.add_argument("--threads", type=int, default=2)
        if name in ("transformers", "library", "llama-cpp"):
            command.add_argument("--references", type=Path, help="folder of texts as JSON with ids and greedy_ids")
            command.add_argument("--tokens", type=int, default=96)
    commands.choices["random"].add_argument("--layers", type=int, default=4)
    commands.choices["random"].add_argument("--vocab", type=int, default=32000)
    commands.choices["library"].add_argument("--default", action="store_true", help="not in exact mode")
    commands.choices["library"].add_argument("--tolerance", type=float, default=3e-6, help="of the largest logit")
    commands.choices["library"].add_argument("--margin", type=float, default=2e-4, help="of codes that may flip")
    commands.choices["references"].add_argument("folder", type=Path)
    commands.choices["references"].add_argument("--exact", action="store_true")
    commands.choices["commands"].add_argument("jsonl", type=Path)
    commands.choices["answers"].add_argument("jsonl", type=Path)
    commands.choices["answers"].add_argument("--margin", type=float, default=0.5)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
