/* After the first step of each kind, a step asks for no memory and writes nothing, on any thread of the process. */
#include "check.h"

#if defined(__GLIBC__)
#include <stdarg.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* The program's own definitions take the place of libc's, in the shared library too. glibc keeps these doors open. */
#ifdef __cplusplus
extern "C" {
#endif
void *__libc_malloc(size_t size);
void *__libc_calloc(size_t count, size_t size);
void *__libc_realloc(void *old, size_t size);
void *__libc_memalign(size_t alignment, size_t size);
void __libc_free(void *memory);

static int watching;
static long allocations, frees, writes;
static long everything; /* Also outside of the watch: proves that the counters see the library. */

static void count(long *counter) {
    __atomic_add_fetch(&everything, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&watching, __ATOMIC_SEQ_CST)) __atomic_add_fetch(counter, 1, __ATOMIC_SEQ_CST);
}

void *malloc(size_t size) {
    count(&allocations);
    return __libc_malloc(size);
}
void *calloc(size_t n, size_t size) {
    count(&allocations);
    return __libc_calloc(n, size);
}
void *realloc(void *old, size_t size) {
    count(&allocations);
    return __libc_realloc(old, size);
}
void *aligned_alloc(size_t alignment, size_t size) {
    count(&allocations);
    return __libc_memalign(alignment, size);
}
int posix_memalign(void **out, size_t alignment, size_t size) {
    count(&allocations);
    *out = __libc_memalign(alignment, size);
    return *out ? 0 : 12;
}
void free(void *memory) {
    if (memory) count(&frees);
    __libc_free(memory);
}
void *mmap(void *at, size_t len, int protection, int flags, int fd, off_t offset) {
    count(&allocations);
    return (void *)syscall(SYS_mmap, at, len, protection, flags, fd, offset);
}
void *mmap64(void *at, size_t len, int protection, int flags, int fd, off64_t offset) {
    count(&allocations);
    return (void *)syscall(SYS_mmap, at, len, protection, flags, fd, offset);
}
ssize_t write(int fd, const void *bytes, size_t len) {
    count(&writes);
    return (ssize_t)syscall(SYS_write, fd, bytes, len);
}
ssize_t writev(int fd, const struct iovec *parts, int n) {
    count(&writes);
    return (ssize_t)syscall(SYS_writev, fd, parts, n);
}
#ifdef __cplusplus
}
#endif

enum { MAX = 40 };

static void watch(int on) { __atomic_store_n(&watching, on, __ATOMIC_SEQ_CST); }

/* Steps a run; everything after the first step of each kind is watched. */
static size_t watched_run(edgellm_session *s, size_t first_watched) {
    edgellm_event event;
    edgellm_status status = EDGELLM_OK;
    size_t steps = 0, tokens = 0;
    edgellm_event_init(&event);
    while (status == EDGELLM_OK) {
        watch(steps >= first_watched);
        status = edgellm_step(s, &event);
        watch(0);
        steps++;
        tokens += event.kind == EDGELLM_EV_TOKEN;
    }
    STATUS(EDGELLM_END, status);
    CHECK(tokens == MAX);
    return steps;
}

static void quiet(const char *path, uint32_t n_threads) {
    edgellm_token prompt[128];
    edgellm_model *model = load_with(path, n_threads);
    edgellm_session *s = session(model, 256, 8);
    edgellm_sampling sampling;
    edgellm_str stop;
    edgellm_event event;
    float logprobs[128];
    size_t n = tokens_of(model, "hello the world 12, hello h\xc3\xa9llo in a world or her \xe2\x82\xac", prompt, 128), i;
    int kind;
    CHECK(n > 16 && n < 200);
    edgellm_event_init(&event);
    stop.ptr = "never that";
    stop.len = strlen(stop.ptr);
    for (kind = 0; kind < 2; kind++) { /* Greedy, then everything at once. */
        edgellm_sampling_init(&sampling);
        sampling.max_tokens = MAX;
        sampling.ignore_eos = 1;
        if (kind == 1) {
            sampling.temperature = 0.9f;
            sampling.top_k = 50;
            sampling.top_p = 0.95f;
            sampling.min_p = 0.01f;
            sampling.repeat_penalty = 1.1f;
            sampling.frequency_penalty = 0.1f;
            sampling.stops = &stop;
            sampling.n_stops = 1;
        }
        STATUS(EDGELLM_OK, edgellm_session_sampling(s, &sampling));
        watch(kind > 0); /* Neither does a prompt ask for memory. */
        STATUS(EDGELLM_OK, edgellm_session_rewind(s, 0));
        STATUS(EDGELLM_OK, edgellm_session_prompt(s, prompt, n, NULL));
        watch(0);
        watched_run(s, 1);
        STATUS(EDGELLM_OK, edgellm_session_rewind(s, n));
        STATUS(EDGELLM_OK, edgellm_session_append(s, prompt, n));
        watched_run(s, 0);
    }

    /* The caller's own sampler, statistics, a deadline that is past, and a failing step. */
    STATUS(EDGELLM_OK, edgellm_session_prompt(s, prompt, n, NULL));
    STATUS(EDGELLM_OK, edgellm_score(s, prompt, n, logprobs)); /* A session's first one asks for memory. */
    watch(1);
    for (i = 0; i < 4; i++) {
        const float *logits;
        size_t n_vocab;
        edgellm_stats stats;
        edgellm_status status = edgellm_step_until(s, 1, &event);
        stats.struct_size = sizeof stats;
        CHECK(status == EDGELLM_AGAIN || status == EDGELLM_OK);
        STATUS(EDGELLM_OK, edgellm_forward(s, 0));
        STATUS(EDGELLM_OK, edgellm_logits(s, &logits, &n_vocab));
        STATUS(EDGELLM_OK, edgellm_accept(s, 5, &event));
        STATUS(EDGELLM_OK, edgellm_session_stats(s, &stats, 0));
        STATUS(EDGELLM_OK, edgellm_score(s, prompt, n, logprobs));
        edgellm_session_cancel(s, 0);
        STATUS(EDGELLM_E_CANCELLED, edgellm_step(s, &event));
        STATUS(EDGELLM_OK, edgellm_session_append(s, prompt, 1));
    }
    watch(0);
    edgellm_session_free(s);
    edgellm_free(model);
}

int main(int argc, char **argv) {
    long before;
    CHECK(argc == 2);
    before = everything;
    quiet(argv[1], 1);
    CHECK(everything > before + 100); /* The counters do see the library. */
    quiet(argv[1], 3);
    if (allocations != 0 || frees != 0 || writes != 0) {
        fprintf(stderr, "in steps: %ld allocations, %ld frees, %ld writes\n", allocations, frees, writes);
        return 1;
    }
    return 0;
}
#else
int main(void) {
    fprintf(stderr, "SKIPPED: allocations are counted with glibc only\n");
    return 0;
}
#endif
