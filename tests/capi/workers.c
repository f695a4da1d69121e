/* Worker threads: as many as asked for, where and how they are asked to run, asleep when there is nothing to do, gone
 * with the model and after a load that failed. */
#include "check.h"

#include <dirent.h>
#include <errno.h>
#include <sched.h>
#include <time.h>
#include <unistd.h>

enum { ARG = EDGELLM_E_ARG, WORKERS = 3, SEEN_MAX = 64 };

/* The ids of this process's threads that are ours, how many. */
static size_t workers(pid_t *ids, size_t cap) {
    DIR *folder = opendir("/proc/self/task");
    struct dirent *entry;
    size_t n = 0;
    CHECK(folder != NULL);
    while ((entry = readdir(folder)) != NULL) {
        char path[300], name[32] = "";
        FILE *file;
        if (entry->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "/proc/self/task/%s/comm", entry->d_name);
        file = fopen(path, "r");
        if (file == NULL) continue; /* It has ended. */
        if (fgets(name, sizeof name, file) != NULL && strncmp(name, "edgellm-", 8) == 0) {
            CHECK(n < cap);
            ids[n++] = (pid_t)strtol(entry->d_name, NULL, 10);
        }
        fclose(file);
    }
    closedir(folder);
    return n;
}

/* A thread that was joined may be seen for a moment more. */
static size_t workers_left(void) {
    pid_t ids[SEEN_MAX];
    size_t n = 0;
    int round;
    for (round = 0; round < 200 && (n = workers(ids, SEEN_MAX)) > 0; round++) usleep(1000);
    return n;
}

static edgellm_load_params params_for(const char *path, uint32_t n_threads) {
    edgellm_load_params params;
    edgellm_load_params_init(&params);
    CHECK(params.cpu_mask == NULL && params.cpu_mask_words == 0 && params.on_thread == NULL);
    CHECK(params.sched_policy == -1 && params.sched_priority == -1);
    params.path = path;
    params.n_threads = n_threads;
    return params;
}

static edgellm_model *loaded(const edgellm_load_params *params) {
    edgellm_model *model = NULL;
    STATUS(EDGELLM_OK, edgellm_load(params, &model));
    CHECK(model != NULL);
    return model;
}

static void step(edgellm_model *model) {
    edgellm_token prompt[4] = {1, 2, 3, 4}, out[8];
    edgellm_session *own = session(model, 64, 0);
    greedy(own, 8);
    STATUS(EDGELLM_OK, edgellm_session_prompt(own, prompt, 4, NULL));
    CHECK(run(own, out, 8) == 8);
    edgellm_session_free(own);
}

static void count(const char *path) {
    edgellm_load_params params = params_for(path, 1);
    edgellm_model *model;
    pid_t ids[SEEN_MAX];
    uint64_t bad = 0;
    cpu_set_t usable;
    size_t n;
    params.sched_policy = 1; /* No worker, nothing to set. */
    params.sched_priority = 1000;
    model = loaded(&params);
    step(model);
    CHECK(workers(ids, SEEN_MAX) == 0);
    edgellm_free(model);

    params = params_for(path, WORKERS + 1);
    model = loaded(&params);
    step(model);
    CHECK(workers(ids, SEEN_MAX) == WORKERS);
    edgellm_free(model);
    CHECK(workers_left() == 0);

    params = params_for(path, 0);
    model = loaded(&params);
    CHECK(sched_getaffinity(0, sizeof usable, &usable) == 0);
    n = workers(ids, SEEN_MAX);
    CHECK(n < (size_t)CPU_COUNT(&usable)); /* The caller's thread is one. */
    edgellm_free(model);
    CHECK(workers_left() == 0);

    params = params_for(path, 1025);
    REFUSED(ARG, "1024", edgellm_load(&params, &model));
    params = params_for(path, 1);
    params.cpu_mask = &bad;
    REFUSED(ARG, "empty", edgellm_load(&params, &model));
    params.cpu_mask_words = 1;
    REFUSED(ARG, "empty", edgellm_load(&params, &model));
    params.cpu_mask_words = (size_t)-1;
    REFUSED(ARG, "cpu_mask", edgellm_load(&params, &model));
    params.cpu_mask = NULL;
    params.cpu_mask_words = 1;
    REFUSED(ARG, "cpu_mask", edgellm_load(&params, &model));
    params.cpu_mask = (const uint64_t *)((const char *)&bad + 1);
    REFUSED(ARG, "misaligned", edgellm_load(&params, &model));
}

/* The last of the CPUs that this process may use. */
static int last_cpu(void) {
    cpu_set_t usable;
    int cpu, last = -1;
    CHECK(sched_getaffinity(0, sizeof usable, &usable) == 0);
    for (cpu = 0; cpu < CPU_SETSIZE; cpu++)
        if (CPU_ISSET(cpu, &usable)) last = cpu;
    CHECK(last >= 0);
    return last;
}

