/*
 * edgellm.hpp - edgellm.h for C++17 and later.  Header only, nothing to link but libedgellm.
 *
 *     auto model = edgellm::Model::load("model.gguf");
 *     if (!model) return complain(model.error());
 *     auto session = edgellm::Session::create(*model);
 *     ...
 *     for (auto &event : session->events()) {
 *         if (!event) return complain(event.error());
 *         std::cout << event->text();
 *     }
 *
 * Handles   Model, Session and Grammar own one handle each, move only, and free it.  A moved-from one may only be assigned to or
 *           destroyed.  handle() lends the handle for functions of edgellm.h that have no method here.
 * Errors    What can fail gives a Result: a value or an Error, which has the status and the words of edgellm_last_error.
 *           Nothing here throws; containers throw std::bad_alloc as ever.  With EDGELLM_HPP_EXCEPTIONS defined before the
 *           header is included, Result also has value(), which throws edgellm::Exception instead of giving an Error.
 * Threads   A const method may be called by any number of threads at once, and so may cancel; what is not const belongs to
 *           the session's caller.
 * Views     std::string_view and View lend memory that is the library's: until the session's next call, as edgellm.h says.
 */

#ifndef EDGELLM_HPP
#define EDGELLM_HPP

#include "edgellm.h"

#if !defined(__cplusplus) || __cplusplus < 201703L
#  error "edgellm.hpp needs C++17"
#endif

#include <cassert>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

#ifdef EDGELLM_HPP_EXCEPTIONS
#  include <stdexcept>
#endif
#if __cplusplus >= 202002L && __has_include(<stop_token>)
#  include <stop_token>
#  if defined(__cpp_lib_jthread)
#    define EDGELLM_HPP_STOP_TOKEN 1
#  endif
#endif

namespace edgellm {

using Token = edgellm_token;
// What deadlines are times of: on Linux, the only system of the library, it is CLOCK_MONOTONIC.
using Clock = std::chrono::steady_clock;

// Why a call failed.
class Error {
public:
    Error(edgellm_status status, std::string message) : status_(status), message_(std::move(message)) {}

    // The error of this thread's last failed call.
    static Error last(edgellm_status status) { return Error(status, edgellm_last_error()); }

