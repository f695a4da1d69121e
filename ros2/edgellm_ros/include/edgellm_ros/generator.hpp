// What the node does, without ROS: one model and one session, that one request after another uses.
//
// It is compiled and tested without ROS (tests/ros2.rs in the repository of libedgellm), the node around it is in
// src/node.cpp.
#ifndef EDGELLM_ROS__GENERATOR_HPP_
#define EDGELLM_ROS__GENERATOR_HPP_

#include <edgellm.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <mutex>
#include <numeric>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace edgellm_ros {

using edgellm::Clock;
using edgellm::Error;
using edgellm::Result;
using edgellm::Token;

// The node's parameters have these names.
struct Settings {
    std::string model_path;
    std::int64_t n_threads = 0;       // 0 = one per big core.
    std::int64_t device = -1;         // EDGELLM_DEVICE_AUTO, _CPU (-2) or the number of a CUDA device.
    std::int64_t n_ctx = 0;           // 0 = the model's own, at most 4096.
    std::int64_t prefill_chunk = 64;  // Tokens of a prompt per step: how long a step may be, and a cancel may take.
    std::int64_t kv_type = 0;         // EDGELLM_KV_AUTO, _F16 (1) or _I8 (2).
    double step_ms_max = 0;           // Diagnostics warn when the p99 of steps is above; 0 = never.
};

// What the model is to go on with: a conversation or, where that is empty, text as it is.
struct Prompt {
    std::string messages, tools, text;
};

struct Request {
    Prompt prompt;
    float temperature = 0;
    std::int32_t top_k = 0;
    float top_p = 1;
    float min_p = 0;
    float repeat_penalty = 1;
    std::uint64_t seed = 0;
    std::uint32_t max_tokens = 0;
    std::vector<std::string> stop;
    std::string json_schema;  // Empty = anything.
    std::chrono::nanoseconds time_limit{0};  // 0 = none.
};

// The numbers are those of Generate.action.
enum class Finish : std::uint8_t {
    None = 0, Eos = 1, Stop = 2, Length = 3, Time = 4, Cancelled = 5, Error = 6, Grammar = 7
};

struct Answer {
    Finish finish = Finish::None;
    std::string text;
    std::uint32_t tokens = 0;
    std::string message;  // Why it failed.
};

struct Progress {
    std::string_view text;  // What is new; whole characters.
    std::uint32_t tokens = 0, prompt_done = 0, prompt_total = 0;
    std::uint64_t step_ns = 0;
};

struct Scores {
    std::vector<double> log_probabilities;
    std::vector<std::uint32_t> tokens;
    std::uint32_t best = 0;
};

// The levels are those of diagnostic_msgs/DiagnosticStatus.
struct Diagnosis {
    enum Level : std::uint8_t { Ok = 0, Warn = 1, Error = 2 };
    Level level = Ok;
    std::string message;
    std::vector<std::pair<std::string, std::string>> values;
};

// What a request can be cancelled by, also before its turn has come.
class Ticket {
public:
    enum By : std::uint8_t { Nobody, Client, Node };

    // The first one counts.
    void cancel(By by) noexcept {
        auto nobody = Nobody;
        by_.compare_exchange_strong(nobody, by);
    }
    By cancelled_by() const noexcept { return by_; }
    bool cancelled() const noexcept { return by_ != Nobody; }

private:
    std::atomic<By> by_{Nobody};
};

// A model and its session. One request at a time has the session; others wait for it. Any thread.
class Generator {
public:
    static Result<Generator> create(const Settings &settings) {
        auto load = edgellm::load_params();
        load.path = settings.model_path.c_str();
        load.n_threads = number(settings.n_threads);
        load.device = static_cast<std::int32_t>(settings.device);
        auto model = edgellm::Model::load(load);
        if (!model) return model.error();
        auto params = edgellm::session_params();
        params.n_ctx = number(settings.n_ctx);
        params.prefill_chunk = number(settings.prefill_chunk);
        params.kv_type = static_cast<std::int32_t>(settings.kv_type);
        auto session = edgellm::Session::create(*model, params);
        if (!session) return session.error();
        return Generator(settings, std::move(*model), std::move(*session));
    }