static void affinity(const char *path) {
    uint64_t mask[1024 / 64];
    edgellm_load_params params = params_for(path, WORKERS + 1);
    edgellm_model *model;
    cpu_set_t before, after, found;
    pid_t ids[SEEN_MAX];
    size_t i, n;
    int cpu = last_cpu();
    memset(mask, 0, sizeof mask);
    mask[cpu / 64] |= (uint64_t)1 << (cpu % 64);
    mask[1023 / 64] |= (uint64_t)1 << (1023 % 64); /* That no machine here has: it does not matter. */
    params.cpu_mask = mask;
    params.cpu_mask_words = sizeof mask / sizeof mask[0];
    CHECK(sched_getaffinity(0, sizeof before, &before) == 0);
    model = loaded(&params);
    step(model);
    n = workers(ids, SEEN_MAX);
    CHECK(n == WORKERS);
    for (i = 0; i < n; i++) {
        CHECK(sched_getaffinity(ids[i], sizeof found, &found) == 0);
        CHECK(CPU_COUNT(&found) == 1 && CPU_ISSET(cpu, &found));
    }
    CHECK(sched_getaffinity(0, sizeof after, &after) == 0 && CPU_EQUAL(&before, &after));
    edgellm_free(model);

    params.n_threads = 0; /* One per CPU of the mask that there is: the caller's alone. */
    model = loaded(&params);
    step(model);
    CHECK(workers(ids, SEEN_MAX) == 0);
    edgellm_free(model);

    mask[cpu / 64] = 0;
    for (params.n_threads = 0; params.n_threads <= 2; params.n_threads += 2) {
        REFUSED(ARG, "cpu_mask has no CPU that this process may use: it has `1023`", edgellm_load(&params, &model));
        CHECK(model == NULL && workers_left() == 0);
    }
}

static void scheduling(const char *path) {
    edgellm_load_params params = params_for(path, WORKERS + 1);
    edgellm_model *model;
    struct sched_param parameters;
    pid_t ids[SEEN_MAX];
    size_t i, n;
    edgellm_status status;
    params.sched_policy = SCHED_BATCH;
    model = loaded(&params);
    step(model);
    n = workers(ids, SEEN_MAX);
    CHECK(n == WORKERS);
    for (i = 0; i < n; i++) CHECK(sched_getscheduler(ids[i]) == SCHED_BATCH);
    CHECK(sched_getscheduler(0) == SCHED_OTHER);
    edgellm_free(model);

    params.sched_policy = SCHED_FIFO; /* Only the privileged may. */
    params.sched_priority = 2;
    status = edgellm_load(&params, &model);
    if (status == EDGELLM_OK) {
        n = workers(ids, SEEN_MAX);
        CHECK(n == WORKERS);
        for (i = 0; i < n; i++) {
            CHECK(sched_getscheduler(ids[i]) == SCHED_FIFO);
            CHECK(sched_getparam(ids[i], &parameters) == 0 && parameters.sched_priority == 2);
        }
        step(model);
        edgellm_free(model);
    } else {
        CHECK(status == EDGELLM_E_IO && edgellm_last_errno() == EPERM);
        CHECK(strstr(edgellm_last_error(), "sched_policy 1 and sched_priority 2") != NULL);
    }
    CHECK(workers_left() == 0);

    params.sched_priority = 1000;
    REFUSED(ARG, "sched_priority 1000: sched_policy 1 has 1 to 99", edgellm_load(&params, &model));
    CHECK(model == NULL && workers_left() == 0);
    params.sched_policy = 77;
    REFUSED(ARG, "sched_policy 77", edgellm_load(&params, &model));
    params.sched_policy = -1;
    params.sched_priority = 1;
    REFUSED(ARG, "without sched_policy", edgellm_load(&params, &model));
    params.sched_policy = -2;
    REFUSED(ARG, "-2", edgellm_load(&params, &model));
    CHECK(workers_left() == 0);
}

struct seen {
    pid_t ids[SEEN_MAX];
    int started, ended;
    unsigned which; /* Bits: the indices that started. */
};

static void on_thread(void *user, uint32_t index, int32_t start) {
    struct seen *seen = (struct seen *)user;
    CHECK(index < WORKERS);
    if (start) {
        __atomic_fetch_or(&seen->which, 1u << index, __ATOMIC_SEQ_CST);
        __atomic_fetch_add(&seen->started, 1, __ATOMIC_SEQ_CST);
    } else {
        CHECK(start == 0);
        __atomic_fetch_add(&seen->ended, 1, __ATOMIC_SEQ_CST);
    }
}

static void callback(const char *path) {
    edgellm_load_params params = params_for(path, WORKERS + 1);
    edgellm_model *model;
    struct seen seen;
    memset(&seen, 0, sizeof seen);
    params.on_thread = on_thread;
    params.on_thread_user = &seen;
    model = loaded(&params);
    CHECK(seen.started == WORKERS && seen.which == (1u << WORKERS) - 1 && seen.ended == 0);
    step(model);
    edgellm_free(model);
    CHECK(seen.started == WORKERS && seen.ended == WORKERS);
    params.path = "no/such/file.gguf";
    REFUSED(EDGELLM_E_IO, "no/such", edgellm_load(&params, &model));
    CHECK(seen.started == seen.ended);
}

static double cpu_seconds(void) {
    struct timespec time;
    CHECK(clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time) == 0);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* Processor time, not wall-clock time: other processes do not change it. Threads that spin do so in every window; a slow
 * emulator may need more than one until they sleep and all that runs is translated. */
static void idle(const char *path) {
    edgellm_load_params params = params_for(path, WORKERS + 1);
    edgellm_model *model;
    double before, used = 1;
    int window;
    params.spin_us = 1000;
    model = loaded(&params);
    step(model);
    usleep(50000); /* They spin, then sleep. */
    for (window = 0; window < 10 && used >= 0.002; window++) {
        before = cpu_seconds();
        usleep(200000);
        used = cpu_seconds() - before;
    }
    CHECK(used < 0.002); /* 1 %; spinning would take at least 0.2 s. */
    edgellm_free(model);
}

int main(int argc, char **argv) {
    CHECK(argc == 2 || argc == 3);
    count(argv[1]);
    affinity(argv[1]);
    scheduling(argv[1]);
    callback(argv[1]);
    idle(argv[1]);
    CHECK(workers_left() == 0);
    return 0;
}
