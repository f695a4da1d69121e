/* A robot with tools: what the model says is always a call of one of them, with arguments that fit.
 * tools MODEL.gguf ["REQUEST"...]
 *
 * With a model that has a format of its own for calls (its chat template tells), EDGELLM_GRAMMAR_TOOLS does the same from the
 * array below as it is; a JSON schema works with any model.
 */
#include "edgellm.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TEXT = 1 << 14, MAX_TOKENS = 4096 };

/* One tool a line: what it is called, and what it takes. */
static const char SCHEMA[] =
    "{\"anyOf\": ["
    "{\"type\": \"object\", \"properties\": {\"action\": {\"const\": \"goto\"},"
    " \"place\": {\"enum\": [\"kitchen\", \"dock\", \"door\"]}}, \"required\": [\"action\", \"place\"],"
    " \"additionalProperties\": false},"
    "{\"type\": \"object\", \"properties\": {\"action\": {\"const\": \"rotate\"},"
    " \"direction\": {\"enum\": [\"left\", \"right\"]}, \"angle\": {\"type\": \"integer\", \"minimum\": 0, \"maximum\": 360},"
    " \"unit\": {\"const\": \"deg\"}}, \"required\": [\"action\", \"direction\", \"angle\", \"unit\"],"
    " \"additionalProperties\": false},"
    "{\"type\": \"object\", \"properties\": {\"action\": {\"const\": \"stop\"}}, \"required\": [\"action\"],"
    " \"additionalProperties\": false}],"
    " \"x-guidance\": {\"whitespace_flexible\": false}}";

static void check(edgellm_status status) {
    if (status >= 0) return;
    fprintf(stderr, "%s: %s\n", edgellm_status_name(status), edgellm_last_error());
    exit(1);
}

/* The values of keys of a flat object without escapes, which is all that the schema lets through. */
static int value(const char *json, const char *key, char *out, size_t cap) {
    char quoted[64];
    const char *start;
    size_t len;
    snprintf(quoted, sizeof quoted, "\"%s\":", key);
    if ((start = strstr(json, quoted)) == NULL) return 0;
    start += strlen(quoted);
    if (*start == '"') start++;
    len = strcspn(start, "\",}");
    if (len >= cap) return 0;
    memcpy(out, start, len);
    out[len] = 0;
    return 1;
}

/* Carries a call out. There is no else: nothing else can come. */
static void act(const char *call) {
    char action[16], place[16], direction[16], angle[16];
    value(call, "action", action, sizeof action);
    if (strcmp(action, "goto") == 0 && value(call, "place", place, sizeof place)) printf("driving to the %s\n", place);
    if (strcmp(action, "rotate") == 0 && value(call, "direction", direction, sizeof direction) &&
        value(call, "angle", angle, sizeof angle))
        printf("turning %s by %d degrees\n", direction, atoi(angle));
    if (strcmp(action, "stop") == 0) printf("stopping\n");
}

static void ask(edgellm_model *model, edgellm_session *session, const char *request) {
    static char text[MAX_TEXT], call[MAX_TEXT];
    static edgellm_token tokens[MAX_TOKENS];
    edgellm_event event;
    edgellm_status status;
    size_t n, len = 0;
    int text_len = snprintf(text, sizeof text, "<|im_start|>user\n%s<|im_end|>\n<|im_start|>assistant\n", request);
    if (text_len < 0 || (size_t)text_len >= sizeof text) return;
    check(edgellm_tokenize(model, text, (size_t)text_len, EDGELLM_TOK_SPECIAL, tokens, MAX_TOKENS, &n));
    check(edgellm_session_prompt(session, tokens, n, NULL)); /* The grammar begins anew. */
    edgellm_event_init(&event);
    do {
        check(status = edgellm_step(session, &event));
        if (len + event.text.len + 1 > sizeof call) return;
        if (event.text.len > 0) memcpy(call + len, event.text.ptr, event.text.len);
        len += event.text.len;
    } while (status != EDGELLM_END);
    call[len] = 0;
    printf("%s\n  %s\n  ", request, call);
    act(call);
}

int main(int argc, char **argv) {
    static const char *const REQUESTS[] = {"Go to the kitchen.", "Turn left by 30 degrees.", "Stop!",
                                           "Sing me a song about the sea."};
    edgellm_load_params load;
    edgellm_sampling sampling;
    edgellm_model *model = NULL;
    edgellm_session *session = NULL;
    edgellm_grammar *grammar = NULL;
    int i;

    if (argc < 2) {
        fprintf(stderr, "usage: %s MODEL.gguf [\"REQUEST\"...]\n", argv[0]);
        return 2;
    }
    edgellm_load_params_init(&load);
    load.path = argv[1];
    check(edgellm_load(&load, &model));
    check(edgellm_session_new(model, NULL, &session));
    check(edgellm_grammar_new(model, EDGELLM_GRAMMAR_JSON_SCHEMA, SCHEMA, EDGELLM_NUL, &grammar));
    edgellm_sampling_init(&sampling);
    sampling.grammar = grammar;
    check(edgellm_session_sampling(session, &sampling));
    edgellm_grammar_free(grammar); /* The session has a reference of its own. */

    if (argc > 2)
        for (i = 2; i < argc; i++) ask(model, session, argv[i]);
    else
        for (i = 0; i < (int)(sizeof REQUESTS / sizeof *REQUESTS); i++) ask(model, session, REQUESTS[i]);
    edgellm_session_free(session);
    edgellm_free(model);
    return 0;
}
