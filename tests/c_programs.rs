//! The C side from C: each program of `tests/capi` as C99 and as C++11, against the shared and the static library, then
//! under valgrind and AddressSanitizer where they are installed. `common::cross` has what differs for another machine.
#![cfg(target_os = "linux")]

mod common;
#[path = "capi/library.rs"]
mod library;

use common::cross;
use edgellm::I2sLayout;
use edgellm::quant::Format;
use library::{Library, succeed};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

/// What a program is compiled as.
const LANGUAGES: [(&str, &str, &[&str]); 2] =
    [("c99", "cc", &["-x", "c", "-std=c99"]), ("cxx11", "c++", &["-x", "c++", "-std=c++11"])];
const WARNINGS: [&str; 4] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn scratch() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

fn library() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    LIBRARY.get_or_init(Library::build)
}

/// A tiny random model with a vocabulary and a chat template, and room for the long prompts of `threads.c`.
fn model() -> &'static Path {
    static MODEL: OnceLock<PathBuf> = OnceLock::new();
    MODEL.get_or_init(|| {
        let vocabulary = common::Vocabulary::Gpt2 { pre: "qwen2" };
        let spec = common::ModelSpec { vocabulary, context_len: 2048, ..common::ModelSpec::tiny("llama") };
        let path = scratch().join(format!("c-programs-{}.gguf", std::process::id()));
        std::fs::write(&path, common::random_model(&spec)).expect("the model is written");
        path
    })
}

/// One model in I2_S, in each order of codes.
fn layouts() -> &'static [PathBuf] {
    static MODELS: OnceLock<Vec<PathBuf>> = OnceLock::new();
    MODELS.get_or_init(|| {
        let formats = common::Formats::ternary(Format::I2_S);
        let spec = common::ModelSpec { formats, ..common::ModelSpec::tiny("bitnet-b1.58") };
        let bytes = common::random_model(&spec);
        let layouts = [I2sLayout::Block128, I2sLayout::Block64, I2sLayout::Rows4].into_iter();
        let write = |layout| {
            let path = scratch().join(format!("c-programs-{layout:?}-{}.gguf", std::process::id()));
            std::fs::write(&path, common::in_i2s_layout(&bytes, layout)).expect("the model is written");
            path
        };
        layouts.map(write).collect()
    })
}

/// What a program is given.
fn models(program: &str) -> Vec<&'static Path> {
    if program == "layouts" { layouts().iter().map(PathBuf::as_path).collect() } else { vec![model()] }
}

/// A compiler command up to its sources.
fn compiler(name: &str, language: &[&str]) -> Command {
    let mut command = cross::tool(name);
    command.args(language).args(WARNINGS).args(["-O1", "-g", "-D_GNU_SOURCE", "-pthread"]);
    command.arg("-I").arg(root().join("include")).arg("-I").arg(root().join("tests/capi"));
    command
}

#[derive(Clone, Copy, PartialEq)]
enum Link {
    Shared,
    Static,
}

/// Compiles a program of `tests/capi` and returns where it is.
fn compile(program: &str, (tag, name, language): (&str, &str, &[&str]), link: Link, extra: &[&str]) -> PathBuf {
    let kind = if link == Link::Shared { "shared" } else { "static" };
    let out =
        scratch().join(format!("{program}-{tag}-{kind}{}-{}", extra.concat().replace('=', "-"), std::process::id()));
    let mut command = compiler(name, language);
    command.args(extra).arg(root().join("tests/capi").join(program).with_extension("c"));
    command.args(["-x", "none", "-o"]).arg(&out);
    let library = library();
    match link {
        Link::Shared => {
            let folder = library.shared.parent().expect("a folder");
            command.arg(&library.shared).arg(format!("-Wl,-rpath,{}", folder.display()));
        }
        Link::Static => {
            command.arg(&library.archive);
        }
    }
    succeed(command.args(["-lgcc_s", "-lpthread", "-ldl", "-lm", "-lc"]));
    out
}

