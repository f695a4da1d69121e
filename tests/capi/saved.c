/* Sessions saved and restored: to memory, to files and pipes, and after a process was killed. */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

enum { MAX = 40 };
static const char TEXT[] = "hello the world, hello 12";

/* Sampled, with a text that is held back now and then. */
static void sampled(edgellm_session *s) {
    edgellm_sampling sampling;
    edgellm_str stop;
    edgellm_sampling_init(&sampling);
    stop.ptr = "never said";
    stop.len = 10;
    sampling.temperature = 0.9f;
    sampling.seed = 11;
    sampling.max_tokens = MAX;
    sampling.ignore_eos = 1;
    sampling.stops = &stop;
    sampling.n_stops = 1;
    STATUS(EDGELLM_OK, edgellm_session_sampling(s, &sampling));
}

static edgellm_session *started(edgellm_model *model, size_t steps) {
    edgellm_token prompt[64];
    edgellm_event event;
    edgellm_session *s = session(model, 128, 8);
    size_t n = tokens_of(model, TEXT, prompt, 64);
    edgellm_event_init(&event);
    sampled(s);
    STATUS(EDGELLM_OK, edgellm_session_prompt(s, prompt, n, NULL));
    while (steps--) STATUS(EDGELLM_OK, edgellm_step(s, &event));
    return s;
}

/* All that is saved, in memory of the caller's. */
static void *saved(edgellm_session *s, size_t *n) {
    void *state;
    size_t again = 0;
    REFUSED(EDGELLM_E_BUFFER, "too small", edgellm_session_save(s, NULL, 0, n));
    CHECK(*n > 0);
    state = malloc(*n + 1);
    CHECK(state != NULL);
    ((char *)state)[*n - 1] = 77;
    STATUS(EDGELLM_E_BUFFER, edgellm_session_save(s, state, *n - 1, &again));
    CHECK(again == *n && ((char *)state)[*n - 1] == 77);
    STATUS(EDGELLM_OK, edgellm_session_save(s, state, *n + 1, &again));
    CHECK(again == *n);
    return state;
}

