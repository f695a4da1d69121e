/* What a caller gets wrong: each has its status, a message that says what, and nothing was written or changed. */
#include "check.h"

#include <errno.h>
#include <math.h>
#include <unistd.h>

enum { MAX = 4 };

static edgellm_model *model;
static edgellm_session *s;

/* Memory that a failing call must not touch. */
static unsigned char canary[512];

static void paint(void) { memset(canary, 0x5a, sizeof canary); }

static void untouched(int line) {
    size_t i;
    for (i = 0; i < sizeof canary; i++) {
        if (canary[i] != 0x5a) {
            fprintf(stderr, "misuse.c:%d: a failed call wrote byte %lu\n", line, (unsigned long)i);
            exit(1);
        }
    }
}
#define NOTHING_WRITTEN() untouched(__LINE__)

#define ARG EDGELLM_E_ARG
#define HUGE_LEN ((size_t)1 << (sizeof(size_t) * 8 - 2))
/* Pointers that are out of their type's alignment. */
#define MISALIGNED(type) ((type *)(void *)(canary + 1))
#define OUT(type) ((type *)(void *)canary)

static void loading(const char *path) {
    edgellm_load_params params;
    edgellm_model *out = model;
    char text[64];
    edgellm_load_params_init(&params);
    REFUSED(ARG, "NULL", edgellm_load(NULL, &out));
    REFUSED(ARG, "out", edgellm_load(&params, NULL));
    REFUSED(ARG, "path", edgellm_load(&params, &out)); /* No source. */
    CHECK(out == NULL);                                /* The one thing that a failed load writes. */
    params.path = path;
    params.data = text;
    REFUSED(ARG, "both", edgellm_load(&params, &out));
    params.path = NULL;
    params.data_len = (size_t)-1;
    REFUSED(ARG, "data_len", edgellm_load(&params, &out));
    params.data_len = 0;
    REFUSED(EDGELLM_E_FORMAT, "", edgellm_load(&params, &out));
    memset(text, 0x47, sizeof text);
    params.data_len = sizeof text;
    REFUSED(EDGELLM_E_FORMAT, "", edgellm_load(&params, &out));
    edgellm_load_params_init(&params);
    params.path = path;
    params.flags = 1u << 31;
    REFUSED(ARG, "0x80000000", edgellm_load(&params, &out));
    params.flags = 0;
    params.i2s_layout = 3;
    REFUSED(ARG, "i2s_layout: 3", edgellm_load(&params, &out));
    params.i2s_layout = -1;
    REFUSED(ARG, "i2s_layout: -1", edgellm_load(&params, &out));
    params.i2s_layout = EDGELLM_I2S_BLOCK128;
    params.device = -3;
    REFUSED(ARG, "device: -3", edgellm_load(&params, &out));
    params.device = 1000;
    REFUSED(EDGELLM_E_DEVICE, "CUDA", edgellm_load(&params, &out));
    params.device = EDGELLM_DEVICE_AUTO;
    params.path = "no/such/file.gguf";
    REFUSED(EDGELLM_E_IO, "no/such/file.gguf", edgellm_load(&params, &out));
    CHECK(edgellm_last_errno() == ENOENT);
    params.path = "";
    REFUSED(EDGELLM_E_IO, "", edgellm_load(&params, &out));
    params.path = "/";
    CHECK(edgellm_load(&params, &out) < 0 && edgellm_last_error()[0] != '\0');
    CHECK(out == NULL);
}

static void devices(void) {
    edgellm_device_info info;
    edgellm_status status;
    paint();
    REFUSED(ARG, "NULL", edgellm_device_get(0, NULL));
    REFUSED(ARG, "misaligned", edgellm_device_get(0, MISALIGNED(edgellm_device_info)));
    info.struct_size = 7;
    REFUSED(ARG, "struct_size", edgellm_device_get(0, &info));
    *OUT(uint32_t) = sizeof info;
    status = edgellm_device_get(edgellm_device_count(), OUT(edgellm_device_info));
    /* Without CUDA the reason is that, and it is said. */
    CHECK(status == ARG || (status == EDGELLM_E_DEVICE && edgellm_device_count() == 1));
    CHECK(strstr(edgellm_last_error(), status == ARG ? "index" : "CUDA") != NULL);
    *OUT(uint32_t) = 0x5a5a5a5a;
    NOTHING_WRITTEN();
}

static int32_t stop(void *user, float done) {
    ++*(int *)user;
    return done >= 0;
}

