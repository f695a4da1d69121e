"""libedgellm through ctypes: just what the comparisons need.

Constants and structs are read from include/edgellm.h, so this file cannot disagree with it.

EDGELLM_LIB and EDGELLM_HEADER override where the library and the header are.
"""

import ctypes
import os
import re
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = Path(os.environ.get("EDGELLM_LIB", ROOT / "target/release/libedgellm.so"))
HEADER = Path(os.environ.get("EDGELLM_HEADER", ROOT / "include/edgellm.h"))

_PLAIN = {
    "char": ctypes.c_char, "float": ctypes.c_float, "double": ctypes.c_double, "size_t": ctypes.c_size_t,
    **{f"{sign}int{bits}_t": getattr(ctypes, f"c_{sign}int{bits}") for sign in ("", "u") for bits in (8, 16, 32, 64)},
    "edgellm_token": ctypes.c_int32, "edgellm_status": ctypes.c_int32,
}  # fmt: skip


def _fields(body, structs):
    """The ctypes fields of a struct's body."""
    fields = []
    for line in filter(str.strip, body.split(";")):
        if pointer := re.search(r"\(\*\s*(\w+)\)", line):  # A function pointer.
            fields.append((pointer.group(1), ctypes.c_void_p))
            continue
        kind, names = re.match(r"\s*(?:const\s+)?(?:struct\s+)?(\w+)\b(.*)", line, re.S).groups()
        for name in names.split(","):
            word, count = re.match(r"[\s*]*(?:const\s+)?(\w+)\s*(?:\[(\w+)\])?\s*$", name).groups()
            # What is neither plain nor a struct is a callback's typedef.
            of = ctypes.c_void_p if "*" in name else _PLAIN.get(kind) or structs.get(kind, ctypes.c_void_p)
            fields.append((word, of * int(count) if count else of))
    return fields


def _read_header(text):
    """Constants and structs of the header, by their names without the prefix."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.S)
    constants, structs = {}, {}
    number = r"\(?\s*(-?(?:0[xX])?[0-9a-fA-F]+)[uU]?\s*\)?"
    for name, value in re.findall(rf"#\s*define\s+EDGELLM_(\w+)\s+{number}\s*$", text, re.M):
        constants[name] = int(value, 0)
    shifted = r"\(?\s*1[uU]?\s*<<\s*(\d+)\s*\)?"
    for name, shift in re.findall(rf"#\s*define\s+EDGELLM_(\w+)\s+{shifted}\s*$", text, re.M):
        constants[name] = 1 << int(shift)
    for body, name in re.findall(r"typedef\s+struct\s+(?:\w+\s+)?\{([^}]*)\}\s*(\w+)\s*;", text):
        structs[name] = type(name, (ctypes.Structure,), {"_fields_": _fields(body, structs)})
    return constants, structs


class EdgeLlmError(RuntimeError):
    """A status below zero, with the library's own words."""


class Library:
    """The loaded library and its header."""

    def __init__(self):
        self.constants, self.structs = _read_header(HEADER.read_text())
        self.c = ctypes.CDLL(str(LIBRARY))
        self.c.edgellm_last_error.restype = ctypes.c_char_p
        for name in ("edgellm_free", "edgellm_session_free"):
            getattr(self.c, name).argtypes = [ctypes.c_void_p]
            getattr(self.c, name).restype = None
        pointer, size = ctypes.c_void_p, ctypes.c_size_t
        for name, arguments in {
            "edgellm_load": [pointer, pointer],
            "edgellm_model_get_info": [pointer, pointer],
            "edgellm_session_new": [pointer, pointer, pointer],
            "edgellm_session_append": [pointer, pointer, size],
            "edgellm_session_rewind": [pointer, size],
            "edgellm_session_fork": [pointer, pointer],
            "edgellm_session_save_fd": [pointer, ctypes.c_int32],
            "edgellm_session_restore_fd": [pointer, ctypes.c_int32],
            "edgellm_forward": [pointer, ctypes.c_uint64],
            "edgellm_logits": [pointer, pointer, pointer],
            "edgellm_accept": [pointer, ctypes.c_int32, pointer],
            "edgellm_tokenize": [pointer, ctypes.c_char_p, size, ctypes.c_uint32, pointer, size, pointer],
            "edgellm_detokenize": [pointer, pointer, size, ctypes.c_uint32, pointer, size, pointer],
        }.items():
            getattr(self.c, name).argtypes = arguments
            getattr(self.c, name).restype = ctypes.c_int32

    def new(self, name, **values):
        """A struct with its defaults and these values."""
        struct = self.structs[f"edgellm_{name}"]()
        initialize = getattr(self.c, f"edgellm_{name}_init_", None)
        if initialize:
            initialize.argtypes, initialize.restype = [ctypes.c_void_p, ctypes.c_size_t], None
            initialize(ctypes.byref(struct), ctypes.sizeof(struct))
        else:
            struct.struct_size = ctypes.sizeof(struct)
        for key, value in values.items():
            setattr(struct, key, value)
        return struct

    def check(self, status):
        """Raises what the library says when a call failed."""
        if status < 0:
            raise EdgeLlmError(f"status {status}: {self.c.edgellm_last_error().decode()}")
        return status


