/* Lines of the contract (README.md of this folder) that no other program is about: what is copied, what stays readable and how
 * long, which threads may do what, what a session is after each outcome of a step, and when callbacks come. */
#include "check.h"

#include <pthread.h>
#include <signal.h>

enum { MAX = 12, THREADS = 4 };

static const char TEXT[] = "hello the world, h\xc3\xa9llo 12";

static void prompted(edgellm_session *s, edgellm_model *model) {
    edgellm_token prompt[64];
    size_t n = tokens_of(model, TEXT, prompt, 64);
    STATUS(EDGELLM_OK, edgellm_session_prompt(s, prompt, n, NULL));
}

/* ---- ownership ---- */

/* Parameters and what they point to are copied during the call. */
static void copies(const char *path) {
    edgellm_load_params load;
    edgellm_session_params params;
    edgellm_sampling sampling;
    edgellm_str stop;
    edgellm_model *model = NULL;
    edgellm_session *s = NULL;
    edgellm_token wanted[MAX], found[MAX], *prompt = (edgellm_token *)malloc(64 * sizeof *prompt);
    char *copy = (char *)malloc(strlen(path) + 1), *text = (char *)malloc(6);
    size_t n;
    CHECK(copy && text && prompt);
    strcpy(copy, path);
    memcpy(text, "never", 6);
    edgellm_load_params_init(&load);
    load.path = copy;
    STATUS(EDGELLM_OK, edgellm_load(&load, &model));
    memset(copy, 'x', strlen(copy));
    free(copy);
    memset(&load, 0xff, sizeof load);
    edgellm_session_params_init(&params);
    params.n_ctx = 64;
    STATUS(EDGELLM_OK, edgellm_session_new(model, &params, &s));
    memset(&params, 0xff, sizeof params);
    greedy(s, MAX);
    prompted(s, model);
    CHECK(run(s, wanted, MAX) == MAX);
    edgellm_sampling_init(&sampling);
    stop.ptr = text;
    stop.len = 5;
    sampling.stops = &stop;
    sampling.n_stops = 1;
    sampling.max_tokens = MAX;
    sampling.ignore_eos = 1;
    STATUS(EDGELLM_OK, edgellm_session_sampling(s, &sampling));
    free(text);
    memset(&stop, 0xff, sizeof stop);
    memset(&sampling, 0xff, sizeof sampling);
    n = tokens_of(model, TEXT, prompt, 64);
    STATUS(EDGELLM_OK, edgellm_session_prompt(s, prompt, n, NULL));
    free(prompt);
    CHECK(run(s, found, MAX) == MAX && memcmp(wanted, found, sizeof found) == 0);
    edgellm_free(model); /* The session has a reference of its own. */
    STATUS(EDGELLM_OK, edgellm_session_rewind(s, 1));
    CHECK(run(s, found, MAX) == MAX);
    edgellm_session_free(s);
}

/* A view that the session gave can be read until the next call on it other than _cancel, _run, _length and _stats. */
static void views(edgellm_model *model) {
    edgellm_session *s = session(model, 64, 0);
    edgellm_event event;
    edgellm_stats stats;
    const float *logits = NULL;
    float first = 0;
    char text[64];
    size_t n = 0;
    int turn;
    stats.struct_size = sizeof stats;
    edgellm_event_init(&event);
    greedy(s, MAX);
    prompted(s, model);
    do STATUS(EDGELLM_OK, edgellm_step(s, &event));
    while (event.text.len == 0);
    CHECK(event.text.len < sizeof text);
    memcpy(text, event.text.ptr, event.text.len);
    for (turn = 0; turn < 2; turn++) {
        edgellm_session_cancel(s, edgellm_session_run(s) + 5); /* No run that there is. */
        CHECK(edgellm_session_length(s) > 0);
        STATUS(EDGELLM_OK, edgellm_session_stats(s, &stats, 1));
        CHECK(turn > 0 || memcmp(text, event.text.ptr, event.text.len) == 0);
        if (turn == 0) {
            STATUS(EDGELLM_OK, edgellm_forward(s, 0));
            STATUS(EDGELLM_OK, edgellm_logits(s, &logits, &n));
            first = logits[n - 1];
        }
        CHECK(first == logits[n - 1]);
    }
    edgellm_session_free(s);
}

static void *fails(void *argument) {
    (void)argument;
    CHECK(edgellm_last_error()[0] == '\0');
    REFUSED(EDGELLM_E_ARG, "not a model handle", edgellm_model_get_info(NULL, NULL));
    return NULL;
}

