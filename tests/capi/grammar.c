/* Constrained output: made, used by sessions that outlive it, refused with words, and as valid in C as it is in Rust. */
#include "check.h"

enum { MAX = 512 };

static edgellm_model *model;

static const char SCHEMA[] =
    "{\"type\": \"object\", \"required\": [\"go\"], \"additionalProperties\": false,"
    " \"properties\": {\"go\": {\"enum\": [\"left\", \"right\"]}}, \"x-guidance\": {\"whitespace_flexible\": false}}";

static edgellm_grammar *grammar(int32_t kind, const char *text) {
    edgellm_grammar *out = NULL;
    STATUS(EDGELLM_OK, edgellm_grammar_new(model, kind, text, EDGELLM_NUL, &out));
    CHECK(out != NULL);
    return out;
}

static void use(edgellm_session *s, edgellm_grammar *g, uint64_t seed) {
    edgellm_sampling sampling;
    edgellm_token prompt[16];
    size_t n = tokens_of(model, "hello", prompt, 16);
    edgellm_sampling_init(&sampling);
    sampling.temperature = 1;
    sampling.seed = seed;
    sampling.max_tokens = 200;
    sampling.grammar = g;
    sampling.n_alternatives = 3;
    STATUS(EDGELLM_OK, edgellm_session_sampling(s, &sampling));
    STATUS(EDGELLM_OK, edgellm_session_prompt(s, prompt, n, NULL));
}

/* The text of a run in the loop that every program has, and why it ended. */
static int32_t text_of(edgellm_session *s, uint64_t deadline_ns, char *out) {
    edgellm_event event;
    edgellm_status status;
    size_t len = 0;
    edgellm_event_init(&event);
    while ((status = edgellm_step_until(s, deadline_ns, &event)) >= 0) {
        if (status == EDGELLM_END) break;
        if (event.kind != EDGELLM_EV_TOKEN) continue;
        CHECK(event.n_alternatives == 3 && event.alternatives[0].logprob >= event.alternatives[1].logprob);
        CHECK(len + event.text.len < MAX);
        memcpy(out + len, event.text.ptr, event.text.len);
        len += event.text.len;
    }
    want(__FILE__, __LINE__, "edgellm_step_until", status, EDGELLM_END, NULL);
    out[len] = '\0';
    return event.finish;
}

static void valid_whatever_the_seed(void) {
    edgellm_grammar *g = grammar(EDGELLM_GRAMMAR_JSON_SCHEMA, SCHEMA);
    edgellm_session *s = session(model, 256, 0), *other = session(model, 256, 0);
    edgellm_stats stats;
    char text[MAX], again[MAX];
    uint64_t seed;
    int lefts = 0;
    for (seed = 0; seed < 20; seed++) {
        use(s, g, seed);
        CHECK(text_of(s, 0, text) == EDGELLM_FINISH_GRAMMAR);
        CHECK(!strcmp(text, "{\"go\":\"left\"}") || !strcmp(text, "{\"go\":\"right\"}"));
        lefts += strstr(text, "left") != NULL;
        use(other, g, seed);
        CHECK(text_of(other, 1, again) == EDGELLM_FINISH_GRAMMAR && !strcmp(again, text));
    }
    CHECK(lefts > 0 && lefts < 20);
    stats.struct_size = sizeof stats;
    STATUS(EDGELLM_OK, edgellm_session_stats(s, &stats, 0));
    CHECK(stats.ns_grammar > 0);
    /* The sessions hold it. */
    edgellm_grammar_free(g);
    STATUS(EDGELLM_OK, edgellm_session_rewind(s, 2));
    CHECK(text_of(s, 0, again) == EDGELLM_FINISH_GRAMMAR && !strcmp(again + strlen(again) - 2, "\"}"));
    edgellm_session_free(s);
    edgellm_session_free(other);
}

static void own_samplers_are_held_to_it(void) {
    edgellm_grammar *g = grammar(EDGELLM_GRAMMAR_CHOICE, "[\"a\", \"b\"]");
    edgellm_session *s = session(model, 64, 0);
    edgellm_token a, c;
    edgellm_event event;
    const float *logits = NULL;
    size_t n = 0, i, allowed = 0;
    edgellm_event_init(&event);
    tokens_of(model, "a", &a, 1);
    tokens_of(model, "c", &c, 1);
    use(s, g, 1);
    edgellm_grammar_free(g);
    STATUS(EDGELLM_OK, edgellm_forward(s, 0));
    STATUS(EDGELLM_OK, edgellm_logits(s, &logits, &n));
    for (i = 0; i < n; i++) allowed += logits[i] > -1e30f;
    CHECK(allowed == 2);
    REFUSED(EDGELLM_E_GRAMMAR, "does not allow", edgellm_accept(s, c, &event));
    STATUS(EDGELLM_END, edgellm_accept(s, a, &event));
    CHECK(event.finish == EDGELLM_FINISH_GRAMMAR && event.text.len == 1 && event.text.ptr[0] == 'a');
    edgellm_session_free(s);
}