    edgellm_status status() const noexcept { return status_; }
    // For example "EDGELLM_E_ARG".
    const char *name() const noexcept { return edgellm_status_name(status_); }
    // What was wrong and where.
    const std::string &message() const noexcept { return message_; }

private:
    edgellm_status status_;
    std::string message_;
};

#ifdef EDGELLM_HPP_EXCEPTIONS
// What Result::value throws.
class Exception : public std::runtime_error {
public:
    explicit Exception(Error error) : std::runtime_error(error.message()), error_(std::move(error)) {}
    const Error &error() const noexcept { return error_; }

private:
    Error error_;
};
#endif

// A value, or the error that is there instead. Look before you take: `*result` of an error is a bug of the caller.
template <class T> class [[nodiscard]] Result {
public:
    Result(T value) : either_(std::in_place_index<0>, std::move(value)) {}
    Result(Error error) : either_(std::in_place_index<1>, std::move(error)) {}

    explicit operator bool() const noexcept { return either_.index() == 0; }
    T &operator*() & noexcept { return *get(); }
    const T &operator*() const & noexcept { return *get(); }
    T &&operator*() && noexcept { return std::move(*get()); }
    T *operator->() noexcept { return get(); }
    const T *operator->() const noexcept { return get(); }
    const Error &error() const noexcept {
        assert(either_.index() == 1);
        return *std::get_if<1>(&either_);
    }

#ifdef EDGELLM_HPP_EXCEPTIONS
    T &value() & { return check(), *get(); }
    T &&value() && { return check(), std::move(*get()); }
#endif

private:
    T *get() noexcept {
        assert(either_.index() == 0);
        return std::get_if<0>(&either_);
    }
    const T *get() const noexcept {
        assert(either_.index() == 0);
        return std::get_if<0>(&either_);
    }
#ifdef EDGELLM_HPP_EXCEPTIONS
    void check() const {
        if (!*this) throw Exception(error());
    }
#endif
    std::variant<T, Error> either_;
};

template <> class [[nodiscard]] Result<void> {
public:
    Result() = default;
    Result(Error error) : error_(std::move(error)) {}

    explicit operator bool() const noexcept { return !error_; }
    const Error &error() const noexcept {
        assert(error_);
        return *error_;
    }

#ifdef EDGELLM_HPP_EXCEPTIONS
    void value() const {
        if (error_) throw Exception(*error_);
    }
#endif

private:
    std::optional<Error> error_;
};

// Some values in a row that somebody else owns.
template <class T> class View {
public:
    constexpr View() = default;
    constexpr View(const T *data, std::size_t size) noexcept : data_(data), size_(size) {}
    // Of a std::vector, a std::array, a std::span.
    template <class C, class = std::enable_if_t<
                           std::is_convertible_v<decltype(std::data(std::declval<const C &>())), const T *>>>
    constexpr View(const C &values) noexcept : data_(std::data(values)), size_(std::size(values)) {}

    constexpr const T *data() const noexcept { return data_; }
    constexpr std::size_t size() const noexcept { return size_; }
    constexpr const T *begin() const noexcept { return data_; }
    constexpr const T *end() const noexcept { return data_ + size_; }
    constexpr const T &operator[](std::size_t index) const noexcept { return data_[index]; }

private:
    const T *data_ = nullptr;
    std::size_t size_ = 0;
};

namespace detail {

// The value, where the call that made it went well.
template <class T> Result<T> result(edgellm_status status, T value) {
    if (status < 0) return Error::last(status);
    return Result<T>(std::move(value));
}

inline Result<void> result(edgellm_status status) {
    if (status < 0) return Error::last(status);
    return {};
}

inline std::string_view view(edgellm_str text) noexcept {
    return text.len == 0 ? std::string_view() : std::string_view(text.ptr, text.len);
}

// Calls with a buffer until it is large enough; `call(data, capacity, &n)` says with E_BUFFER what it takes.
template <class Container, class Call> Result<Container> grow(std::size_t first, Call call) {
    Container out;
    std::size_t n = first;
    for (;;) {
        out.resize(n);
        const edgellm_status status = call(out.data(), out.size(), &n);
        if (status == EDGELLM_E_BUFFER && n > out.size()) continue;
        if (status < 0) return Error::last(status);
        out.resize(n);
        return out;
    }
}

struct Free {
    void operator()(edgellm_model *model) const noexcept { edgellm_free(model); }
    void operator()(edgellm_session *session) const noexcept { edgellm_session_free(session); }
    void operator()(edgellm_grammar *grammar) const noexcept { edgellm_grammar_free(grammar); }
};

} // namespace detail

// Structs of edgellm.h with their defaults.
inline edgellm_load_params load_params() noexcept {
    edgellm_load_params params;
    edgellm_load_params_init(&params);
    return params;
}

inline edgellm_session_params session_params() noexcept {
    edgellm_session_params params;
    edgellm_session_params_init(&params);
    return params;
}

inline edgellm_sampling sampling() noexcept {
    edgellm_sampling params;
    edgellm_sampling_init(&params);
    return params;
}

// Whether the loaded library has the interface that this header was written for.
inline Result<void> check_interface() {
    const std::uint32_t found = edgellm_abi_version(), major = found >> 16, minor = found & 0xffff;
    // While the major is 0, every minor may break.
    const bool fits = EDGELLM_ABI_MAJOR == 0 ? minor == EDGELLM_ABI_MINOR : minor >= EDGELLM_ABI_MINOR;
    if (major == EDGELLM_ABI_MAJOR && fits) return {};
    return Error(EDGELLM_E_UNSUPPORTED, std::string("libedgellm ") + edgellm_version() + " has another interface than " +
                                            std::to_string(EDGELLM_ABI_MAJOR) + "." + std::to_string(EDGELLM_ABI_MINOR) +
                                            ", for which this program was built");
}

// The CPU, and the CUDA devices that the library can see.
inline Result<std::vector<edgellm_device_info>> devices() {
    std::vector<edgellm_device_info> all(edgellm_device_count());
    for (std::uint32_t i = 0; i < all.size(); i++) {
        all[i].struct_size = sizeof all[i];
        const edgellm_status status = edgellm_device_get(i, &all[i]);
        if (status < 0) return Error::last(status);
    }
    return all;
}

// What a model and one session of it would take of memory; see edgellm_plan_memory.
inline Result<edgellm_plan> plan_memory(const edgellm_load_params &load,
                                        const edgellm_session_params &session = session_params()) {
    edgellm_plan plan;
    plan.struct_size = sizeof plan;
    return detail::result(edgellm_plan_memory(&load, &session, &plan), plan);
}

// A loaded model: immutable, used by any number of threads at once.
class Model {
public:
    static Result<Model> load(const edgellm_load_params &params) {
        if (auto fits = check_interface(); !fits) return fits.error();
        edgellm_model *model = nullptr;
        const edgellm_status status = edgellm_load(&params, &model);
        return detail::result(status, Model(model));
    }

