// The ROS side of a language model: a composable lifecycle node around edgellm_ros::Generator.
//
//   ~/generate  edgellm_msgs/action/Generate   ~/score  edgellm_msgs/srv/Score   ~/tokenize  edgellm_msgs/srv/Tokenize
//   /diagnostics
//
// The model is loaded in on_configure and freed in on_cleanup. Goals and scores have threads of their own and wait there for
// the session, so that the executor can go on and take a cancel.

#include "edgellm_ros/generator.hpp"

#include <diagnostic_updater/diagnostic_updater.hpp>
#include <edgellm_msgs/action/generate.hpp>
#include <edgellm_msgs/srv/score.hpp>
#include <edgellm_msgs/srv/tokenize.hpp>
#include <rclcpp/rclcpp.hpp>
#include <rclcpp_action/rclcpp_action.hpp>
#include <rclcpp_components/register_node_macro.hpp>
#include <rclcpp_lifecycle/lifecycle_node.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace edgellm_ros {

using edgellm_msgs::action::Generate;
using edgellm_msgs::srv::Score;
using edgellm_msgs::srv::Tokenize;
using GoalHandle = rclcpp_action::ServerGoalHandle<Generate>;
using CallbackReturn = rclcpp_lifecycle::node_interfaces::LifecycleNodeInterface::CallbackReturn;

class Node : public rclcpp_lifecycle::LifecycleNode {
public:
    explicit Node(const rclcpp::NodeOptions &options) : rclcpp_lifecycle::LifecycleNode("edgellm", options) {
        const Settings defaults;
        declare_parameter("model_path", defaults.model_path);
        declare_parameter("n_threads", defaults.n_threads);
        declare_parameter("device", defaults.device);
        declare_parameter("n_ctx", defaults.n_ctx);
        declare_parameter("prefill_chunk", defaults.prefill_chunk);
        declare_parameter("kv_type", defaults.kv_type);
        declare_parameter("step_ms_max", defaults.step_ms_max);
        declare_parameter("requests_max", std::int64_t{4});  // That may wait for the session; others are rejected.
    }

    ~Node() override { stop(); }

    CallbackReturn on_configure(const rclcpp_lifecycle::State &) override {
        Settings settings;
        settings.model_path = get_parameter("model_path").as_string();
        settings.n_threads = get_parameter("n_threads").as_int();
        settings.device = get_parameter("device").as_int();
        settings.n_ctx = get_parameter("n_ctx").as_int();
        settings.prefill_chunk = get_parameter("prefill_chunk").as_int();
        settings.kv_type = get_parameter("kv_type").as_int();
        settings.step_ms_max = get_parameter("step_ms_max").as_double();
        requests_max_ = static_cast<std::size_t>(std::max<std::int64_t>(get_parameter("requests_max").as_int(), 1));
        auto generator = Generator::create(settings);
        if (!generator) {
            RCLCPP_ERROR(get_logger(), "%s: %s", generator.error().name(), generator.error().message().c_str());
            return CallbackReturn::FAILURE;
        }
        generator_ = std::make_shared<Generator>(std::move(*generator));
        return CallbackReturn::SUCCESS;
    }

    CallbackReturn on_activate(const rclcpp_lifecycle::State &state) override {
        generate_ = rclcpp_action::create_server<Generate>(
            this, "~/generate",
            [this](const rclcpp_action::GoalUUID &id, std::shared_ptr<const Generate::Goal> goal) {
                return on_goal(id, *goal);
            },
            [this](std::shared_ptr<GoalHandle> handle) { return on_cancel(*handle); },
            [this](std::shared_ptr<GoalHandle> handle) { on_accepted(std::move(handle)); });
        // It responds when the thread has the scores.
        score_ = create_service<Score>(
            "~/score", [this](std::shared_ptr<rmw_request_id_t> id, std::shared_ptr<Score::Request> request) {
                on_score(std::move(id), std::move(request));
            });
        tokenize_ = create_service<Tokenize>(
            "~/tokenize",
            [this](std::shared_ptr<Tokenize::Request> request, std::shared_ptr<Tokenize::Response> response) {
                on_tokenize(*request, *response);
            });
        diagnostics_ = std::make_unique<diagnostic_updater::Updater>(this);
        diagnostics_->setHardwareID("libedgellm " + std::string(edgellm_version()));
        diagnostics_->add("steps", [this](diagnostic_updater::DiagnosticStatusWrapper &status) { on_diagnose(status); });
        return LifecycleNode::on_activate(state);
    }