static void stopped_load(const char *path) {
    edgellm_load_params params;
    edgellm_model *out = model;
    int calls = 0;
    edgellm_load_params_init(&params);
    params.path = path;
    params.on_progress = stop;
    params.on_progress_user = &calls;
    REFUSED(EDGELLM_E_CANCELLED, "", edgellm_load(&params, &out));
    CHECK(out == NULL && calls == 1);
}

/* A struct of a newer caller: one more field behind ours. */
struct newer {
    edgellm_session_params known;
    uint32_t added[2];
};

static void structs(const char *path) {
    edgellm_load_params load;
    edgellm_model *out = NULL;
    struct newer newer;
    edgellm_session *other = NULL;
    edgellm_model_info info;
    edgellm_stats stats;
    edgellm_event event;
    char byte[32];
    uint32_t size;
    memset(&newer, 0, sizeof newer);
    for (size = 0; size < 4; size++) {
        newer.known.struct_size = size;
        REFUSED(ARG, "struct_size", edgellm_session_new(model, &newer.known, &other));
    }
    for (size = 5; size < 8; size++) {
        newer.known.struct_size = size;
        REFUSED(ARG, "struct_size", edgellm_session_new(model, &newer.known, &other));
    }
    newer.known.struct_size = UINT32_MAX;
    REFUSED(ARG, "struct_size", edgellm_session_new(model, &newer.known, &other));
    newer.known.struct_size = sizeof newer;
    newer.added[1] = 1;
    sprintf(byte, "byte %u is set", (unsigned)(sizeof newer - sizeof(uint32_t)));
    REFUSED(EDGELLM_E_UNSUPPORTED, byte, edgellm_session_new(model, &newer.known, &other));
    CHECK(other == NULL);
    newer.added[1] = 0;
    newer.known.n_ctx = 64;
    STATUS(EDGELLM_OK, edgellm_session_new(model, &newer.known, &other));
    edgellm_session_free(other);
    newer.known.struct_size = 4; /* An old caller: all defaults, whatever is behind. */
    newer.known.flags = 99;
    STATUS(EDGELLM_OK, edgellm_session_new(model, &newer.known, &other));
    edgellm_session_free(other);
    newer.known.struct_size = sizeof newer.known;
    other = NULL;
    REFUSED(ARG, "0x63", edgellm_session_new(model, &newer.known, &other));
    CHECK(other == NULL);

    /* The _init macro of an old caller writes no more than that caller has. */
    paint();
    edgellm_session_params_init_(OUT(edgellm_session_params), 8);
    CHECK(*OUT(uint32_t) == 8 && canary[8] == 0x5a);
    edgellm_load_params_init_(NULL, sizeof load);
    edgellm_sampling_init_(NULL, 100);
    edgellm_event_init_(NULL, 100);
    edgellm_load_params_init_(&load, (size_t)-1); /* Writes the size alone, and one that is refused. */
    REFUSED(ARG, "struct_size", edgellm_load(&load, &out));
    load.struct_size = sizeof load - 1;
    load.path = path;
    REFUSED(ARG, "struct_size", edgellm_load(&load, &out));

    /* Output structs: as much as the caller has. */
    paint();
    info.struct_size = 0;
    REFUSED(ARG, "struct_size", edgellm_model_get_info(model, &info));
    *OUT(uint32_t) = 8;
    STATUS(EDGELLM_OK, edgellm_model_get_info(model, OUT(edgellm_model_info)));
    CHECK(OUT(edgellm_model_info)->struct_size == 8 && OUT(edgellm_model_info)->n_vocab > 0 && canary[8] == 0x5a);
    paint();
    *OUT(uint32_t) = sizeof canary;
    STATUS(EDGELLM_OK, edgellm_model_get_info(model, OUT(edgellm_model_info)));
    CHECK(OUT(edgellm_model_info)->n_eos > 0 && canary[sizeof info] == 0x5a);
    stats.struct_size = 3;
    REFUSED(ARG, "struct_size", edgellm_session_stats(s, &stats, 0));
    event.struct_size = 1 << 20;
    REFUSED(ARG, "struct_size", edgellm_step(s, &event));
}

