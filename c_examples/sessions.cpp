// One prompt, several answers: a robot computes what it knows once, forks it for every question, and keeps it on disk for its
// next start. sessions MODEL.gguf FILE; with FILE from an earlier run it starts from there.
#include "edgellm.hpp"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>

#include <fcntl.h>
#include <unistd.h>

using edgellm::Model;
using edgellm::Result;
using edgellm::Session;

// Gives the value, or ends the program with the library's words.
template <class T> static T need(Result<T> result) {
    if (!result) {
        std::fprintf(stderr, "%s: %s\n", result.error().name(), result.error().message().c_str());
        std::exit(1);
    }
    if constexpr (!std::is_void_v<T>) return std::move(*result);
}

// What every question shares. The end of the conversation is left open.
static const char KNOWN[] = "<|im_start|>system\nYou turn commands into actions of a robot.<|im_end|>\n";

static std::string ask(const Model &model, Session &session, const std::string &question) {
    const std::string text = "<|im_start|>user\n" + question + "<|im_end|>\n<|im_start|>assistant\n";
    need(session.append(need(model.tokenize(text, EDGELLM_TOK_SPECIAL))));
    std::string answer;
    for (auto &event : session.events()) answer += need(std::move(event)).text();
    return answer;
}

// A new file takes the place of the old one when it is whole.
static void save(Session &session, const std::string &path) {
    const std::string part = path + ".part";
    const int fd = open(part.c_str(), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    if (fd < 0) return std::perror(part.c_str());
    need(session.save_fd(fd));
    if (fsync(fd) != 0 || close(fd) != 0 || std::rename(part.c_str(), path.c_str()) != 0) std::perror(path.c_str());
}

int main(int argc, char **argv) {
    if (argc != 3) return std::fprintf(stderr, "usage: %s MODEL.gguf FILE\n", argv[0]), 2;
    const Model model = need(Model::load(argv[1]));
    Session known = need(Session::create(model));
    auto sampling = edgellm::sampling(); // Greedy.
    sampling.max_tokens = 64;

    const auto start = edgellm::Clock::now();
    const int fd = open(argv[2], O_RDONLY);
    const auto restored = fd < 0 ? Result<void>(edgellm::Error(EDGELLM_E_IO, "there is none yet")) : known.restore_fd(fd);
    if (fd >= 0) close(fd);
    if (!restored) { // None, another model's, or damaged: then the session is as it was.
        std::fprintf(stderr, "computed, since of the saved session: %s\n", restored.error().message().c_str());
        need(known.set_sampling(sampling));
        need(known.prompt(need(model.tokenize(KNOWN, EDGELLM_TOK_SPECIAL))));
        need(known.forward());
        save(known, argv[2]);
    }
    const std::chrono::duration<double, std::milli> took = edgellm::Clock::now() - start;
    std::fprintf(stderr, "%zu tokens %s in %.2f ms\n", known.length(), restored ? "restored" : "computed", took.count());

    // Each question has its own session; what they share is in memory once.
    for (const char *question : {"Go to the kitchen.", "Turn left by 30 degrees."}) {
        Session fork = need(known.fork());
        std::printf("%s\n", ask(model, fork, question).c_str());
    }

    // Or one session goes back to where it was.
    const std::size_t here = known.length();
    for (const char *question : {"Stop.", "Close the gripper."}) {
        std::printf("%s\n", ask(model, known, question).c_str());
        need(known.rewind(here));
    }
    return 0;
}
