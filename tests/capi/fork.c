/* After fork(), handles stay with the parent: each call of the child says so and none hangs; both can go on. */
#include "check.h"

#include <sys/wait.h>
#include <unistd.h>

enum { MAX = 4 };

/* The parent's; the child can do nothing with them. */
static edgellm_model *parent_model;
static edgellm_session *parent_session;

static void child(const char *path, const edgellm_token *wanted) {
    edgellm_model *model = parent_model;
    edgellm_session *s = parent_session;
    edgellm_token token = 1, out[MAX];
    edgellm_event event;
    edgellm_model_info info;
    edgellm_session *other = NULL;
    edgellm_stats stats;
    edgellm_str bytes;
    const float *logits = NULL;
    float logprob;
    char text[64];
    size_t n = 77;
    edgellm_event_init(&event);
    info.struct_size = sizeof info;
    stats.struct_size = sizeof stats;
    REFUSED(EDGELLM_E_FORKED, "fork", edgellm_model_get_info(model, &info));
    REFUSED(EDGELLM_E_FORKED, "fork", edgellm_model_get_meta(model, "a", 1, text, sizeof text, &n));
    REFUSED(EDGELLM_E_FORKED, "fork", edgellm_tokenize(model, "a", 1, 0, out, MAX, &n));
    REFUSED(EDGELLM_E_FORKED, "fork", edgellm_detokenize(model, &token, 1, 0, text, sizeof text, &n));
    REFUSED(EDGELLM_E_FORKED, "fork", edgellm_token_bytes(model, token, &bytes));
    REFUSED(EDGELLM_E_FORKED, "fork", edgellm_chat_render(model, "[]", 2, NULL, 0, NULL, 0, text, sizeof text, &n));
    REFUSED(EDGELLM_E_FORKED, "fork", edgellm_session_new(model, NULL, &other));
    REFUSED(EDGELLM_E_FORKED, "fork", edgellm_session_sampling(s, NULL));
    REFUSED(EDGELLM_E_FORKED, "fork", edgellm_session_prompt(s, &token, 1, &n));
    REFUSED(EDGELLM_E_FORKED, "fork", edgellm_session_append(s, &token, 1));
    REFUSED(EDGELLM_E_FORKED, "fork", edgellm_session_rewind(s, 0));
    REFUSED(EDGELLM_E_FORKED, "fork", edgellm_step(s, &event));
    REFUSED(EDGELLM_E_FORKED, "fork", edgellm_step_until(s, 0, &event));
    REFUSED(EDGELLM_E_FORKED, "fork", edgellm_forward(s, 0));
    REFUSED(EDGELLM_E_FORKED, "fork", edgellm_logits(s, &logits, &n));
    REFUSED(EDGELLM_E_FORKED, "fork", edgellm_accept(s, token, &event));
    REFUSED(EDGELLM_E_FORKED, "fork", edgellm_session_stats(s, &stats, 0));
    REFUSED(EDGELLM_E_FORKED, "fork", edgellm_session_fork(s, &other));
    REFUSED(EDGELLM_E_FORKED, "fork", edgellm_session_save(s, text, sizeof text, &n));
    REFUSED(EDGELLM_E_FORKED, "fork", edgellm_session_restore(s, text, sizeof text));
    REFUSED(EDGELLM_E_FORKED, "fork", edgellm_session_save_fd(s, 1));
    REFUSED(EDGELLM_E_FORKED, "fork", edgellm_session_restore_fd(s, 0));
    REFUSED(EDGELLM_E_FORKED, "fork", edgellm_score(s, &token, 1, &logprob));
    CHECK(n == 77 && other == NULL && logits == NULL);
    CHECK(edgellm_session_length(s) == 0 && edgellm_session_run(s) == 0 && edgellm_ref(model) == NULL);
    CHECK(edgellm_token_is_eos(model, token) == 0);
    edgellm_session_cancel(s, 0);
    edgellm_session_free(s);
    edgellm_free(model);

    /* A model of the child's own works. */
    model = load_with(path, 2);
    s = session(model, 128, 0);
    greedy(s, MAX);
    STATUS(EDGELLM_OK, edgellm_session_prompt(s, &token, 1, NULL));
    CHECK(run(s, out, MAX) == MAX && memcmp(out, wanted, sizeof out) == 0);
    edgellm_session_free(s);
    edgellm_free(model);
}

int main(int argc, char **argv) {
    edgellm_token token = 1, before[MAX], after[MAX];
    int status = -1;
    pid_t pid;
    CHECK(argc == 2);
    parent_model = load_with(argv[1], 2); /* One worker thread, which the child does not have. */
    parent_session = session(parent_model, 128, 0);
    greedy(parent_session, MAX);
    STATUS(EDGELLM_OK, edgellm_session_prompt(parent_session, &token, 1, NULL));
    CHECK(run(parent_session, before, MAX) == MAX);

    pid = fork();
    CHECK(pid >= 0);
    if (pid == 0) {
        child(argv[1], before);
        _exit(0); /* Not through the exit handlers, which are the parent's. */
    }
    CHECK(waitpid(pid, &status, 0) == pid && WIFEXITED(status) && WEXITSTATUS(status) == 0);

    STATUS(EDGELLM_OK, edgellm_session_prompt(parent_session, &token, 1, NULL));
    CHECK(run(parent_session, after, MAX) == MAX && memcmp(before, after, sizeof before) == 0);
    edgellm_session_free(parent_session);
    edgellm_free(parent_model);
    return 0;
}
