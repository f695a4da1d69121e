/* Asks a model questions, each for itself, and prints its answers as they come: generate MODEL.gguf "QUESTION"... */
#include "edgellm.h"

#include <stdio.h>
#include <stdlib.h>

enum { MAX_TEXT = 1 << 16, MAX_TOKENS = 4096 };

/* Every function that can fail says so; the text is for people. */
static void check(edgellm_status status) {
    if (status >= 0) return;
    fprintf(stderr, "%s: %s\n", edgellm_status_name(status), edgellm_last_error());
    exit(1);
}

/* The conversation, as JSON. */
static void conversation(const char *question, char *out, size_t cap) {
    size_t n = (size_t)snprintf(out, cap, "[{\"role\": \"user\", \"content\": \"");
    for (; *question && n + 16 < cap; question++)
        n += (size_t)snprintf(out + n, cap - n, (unsigned char)*question < 32 || *question == '"' || *question == '\\'
                                                    ? "\\u%04x" : "%c", (unsigned char)*question);
    snprintf(out + n, cap - n, "\"}]");
}

static void ask(edgellm_model *model, edgellm_session *session, const char *question) {
    static char json[MAX_TEXT], text[MAX_TEXT];
    static edgellm_token tokens[MAX_TOKENS];
    edgellm_event event;
    edgellm_status status;
    size_t text_len, n;

    conversation(question, json, sizeof json);
    check(edgellm_chat_render(model, json, EDGELLM_NUL, NULL, 0, NULL, 0, text, sizeof text, &text_len));
    check(edgellm_tokenize(model, text, text_len, EDGELLM_TOK_SPECIAL, tokens, MAX_TOKENS, &n));
    check(edgellm_session_prompt(session, tokens, n, NULL));

    edgellm_event_init(&event);
    do {
        check(status = edgellm_step(session, &event)); /* A chunk of the prompt, a token, or the end. */
        fwrite(event.text.ptr, 1, event.text.len, stdout);
        fflush(stdout);
    } while (status != EDGELLM_END);
    printf("\n");
    fflush(stdout);
}

int main(int argc, char **argv) {
    edgellm_load_params load;
    edgellm_model *model = NULL;
    edgellm_session *session = NULL;
    edgellm_sampling sampling;
    edgellm_stats stats;
    int i;

    if (argc < 3) {
        fprintf(stderr, "usage: %s MODEL.gguf \"QUESTION\"...\n", argv[0]);
        return 2;
    }
    edgellm_load_params_init(&load);
    load.path = argv[1];
    check(edgellm_load(&load, &model));

    check(edgellm_session_new(model, NULL, &session));
    edgellm_sampling_init(&sampling); /* Greedy. */
    sampling.max_tokens = 300;
    check(edgellm_session_sampling(session, &sampling));
    for (i = 2; i < argc; i++) {
        fprintf(stderr, "> %s\n", argv[i]);
        ask(model, session, argv[i]);
    }

    stats.struct_size = sizeof stats;
    check(edgellm_session_stats(session, &stats, 0));
    fprintf(stderr, "%.1f tokens/s\n", (double)stats.tokens_out * 1e9 / (double)(stats.ns_decode + 1));
    edgellm_session_free(session);
    edgellm_free(model);
    return 0;
}
