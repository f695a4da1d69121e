/* Every function, used as it is meant to be. */
#include "check.h"

static const char TEXT[] = "hello the world, h\xc3\xa9llo 12 <|im_end|> {}";

static int32_t progress(void *user, float done) {
    float *last = (float *)user;
    CHECK(done >= *last && done <= 1.0f);
    *last = done;
    return 0;
}

static void version(void) {
    CHECK(edgellm_abi_version() == (((uint32_t)EDGELLM_ABI_MAJOR << 16) | EDGELLM_ABI_MINOR));
    CHECK(strchr(edgellm_version(), '.') != NULL);
    CHECK(edgellm_build_info()[0] == '{' && strstr(edgellm_build_info(), edgellm_version()) != NULL);
    CHECK(strcmp(edgellm_status_name(EDGELLM_E_ARG), "EDGELLM_E_ARG") == 0);
    CHECK(strcmp(edgellm_status_name(-1000), "unknown status") == 0);
    CHECK(edgellm_last_error()[0] == '\0' && edgellm_last_errno() == 0);
}

static void devices(void) {
    edgellm_device_info info;
    uint32_t i, count = edgellm_device_count();
    CHECK(count >= 1);
    for (i = 0; i < count; i++) {
        memset(&info, 0x5a, sizeof info);
        info.struct_size = sizeof info;
        STATUS(EDGELLM_OK, edgellm_device_get(i, &info));
        CHECK(info.struct_size == sizeof info && info.device == (i == 0 ? EDGELLM_DEVICE_CPU : (int32_t)i - 1));
        CHECK(memchr(info.name, '\0', sizeof info.name) != NULL && info.name[0] != '\0');
        CHECK(memchr(info.isa, '\0', sizeof info.isa) != NULL && info.isa[0] != '\0');
        CHECK(info.memory_total > 0 && info.memory_available <= info.memory_total);
        CHECK(info.usable == 1 || (i > 0 && info.usable == 0 && edgellm_last_error()[0] != '\0'));
        CHECK(info.cores >= info.big_cores && info.big_cores > 0);
        if (i == 0) CHECK(info.usable == 1 && info.unified_memory == 1 && info.memory_available > 0);
    }
    info.struct_size = 8; /* An old caller, of whom only the number is written. */
    info.device = 7;
    info.name[0] = 'x';
    STATUS(EDGELLM_OK, edgellm_device_get(0, &info));
    CHECK(info.struct_size == 8 && info.device == EDGELLM_DEVICE_CPU && info.name[0] == 'x');
}

static edgellm_model *load_reporting(const char *path) {
    edgellm_load_params params;
    edgellm_model *model = NULL;
    float done = 0;
    edgellm_load_params_init(&params);
    params.path = path;
    params.on_progress = progress;
    params.on_progress_user = &done;
    STATUS(EDGELLM_OK, edgellm_load(&params, &model));
    CHECK(done > 0);
    return model;
}

static void information(const edgellm_model *model) {
    edgellm_model_info info;
    char text[64];
    size_t n = 0, eos = 0;
    uint32_t token;
    info.struct_size = sizeof info;
    STATUS(EDGELLM_OK, edgellm_model_get_info(model, &info));
    CHECK(info.struct_size == sizeof info && info.n_vocab > 256 && info.n_ctx_train > 0 && info.n_layers > 0);
    CHECK(info.n_params > 1000 && info.weight_bytes_host > 1000 && info.quant.len > 0 && info.has_chat_template == 1);
    STATUS(EDGELLM_OK, edgellm_model_get_meta(model, "general.architecture", EDGELLM_NUL, text, sizeof text, &n));
    CHECK(n == info.arch.len && memcmp(text, info.arch.ptr, n) == 0);
    STATUS(EDGELLM_OK, edgellm_model_get_meta(model, "general.name+", 12, text, sizeof text, &n));
    CHECK(n == info.name.len && memcmp(text, info.name.ptr, n) == 0);
    STATUS(EDGELLM_OK, edgellm_model_get_meta(model, "llama.block_count", EDGELLM_NUL, text, sizeof text, &n));
    CHECK(n < 8 && (text[n] = '\0', (uint32_t)atoi(text) == info.n_layers));
    for (token = 0; token < info.n_vocab; token++) eos += (size_t)edgellm_token_is_eos(model, (edgellm_token)token);
    CHECK(eos == info.n_eos && eos > 0);
}

