/* A step that a deadline suspends and a later call resumes: at every border, in prefill and in decode, the logits are those of
 * an unbroken one, bit for bit. */
#include "check.h"

static const char TEXT[] = "hello the world, hello 12";

static void logits_of(edgellm_session *s, float *out, size_t n_vocab) {
    const float *logits = NULL;
    size_t n = 0;
    STATUS(EDGELLM_OK, edgellm_logits(s, &logits, &n));
    CHECK(n == n_vocab);
    memcpy(out, logits, n * sizeof *out);
}

/* Computes what is pending, suspended at the first `stops` borders; how many there were. */
static size_t forward(edgellm_session *s, size_t stops) {
    edgellm_status status;
    size_t again = 0;
    while ((status = edgellm_forward(s, again < stops ? 1 : 0)) == EDGELLM_AGAIN) again++;
    want(__FILE__, __LINE__, "edgellm_forward", status, EDGELLM_OK, NULL);
    return again;
}

int main(int argc, char **argv) {
    edgellm_model *model;
    edgellm_session *s, *other;
    edgellm_token prompt[64];
    edgellm_event event;
    edgellm_model_info info;
    float *expected[2], *found;
    size_t n, stops, borders;
    int i;
    CHECK(argc == 2);
    model = load_with(argv[1], 2);
    info.struct_size = sizeof info;
    STATUS(EDGELLM_OK, edgellm_model_get_info(model, &info));
    n = tokens_of(model, TEXT, prompt, 64);
    found = (float *)malloc(info.n_vocab * sizeof *found);
    for (i = 0; i < 2; i++) expected[i] = (float *)malloc(info.n_vocab * sizeof *found);
    CHECK(found && expected[0] && expected[1]);
    edgellm_event_init(&event);
    s = session(model, 64, (uint32_t)(n / 2 + 1)); /* Two passes over the prompt. */
    other = session(model, 64, 0);
    STATUS(EDGELLM_OK, edgellm_session_prompt(s, prompt, n, NULL));
    borders = forward(s, SIZE_MAX); /* More than a pass over one token has. */
    CHECK(borders == 2 * 5 * info.n_layers + 1);
    for (stops = 0; stops <= borders; stops++) {
        STATUS(EDGELLM_OK, edgellm_session_rewind(s, 0));
        STATUS(EDGELLM_OK, edgellm_session_prompt(s, prompt, n, NULL));
        for (i = 0; i < 2; i++) {
            size_t again = forward(s, stops);
            CHECK(again == (i == 0 || stops < borders / 2 + 1 ? stops : borders / 2 + 1));
            logits_of(s, stops == 0 ? expected[i] : found, info.n_vocab);
            CHECK(stops == 0 || memcmp(found, expected[i], info.n_vocab * sizeof *found) == 0);
            STATUS(EDGELLM_OK, edgellm_accept(s, prompt[i], &event)); /* Then a pass over one token. */
            CHECK(event.length == n + (size_t)i + 1);
        }
        STATUS(EDGELLM_OK, edgellm_session_prompt(other, prompt, n, NULL)); /* Others use the same threads meanwhile. */
        forward(other, stops);
    }
    /* edgellm_step_until as well: the token is the same, and no step says that it did nothing but AGAIN. */
    for (stops = 0; stops < 3; stops++) {
        edgellm_token token = -1;
        edgellm_status status;
        greedy(s, 1);
        STATUS(EDGELLM_OK, edgellm_session_rewind(s, 0));
        STATUS(EDGELLM_OK, edgellm_session_prompt(s, prompt, n, NULL));
        while ((status = edgellm_step_until(s, stops == 1 ? 1 : stops == 2 ? UINT64_MAX : 0, &event)) != EDGELLM_END) {
            CHECK((status == EDGELLM_AGAIN) == (event.kind == EDGELLM_EV_NONE));
            CHECK(status == EDGELLM_OK || (status == EDGELLM_AGAIN && stops == 1));
            if (event.kind == EDGELLM_EV_TOKEN) token = event.token;
        }
        CHECK(token >= 0 && token < (edgellm_token)info.n_vocab);
        for (i = 0; i < (int)info.n_vocab; i++) CHECK(expected[0][i] <= expected[0][token]);
    }
    edgellm_session_free(s);
    edgellm_session_free(other);
    edgellm_free(model);
    for (i = 0; i < 2; i++) free(expected[i]);
    free(found);
    return 0;
}