    // Generates until it is over, cancelled by the ticket, or late. `progress` is called after every step, on this thread.
    Answer generate(const Request &request, const Ticket &ticket, const std::function<void(const Progress &)> &progress) {
        std::optional<Clock::time_point> deadline;
        if (request.time_limit.count() > 0) deadline = Clock::now() + request.time_limit;
        const std::lock_guard<std::mutex> turn(*turn_);
        Answer answer;
        if (auto begun = begin(request); !begun) return fail(answer, begun.error());
        for (;;) {
            if (ticket.cancelled()) return finish(answer, Finish::Cancelled);
            // Short of the deadline it looks after every slice whether it was cancelled, in the middle of a step too.
            const auto slice = Clock::now() + SLICE;
            auto event = session_.step_until(deadline ? std::min(slice, *deadline) : slice);
            if (!event) return fail(answer, event.error());
            answer.tokens += event->is_token();
            answer.text += event->text();
            if (!event->is_again()) {
                progress({event->text(), answer.tokens, static_cast<std::uint32_t>(event->raw.prompt_done),
                          static_cast<std::uint32_t>(event->raw.prompt_total), event->raw.ns});
            }
            if (event->is_end()) return finish(answer, reason(event->raw.finish));
            if (deadline && Clock::now() >= *deadline) return finish(answer, Finish::Time);
        }
    }

    // How likely each text is after the prompt, which is computed once.
    Result<Scores> score(const Prompt &prompt, const std::vector<std::string> &candidates, const Ticket &ticket) {
        const std::lock_guard<std::mutex> turn(*turn_);
        if (candidates.empty()) return Error(EDGELLM_E_ARG, "there are no candidates");
        auto start = tokens_of(prompt);
        if (!start) return start.error();
        if (auto prompted = session_.prompt(*start); !prompted) return prompted.error();
        if (auto done = compute(ticket); !done) return done.error();
        Scores scores;
        for (const std::string &candidate : candidates) {
            if (ticket.cancelled()) return Error(EDGELLM_E_CANCELLED, "the request was cancelled");
            auto tokens = model_.tokenize(candidate, 0);
            if (!tokens) return tokens.error();
            if (tokens->empty()) return Error(EDGELLM_E_ARG, "a candidate is empty");
            auto each = session_.score(*tokens);
            if (!each) return each.error();
            const double sum = std::accumulate(each->begin(), each->end(), 0.0);
            if (scores.log_probabilities.empty() || sum > scores.log_probabilities[scores.best])
                scores.best = static_cast<std::uint32_t>(scores.log_probabilities.size());
            scores.log_probabilities.push_back(sum);
            scores.tokens.push_back(static_cast<std::uint32_t>(tokens->size()));
        }
        return scores;
    }

    Result<std::vector<Token>> tokenize(const std::string &text, bool bos, bool special) const {
        return model_.tokenize(text, (bos ? EDGELLM_TOK_BOS : 0u) | (special ? EDGELLM_TOK_SPECIAL : 0u));
    }

    Result<edgellm_stats> stats() const { return session_.stats(); }

    // For /diagnostics: what the steps took, and whether that is what was asked for. Does not wait for a request.
    Diagnosis diagnose() const {
        Diagnosis diagnosis;
        auto stats = session_.stats();
        if (!stats) {
            diagnosis.level = Diagnosis::Error;
            diagnosis.message = stats.error().message();
            return diagnosis;
        }
        const auto milliseconds = [](std::uint64_t ns) { return static_cast<double>(ns) * 1e-6; };
        const auto add = [&](const char *name, double value, int digits) {
            char text[64];
            std::snprintf(text, sizeof text, "%.*f", digits, value);
            diagnosis.values.emplace_back(name, text);
        };
        add("tokens generated", static_cast<double>(stats->tokens_out), 0);
        add("tokens of prompts", static_cast<double>(stats->tokens_prompt), 0);
        add("of these reused", static_cast<double>(stats->tokens_reused), 0);
        add("step ms, p50", milliseconds(stats->step_ns_p50), 3);
        add("step ms, p95", milliseconds(stats->step_ns_p95), 3);
        add("step ms, p99", milliseconds(stats->step_ns_p99), 3);
        add("step ms, longest", milliseconds(stats->step_ns_max), 3);
        add("time to first token ms", milliseconds(stats->ns_first_token), 3);
        add("KV cache MB", static_cast<double>(stats->kv_bytes) * 1e-6, 1);
        const double p99 = milliseconds(stats->step_ns_p99);
        const bool slow = settings_.step_ms_max > 0 && p99 > settings_.step_ms_max;
        diagnosis.level = slow ? Diagnosis::Warn : Diagnosis::Ok;
        diagnosis.message = slow ? "steps take longer than step_ms_max" : "ready";
        return diagnosis;
    }

private:
    // What a cancel waits for at most, besides one stage of a layer.
    static constexpr std::chrono::milliseconds SLICE{20};