    // With all defaults.
    static Result<Model> load(const std::string &path) {
        edgellm_load_params params = load_params();
        params.path = path.c_str();
        return load(params);
    }

    // One more owner of the same model.
    Model share() const noexcept { return Model(edgellm_ref(handle())); }

    Result<edgellm_model_info> info() const {
        edgellm_model_info info;
        info.struct_size = sizeof info;
        return detail::result(edgellm_model_get_info(handle(), &info), info);
    }

    // One value of the file's metadata, as text.
    Result<std::string> meta(std::string_view key) const {
        return detail::grow<std::string>(64, [&](char *out, std::size_t cap, std::size_t *n) {
            return edgellm_model_get_meta(handle(), key.data(), key.size(), out, cap, n);
        });
    }

    // `flags`: EDGELLM_TOK_*; EDGELLM_TOK_SPECIAL is off, for text of a user.
    Result<std::vector<Token>> tokenize(std::string_view text, std::uint32_t flags = EDGELLM_TOK_BOS) const {
        return detail::grow<std::vector<Token>>(text.size() / 2 + 8, [&](Token *out, std::size_t cap, std::size_t *n) {
            return edgellm_tokenize(handle(), text.data(), text.size(), flags, out, cap, n);
        });
    }

    // Tokens that end inside a character give incomplete UTF-8.
    Result<std::string> detokenize(View<Token> tokens, std::uint32_t flags = 0) const {
        return detail::grow<std::string>(tokens.size() * 8, [&](char *out, std::size_t cap, std::size_t *n) {
            return edgellm_detokenize(handle(), tokens.data(), tokens.size(), flags, out, cap, n);
        });
    }

    // The bytes of one token, valid as long as the model.
    Result<std::string_view> token_bytes(Token token) const {
        edgellm_str text = {nullptr, 0};
        const edgellm_status status = edgellm_token_bytes(handle(), token, &text);
        return detail::result(status, detail::view(text));
    }

    bool is_eos(Token token) const noexcept { return edgellm_token_is_eos(handle(), token) != 0; }

    // A conversation in the model's own words, for tokenize with EDGELLM_TOK_SPECIAL. All three are JSON, as for
    // edgellm_chat_render; empty = none.
    Result<std::string> chat(std::string_view messages, std::string_view tools = {}, std::string_view options = {}) const {
        const auto data = [](std::string_view json) { return json.empty() ? nullptr : json.data(); };
        return detail::grow<std::string>(messages.size() + 256, [&](char *out, std::size_t cap, std::size_t *n) {
            return edgellm_chat_render(handle(), messages.data(), messages.size(), data(tools), tools.size(),
                                       data(options), options.size(), out, cap, n);
        });
    }

    edgellm_model *handle() const noexcept { return handle_.get(); }

private:
    explicit Model(edgellm_model *handle) noexcept : handle_(handle) {}

    std::unique_ptr<edgellm_model, detail::Free> handle_;
};

// What output is held to: immutable, for any number of sessions of its model and threads at once. A session gets it with
// sampling.grammar = grammar.handle(), and keeps a reference of its own.
class Grammar {
public:
    // `kind`: EDGELLM_GRAMMAR_*, which says what the text is.
    static Result<Grammar> compile(const Model &model, std::int32_t kind, std::string_view text) {
        edgellm_grammar *grammar = nullptr;
        const edgellm_status status = edgellm_grammar_new(model.handle(), kind, text.data(), text.size(), &grammar);
        return detail::result(status, Grammar(grammar));
    }

    edgellm_grammar *handle() const noexcept { return handle_.get(); }

private:
    explicit Grammar(edgellm_grammar *handle) noexcept : handle_(handle) {}

    std::unique_ptr<edgellm_grammar, detail::Free> handle_;
};

// What a step did.
class Event {
public:
    Event() noexcept { edgellm_event_init(&raw); }