static void wrong_handles(void) {
    edgellm_model *models[3];
    edgellm_session *sessions[3];
    edgellm_session *other = NULL;
    edgellm_token token = 1;
    edgellm_model_info info;
    edgellm_stats stats;
    edgellm_event event;
    size_t i;
    /* NULL, the other kind of handle, a pointer into the middle of nothing. */
    models[0] = NULL;
    models[1] = (edgellm_model *)(void *)s;
    models[2] = MISALIGNED(edgellm_model);
    sessions[0] = NULL;
    sessions[1] = (edgellm_session *)(void *)model;
    sessions[2] = MISALIGNED(edgellm_session);
    info.struct_size = sizeof info;
    stats.struct_size = sizeof stats;
    edgellm_event_init(&event);
    paint();
    for (i = 0; i < 3; i++) {
        edgellm_model *m = models[i];
        edgellm_session *t = sessions[i];
        size_t *n = OUT(size_t);
        REFUSED(ARG, "not a model", edgellm_model_get_info(m, &info));
        REFUSED(ARG, "not a model", edgellm_model_get_meta(m, "a", 1, OUT(char), 8, n));
        REFUSED(ARG, "not a model", edgellm_tokenize(m, "a", 1, 0, OUT(edgellm_token), 8, n));
        REFUSED(ARG, "not a model", edgellm_detokenize(m, &token, 1, 0, OUT(char), 8, n));
        REFUSED(ARG, "not a model", edgellm_token_bytes(m, 1, OUT(edgellm_str)));
        REFUSED(ARG, "not a model", edgellm_chat_render(m, "[]", 2, NULL, 0, NULL, 0, OUT(char), 8, n));
        REFUSED(ARG, "not a model", edgellm_session_new(m, NULL, &other));
        REFUSED(ARG, "not a session", edgellm_session_sampling(t, NULL));
        REFUSED(ARG, "not a session", edgellm_session_prompt(t, &token, 1, n));
        REFUSED(ARG, "not a session", edgellm_session_append(t, &token, 1));
        REFUSED(ARG, "not a session", edgellm_session_rewind(t, 0));
        REFUSED(ARG, "not a session", edgellm_step(t, &event));
        REFUSED(ARG, "not a session", edgellm_step_until(t, 0, &event));
        REFUSED(ARG, "not a session", edgellm_forward(t, 0));
        REFUSED(ARG, "not a session", edgellm_logits(t, OUT(const float *), (size_t *)(void *)(canary + 64)));
        REFUSED(ARG, "not a session", edgellm_accept(t, 1, &event));
        REFUSED(ARG, "not a session", edgellm_session_stats(t, &stats, 0));
        CHECK(edgellm_ref(m) == NULL && edgellm_token_is_eos(m, 1) == 0);
        CHECK(edgellm_session_length(t) == 0 && edgellm_session_run(t) == 0);
        edgellm_session_cancel(t, 0);
        edgellm_session_free(t);
        edgellm_free(m);
        NOTHING_WRITTEN();
    }
    CHECK(other == NULL && event.kind == EDGELLM_EV_NONE && event.token == -1);
}