    Generator(const Settings &settings, edgellm::Model model, edgellm::Session session)
        : settings_(settings), model_(std::move(model)), session_(std::move(session)),
          turn_(std::make_unique<std::mutex>()) {}

    // A parameter that C takes as uint32_t: what does not fit becomes a number that the library refuses.
    static std::uint32_t number(std::int64_t value) {
        return value < 0 || value > UINT32_MAX ? UINT32_MAX : static_cast<std::uint32_t>(value);
    }

    static Finish reason(std::int32_t finish) {
        switch (finish) {
        case EDGELLM_FINISH_EOS: return Finish::Eos;
        case EDGELLM_FINISH_STOP: return Finish::Stop;
        case EDGELLM_FINISH_LENGTH: return Finish::Length;
        case EDGELLM_FINISH_GRAMMAR: return Finish::Grammar;
        default: return Finish::None;
        }
    }

    static Answer &finish(Answer &answer, Finish finish) {
        answer.finish = finish;
        return answer;
    }

    static Answer &fail(Answer &answer, const Error &error) {
        answer.message = std::string(error.name()) + ": " + error.message();
        return finish(answer, Finish::Error);
    }

    Result<std::vector<Token>> tokens_of(const Prompt &prompt) const {
        if (prompt.messages.empty() == prompt.text.empty())
            return Error(EDGELLM_E_ARG, "exactly one of messages and prompt is to be set");
        if (prompt.messages.empty()) return model_.tokenize(prompt.text);
        auto text = model_.chat(prompt.messages, prompt.tools);
        if (!text) return text.error();
        return model_.tokenize(*text, EDGELLM_TOK_SPECIAL);
    }

    // Takes in all of the prompt.
    Result<void> compute(const Ticket &ticket) {
        for (;;) {
            if (ticket.cancelled()) return Error(EDGELLM_E_CANCELLED, "the request was cancelled");
            auto done = session_.forward(Clock::now() + SLICE);
            if (!done) return done.error();
            if (*done) return {};
        }
    }

    Result<void> begin(const Request &request) {
        auto tokens = tokens_of(request.prompt);
        if (!tokens) return tokens.error();
        auto sampling = edgellm::sampling();
        sampling.temperature = request.temperature;
        sampling.top_k = request.top_k;
        sampling.top_p = request.top_p;
        sampling.min_p = request.min_p;
        sampling.repeat_penalty = request.repeat_penalty;
        sampling.seed = request.seed;
        sampling.max_tokens = request.max_tokens;
        std::vector<edgellm_str> stops;
        for (const std::string &stop : request.stop) stops.push_back({stop.data(), stop.size()});
        sampling.stops = stops.data();
        sampling.n_stops = stops.size();
        if (!request.json_schema.empty()) {
            // The one before is kept: mostly it is the same.
            if (!grammar_ || request.json_schema != schema_) {
                auto grammar = edgellm::Grammar::compile(model_, EDGELLM_GRAMMAR_JSON_SCHEMA, request.json_schema);
                if (!grammar) return grammar.error();
                grammar_.emplace(std::move(*grammar));
                schema_ = request.json_schema;
            }
            sampling.grammar = grammar_->handle();
        }
        if (auto set = session_.set_sampling(sampling); !set) return set.error();
        auto prompted = session_.prompt(*tokens);
        if (!prompted) return prompted.error();
        return {};
    }

    Settings settings_;
    edgellm::Model model_;
    edgellm::Session session_;
    std::optional<edgellm::Grammar> grammar_;
    std::string schema_;
    std::unique_ptr<std::mutex> turn_;
};

}  // namespace edgellm_ros

#endif  // EDGELLM_ROS__GENERATOR_HPP_
