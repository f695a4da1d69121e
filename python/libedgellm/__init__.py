"""LLM inference for robots and devices: libedgellm from Python.

    import libedgellm

    with libedgellm.Model("model.gguf") as model, model.session(max_tokens=200) as session:
        prompt = model.chat([{"role": "user", "content": "Go to the kitchen."}])
        for text in session.generate(model.tokenize(prompt, special=True)):
            print(text, end="", flush=True)

The library is inside the package; the calls are those of its C API by way of ctypes, which lets other Python threads run
meanwhile. A model may be used by any number of threads at once, a session by one at a time (`Session.cancel`, `length` and
`stats` by any). What fails raises `Error`, with the library's own words.
"""

from __future__ import annotations

import ctypes
import enum
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from . import _c

__all__ = [
    "Device",
    "Error",
    "Event",
    "Finish",
    "Grammar",
    "GrammarKind",
    "KvType",
    "MemoryPlan",
    "Model",
    "ModelInfo",
    "Session",
    "Stats",
    "Status",
    "build_info",
    "devices",
    "plan_memory",
    "version",
]

DEVICE_AUTO: int = _c.DEVICE_AUTO
DEVICE_CPU: int = _c.DEVICE_CPU


class Status(enum.IntEnum):
    """What a call came to: below 0 it failed."""

    _ignore_ = "_name _value"
    for _name, _value in vars(_c).items():
        if _name in ("OK", "END", "AGAIN") or _name.startswith("E_"):
            locals()[_name] = _value


class Finish(enum.IntEnum):
    """Why a generation is over."""

    NONE = _c.FINISH_NONE
    EOS = _c.FINISH_EOS
    STOP = _c.FINISH_STOP
    LENGTH = _c.FINISH_LENGTH
    GRAMMAR = _c.FINISH_GRAMMAR


class GrammarKind(enum.IntEnum):
    """What the text of a grammar is."""

    JSON_SCHEMA = _c.GRAMMAR_JSON_SCHEMA
    REGEX = _c.GRAMMAR_REGEX
    LARK = _c.GRAMMAR_LARK
    CHOICE = _c.GRAMMAR_CHOICE
    TOOLS = _c.GRAMMAR_TOOLS


class KvType(enum.IntEnum):
    """What a session keeps of past keys and values."""

    AUTO = _c.KV_AUTO
    F16 = _c.KV_F16
    I8 = _c.KV_I8


class Error(RuntimeError):
    """A call failed. `status` says how, `errno` is the system's number with `Status.E_IO`."""

    def __init__(self, status: int, message: str, errno: int = 0) -> None:
        super().__init__(message)
        self.status = Status(status)
        self.errno = errno


def _check(status: int) -> int:
    if status < 0:
        raise Error(status, _c.last_error().decode("utf-8", "replace"), _c.last_errno())
    return status


def _text(string: Any) -> str:
    return ctypes.string_at(string.ptr, string.len).decode("utf-8", "replace") if string.len else ""


def _sized(kind: type[Any]) -> Any:
    """A struct that the library fills."""
    struct = kind()
    struct.struct_size = ctypes.sizeof(kind)
    return struct


def _defaults(name: str, values: Mapping[str, Any]) -> Any:
    """A struct with the library's defaults and these values."""
    struct = getattr(_c, name)()
    getattr(_c, f"{name}_init_")(ctypes.byref(struct), ctypes.sizeof(struct))
    for key, value in values.items():
        setattr(struct, key, value)
    return struct


def _tokens(tokens: Sequence[int]) -> Any:
    return (ctypes.c_int32 * len(tokens))(*tokens)


def _grow(kind: Any, first: int, call: Callable[[Any, int, Any], int]) -> Any:
    """Calls with a buffer until it is large enough: what is in it then."""
    n = ctypes.c_size_t(max(first, 1))
    while True:
        buffer = (kind * n.value)()
        status = call(buffer, len(buffer), ctypes.byref(n))
        if status != _c.E_BUFFER or n.value <= len(buffer):
            _check(status)
            return buffer[: n.value]


def version() -> str:
    """The library's, for example "0.1.0"."""
    return str(_c.version().decode())


def build_info() -> dict[str, Any]:
    """How the library was built, and which kernels this CPU can run, best first."""
    info: dict[str, Any] = json.loads(_c.build_info())
    return info


@dataclass(frozen=True)
class Device:
    """The CPU, or a GPU; sizes in bytes."""

    device: int
    name: str
    isa: str
    memory_total: int
    memory_available: int
    unified_memory: bool
    usable: bool