static void text_and_tokens(const edgellm_model *model) {
    edgellm_token tokens[128];
    char text[256], pieces[256];
    size_t n = 0, special = 0, len = 0, used = 0, i;
    STATUS(EDGELLM_E_BUFFER, edgellm_tokenize(model, TEXT, EDGELLM_NUL, 0, NULL, 0, &n));
    CHECK(n > 1 && n < 128);
    STATUS(EDGELLM_OK, edgellm_tokenize(model, TEXT, sizeof TEXT - 1, 0, tokens, n, &n));
    STATUS(EDGELLM_OK, edgellm_detokenize(model, tokens, n, 0, text, sizeof text, &len));
    CHECK(len == sizeof TEXT - 1 && memcmp(text, TEXT, len) == 0);
    for (i = 0; i < n; i++) {
        edgellm_str piece;
        STATUS(EDGELLM_OK, edgellm_token_bytes(model, tokens[i], &piece));
        CHECK(piece.len > 0 && used + piece.len <= sizeof pieces);
        memcpy(pieces + used, piece.ptr, piece.len);
        used += piece.len;
    }
    CHECK(used == len && memcmp(pieces, TEXT, used) == 0);

    /* With SPECIAL, the look-alike in the text becomes the real one, which is text only when asked for. */
    STATUS(EDGELLM_OK, edgellm_tokenize(model, TEXT, EDGELLM_NUL, EDGELLM_TOK_SPECIAL, tokens, 128, &special));
    CHECK(special < n);
    STATUS(EDGELLM_OK, edgellm_detokenize(model, tokens, special, EDGELLM_TOK_SPECIAL, text, sizeof text, &len));
    CHECK(len == sizeof TEXT - 1 && memcmp(text, TEXT, len) == 0);
    STATUS(EDGELLM_OK, edgellm_detokenize(model, tokens, special, 0, text, sizeof text, &len));
    CHECK(len == sizeof TEXT - 1 - strlen("<|im_end|>"));

    STATUS(EDGELLM_OK, edgellm_tokenize(model, "", 0, 0, NULL, 0, &n));
    CHECK(n == 0);
    STATUS(EDGELLM_OK, edgellm_detokenize(model, NULL, 0, 0, NULL, 0, &n));
    CHECK(n == 0);
}

static void chat(const edgellm_model *model) {
    static const char messages[] = "[{\"role\": \"user\", \"content\": \"hello\"}]";
    char with[512], without[512];
    size_t n = 0, m = 0;
    if (!strstr(edgellm_build_info(), "\"chat\"")) {
        REFUSED(EDGELLM_E_UNSUPPORTED, "chat", edgellm_chat_render(model, messages, EDGELLM_NUL, NULL, 0, NULL, 0, with,
                                                                  sizeof with, &n));
        return;
    }
    STATUS(EDGELLM_E_BUFFER, edgellm_chat_render(model, messages, EDGELLM_NUL, NULL, 0, NULL, 0, NULL, 0, &n));
    STATUS(EDGELLM_OK, edgellm_chat_render(model, messages, sizeof messages - 1, NULL, EDGELLM_NUL, NULL, 0, with,
                                           sizeof with, &m));
    CHECK(n == m);
    with[n] = '\0';
    CHECK(strstr(with, "hello") != NULL && strstr(with, "user") != NULL);
    STATUS(EDGELLM_OK, edgellm_chat_render(model, messages, EDGELLM_NUL, NULL, 0, "{\"add_generation_prompt\": false}",
                                           EDGELLM_NUL, without, sizeof without, &m));
    CHECK(m < n && memcmp(with, without, m) == 0);
}

enum { MAX = 12 };

