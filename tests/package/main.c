/* A user of the installed library: main MODEL.gguf says what a step of each kind says. With OTHER it also calls a second
   library in Rust, before and after. */
#include <edgellm.h>

#include <stdio.h>
#include <string.h>

#ifdef OTHER
extern int other_caught(int n);
#endif

static int fail(const char *what) {
    fprintf(stderr, "%s: %s\n", what, edgellm_last_error());
    return 1;
}

int main(int argc, char **argv) {
    edgellm_load_params load;
    edgellm_sampling sampling;
    edgellm_event event;
    edgellm_model *model = NULL;
    edgellm_session *session = NULL;
    edgellm_token tokens[64];
    edgellm_status status;
    size_t n = 0;
    const char *const prompt = "<|im_start|>user\nStop.<|im_end|>\n<|im_start|>assistant\n";

    if (argc != 2) return 2;
    if (edgellm_abi_version() != (EDGELLM_ABI_MAJOR << 16 | EDGELLM_ABI_MINOR)) return fail("another interface");
    /* An error crosses the boundary in words. */
    edgellm_load_params_init(&load);
    load.path = "/no/such/file";
    if (edgellm_load(&load, &model) != EDGELLM_E_IO || !strstr(edgellm_last_error(), "/no/such/file")) return fail("E_IO");
#ifdef OTHER
    if (other_caught(3) != 3) return fail("other_caught");
#endif

    load.path = argv[1];
    if (edgellm_load(&load, &model) < 0) return fail("load");
    if (edgellm_session_new(model, NULL, &session) < 0) return fail("session");
    edgellm_sampling_init(&sampling);
    sampling.max_tokens = 16;
    if (edgellm_session_sampling(session, &sampling) < 0) return fail("sampling");
    if (edgellm_tokenize(model, prompt, EDGELLM_NUL, EDGELLM_TOK_SPECIAL, tokens, 64, &n) < 0) return fail("tokenize");
    if (edgellm_session_prompt(session, tokens, n, NULL) < 0) return fail("prompt");
    edgellm_event_init(&event);
    while ((status = edgellm_step(session, &event)) == EDGELLM_OK) printf("%.*s", (int)event.text.len, event.text.ptr);
    if (status != EDGELLM_END) return fail("step");
    printf("%.*s\n", (int)event.text.len, event.text.ptr);
    edgellm_session_free(session);
    edgellm_free(model);
#ifdef OTHER
    if (other_caught(4) != 4) return fail("other_caught");
#endif
    return 0;
}