    CallbackReturn on_deactivate(const rclcpp_lifecycle::State &state) override {
        stop();
        return LifecycleNode::on_deactivate(state);
    }

    CallbackReturn on_cleanup(const rclcpp_lifecycle::State &) override {
        generator_.reset();
        return CallbackReturn::SUCCESS;
    }

    CallbackReturn on_shutdown(const rclcpp_lifecycle::State &) override {
        stop();
        generator_.reset();
        return CallbackReturn::SUCCESS;
    }

private:
    // A request that has a thread: a goal, or a score, whose id is all zeros.
    struct State {
        Ticket ticket;
        std::atomic<bool> answered{false}; // From the moment before the client can know.
        std::atomic<bool> over{false};     // Its thread can be joined without waiting.
    };
    struct Work {
        rclcpp_action::GoalUUID id;
        std::shared_ptr<State> state;
        std::thread thread;
    };

    rclcpp_action::GoalResponse on_goal(const rclcpp_action::GoalUUID &, const Generate::Goal &goal) {
        const bool one = goal.messages.empty() != goal.prompt.empty();
        return one && has_room() ? rclcpp_action::GoalResponse::ACCEPT_AND_EXECUTE : rclcpp_action::GoalResponse::REJECT;
    }

    rclcpp_action::CancelResponse on_cancel(const GoalHandle &handle) {
        const std::lock_guard<std::mutex> lock(mutex_);
        const auto same = [&](const Work &one) { return one.id == handle.get_goal_id(); };
        const auto found = std::find_if(work_.begin(), work_.end(), same);
        if (found == work_.end() || found->state->answered) return rclcpp_action::CancelResponse::REJECT;
        found->state->ticket.cancel(Ticket::Client);
        return rclcpp_action::CancelResponse::ACCEPT;
    }

    void on_accepted(std::shared_ptr<GoalHandle> handle) {
        start(handle->get_goal_id(), [generator = generator_, handle](State &state) { run(*generator, *handle, state); });
    }

    // Whether one more request may wait.
    bool has_room() {
        const std::lock_guard<std::mutex> lock(mutex_);
        std::size_t waiting = 0;
        for (auto at = work_.begin(); at != work_.end();) {
            waiting += !at->state->answered;
            if (at->state->over) {
                at->thread.join();
                at = work_.erase(at);
            } else {
                ++at;
            }
        }
        return waiting < requests_max_;
    }

    // Starts a thread for a request.
    template <class Function> void start(const rclcpp_action::GoalUUID &id, Function function) {
        const std::lock_guard<std::mutex> lock(mutex_);
        auto state = std::make_shared<State>();
        std::thread thread([state, function] {
            function(*state);
            state->over = true;
        });
        work_.push_back({id, state, std::move(thread)});
    }

