/* What the C tests share: checks that say where they failed, and the handles that every program needs. */
#ifndef CHECK_H
#define CHECK_H

#include "edgellm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(condition) ((condition) ? (void)0 : failed(__FILE__, __LINE__, #condition))
/* The call returns this status. */
#define STATUS(wanted, call) want(__FILE__, __LINE__, #call, (call), (wanted), NULL)
/* The call fails with this status and a message that has this in it. */
#define REFUSED(wanted, words, call) want(__FILE__, __LINE__, #call, (call), (wanted), (words))

static inline void failed(const char *file, int line, const char *what) {
    fprintf(stderr, "%s:%d: failed: %s (last error: %s)\n", file, line, what, edgellm_last_error());
    exit(1);
}

static inline void want(const char *file, int line, const char *call, edgellm_status found, edgellm_status wanted,
                        const char *words) {
    if (found != wanted) {
        fprintf(stderr, "%s:%d: %s is %s, wanted %s (last error: %s)\n", file, line, call, edgellm_status_name(found),
                edgellm_status_name(wanted), edgellm_last_error());
        exit(1);
    }
    if (words && !strstr(edgellm_last_error(), words)) {
        fprintf(stderr, "%s:%d: %s says `%s`, wanted `%s` in it\n", file, line, call, edgellm_last_error(), words);
        exit(1);
    }
}

static inline edgellm_model *load_with(const char *path, uint32_t n_threads) {
    edgellm_load_params params;
    edgellm_model *model = NULL;
    edgellm_load_params_init(&params);
    params.path = path;
    params.n_threads = n_threads;
    STATUS(EDGELLM_OK, edgellm_load(&params, &model));
    CHECK(model != NULL);
    return model;
}

static inline edgellm_model *load(const char *path) { return load_with(path, 0); }

static inline edgellm_session *session(edgellm_model *model, uint32_t n_ctx, uint32_t prefill_chunk) {
    edgellm_session_params params;
    edgellm_session *session = NULL;
    edgellm_session_params_init(&params);
    params.n_ctx = n_ctx;
    params.prefill_chunk = prefill_chunk;
    STATUS(EDGELLM_OK, edgellm_session_new(model, &params, &session));
    CHECK(session != NULL);
    return session;
}

/* Greedy, a fixed number of tokens. */
static inline void greedy(edgellm_session *session, uint32_t max_tokens) {
    edgellm_sampling sampling;
    edgellm_sampling_init(&sampling);
    sampling.max_tokens = max_tokens;
    sampling.ignore_eos = 1;
    STATUS(EDGELLM_OK, edgellm_session_sampling(session, &sampling));
}

static inline size_t tokens_of(const edgellm_model *model, const char *text, edgellm_token *out, size_t cap) {
    size_t n = 0;
    STATUS(EDGELLM_OK, edgellm_tokenize(model, text, EDGELLM_NUL, 0, out, cap, &n));
    CHECK(n > 0 && n <= cap);
    return n;
}

/* Steps until the end of the run; its tokens into `out`. */
static inline size_t run(edgellm_session *session, edgellm_token *out, size_t cap) {
    edgellm_event event;
    edgellm_status status;
    size_t n = 0;
    edgellm_event_init(&event);
    while ((status = edgellm_step(session, &event)) == EDGELLM_OK) {
        if (event.kind == EDGELLM_EV_TOKEN) {
            CHECK(n < cap);
            out[n++] = event.token;
        }
    }
    want(__FILE__, __LINE__, "edgellm_step", status, EDGELLM_END, NULL);
    return n;
}

#endif
