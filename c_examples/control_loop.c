/* A control loop of 100 Hz that lets a language model think in the time that is left of each period:
 * control_loop MODEL.gguf [SECONDS [until|step|none ["REQUEST"]]]
 *
 * The model's text goes to stdout; at the end, how late the periods began goes to stderr. The loop and the model share one
 * thread: pin it, and give it a real-time policy, as you would without a model. With "step" the loop starts a step
 * whenever there is time left, and gets it back when the step is over: what edgellm_step_until is there to avoid. With
 * "none" there is no model in the loop.
 */
#define _POSIX_C_SOURCE 200809L
#include "edgellm.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MAX_TOKENS = 4096, MAX_PERIODS = 1 << 20 };

static const uint64_t PERIOD_NS = 10000000; /* 100 Hz. */
/* The model stops so long before the next period: for a stage of a layer, a wake-up, and the 5 % of each second that Linux
 * keeps from real-time threads (/proc/sys/kernel/sched_rt_runtime_us). */
static const uint64_t MARGIN_NS = 1000000;

static void check(edgellm_status status) {
    if (status >= 0) return;
    fprintf(stderr, "%s: %s\n", edgellm_status_name(status), edgellm_last_error());
    exit(1);
}

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void sleep_until(uint64_t ns) {
    struct timespec until;
    until.tv_sec = (time_t)(ns / 1000000000u);
    until.tv_nsec = (long)(ns % 1000000000u);
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR) {}
}

/* What must happen on time: here a mass on a spring is brought to rest. */
static void control(void) {
    static double position = 1, speed = 0;
    const double force = -40 * position - 12 * speed, dt = (double)PERIOD_NS * 1e-9;
    speed += force * dt;
    position += speed * dt;
}

static int ascending(const void *a, const void *b) {
    const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}

/* Asks, and goes on asking when an answer is over. */
static void ask(edgellm_session *session, const edgellm_token *prompt, size_t n) {
    check(edgellm_session_rewind(session, 0)); /* All of the prompt is computed each time. */
    check(edgellm_session_prompt(session, prompt, n, NULL));
}

int main(int argc, char **argv) {
    static edgellm_token prompt[MAX_TOKENS];
    static uint64_t late[MAX_PERIODS];
    static char text[1 << 16];
    const char *request = argc > 4 ? argv[4] : "Tell me a story about a robot and a red cup.";
    const double seconds = argc > 2 ? atof(argv[2]) : 5;
    const char *mode = argc > 3 ? argv[3] : "until";
    edgellm_load_params load;
    edgellm_session_params params;
    edgellm_sampling sampling;
    edgellm_model *model = NULL;
    edgellm_session *session = NULL;
    edgellm_event event;
    uint64_t next, missed = 0, tokens = 0, agains = 0;
    size_t n, periods = 0, wanted;
    int len;

    if (argc < 2 || argc > 5 || !(seconds > 0) || seconds * 100 > MAX_PERIODS) {
        fprintf(stderr, "usage: %s MODEL.gguf [SECONDS [until|step|none [\"REQUEST\"]]]\n", argv[0]);
        return 2;
    }
    wanted = (size_t)(seconds * 1e9 / (double)PERIOD_NS + 0.5);
    edgellm_load_params_init(&load);
    load.path = argv[1];
    load.n_threads = 1; /* The loop's own thread does the work. */
    load.device = EDGELLM_DEVICE_CPU;
    check(edgellm_load(&load, &model));
    edgellm_session_params_init(&params);
    params.prefill_chunk = 16;
    check(edgellm_session_new(model, &params, &session));
    edgellm_sampling_init(&sampling);
    sampling.max_tokens = 100;
    check(edgellm_session_sampling(session, &sampling));
    len = snprintf(text, sizeof text, "<|im_start|>user\n%s<|im_end|>\n<|im_start|>assistant\n", request);
    if (len < 0 || (size_t)len >= sizeof text) return 2;
    check(edgellm_tokenize(model, text, (size_t)len, EDGELLM_TOK_SPECIAL, prompt, MAX_TOKENS, &n));
    ask(session, prompt, n);
    edgellm_event_init(&event);

    for (next = now_ns() + PERIOD_NS; periods < wanted; next += PERIOD_NS) {
        uint64_t now;
        sleep_until(next);
        now = now_ns();
        for (; now - next >= PERIOD_NS && periods + 1 < wanted; next += PERIOD_NS) { /* Too late for this one. */
            late[periods++] = now - next;
            missed++;
        }
        late[periods++] = now - next;
        control();

        while (strcmp(mode, "none") != 0 && now_ns() < next + PERIOD_NS - MARGIN_NS) {
            edgellm_status status;
            if (strcmp(mode, "step") == 0) status = edgellm_step(session, &event);
            else status = edgellm_step_until(session, next + PERIOD_NS - MARGIN_NS, &event);
            check(status);
            if (status == EDGELLM_AGAIN) { /* It goes on in the next period. */
                agains++;
                break;
            }
            fwrite(event.text.ptr, 1, event.text.len, stdout);
            tokens += event.kind == EDGELLM_EV_TOKEN;
            if (status == EDGELLM_END) {
                putchar('\n');
                ask(session, prompt, n);
            }
        }
    }
    putchar('\n');
    fflush(stdout);
    qsort(late, periods, sizeof *late, ascending);
    fprintf(stderr, "%zu periods, %llu missed, late by us: p50 %.1f p99 %.1f max %.1f; %llu tokens, %llu interruptions\n",
            periods, (unsigned long long)missed, (double)late[periods / 2] * 1e-3, (double)late[periods * 99 / 100] * 1e-3,
            (double)late[periods - 1] * 1e-3, (unsigned long long)tokens, (unsigned long long)agains);
    edgellm_session_free(session);
    edgellm_free(model);
    return 0;
}
