/* How many cores do two threads have? Prints what two threads of int8 dot products get done over what one does:
 * near 2, or near 1 while the host runs both virtual CPUs on one core (or someone else uses one).
 *     cc -O3 -march=native -pthread placement_probe.c -o placement_probe */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <time.h>

enum { LENGTH = 16384, MILLISECONDS = 60 };

static double now_ms(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e3 * (double)t.tv_sec + 1e-6 * (double)t.tv_nsec;
}

/* Repeats a dot product of data in L1 for a while; returns how often. */
static void *work(void *counted) {
    static _Thread_local int8_t a[LENGTH], b[LENGTH];
    volatile int32_t sink = 0;
    long count = 0;
    for (int i = 0; i < LENGTH; i++) {
        a[i] = (int8_t)(i * 7);
        b[i] = (int8_t)(i * 13);
    }
    for (double end = now_ms() + MILLISECONDS; now_ms() < end; count++) {
        int32_t sum = 0;
        for (int i = 0; i < LENGTH; i++) sum += (int32_t)a[i] * b[i];
        sink = sink + sum;
        a[count % LENGTH]++; /* Or the compiler would do it once. */
    }
    *(long *)counted = count;
    return NULL;
}

int main(void) {
    long alone = 0, first = 0, second = 0;
    pthread_t thread;
    work(&alone);
    if (pthread_create(&thread, NULL, work, &second) != 0) return 1;
    work(&first);
    pthread_join(thread, NULL);
    printf("%.3f\n", (double)(first + second) / (double)alone);
    return 0;
}
