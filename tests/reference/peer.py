"""llama.cpp through llama-cpp-python's low-level binding, with its default flags."""

import ctypes

import llama_cpp as c
import numpy as np

_quiet = c.llama_log_callback(lambda level, text, user: None)


class Model:
    """A loaded model with one context, of which `sequence` is used: 0 or 1."""

    def __init__(self, path, threads, context=1024):
        c.llama_log_set(_quiet, None)
        c.llama_backend_init()
        self.model = c.llama_model_load_from_file(str(path).encode(), c.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"{path}: llama.cpp cannot load it")
        params = c.llama_context_default_params()
        params.n_ctx = context
        params.n_batch = params.n_ubatch = 512
        params.n_threads = params.n_threads_batch = threads
        params.no_perf = True
        params.n_seq_max, params.kv_unified = 2, True  # One cache, of which a single sequence may have all.
        self.context = c.llama_init_from_model(self.model, params)
        self.vocab_pointer = c.llama_model_get_vocab(self.model)
        self.vocab = c.llama_vocab_n_tokens(self.vocab_pointer)
        self.batch = c.llama_batch_init(512, 0, 1)
        self.past, self.sequence = 0, 0

    def tokenize(self, text, special=False):
        """Token ids of a text, without BOS."""
        data = text.encode()
        ids = (c.llama_token * (len(data) + 8))()
        count = c.llama_tokenize(self.vocab_pointer, data, len(data), ids, len(ids), False, special)
        return list(ids[:count])

    def rewind(self, keep=0):
        """Forgets all but the first `keep` tokens."""
        c.llama_memory_seq_rm(c.llama_get_memory(self.context), self.sequence, keep, -1)
        self.past = keep

    def append(self, ids, all_logits=False):
        """Fills the batch with up to 512 tokens; of the last, or of all, there will be logits."""
        batch = self.batch
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = int(token), self.past + i, 1
            batch.seq_id[i][0] = self.sequence
            batch.logits[i] = all_logits or i == len(ids) - 1

    def forward(self):
        """Runs the batch."""
        status = c.llama_decode(self.context, self.batch)
        if status:
            raise RuntimeError(f"llama_decode: {status}")
        self.past += self.batch.n_tokens

    def run(self, ids, all_logits=False):
        """Runs up to 512 tokens; leaves the logits of the last, or of all."""
        self.append(ids, all_logits)
        self.forward()

    def logits(self, rows=1):
        """The logits that the last call left: (rows, vocab), a view that the next call ends."""
        data = ctypes.cast(c.llama_get_logits(self.context), ctypes.POINTER(ctypes.c_float))
        return np.ctypeslib.as_array(data, (rows, self.vocab))

    def logits_of(self, ids):
        """Logits after every token of a new sequence of at most 512: (tokens, vocab) f32."""
        self.rewind()
        self.run(ids, all_logits=True)
        return self.logits(len(ids)).copy()

    def close(self):
        """Frees context and model."""
        c.llama_batch_free(self.batch)
        c.llama_free(self.context)
        c.llama_model_free(self.model)