/* Steps through a run and holds each event against what the header says. */
static size_t generate(edgellm_session *s, size_t prompt, edgellm_token *out, char *text, size_t cap) {
    edgellm_event event;
    edgellm_status status;
    size_t n = 0, used = 0;
    uint64_t done = 0;
    edgellm_event_init(&event);
    while ((status = edgellm_step(s, &event)) == EDGELLM_OK) {
        CHECK(event.struct_size == sizeof event && event.finish == EDGELLM_FINISH_NONE);
        if (event.kind == EDGELLM_EV_PREFILL) {
            CHECK(event.prompt_done > done && event.prompt_done <= event.prompt_total);
            CHECK(event.text.len == 0 && event.token == -1);
            done = event.prompt_done;
        } else {
            CHECK(event.kind == EDGELLM_EV_TOKEN && n < MAX && event.token >= 0 && event.logprob <= 0);
            out[n++] = event.token;
            CHECK(event.length == prompt + n && edgellm_session_length(s) == prompt + n);
        }
        CHECK(used + event.text.len < cap);
        if (event.text.len) memcpy(text + used, event.text.ptr, event.text.len);
        used += event.text.len;
    }
    CHECK(status == EDGELLM_END && event.kind == EDGELLM_EV_END && event.finish == EDGELLM_FINISH_LENGTH);
    CHECK(used + event.text.len < cap);
    if (event.text.len) memcpy(text + used, event.text.ptr, event.text.len);
    text[used + event.text.len] = '\0';
    CHECK(n == MAX);
    return n;
}

static void sessions(edgellm_model *model) {
    edgellm_token prompt[128], first[MAX], second[MAX];
    char text[256], again[256];
    size_t n = tokens_of(model, TEXT, prompt, 128), reused = 99;
    edgellm_session *s = session(model, 256, 8);
    uint64_t before;
    greedy(s, MAX);
    CHECK(edgellm_session_length(s) == 0);

    STATUS(EDGELLM_OK, edgellm_session_prompt(s, prompt, n, &reused));
    CHECK(reused == 0);
    generate(s, n, first, text, sizeof text);

    /* The same prompt again: what is there is used, and the text is the same. */
    before = edgellm_session_run(s);
    STATUS(EDGELLM_OK, edgellm_session_prompt(s, prompt, n, &reused));
    CHECK(edgellm_session_run(s) > before && reused > 0 && reused <= n);
    generate(s, n, second, again, sizeof again);
    CHECK(memcmp(first, second, sizeof first) == 0 && strcmp(text, again) == 0);

    /* The same in two parts: a prompt that is cut back and appended to. */
    STATUS(EDGELLM_OK, edgellm_session_rewind(s, 3));
    CHECK(edgellm_session_length(s) == 3);
    STATUS(EDGELLM_OK, edgellm_session_append(s, prompt + 3, n - 3));
    generate(s, n, second, again, sizeof again);
    CHECK(memcmp(first, second, sizeof first) == 0 && strcmp(text, again) == 0);
    edgellm_session_free(s);
}

static void own_sampler(edgellm_model *model) {
    edgellm_token prompt[128], first[MAX];
    size_t n = tokens_of(model, TEXT, prompt, 128), i, j, n_vocab = 0;
    edgellm_session *s = session(model, 256, 64);
    edgellm_event event;
    edgellm_event_init(&event);
    greedy(s, MAX);
    STATUS(EDGELLM_OK, edgellm_session_prompt(s, prompt, n, NULL));
    CHECK(run(s, first, MAX) == MAX);
    STATUS(EDGELLM_OK, edgellm_session_prompt(s, prompt, n, NULL));
    for (i = 0; i < MAX; i++) {
        const float *logits = NULL;
        size_t best = 0;
        edgellm_status status = edgellm_forward(s, 1); /* The deadline is past: it gives back, and loses nothing. */
        CHECK(status == EDGELLM_AGAIN || status == EDGELLM_OK);
        if (status == EDGELLM_AGAIN) STATUS(EDGELLM_OK, edgellm_forward(s, 0));
        STATUS(EDGELLM_OK, edgellm_logits(s, &logits, &n_vocab));
        for (j = 1; j < n_vocab; j++) {
            if (logits[j] > logits[best]) best = j;
        }
        CHECK((edgellm_token)best == first[i]);
        STATUS(EDGELLM_OK, edgellm_accept(s, (edgellm_token)best, &event));
        CHECK(event.kind == EDGELLM_EV_TOKEN && event.token == first[i] && event.length == n + i + 1);
    }
    edgellm_session_free(s);
}

