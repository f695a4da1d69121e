/* Memory: a plan is exact, a limit is kept, and what is refused says how much it would have been. */
#include "check.h"

#include <sys/resource.h>
#include <unistd.h>

static edgellm_plan planned(const edgellm_load_params *load, const edgellm_session_params *params) {
    edgellm_plan plan;
    memset(&plan, 0x5a, sizeof plan);
    plan.struct_size = sizeof plan;
    STATUS(EDGELLM_OK, edgellm_plan_memory(load, params, &plan));
    CHECK(plan.struct_size == sizeof plan);
    return plan;
}

static edgellm_load_params for_cpu(const char *path) {
    edgellm_load_params load;
    edgellm_load_params_init(&load);
    load.path = path;
    load.n_threads = 2;
    load.device = EDGELLM_DEVICE_CPU;
    return load;
}

static void a_plan_is_exact(const char *path) {
    edgellm_load_params load = for_cpu(path);
    edgellm_session_params params;
    edgellm_model *model = NULL;
    edgellm_session *s = NULL, *other = NULL;
    edgellm_plan plan;
    edgellm_token tokens[64];
    uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
    char needed[32];
    uint32_t n_ctx;
    edgellm_session_params_init(&params);
    params.prefill_chunk = 16;
    for (n_ctx = 64; n_ctx < 700; n_ctx += 101) {
        params.n_ctx = n_ctx;
        params.kv_type = n_ctx % 2 ? EDGELLM_KV_I8 : EDGELLM_KV_F16;
        load.memory_limit = 0;
        plan = planned(&load, &params);
        CHECK(plan.fits == 1 && plan.device == EDGELLM_DEVICE_CPU && plan.n_ctx_fits >= n_ctx);
        CHECK(plan.weights_host > 0 && plan.kv_host > 0 && plan.scratch_host > 0 && plan.mapped_file > 0);
        CHECK(plan.weights_device == 0 && plan.kv_device == 0 && plan.scratch_device == 0);
        CHECK(plan.needed >= plan.weights_host + plan.kv_host + plan.scratch_host && plan.needed >= plan.peak_load);
        CHECK(plan.available_host > 0 && plan.available_device == 0);
        load.memory_limit = plan.needed;
        CHECK(planned(&load, &params).fits == 1 && planned(&load, &params).n_ctx_fits >= n_ctx);
        STATUS(EDGELLM_OK, edgellm_load(&load, &model));
        STATUS(EDGELLM_OK, edgellm_session_new(model, &params, &s));
        greedy(s, 20);
        STATUS(EDGELLM_OK, edgellm_session_prompt(s, tokens, tokens_of(model, "hello the world", tokens, 64), NULL));
        CHECK(run(s, tokens, 64) == 20);
        /* There is no room for a second one. */
        REFUSED(EDGELLM_E_NOMEM, "memory limit", edgellm_session_new(model, &params, &other));
        sprintf(needed, "of %lu are taken", (unsigned long)plan.needed);
        CHECK(other == NULL && strstr(edgellm_last_error(), needed) != NULL);
        edgellm_session_free(s);
        STATUS(EDGELLM_OK, edgellm_session_new(model, &params, &s));
        edgellm_session_free(s);
        edgellm_free(model);
        load.memory_limit = plan.needed - page;
        CHECK(planned(&load, &params).fits == 0);
        if (edgellm_load(&load, &model) == EDGELLM_OK) {
            REFUSED(EDGELLM_E_NOMEM, "memory limit", edgellm_session_new(model, &params, &s));
            edgellm_free(model);
        } else {
            CHECK(model == NULL && strstr(edgellm_last_error(), "memory limit") != NULL);
        }
    }
}

static void plans_are_refused(const char *path) {
    edgellm_load_params load = for_cpu(path);
    edgellm_session_params params;
    edgellm_plan plan, before;
    memset(&plan, 0x5a, sizeof plan);
    plan.struct_size = sizeof plan;
    before = plan;
    edgellm_session_params_init(&params);
    REFUSED(EDGELLM_E_ARG, "NULL", edgellm_plan_memory(NULL, NULL, &plan));
    REFUSED(EDGELLM_E_ARG, "NULL", edgellm_plan_memory(&load, NULL, NULL));
    params.kv_type = 7;
    REFUSED(EDGELLM_E_ARG, "kv_type: 7", edgellm_plan_memory(&load, &params, &plan));
    params.kv_type = EDGELLM_KV_AUTO;
    params.n_ctx = 1u << 30;
    REFUSED(EDGELLM_E_ARG, "context length", edgellm_plan_memory(&load, &params, &plan));
    load.path = "no/such/file.gguf";
    REFUSED(EDGELLM_E_IO, "no/such/file.gguf", edgellm_plan_memory(&load, NULL, &plan));
    load.path = path;
    load.data = path;
    REFUSED(EDGELLM_E_ARG, "both", edgellm_plan_memory(&load, NULL, &plan));
    CHECK(memcmp(&plan, &before, sizeof plan) == 0);
    plan.struct_size = sizeof plan - 1;
    load.data = NULL;
    REFUSED(EDGELLM_E_ARG, "struct_size", edgellm_plan_memory(&load, NULL, &plan));
    plan.struct_size = 2 * sizeof(uint32_t); /* An older caller's. */
    STATUS(EDGELLM_OK, edgellm_plan_memory(&load, NULL, &plan));
    CHECK(plan.fits == 1 && plan.weights_host == before.weights_host);
}

