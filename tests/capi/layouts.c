/* One model in I2_S in each order of codes: named by i2s_layout they have the same logits, else not. */
#include "check.h"

#include <stddef.h>

#define MAX 4096

/* The logits after a few tokens; `params` has all but the path. */
static size_t logits(edgellm_load_params params, const char *path, float *out) {
    static const edgellm_token tokens[] = {1, 2, 3, 5, 8, 13, 21};
    edgellm_model *model = NULL;
    edgellm_session *s;
    const float *found = NULL;
    size_t n = 0;
    params.path = path;
    STATUS(EDGELLM_OK, edgellm_load(&params, &model));
    s = session(model, 64, 0);
    STATUS(EDGELLM_OK, edgellm_session_prompt(s, tokens, sizeof tokens / sizeof *tokens, NULL));
    STATUS(EDGELLM_OK, edgellm_forward(s, 0));
    STATUS(EDGELLM_OK, edgellm_logits(s, &found, &n));
    CHECK(n > 0 && n <= MAX);
    memcpy(out, found, n * sizeof *out);
    edgellm_session_free(s);
    edgellm_free(model);
    return n;
}

static size_t named(int32_t layout, const char *path, float *out) {
    edgellm_load_params params;
    edgellm_load_params_init(&params);
    params.i2s_layout = layout;
    return logits(params, path, out);
}

int main(int argc, char **argv) {
    static const int32_t layouts[] = {EDGELLM_I2S_BLOCK128, EDGELLM_I2S_BLOCK64, EDGELLM_I2S_ROWS4};
    static float expected[MAX], found[MAX];
    edgellm_load_params params;
    size_t n;
    int file, layout;
    CHECK(argc == 4);
    edgellm_load_params_init(&params);
    CHECK(params.i2s_layout == EDGELLM_I2S_BLOCK128 && params.device == EDGELLM_DEVICE_AUTO);
    n = logits(params, argv[1], expected);
    for (file = 0; file < 3; file++) {
        for (layout = 0; layout < 3; layout++) {
            CHECK(named(layouts[layout], argv[1 + file], found) == n);
            CHECK((memcmp(found, expected, n * sizeof *found) == 0) == (file == layout));
        }
    }
    /* A caller from before the field was there: the default, whatever is behind. */
    params.struct_size = offsetof(edgellm_load_params, i2s_layout);
    params.i2s_layout = EDGELLM_I2S_ROWS4;
    params.device = -7;
    CHECK(logits(params, argv[1], found) == n && memcmp(found, expected, n * sizeof *found) == 0);
    return 0;
}