/* The last error is the thread's own, and calls that succeed leave it. */
static void errors(edgellm_model *model) {
    edgellm_session *s = session(model, 64, 0);
    const char *text = edgellm_last_error();
    pthread_t thread;
    REFUSED(EDGELLM_E_ARG, "rewind to 5", edgellm_session_rewind(s, 5));
    CHECK(pthread_create(&thread, NULL, fails, NULL) == 0 && pthread_join(thread, NULL) == 0);
    prompted(s, model);
    CHECK(edgellm_last_error() == text && strstr(text, "rewind to 5") != NULL);
    edgellm_session_free(s);
}

/* ---- threads ---- */

static const char *model_path;
static edgellm_model *shared;

static void *everything(void *argument) {
    edgellm_model *own = load_with(model_path, 1), *models[2];
    edgellm_token found[MAX];
    int i;
    models[0] = own;
    models[1] = edgellm_ref(shared);
    for (i = 0; i < 2; i++) {
        edgellm_session *s = session(models[i], 64, 0), *fork = NULL;
        size_t n = 0;
        void *state;
        greedy(s, MAX);
        prompted(s, models[i]);
        STATUS(EDGELLM_OK, edgellm_session_fork(s, &fork));
        STATUS(EDGELLM_E_BUFFER, edgellm_session_save(s, NULL, 0, &n));
        state = malloc(n);
        CHECK(state != NULL);
        STATUS(EDGELLM_OK, edgellm_session_save(s, state, n, &n));
        STATUS(EDGELLM_OK, edgellm_session_restore(fork, state, n));
        free(state);
        CHECK(run(fork, found, MAX) == MAX && memcmp(found, argument, sizeof found) == 0);
        edgellm_session_free(s);
        edgellm_session_free(fork);
        edgellm_free(models[i]);
    }
    return NULL;
}

static void *steps_once(void *argument) {
    edgellm_event event;
    edgellm_event_init(&event);
    STATUS(EDGELLM_OK, edgellm_step((edgellm_session *)argument, &event));
    return NULL;
}