/// Compiles a program of `c_examples` and runs it with a real model: what it prints.
fn example(name: &str, arguments: &[&str]) -> Output {
    let out = scratch().join(format!("{name}-{}", std::process::id()));
    let mut command = compiler("cc", LANGUAGES[0].2);
    let folder = library().shared.parent().expect("a folder");
    command.arg(root().join("c_examples").join(name).with_extension("c")).args(["-x", "none", "-o"]).arg(&out);
    command.arg(&library().shared).arg(format!("-Wl,-rpath,{}", folder.display()));
    succeed(&mut command);
    let mut command = cross::program(&out);
    let output = succeed(command.arg(root().join("models/edgellm-mini-b1.58.gguf")).args(arguments));
    let _ = std::fs::remove_file(out);
    output
}

/// The README's first command: one example, one real model, and what both are known to say.
#[test]
fn the_example_makes_a_plan_of_a_command() {
    let questions = ["go to the kitchen, then pick up the red cup", "Turn left by 30 degrees and wait two seconds."];
    let output = example("generate", &questions);
    assert_eq!(
        String::from_utf8_lossy(&output.stdout).lines().collect::<Vec<_>>(),
        [
            r#"[{"action":"goto","place":"kitchen"},{"action":"pick","object":"red cup"}]"#,
            r#"[{"action":"rotate","direction":"left","angle":30,"unit":"deg"},{"action":"wait","duration":2,"unit":"s"}]"#,
        ]
    );
}

