/* How fast a model is here: bench MODEL.gguf [PROMPT_TOKENS [TOKENS [THREADS]]] */
#include "edgellm.h"

#include <stdio.h>
#include <stdlib.h>

enum { MAX_TOKENS = 1 << 16 };

static void check(edgellm_status status) {
    if (status >= 0) return;
    fprintf(stderr, "%s: %s\n", edgellm_status_name(status), edgellm_last_error());
    exit(1);
}

int main(int argc, char **argv) {
    static edgellm_token prompt[MAX_TOKENS];
    const int n_prompt = argc > 2 ? atoi(argv[2]) : 128, n_decode = argc > 3 ? atoi(argv[3]) : 64;
    const int n_threads = argc > 4 ? atoi(argv[4]) : 0;
    edgellm_load_params load;
    edgellm_session_params params;
    edgellm_sampling sampling;
    edgellm_model_info info;
    edgellm_model *model = NULL;
    edgellm_session *session = NULL;
    edgellm_event event;
    edgellm_stats stats;
    edgellm_status status;
    int i;

    if (argc < 2 || argc > 5 || n_prompt < 1 || n_prompt > MAX_TOKENS || n_decode < 1 || n_threads < 0) {
        fprintf(stderr, "usage: %s MODEL.gguf [PROMPT_TOKENS [TOKENS [THREADS]]]\n", argv[0]);
        return 2;
    }
    edgellm_load_params_init(&load);
    load.path = argv[1];
    load.n_threads = (uint32_t)n_threads;
    check(edgellm_load(&load, &model));
    info.struct_size = sizeof info;
    check(edgellm_model_get_info(model, &info));
    edgellm_session_params_init(&params);
    params.n_ctx = (uint32_t)(n_prompt + n_decode);
    check(edgellm_session_new(model, &params, &session));
    edgellm_sampling_init(&sampling);
    sampling.max_tokens = (uint32_t)n_decode;
    sampling.ignore_eos = 1;
    check(edgellm_session_sampling(session, &sampling));

    for (i = 0; i < n_prompt; i++) prompt[i] = (edgellm_token)((uint32_t)(3 + 7 * i) % (info.n_vocab / 2));
    check(edgellm_session_prompt(session, prompt, (size_t)n_prompt, NULL));
    edgellm_event_init(&event);
    do check(status = edgellm_step(session, &event));
    while (status != EDGELLM_END);

    stats.struct_size = sizeof stats;
    check(edgellm_session_stats(session, &stats, 0));
    printf("model    %.*s, %.*s, %.0f million weights, %.0f MB\n", (int)info.arch.len, info.arch.ptr, (int)info.quant.len,
           info.quant.ptr, (double)info.n_params * 1e-6,
           (double)(info.weight_bytes_host + info.weight_bytes_device) * 1e-6);
    printf("load     %.1f ms\n", (double)stats.ns_load * 1e-6);
    printf("prefill  %.1f tokens/s, first token after %.1f ms\n",
           (double)n_prompt * 1e9 / (double)(stats.ns_prefill + 1), (double)stats.ns_first_token * 1e-6);
    printf("decode   %.1f tokens/s; a step: p50 %.2f p95 %.2f p99 %.2f max %.2f ms\n",
           (double)(stats.tokens_out - 1) * 1e9 / (double)(stats.ns_decode + 1), (double)stats.step_ns_p50 * 1e-6,
           (double)stats.step_ns_p95 * 1e-6, (double)stats.step_ns_p99 * 1e-6, (double)stats.step_ns_max * 1e-6);
    printf("KV cache %.1f MB\n", (double)stats.kv_bytes * 1e-6);
    edgellm_session_free(session);
    edgellm_free(model);
    return 0;
}
