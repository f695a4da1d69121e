// Generator at work, without ROS: generator_test MODEL.gguf. Ends with 0 when all is as its header says.
#include "edgellm_ros/generator.hpp"

#include <cstdlib>
#include <thread>

#define CHECK(condition)                                                                  \
    do {                                                                                  \
        if (!(condition)) {                                                               \
            std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);          \
            std::exit(1);                                                                 \
        }                                                                                 \
    } while (0)

using namespace edgellm_ros;

static const char MESSAGES[] = R"([{"role": "user", "content": "Stop."}])";
static const char ANSWER[] = R"({"action":"stop"})";

static Settings settings(const char *path) {
    Settings settings;
    settings.model_path = path;
    settings.n_threads = 1;
    settings.device = EDGELLM_DEVICE_CPU;
    settings.prefill_chunk = 4;
    return settings;
}

static Answer ask(Generator &generator, const Request &request, std::string *pieces = nullptr) {
    const Ticket ticket;
    return generator.generate(request, ticket, [&](const Progress &progress) {
        if (pieces) *pieces += progress.text;
    });
}

static void what_is_wrong_is_said(const char *path) {
    auto missing = Generator::create(settings("/no/such/file"));
    CHECK(!missing && missing.error().status() == EDGELLM_E_IO);
    Settings wrong = settings(path);
    wrong.n_ctx = -1;
    CHECK(!Generator::create(wrong));
    wrong = settings(path);
    wrong.n_threads = -5;
    CHECK(!Generator::create(wrong));
    wrong = settings(path);
    wrong.kv_type = 99;
    CHECK(!Generator::create(wrong));
}

static void answers(Generator &generator) {
    Request request;
    request.prompt.messages = MESSAGES;
    std::string pieces;
    std::uint32_t done = 0, total = 0;
    const Ticket ticket;
    Answer answer = generator.generate(request, ticket, [&](const Progress &progress) {
        pieces += progress.text;
        CHECK(progress.prompt_done >= done && progress.prompt_done <= progress.prompt_total && progress.step_ns > 0);
        done = progress.prompt_done;
        total = progress.prompt_total;
    });
    CHECK(answer.finish == Finish::Eos && answer.text == ANSWER && pieces == ANSWER && answer.tokens > 0);
    CHECK(done == total && total > 4);

    request.max_tokens = 2;
    CHECK(ask(generator, request).finish == Finish::Length);
    request.max_tokens = 0;
    request.stop = {"op"};
    answer = ask(generator, request);
    CHECK(answer.finish == Finish::Stop && answer.text == R"({"action":"st)");
    request.prompt.text = "both";
    answer = ask(generator, request);
    CHECK(answer.finish == Finish::Error && answer.message.find("exactly one") != std::string::npos);
    request.prompt = {"not JSON", "", ""};
    CHECK(ask(generator, request).finish == Finish::Error);
    request.prompt = {"", "", "Once upon a time"};
    request.stop.clear();
    request.temperature = -1;
    CHECK(ask(generator, request).message.find("temperature") != std::string::npos);
    request.temperature = 1;
    request.seed = 3;
    request.max_tokens = 20;
    CHECK(ask(generator, request).text == ask(generator, request).text);
}

static void it_is_held_to_a_schema(Generator &generator) {
    Request request;
    request.prompt.messages = MESSAGES;
    request.json_schema = R"({"type": "object", "properties": {"action": {"enum": ["dock", "wait"]}}, "required": ["action"],
        "additionalProperties": false, "x-guidance": {"whitespace_flexible": false}})";
    for (int i = 0; i < 2; i++) {
        const Answer answer = ask(generator, request);
        CHECK(answer.finish == Finish::Grammar || answer.finish == Finish::Eos);
        CHECK(answer.text == R"({"action":"dock"})" || answer.text == R"({"action":"wait"})");
    }
    request.json_schema = "{\"type\": 7}";
    CHECK(ask(generator, request).message.find("EDGELLM_E_GRAMMAR") == 0);
    request.json_schema.clear();
    CHECK(ask(generator, request).text == ANSWER);
}

// A story without an end, until the context is full.
static Request story() {
    Request request;
    request.prompt.text = "Once upon a time";
    request.temperature = 1.2F;
    request.top_p = 0.9F;
    return request;
}