def devices() -> list[Device]:
    """The CPU first, then the GPUs that the library can see."""
    found = []
    for index in range(_c.device_count()):
        info = _sized(_c.device_info)
        _check(_c.device_get(index, ctypes.byref(info)))
        found.append(
            Device(
                info.device,
                info.name.decode(),
                info.isa.decode(),
                info.memory_total,
                info.memory_available,
                bool(info.unified_memory),
                bool(info.usable),
            )
        )
    return found


@dataclass(frozen=True)
class ModelInfo:
    """What a model is; sizes in bytes."""

    arch: str
    name: str
    quant: str
    n_vocab: int
    n_ctx_train: int
    n_layers: int
    n_params: int
    weight_bytes_host: int
    weight_bytes_device: int
    has_chat_template: bool


@dataclass(frozen=True)
class Event:
    """What a step did. `text` is whole characters, maybe none; `token` is None where there was none."""

    text: str
    token: int | None
    logprob: float
    finish: Finish
    prompt_done: int
    prompt_total: int
    length: int
    ns: int

    @property
    def is_end(self) -> bool:
        """The generation is over, and `finish` says why."""
        return self.finish is not Finish.NONE


@dataclass(frozen=True)
class Stats:
    """What a session's steps cost: nanoseconds, counts and bytes, as `edgellm_stats` says."""

    steps: int
    tokens_prompt: int
    tokens_reused: int
    tokens_out: int
    ns_load: int
    ns_first_token: int
    ns_prefill: int
    ns_decode: int
    ns_sample: int
    step_ns_p50: int
    step_ns_p95: int
    step_ns_p99: int
    step_ns_max: int
    kv_bytes: int
    next_step_ns: int
    deadline_misses: int
    deadline_late_ns_max: int
    page_faults_in_step: int
    allocations_in_step: int
    host_bytes: int
    device_bytes: int
    host_peak_bytes: int
    energy_joule: float


@dataclass(frozen=True)
class MemoryPlan:
    """What a model and one session of it take of memory, in bytes, as `edgellm_plan` says."""

    fits: bool
    weights_host: int
    weights_device: int
    kv_host: int
    kv_device: int
    scratch_host: int
    scratch_device: int
    mapped_file: int
    peak_load: int
    available_host: int
    available_device: int
    n_ctx_fits: int
    device: int
    needed: int


def plan_memory(
    path: str | os.PathLike[str],
    *,
    n_threads: int = 0,
    device: int = DEVICE_AUTO,
    n_ctx: int = 0,
    prefill_chunk: int = 0,
    kv_type: KvType = KvType.AUTO,
    **params: int,
) -> MemoryPlan:
    """What `Model` and `Model.session` with the same parameters would take, without loading: a memory_limit of `needed` is
    enough for both. `params` are further fields of `edgellm_load_params`."""
    text = ctypes.create_string_buffer(os.fsencode(path))
    load = _defaults("load_params", {**params, "n_threads": n_threads, "device": device})
    load.path = ctypes.addressof(text)
    session = _defaults("session_params", {"n_ctx": n_ctx, "prefill_chunk": prefill_chunk, "kv_type": kv_type})
    plan = _sized(_c.plan)
    _check(_c.plan_memory(ctypes.byref(load), ctypes.byref(session), ctypes.byref(plan)))
    values = {name: getattr(plan, name) for name in MemoryPlan.__dataclass_fields__}
    return MemoryPlan(**{**values, "fits": bool(plan.fits)})


class _Handle:
    """A handle of the library, freed by close, at the end of `with`, or with the object."""

    _free: Callable[[int], None]

    def __init__(self, handle: int | None) -> None:
        self._open = handle

    @property
    def _handle(self) -> int:
        if self._open is None:
            raise ValueError(f"the {type(self).__name__.lower()} is closed")
        return self._open

    def close(self) -> None:
        """Frees it; once more does nothing."""
        handle, self._open = getattr(self, "_open", None), None
        if handle is not None:
            type(self)._free(handle)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()


