/* How fast do so many threads read memory? Each sums its own part of 512 MiB from end to end, all at the same time, in
 * huge pages where the system has them. Prints GB/s of the best of the passes and of the median one.
 *     cc -O3 -march=native -pthread read_bandwidth.c -o read_bandwidth && ./read_bandwidth 2 */
#define _DEFAULT_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

enum { PASSES = 9, THREADS_MAX = 256 };
static const size_t BYTES = (size_t)512 << 20;

static pthread_barrier_t border; /* Between one pass and the next. */
static uint8_t *memory;
static size_t threads;
static volatile uint64_t sums[THREADS_MAX];

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static uint64_t sum(const uint64_t *words, size_t count) {
    uint64_t total = 0;
    for (size_t i = 0; i < count; i++) total += words[i];
    return total;
}

/* Takes part in all passes. Thread 0 takes their times, in seconds. */
static void read_part(size_t index, double *seconds) {
    const size_t part = BYTES / threads & ~(size_t)4095;
    uint8_t *own = memory + index * part;
    memset(own, 1, part); /* Or all of it would be the one page of zeros. */
    for (int pass = 0; pass < PASSES; pass++) {
        pthread_barrier_wait(&border);
        const double start = now_s();
        sums[index] += sum((const uint64_t *)own, part / sizeof(uint64_t));
        pthread_barrier_wait(&border);
        if (seconds) seconds[pass] = now_s() - start;
    }
}

static void *helper(void *index) {
    read_part((size_t)index, NULL);
    return NULL;
}

static int ascending(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

int main(int argc, char **argv) {
    double seconds[PASSES];
    pthread_t thread;
    threads = argc > 1 ? strtoul(argv[1], NULL, 10) : 1;
    if (threads < 1 || threads > THREADS_MAX) return 2;
    memory = mmap(NULL, BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return 1;
    madvise(memory, BYTES, MADV_HUGEPAGE); /* A wish. */
    if (pthread_barrier_init(&border, NULL, (unsigned)threads) != 0) return 1;
    for (size_t index = 1; index < threads; index++) {
        if (pthread_create(&thread, NULL, helper, (void *)index) != 0) return 1;
    }
    read_part(0, seconds);
    qsort(seconds, PASSES, sizeof *seconds, ascending);
    const double gigabytes = 1e-9 * (double)(BYTES / threads / 4096 * 4096 * threads);
    printf("%.2f %.2f\n", gigabytes / seconds[0], gigabytes / seconds[PASSES / 2]);
    return 0;
}