static void it_ends_in_time(Generator &generator) {
    Request request = story();
    request.time_limit = std::chrono::nanoseconds(1);
    Answer answer = ask(generator, request);
    CHECK(answer.finish == Finish::Time);
    // The session is as good as new.
    request = {};
    request.prompt.messages = MESSAGES;
    CHECK(ask(generator, request).text == ANSWER);
}

static void it_is_cancelled(Generator &generator) {
    // Before its turn.
    Ticket early;
    early.cancel(Ticket::Client);
    early.cancel(Ticket::Node);
    CHECK(early.cancelled_by() == Ticket::Client);
    CHECK(generator.generate(story(), early, [](const Progress &) { CHECK(false); }).finish == Finish::Cancelled);
    // In the middle: what there is is kept.
    Ticket ticket;
    const Answer answer = generator.generate(story(), ticket, [&](const Progress &progress) {
        if (progress.tokens == 3) ticket.cancel(Ticket::Node);
    });
    CHECK(answer.finish == Finish::Cancelled && answer.tokens == 3);
    // Another thread's, while a third one waits its turn.
    Ticket first, second;
    std::atomic<bool> begun{false};
    Answer of_first, of_second;
    std::thread one([&] {
        for (int i = 0; i < 1000 && !first.cancelled(); i++) // A tiny model is soon done: it tells many stories.
            of_first = generator.generate(story(), first, [&](const Progress &) { begun = true; });
    });
    while (!begun) std::this_thread::yield();
    std::thread two([&] { of_second = generator.generate(story(), second, [](const Progress &) {}); });
    second.cancel(Ticket::Client);
    first.cancel(Ticket::Client);
    one.join();
    two.join();
    CHECK(of_first.finish != Finish::Error && of_second.finish != Finish::Error);
}

static void candidates_are_ranked(Generator &generator) {
    const Ticket ticket;
    const std::vector<std::string> candidates = {R"({"action":"dock"})", ANSWER, "Bananas are yellow."};
    auto scores = generator.score({MESSAGES, "", ""}, candidates, ticket);
    CHECK(scores && scores->best == 1 && scores->log_probabilities.size() == 3 && scores->tokens.size() == 3);
    CHECK(scores->log_probabilities[0] > scores->log_probabilities[2] && scores->log_probabilities[1] <= 0);
    // The order of the candidates makes no difference to the bits.
    auto other = generator.score({MESSAGES, "", ""}, {candidates[2], candidates[1], candidates[0]}, ticket);
    CHECK(other && other->best == 1 && other->log_probabilities[2] == scores->log_probabilities[0]);
    CHECK(other->log_probabilities[1] == scores->log_probabilities[1]);
    CHECK(!generator.score({MESSAGES, "", ""}, {}, ticket) && !generator.score({MESSAGES, "", ""}, {""}, ticket));
    Ticket cancelled;
    cancelled.cancel(Ticket::Node);
    auto none = generator.score({MESSAGES, "", ""}, candidates, cancelled);
    CHECK(!none && none.error().status() == EDGELLM_E_CANCELLED);
}

static void diagnoses(const char *path, const Generator &used) {
    Diagnosis diagnosis = used.diagnose();
    CHECK(diagnosis.level == Diagnosis::Ok && diagnosis.message == "ready" && diagnosis.values.size() == 9);
    CHECK(diagnosis.values[0].first == "tokens generated" && diagnosis.values[0].second != "0");
    Settings strict = settings(path);
    strict.step_ms_max = 1e-6;
    auto slow = Generator::create(strict);
    CHECK(slow && slow->diagnose().level == Diagnosis::Ok); // Nothing was done yet.
    Request request;
    request.prompt.messages = MESSAGES;
    ask(*slow, request);
    CHECK(slow->diagnose().level == Diagnosis::Warn);
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    what_is_wrong_is_said(argv[1]);
    auto generator = Generator::create(settings(argv[1]));
    CHECK(generator);
    answers(*generator);
    it_is_held_to_a_schema(*generator);
    it_ends_in_time(*generator);
    it_is_cancelled(*generator);
    candidates_are_ranked(*generator);
    CHECK(generator->tokenize("Stop.", false, false)->size() > 0);
    CHECK(generator->tokenize("<|im_end|>", false, true)->size() == 1);
    diagnoses(argv[1], *generator);
    return 0;
}
