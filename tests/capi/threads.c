/* One caller at a time in a session, a model for all threads, cancel from anywhere, free during a step.
 * With a second argument less of each: for valgrind, where a step takes fifty times as long. */
#include "check.h"

#include <pthread.h>
#include <signal.h>
#include <sys/time.h>
#include <time.h>

enum { N_CTX = 2048, LONG = 1500, BRIEF = 100, MAX = 16, THREADS = 4, ROUNDS = 2000 };

static edgellm_model *model;
static edgellm_token long_prompt[LONG];
static size_t prompt_len = LONG;
static int times = 20; /* How often something is tried. */

static void nap(long ns) {
    struct timespec time;
    time.tv_sec = 0;
    time.tv_nsec = ns;
    nanosleep(&time, NULL);
}

static pthread_t start(void *(*body)(void *), void *argument) {
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, body, argument) == 0);
    return thread;
}

static void join(pthread_t thread) { CHECK(pthread_join(thread, NULL) == 0); }

/* Steps until the run is over or somebody ends it. Each prefill step is the whole prompt: long enough to be met. */
struct stepper {
    edgellm_session *session;
    edgellm_status last;
    int once;     /* One step is enough. */
    int stepping; /* Written by the thread, read by others: through the __atomic functions. */
};

static void *step_on(void *argument) {
    struct stepper *stepper = (struct stepper *)argument;
    edgellm_event event;
    edgellm_event_init(&event);
    do {
        __atomic_store_n(&stepper->stepping, 1, __ATOMIC_SEQ_CST);
        stepper->last = edgellm_step(stepper->session, &event);
    } while ((stepper->last == EDGELLM_OK && !stepper->once) || stepper->last == EDGELLM_E_BUSY);
    __atomic_store_n(&stepper->stepping, 0, __ATOMIC_SEQ_CST);
    return NULL;
}

static void wait_stepping(struct stepper *stepper) {
    while (!__atomic_load_n(&stepper->stepping, __ATOMIC_SEQ_CST)) nap(1000);
}

/* The second thread is told so, at once; the first does not notice; cancel, run, length and stats are always allowed. */
static void busy(void) {
    struct stepper stepper;
    edgellm_stats stats;
    int round, busy = 0;
    memset(&stepper, 0, sizeof stepper);
    stats.struct_size = sizeof stats;
    stepper.session = session(model, N_CTX, LONG);
    for (round = 0; round < ROUNDS && !busy; round++) {
        pthread_t thread;
        stepper.stepping = 0;
        greedy(stepper.session, MAX);
        STATUS(EDGELLM_OK, edgellm_session_rewind(stepper.session, 0));
        STATUS(EDGELLM_OK, edgellm_session_prompt(stepper.session, long_prompt, prompt_len, NULL));
        thread = start(step_on, &stepper);
        wait_stepping(&stepper);
        while (__atomic_load_n(&stepper.stepping, __ATOMIC_SEQ_CST) && !busy) {
            const float *logits = NULL;
            size_t n;
            edgellm_status status = edgellm_logits(stepper.session, &logits, &n);
            if (status == EDGELLM_E_BUSY) {
                CHECK(strstr(edgellm_last_error(), "another thread") != NULL && logits == NULL);
                busy = 1;
            }
            STATUS(EDGELLM_OK, edgellm_session_stats(stepper.session, &stats, 0));
            CHECK(edgellm_session_run(stepper.session) > 0 && edgellm_session_length(stepper.session) <= N_CTX);
        }
        join(thread);
        CHECK(stepper.last == EDGELLM_END && edgellm_session_length(stepper.session) == prompt_len + MAX);
    }
    CHECK(busy);
    edgellm_session_free(stepper.session);
}

/* A cancelled step leaves the session usable, and its next run has the text that it always has. */
static void cancel_from_a_thread(void) {
    edgellm_token wanted[MAX], found[MAX];
    struct stepper stepper;
    int round, cancelled = 0;
    memset(&stepper, 0, sizeof stepper);
    stepper.session = session(model, N_CTX, LONG);
    greedy(stepper.session, MAX);
    STATUS(EDGELLM_OK, edgellm_session_prompt(stepper.session, long_prompt, prompt_len, NULL));
    CHECK(run(stepper.session, wanted, MAX) == MAX);
    for (round = 0; round < times; round++) {
        pthread_t thread;
        stepper.stepping = 0;
        STATUS(EDGELLM_OK, edgellm_session_rewind(stepper.session, 0));
        STATUS(EDGELLM_OK, edgellm_session_prompt(stepper.session, long_prompt, prompt_len, NULL));
        thread = start(step_on, &stepper);
        wait_stepping(&stepper);
        nap(50000L * round);
        edgellm_session_cancel(stepper.session, edgellm_session_run(stepper.session));
        join(thread);
        CHECK(stepper.last == EDGELLM_E_CANCELLED || stepper.last == EDGELLM_END);
        cancelled += stepper.last == EDGELLM_E_CANCELLED;
        STATUS(EDGELLM_OK, edgellm_session_prompt(stepper.session, long_prompt, prompt_len, NULL));
        edgellm_session_cancel(stepper.session, edgellm_session_run(stepper.session) - 1); /* Another run: nothing. */
        CHECK(run(stepper.session, found, MAX) == MAX && memcmp(wanted, found, sizeof wanted) == 0);
    }
    CHECK(cancelled > 0);
    edgellm_session_free(stepper.session);
}