static void free_text_until_a_trigger(void) {
    edgellm_grammar *g = grammar(EDGELLM_GRAMMAR_CHOICE, "[\"yes\"]");
    edgellm_session *s = session(model, 64, 0);
    edgellm_sampling sampling;
    edgellm_event event;
    edgellm_token tokens[16];
    size_t n, i;
    char text[MAX];
    use(s, g, 1);
    edgellm_sampling_init(&sampling);
    sampling.n_alternatives = 3;
    sampling.grammar = g;
    sampling.grammar_mode = EDGELLM_GRAMMAR_ON_TRIGGER;
    REFUSED(EDGELLM_E_ARG, "grammar_trigger", edgellm_session_sampling(s, &sampling));
    sampling.grammar_trigger.ptr = "say:";
    sampling.grammar_trigger.len = 4;
    STATUS(EDGELLM_OK, edgellm_session_sampling(s, &sampling));
    n = tokens_of(model, "I say:", tokens, 16);
    edgellm_event_init(&event);
    for (i = 0; i < n; i++) {
        STATUS(EDGELLM_OK, edgellm_forward(s, 0));
        STATUS(EDGELLM_OK, edgellm_accept(s, tokens[i], &event));
    }
    CHECK(text_of(s, 0, text) == EDGELLM_FINISH_GRAMMAR && !strcmp(text, "yes"));
    sampling.grammar_mode = EDGELLM_GRAMMAR_NOW;
    REFUSED(EDGELLM_E_ARG, "grammar_trigger", edgellm_session_sampling(s, &sampling));
    sampling.grammar_mode = 2;
    REFUSED(EDGELLM_E_ARG, "grammar_mode", edgellm_session_sampling(s, &sampling));
    sampling.grammar_mode = 0;
    sampling.grammar_trigger.len = 0;
    sampling.n_alternatives = 21;
    REFUSED(EDGELLM_E_ARG, "21 alternatives", edgellm_session_sampling(s, &sampling));
    edgellm_session_free(s);
    edgellm_grammar_free(g);
}

static void lookup_changes_nothing(void) {
    edgellm_session *plain = session(model, 256, 0), *looking = session(model, 256, 0);
    edgellm_sampling sampling;
    edgellm_stats stats;
    edgellm_token prompt[64], a[MAX], b[MAX];
    size_t n = tokens_of(model, "hello hello hello hello hello hello", prompt, 64), count;
    edgellm_sampling_init(&sampling);
    sampling.max_tokens = 120;
    sampling.ignore_eos = 1;
    STATUS(EDGELLM_OK, edgellm_session_sampling(plain, &sampling));
    sampling.flags = EDGELLM_SAMPLING_PROMPT_LOOKUP;
    STATUS(EDGELLM_OK, edgellm_session_sampling(looking, &sampling));
    STATUS(EDGELLM_OK, edgellm_session_prompt(plain, prompt, n, NULL));
    STATUS(EDGELLM_OK, edgellm_session_prompt(looking, prompt, n, NULL));
    count = run(plain, a, MAX);
    CHECK(run(looking, b, MAX) == count && !memcmp(a, b, count * sizeof *a));
    stats.struct_size = sizeof stats;
    STATUS(EDGELLM_OK, edgellm_session_stats(looking, &stats, 0));
    CHECK(stats.tokens_accepted <= stats.tokens_drafted);
    STATUS(EDGELLM_OK, edgellm_session_stats(plain, &stats, 0));
    CHECK(stats.tokens_drafted == 0);
    edgellm_session_free(plain);
    edgellm_session_free(looking);
}

static void misuse(const char *path) {
    edgellm_grammar *g = grammar(EDGELLM_GRAMMAR_REGEX, "a+"), *out = NULL;
    edgellm_model *second = load(path);
    edgellm_session *s = session(second, 64, 0);
    edgellm_sampling sampling;
    REFUSED(EDGELLM_E_ARG, "model", edgellm_grammar_new(NULL, EDGELLM_GRAMMAR_REGEX, "a", 1, &out));
    REFUSED(EDGELLM_E_ARG, "out", edgellm_grammar_new(model, EDGELLM_GRAMMAR_REGEX, "a", 1, NULL));
    REFUSED(EDGELLM_E_ARG, "text", edgellm_grammar_new(model, EDGELLM_GRAMMAR_REGEX, NULL, 1, &out));
    REFUSED(EDGELLM_E_ARG, "UTF-8", edgellm_grammar_new(model, EDGELLM_GRAMMAR_REGEX, "\xff", 1, &out));
    REFUSED(EDGELLM_E_ARG, "kind: 0", edgellm_grammar_new(model, 0, "a", 1, &out));
    REFUSED(EDGELLM_E_ARG, "kind: 6", edgellm_grammar_new(model, 6, "a", 1, &out));
    REFUSED(EDGELLM_E_GRAMMAR, "line 1 column", edgellm_grammar_new(model, EDGELLM_GRAMMAR_JSON_SCHEMA, "{", 1, &out));
    REFUSED(EDGELLM_E_GRAMMAR, "regular expression", edgellm_grammar_new(model, EDGELLM_GRAMMAR_REGEX, "(", 1, &out));
    REFUSED(EDGELLM_E_GRAMMAR, "[0]", edgellm_grammar_new(model, EDGELLM_GRAMMAR_CHOICE, "[1]", 3, &out));
    CHECK(out == NULL);
    edgellm_sampling_init(&sampling);
    sampling.grammar = g;
    REFUSED(EDGELLM_E_ARG, "another model", edgellm_session_sampling(s, &sampling));
    sampling.grammar = (edgellm_grammar *)(void *)s;
    REFUSED(EDGELLM_E_ARG, "not a grammar handle", edgellm_session_sampling(s, &sampling));
    edgellm_grammar_free(NULL);
    edgellm_grammar_free((edgellm_grammar *)(void *)s); /* Not one: refused, not freed. */
    STATUS(EDGELLM_OK, edgellm_session_rewind(s, 0));
    edgellm_session_free(s);
    edgellm_free(second);
    edgellm_grammar_free(g);
}

int main(int argc, char **argv) {
    CHECK(argc >= 2);
    model = load(argv[1]);
    valid_whatever_the_seed();
    own_samplers_are_held_to_it();
    free_text_until_a_trigger();
    lookup_changes_nothing();
    misuse(argv[1]);
    edgellm_free(model);
    return 0;
}