/// What the model says does not depend on how often it is interrupted.
#[test]
fn the_control_loop_lets_the_model_speak_between_its_periods() {
    let request = "Turn left by 30 degrees and wait two seconds.";
    for mode in ["until", "step"] {
        let output = example("control_loop", &["1", mode, request]);
        let text = String::from_utf8_lossy(&output.stdout);
        let answer = r#"[{"action":"rotate","direction":"left","angle":30,"unit":"deg"},{"action":"wait","duration":2,"unit":"s"}]"#;
        assert!(text.lines().next().is_some_and(|line| line == answer || cross::emulated()), "{mode}: {text}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.starts_with("100 periods, ") && said.contains(" missed, late by us: p50 "), "{mode}: {said}");
    }
    let output = example("control_loop", &["0.1", "none"]);
    assert!(String::from_utf8_lossy(&output.stderr).contains("; 0 tokens, 0 interruptions"), "{output:?}");
}

/// Nothing else than a call can come, whatever is asked.
#[test]
fn the_tools_example_turns_every_request_into_a_call() {
    let output = example("tools", &[]);
    let text = String::from_utf8_lossy(&output.stdout);
    let lines: Vec<_> = text.lines().map(str::trim).collect();
    assert_eq!(lines.len(), 12, "{text}");
    assert_eq!(lines[1..3], [r#"{"action":"goto","place":"kitchen"}"#, "driving to the kitchen"]);
    assert_eq!(lines[5], "turning left by 30 degrees");
    for call in lines.iter().skip(1).step_by(3) {
        assert!(serde_json::from_str::<serde_json::Value>(call).expect("JSON")["action"].is_string(), "{call}");
    }
    assert!(["driving to", "turning ", "stopping"].iter().any(|start| lines[11].starts_with(start)), "{text}");
}

#[test]
fn the_bench_example_says_how_fast_the_model_is() {
    let output = example("bench", &["32", "8", "1"]);
    let text = String::from_utf8_lossy(&output.stdout);
    let first: Vec<_> = text.lines().map(|line| line.split(' ').next().unwrap_or_default()).collect();
    assert_eq!(first, ["model", "load", "prefill", "decode", "KV"], "{text}");
}

fn run_everywhere(program: &str) {
    for language in LANGUAGES {
        if !starts(cross::tool(language.1)) {
            skip(&format!("{program} in C++: {} is not installed", language.1));
            continue;
        }
        for link in [Link::Shared, Link::Static] {
            let path = compile(program, language, link, &[]);
            let mut command = cross::program(&path);
            command.args(models(program)).args(brief(program));
            if program == "fork" && emulator_fails(&mut command) {
                skip("fork: this emulator cannot start threads after a fork (qemu 7.2 cannot, 10.0 can)");
                let _ = std::fs::remove_file(path);
                continue;
            }
            let output = succeed(&mut command);
            assert!(output.stdout.is_empty(), "{program} printed {}", String::from_utf8_lossy(&output.stdout));
            let said = String::from_utf8_lossy(&output.stderr);
            if said.starts_with("SKIPPED") {
                skip(&format!("{program}: {said}"));
            } else {
                assert!(said.is_empty(), "{program}: the library printed {said}");
            }
            let _ = std::fs::remove_file(path);
        }
    }
}

/// What makes the prompts of `threads.c` short, where 1500 tokens would take minutes.
fn brief(program: &str) -> Option<&'static str> {
    (program == "threads" && cross::emulated()).then_some("brief")
}

/// Whether the emulator itself gives up, by an assertion of its own.
fn emulator_fails(command: &mut Command) -> bool {
    cross::emulated()
        && command
            .output()
            .is_ok_and(|output| String::from_utf8_lossy(&output.stderr).contains("cpu_exec: assertion failed"))
}

/// Says on the terminal, past the test harness that hides what a passing test prints, that something was not tested.
fn skip(what: &str) {
    use std::io::Write;
    let _ = writeln!(std::io::stderr(), "SKIPPED: {what}");
}

/// Whether the tool is installed.
fn starts(mut tool: Command) -> bool {
    tool.arg("--version").output().is_ok_and(|output| output.status.success())
}

#[test]
fn api_program_runs() {
    run_everywhere("api");
}

#[test]
fn misuse_is_refused_with_its_status_and_words_and_writes_nothing() {
    run_everywhere("misuse");
}

#[test]
fn layouts_of_i2_s_are_the_same_model_when_they_are_named() {
    run_everywhere("layouts");
}

#[test]
fn threads_program_runs() {
    run_everywhere("threads");
}

#[test]
fn workers_are_where_and_how_they_are_asked_to_be_and_sleep_when_idle() {
    run_everywhere("workers");
}

#[test]
fn plans_of_memory_are_exact_and_a_limit_is_kept() {
    run_everywhere("memory");
}

#[test]
fn no_step_meets_a_page_fault_when_memory_was_touched() {
    if cross::emulated() {
        return skip("faults: an emulator's own page faults are counted, too");
    }
    run_everywhere("faults");
}

#[test]
fn budgets_estimates_and_costs_are_what_they_say() {
    if cross::emulated() {
        return skip("time: an emulator's steps take as long as it happens to");
    }
    run_everywhere("time");
}

#[test]
fn fork_program_runs() {
    run_everywhere("fork");
}

#[test]
fn logits_do_not_depend_on_the_hosts_floating_point_mode() {
    run_everywhere("ftz");
}

#[test]
fn a_step_resumed_at_any_border_gives_the_bits_of_an_unbroken_one() {
    run_everywhere("resume");
}

#[test]
fn a_saved_session_goes_on_in_a_new_process_or_is_refused() {
    run_everywhere("saved");
}

#[test]
fn sessions_fork_score_and_shift() {
    run_everywhere("sequences");
}

#[test]
fn the_rest_of_the_contract_holds() {
    run_everywhere("contract");
}

#[test]
fn steps_ask_for_no_memory_and_write_nothing() {
    run_everywhere("quiet");
}

#[test]
fn grammars_hold_what_is_generated_and_are_refused_with_words() {
    run_everywhere("grammar");
}

#[test]
fn every_program_of_the_folder_has_its_test() {
    let here = std::fs::read_to_string(root().join("tests/c_programs.rs")).expect("this file");
    for entry in std::fs::read_dir(root().join("tests/capi")).expect("tests/capi") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "c") {
            let name = path.file_stem().and_then(|stem| stem.to_str()).expect("a name");
            assert!(here.contains(&format!("run_everywhere(\"{name}\")")), "{name}.c is run by no test");
        }
    }
}

