"""The installed wheel at work: installed.py MODEL.gguf. Ends with 0 when all is as the package says."""

import ctypes
import json
import sys
import tempfile
import threading
import time
from pathlib import Path

import libedgellm
from libedgellm import Error, Finish, GrammarKind, KvType, Status

MESSAGES = [{"role": "user", "content": "Stop."}]
ANSWER = '{"action":"stop"}'


def raises(status, words, call, *arguments, **named):
    try:
        call(*arguments, **named)
    except Error as error:
        assert error.status is status and words in str(error), f"{error.status!r}: {error}"
        return error
    raise AssertionError(f"no {status!r}")


def library():
    assert "site-packages" in libedgellm.__file__, libedgellm.__file__
    assert (Path(libedgellm.__file__).parent / "py.typed").exists()
    info = libedgellm.build_info()
    assert info["version"] == libedgellm.version() and info["kernels"][-1] == "scalar"
    assert libedgellm.devices()[0].device == libedgellm.DEVICE_CPU
    assert {name.name for name in Status} >= {"OK", "END", "AGAIN", "E_ARG", "E_INTERNAL"}


def loads(path):
    error = raises(Status.E_IO, "/no/such/file", libedgellm.Model, "/no/such/file")
    assert error.errno == 2
    raises(Status.E_FORMAT, "", libedgellm.Model, __file__)
    seen = []
    with libedgellm.Model(Path(path), n_threads=1, spin_us=0, on_progress=seen.append) as model:
        assert 0.9 < seen[-1] <= 1 and seen == sorted(seen) and model.info.n_layers == 4
    try:
        model.info
    except ValueError as error:
        assert "closed" in str(error)
    else:
        raise AssertionError("a closed model answers")
    raises(Status.E_CANCELLED, "", libedgellm.Model, path, on_progress=lambda done: False)

    def fails(done):
        raise KeyError(done)

    try:
        libedgellm.Model(path, on_progress=fails)
    except KeyError:
        pass
    else:
        raise AssertionError("an exception of on_progress was lost")


def memory(path):
    plan = libedgellm.plan_memory(path, n_threads=1, device=libedgellm.DEVICE_CPU)
    assert plan.fits and plan.needed > 0 and plan.device == libedgellm.DEVICE_CPU

    def both(limit):
        with libedgellm.Model(path, n_threads=1, device=libedgellm.DEVICE_CPU, memory_limit=limit) as model:
            model.session().close()

    both(plan.needed)
    raises(Status.E_NOMEM, "", both, plan.needed - 4096)
    with libedgellm.Model(path, n_threads=1, prefault=True) as model, model.session() as session:
        session.prompt(model.tokenize("Stop."))
        session.step()
        assert session.stats().host_bytes > 0


def texts(model):
    assert model.info.arch == "bitnet-b1.58" and model.meta("general.architecture") == "bitnet-b1.58"
    raises(Status.E_ARG, "no.such.key", model.meta, "no.such.key")
    text = "Go to the kitchen, Jürgen 🤖. " * 100
    tokens = model.tokenize(text)
    assert len(tokens) > 500 and model.detokenize(tokens) == text
    assert model.tokenize("") == [] and model.detokenize([]) == ""
    (end,) = model.tokenize("<|im_end|>", special=True)
    assert model.is_eos(end) and model.token_bytes(end) == b"<|im_end|>" and len(model.tokenize("<|im_end|>")) > 1
    assert model.detokenize([end], special=True) == "<|im_end|>"
    raises(Status.E_ARG, "", model.detokenize, [-1])
    assert "Stop." in model.chat(MESSAGES, add_generation_prompt=False)


def sessions(model):
    prompt = model.tokenize(model.chat(MESSAGES), special=True)
    with model.session() as session:
        raises(Status.E_STATE, "", session.step)
        assert "".join(session.generate(prompt)) == ANSWER and session.length > len(prompt)
        assert session.prompt(prompt) == len(prompt) - 1
        *tokens, end = session.events()
        assert end.finish is Finish.EOS and end.is_end and all(event.logprob <= 0 for event in tokens)
        assert model.detokenize([event.token for event in tokens]) == ANSWER
        stats = session.stats(reset=True)
        assert stats.tokens_out == 2 * (len(tokens) + 1) and stats.tokens_reused == len(prompt) - 1
        assert session.stats().steps == 0

        session.rewind()
        session.append(prompt)
        answer = []
        while True:
            assert session.forward()
            logits = session.logits()
            assert isinstance(logits, ctypes.Array) and len(logits) == model.info.n_vocab
            best = max(range(len(logits)), key=logits.__getitem__)
            if session.accept(best).is_end:
                break
            answer.append(best)
        assert model.detokenize(answer) == ANSWER

        # A deadline that is over lets one stage of a layer through.
        session.prompt(prompt)
        text, again = "", 0
        while True:
            event = session.step(time.monotonic() - 1)
            again += event is None
            text += event.text if event else ""
            if event and event.is_end:
                break
        assert text == ANSWER and again > 10


