/* A process that says one token, once for each side: what a robot waits for after power-up, and the memory it takes.
 *     cc -O2 first_token.c -I../include -L../target/release -ledgellm -o ours
 *     cc -O2 -DLLAMA_CPP first_token.c -I$LLAMA/include -L$LLAMA/lib -lllama -o theirs
 *     ./ours MODEL.gguf THREADS CONTEXT "The capital of France is"
 * Prints JSON: milliseconds since the process was started (exec, before the dynamic linker) until main, the model and
 * its sequence, the prompt's tokens and the first token were there; how many tokens the prompt had; the token, the
 * likeliest; MiB that were resident at most, less what was before the load (the mapped file counts). */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { TOKENS_MAX = 512 };

static double loaded_ms, tokenized_ms, first_ms;
static int token_count, first;

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
}

#ifdef LLAMA_CPP
#include <llama.h>

static void say_nothing(enum ggml_log_level level, const char *text, void *user) {
    (void)level, (void)text, (void)user;
}

/* Default flags, like tests/reference/peer.py. 0 when all went well. */
static int generate(const char *path, uint32_t threads, uint32_t context_len, const char *prompt) {
    llama_log_set(say_nothing, NULL);
    llama_backend_init();
    struct llama_model *model = llama_model_load_from_file(path, llama_model_default_params());
    if (!model) return 1;
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = context_len;
    params.n_batch = params.n_ubatch = 512;
    params.n_threads = params.n_threads_batch = (int32_t)threads;
    params.no_perf = true;
    struct llama_context *context = llama_init_from_model(model, params);
    if (!context) return 1;
    loaded_ms = now_ms();

    llama_token tokens[TOKENS_MAX];
    const struct llama_vocab *vocab = llama_model_get_vocab(model);
    token_count = llama_tokenize(vocab, prompt, (int32_t)strlen(prompt), tokens, TOKENS_MAX, true, false);
    tokenized_ms = now_ms();
    if (token_count < 1 || llama_decode(context, llama_batch_get_one(tokens, token_count))) return 1;
    struct llama_sampler *greedy = llama_sampler_init_greedy();
    char piece[256];
    first = llama_sampler_sample(greedy, context, -1);
    return llama_token_to_piece(vocab, first, piece, sizeof piece, 0, false) < 0;
}
#else
#include <edgellm.h>

/* Greedy is the default. 0 when all went well. */
static int generate(const char *path, uint32_t threads, uint32_t context_len, const char *prompt) {
    edgellm_load_params load;
    edgellm_load_params_init(&load);
    load.path = path;
    load.n_threads = threads;
    edgellm_session_params params;
    edgellm_session_params_init(&params);
    params.n_ctx = context_len;
    edgellm_model *model = NULL;
    edgellm_session *session = NULL;
    if (edgellm_load(&load, &model) || edgellm_session_new(model, &params, &session)) return 1;
    loaded_ms = now_ms();

    edgellm_token tokens[TOKENS_MAX];
    size_t count = 0;
    if (edgellm_tokenize(model, prompt, strlen(prompt), EDGELLM_TOK_BOS, tokens, TOKENS_MAX, &count)) return 1;
    token_count = (int)count;
    tokenized_ms = now_ms();
    edgellm_event event;
    edgellm_event_init(&event);
    if (edgellm_session_prompt(session, tokens, count, NULL)) return 1;
    do {
        if (edgellm_step(session, &event)) return 1;
    } while (event.kind != EDGELLM_EV_TOKEN);
    first = event.token;
    return 0;
}
#endif

/* A memory line of this process, in MiB. */
static double status_mib(const char *key) {
    char line[256];
    long kib = -1;
    FILE *file = fopen("/proc/self/status", "r");
    while (file && fgets(line, sizeof line, file)) {
        if (!strncmp(line, key, strlen(key))) sscanf(line + strlen(key), ": %ld", &kib);
    }
    if (file) fclose(file);
    return (double)kib / 1024;
}

int main(int argc, char **argv) {
    if (argc == 5) { /* Again, and with the time of the start. */
        char start[32];
        snprintf(start, sizeof start, "%.6f", now_ms());
        execl("/proc/self/exe", argv[0], argv[1], argv[2], argv[3], argv[4], start, (char *)NULL);
        return 1;
    }
    if (argc != 6) return 2;
    const double start = strtod(argv[5], NULL), main_ms = now_ms(), before = status_mib("VmRSS");
    if (generate(argv[1], (uint32_t)atoi(argv[2]), (uint32_t)atoi(argv[3]), argv[4])) {
        fprintf(stderr, "%s: no token\n", argv[1]);
        return 1;
    }
    first_ms = now_ms();
    printf("{\"main\": %.3f, \"loaded\": %.3f, ", main_ms - start, loaded_ms - start);
    printf("\"tokenized\": %.3f, \"first\": %.3f, ", tokenized_ms - start, first_ms - start);
    printf("\"tokens\": %d, \"token\": %d, \"memory\": %.3f}\n", token_count, first, status_mib("VmHWM") - before);
    return 0;
}