/* Loads, sessions, forks, tokens and states from several threads at once; a session from one thread after the other. */
static void threads(edgellm_model *model) {
    pthread_t threads[THREADS];
    edgellm_token wanted[MAX], found[MAX];
    edgellm_session *s = session(model, 64, 0);
    int i;
    greedy(s, MAX);
    prompted(s, model);
    CHECK(run(s, wanted, MAX) == MAX);
    shared = model;
    for (i = 0; i < THREADS; i++) CHECK(pthread_create(&threads[i], NULL, everything, wanted) == 0);
    for (i = 0; i < THREADS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
    prompted(s, model);
    for (i = 0; i < 4; i++) {
        CHECK(pthread_create(&threads[0], NULL, steps_once, s) == 0 && pthread_join(threads[0], NULL) == 0);
    }
    CHECK(run(s, found, MAX) == MAX - 4 && memcmp(found, wanted + 4, (MAX - 4) * sizeof *found) == 0);
    edgellm_session_free(s);
}

/* In the worker: its name, and the signals that it takes. */
static void on_thread(void *user, uint32_t index, int32_t start) {
    char name[32] = "", wanted[32];
    sigset_t blocked;
    int number;
    if (start != 1) return;
    snprintf(wanted, sizeof wanted, "edgellm-w%u", (unsigned)index);
    CHECK(pthread_getname_np(pthread_self(), name, sizeof name) == 0 && strcmp(name, wanted) == 0);
    CHECK(pthread_sigmask(SIG_BLOCK, NULL, &blocked) == 0);
    for (number = 1; number < 32; number++) {
        CHECK(number == SIGKILL || number == SIGSTOP || sigismember(&blocked, number) == 1);
    }
    __atomic_add_fetch((int *)user, 1, __ATOMIC_SEQ_CST);
}

/* Worker threads have names and take no signal. */
static void workers(void) {
    edgellm_load_params load;
    edgellm_model *model = NULL;
    int seen = 0;
    edgellm_load_params_init(&load);
    load.path = model_path;
    load.n_threads = 3;
    load.on_thread = on_thread;
    load.on_thread_user = &seen;
    STATUS(EDGELLM_OK, edgellm_load(&load, &model));
    edgellm_free(model);
    CHECK(seen == 2); /* The caller computes too. */
}

/* ---- outcomes of a step ---- */

static void suspended(edgellm_session *s, edgellm_model *model) {
    edgellm_event event;
    edgellm_event_init(&event);
    STATUS(EDGELLM_OK, edgellm_session_rewind(s, 0));
    prompted(s, model);
    STATUS(EDGELLM_AGAIN, edgellm_step_until(s, 1, &event));
    CHECK(event.kind == EDGELLM_EV_NONE && event.token == -1 && event.text.len == 0);
}

static void outcomes(edgellm_model *model) {
    edgellm_session *s = session(model, 40, 0);
    edgellm_token wanted[MAX], found[MAX], one = 5, many[64];
    edgellm_event event;
    uint64_t number;
    size_t length, i;
    edgellm_event_init(&event);
    for (i = 0; i < 64; i++) many[i] = 3;
    greedy(s, MAX);
    prompted(s, model);
    length = edgellm_session_length(s);
    CHECK(run(s, wanted, MAX) == MAX);
    /* After the end every step says so again; prompt, append and rewind start a new run, with a new number. */
    STATUS(EDGELLM_END, edgellm_step(s, &event));
    CHECK(event.kind == EDGELLM_EV_END && event.finish == EDGELLM_FINISH_LENGTH);
    for (i = 0; i < 3; i++) {
        number = edgellm_session_run(s);
        if (i == 0) STATUS(EDGELLM_OK, edgellm_session_append(s, &one, 1));
        if (i == 1) STATUS(EDGELLM_OK, edgellm_session_rewind(s, length));
        if (i == 2) prompted(s, model);
        CHECK(edgellm_session_run(s) != number);
        CHECK(run(s, found, MAX) == MAX);
        CHECK(i == 0 || memcmp(wanted, found, sizeof found) == 0);
    }
    /* A suspended step may be cancelled, and the run then go on; or rewound; or another prompt given. */
    suspended(s, model);
    edgellm_session_cancel(s, 0);
    event.ns = 77;
    STATUS(EDGELLM_E_CANCELLED, edgellm_step(s, &event));
    CHECK(event.ns == 77 && edgellm_session_length(s) == length);
    CHECK(run(s, found, MAX) == MAX && memcmp(wanted, found, sizeof found) == 0);
    suspended(s, model);
    STATUS(EDGELLM_OK, edgellm_session_rewind(s, length - 1));
    STATUS(EDGELLM_OK, edgellm_step(s, &event));
    suspended(s, model);
    STATUS(EDGELLM_OK, edgellm_session_prompt(s, many, 7, NULL));
    STATUS(EDGELLM_OK, edgellm_step(s, &event));
    suspended(s, model);
    /* What does not fit is refused, and the session is as it was: also its suspended step. */
    REFUSED(EDGELLM_E_CONTEXT, "40 fit", edgellm_session_prompt(s, many, 41, NULL));
    REFUSED(EDGELLM_E_CONTEXT, "40 fit", edgellm_session_append(s, many, 41 - length));
    CHECK(run(s, found, MAX) == MAX && memcmp(wanted, found, sizeof found) == 0);
    edgellm_session_free(s);
}

/* ---- callbacks ---- */

struct seen {
    pthread_t thread;
    int calls, wrong;
};

static int32_t on_progress(void *user, float done) {
    struct seen *seen = (struct seen *)user;
    seen->calls++;
    seen->wrong += !pthread_equal(seen->thread, pthread_self()) || !(done >= 0.0f && done <= 1.0f);
    return 0;
}

static void on_log(void *user, int32_t level, const char *target, const char *text, size_t len) {
    struct seen *seen = (struct seen *)user;
    seen->calls++;
    seen->wrong += level < EDGELLM_LOG_ERROR || level > EDGELLM_LOG_DEBUG || strncmp(target, "edgellm", 7) != 0;
    seen->wrong += text[len] != '\0' || strlen(text) != len;
}

static void callbacks(void) {
    edgellm_load_params load;
    edgellm_model *model = NULL;
    edgellm_session *s;
    struct seen progress, log;
    edgellm_token out[MAX];
    int calls;
    memset(&progress, 0, sizeof progress);
    memset(&log, 0, sizeof log);
    progress.thread = pthread_self();
    edgellm_set_log(on_log, &log, EDGELLM_LOG_DEBUG);
    edgellm_load_params_init(&load);
    load.path = model_path;
    load.on_progress = on_progress;
    load.on_progress_user = &progress;
    STATUS(EDGELLM_OK, edgellm_load(&load, &model));
    CHECK(progress.calls > 0 && progress.calls <= 100 && progress.wrong == 0);
    CHECK(log.calls > 0 && log.wrong == 0);
    s = session(model, 64, 0);
    greedy(s, MAX);
    prompted(s, model);
    calls = log.calls;
    CHECK(run(s, out, MAX) == MAX);
    CHECK(log.calls == calls); /* Steps say nothing. */
    edgellm_set_log(NULL, NULL, EDGELLM_LOG_OFF);
    edgellm_free(edgellm_ref(model));
    edgellm_session_free(s);
    edgellm_free(model);
    CHECK(log.calls == calls);
}

int main(int argc, char **argv) {
    edgellm_model *model;
    CHECK(argc == 2);
    model_path = argv[1];
    copies(argv[1]);
    callbacks();
    model = load_with(argv[1], 2);
    views(model);
    errors(model);
    threads(model);
    outcomes(model);
    edgellm_free(model);
    workers();
    return 0;
}