/* A process that is killed in the middle of its run, after it saved; it leaves what it would have gone on with. */
static void killed(const char *model_path, int state, int rest) {
    pid_t child = fork(); /* Before anything of the library is used: the parent is a process that knows nothing of it. */
    int status = 0;
    CHECK(child >= 0);
    if (child == 0) {
        edgellm_token tokens[MAX];
        edgellm_session *s = started(load_with(model_path, 2), 9);
        size_t n;
        STATUS(EDGELLM_OK, edgellm_session_save_fd(s, state));
        n = run(s, tokens, MAX);
        CHECK(write(rest, tokens, n * sizeof *tokens) == (ssize_t)(n * sizeof *tokens));
        kill(getpid(), SIGKILL); /* With everything still open. */
        pause();
    }
    CHECK(waitpid(child, &status, 0) == child && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
}

static FILE *scratch(void) {
    FILE *file = tmpfile();
    CHECK(file != NULL);
    return file;
}

static void restored_after_a_kill(edgellm_model *model, FILE *state, FILE *rest) {
    edgellm_token expected[MAX], found[MAX];
    edgellm_session *s = session(model, 100, 0);
    size_t n;
    CHECK(lseek(fileno(state), 0, SEEK_SET) == 0 && lseek(fileno(rest), 0, SEEK_SET) == 0);
    STATUS(EDGELLM_OK, edgellm_session_restore_fd(s, fileno(state)));
    n = run(s, found, MAX);
    CHECK(n > 10 && read(fileno(rest), expected, sizeof expected) == (ssize_t)(n * sizeof *found));
    CHECK(memcmp(found, expected, n * sizeof *found) == 0);
    edgellm_session_free(s);
}

static void memory(edgellm_model *model) {
    edgellm_token first[MAX], second[MAX];
    edgellm_session *s = started(model, 7), *other = session(model, 128, 0), *short_one = session(model, 8, 0);
    edgellm_session_params params;
    edgellm_session *i8 = NULL;
    size_t n = 0, count, length = edgellm_session_length(s);
    char *state = (char *)saved(s, &n);
    uint64_t before = edgellm_session_run(other);
    count = run(s, first, MAX);
    STATUS(EDGELLM_OK, edgellm_session_restore(other, state, n));
    CHECK(edgellm_session_run(other) != before && edgellm_session_length(other) == length);
    CHECK(run(other, second, MAX) == count && memcmp(first, second, count * sizeof *first) == 0);
    /* The same session may take it back, as often as it likes. */
    STATUS(EDGELLM_OK, edgellm_session_restore(s, state, n));
    CHECK(run(s, second, MAX) == count && memcmp(first, second, count * sizeof *first) == 0);

    length = edgellm_session_length(other);
    before = edgellm_session_run(other);
    state[n / 2] = (char)(state[n / 2] ^ 4);
    REFUSED(EDGELLM_E_INTEGRITY, "checksum", edgellm_session_restore(other, state, n));
    state[n / 2] = (char)(state[n / 2] ^ 4);
    REFUSED(EDGELLM_E_INTEGRITY, "cut off", edgellm_session_restore(other, state, n - 1));
    REFUSED(EDGELLM_E_INTEGRITY, "no saved session", edgellm_session_restore(other, "what is this, I wonder?!", 24));
    REFUSED(EDGELLM_E_INTEGRITY, "no saved session", edgellm_session_restore(other, state, 0));
    REFUSED(EDGELLM_E_ARG, "NULL", edgellm_session_restore(other, NULL, 0));
    REFUSED(EDGELLM_E_ARG, "NULL", edgellm_session_save(other, NULL, 5, &n));
    REFUSED(EDGELLM_E_ARG, "NULL", edgellm_session_save(other, NULL, 0, NULL));
    REFUSED(EDGELLM_E_CONTEXT, "8 fit", edgellm_session_restore(short_one, state, n));
    edgellm_session_params_init(&params);
    params.kv_type = EDGELLM_KV_I8;
    STATUS(EDGELLM_OK, edgellm_session_new(model, &params, &i8));
    REFUSED(EDGELLM_E_MISMATCH, "int8", edgellm_session_restore(i8, state, n));
    CHECK(edgellm_session_length(other) == length && edgellm_session_run(other) == before);
    CHECK(edgellm_session_length(short_one) == 0 && edgellm_session_length(i8) == 0);
    free(state);
    edgellm_session_free(s);
    edgellm_session_free(other);
    edgellm_session_free(short_one);
    edgellm_session_free(i8);
}

static void files(edgellm_model *model) {
    edgellm_session *s = started(model, 7), *other = session(model, 128, 0);
    FILE *file = scratch();
    size_t n = 0, length = edgellm_session_length(s);
    void *state = saved(s, &n), *read_back = malloc(n);
    int fd = fileno(file), closed = dup(fd), full, ends[2], child;
    CHECK(read_back != NULL);
    /* From where the descriptor stands, and no further: two, with something around them. */
    CHECK(write(fd, "abc", 3) == 3);
    STATUS(EDGELLM_OK, edgellm_session_save_fd(s, fd));
    STATUS(EDGELLM_OK, edgellm_session_save_fd(s, fd));
    CHECK(lseek(fd, 0, SEEK_CUR) == (off_t)(3 + 2 * n));
    CHECK(pread(fd, read_back, n, 3) == (ssize_t)n && memcmp(state, read_back, n) == 0);
    CHECK(lseek(fd, 3, SEEK_SET) == 3);
    STATUS(EDGELLM_OK, edgellm_session_restore_fd(other, fd));
    CHECK(lseek(fd, 0, SEEK_CUR) == (off_t)(3 + n) && edgellm_session_length(other) == length);
    STATUS(EDGELLM_OK, edgellm_session_restore_fd(other, fd));
    REFUSED(EDGELLM_E_INTEGRITY, "cut off", edgellm_session_restore_fd(other, fd));
    CHECK(edgellm_session_length(other) == length);
    /* A pipe, from another process. */
    CHECK(pipe(ends) == 0);
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        size_t done = 0;
        ssize_t part;
        while (done < n && (part = write(ends[1], (char *)state + done, n - done < 1000 ? n - done : 1000)) > 0)
            done += (size_t)part;
        _exit(done == n ? 0 : 1);
    }
    close(ends[1]);
    STATUS(EDGELLM_OK, edgellm_session_restore_fd(other, ends[0]));
    CHECK(waitpid(child, NULL, 0) == child);
    close(ends[0]);
    /* What the system refuses. */
    close(closed);
    REFUSED(EDGELLM_E_IO, "saved session", edgellm_session_save_fd(s, closed));
    CHECK(edgellm_last_errno() == EBADF);
    STATUS(EDGELLM_E_IO, edgellm_session_restore_fd(s, closed));
    CHECK(edgellm_last_errno() == EBADF);
    REFUSED(EDGELLM_E_ARG, "-1", edgellm_session_save_fd(s, -1));
    REFUSED(EDGELLM_E_ARG, "-1", edgellm_session_restore_fd(s, -1));
    full = open("/dev/full", O_WRONLY);
    if (full >= 0) {
        STATUS(EDGELLM_E_IO, edgellm_session_save_fd(s, full));
        CHECK(edgellm_last_errno() == ENOSPC);
        close(full);
    }
    CHECK(edgellm_session_length(s) == length);
    fclose(file);
    free(state);
    free(read_back);
    edgellm_session_free(s);
    edgellm_session_free(other);
}

int main(int argc, char **argv) {
    edgellm_model *model;
    FILE *state = scratch(), *rest = scratch();
    CHECK(argc == 2);
    killed(argv[1], fileno(state), fileno(rest));
    model = load_with(argv[1], 2);
    restored_after_a_kill(model, state, rest);
    fclose(state);
    fclose(rest);
    memory(model);
    files(model);
    edgellm_free(model);
    return 0;
}