class Model(_Handle):
    """A loaded model: immutable, for any number of threads at once."""

    _free = staticmethod(_c.free)

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        n_threads: int = 0,
        device: int = DEVICE_AUTO,
        exact: bool = False,
        mmap: bool = True,
        mlock: bool = False,
        prefault: bool = False,
        on_progress: Callable[[float], bool | None] | None = None,
        **params: int,
    ) -> None:
        """Loads a GGUF file and checks all of it.

        `n_threads` compute a step, the caller's included; 0 = one per big core. `device`: DEVICE_AUTO, DEVICE_CPU or the
        number of a GPU. `exact` computes in f32: slow, for checking results. `on_progress` gets 0 to 1 and stops the load
        by returning False. `mlock` and `prefault` keep steps from page faults. `params` are further fields of
        `edgellm_load_params`, such as spin_us and memory_limit.
        """
        super().__init__(None)
        text = ctypes.create_string_buffer(os.fsencode(path))
        struct = _defaults("load_params", {**params, "n_threads": n_threads, "device": device})
        struct.path = ctypes.addressof(text)
        struct.flags |= (_c.LOAD_EXACT if exact else 0) | (0 if mmap else _c.LOAD_NO_MMAP)
        struct.flags |= (_c.LOAD_MLOCK if mlock else 0) | (_c.LOAD_PREFAULT if prefault else 0)
        failure: list[BaseException] = []

        def progress(_user: int | None, done: float) -> int:
            try:
                return int(on_progress is not None and on_progress(done) is False)
            except BaseException as error:  # It cannot pass through the library.
                failure.append(error)
                return 1

        if on_progress is not None:
            struct.on_progress = callback = _c.progress_fn(progress)  # noqa: F841 It lives until the call is over.
        out = ctypes.c_void_p()
        status = _c.load(ctypes.byref(struct), ctypes.byref(out))
        if failure:
            raise failure[0]
        _check(status)
        self._open = out.value

    def __enter__(self) -> Model:
        return self

    @property
    def info(self) -> ModelInfo:
        """What the model is."""
        info = _sized(_c.model_info)
        _check(_c.model_get_info(self._handle, ctypes.byref(info)))
        return ModelInfo(
            _text(info.arch),
            _text(info.name),
            _text(info.quant),
            info.n_vocab,
            info.n_ctx_train,
            info.n_layers,
            info.n_params,
            info.weight_bytes_host,
            info.weight_bytes_device,
            bool(info.has_chat_template),
        )

    def meta(self, key: str) -> str:
        """One value of the file's metadata, as text."""
        data = key.encode()
        call = lambda out, cap, n: _c.model_get_meta(self._handle, data, len(data), out, cap, n)  # noqa: E731
        return bytes(_grow(ctypes.c_char, 64, call)).decode("utf-8", "replace")

    def tokenize(self, text: str, *, bos: bool = True, special: bool = False) -> list[int]:
        """Text to tokens. `bos` adds what the model wants at the start. `special` lets names of special tokens in the
        text be those tokens: for chat templates, not for text of a user."""
        data = text.encode()
        flags = (_c.TOK_BOS if bos else 0) | (_c.TOK_SPECIAL if special else 0)
        call = lambda out, cap, n: _c.tokenize(self._handle, data, len(data), flags, out, cap, n)  # noqa: E731
        return list(_grow(ctypes.c_int32, len(data) // 2 + 8, call))

    def detokenize(self, tokens: Sequence[int], *, special: bool = False) -> str:
        """Tokens to text; what is no whole character becomes U+FFFD. `special` gives special tokens their names."""
        ids, flags = _tokens(tokens), _c.TOK_SPECIAL if special else 0
        call = lambda out, cap, n: _c.detokenize(self._handle, ids, len(ids), flags, out, cap, n)  # noqa: E731
        return bytes(_grow(ctypes.c_char, 8 * len(ids), call)).decode("utf-8", "replace")

    def token_bytes(self, token: int) -> bytes:
        """The bytes of one token; of a special token its name."""
        out = _c.str()
        _check(_c.token_bytes(self._handle, token, ctypes.byref(out)))
        return ctypes.string_at(out.ptr, out.len) if out.len else b""

    def is_eos(self, token: int) -> bool:
        """Whether the token ends a generation."""
        return bool(_c.token_is_eos(self._handle, token))

    def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        **options: Any,
    ) -> str:
        """A conversation, as in the OpenAI chat API, in the model's own words: for `tokenize` with special=True. `options`
        are variables of the template."""
        data = json.dumps(list(messages)).encode()
        tool_data = None if tools is None else json.dumps(list(tools)).encode()
        option_data = json.dumps(options).encode() if options else None

        def call(out: Any, cap: int, n: Any) -> int:
            lengths = len(tool_data or b""), len(option_data or b"")
            status: int = _c.chat_render(
                self._handle, data, len(data), tool_data, lengths[0], option_data, lengths[1], out, cap, n
            )
            return status

        return bytes(_grow(ctypes.c_char, len(data) + 256, call)).decode("utf-8", "replace")

    def grammar(self, kind: GrammarKind, text: str | Sequence[Any] | Mapping[str, Any]) -> Grammar:
        """Compiles a grammar for `Session.sampling`. `text` is what `kind` says; what is JSON may come as Python's lists and
        dictionaries. Takes milliseconds, the first one of a model up to seconds."""
        data = (text if isinstance(text, str) else json.dumps(text)).encode()
        out = ctypes.c_void_p()
        _check(_c.grammar_new(self._handle, kind, data, len(data), ctypes.byref(out)))
        return Grammar(out.value)

    def session(
        self,
        *,
        n_ctx: int = 0,
        prefill_chunk: int = 0,
        step_budget_us: int = 0,
        kv_type: KvType = KvType.AUTO,
        **sampling: Any,
    ) -> Session:
        """A new session that holds up to `n_ctx` tokens (0 = the model's own, at most 4096) and whose steps should stay
        within `step_budget_us` (0 = throughput first); `sampling` as for `Session.sampling`."""
        params = {
            "n_ctx": n_ctx,
            "prefill_chunk": prefill_chunk,
            "step_budget_us": step_budget_us,
            "kv_type": kv_type,
        }
        struct = _defaults("session_params", params)
        out = ctypes.c_void_p()
        _check(_c.session_new(self._handle, ctypes.byref(struct), ctypes.byref(out)))
        session = Session(out.value)
        if sampling:
            session.sampling(**sampling)
        return session


class Grammar(_Handle):
    """What output is held to: made by `Model.grammar`, for any number of sessions of that model and threads at once."""

    _free = staticmethod(_c.grammar_free)

    def __enter__(self) -> Grammar:
        return self


class Session(_Handle):
    """One sequence being generated: made by `Model.session`, used by one thread at a time."""

    _free = staticmethod(_c.session_free)

    def __enter__(self) -> Session:
        return self

    def sampling(
        self,
        *,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        seed: int = 0,
        max_tokens: int = 0,
        stop: Sequence[str] = (),
        stop_tokens: Sequence[int] = (),
        bias: Mapping[int, float] | None = None,
        grammar: Grammar | None = None,
        grammar_trigger: str | None = None,
        **params: float,
    ) -> None:
        """Sets how tokens are chosen from now on; by default the likeliest. `stop`: texts that end a generation; `bias` is
        added to the logits of tokens. `grammar` holds the output from the first token on or, with a `grammar_trigger`, from
        that text on; the session keeps it when it is closed. `params` are further fields of `edgellm_sampling`, such as
        repeat_penalty."""
        struct = _defaults(
            "sampling",
            {
                **params,
                "temperature": temperature,
                "top_k": top_k,
                "top_p": top_p,
                "min_p": min_p,
                "seed": seed,
                "max_tokens": max_tokens,
            },
        )
        texts = [text.encode() for text in stop]
        strings = (_c.str * len(texts))()
        for string, text in zip(strings, texts):
            string.ptr, string.len = ctypes.cast(ctypes.c_char_p(text), ctypes.c_void_p).value, len(text)
        tokens = _tokens(stop_tokens)
        biases = (_c.logit_bias * len(bias or {}))(*(_c.logit_bias(*pair) for pair in (bias or {}).items()))
        for field, values in (("stops", strings), ("stop_tokens", tokens), ("bias", biases)):
            setattr(struct, field, ctypes.addressof(values) if len(values) else None)
            setattr(struct, f"n_{field}", len(values))
        if grammar is not None:
            struct.grammar = grammar._handle
        trigger = None if grammar_trigger is None else grammar_trigger.encode()
        if trigger is not None:
            struct.grammar_mode = _c.GRAMMAR_ON_TRIGGER
            struct.grammar_trigger.ptr = ctypes.cast(ctypes.c_char_p(trigger), ctypes.c_void_p).value
            struct.grammar_trigger.len = len(trigger)
        _check(_c.session_sampling(self._handle, ctypes.byref(struct)))

    def prompt(self, tokens: Sequence[int]) -> int:
        """Starts a run; how many of the tokens need not be computed, since the session held them already."""
        reused = ctypes.c_size_t()
        _check(_c.session_prompt(self._handle, _tokens(tokens), len(tokens), ctypes.byref(reused)))
        return reused.value

    def append(self, tokens: Sequence[int]) -> None:
        """Starts a run that goes on after what the session holds."""
        _check(_c.session_append(self._handle, _tokens(tokens), len(tokens)))

    def rewind(self, n_keep: int = 0) -> None:
        """Keeps the first `n_keep` tokens."""
        _check(_c.session_rewind(self._handle, n_keep))

    @property
    def length(self) -> int:
        """How many tokens the session holds."""
        return int(_c.session_length(self._handle))

    def step(self, deadline: float | None = None) -> Event | None:
        """At most one forward pass. With a `deadline`, a time of `time.monotonic()`, None when it came first: nothing is
        lost, call again."""
        event = _defaults("event", {})
        if deadline is None:
            status = _c.step(self._handle, ctypes.byref(event))
        else:
            status = _c.step_until(self._handle, max(int(deadline * 1e9), 1), ctypes.byref(event))
        return None if _check(status) == _c.AGAIN else _event(event)

    def events(self) -> Iterator[Event]:
        """Steps until the generation is over; the last event is its end."""
        while True:
            event = self.step()
            assert event is not None  # There is no deadline.
            yield event
            if event.is_end:
                return

    def generate(self, tokens: Sequence[int]) -> Iterator[str]:
        """The text of the answer to a prompt, piece by piece as it comes."""
        self.prompt(tokens)
        return (event.text for event in self.events() if event.text)

    def forward(self, deadline: float | None = None) -> bool:
        """For samplers of your own: computes what is pending. False when the deadline came first: call again."""
        until = 0 if deadline is None else max(int(deadline * 1e9), 1)
        return bool(_check(_c.forward(self._handle, until)) != _c.AGAIN)

    def logits(self) -> ctypes.Array[ctypes.c_float]:
        """What `forward` left, one number per token of the vocabulary: a copy, which numpy takes as it is."""
        data, n = ctypes.c_void_p(), ctypes.c_size_t()
        _check(_c.logits(self._handle, ctypes.byref(data), ctypes.byref(n)))
        return (ctypes.c_float * n.value).from_buffer_copy(ctypes.string_at(data, 4 * n.value))

    def accept(self, token: int) -> Event:
        """Commits a token of the caller's choice."""
        event = _defaults("event", {})
        _check(_c.accept(self._handle, token, ctypes.byref(event)))
        return _event(event)

    def score(self, tokens: Sequence[int]) -> list[float]:
        """Natural logarithms of the probabilities of these tokens, one after the other, after what the session holds, which
        stays as it is. Their sum is that of the whole text: to rank what a robot may do next."""
        out = (ctypes.c_float * max(len(tokens), 1))()
        _check(_c.score(self._handle, _tokens(tokens), len(tokens), out))
        return list(out)

    def fork(self) -> Session:
        """A second session that stands where this one does; both go on independently, on any threads."""
        out = ctypes.c_void_p()
        _check(_c.session_fork(self._handle, ctypes.byref(out)))
        return Session(out.value)

    def save(self) -> bytes:
        """Everything that the session would go on from, for `restore` of a session of the same model, also in another
        process. It holds the whole conversation."""
        call = lambda out, cap, n: _c.session_save(self._handle, out, cap, n)  # noqa: E731
        return bytes(_grow(ctypes.c_char, 1, call))

    def restore(self, saved: bytes) -> None:
        """Takes over what `save` gave, sampling settings too. All of it is checked before anything changes."""
        _check(_c.session_restore(self._handle, saved, len(saved)))

    def save_fd(self, fd: int) -> None:
        """`save` to a file descriptor, from where it stands."""
        _check(_c.session_save_fd(self._handle, fd))

    def restore_fd(self, fd: int) -> None:
        """`restore` from a file descriptor, from where it stands to the end of what was saved."""
        _check(_c.session_restore_fd(self._handle, fd))

    @property
    def run(self) -> int:
        """The number of the current run, for `cancel`."""
        return int(_c.session_run(self._handle))

    def cancel(self, run: int = 0) -> None:
        """Ends a run, from any thread: its step raises `Error` with `Status.E_CANCELLED`. 0 = whatever runs now."""
        _c.session_cancel(self._handle, run)

    def stats(self, *, reset: bool = False) -> Stats:
        """What the steps took until now; `reset` then starts all counts anew."""
        stats = _sized(_c.stats)
        _check(_c.session_stats(self._handle, ctypes.byref(stats), int(reset)))
        return Stats(**{name: getattr(stats, name) for name in Stats.__dataclass_fields__})


def _event(event: Any) -> Event:
    return Event(
        _text(event.text),
        None if event.token < 0 else event.token,
        event.logprob,
        Finish(event.finish),
        event.prompt_done,
        event.prompt_total,
        event.length,
        event.ns,
    )
