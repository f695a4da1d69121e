#pragma once

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace diagnostic_updater {

class DiagnosticStatusWrapper {
public:
    void summary(unsigned char level_, const std::string message_) { level = level_, message = message_; }
    template <class T> void add(const std::string &key, const T &value) { values.emplace_back(key, value); }

    unsigned char level = 255;
    std::string message;
    std::vector<std::pair<std::string, std::string>> values;
};

using TaskFunction = std::function<void(DiagnosticStatusWrapper &)>;

class Updater {
public:
    template <class NodeT> explicit Updater(NodeT node, double = 1.0) : task_(std::make_shared<TaskFunction>()) {
        node->entities["/diagnostics"] = std::weak_ptr<void>(task_);
    }
    void setHardwareID(const std::string &) {}
    void add(const std::string &, TaskFunction task) { *task_ = std::move(task); }

private:
    std::shared_ptr<TaskFunction> task_;
};

}  // namespace diagnostic_updater