static void text_and_tokens(void) {
    edgellm_token bad[2];
    edgellm_model_info info;
    edgellm_token *out = OUT(edgellm_token);
    char *buf = OUT(char);
    size_t *n = (size_t *)(void *)(canary + 256);
    size_t i;
    info.struct_size = sizeof info;
    STATUS(EDGELLM_OK, edgellm_model_get_info(model, &info));
    paint();
    REFUSED(ARG, "text", edgellm_tokenize(model, NULL, 1, 0, out, 8, n));
    REFUSED(ARG, "text", edgellm_tokenize(model, NULL, EDGELLM_NUL, 0, out, 8, n));
    REFUSED(ARG, "length", edgellm_tokenize(model, "a", HUGE_LEN, 0, out, 8, n));
    REFUSED(ARG, "UTF-8 at byte 1", edgellm_tokenize(model, "a\xff", 2, 0, out, 8, n));
    REFUSED(ARG, "UTF-8 at byte 0", edgellm_tokenize(model, "\xed\xa0\x80", EDGELLM_NUL, 0, out, 8, n));
    REFUSED(ARG, "0x40", edgellm_tokenize(model, "a", 1, 64, out, 8, n));
    REFUSED(ARG, "buffer", edgellm_tokenize(model, "a", 1, 0, NULL, 8, n));
    REFUSED(ARG, "buffer", edgellm_tokenize(model, "a", 1, 0, MISALIGNED(edgellm_token), 8, n));
    REFUSED(ARG, "cap", edgellm_tokenize(model, "a", 1, 0, out, HUGE_LEN, n));
    REFUSED(ARG, "n:", edgellm_tokenize(model, "a", 1, 0, out, 8, NULL));
    REFUSED(ARG, "n:", edgellm_tokenize(model, "a", 1, 0, out, 8, MISALIGNED(size_t)));

    bad[0] = 1;
    bad[1] = -1;
    REFUSED(ARG, "4294967295", edgellm_detokenize(model, bad, 2, 0, buf, 8, n));
    bad[1] = (edgellm_token)info.n_vocab;
    REFUSED(ARG, "", edgellm_detokenize(model, bad, 2, 0, buf, 8, n));
    REFUSED(ARG, "NULL", edgellm_detokenize(model, NULL, 2, 0, buf, 8, n));
    REFUSED(ARG, "misaligned", edgellm_detokenize(model, MISALIGNED(edgellm_token), 2, 0, buf, 8, n));
    REFUSED(ARG, "length", edgellm_detokenize(model, bad, HUGE_LEN, 0, buf, 8, n));
    REFUSED(ARG, "length", edgellm_detokenize(model, bad, EDGELLM_NUL, 0, buf, 8, n));
    REFUSED(ARG, "flag", edgellm_detokenize(model, bad, 1, EDGELLM_TOK_BOS, buf, 8, n));
    REFUSED(ARG, "-1", edgellm_token_bytes(model, -1, OUT(edgellm_str)));
    REFUSED(ARG, "vocabulary", edgellm_token_bytes(model, (edgellm_token)info.n_vocab, OUT(edgellm_str)));
    REFUSED(ARG, "out", edgellm_token_bytes(model, 1, NULL));
    REFUSED(ARG, "no-such-key", edgellm_model_get_meta(model, "no-such-key", EDGELLM_NUL, buf, 8, n));
    REFUSED(ARG, "key", edgellm_model_get_meta(model, NULL, EDGELLM_NUL, buf, 8, n));
    REFUSED(EDGELLM_E_UNSUPPORTED, "array",
            edgellm_model_get_meta(model, "tokenizer.ggml.merges", EDGELLM_NUL, buf, 8, n));
    CHECK(edgellm_token_is_eos(model, -1) == 0 && edgellm_token_is_eos(model, INT32_MAX) == 0);
    NOTHING_WRITTEN();

    /* Too small: the length and nothing else. */
    REFUSED(EDGELLM_E_BUFFER, "needed", edgellm_tokenize(model, "a,b,c,d", 7, 0, out, 2, n));
    CHECK(*n > 2);
    REFUSED(EDGELLM_E_BUFFER, "5 needed", edgellm_model_get_meta(model, "general.architecture", 20, buf, 4, n));
    CHECK(*n == 5);
    for (i = 0; i < sizeof *n; i++) canary[256 + i] = 0x5a;
    NOTHING_WRITTEN();
}

static void chat(void) {
    static const char *const bad[] = {"", "{", "{}", "[{\"role\": 1}", "[1", "\"a\"", "[[[[[[[[[[[[[[[[[[["};
    char *buf = OUT(char);
    size_t *n = (size_t *)(void *)(canary + 256);
    size_t i;
    if (!strstr(edgellm_build_info(), "\"chat\"")) return;
    paint();
    for (i = 0; i < sizeof bad / sizeof *bad; i++) {
        REFUSED(ARG, "", edgellm_chat_render(model, bad[i], EDGELLM_NUL, NULL, 0, NULL, 0, buf, 8, n));
        CHECK(edgellm_last_error()[0] != '\0');
    }
    REFUSED(ARG, "messages", edgellm_chat_render(model, NULL, 0 - (size_t)1, NULL, 0, NULL, 0, buf, 8, n));
    REFUSED(ARG, "messages", edgellm_chat_render(model, "\xff", 1, NULL, 0, NULL, 0, buf, 8, n));
    REFUSED(ARG, "tools", edgellm_chat_render(model, "[]", 2, NULL, 5, NULL, 0, buf, 8, n));
    REFUSED(ARG, "options", edgellm_chat_render(model, "[]", 2, NULL, 0, "\xc3", 1, buf, 8, n));
    NOTHING_WRITTEN();
}

