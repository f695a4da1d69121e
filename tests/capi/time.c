/* Steps that keep to a budget, what the next one will take, deadlines that were missed, and what a session costs. */
#include "check.h"

enum { LONG = 1500, MAX = 8 };

static edgellm_token prompt[LONG];

static edgellm_session *with_budget(edgellm_model *model, uint32_t step_budget_us) {
    edgellm_session_params params;
    edgellm_session *s = NULL;
    edgellm_session_params_init(&params);
    params.n_ctx = LONG + 2 * MAX;
    params.step_budget_us = step_budget_us;
    STATUS(EDGELLM_OK, edgellm_session_new(model, &params, &s));
    greedy(s, MAX);
    STATUS(EDGELLM_OK, edgellm_session_prompt(s, prompt, LONG, NULL));
    return s;
}

static edgellm_stats stats_of(edgellm_session *s, uint32_t reset) {
    edgellm_stats stats;
    stats.struct_size = sizeof stats;
    STATUS(EDGELLM_OK, edgellm_session_stats(s, &stats, reset));
    return stats;
}

static int by_size(const void *a, const void *b) {
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return x < y ? -1 : x > y;
}

/* Takes in the prompt; how many steps, the most tokens of one, and what the fastest and the middle one took. Then the
 * answer. */
static size_t prefill(edgellm_session *s, uint64_t *most, uint64_t *least_ns, uint64_t *middle_ns, edgellm_token *out) {
    static uint64_t ns[LONG];
    uint64_t done = 0;
    size_t steps = 0, n;
    edgellm_event event;
    edgellm_event_init(&event);
    *most = 0;
    do {
        STATUS(EDGELLM_OK, edgellm_step(s, &event));
        CHECK(event.prompt_total == LONG && event.prompt_done > done);
        if (event.prompt_done - done > *most) *most = event.prompt_done - done;
        done = event.prompt_done;
        ns[steps++] = event.ns;
    } while (event.kind == EDGELLM_EV_PREFILL);
    CHECK(done == LONG && event.kind == EDGELLM_EV_TOKEN);
    qsort(ns, steps, sizeof *ns, by_size);
    *least_ns = ns[0];
    *middle_ns = ns[steps / 2];
    out[0] = event.token;
    n = run(s, out + 1, MAX);
    CHECK(n == MAX - 1);
    return steps;
}

static void budgets(edgellm_model *model) {
    edgellm_token expected[MAX], found[MAX];
    uint64_t most, middle_ns, least_ns, whole_ns = UINT64_MAX;
    int round;
    uint32_t budget_us;
    size_t steps;
    edgellm_session *s;
    for (round = 0; round < 3; round++) {
        s = with_budget(model, 0);
        steps = prefill(s, &most, &least_ns, &middle_ns, expected);
        CHECK(steps == 3 && most == 512);
        if (least_ns < whole_ns) whole_ns = least_ns;
        edgellm_session_free(s);
    }
    /* Some 30 steps, whatever the machine. Others may run on it, so only the middle one is held to a multiple. */
    budget_us = (uint32_t)(whole_ns / 10000) + 1;
    s = with_budget(model, budget_us);
    steps = prefill(s, &most, &least_ns, &middle_ns, found);
    CHECK(steps > 6 && steps < LONG && most < 512);
    if (middle_ns > 4000ull * budget_us) {
        fprintf(stderr, "a step of %lu us, with a budget of %lu us\n", (unsigned long)(middle_ns / 1000),
                (unsigned long)budget_us);
        exit(1);
    }
    CHECK(memcmp(expected, found, sizeof expected) == 0); /* The same text in whatever pieces. */
    edgellm_session_free(s);
    /* What cannot be kept is a token a step, but for the first one, when nothing is known yet. */
    s = with_budget(model, 1);
    steps = prefill(s, &most, &least_ns, &middle_ns, found);
    CHECK(steps > LONG - 20 && most <= 16 && memcmp(expected, found, sizeof expected) == 0);
    edgellm_session_free(s);
}

static void estimates_and_deadlines(edgellm_model *model) {
    edgellm_session *s = with_budget(model, 0);
    edgellm_event event;
    edgellm_stats stats = stats_of(s, 0);
    edgellm_status status;
    uint64_t again = 0;
    edgellm_event_init(&event);
    CHECK(stats.next_step_ns == 0 && stats.deadline_misses == 0 && stats.deadline_late_ns_max == 0);
    STATUS(EDGELLM_OK, edgellm_step(s, &event));
    stats = stats_of(s, 0);
    /* A step like the one that was. */
    CHECK(event.kind == EDGELLM_EV_PREFILL && stats.next_step_ns > event.ns / 4 && stats.next_step_ns < event.ns * 4);
    while ((status = edgellm_step_until(s, 1, &event)) != EDGELLM_END) {
        CHECK(status == EDGELLM_OK || status == EDGELLM_AGAIN);
        again += status == EDGELLM_AGAIN;
    }
    stats = stats_of(s, 1);
    CHECK(again > 10 && stats.deadline_misses == again && stats.deadline_late_ns_max > 0);
    CHECK(stats.next_step_ns > 0 && stats.step_ns_p99 <= stats.step_ns_max);
    stats = stats_of(s, 0);
    CHECK(stats.deadline_misses == 0 && stats.deadline_late_ns_max == 0);
    CHECK(stats.next_step_ns > 0); /* An estimate is no count. */
    edgellm_session_free(s);
}

static void costs(edgellm_model *model) {
    edgellm_session *s = with_budget(model, 0), *other;
    edgellm_stats one = stats_of(s, 0), two, after;
    CHECK(one.host_bytes > one.kv_bytes && one.host_peak_bytes >= one.host_bytes && one.device_bytes == 0);
    other = with_budget(model, 0);
    two = stats_of(s, 0);
    CHECK(two.host_bytes > one.host_bytes + two.kv_bytes && two.host_peak_bytes >= two.host_bytes);
    edgellm_session_free(other);
    after = stats_of(s, 0);
    CHECK(after.host_bytes == one.host_bytes && after.host_peak_bytes == two.host_peak_bytes);
    /* Where there is a meter, it goes forward; a machine takes less than 100 kW. */
    CHECK(after.energy_joule == -1.0 || (after.energy_joule >= one.energy_joule && after.energy_joule < 1e6));
    edgellm_session_free(s);
}

int main(int argc, char **argv) {
    edgellm_load_params load;
    edgellm_model *model = NULL;
    size_t i;
    CHECK(argc == 2);
    for (i = 0; i < LONG; i++) prompt[i] = (edgellm_token)(i * 31 % 300);
    edgellm_load_params_init(&load);
    load.path = argv[1];
    load.n_threads = 2;
    load.device = EDGELLM_DEVICE_CPU;
    STATUS(EDGELLM_OK, edgellm_load(&load, &model));
    budgets(model);
    estimates_and_deadlines(model);
    costs(model);
    edgellm_free(model);
    return 0;
}
