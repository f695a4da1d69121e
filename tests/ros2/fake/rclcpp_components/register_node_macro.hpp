#pragma once

#include <memory>

// What a component container does with a node.
#define RCLCPP_COMPONENTS_REGISTER_NODE(Class)                                                                        \
    std::unique_ptr<rclcpp_lifecycle::LifecycleNode> fake_load(const rclcpp::NodeOptions &options);                   \
    std::unique_ptr<rclcpp_lifecycle::LifecycleNode> fake_load(const rclcpp::NodeOptions &options) {                  \
        return std::make_unique<Class>(options);                                                                      \
    }