def copies(model):
    prompt = model.tokenize(model.chat(MESSAGES), special=True)
    with model.session() as session, model.session() as other:
        session.prompt(prompt)
        scores = {text: sum(session.score(model.tokenize(text, bos=False))) for text in ('{"action":"dock"}', ANSWER)}
        assert max(scores, key=scores.get) == ANSWER
        raises(Status.E_ARG, "", session.score, [])
        begun = "".join(session.step().text for _ in range(2))
        fork, saved = session.fork(), session.save()
        other.restore(saved)
        for one in (fork, session, other):
            assert begun + "".join(event.text for event in one.events()) == ANSWER
        raises(Status.E_INTEGRITY, "", other.restore, saved[:-1])
        raises(Status.E_INTEGRITY, "", other.restore, b"")
        with tempfile.TemporaryFile() as file:
            fork.save_fd(file.fileno())
            file.seek(0)
            other.restore_fd(file.fileno())
        assert other.length == fork.length
        fork.close()


def grammars(model):
    prompt = model.tokenize(model.chat(MESSAGES), special=True)
    with model.session() as session:
        with model.grammar(GrammarKind.CHOICE, ["yes", "no"]) as grammar:
            session.sampling(grammar=grammar)
        for _ in range(2):
            assert "".join(session.generate(prompt)) in ("yes", "no")
        schema = {"type": "object", "properties": {"action": {"enum": ["dock", "stop"]}}, "required": ["action"]}
        session.sampling(grammar=model.grammar(GrammarKind.JSON_SCHEMA, schema | {"additionalProperties": False}))
        assert json.loads("".join(session.generate(prompt))) == {"action": "stop"}
        grammar = model.grammar(GrammarKind.REGEX, '"[a-z]{3}"')
        session.sampling(grammar=grammar, grammar_trigger='"action":')
        text = "".join(session.generate(prompt))
        assert text.startswith('{"action":"') and len(text) == len('{"action":"abc"'), text
        raises(Status.E_GRAMMAR, "", model.grammar, GrammarKind.REGEX, "(")


def sampled(model):
    prompt = model.tokenize(model.chat(MESSAGES), special=True)
    with model.session(n_ctx=128, prefill_chunk=4, kv_type=KvType.I8, max_tokens=3) as session:
        assert len([event for event in session.generate(prompt)]) <= 3
        session.sampling(stop=["op", "never"], bias={prompt[0]: float("-inf")})
        assert "".join(session.generate(prompt)) == '{"action":"st'
        session.sampling(temperature=1.5, seed=7, max_tokens=20, ignore_eos=1, repeat_penalty=1.1)
        first = "".join(session.generate(prompt))
        assert "".join(session.generate(prompt)) == first != ANSWER
        raises(Status.E_ARG, "temperature", session.sampling, temperature=-1)
        raises(Status.E_CONTEXT, "", session.prompt, prompt * 20)


def cancelled(model):
    prompt = model.tokenize(model.chat(MESSAGES), special=True)
    session = model.session(ignore_eos=1)
    session.prompt(prompt)
    errors = []

    def work():
        try:
            for _ in session.events():
                pass
        except Error as error:
            errors.append(error.status)

    thread = threading.Thread(target=work)
    thread.start()
    while session.stats().tokens_out < 3:
        time.sleep(0.001)
    session.cancel(session.run)
    thread.join()
    assert errors == [Status.E_CANCELLED]
    session.close()
    session.close()


def main():
    library()
    loads(sys.argv[1])
    memory(sys.argv[1])
    model = libedgellm.Model(sys.argv[1], n_threads=1)
    texts(model)
    sessions(model)
    copies(model)
    grammars(model)
    sampled(model)
    cancelled(model)


if __name__ == "__main__":
    main()
