//! The command line program, run as its users run it, on small models with random weights.
#![cfg(feature = "cli")]

mod common;

use common::{Formats, ModelSpec, TempDir, Vocabulary, in_i2s_layout, random_model};
use edgellm::I2sLayout;
use edgellm::quant::Format;
use serde_json::Value;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

fn command() -> Command {
    let mut command = common::cross::program(env!("CARGO_BIN_EXE_edgellm"));
    command.env_remove("LIBEDGELLM_LOG").stdin(Stdio::null());
    command
}

fn edgellm(args: &[&str]) -> Output {
    command().args(args).output().unwrap()
}

/// The same with something to read on stdin.
fn edgellm_reading(input: &[u8], args: &[&str]) -> Output {
    let mut child =
        command().args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input).unwrap();
    child.wait_with_output().unwrap()
}

/// What the program wrote, given that it succeeded without complaint.
#[track_caller]
fn stdout(output: Output) -> String {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && stderr.is_empty(), "{} {stderr}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// The one line of JSON that it wrote.
#[track_caller]
fn json(output: Output) -> Value {
    let text = stdout(output);
    assert!(text.ends_with('\n') && text.lines().count() == 1, "{text:?}");
    serde_json::from_str(&text).unwrap()
}

/// What it complained about, given that it failed as it should: one line, exit code 1, nothing on stdout.
#[track_caller]
fn complaint(output: Output) -> String {
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{stderr}");
    assert!(output.stdout.is_empty(), "{:?}", String::from_utf8_lossy(&output.stdout));
    assert!(stderr.starts_with("edgellm: ") && stderr.lines().count() == 1, "{stderr:?}");
    stderr
}

fn keys(object: &Value) -> Vec<&str> {
    object.as_object().unwrap().keys().map(String::as_str).collect()
}

/// Arguments, and more of them.
fn with<'a>(args: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [args, more].concat()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A token of the models here, and what a careless program would take for one.
const SPECIAL: &str = "<|im_end|>";

fn spec() -> ModelSpec {
    ModelSpec { vocabulary: Vocabulary::Gpt2 { pre: "smollm" }, context_len: 8192, ..ModelSpec::tiny("llama") }
}

/// A small model that can be prompted, and the folder that goes when the test is done.
fn model() -> (TempDir, PathBuf) {
    let folder = TempDir::new();
    let path = folder.file("model.gguf", &random_model(&spec()));
    (folder, path)
}

#[test]
fn wrong_usage_is_exit_code_2_with_nothing_on_stdout() {
    let cases: [&[&str]; 10] = [
        &[],
        &["fly"],
        &["run"],
        &["run", "m.gguf"],
        &["run", "m.gguf", "--prompt", "a", "--file", "b"],
        &["run", "m.gguf", "--prompt", "a", "-n", "-1"],
        &["run", "m.gguf", "--prompt", "a", "--system", "b"],
        &["tokenize", "m.gguf"],
        &["bench", "m.gguf", "--gen-tokens", "0"],
        &["info", "m.gguf", "--i2s-layout", "arm"],
    ];
    for args in cases {
        let output = edgellm(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty() && !output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn help_and_version_are_answers() {
    for args in [["--help"].as_slice(), &["run", "--help"], &["bench", "-h"], &["--version"]] {
        assert!(stdout(edgellm(args)).contains("edgellm"), "{args:?}");
    }
    assert_eq!(stdout(edgellm(&["--version"])), format!("edgellm {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn a_file_that_is_no_model_is_a_complaint_of_every_command() {
    let folder = TempDir::new();
    let whole = random_model(&spec());
    let models = [
        folder.path().join("missing.gguf"),
        folder.path().to_owned(),
        folder.file("empty.gguf", b""),
        folder.file("noise.gguf", &[0xa5; 5000]),
        folder.file("cut.gguf", &whole[..whole.len() / 2]),
    ];
    for model in models {
        for rest in [["run", "--prompt=a"].as_slice(), &["chat"], &["info"], &["tokenize", "--text=a"], &["bench"]] {
            let output = edgellm(&with(&[rest[0], text(&model)], &rest[1..]));
            let message = complaint(output);
            assert!(message.len() > "edgellm: \n".len() + 10, "{rest:?} {message}");
        }
    }
}

#[test]
fn token_ids_are_one_object_and_the_same_for_every_run() {
    let (_folder, model) = model();
    let args = ["run", text(&model), "--prompt", "abc", "-n", "12", "--token-ids"];
    let first = json(edgellm(&args));
    assert_eq!(keys(&first), ["prompt_ids", "ids", "text"]);
    let ids = first["ids"].as_array().unwrap();
    assert!(!first["prompt_ids"].as_array().unwrap().is_empty());
    assert!((1..=12).contains(&ids.len()) && ids.iter().all(Value::is_u64), "{first}");
    for more in [["--threads=1"].as_slice(), &["--threads=3"], &["--isa=scalar"], &["--temperature=0"], &["--seed=7"]] {
        assert_eq!(json(edgellm(&with(&args, more))), first, "{more:?}");
    }
    let hot = with(&args, &["--temperature=5", "--seed=7"]);
    assert_eq!(json(edgellm(&hot)), json(edgellm(&hot)));
    assert_ne!(json(edgellm(&hot))["ids"], first["ids"]);
}

#[test]
fn a_layout_of_i2_s_that_is_named_is_read() {
    let formats = Formats::ternary(Format::I2_S);
    let vocabulary = Vocabulary::Gpt2 { pre: "smollm" };
    let bytes = random_model(&ModelSpec { formats, vocabulary, ..ModelSpec::tiny("bitnet-b1.58") });
    let folder = TempDir::new();
    let run = |model: &Path, more: &[&str]| {
        let args = ["run", text(model), "--prompt=abc", "-n12", "--ignore-eos", "--token-ids"];
        json(edgellm(&with(&args, more)))
    };
    let model = folder.file("block128.gguf", &bytes);
    let expected = run(&model, &[]);
    assert_eq!(run(&model, &["--i2s-layout=block128"]), expected);
    for (name, layout) in [("block64", I2sLayout::Block64), ("rows4", I2sLayout::Rows4)] {
        let model = folder.file(name, &in_i2s_layout(&bytes, layout));
        assert_eq!(run(&model, &["--i2s-layout", name]), expected, "{name}");
        assert_ne!(run(&model, &[]), expected, "{name}, not named");
    }
}

#[test]
fn streamed_text_is_the_text_of_the_object() {
    let (_folder, model) = model();
    let args = ["run", text(&model), "--prompt", "abc", "-n", "20"];
    let object = json(edgellm(&with(&args, &["--token-ids"])));
    assert_eq!(stdout(edgellm(&args)), format!("{}\n", object["text"].as_str().unwrap()));
}

#[test]
fn a_prompt_comes_from_the_line_a_file_or_stdin() {
    let (folder, model) = model();
    let args = ["run", text(&model), "-n4", "--token-ids"];
    let expected = json(edgellm(&with(&args, &["--prompt", "-a b\n"])));
    let path = folder.file("prompt.txt", b"-a b\n\n"); // One newline is the editor's.
    assert_eq!(json(edgellm(&with(&args, &["-f", text(&path)]))), expected);
    assert_eq!(json(edgellm_reading(b"-a b\n\n", &with(&args, &["-f", "-"]))), expected);
    assert!(complaint(edgellm(&with(&args, &["-f", "no/such/file"]))).contains("no/such/file"));
    assert!(complaint(edgellm_reading(b"\xff\xfe", &with(&args, &["-f", "-"]))).contains("stdin"));
}

#[test]
fn settings_out_of_range_are_complaints() {
    let (_folder, model) = model();
    for setting in ["--temperature=-1", "--temperature=NaN", "--top-p=2", "--isa=z80", "--ctx=1"] {
        complaint(edgellm(&["run", text(&model), "--prompt", "abcdefgh", "-n", "2", setting]));
    }
}

#[test]
fn tokenize_is_an_array_and_special_tokens_are_text_unless_asked_for() {
    let (_folder, model) = model();
    let tokenize = |more: &[&str]| json(edgellm(&with(&["tokenize", text(&model)], more)));
    let ids = tokenize(&["--text", "abc"]);
    assert!(ids.as_array().is_some_and(|ids| !ids.is_empty() && ids.iter().all(Value::is_u64)), "{ids}");
    assert_eq!(tokenize(&["--text", ""]), Value::Array(Vec::new()));
    let special = ["--text", SPECIAL];
    assert!(tokenize(&special).as_array().unwrap().len() > 1);
    assert_eq!(tokenize(&with(&special, &["--special"])).as_array().unwrap().len(), 1);
}

#[test]
fn info_says_the_same_to_people_and_to_programs() {
    let (_folder, model) = model();
    let object = json(edgellm(&["info", text(&model), "--json"]));
    let people = stdout(edgellm(&["info", text(&model)]));
    for key in ["architecture", "quant", "parameters", "context_len_max", "layers", "vocab_len", "isa", "threads"] {
        let value = &object[key];
        assert!(!value.is_null(), "{key} {object}");
        let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let line = people.lines().find(|line| line.split_whitespace().next() == Some(key));
        assert!(line.is_some_and(|line| line.ends_with(&value)), "{key} {value} {people}");
    }
    let tensors = object["tensors"].as_object().unwrap();
    let sum = |key: &str| tensors.values().map(|format| format[key].as_u64().unwrap()).sum::<u64>();
    assert!(sum("tensors") > 0);
    assert!((1..std::fs::metadata(&model).unwrap().len()).contains(&sum("bytes")), "{object}");
}

#[test]
fn the_environment_may_force_a_kernel_table() {
    let (_folder, model) = model();
    let info = |table: &str| {
        let mut command = command();
        command.env("LIBEDGELLM_FORCE_ISA", table).args(["info", text(&model), "--json"]);
        command.output().expect("the program starts")
    };
    assert_eq!(json(info("scalar"))["isa"], "scalar");
    assert!(complaint(info("mmx")).contains("mmx"));
}

#[test]
fn bench_reports_every_figure_as_a_number() {
    let (_folder, model) = model();
    let args = ["bench", text(&model), "--threads=2", "--prompt-tokens=9", "--gen-tokens=3", "--repeat=2"];
    let report = json(edgellm(&with(&args, &["--json"])));
    for key in [
        "prefill_tokens_per_s",
        "decode_tokens_per_s",
        "weights_bytes_per_token",
        "decode_gb_per_s",
        "read_gb_per_s",
        "load_ms",
        "load_to_first_token_ms",
        "first_token_ms",
    ] {
        assert!(report[key].as_f64().is_some_and(|value| value > 0.0), "{key} {report}");
    }
    if cfg!(target_os = "linux") {
        assert!(report["memory_peak_bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{report}");
    }
    assert_eq!([&report["threads"], &report["prompt_tokens"], &report["gen_tokens"]], [2, 9, 3]);
    assert!(stdout(edgellm(&args)).contains("tokens/s"));
}

#[test]
fn a_model_without_vocabulary_is_benched_and_described_but_not_prompted() {
    let folder = TempDir::new();
    let model = folder.file("model.gguf", &random_model(&ModelSpec { vocabulary: Vocabulary::None, ..spec() }));
    let bench = ["bench", text(&model), "--prompt-tokens=5", "--gen-tokens=2", "--repeat=1", "--json"];
    assert!(json(edgellm(&bench))["decode_tokens_per_s"].as_f64().unwrap() > 0.0);
    assert!(json(edgellm(&["info", text(&model), "--json"]))["tokenizer"].is_null());
    for rest in [["run", "--prompt=a"].as_slice(), &["chat"], &["tokenize", "--text=a"]] {
        let message = complaint(edgellm(&with(&[rest[0], text(&model)], &rest[1..])));
        assert!(message.contains("vocabulary"), "{message}");
    }
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let (_folder, model) = model();
    for rest in [["run", "--prompt=abc", "-n200"].as_slice(), &["info"], &["tokenize", "--text=a"]] {
        let mut child = command();
        child.arg(rest[0]).arg(&model).args(&rest[1..]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = child.spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{rest:?} {}", output.status);
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{rest:?}");
    }
}

#[test]
fn a_full_disk_is_a_complaint() {
    let (_folder, model) = model();
    let Ok(full) = std::fs::OpenOptions::new().write(true).open("/dev/full") else { return };
    let output = command().arg("info").arg(&model).stdout(full).output().unwrap();
    assert!(complaint(output).contains("stdout"));
}

#[test]
fn a_chat_from_a_pipe_answers_each_line_until_exit_or_the_end() {
    let (_folder, model) = model();
    let args = ["chat", text(&model), "-n6", "--temperature=0"];
    let once = stdout(edgellm_reading(b"hello\n/exit\nnever\n", &args));
    assert!(!once.is_empty() && once.ends_with('\n'), "{once:?}");
    assert_eq!(stdout(edgellm_reading(b"hello", &args)), once, "the last line needs no end");
    assert_eq!(
        stdout(edgellm_reading(b"hello\n\n/clear\nhello\n", &args)),
        once.repeat(2),
        "cleared, so the same again"
    );
    assert_ne!(stdout(edgellm_reading(b"hello\nhello\n", &args)), once.repeat(2), "the second answer saw the first");
    let with_system = with(&args, &["--system=be short"]);
    assert_ne!(stdout(edgellm_reading(b"hello\n", &with_system)), once);
    assert_eq!(stdout(edgellm_reading(b"", &args)), "");
}

#[test]
fn one_answer_of_a_chat_is_the_answer_of_run() {
    let (_folder, model) = model();
    let run = edgellm(&["run", text(&model), "--chat", "--system=s", "--prompt=hello", "-n6"]);
    let chat = edgellm_reading(b"hello\n", &["chat", text(&model), "--system=s", "-n6", "--temperature=0"]);
    assert_eq!(stdout(run), stdout(chat));
}

#[test]
#[cfg(target_os = "linux")]
fn ctrl_c_stops_the_answer_and_not_the_program() {
    let (_folder, model) = model();
    let mut chat = command();
    chat.args(["chat", text(&model), "--temperature=3", "--ignore-eos", "--ctx=8192", "--threads=1"]);
    let mut child = chat.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = child.stdout.take().unwrap();
    // A pipe that holds one page: the program waits inside its answer when it is full.
    // SAFETY: the descriptor is open; the call takes and gives integers.
    let capacity = unsafe { libc::fcntl(stdout.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) };
    assert_eq!(capacity, 4096);
    stdin.write_all(b"hello\n").unwrap();
    let started = Instant::now();
    let mut waiting: libc::c_int = 0;
    while waiting < 4096 - 64 {
        let patience = Duration::from_secs(if common::cross::emulated() { 600 } else { 120 });
        assert!(started.elapsed() < patience, "only {waiting} bytes of answer");
        std::thread::sleep(Duration::from_millis(10));
        // SAFETY: the descriptor is open and `waiting` is the int that FIONREAD writes.
        assert_eq!(unsafe { libc::ioctl(stdout.as_raw_fd(), libc::FIONREAD, &mut waiting) }, 0);
    }
    // SAFETY: the child is ours and not waited for yet, so the id is still its own.
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) }, 0);
    stdin.write_all(b"/clear\n/exit\n").unwrap();
    let mut answer = Vec::new();
    stdout.read_to_end(&mut answer).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", output.status);
    assert!(answer.len() < 3 * 4096, "{} bytes: the answer went on", answer.len());
}
