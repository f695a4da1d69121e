/* With EDGELLM_LOAD_PREFAULT no step meets a page that is not there, on any thread; without it the first steps do. */
#include "check.h"

#if defined(__linux__)
#include <sys/resource.h>

enum { MAX = 40 };

/* Of all threads. */
static long faults(void) {
    struct rusage usage;
    CHECK(getrusage(RUSAGE_SELF, &usage) == 0);
    return usage.ru_minflt + usage.ru_majflt;
}

static edgellm_stats stats_of(edgellm_session *s) {
    edgellm_stats stats;
    stats.struct_size = sizeof stats;
    STATUS(EDGELLM_OK, edgellm_session_stats(s, &stats, 0));
    return stats;
}

/* Page faults of a prompt in chunks and of an answer, by the system's count and by the session's. */
static long faults_of_steps(const char *path, uint32_t flags, uint32_t n_threads, uint64_t *counted) {
    edgellm_load_params load;
    edgellm_session_params params;
    edgellm_model *model = NULL;
    edgellm_session *s = NULL;
    edgellm_sampling sampling;
    edgellm_token prompt[1000], out[MAX];
    size_t n, i;
    long before, met;
    edgellm_load_params_init(&load);
    load.path = path;
    load.flags = flags;
    load.n_threads = n_threads;
    load.device = EDGELLM_DEVICE_CPU;
    STATUS(EDGELLM_OK, edgellm_load(&load, &model));
    edgellm_session_params_init(&params);
    params.n_ctx = 2000;
    params.prefill_chunk = 128;
    STATUS(EDGELLM_OK, edgellm_session_new(model, &params, &s));
    edgellm_sampling_init(&sampling);
    sampling.temperature = 0.8f;
    sampling.top_k = 40;
    sampling.top_p = 0.9f;
    sampling.repeat_penalty = 1.1f;
    sampling.max_tokens = MAX;
    sampling.ignore_eos = 1;
    STATUS(EDGELLM_OK, edgellm_session_sampling(s, &sampling));
    for (n = 0; n < 1000; n++) prompt[n] = (edgellm_token)(n * 7 % 300);
    for (i = 0; i < MAX; i++) out[i] = 0;
    STATUS(EDGELLM_OK, edgellm_session_prompt(s, prompt, n, NULL));
    before = faults();
    CHECK(run(s, out, MAX) == MAX);
    met = faults() - before;
    *counted = stats_of(s).page_faults_in_step;
    edgellm_session_free(s);
    edgellm_free(model);
    return met;
}

int main(int argc, char **argv) {
    uint64_t counted;
    uint32_t n_threads;
    long met;
    CHECK(argc == 2);
    for (n_threads = 1; n_threads < 4; n_threads += 2) {
        met = faults_of_steps(argv[1], 0, n_threads, &counted);
        CHECK(met > 100 && counted > 100); /* The counters see something. */
        met = faults_of_steps(argv[1], EDGELLM_LOAD_PREFAULT, n_threads, &counted);
        if (met != 0 || counted != 0) {
            fprintf(stderr, "%u threads: %ld page faults in steps, %lu counted\n", (unsigned)n_threads, met,
                    (unsigned long)counted);
            return 1;
        }
    }
    return 0;
}
#else
int main(void) {
    fprintf(stderr, "SKIPPED: page faults are counted under Linux only\n");
    return 0;
}
#endif