    // Whole UTF-8 characters, valid until the session's next call.
    std::string_view text() const noexcept { return detail::view(raw.text); }
    // The most likely tokens at this place, the likeliest first, as many as sampling.n_alternatives; valid as long as text.
    View<edgellm_alternative> alternatives() const noexcept { return {raw.alternatives, raw.n_alternatives}; }
    // The committed token, or the one that ended the generation; -1 = none.
    Token token() const noexcept { return raw.token; }
    bool is_token() const noexcept { return raw.kind == EDGELLM_EV_TOKEN; }
    bool is_prefill() const noexcept { return raw.kind == EDGELLM_EV_PREFILL; }
    // The generation is over: raw.finish says why.
    bool is_end() const noexcept { return status == EDGELLM_END; }
    // The deadline came first: call again.
    bool is_again() const noexcept { return status == EDGELLM_AGAIN; }

    edgellm_event raw;
    // EDGELLM_OK, _END or _AGAIN.
    edgellm_status status = EDGELLM_OK;
};

class Events;

// One sequence being generated.
class Session {
public:
    // It keeps a reference of its own to the model.
    static Result<Session> create(const Model &model, const edgellm_session_params &params = session_params()) {
        edgellm_session *session = nullptr;
        const edgellm_status status = edgellm_session_new(model.handle(), &params, &session);
        return detail::result(status, Session(session));
    }

    // How tokens are chosen from now on; everything is copied.
    Result<void> set_sampling(const edgellm_sampling &params) {
        return detail::result(edgellm_session_sampling(handle(), &params));
    }

    // Starts a run; how many of the tokens need not be computed, since the session held them already.
    Result<std::size_t> prompt(View<Token> tokens) {
        std::size_t reused = 0;
        const edgellm_status status = edgellm_session_prompt(handle(), tokens.data(), tokens.size(), &reused);
        return detail::result(status, reused);
    }

    // Starts a run that goes on after what the session holds.
    Result<void> append(View<Token> tokens) {
        return detail::result(edgellm_session_append(handle(), tokens.data(), tokens.size()));
    }

    // Keeps the first `n_keep` tokens.
    Result<void> rewind(std::size_t n_keep) { return detail::result(edgellm_session_rewind(handle(), n_keep)); }

    // Tokens that the session holds.
    std::size_t length() const noexcept { return edgellm_session_length(handle()); }

    // At most one forward pass.
    Result<Event> step() {
        Event event;
        return finish(event, edgellm_step(handle(), &event.raw));
    }

    // Gives the thread back at the first stage of a layer after the deadline: then the event is_again.
    Result<Event> step_until(Clock::time_point deadline) {
        Event event;
        return finish(event, edgellm_step_until(handle(), nanoseconds(deadline), &event.raw));
    }

    // For `for`: the events up to the end, END's included, or up to an error, which is then the last item.
    Events events() noexcept;
#ifdef EDGELLM_HPP_STOP_TOKEN
    // The same, and a stop that is requested cancels this run, from whichever thread: the last item is E_CANCELLED.
    Events events(std::stop_token stop) noexcept;
#endif

    // For samplers of your own: computes what is pending; false = the deadline came first, call again.
    Result<bool> forward(std::optional<Clock::time_point> deadline = std::nullopt) {
        const edgellm_status status = edgellm_forward(handle(), deadline ? nanoseconds(*deadline) : 0);
        return detail::result(status, status != EDGELLM_AGAIN);
    }

    // What forward left, valid until the session's next call.
    Result<View<float>> logits() {
        const float *data = nullptr;
        std::size_t n = 0;
        const edgellm_status status = edgellm_logits(handle(), &data, &n);
        return detail::result(status, View<float>(data, n));
    }

    // Commits a token of the caller's choice.
    Result<Event> accept(Token token) {
        Event event;
        return finish(event, edgellm_accept(handle(), token, &event.raw));
    }

    // Natural logarithms of the probabilities of these tokens, one after the other, after what the session holds; it stays as
    // it is.
    Result<std::vector<float>> score(View<Token> tokens) {
        std::vector<float> out(tokens.size());
        const edgellm_status status = edgellm_score(handle(), tokens.data(), tokens.size(), out.data());
        return detail::result(status, std::move(out));
    }

