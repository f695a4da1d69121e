#pragma once

#include <rclcpp/rclcpp.hpp>

namespace rclcpp_lifecycle {

class State {};

namespace node_interfaces {

class LifecycleNodeInterface {
public:
    enum class CallbackReturn : std::uint8_t { SUCCESS = 97, FAILURE = 98, ERROR = 99 };
    virtual CallbackReturn on_configure(const State &) { return CallbackReturn::SUCCESS; }
    virtual CallbackReturn on_cleanup(const State &) { return CallbackReturn::SUCCESS; }
    virtual CallbackReturn on_shutdown(const State &) { return CallbackReturn::SUCCESS; }
    virtual CallbackReturn on_activate(const State &) { return CallbackReturn::SUCCESS; }
    virtual CallbackReturn on_deactivate(const State &) { return CallbackReturn::SUCCESS; }
    virtual CallbackReturn on_error(const State &) { return CallbackReturn::FAILURE; }
    virtual ~LifecycleNodeInterface() = default;
};

}  // namespace node_interfaces

class LifecycleNode : public node_interfaces::LifecycleNodeInterface {
public:
    explicit LifecycleNode(const std::string &, const rclcpp::NodeOptions &options, bool = true) : options_(options) {}

    template <class T> T declare_parameter(const std::string &name, const T &value) {
        options_.parameters.try_emplace(name, value);
        return value;
    }
    rclcpp::Parameter get_parameter(const std::string &name) const {
        return rclcpp::Parameter(options_.parameters.at(name));
    }
    rclcpp::Logger get_logger() { return {&log}; }

    template <class ServiceT, class CallbackT>
    typename rclcpp::Service<ServiceT>::SharedPtr create_service(const std::string &name, CallbackT callback) {
        using S = rclcpp::Service<ServiceT>;
        auto service = std::make_shared<S>();
        using Id = std::shared_ptr<rmw_request_id_t>;
        if constexpr (std::is_invocable_v<CallbackT, Id, std::shared_ptr<typename S::Request>>)
            service->deferring = callback;
        else
            service->immediate = callback;
        entities[name] = std::weak_ptr<void>(service);
        return service;
    }

    // What the test looks at.
    std::vector<std::string> log;
    std::map<std::string, std::weak_ptr<void>> entities;

private:
    rclcpp::NodeOptions options_;
};

}  // namespace rclcpp_lifecycle