static void sampling(void) {
    edgellm_sampling good, bad;
    edgellm_logit_bias bias;
    edgellm_str stop;
    edgellm_token token = -5;
    edgellm_token before[MAX], after[MAX], prompt = 1;
    float *const fields[] = {&bad.temperature,    &bad.top_p,             &bad.min_p,
                             &bad.repeat_penalty, &bad.frequency_penalty, &bad.presence_penalty};
    size_t i;
    edgellm_sampling_init(&good);
    greedy(s, MAX);
    STATUS(EDGELLM_OK, edgellm_session_rewind(s, 0));
    STATUS(EDGELLM_OK, edgellm_session_prompt(s, &prompt, 1, NULL));
    CHECK(run(s, before, MAX) == MAX);
#define BAD(words, change) (bad = good, (change), REFUSED(ARG, words, edgellm_session_sampling(s, &bad)))
    for (i = 0; i < sizeof fields / sizeof *fields; i++) {
        BAD("", *fields[i] = NAN);
        BAD("", *fields[i] = INFINITY);
        BAD("", *fields[i] = -INFINITY);
    }
    BAD("temperature", bad.temperature = -1.0f);
    BAD("top_k", bad.top_k = -1);
    BAD("flag", bad.flags = 2);
    BAD("bias", bad.n_bias = 1);
    BAD("n_bias", bad.n_bias = HUGE_LEN);
    BAD("stops", bad.n_stops = 1);
    BAD("n_stops", bad.n_stops = HUGE_LEN);
    BAD("tokens", bad.n_stop_tokens = 1);
    BAD("n_stop_tokens", bad.n_stop_tokens = HUGE_LEN);
    BAD("", (bad.stop_tokens = &token, bad.n_stop_tokens = 1));
    bias.token = token;
    bias.bias = 0;
    BAD("", (bad.bias = &bias, bad.n_bias = 1));
    bias.token = 1;
    bias.bias = NAN;
    BAD("", (bad.bias = &bias, bad.n_bias = 1));
    stop.ptr = "\xff";
    stop.len = 1;
    BAD("UTF-8", (bad.stops = &stop, bad.n_stops = 1));
    stop.ptr = NULL;
    BAD("NULL", (bad.stops = &stop, bad.n_stops = 1));
    stop.ptr = "";
    stop.len = 0;
    BAD("", (bad.stops = &stop, bad.n_stops = 1));

    /* What was set before still holds. */
    STATUS(EDGELLM_OK, edgellm_session_prompt(s, &prompt, 1, NULL));
    CHECK(run(s, after, MAX) == MAX && memcmp(before, after, sizeof before) == 0);
}