static void deadlines(edgellm_model *model) {
    edgellm_token prompt[128], first[MAX], second[MAX];
    size_t n = tokens_of(model, TEXT, prompt, 128), got = 0, again = 0;
    edgellm_session *s = session(model, 256, 4);
    edgellm_event event;
    edgellm_status status;
    edgellm_event_init(&event);
    greedy(s, MAX);
    STATUS(EDGELLM_OK, edgellm_session_prompt(s, prompt, n, NULL));
    CHECK(run(s, first, MAX) == MAX);
    STATUS(EDGELLM_OK, edgellm_session_rewind(s, 0));
    STATUS(EDGELLM_OK, edgellm_session_prompt(s, prompt, n, NULL));
    for (;;) {
        status = edgellm_step_until(s, 1, &event);
        if (status == EDGELLM_AGAIN) {
            CHECK(event.kind == EDGELLM_EV_NONE && event.text.len == 0);
            again++;
            status = edgellm_step_until(s, UINT64_MAX, &event);
        }
        if (status != EDGELLM_OK) break;
        if (event.kind == EDGELLM_EV_TOKEN) {
            CHECK(got < MAX);
            second[got++] = event.token;
        }
    }
    CHECK(status == EDGELLM_END && again > 0 && got == MAX && memcmp(first, second, sizeof first) == 0);
    edgellm_session_free(s);
}

static void stats(edgellm_model *model) {
    edgellm_token prompt[128], out[MAX];
    size_t n = tokens_of(model, TEXT, prompt, 128);
    edgellm_session *s = session(model, 256, 8);
    edgellm_stats stats;
    stats.struct_size = sizeof stats;
    greedy(s, MAX);
    STATUS(EDGELLM_OK, edgellm_session_prompt(s, prompt, n, NULL));
    run(s, out, MAX);
    STATUS(EDGELLM_OK, edgellm_session_stats(s, &stats, 1));
    CHECK(stats.struct_size == sizeof stats && stats.steps > n / 8 && stats.tokens_prompt == n);
    CHECK(stats.tokens_out == MAX && stats.tokens_reused == 0 && stats.kv_bytes > 0 && stats.ns_first_token > 0);
    CHECK(stats.ns_load > 0 && stats.ns_prefill > 0 && stats.ns_decode > 0);
    CHECK(stats.step_ns_p50 > 0 && stats.step_ns_p50 <= stats.step_ns_p95 && stats.step_ns_p95 <= stats.step_ns_p99);
    CHECK(stats.step_ns_p99 <= stats.step_ns_max);
    STATUS(EDGELLM_OK, edgellm_session_stats(s, &stats, 0));
    CHECK(stats.step_ns_p50 == 0 && stats.step_ns_max == 0);
    edgellm_session_free(s);
}

/* Generates with keys and values of this type; how much memory they take. */
static uint64_t kv_bytes(edgellm_model *model, int32_t kv_type) {
    edgellm_token prompt[128], out[MAX];
    size_t n = tokens_of(model, TEXT, prompt, 128);
    edgellm_session_params params;
    edgellm_session *s = NULL;
    edgellm_stats stats;
    stats.struct_size = sizeof stats;
    edgellm_session_params_init(&params);
    CHECK(params.kv_type == EDGELLM_KV_AUTO);
    params.n_ctx = 256;
    params.kv_type = kv_type;
    STATUS(EDGELLM_OK, edgellm_session_new(model, &params, &s));
    greedy(s, MAX);
    STATUS(EDGELLM_OK, edgellm_session_prompt(s, prompt, n, NULL));
    CHECK(run(s, out, MAX) == MAX);
    STATUS(EDGELLM_OK, edgellm_session_stats(s, &stats, 0));
    edgellm_session_free(s);
    return stats.kv_bytes;
}

static void kv_types(edgellm_model *model) {
    uint64_t f16 = kv_bytes(model, EDGELLM_KV_F16), i8 = kv_bytes(model, EDGELLM_KV_I8);
    CHECK(kv_bytes(model, EDGELLM_KV_AUTO) == f16 && i8 > f16 / 2 && i8 < f16 * 6 / 10);
}