    // A second session that stands where this one does; both go on independently.
    Result<Session> fork() {
        edgellm_session *session = nullptr;
        const edgellm_status status = edgellm_session_fork(handle(), &session);
        return detail::result(status, Session(session));
    }

    // Everything that the session would go on from, for restore of a session of the same model, also in another process.
    Result<std::vector<unsigned char>> save() {
        return detail::grow<std::vector<unsigned char>>(1, [&](void *out, std::size_t cap, std::size_t *n) {
            return edgellm_session_save(handle(), out, cap, n);
        });
    }

    // All of it is checked before anything changes.
    Result<void> restore(View<unsigned char> saved) {
        return detail::result(edgellm_session_restore(handle(), saved.data(), saved.size()));
    }

    // The same, to and from a file descriptor, from where it stands.
    Result<void> save_fd(int fd) { return detail::result(edgellm_session_save_fd(handle(), fd)); }
    Result<void> restore_fd(int fd) { return detail::result(edgellm_session_restore_fd(handle(), fd)); }

    // Any thread, any signal handler. `run` is a number from run(), so that a late cancel cannot hit the next run; 0 =
    // whatever runs now.
    void cancel(std::uint64_t run = 0) const noexcept { edgellm_session_cancel(handle(), run); }

    // The number of the current run.
    std::uint64_t run() const noexcept { return edgellm_session_run(handle()); }

    Result<edgellm_stats> stats(bool reset = false) const {
        edgellm_stats stats;
        stats.struct_size = sizeof stats;
        return detail::result(edgellm_session_stats(handle(), &stats, reset), stats);
    }

    edgellm_session *handle() const noexcept { return handle_.get(); }

private:
    explicit Session(edgellm_session *handle) noexcept : handle_(handle) {}

    static std::uint64_t nanoseconds(Clock::time_point time) noexcept {
        const auto since = std::chrono::duration_cast<std::chrono::nanoseconds>(time.time_since_epoch()).count();
        return since > 0 ? static_cast<std::uint64_t>(since) : 1; // 0 would be no deadline.
    }

    static Result<Event> finish(Event &event, edgellm_status status) {
        event.status = status;
        return detail::result(status, event);
    }

    std::unique_ptr<edgellm_session, detail::Free> handle_;
};

// The events of one run, each made when the loop comes to it. The session must live as long; nothing else may step it.
class Events {
public:
    struct End {};

    class Iterator {
    public:
        using iterator_category = std::input_iterator_tag;
        using value_type = Result<Event>;
        using difference_type = std::ptrdiff_t;
        using pointer = Result<Event> *;
        using reference = Result<Event> &;

        explicit Iterator(Events *events) noexcept : events_(events) {}
        reference operator*() const noexcept { return *events_->now_; }
        pointer operator->() const noexcept { return &*events_->now_; }
        Iterator &operator++() { return events_->next(), *this; }
        void operator++(int) { events_->next(); }
        bool operator==(End) const noexcept { return !events_->now_; }
        bool operator!=(End) const noexcept { return events_->now_.has_value(); }

    private:
        Events *events_;
    };

    explicit Events(Session &session) noexcept : session_(&session) {}
#ifdef EDGELLM_HPP_STOP_TOKEN
    Events(Session &session, std::stop_token stop) noexcept
        : session_(&session), stop_(std::in_place, std::move(stop), Cancel{session.handle(), session.run()}) {}
#endif
    Events(const Events &) = delete;
    Events &operator=(const Events &) = delete;

    // The first event is computed here.
    Iterator begin() {
        next();
        return Iterator(this);
    }
    End end() const noexcept { return {}; }

private:
    void next() {
        const bool over = now_ && (!*now_ || (*now_)->is_end());
        now_.reset();
        if (!over) now_.emplace(session_->step());
    }

    Session *session_;
    std::optional<Result<Event>> now_;
#ifdef EDGELLM_HPP_STOP_TOKEN
    // Cancels this run, not a later one of the same session.
    struct Cancel {
        edgellm_session *session;
        std::uint64_t run;
        void operator()() const noexcept { edgellm_session_cancel(session, run); }
    };
    std::optional<std::stop_callback<Cancel>> stop_;
#endif
};

inline Events Session::events() noexcept { return Events(*this); }
#ifdef EDGELLM_HPP_STOP_TOKEN
inline Events Session::events(std::stop_token stop) noexcept { return Events(*this, std::move(stop)); }
#endif

} // namespace edgellm

#endif
