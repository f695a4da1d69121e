/* Sessions that fork, that score texts, and whose context shifts when it is full. */
#include "check.h"

#include <math.h>

enum { MAX = 24, PREFIX = 600 };

static void prefix(edgellm_token *out, size_t n) {
    size_t i;
    for (i = 0; i < n; i++) out[i] = (edgellm_token)(i * 7919 % 200);
}

static void forks(edgellm_model *model) {
    static edgellm_token tokens[PREFIX];
    edgellm_token expected[MAX], found[MAX];
    edgellm_session *s = session(model, 1000, 0), *fork = NULL, *of_fork = NULL;
    edgellm_stats stats;
    size_t reused = 0;
    stats.struct_size = sizeof stats;
    prefix(tokens, PREFIX);
    greedy(s, MAX);
    STATUS(EDGELLM_OK, edgellm_session_prompt(s, tokens, PREFIX, NULL));
    STATUS(EDGELLM_OK, edgellm_forward(s, 0));
    REFUSED(EDGELLM_E_ARG, "NULL", edgellm_session_fork(s, NULL));
    STATUS(EDGELLM_OK, edgellm_session_fork(s, &fork));
    STATUS(EDGELLM_OK, edgellm_session_fork(fork, &of_fork));
    CHECK(edgellm_session_length(fork) == PREFIX && edgellm_session_length(of_fork) == PREFIX);
    STATUS(EDGELLM_OK, edgellm_session_stats(fork, &stats, 0));
    CHECK(stats.tokens_prompt == 0 && stats.kv_bytes > 0);
    CHECK(run(s, expected, MAX) == MAX && run(of_fork, found, MAX) == MAX);
    CHECK(memcmp(expected, found, sizeof found) == 0);
    edgellm_session_free(s);
    /* Going back into what is shared leaves the others alone. */
    tokens[100] = 300;
    STATUS(EDGELLM_OK, edgellm_session_prompt(of_fork, tokens, PREFIX, &reused));
    CHECK(reused == 100);
    CHECK(run(of_fork, found, MAX) == MAX);
    edgellm_session_free(of_fork);
    CHECK(run(fork, found, MAX) == MAX && memcmp(expected, found, sizeof found) == 0);
    edgellm_session_free(fork);
}

static void scores(edgellm_model *model) {
    edgellm_token prompt[8], text[12], long_text[13];
    float logprobs[13], one;
    edgellm_session *s = session(model, 32, 5);
    edgellm_event event;
    size_t i;
    edgellm_event_init(&event);
    prefix(prompt, 8);
    prefix(text, 12);
    REFUSED(EDGELLM_E_STATE, "no tokens", edgellm_score(s, text, 12, logprobs));
    STATUS(EDGELLM_OK, edgellm_session_prompt(s, prompt, 8, NULL));
    logprobs[0] = 5.0f;
    REFUSED(EDGELLM_E_ARG, "NULL", edgellm_score(s, text, 12, NULL));
    REFUSED(EDGELLM_E_ARG, "no tokens", edgellm_score(s, text, 0, logprobs));
    text[3] = 1000000;
    REFUSED(EDGELLM_E_ARG, "out of range", edgellm_score(s, text, 12, logprobs));
    CHECK(logprobs[0] == 5.0f);
    text[3] = 3;
    STATUS(EDGELLM_OK, edgellm_score(s, text, 12, logprobs));
    CHECK(edgellm_session_length(s) == 8);
    STATUS(EDGELLM_OK, edgellm_score(s, text + 5, 1, &one)); /* Nothing of the text before is kept. */
    for (i = 0; i < 12; i++) {
        CHECK(logprobs[i] < 0.0f);
        STATUS(EDGELLM_OK, edgellm_forward(s, 0));
        STATUS(EDGELLM_OK, edgellm_accept(s, text[i], &event));
        CHECK(event.logprob == logprobs[i]);
    }
    CHECK(fabsf(one - logprobs[5]) > 0.0f);
    STATUS(EDGELLM_OK, edgellm_score(s, text, 12, logprobs));
    prefix(long_text, 13);
    REFUSED(EDGELLM_E_CONTEXT, "33 tokens", edgellm_score(s, long_text, 13, logprobs));
    edgellm_session_free(s);
}

static void shifts(edgellm_model *model) {
    edgellm_session_params params;
    edgellm_session *s = NULL;
    edgellm_token prompt[20];
    edgellm_event event;
    edgellm_status status;
    size_t generated = 0, prefills = 0, again = 0, shrunk = 0, last = 20;
    edgellm_event_init(&event);
    edgellm_session_params_init(&params);
    CHECK(params.on_full == EDGELLM_FULL_STOP && params.n_keep == 0);
    params.n_ctx = 32;
    params.prefill_chunk = 4;
    params.on_full = 7;
    REFUSED(EDGELLM_E_ARG, "on_full", edgellm_session_new(model, &params, &s));
    params.on_full = EDGELLM_FULL_SHIFT;
    params.n_keep = 31;
    REFUSED(EDGELLM_E_ARG, "31", edgellm_session_new(model, &params, &s));
    params.n_keep = 6;
    STATUS(EDGELLM_OK, edgellm_session_new(model, &params, &s));
    greedy(s, 100);
    prefix(prompt, 20);
    STATUS(EDGELLM_OK, edgellm_session_prompt(s, prompt, 20, NULL));
    while ((status = edgellm_step_until(s, again % 3 ? 0 : 1, &event)) >= 0 && status != EDGELLM_END) {
        again += status == EDGELLM_AGAIN;
        generated += event.kind == EDGELLM_EV_TOKEN;
        prefills += event.kind == EDGELLM_EV_PREFILL;
        again += again % 3 != 0;
        shrunk += edgellm_session_length(s) < last;
        last = edgellm_session_length(s);
        CHECK(last <= 32);
    }
    CHECK(status == EDGELLM_END && event.finish == EDGELLM_FINISH_LENGTH && prefills > 4);
    CHECK(generated == 100 && shrunk >= 5);
    edgellm_session_free(s);
}

int main(int argc, char **argv) {
    edgellm_model *model;
    CHECK(argc == 2);
    model = load_with(argv[1], 2);
    forks(model);
    scores(model);
    shifts(model);
    edgellm_free(model);
    return 0;
}