class Model:
    """A loaded model with one session. `context`: 0 = what the model was trained for, at most 4096; `exact`: f32
    weights and activations; `kv`: which EDGELLM_KV_*; `device`: the number of a CUDA device, -2 = the CPU."""

    def __init__(self, path, threads, context=0, exact=False, kv="AUTO", device=-2):
        self.library = lib = Library()
        flags = lib.constants["LOAD_EXACT"] if exact else 0
        self._path = ctypes.create_string_buffer(str(path).encode())  # Lives as long as the pointer in `load`.
        load = lib.new("load_params", flags=flags, n_threads=threads, device=device)
        load.path = ctypes.addressof(self._path)
        self.model, self.session = ctypes.c_void_p(), ctypes.c_void_p()
        lib.check(lib.c.edgellm_load(ctypes.byref(load), ctypes.byref(self.model)))
        info = lib.new("model_info")
        lib.check(lib.c.edgellm_model_get_info(self.model, ctypes.byref(info)))
        self.vocab = info.n_vocab
        session = lib.new("session_params", n_ctx=context, kv_type=lib.constants[f"KV_{kv}"])
        lib.check(lib.c.edgellm_session_new(self.model, ctypes.byref(session), ctypes.byref(self.session)))

    def tokenize(self, text, special=False):
        """Token ids of a text, without BOS."""
        lib, data = self.library, text.encode()
        ids, count = (ctypes.c_int32 * (len(data) + 8))(), ctypes.c_size_t()
        flags = lib.constants["TOK_SPECIAL"] if special else 0
        status = lib.c.edgellm_tokenize(self.model, data, len(data), flags, ids, len(ids), ctypes.byref(count))
        lib.check(status)
        return list(ids[: count.value])

    def detokenize(self, ids, special=False):
        """The text of tokens; of special ones their names, or nothing."""
        lib, ids, count = self.library, np.ascontiguousarray(ids, np.int32), ctypes.c_size_t()
        text = ctypes.create_string_buffer(256 * len(ids) + 1)
        flags = lib.constants["TOK_SPECIAL"] if special else 0
        arguments = (ids.ctypes.data, len(ids), flags, text, len(text), ctypes.byref(count))
        lib.check(lib.c.edgellm_detokenize(self.model, *arguments))
        return text.raw[: count.value].decode()

    def greedy(self, ids, count, stop=()):
        """Up to `count` of the likeliest tokens after a prompt, without the one that stops."""
        self.rewind()
        self.append(ids)
        out = []
        while len(out) < count:
            self.forward()
            token = int(self.logits().argmax())
            if token in stop:
                break
            self.accept(token)
            out.append(token)
        return out

    def accept(self, token):
        """Takes a token as generated."""
        event = self.library.new("event")
        self.library.check(self.library.c.edgellm_accept(self.session, token, ctypes.byref(event)))

    def rewind(self, keep=0):
        """Forgets all but the first `keep` tokens."""
        self.library.check(self.library.c.edgellm_session_rewind(self.session, keep))

    def append(self, ids):
        """Gives the session tokens to run."""
        ids = np.ascontiguousarray(ids, np.int32)
        self.library.check(self.library.c.edgellm_session_append(self.session, ids.ctypes.data, len(ids)))

    def forward(self):
        """Runs all that was appended."""
        while self.library.check(self.library.c.edgellm_forward(self.session, 0)) == self.library.constants["AGAIN"]:
            pass

    def logits(self):
        """The logits after the last token: a view that the next call ends."""
        out, count = ctypes.POINTER(ctypes.c_float)(), ctypes.c_size_t()
        self.library.check(self.library.c.edgellm_logits(self.session, ctypes.byref(out), ctypes.byref(count)))
        return np.ctypeslib.as_array(out, (count.value,))

    def logits_of(self, ids):
        """Logits after every token of a new sequence, one token a step: (tokens, vocab) f32."""
        self.rewind()
        out = np.empty((len(ids), self.vocab), np.float32)
        for row, token in zip(out, ids):
            self.append([token])
            self.forward()
            row[:] = self.logits()
        return out

    def close(self):
        """Frees session and model."""
        self.library.c.edgellm_session_free(self.session)
        self.library.c.edgellm_free(self.model)
