#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <rclcpp/rclcpp.hpp>

namespace rclcpp_action {

using GoalUUID = std::array<std::uint8_t, 16>;
enum class GoalResponse : std::int8_t { REJECT = 1, ACCEPT_AND_EXECUTE = 2, ACCEPT_AND_DEFER = 3 };
enum class CancelResponse : std::int8_t { REJECT = 1, ACCEPT = 2 };

template <class ActionT> class ServerGoalHandle {
public:
    using Result = std::shared_ptr<typename ActionT::Result>;

    ServerGoalHandle(GoalUUID id, std::shared_ptr<const typename ActionT::Goal> goal) : id_(id), goal_(std::move(goal)) {}
    std::shared_ptr<const typename ActionT::Goal> get_goal() const { return goal_; }
    const GoalUUID &get_goal_id() const { return id_; }
    bool is_canceling() const { return canceling; }
    void publish_feedback(std::shared_ptr<typename ActionT::Feedback> feedback) { on_feedback(*feedback); }
    void succeed(Result with) { end("succeeded", std::move(with)); }
    void abort(Result with) { end("aborted", std::move(with)); }
    void canceled(Result with) { end(canceling ? "canceled" : "canceled, but not cancelling", std::move(with)); }

    // What the test sets and looks at.
    std::atomic<bool> canceling{false};
    std::function<void(const typename ActionT::Feedback &)> on_feedback = [](const auto &) {};
    std::string wait() {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [&] { return !ended_.empty(); });
        return ended_;
    }
    Result result;

private:
    void end(const char *how, Result with) {
        const std::lock_guard<std::mutex> lock(mutex_);
        ended_ = ended_.empty() ? how : "ended twice";
        result = std::move(with);
        changed_.notify_all();
    }
    GoalUUID id_;
    std::shared_ptr<const typename ActionT::Goal> goal_;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::string ended_;
};

template <class ActionT> class Server {
public:
    using SharedPtr = std::shared_ptr<Server>;
    using Handle = std::shared_ptr<ServerGoalHandle<ActionT>>;
    using GoalCallback = std::function<GoalResponse(const GoalUUID &, std::shared_ptr<const typename ActionT::Goal>)>;
    using CancelCallback = std::function<CancelResponse(Handle)>;
    using AcceptedCallback = std::function<void(Handle)>;
    GoalCallback on_goal;
    CancelCallback on_cancel;
    AcceptedCallback on_accepted;
};

template <class ActionT, class NodeT>
typename Server<ActionT>::SharedPtr create_server(NodeT node, const std::string &name,
                                                  typename Server<ActionT>::GoalCallback on_goal,
                                                  typename Server<ActionT>::CancelCallback on_cancel,
                                                  typename Server<ActionT>::AcceptedCallback on_accepted) {
    auto server = std::make_shared<Server<ActionT>>(
        Server<ActionT>{std::move(on_goal), std::move(on_cancel), std::move(on_accepted)});
    node->entities[name] = std::weak_ptr<void>(server);
    return server;
}

}  // namespace rclcpp_action