static void sequences(void) {
    edgellm_session *small = session(model, 16, 4);
    edgellm_token tokens[32], out[MAX];
    const float *logits = NULL;
    size_t i, n = 0, reused = 77;
    edgellm_event event;
    edgellm_status status;
    edgellm_event_init(&event);
    for (i = 0; i < 32; i++) tokens[i] = (edgellm_token)(i + 1);
    event.ns = 123;
    REFUSED(EDGELLM_E_STATE, "", edgellm_step(small, &event));
    REFUSED(EDGELLM_E_STATE, "", edgellm_forward(small, 0));
    REFUSED(EDGELLM_E_STATE, "", edgellm_logits(small, &logits, &n));
    REFUSED(EDGELLM_E_STATE, "", edgellm_accept(small, 1, &event));
    CHECK(edgellm_last_error()[0] != '\0' && event.ns == 123 && logits == NULL && n == 0);
    REFUSED(EDGELLM_E_CONTEXT, "16", edgellm_session_prompt(small, tokens, 17, &reused));
    REFUSED(EDGELLM_E_CONTEXT, "16", edgellm_session_append(small, tokens, 17));
    REFUSED(ARG, "", edgellm_session_rewind(small, 1));
    REFUSED(ARG, "length", edgellm_session_prompt(small, tokens, HUGE_LEN, &reused));
    REFUSED(ARG, "NULL", edgellm_session_prompt(small, NULL, 1, &reused));
    REFUSED(ARG, "reused", edgellm_session_prompt(small, tokens, 1, MISALIGNED(size_t)));
    tokens[5] = -7;
    REFUSED(ARG, "", edgellm_session_prompt(small, tokens, 8, &reused));
    REFUSED(ARG, "", edgellm_session_append(small, tokens, 8));
    tokens[5] = INT32_MAX;
    REFUSED(ARG, "2147483647", edgellm_session_prompt(small, tokens, 8, &reused));
    tokens[5] = 6;
    CHECK(reused == 77 && edgellm_session_length(small) == 0);
    REFUSED(EDGELLM_E_STATE, "", edgellm_step(small, &event));

    /* A second prompt takes the place of the first; nothing is lost by what was refused in between. */
    greedy(small, MAX);
    STATUS(EDGELLM_OK, edgellm_session_prompt(small, tokens + 8, 8, NULL));
    STATUS(EDGELLM_OK, edgellm_session_prompt(small, tokens, 8, NULL));
    REFUSED(EDGELLM_E_CONTEXT, "", edgellm_session_append(small, tokens, 9));
    REFUSED(ARG, "", edgellm_session_rewind(small, 1000));
    CHECK(run(small, out, MAX) == MAX && edgellm_session_length(small) == 8 + MAX);
    REFUSED(ARG, "NULL", edgellm_step(small, NULL));
    REFUSED(ARG, "negative", edgellm_accept(small, -1, &event));
    REFUSED(ARG, "misaligned", edgellm_step(small, MISALIGNED(edgellm_event)));

    /* The context's end ends a run. */
    greedy(small, 0);
    STATUS(EDGELLM_OK, edgellm_session_prompt(small, tokens, 8, NULL));
    while ((status = edgellm_step(small, &event)) == EDGELLM_OK) CHECK(event.length <= 16);
    CHECK(status == EDGELLM_END && event.finish == EDGELLM_FINISH_LENGTH && edgellm_session_length(small) == 16);

    /* Own sampler: a token out of range is refused and the right one is still welcome. */
    STATUS(EDGELLM_OK, edgellm_session_prompt(small, tokens, 4, NULL));
    STATUS(EDGELLM_OK, edgellm_forward(small, 0));
    REFUSED(ARG, "", edgellm_accept(small, INT32_MAX, &event));
    REFUSED(ARG, "out", edgellm_logits(small, NULL, &n));
    REFUSED(ARG, "n:", edgellm_logits(small, &logits, NULL));
    CHECK(logits == NULL && n == 0);
    STATUS(EDGELLM_OK, edgellm_accept(small, 3, &event));
    CHECK(event.token == 3 && event.length == 5);
    edgellm_session_free(small);
}

static void sessions(void) {
    edgellm_session_params params;
    edgellm_session *out = NULL;
    edgellm_session_params_init(&params);
    REFUSED(ARG, "out", edgellm_session_new(model, &params, NULL));
    params.n_ctx = UINT32_MAX;
    CHECK(edgellm_session_new(model, &params, &out) < 0 && out == NULL && edgellm_last_error()[0] != '\0');
    params.n_ctx = 64;
    params.flags = 4;
    REFUSED(ARG, "0x4", edgellm_session_new(model, &params, &out));
    params.flags = 0;
    params.kv_type = 3;
    REFUSED(ARG, "kv_type: 3", edgellm_session_new(model, &params, &out));
    params.kv_type = -1;
    REFUSED(ARG, "kv_type: -1", edgellm_session_new(model, &params, &out));
    CHECK(out == NULL);
}

/* Any order of freeing is fine as long as each is freed once. */
static void freed_in_any_order(const char *path) {
    int order;
    for (order = 0; order < 6; order++) {
        edgellm_model *m = load(path);
        edgellm_session *a = session(m, 64, 0), *b = session(m, 64, 0);
        edgellm_token token = 1, out[MAX];
        int turn;
        for (turn = 0; turn < 3; turn++) {
            static const char orders[6][4] = {"mab", "mba", "amb", "abm", "bam", "bma"};
            if (orders[order][turn] == 'm') edgellm_free(m);
            if (orders[order][turn] == 'a') edgellm_session_free(a);
            if (orders[order][turn] == 'b') {
                greedy(b, MAX);
                STATUS(EDGELLM_OK, edgellm_session_prompt(b, &token, 1, NULL));
                CHECK(run(b, out, MAX) == MAX);
                edgellm_session_free(b);
            }
        }
    }
    edgellm_free(NULL);
    edgellm_session_free(NULL);
    edgellm_session_cancel(NULL, 1);
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    model = load(argv[1]);
    s = session(model, 64, 0);
    edgellm_set_log(NULL, NULL, 99);
    loading(argv[1]);
    devices();
    stopped_load(argv[1]);
    structs(argv[1]);
    wrong_handles();
    text_and_tokens();
    chat();
    sampling();
    sequences();
    sessions();
    edgellm_session_free(s);
    edgellm_free(model);
    freed_in_any_order(argv[1]);
    return 0;
}