#[test]
fn the_header_compiles_alone_and_its_structs_have_no_padding() {
    let mut languages = LANGUAGES.to_vec();
    languages.extend([("c11", "cc", &["-x", "c", "-std=c11"][..]), ("cxx20", "c++", &["-x", "c++", "-std=c++20"][..])]);
    let source = scratch().join(format!("header-{}.c", std::process::id()));
    std::fs::write(&source, "#include \"edgellm.h\"\n#include \"edgellm.h\"\nint edgellm_test_unit;\n")
        .expect("a source");
    for (_, name, language) in languages {
        if !starts(cross::tool(name)) {
            skip(&format!("the header in C++: {name} is not installed"));
            continue;
        }
        // -ffreestanding: the compiler's own stdint.h, so that 32 bits need no 32-bit libc.
        let bits: &[&[&str]] =
            if cfg!(target_arch = "x86_64") && name == "cc" { &[&[], &["-m32", "-ffreestanding"]] } else { &[&[]] };
        for bits in bits {
            succeed(compiler(name, language).args(*bits).args(["-Wpadded", "-fsyntax-only"]).arg(&source));
        }
    }
    let _ = std::fs::remove_file(source);
}

#[test]
fn programs_are_clean_under_valgrind() {
    if cross::emulated() {
        return skip("valgrind does not run programs of another machine");
    }
    if !starts(Command::new("valgrind")) {
        return skip("valgrind is not installed");
    }
    // Not quiet.c, whose own malloc stands in valgrind's way, not faults.c and time.c, whose pages and times would be
    // valgrind's, and not ftz.c: valgrind has no flush-to-zero.
    for program in [
        "api",
        "misuse",
        "layouts",
        "threads",
        "workers",
        "memory",
        "fork",
        "resume",
        "saved",
        "sequences",
        "grammar",
        "contract",
    ] {
        let path = compile(program, LANGUAGES[0], Link::Shared, &[]);
        let mut valgrind = Command::new("valgrind");
        // The child of a fork cannot free what is its parent's.
        let leaks = if program == "fork" { "--leak-check=no" } else { "--leak-check=full" };
        valgrind.args(["--quiet", leaks, "--errors-for-leak-kinds=definite,indirect"]);
        valgrind.args(["--show-leak-kinds=definite,indirect", "--error-exitcode=9", "--fair-sched=yes"]);
        succeed(valgrind.arg(&path).args(models(program)).args((program == "threads").then_some("brief")));
        let _ = std::fs::remove_file(path);
    }
}

#[test]
fn programs_are_clean_under_address_sanitizer() {
    let flags = ["-fsanitize=address"];
    let probe = scratch().join(format!("asan-{}.c", std::process::id()));
    std::fs::write(&probe, "int main(void) { return 0; }\n").expect("a source");
    let out = probe.with_extension("out");
    let works = |command: &mut Command| command.output().is_ok_and(|output| output.status.success());
    let compiled = works(cross::tool("cc").args(flags).arg(&probe).arg("-o").arg(&out));
    let runs = compiled && works(&mut cross::program(&out));
    let _ = (std::fs::remove_file(probe), std::fs::remove_file(out));
    if !compiled {
        return skip("the compiler has no AddressSanitizer");
    }
    if !runs {
        assert!(cross::emulated(), "a program with AddressSanitizer does not run");
        return skip("AddressSanitizer does not run under this emulator");
    }
    // Not quiet.c, whose own malloc is in the way, and not faults.c: the sanitizer has pages of its own.
    let programs = [
        "api",
        "misuse",
        "layouts",
        "threads",
        "workers",
        "memory",
        "time",
        "fork",
        "ftz",
        "resume",
        "saved",
        "sequences",
        "grammar",
        "contract",
    ];
    for program in programs {
        let path = compile(program, LANGUAGES[0], Link::Shared, &flags);
        // Leaks are valgrind's; LeakSanitizer does not work where ptrace is not allowed.
        succeed(cross::program(&path).args(models(program)).args(brief(program)).env("ASAN_OPTIONS", "detect_leaks=0"));
        let _ = std::fs::remove_file(path);
    }
}
