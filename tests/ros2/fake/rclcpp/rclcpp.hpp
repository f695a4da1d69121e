// The part of rclcpp that the node uses, by the signatures of its documentation, so that the node compiles and runs without
// ROS. A test calls what the executor would. What ROS really does, only ROS can tell.
#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

struct rmw_request_id_t {
    std::int64_t sequence_number = 0;
};

namespace rclcpp {

class NodeOptions {
public:
    using Value = std::variant<std::string, std::int64_t, double>;
    std::map<std::string, Value> parameters;  // What a launch file would set.
};

struct Logger {
    std::vector<std::string> *lines;
};

class Parameter {
public:
    explicit Parameter(NodeOptions::Value value) : value_(std::move(value)) {}
    std::string as_string() const { return std::get<std::string>(value_); }
    std::int64_t as_int() const { return std::get<std::int64_t>(value_); }
    double as_double() const { return std::get<double>(value_); }

private:
    NodeOptions::Value value_;
};

template <class ServiceT> class Service {
public:
    using SharedPtr = std::shared_ptr<Service>;
    using Request = typename ServiceT::Request;
    using Response = typename ServiceT::Response;

    void send_response(rmw_request_id_t &id, Response &response) { on_response(id.sequence_number, response); }

    std::function<void(std::shared_ptr<rmw_request_id_t>, std::shared_ptr<Request>)> deferring;
    std::function<void(std::shared_ptr<Request>, std::shared_ptr<Response>)> immediate;
    std::function<void(std::int64_t, const Response &)> on_response;
};

}  // namespace rclcpp

inline void fake_log(const rclcpp::Logger &logger, const char *format, ...) {
    char line[1024];
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(line, sizeof line, format, arguments);
    va_end(arguments);
    logger.lines->push_back(line);
}
#define RCLCPP_ERROR(logger, ...) fake_log(logger, __VA_ARGS__)