/* A model of memory, read instead of mapped, exact, with one thread: each loads; the first is also bit-equal. */
static void other_loads(edgellm_model *model, const char *path) {
    edgellm_token prompt[128], first[MAX], second[MAX];
    size_t n = tokens_of(model, TEXT, prompt, 128);
    edgellm_session *s = session(model, 256, 0);
    FILE *file = fopen(path, "rb");
    void *data;
    long len;
    int i;
    greedy(s, MAX);
    STATUS(EDGELLM_OK, edgellm_session_prompt(s, prompt, n, NULL));
    run(s, first, MAX);
    edgellm_session_free(s);

    CHECK(file != NULL && fseek(file, 0, SEEK_END) == 0 && (len = ftell(file)) > 0 && fseek(file, 0, SEEK_SET) == 0);
    data = malloc((size_t)len);
    CHECK(data != NULL && fread(data, 1, (size_t)len, file) == (size_t)len);
    fclose(file);
    for (i = 0; i < 3; i++) {
        edgellm_load_params params;
        edgellm_model *other = NULL;
        edgellm_load_params_init(&params);
        params.path = i == 0 ? NULL : path;
        params.data = i == 0 ? data : NULL;
        params.data_len = i == 0 ? (size_t)len : 0;
        params.flags = i == 1 ? EDGELLM_LOAD_NO_MMAP : i == 2 ? EDGELLM_LOAD_EXACT : 0;
        params.n_threads = 1;
        params.spin_us = 0;
        params.i2s_layout = i; /* Nothing to a file without I2_S. */
        STATUS(EDGELLM_OK, edgellm_load(&params, &other));
        s = session(other, 256, 0);
        if (i == 2) {
            edgellm_session_params i8;
            edgellm_session *none = NULL;
            edgellm_session_params_init(&i8);
            i8.kv_type = EDGELLM_KV_I8;
            REFUSED(EDGELLM_E_ARG, "exact", edgellm_session_new(other, &i8, &none));
            CHECK(none == NULL);
        }
        CHECK(edgellm_ref(other) == other);
        edgellm_free(other);
        edgellm_free(other); /* The session still has its own reference. */
        greedy(s, MAX);
        STATUS(EDGELLM_OK, edgellm_session_prompt(s, prompt, n, NULL));
        CHECK(run(s, second, MAX) == MAX);
        CHECK(i == 2 || memcmp(first, second, sizeof first) == 0);
        edgellm_session_free(s);
    }
    free(data);
}

static void sampled(edgellm_model *model) {
    edgellm_token prompt[128], out[3][MAX], stop;
    size_t n = tokens_of(model, TEXT, prompt, 128);
    edgellm_session *s = session(model, 256, 0);
    edgellm_sampling sampling;
    edgellm_logit_bias bias;
    edgellm_event event;
    int i;
    edgellm_event_init(&event);
    edgellm_sampling_init(&sampling);
    sampling.max_tokens = MAX;
    sampling.ignore_eos = 1;
    sampling.temperature = 1.5f;
    for (i = 0; i < 3; i++) {
        sampling.seed = i == 2 ? 8 : 7;
        STATUS(EDGELLM_OK, edgellm_session_sampling(s, &sampling));
        STATUS(EDGELLM_OK, edgellm_session_prompt(s, prompt, n, NULL));
        CHECK(run(s, out[i], MAX) == MAX);
    }
    CHECK(memcmp(out[0], out[1], sizeof out[0]) == 0 && memcmp(out[0], out[2], sizeof out[0]) != 0);

    /* A bias that no logit reaches makes the token, and as a stop token it ends the run. */
    sampling.temperature = 0;
    bias.token = stop = prompt[0];
    bias.bias = 1e6f;
    sampling.bias = &bias;
    sampling.n_bias = 1;
    STATUS(EDGELLM_OK, edgellm_session_sampling(s, &sampling));
    bias.token = -1; /* Everything was copied. */
    STATUS(EDGELLM_OK, edgellm_session_prompt(s, prompt, n, NULL));
    CHECK(run(s, out[0], MAX) == MAX && out[0][0] == stop && out[0][MAX - 1] == stop);
    bias.token = stop;
    sampling.stop_tokens = &stop;
    sampling.n_stop_tokens = 1;
    STATUS(EDGELLM_OK, edgellm_session_sampling(s, &sampling));
    STATUS(EDGELLM_OK, edgellm_session_prompt(s, prompt, n, NULL));
    while ((i = edgellm_step(s, &event)) == EDGELLM_OK) CHECK(event.kind == EDGELLM_EV_PREFILL);
    CHECK(i == EDGELLM_END && event.finish == EDGELLM_FINISH_STOP && event.token == stop && event.text.len == 0);
    edgellm_session_free(s);
}

int main(int argc, char **argv) {
    edgellm_model *model;
    CHECK(argc == 2);
    version();
    devices();
    model = load_reporting(argv[1]);
    information(model);
    text_and_tokens(model);
    chat(model);
    sessions(model);
    own_sampler(model);
    deadlines(model);
    stats(model);
    kv_types(model);
    sampled(model);
    other_loads(model, argv[1]);
    edgellm_free(model);
    return 0;
}
