/* A host built with -ffast-math computes with denormals flushed to zero, and some set another rounding: our bits do not
 * change by that, and neither does the host's mode by us. */
#include "check.h"

#if defined(__x86_64__)
#include <xmmintrin.h>
typedef unsigned mode_type;
#define MODES 1
#define HOSTILE ((mode_type)0xDFC0) /* Flush to zero, denormals are zero, round up; all exceptions masked. */
static mode_type get_mode(void) { return _mm_getcsr() & ~0x3Fu; } /* Without the sticky exception flags. */
static void set_mode(mode_type mode) { _mm_setcsr(mode); }
#elif defined(__aarch64__)
typedef uint64_t mode_type;
#define MODES 1
#define HOSTILE ((mode_type)0x1400000) /* Flush to zero (bit 24), round up (bits 23:22 = 01). */
static mode_type get_mode(void) {
    mode_type mode;
    __asm__ volatile("mrs %0, fpcr" : "=r"(mode));
    return mode;
}
static void set_mode(mode_type mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
#endif

#ifdef MODES
enum { STEPS = 6, MAX_VOCAB = 1 << 18 };

/* Loads and computes in `mode`, which must come back from every call; all logits of all steps into `out`. */
static size_t logits_in(mode_type mode, const char *path, float *out, size_t cap) {
    static edgellm_token prompt[64];
    edgellm_load_params params;
    edgellm_model *model = NULL;
    edgellm_session *s = NULL;
    edgellm_event event;
    edgellm_status status;
    const float *logits = NULL;
    size_t n = 0, n_vocab = 0, used = 0, best, i, j;
    mode_type host = get_mode();
#define IN_MODE(call) (status = (call), CHECK(get_mode() == mode), STATUS(EDGELLM_OK, status))
    edgellm_load_params_init(&params);
    params.path = path;
    params.n_threads = 2;
    edgellm_event_init(&event);
    set_mode(mode);
    mode = get_mode(); /* What the processor made of it. */
    IN_MODE(edgellm_load(&params, &model));
    IN_MODE(edgellm_tokenize(model, "hello the world 12, hello", EDGELLM_NUL, 0, prompt, 64, &n));
    IN_MODE(edgellm_session_new(model, NULL, &s));
    IN_MODE(edgellm_session_prompt(s, prompt, n, NULL));
    for (i = 0; i < STEPS; i++) {
        IN_MODE(edgellm_forward(s, 0));
        IN_MODE(edgellm_logits(s, &logits, &n_vocab));
        CHECK(used + n_vocab <= cap);
        memcpy(out + used, logits, n_vocab * sizeof *logits);
        used += n_vocab;
        for (best = 0, j = 1; j < n_vocab; j++) {
            if (logits[j] > logits[best]) best = j;
        }
        IN_MODE(edgellm_accept(s, (edgellm_token)best, &event));
        IN_MODE(edgellm_step(s, &event));
    }
    edgellm_session_free(s);
    CHECK(get_mode() == mode);
    edgellm_free(model);
    CHECK(get_mode() == mode);
    set_mode(host);
    return used;
}

int main(int argc, char **argv) {
    size_t cap = (size_t)STEPS * MAX_VOCAB, n, m;
    float *usual = (float *)malloc(cap * sizeof(float)), *hostile = (float *)malloc(cap * sizeof(float));
    CHECK(argc == 2 && usual != NULL && hostile != NULL);
    n = logits_in(get_mode(), argv[1], usual, cap);
    m = logits_in(HOSTILE, argv[1], hostile, cap);
    CHECK(n == m && n > 0 && memcmp(usual, hostile, n * sizeof(float)) == 0);
    free(usual);
    free(hostile);
    return 0;
}
#else
int main(void) {
    fprintf(stderr, "SKIPPED: no floating-point mode known for this processor\n");
    return 0;
}
#endif