    // One goal, on its own thread.
    static void run(Generator &generator, GoalHandle &handle, State &state) {
        const auto goal = handle.get_goal();
        Request request;
        request.prompt = {goal->messages, goal->tools, goal->prompt};
        request.temperature = goal->temperature;
        request.top_k = goal->top_k;
        request.top_p = goal->top_p;
        request.min_p = goal->min_p;
        request.repeat_penalty = goal->repeat_penalty;
        request.seed = goal->seed;
        request.max_tokens = goal->max_tokens;
        request.stop = goal->stop;
        request.json_schema = goal->json_schema;
        request.time_limit =
            std::chrono::seconds(goal->time_limit.sec) + std::chrono::nanoseconds(goal->time_limit.nanosec);

        const Answer answer = generator.generate(request, state.ticket, [&](const Progress &progress) {
            auto feedback = std::make_shared<Generate::Feedback>();
            feedback->text = std::string(progress.text);
            feedback->tokens = progress.tokens;
            feedback->prompt_done = progress.prompt_done;
            feedback->prompt_total = progress.prompt_total;
            feedback->step_ns = progress.step_ns;
            handle.publish_feedback(feedback);
        });

        auto result = std::make_shared<Generate::Result>();
        result->finish = static_cast<std::uint8_t>(answer.finish);
        result->text = answer.text;
        result->tokens = answer.tokens;
        result->message = answer.message;
        if (const auto stats = generator.stats()) {
            result->stats.steps = stats->steps;
            result->stats.tokens_prompt = stats->tokens_prompt;
            result->stats.tokens_reused = stats->tokens_reused;
            result->stats.tokens_out = stats->tokens_out;
            result->stats.ns_first_token = stats->ns_first_token;
            result->stats.ns_prefill = stats->ns_prefill;
            result->stats.ns_decode = stats->ns_decode;
            result->stats.step_ns_p50 = stats->step_ns_p50;
            result->stats.step_ns_p95 = stats->step_ns_p95;
            result->stats.step_ns_p99 = stats->step_ns_p99;
            result->stats.step_ns_max = stats->step_ns_max;
        }
        // A goal that its client cancelled becomes so when on_cancel has returned, which may be a moment later than here;
        // what a transition of the node ends is aborted.
        const bool by_client = state.ticket.cancelled_by() == Ticket::Client;
        const bool canceled = answer.finish == Finish::Cancelled && by_client && becomes_canceling(handle);
        state.answered = true;
        if (canceled) handle.canceled(result);
        else if (answer.finish == Finish::Cancelled || answer.finish == Finish::Error) handle.abort(result);
        else handle.succeed(result);
    }

    static bool becomes_canceling(GoalHandle &handle) {
        for (int i = 0; i < 1000 && !handle.is_canceling(); i++) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        return handle.is_canceling();
    }

    void on_score(std::shared_ptr<rmw_request_id_t> id, std::shared_ptr<Score::Request> request) {
        if (!has_room()) {
            Score::Response response;
            response.message = "too many requests wait";
            score_->send_response(*id, response);
            return;
        }
        start({}, [generator = generator_, service = score_, id, request](State &state) {
            const Prompt prompt = {request->messages, {}, request->prompt};
            const auto scores = generator->score(prompt, request->candidates, state.ticket);
            Score::Response response;
            response.success = static_cast<bool>(scores);
            if (scores) {
                response.log_probabilities = scores->log_probabilities;
                response.tokens = scores->tokens;
                response.best = scores->best;
            } else {
                response.message = scores.error().message();
            }
            state.answered = true;
            service->send_response(*id, response);
        });
    }

    void on_tokenize(const Tokenize::Request &request, Tokenize::Response &response) {
        auto tokens = generator_->tokenize(request.text, request.bos, request.special);
        response.success = static_cast<bool>(tokens);
        if (tokens) response.tokens = std::move(*tokens);
        else response.message = tokens.error().message();
    }

    void on_diagnose(diagnostic_updater::DiagnosticStatusWrapper &status) {
        const Diagnosis diagnosis = generator_->diagnose();
        status.summary(diagnosis.level, diagnosis.message);
        for (const auto &[name, value] : diagnosis.values) status.add(name, value);
    }

    // Ends all requests and what clients see. The executor calls nothing else of this node meanwhile.
    void stop() {
        std::vector<Work> work;
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            work.swap(work_);
        }
        for (Work &one : work) one.state->ticket.cancel(Ticket::Node);
        for (Work &one : work) one.thread.join();
        diagnostics_.reset();
        generate_.reset();
        score_.reset();
        tokenize_.reset();
    }

    std::shared_ptr<Generator> generator_;
    std::unique_ptr<diagnostic_updater::Updater> diagnostics_;
    rclcpp_action::Server<Generate>::SharedPtr generate_;
    rclcpp::Service<Score>::SharedPtr score_;
    rclcpp::Service<Tokenize>::SharedPtr tokenize_;
    std::mutex mutex_;
    std::vector<Work> work_;
    std::size_t requests_max_ = 4;
};

}  // namespace edgellm_ros

RCLCPP_COMPONENTS_REGISTER_NODE(edgellm_ros::Node)
