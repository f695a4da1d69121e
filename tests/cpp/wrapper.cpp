// edgellm.hpp at work: wrapper MODEL.gguf. Prints nothing and ends with 0 when all is as the header says.
#include "edgellm.hpp"
#include "edgellm.hpp"

#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>

#define CHECK(condition)                                                                                              \
    do {                                                                                                              \
        if (!(condition)) {                                                                                           \
            std::fprintf(stderr, "%s:%d: %s (%s)\n", __FILE__, __LINE__, #condition, edgellm_last_error());           \
            std::exit(1);                                                                                             \
        }                                                                                                             \
    } while (0)

using edgellm::Model;
using edgellm::Result;
using edgellm::Session;
using edgellm::Token;

// Owners move and do not copy; what is a view is small.
static_assert(!std::is_copy_constructible_v<Model> && std::is_nothrow_move_constructible_v<Model>);
static_assert(!std::is_copy_constructible_v<Session> && std::is_nothrow_move_assignable_v<Session>);
static_assert(sizeof(Model) == sizeof(void *) && sizeof(Session) == sizeof(void *));
static_assert(std::is_trivially_copyable_v<edgellm::View<Token>>);

static const char MESSAGES[] = R"([{"role": "user", "content": "Stop."}])";
static const char ANSWER[] = R"({"action":"stop"})";

static void errors(const char *path) {
    auto missing = Model::load("/no/such/file");
    CHECK(!missing && missing.error().status() == EDGELLM_E_IO);
    CHECK(std::strcmp(missing.error().name(), "EDGELLM_E_IO") == 0);
    CHECK(missing.error().message().find("/no/such/file") != std::string::npos);
    auto model = Model::load(path);
    CHECK(model);
    auto unknown = model->meta("no.such.key");
    CHECK(!unknown && unknown.error().status() == EDGELLM_E_ARG);
    const std::string message = unknown.error().message();
    CHECK(!model->token_bytes(-7) && unknown.error().message() == message); // It is a copy.
    auto session = Session::create(*model);
    CHECK(session);
    auto early = session->step();
    CHECK(!early && early.error().status() == EDGELLM_E_STATE);
    CHECK(!session->prompt({}));
#ifdef EDGELLM_HPP_EXCEPTIONS
    bool thrown = false;
    try {
        Model::load("/no/such/file").value();
    } catch (const edgellm::Exception &exception) {
        thrown = exception.error().status() == EDGELLM_E_IO && std::strstr(exception.what(), "/no/such/file");
    }
    CHECK(thrown);
    CHECK(Model::load(path).value().info().value().n_layers == 4);
    session->rewind(0).value();
#endif
}

static void plans(const char *path) {
    auto load = edgellm::load_params();
    load.path = path;
    load.device = EDGELLM_DEVICE_CPU;
    auto plan = edgellm::plan_memory(load);
    CHECK(plan && plan->fits == 1 && plan->device == EDGELLM_DEVICE_CPU && plan->needed > plan->kv_host);
    load.memory_limit = plan->needed;
    auto model = Model::load(load);
    CHECK(model && Session::create(*model));
    load.memory_limit = 1;
    CHECK(edgellm::plan_memory(load)->fits == 0 && Model::load(load).error().status() == EDGELLM_E_NOMEM);
    load.path = "/no/such/file";
    CHECK(edgellm::plan_memory(load).error().status() == EDGELLM_E_IO);
}

static void text_and_tokens(const Model &model) {
    auto info = model.info();
    CHECK(info && info->n_layers == 4 && info->arch.len == 12);
    CHECK(*model.meta("general.architecture") == "bitnet-b1.58");
    auto devices = edgellm::devices();
    CHECK(devices && !devices->empty() && devices->front().device == EDGELLM_DEVICE_CPU);
    std::string text;
    for (int i = 0; i < 200; i++) text += "Go to the kitchen, then pick up the red cup. ";
    auto tokens = model.tokenize(text);
    CHECK(tokens && tokens->size() > 1000 && *model.detokenize(*tokens) == text);
    CHECK(model.tokenize("")->empty() && model.detokenize({})->empty());
    auto chat = model.chat(MESSAGES);
    CHECK(chat && chat->find("Stop.") != std::string::npos);
    CHECK(!model.chat("not JSON"));
    auto end = model.tokenize("<|im_end|>", EDGELLM_TOK_SPECIAL);
    CHECK(end && end->size() == 1 && model.is_eos(end->front()) && !model.is_eos(tokens->front()));
    CHECK(*model.token_bytes(end->front()) == "<|im_end|>");
    const std::array<Token, 1> array = {end->front()};
    CHECK(*model.detokenize(array, EDGELLM_TOK_SPECIAL) == "<|im_end|>");
}

static std::vector<Token> question(const Model &model) {
    auto tokens = model.tokenize(*model.chat(MESSAGES), EDGELLM_TOK_SPECIAL);
    CHECK(tokens && !tokens->empty());
    return std::move(*tokens);
}

static void events(const Model &model) {
    Session session = std::move(*Session::create(model));
    const std::vector<Token> tokens = question(model);
    CHECK(*session.prompt(tokens) == 0);
    std::string text;
    int ends = 0, prefills = 0;
    for (auto &event : session.events()) {
        CHECK(event && ends == 0);
        text += event->text();
        prefills += event->is_prefill();
        ends += event->is_end();
        if (event->is_end()) CHECK(event->raw.finish == EDGELLM_FINISH_EOS);
    }
    CHECK(text == ANSWER && ends == 1 && prefills == 0); // The step that takes in the last of a prompt gives a token.
    CHECK(session.length() > tokens.size());

    // The last item may be an error.
    int items = 0;
    CHECK(*session.prompt(tokens) > 0);
    for (auto &event : session.events()) {
        items++;
        if (items == 2) session.cancel(session.run());
        CHECK(items < 3 ? !!event : event.error().status() == EDGELLM_E_CANCELLED);
    }
    CHECK(items == 3);

    // One may leave early and go on.
    CHECK(session.prompt(tokens));
    std::string first, rest;
    for (auto &event : session.events()) {
        first += event->text();
        break;
    }
    for (auto &event : session.events()) rest += event->text();
    CHECK(first + rest == ANSWER);
    auto stats = session.stats(true);
    CHECK(stats && stats->tokens_out > 0 && stats->tokens_reused > 0);

    // By its own hands, from a moved session whose model is gone.
    Session moved = std::move(session);
    CHECK(moved.rewind(0) && moved.append(tokens));
    std::vector<Token> answer;
    for (;;) {
        CHECK(*moved.forward());
        auto logits = moved.logits();
        CHECK(logits && logits->size() == model.info()->n_vocab);
        std::size_t best = 0;
        for (std::size_t i = 1; i < logits->size(); i++)
            if ((*logits)[i] > (*logits)[best]) best = i;
        auto event = moved.accept(static_cast<Token>(best));
        CHECK(event);
        if (event->is_end()) break;
        answer.push_back(event->token());
    }
    CHECK(*model.detokenize(answer) == ANSWER);
}

static void deadlines(const Model &model) {
    Session session = std::move(*Session::create(model));
    CHECK(session.prompt(question(model)));
    std::string text;
    int agains = 0;
    // A deadline that is over lets one stage of a layer through.
    for (bool over = false; !over;) {
        auto event = session.step_until(edgellm::Clock::now() - std::chrono::seconds(1));
        CHECK(event);
        agains += event->is_again();
        if (event->is_again()) CHECK(event->text().empty());
        text += event->text();
        over = event->is_end();
    }
    CHECK(text == ANSWER && agains > 10);
    CHECK(session.append(question(model)));
    CHECK(!*session.forward(edgellm::Clock::time_point()) && *session.forward());
}

// Two sessions from one, and one from its bytes, say the same.
static void copies(const Model &model) {
    Session session = std::move(*Session::create(model));
    CHECK(session.prompt(question(model)));
    auto stop = model.tokenize(ANSWER, 0);
    auto scores = session.score(*stop);
    CHECK(scores && scores->size() == stop->size() && scores->front() <= 0);
    CHECK(!session.score({}) && session.score({}).error().status() == EDGELLM_E_ARG);
    std::string begun;
    for (int i = 0; i < 2; i++) begun += session.step()->text();
    auto fork = session.fork();
    auto saved = session.save();
    CHECK(fork && saved && saved->size() > 1000);
    const auto rest = [&](Session &one) {
        std::string text = begun;
        for (auto &event : one.events()) text += event->text();
        return text;
    };
    CHECK(rest(*fork) == ANSWER && rest(session) == ANSWER);
    Session other = std::move(*Session::create(model));
    CHECK(other.restore(*saved) && rest(other) == ANSWER);
    saved->back() ^= 1;
    auto damaged = other.restore(*saved);
    CHECK(!damaged && damaged.error().status() == EDGELLM_E_INTEGRITY);
    std::FILE *file = std::tmpfile();
    CHECK(file && fork->save_fd(fileno(file)) && std::fseek(file, 0, SEEK_SET) == 0);
    CHECK(other.restore_fd(fileno(file)) && other.length() == fork->length());
    std::fclose(file);
    CHECK(other.save_fd(-1).error().status() == EDGELLM_E_ARG || edgellm_last_errno() != 0);
}

static void grammars(const Model &model) {
    Session session = std::move(*Session::create(model));
    auto params = edgellm::sampling();
    {
        auto grammar = edgellm::Grammar::compile(model, EDGELLM_GRAMMAR_CHOICE, R"(["yes", "no"])");
        CHECK(grammar);
        params.grammar = grammar->handle();
        params.n_alternatives = 3;
        CHECK(session.set_sampling(params) && session.prompt(question(model)));
    }
    std::string text;
    for (auto &event : session.events()) {
        CHECK(event);
        text += event->text();
        if (!event->is_token()) continue;
        const auto likely = event->alternatives();
        CHECK(likely.size() == 3 && likely[0].logprob >= likely[1].logprob);
    }
    CHECK(text == "yes" || text == "no");
    auto wrong = edgellm::Grammar::compile(model, EDGELLM_GRAMMAR_REGEX, "(");
    CHECK(!wrong && wrong.error().status() == EDGELLM_E_GRAMMAR);
}

static void sampling(const Model &model) {
    Session session = std::move(*Session::create(model));
    auto params = edgellm::sampling();
    params.max_tokens = 3;
    CHECK(session.set_sampling(params) && session.prompt(question(model)));
    int tokens = 0;
    for (auto &event : session.events()) tokens += event->is_token();
    CHECK(tokens == 3);
    params.temperature = -1;
    CHECK(!session.set_sampling(params));
    auto small = edgellm::session_params();
    small.n_ctx = 4;
    Session tiny = std::move(*Session::create(model, small));
    auto full = tiny.prompt(question(model));
    CHECK(!full && full.error().status() == EDGELLM_E_CONTEXT);
}

#ifdef EDGELLM_HPP_STOP_TOKEN
static void stop_tokens(const Model &model) {
    Session session = std::move(*Session::create(model));
    auto endless = edgellm::sampling();
    endless.ignore_eos = 1;
    CHECK(session.set_sampling(endless) && session.prompt(question(model)));
    edgellm_status last = EDGELLM_OK;
    std::jthread thread([&](std::stop_token stop) {
        for (auto &event : session.events(stop)) last = event ? event->status : event.error().status();
    });
    while (session.stats()->tokens_out < 5) std::this_thread::yield();
    thread.request_stop();
    thread.join();
    CHECK(last == EDGELLM_E_CANCELLED);

    // A stop that came before, and one that comes after the run.
    std::stop_source source;
    CHECK(session.set_sampling(edgellm::sampling()) && session.prompt(question(model)));
    std::string text;
    {
        auto events = session.events(source.get_token());
        for (auto &event : events) text += event->text();
        CHECK(session.prompt(question(model)));
        source.request_stop();
    }
    CHECK(text == ANSWER && session.step());
    int items = 0;
    for (auto &event : session.events(source.get_token())) {
        items++;
        CHECK(event.error().status() == EDGELLM_E_CANCELLED);
    }
    CHECK(items == 1);
}
#endif

static void shared() {
    // Sessions outlive the Model; owners are counted.
    extern const char *model_path;
    std::optional<Session> session;
    std::vector<Token> tokens;
    {
        auto model = Model::load(model_path);
        CHECK(model);
        Model other = model->share();
        CHECK(other.handle() == model->handle());
        tokens = question(other);
        session.emplace(std::move(*Session::create(other)));
    }
    CHECK(session->prompt(tokens) && session->step());
}

const char *model_path;

int main(int argc, char **argv) {
    CHECK(argc == 2 && edgellm::check_interface());
    model_path = argv[1];
    errors(model_path);
    plans(model_path);
    auto params = edgellm::load_params();
    params.path = model_path;
    params.n_threads = 1;
    auto model = Model::load(params);
    CHECK(model);
    text_and_tokens(*model);
    events(*model);
    deadlines(*model);
    copies(*model);
    grammars(*model);
    sampling(*model);
#ifdef EDGELLM_HPP_STOP_TOKEN
    stop_tokens(*model);
#elif __cplusplus >= 202002L && !defined(NO_STOP_TOKEN)
#  error "C++20 without std::stop_token"
#endif
    shared();
    return 0;
}
