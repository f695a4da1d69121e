//! The C++ header at work, and both headers in every language that they promise: with gcc and with clang.
#![cfg(all(target_os = "linux", feature = "chat"))]

mod common;
#[path = "capi/library.rs"]
mod library;

use common::{TempDir, cross};
use library::{Library, succeed};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const WARNINGS: [&str; 6] = ["-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion", "-Werror"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn library() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    LIBRARY.get_or_init(Library::build)
}

fn skip(what: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {what}");
}

/// gcc's and clang's compilers of a language, as far as they are installed; for another machine gcc's alone.
fn compilers(gcc: &'static str, clang: &'static str) -> Vec<(&'static str, Command)> {
    let all = [(gcc, cross::tool(gcc)), (clang, Command::new(clang))];
    let found = all.into_iter().take(if cross::emulated() { 1 } else { 2 }).filter(|(name, tool)| {
        let starts = Command::new(tool.get_program()).arg("--version").output();
        let found = starts.is_ok_and(|output| output.status.success());
        if !found {
            skip(&format!("{name} is not installed"));
        }
        found
    });
    found.collect()
}

/// The same command once more.
fn again(command: &Command) -> Command {
    let mut copy = Command::new(command.get_program());
    copy.args(command.get_args());
    copy
}

/// Compiles a program of `tests/cpp` against the shared library, runs it, and returns what it prints.
fn run(compiler: &Command, flags: &[&str], source: &str, out: PathBuf, arguments: &[&Path]) {
    let folder = library().shared.parent().expect("a folder");
    let mut command = again(compiler);
    // Not optimized: then gcc 12 warns of what its own <stop_token> does.
    command.args(WARNINGS).arg("-pthread").args(flags).arg("-I").arg(root().join("include"));
    command.arg(root().join(source)).arg("-o").arg(&out).arg(&library().shared);
    succeed(command.arg(format!("-Wl,-rpath,{}", folder.display())));
    let output = succeed(cross::program(&out).args(arguments));
    assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{flags:?} printed {output:?}");
}

#[test]
fn the_wrapper_does_what_it_says_in_each_standard_with_and_without_exceptions() {
    let folder = TempDir::new();
    let model = root().join("tests/data/edgellm-tiny-b1.58.gguf");
    for (name, compiler) in compilers("c++", "clang++") {
        let settings: [&[&str]; 4] = [
            &["-std=c++17", "-fno-exceptions", "-fno-rtti"],
            &["-std=c++17", "-DEDGELLM_HPP_EXCEPTIONS"],
            &["-std=c++20", "-fno-exceptions", "-fno-rtti"],
            &["-std=c++20", "-DEDGELLM_HPP_EXCEPTIONS"],
        ];
        for (index, flags) in settings.iter().enumerate() {
            let out = folder.path().join(format!("wrapper-{name}-{index}"));
            run(&compiler, flags, "tests/cpp/wrapper.cpp", out, &[&model]);
        }
    }
}

/// The second run starts from what the first one saved, a third one from nothing, since its file is damaged.
#[test]
fn the_sessions_example_says_the_same_from_its_saved_session() {
    let folder = TempDir::new();
    let saved = folder.path().join("saved");
    for (index, (_, compiler)) in compilers("c++", "clang++").iter().enumerate() {
        let out = folder.path().join(format!("sessions-{index}"));
        let libraries = library().shared.parent().expect("a folder");
        let mut command = again(compiler);
        command.arg("-std=c++17").args(WARNINGS).arg("-I").arg(root().join("include"));
        command.arg(root().join("c_examples/sessions.cpp")).arg("-o").arg(&out).arg(&library().shared);
        succeed(command.arg(format!("-Wl,-rpath,{}", libraries.display())));
        let _ = std::fs::remove_file(&saved);
        for what in ["18 tokens computed", "18 tokens restored", "18 tokens computed"] {
            let mut command = cross::program(&out);
            let output = succeed(command.arg(root().join("models/edgellm-mini-b1.58.gguf")).arg(&saved));
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            let answers = [
                r#"{"action":"goto","place":"kitchen"}"#,
                r#"{"action":"rotate","direction":"left","angle":30,"unit":"deg"}"#,
                r#"{"action":"stop"}"#,
                r#"{"action":"gripper","state":"close"}"#,
            ];
            assert_eq!(text.lines().collect::<Vec<_>>(), answers);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(said.contains(what), "{what}: {said}");
            if what.ends_with("restored") {
                let mut bytes = std::fs::read(&saved).expect("the saved session");
                *bytes.last_mut().expect("bytes") ^= 1;
                std::fs::write(&saved, bytes).expect("it is damaged");
            }
        }
    }
}

#[test]
fn what_may_fail_cannot_be_overlooked_and_owners_cannot_be_copied() {
    let folder = TempDir::new();
    let wrong = [
        ("ignored", "session.append(tokens);", "nodiscard"),
        ("copied", "edgellm::Session other = session;", "deleted"),
        ("taken", "edgellm::Event event = session.step();", "Event"),
    ];
    for (name, compiler) in compilers("c++", "clang++") {
        for (what, line, reason) in wrong {
            let text = format!(
                "#include \"edgellm.hpp\"\nvoid f(edgellm::Session &session, const std::vector<edgellm::Token> &tokens);\n\
                 void f(edgellm::Session &session, const std::vector<edgellm::Token> &tokens) {{\n\
                 (void)tokens;\n{line}\n}}\n"
            );
            let source = folder.file(&format!("{what}.cpp"), text.as_bytes());
            let mut command = again(&compiler);
            command.args(["-std=c++17", "-Wall", "-Werror", "-fsyntax-only", "-I"]).arg(root().join("include"));
            let output = command.arg(source).output().expect("the compiler runs");
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(!output.status.success() && said.contains(reason), "{name}, {what}: {said}");
        }
    }
}

#[test]
fn the_headers_compile_alone_in_each_standard() {
    let folder = TempDir::new();
    let c = folder.file("c.c", b"#include \"edgellm.h\"\n#include \"edgellm.h\"\nint edgellm_test_unit;\n");
    let cpp = folder.file("cpp.cpp", b"#include \"edgellm.hpp\"\n#include \"edgellm.hpp\"\nint edgellm_test_unit;\n");
    let check = |compiler: &Command, language: &[&str], source: &Path| {
        let mut command = again(compiler);
        command.args(language).args(WARNINGS).args(["-fsyntax-only", "-I"]).arg(root().join("include"));
        succeed(command.arg(source));
    };
    for (_, compiler) in compilers("cc", "clang") {
        for standard in ["-std=c99", "-std=c11"] {
            check(&compiler, &["-x", "c", standard], &c);
        }
    }
    for (_, compiler) in compilers("c++", "clang++") {
        for standard in ["-std=c++11", "-std=c++17", "-std=c++20"] {
            check(&compiler, &["-x", "c++", standard], &c);
        }
        for standard in ["-std=c++17", "-std=c++20"] {
            check(&compiler, &["-x", "c++", standard], &cpp);
        }
    }
}