/* The file is read into memory, and counted while it is there. */
static void a_file_that_is_read_counts(const char *path) {
    edgellm_load_params load = for_cpu(path);
    edgellm_plan mapped = planned(&load, NULL), plan;
    edgellm_model *model = NULL;
    load.flags = EDGELLM_LOAD_NO_MMAP;
    plan = planned(&load, NULL);
    CHECK(plan.mapped_file == 0 && plan.peak_load >= mapped.peak_load + mapped.mapped_file);
    load.memory_limit = plan.peak_load;
    STATUS(EDGELLM_OK, edgellm_load(&load, &model));
    edgellm_free(model);
    load.memory_limit = plan.peak_load - 1;
    REFUSED(EDGELLM_E_NOMEM, "memory limit", edgellm_load(&load, &model));
    load.memory_limit = 5;
    REFUSED(EDGELLM_E_NOMEM, "the model file", edgellm_load(&load, &model));
    CHECK(model == NULL);
}

/* Either all of it is locked, or nothing is loaded, as the system has it. The plan is the same. */
static void locked_memory_is_locked(const char *path) {
    edgellm_load_params load = for_cpu(path);
    edgellm_model *model = NULL;
    edgellm_session *s = NULL;
    edgellm_plan plan;
    edgellm_stats stats;
    edgellm_token tokens[64];
    edgellm_session_params params;
    struct rlimit limit, none;
    load.flags = EDGELLM_LOAD_MLOCK;
    edgellm_session_params_init(&params);
    params.n_ctx = 256;
    plan = planned(&load, &params);
    load.memory_limit = plan.needed;
    CHECK(getrlimit(RLIMIT_MEMLOCK, &limit) == 0);
    /* This machine's own limit; root may have none. */
    if (edgellm_load(&load, &model) == EDGELLM_OK) {
        if (edgellm_session_new(model, &params, &s) == EDGELLM_OK) {
            stats.struct_size = sizeof stats;
            STATUS(EDGELLM_OK, edgellm_session_stats(s, &stats, 0));
            CHECK(stats.host_bytes == plan.weights_host + plan.kv_host + plan.scratch_host);
            greedy(s, 4);
            STATUS(EDGELLM_OK, edgellm_session_prompt(s, tokens, tokens_of(model, "hello", tokens, 64), NULL));
            CHECK(run(s, tokens, 64) == 4);
            edgellm_session_free(s);
        } else {
            CHECK(strstr(edgellm_last_error(), "locked") != NULL);
        }
        edgellm_free(model);
    } else {
        CHECK(model == NULL && strstr(edgellm_last_error(), "locked") != NULL);
    }
    /* None at all, where that is a limit. */
    none = limit;
    none.rlim_cur = 0;
    CHECK(setrlimit(RLIMIT_MEMLOCK, &none) == 0);
    if (geteuid() != 0) REFUSED(EDGELLM_E_NOMEM, "may lock 0 bytes", edgellm_load(&load, &model));
    CHECK(setrlimit(RLIMIT_MEMLOCK, &limit) == 0);
}

static void a_device_that_must_be_there(const char *path) {
    edgellm_load_params load = for_cpu(path);
    edgellm_device_info info;
    edgellm_model *model = NULL;
    uint32_t i, usable = 0;
    for (i = 1; i < edgellm_device_count(); i++) {
        info.struct_size = sizeof info;
        STATUS(EDGELLM_OK, edgellm_device_get(i, &info));
        usable += info.usable;
    }
    load.flags = EDGELLM_LOAD_NO_GPU_FALLBACK;
    STATUS(EDGELLM_OK, edgellm_load(&load, &model)); /* The CPU was asked for. */
    edgellm_free(model);
    load.device = EDGELLM_DEVICE_AUTO;
    if (usable == 0) REFUSED(EDGELLM_E_DEVICE, "CUDA", edgellm_load(&load, &model));
    load.flags |= EDGELLM_LOAD_EXACT;
    REFUSED(EDGELLM_E_UNSUPPORTED, "CPU", edgellm_load(&load, &model));
    CHECK(model == NULL);
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    locked_memory_is_locked(argv[1]);
    a_device_that_must_be_there(argv[1]);
    a_plan_is_exact(argv[1]);
    plans_are_refused(argv[1]);
    a_file_that_is_read_counts(argv[1]);
    return 0;
}