static edgellm_session *volatile alarmed;

static void on_alarm(int number) {
    (void)number;
    edgellm_session_cancel(alarmed, 0);
    (void)edgellm_session_run(alarmed);
}

static void cancel_from_a_signal(void) {
    edgellm_session *own;
    struct sigaction action;
    struct itimerval timer;
    edgellm_event event;
    edgellm_status status;
    int cancelled = 0, rounds;
    memset(&action, 0, sizeof action);
    memset(&timer, 0, sizeof timer);
    edgellm_event_init(&event);
    alarmed = session(model, N_CTX, LONG);
    greedy(alarmed, MAX);
    action.sa_handler = on_alarm;
    CHECK(sigaction(SIGALRM, &action, NULL) == 0);
    timer.it_value.tv_usec = timer.it_interval.tv_usec = 700;
    CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
    for (rounds = 0; rounds < ROUNDS && cancelled < times; rounds++) {
        status = edgellm_session_rewind(alarmed, 0);
        CHECK(status == EDGELLM_OK);
        STATUS(EDGELLM_OK, edgellm_session_prompt(alarmed, long_prompt, prompt_len, NULL));
        while ((status = edgellm_step(alarmed, &event)) == EDGELLM_OK) continue;
        CHECK(status == EDGELLM_E_CANCELLED || status == EDGELLM_END);
        cancelled += status == EDGELLM_E_CANCELLED;
    }
    timer.it_value.tv_usec = timer.it_interval.tv_usec = 0;
    CHECK(setitimer(ITIMER_REAL, &timer, NULL) == 0);
    CHECK(cancelled == times);
    own = alarmed;
    alarmed = NULL; /* A signal that is still on its way finds no session. */
    edgellm_session_free(own);
}

/* The step ends early, and its thread frees what is left. The model's last reference goes with it. */
static void free_during_a_step(const char *path) {
    int round, cancelled = 0;
    for (round = 0; round < ROUNDS && cancelled < times / 4; round++) {
        edgellm_model *own = load(path);
        struct stepper stepper;
        edgellm_status status = EDGELLM_OK;
        pthread_t thread;
        memset(&stepper, 0, sizeof stepper);
        stepper.once = 1;
        stepper.session = session(own, N_CTX, LONG);
        STATUS(EDGELLM_OK, edgellm_session_prompt(stepper.session, long_prompt, prompt_len, NULL));
        edgellm_free(own);
        thread = start(step_on, &stepper);
        wait_stepping(&stepper);
        while (__atomic_load_n(&stepper.stepping, __ATOMIC_SEQ_CST) && status != EDGELLM_E_BUSY) {
            const float *logits;
            size_t n;
            status = edgellm_logits(stepper.session, &logits, &n);
        }
        /* The step has begun (BUSY) or is over: no call on this session begins after this one. */
        edgellm_session_free(stepper.session);
        join(thread);
        CHECK(stepper.last == EDGELLM_E_CANCELLED || stepper.last == EDGELLM_OK);
        cancelled += stepper.last == EDGELLM_E_CANCELLED;
    }
    CHECK(cancelled == times / 4);
}

static edgellm_token expected[MAX];

static void *same_text(void *argument) {
    edgellm_session *own = session(model, 256, 7);
    int round;
    (void)argument;
    greedy(own, MAX);
    for (round = 0; round < 3; round++) {
        edgellm_token out[MAX];
        STATUS(EDGELLM_OK, edgellm_session_rewind(own, 0));
        STATUS(EDGELLM_OK, edgellm_session_prompt(own, long_prompt, 100, NULL));
        CHECK(run(own, out, MAX) == MAX && memcmp(out, expected, sizeof out) == 0);
    }
    edgellm_session_free(own);
    return NULL;
}

static void many_sessions(void) {
    pthread_t threads[THREADS];
    edgellm_session *alone = session(model, 256, 100);
    size_t i;
    greedy(alone, MAX);
    STATUS(EDGELLM_OK, edgellm_session_prompt(alone, long_prompt, 100, NULL));
    CHECK(run(alone, expected, MAX) == MAX);
    edgellm_session_free(alone);
    for (i = 0; i < THREADS; i++) threads[i] = start(same_text, NULL);
    for (i = 0; i < THREADS; i++) join(threads[i]);
}

int main(int argc, char **argv) {
    edgellm_token some[64];
    size_t n, i;
    CHECK(argc == 2 || argc == 3);
    if (argc == 3) {
        prompt_len = BRIEF;
        times = 4;
    }
    model = load(argv[1]);
    n = tokens_of(model, "hello the world 12, in a world or her", some, 64);
    for (i = 0; i < LONG; i++) long_prompt[i] = some[i * 7 % n];
    busy();
    cancel_from_a_thread();
    cancel_from_a_signal();
    free_during_a_step(argv[1]);
    many_sessions();
    edgellm_free(model);
    return 0;
}
