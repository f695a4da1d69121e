// The ROS node among fakes of what it uses of ROS (fake/), with the messages that ROS's own generator makes of edgellm_msgs:
// node_test MODEL.gguf. The test is the executor: it calls the callbacks, one at a time.
#include "../../ros2/edgellm_ros/src/node.cpp"

#include <cstdlib>

#define CHECK(condition)                                                                                              \
    do {                                                                                                              \
        if (!(condition)) {                                                                                           \
            std::fprintf(stderr, "%s:%d: %s\n", __FILE__, __LINE__, #condition);                                      \
            std::exit(1);                                                                                             \
        }                                                                                                             \
    } while (0)

using edgellm_ros::CallbackReturn;
using edgellm_ros::Generate;
using edgellm_ros::GoalHandle;
using edgellm_ros::Score;
using edgellm_ros::Tokenize;
using Node = rclcpp_lifecycle::LifecycleNode;
using Server = rclcpp_action::Server<Generate>;
using rclcpp_action::CancelResponse;
using rclcpp_action::GoalResponse;

static const char MESSAGES[] = R"([{"role": "user", "content": "Stop."}])";
static const char ANSWER[] = R"({"action":"stop"})";

static std::unique_ptr<Node> load(const char *path, std::int64_t requests_max = 4) {
    rclcpp::NodeOptions options;
    options.parameters = {{"model_path", std::string(path)}, {"n_threads", std::int64_t{1}},
                          {"device", std::int64_t{-2}}, {"requests_max", requests_max}};
    return fake_load(options);
}

template <class T> static std::shared_ptr<T> entity(Node &node, const char *name) {
    return std::static_pointer_cast<T>(node.entities[name].lock());
}

// What rclcpp_action does with a goal that a client sends: nullptr when it is rejected.
static std::shared_ptr<GoalHandle> send(Node &node, const Generate::Goal &goal,
                                        std::function<void(const Generate::Feedback &)> on_feedback = [](const auto &) {}) {
    static std::uint8_t count = 0;
    const rclcpp_action::GoalUUID id = {++count};
    const auto server = entity<Server>(node, "~/generate");
    CHECK(server);
    const auto shared = std::make_shared<const Generate::Goal>(goal);
    if (server->on_goal(id, shared) != GoalResponse::ACCEPT_AND_EXECUTE) return nullptr;
    auto handle = std::make_shared<GoalHandle>(id, shared);
    handle->on_feedback = std::move(on_feedback);
    server->on_accepted(handle);
    return handle;
}

// It goes on for minutes, since every token is held up.
static std::shared_ptr<GoalHandle> send_story(Node &node, std::atomic<int> &tokens) {
    Generate::Goal goal;
    goal.prompt = "Once upon a time";
    goal.temperature = 1.2F;
    return send(node, goal, [&](const Generate::Feedback &feedback) {
        tokens = static_cast<int>(feedback.tokens);
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
    });
}

static void wait_for(const std::atomic<int> &tokens) {
    while (tokens < 2) std::this_thread::sleep_for(std::chrono::milliseconds(1));
}

static void a_missing_model_is_a_failed_transition() {
    auto node = load("/no/such/file");
    CHECK(node->on_configure({}) == CallbackReturn::FAILURE);
    CHECK(node->log.size() == 1 && node->log[0].find("EDGELLM_E_IO: /no/such/file") == 0);
}

static void goals_are_answered(Node &node) {
    Generate::Goal goal;
    CHECK(!send(node, goal)); // No request.
    goal.messages = MESSAGES;
    std::string pieces;
    auto handle = send(node, goal, [&](const Generate::Feedback &feedback) { pieces += feedback.text; });
    CHECK(handle && handle->wait() == "succeeded");
    CHECK(handle->result->text == ANSWER && pieces == ANSWER && handle->result->finish == Generate::Result::FINISH_EOS);
    CHECK(handle->result->tokens > 0 && handle->result->stats.tokens_out > 0 && handle->result->message.empty());
    goal.max_tokens = 2;
    handle = send(node, goal);
    CHECK(handle->wait() == "succeeded" && handle->result->finish == Generate::Result::FINISH_LENGTH);
    goal.stop = {""};
    handle = send(node, goal);
    CHECK(handle->wait() == "aborted" && handle->result->finish == Generate::Result::FINISH_ERROR);
    CHECK(handle->result->message.find("EDGELLM_E_ARG: ") == 0);
    goal.prompt = "both";
    CHECK(!send(node, goal));
    goal = Generate::Goal();
    goal.prompt = "Once upon a time";
    goal.time_limit.nanosec = 1;
    handle = send(node, goal);
    CHECK(handle->wait() == "succeeded" && handle->result->finish == Generate::Result::FINISH_TIME);
}

static void a_goal_is_cancelled_while_others_wait(Node &node) {
    std::atomic<int> tokens{0};
    auto story = send_story(node, tokens);
    CHECK(story);
    wait_for(tokens);
    Generate::Goal goal;
    goal.messages = MESSAGES;
    auto waits = send(node, goal);
    CHECK(waits);
    CHECK(!send(node, goal)); // requests_max is 2.
    const auto server = entity<Server>(node, "~/generate");
    CHECK(server->on_cancel(story) == CancelResponse::ACCEPT);
    std::this_thread::sleep_for(std::chrono::milliseconds(30)); // rclcpp_action changes the state after the callback.
    story->canceling = true;
    CHECK(story->wait() == "canceled" && story->result->finish == Generate::Result::FINISH_CANCELLED);
    CHECK(story->result->tokens >= 2 && !story->result->text.empty());
    CHECK(waits->wait() == "succeeded" && waits->result->text == ANSWER);
    CHECK(send(node, goal)->wait() == "succeeded");
    CHECK(server->on_cancel(story) == CancelResponse::REJECT); // It is over.
}

static void services_respond(Node &node) {
    auto score = entity<rclcpp::Service<Score>>(node, "~/score");
    CHECK(score && score->deferring);
    std::mutex mutex;
    std::condition_variable changed;
    std::shared_ptr<Score::Response> response;
    score->on_response = [&](std::int64_t number, const Score::Response &found) {
        const std::lock_guard<std::mutex> lock(mutex);
        CHECK(number == 7);
        response = std::make_shared<Score::Response>(found);
        changed.notify_all();
    };
    const auto ask = [&](std::vector<std::string> candidates) {
        auto request = std::make_shared<Score::Request>();
        request->messages = MESSAGES;
        request->candidates = std::move(candidates);
        auto id = std::make_shared<rmw_request_id_t>();
        id->sequence_number = 7;
        score->deferring(id, request);
        std::unique_lock<std::mutex> lock(mutex);
        changed.wait(lock, [&] { return response != nullptr; });
        return std::move(*std::exchange(response, nullptr));
    };
    const auto scores = ask({R"({"action":"dock"})", ANSWER});
    CHECK(scores.success && scores.best == 1 && scores.log_probabilities.size() == 2 && scores.tokens.size() == 2);
    const auto none = ask({});
    CHECK(!none.success && !none.message.empty());

    auto tokenize = entity<rclcpp::Service<Tokenize>>(node, "~/tokenize");
    auto request = std::make_shared<Tokenize::Request>();
    auto tokens = std::make_shared<Tokenize::Response>();
    request->text = "<|im_end|>";
    request->special = true;
    tokenize->immediate(request, tokens);
    CHECK(tokens->success && tokens->tokens.size() == 1);

    auto task = entity<diagnostic_updater::TaskFunction>(node, "/diagnostics");
    diagnostic_updater::DiagnosticStatusWrapper status;
    (*task)(status);
    CHECK(status.level == 0 && status.message == "ready" && status.values.size() == 9);
}

static void a_transition_ends_what_runs(Node &node) {
    std::atomic<int> tokens{0};
    auto story = send_story(node, tokens);
    wait_for(tokens);
    std::atomic<int> never{0};
    auto waits = send_story(node, never);
    CHECK(node.on_deactivate({}) == CallbackReturn::SUCCESS);
    CHECK(story->wait() == "aborted" && story->result->finish == Generate::Result::FINISH_CANCELLED);
    CHECK(waits->wait() == "aborted" && never == 0);
    CHECK(!entity<Server>(node, "~/generate") && !entity<rclcpp::Service<Score>>(node, "~/score"));
    CHECK(!entity<diagnostic_updater::TaskFunction>(node, "/diagnostics"));
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    a_missing_model_is_a_failed_transition();
    auto node = load(argv[1], 2);
    CHECK(node->on_configure({}) == CallbackReturn::SUCCESS && node->on_activate({}) == CallbackReturn::SUCCESS);
    goals_are_answered(*node);
    a_goal_is_cancelled_while_others_wait(*node);
    services_respond(*node);
    a_transition_ends_what_runs(*node);
    // Again from the start, and gone in the middle of a goal.
    CHECK(node->on_activate({}) == CallbackReturn::SUCCESS && node->on_deactivate({}) == CallbackReturn::SUCCESS);
    CHECK(node->on_cleanup({}) == CallbackReturn::SUCCESS && node->on_configure({}) == CallbackReturn::SUCCESS);
    CHECK(node->on_activate({}) == CallbackReturn::SUCCESS);
    std::atomic<int> tokens{0};
    auto story = send_story(*node, tokens);
    wait_for(tokens);
    node.reset();
    CHECK(story->wait() == "aborted");
    return 0;
}
