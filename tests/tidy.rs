//! Rules that matter are tests: layers, lengths, words that a library must not say, proofs beside `unsafe`, documents
//! that name what exists. Each rule is a function from text to complaints, and has a case that must fail.

#[path = "tidy/source.rs"]
mod source;

use source::{block_end, code, identifier, line_of, without_tests, words};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Bottom up: each module uses only itself and those before it. `src/lib.rs` shows the same map.
const LAYERS: [&str; 14] = [
    "error",
    "tensor",
    "cuda",
    "quant",
    "file",
    "tokenizer",
    "cpu",
    "grammar",
    "backend",
    "model",
    "sampler",
    "session",
    "capi",
    "convert",
];
/// 500 is the aim.
const FILE_LINES_MAX: usize = 700;
/// 70 is the aim.
const FUNCTION_LINES_MAX: usize = 100;
/// What a library must not do to its host, and what is not finished.
const BANNED: [&str; 9] =
    ["println!", "eprintln!", "print!", "eprint!", "dbg!", "process::exit", "static mut", "todo!", "unimplemented!"];

// ---- layers ----

/// Names that `src/lib.rs` re-exports, and the module that each comes from.
fn reexports(lib: &str) -> BTreeMap<String, String> {
    let code = code(lib);
    let mut map = BTreeMap::new();
    for at in words(&code, "pub use") {
        let item = code[at + "pub use".len()..].split(';').next().unwrap_or_default().trim();
        let item = item.strip_prefix("crate::").unwrap_or(item);
        let module = identifier(item);
        let names = item[module.len()..].trim_start_matches("::");
        for name in first_names(names) {
            map.insert(name.to_owned(), module.to_owned());
        }
    }
    map
}

/// The first name of each branch of a use tree: `a` of `a::b`, `a` and `c` of `{a::b, c::{d, e}}`.
fn first_names(tree: &str) -> Vec<&str> {
    let Some(group) = tree.strip_prefix('{') else {
        return [identifier(tree)].into_iter().filter(|name| !name.is_empty()).collect();
    };
    let (mut names, mut depth, mut fresh) = (Vec::new(), 0, true);
    for (at, char) in group.char_indices() {
        match char {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' => fresh |= depth == 0,
            char if fresh && !char.is_whitespace() => {
                names.push(identifier(&group[at..]));
                fresh = false;
            }
            _ => {}
        }
    }
    names.retain(|name| !name.is_empty());
    names
}

/// Uses of higher layers in the file at `path` (relative to `src`).
fn layer_complaints(path: &str, text: &str, reexports: &BTreeMap<String, String>) -> Vec<String> {
    let parts: Vec<&str> = path.trim_end_matches(".rs").split('/').filter(|part| *part != "mod").collect();
    let module = parts[0];
    let layer = |module: &str| LAYERS.iter().position(|name| *name == module);
    let Some(own) = layer(module) else { return vec![format!("{path}: `{module}` is in no layer")] };
    let code = without_tests(&code(text));
    let up = "super::".repeat(parts.len()); // From a file this deep, this is `crate::`.
    let mut complaints = Vec::new();
    for root in ["crate::", &up] {
        for at in words(&code, root) {
            if root == up && code[..at].ends_with("super::") {
                continue;
            }
            for name in first_names(&code[at + root.len()..]) {
                let used = reexports.get(name).map_or(name, String::as_str);
                let line = line_of(&code, at);
                match layer(used) {
                    None => complaints.push(format!("{path}:{line}: `{name}` is in no layer")),
                    Some(used) if used <= own => {}
                    Some(_) => complaints.push(format!("{path}:{line}: `{module}` may not use `{used}` ({name})")),
                }
            }
        }
    }
    complaints
}

// ---- lengths and words ----

fn length_complaints(path: &str, text: &str) -> Vec<String> {
    let lines = text.lines().count();
    let mut complaints = Vec::new();
    if lines > FILE_LINES_MAX {
        complaints.push(format!("{path}: {lines} lines, at most {FILE_LINES_MAX}"));
    }
    let code = without_tests(&code(text));
    for at in words(&code, "fn") {
        let rest = &code[at..];
        let name = identifier(rest["fn".len()..].trim_start());
        let Some(open) = rest.find(['{', ';']) else { continue };
        if name.is_empty() || rest.as_bytes()[open] == b';' {
            continue; // A pointer's type, or a declaration.
        }
        let lines = rest[..block_end(rest, open)].lines().count();
        if lines > FUNCTION_LINES_MAX {
            let line = line_of(&code, at);
            complaints.push(format!("{path}:{line}: `{name}` has {lines} lines, at most {FUNCTION_LINES_MAX}"));
        }
    }
    complaints
}

fn banned_complaints(path: &str, text: &str) -> Vec<String> {
    let code = without_tests(&code(text));
    let found = BANNED.iter().flat_map(|word| {
        let alone = words(&code, word).into_iter().filter(|at| !code[..*at].ends_with('\'')); // `&'static mut`
        alone.map(|at| format!("{path}:{}: `{word}`", line_of(&code, at))).collect::<Vec<_>>()
    });
    found.collect()
}

/// `unsafe` without its proof: a comment with SAFETY, or a `# Safety` section, on the same line or right above. The
/// proof of an exported function is what the header asks of its callers: there it is enough that it is documented.
fn unsafe_complaints(path: &str, text: &str) -> Vec<String> {
    let code = code(text);
    let lines: Vec<&str> = text.lines().collect();
    let proof = |line: &str| line.contains("SAFETY") || line.contains("# Safety");
    let beside = |line: &&&str| ["//", "#[", "#!["].iter().any(|start| line.trim_start().starts_with(start));
    let mut complaints = Vec::new();
    for at in words(&code, "unsafe") {
        let rest = code[at + "unsafe".len()..].trim_start();
        let function = rest.strip_prefix("extern").map_or(rest, str::trim_start).strip_prefix("fn");
        let name = function.map(|rest| identifier(rest.trim_start()));
        if rest.starts_with('(') || name == Some("") {
            continue; // `#[unsafe(no_mangle)]`, or the type of an unsafe function: nothing is done there.
        }
        if name.is_some() && in_trait_impl(&code, at) {
            continue; // The trait says what its callers must hold.
        }
        let index = line_of(&code, at) - 1;
        // The statement may have begun up to three lines before; above it stand attributes and comments.
        let near = lines[index.saturating_sub(3)..=index].iter().any(|line| proof(line));
        let above: Vec<&str> = lines[..index].iter().rev().take_while(beside).copied().collect();
        let exported = name.is_some_and(|name| name.starts_with("edgellm_"));
        let documented = exported && above.iter().any(|line| line.trim_start().starts_with("///"));
        if !near && !documented && !above.iter().any(|line| proof(line)) {
            complaints.push(format!("{path}:{}: `unsafe` without SAFETY", index + 1));
        }
    }
    complaints
}

fn in_trait_impl(code: &str, at: usize) -> bool {
    words(&code[..at], "impl").into_iter().any(|start| {
        let open = code[start..].find('{').map_or(code.len(), |open| start + open);
        open < at && at < block_end(code, open) && !words(&code[start..open], "for").is_empty()
    })
}

/// Exported functions whose body is not all inside the panic guard.
fn unguarded(path: &str, text: &str) -> Vec<String> {
    let code = without_tests(&code(text));
    let mut complaints = Vec::new();
    for at in words(&code, "fn") {
        let rest = &code[at + "fn".len()..];
        let name = identifier(rest.trim_start());
        let exported = code[..at].trim_end().ends_with("extern") && name.starts_with("edgellm_");
        let body = rest.find('{').map(|open| rest[open + 1..].trim_start()).unwrap_or_default();
        if exported && !body.starts_with("guard") {
            complaints.push(format!("{path}:{}: `{name}` is not in `guard`", line_of(&code, at)));
        }
    }
    complaints
}

// ---- text ----

fn whitespace_complaints(path: &str, text: &str) -> Vec<String> {
    let makefile = path.ends_with("Makefile") || path.ends_with(".mk");
    let mut complaints = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.ends_with([' ', '\t', '\r']) {
            complaints.push(format!("{path}:{}: white space at the end", index + 1));
        }
        if line.contains('\t') && !makefile {
            complaints.push(format!("{path}:{}: a tab", index + 1));
        }
    }
    if !text.is_empty() && !text.ends_with('\n') {
        complaints.push(format!("{path}: no newline at the end"));
    }
    complaints
}

/// Names that begin like a function's and are none: the packages of `ros2/`.
const PACKAGES: [&str; 2] = ["edgellm_msgs", "edgellm_ros"];

/// `edgellm_…` words of a document that the header does not have.
fn unknown_names(path: &str, text: &str, header: &str) -> Vec<String> {
    let names = |text: &str| -> BTreeSet<String> {
        let starts = text.match_indices("edgellm_").map(|(at, _)| at);
        let alone = starts.filter(|at| !text[..*at].ends_with(|char: char| char.is_alphanumeric() || char == '_'));
        alone.map(|at| identifier(&text[at..]).to_owned()).filter(|name| name != "edgellm_").collect()
    };
    let mut known = names(header);
    known.extend(PACKAGES.map(str::to_owned));
    names(text).difference(&known).map(|name| format!("{path}: `{name}` is not in include/edgellm.h")).collect()
}

/// Relative links of a Markdown document that lead nowhere.
fn dead_links(path: &str, text: &str, exists: impl Fn(&str) -> bool) -> Vec<String> {
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next());
    let local = targets.filter(|target| !target.is_empty() && !target.contains("://"));
    local.filter(|target| !exists(target)).map(|target| format!("{path}: no file `{target}`")).collect()
}

/// Kernel tables (`name: "…"`) whose name is neither `scalar` nor `{arch}-{isa}`.
fn table_names(path: &str, text: &str) -> Vec<String> {
    let names = text.split("name: \"").skip(1).filter_map(|rest| rest.split('"').next());
    let plain = |word: &str| {
        !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_')
    };
    let good = |name: &str| match name.split_once('-') {
        Some((arch, isa)) => ["x86_64", "aarch64"].contains(&arch) && plain(isa),
        None => name == "scalar",
    };
    names.filter(|name| !good(name)).map(|name| format!("{path}: kernel table `{name}`")).collect()
}

// ---- the tree ----

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file of ours under `folder` for which `wanted`, by its path from the root.
fn files(folder: &str, wanted: impl Fn(&str) -> bool) -> Vec<(String, String)> {
    let mut folders = vec![PathBuf::from(folder)];
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(root().join(&folder)) else { continue };
        for entry in entries {
            let entry = entry.unwrap();
            let name = entry.file_name().into_string().unwrap();
            let path = folder.join(&name);
            let text_path = path.to_str().unwrap().trim_start_matches("./").to_owned();
            let built = ["target", "build", "__pycache__", ".git", "venv", "data"].contains(&name.as_str());
            match entry.file_type().unwrap() {
                kind if kind.is_dir() && !built => folders.push(path),
                kind if kind.is_file() && wanted(&text_path) => {
                    found.push((text_path, fs::read_to_string(root().join(&path)).unwrap()));
                }
                _ => {}
            }
        }
    }
    found.sort();
    found
}

fn library() -> Vec<(String, String)> {
    let files = files("src", |path| path.ends_with(".rs") && !path.starts_with("src/bin/"));
    assert!(files.len() > LAYERS.len(), "the walk found {} files only", files.len());
    files
}

fn rust() -> Vec<(String, String)> {
    files(".", |path| path.ends_with(".rs"))
}

fn documents() -> Vec<(String, String)> {
    let files = files(".", |path| path.ends_with(".md"));
    assert!(files.iter().any(|(path, _)| path == "README.md"));
    files
}

#[track_caller]
fn none(complaints: impl Iterator<Item = String>) {
    let complaints: Vec<String> = complaints.collect();
    assert!(complaints.is_empty(), "\n{}", complaints.join("\n"));
}

#[test]
fn each_layer_uses_only_those_below_it() {
    let reexports = reexports(&fs::read_to_string(root().join("src/lib.rs")).unwrap());
    assert_eq!(reexports.get("Error").map(String::as_str), Some("error"));
    let modules = library().into_iter().filter(|(path, _)| path != "src/lib.rs");
    none(modules.flat_map(|(path, text)| layer_complaints(path.strip_prefix("src/").unwrap(), &text, &reexports)));
}

#[test]
fn files_and_functions_are_short() {
    none(rust().iter().flat_map(|(path, text)| length_complaints(path, text)));
}

#[test]
fn the_library_is_silent_and_finished() {
    none(library().iter().flat_map(|(path, text)| banned_complaints(path, text)));
}

#[test]
fn every_unsafe_has_its_proof_beside_it() {
    none(rust().iter().flat_map(|(path, text)| unsafe_complaints(path, text)));
}

#[test]
fn every_exported_function_runs_in_the_panic_guard() {
    let files: Vec<_> = library().into_iter().filter(|(path, _)| path.starts_with("src/capi/")).collect();
    assert!(files.iter().any(|(_, text)| text.contains("fn edgellm_step(")), "the functions are elsewhere");
    none(files.iter().flat_map(|(path, text)| unguarded(path, text)));
}

#[test]
fn text_has_no_tabs_and_no_trailing_spaces() {
    let ends = [".rs", ".toml", ".md", ".py", ".sh", ".c", ".h", ".cpp", "Makefile", ".ci/run"];
    let files = files(".", |path| ends.iter().any(|end| path.ends_with(end)));
    none(files.iter().flat_map(|(path, text)| whitespace_complaints(path, text)));
}

#[test]
fn documents_name_only_functions_of_the_header_and_link_only_to_files() {
    let header = fs::read_to_string(root().join("include/edgellm.h")).unwrap();
    none(documents().iter().flat_map(|(path, text)| {
        let folder = root().join(path).parent().unwrap().to_owned();
        let mut complaints = unknown_names(path, text, &header);
        complaints.extend(dead_links(path, text, |target| folder.join(target).exists()));
        complaints
    }));
}

#[test]
fn the_readme_and_the_gate_run_the_same_tests() {
    let command = "cargo test --release --features cli";
    for path in ["README.md", ".ci/run"] {
        assert!(fs::read_to_string(root().join(path)).unwrap().contains(command), "{path} has no `{command}`");
    }
}

#[test]
fn the_readme_example_compiles() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    let example = readme.split("```c\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let mut compiler = Command::new("cc");
    compiler.args(["-std=c99", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-xc", "-Iinclude", "-"]);
    let mut compiler = compiler.current_dir(root()).stdin(Stdio::piped()).spawn().unwrap();
    compiler.stdin.take().unwrap().write_all(example.as_bytes()).unwrap();
    assert!(compiler.wait().unwrap().success());
}

#[test]
fn kernel_tables_are_named_arch_isa() {
    none(
        library()
            .iter()
            .filter(|(path, _)| path.starts_with("src/cpu/"))
            .flat_map(|(path, text)| table_names(path, text)),
    );
}

// ---- the rules themselves, with what must fail ----

#[test]
fn layers_are_found_in_every_way_of_naming_them() {
    let reexports = reexports("pub use error::{Error, Result};\npub use model::Model;");
    let complaints = |path: &str, text: &str| layer_complaints(path, text, &reexports).len();
    assert_eq!(complaints("quant/q8_0.rs", "use crate::{Error, tensor::Buffer};\nuse super::Format;"), 0);
    assert_eq!(complaints("quant/mod.rs", "use crate::model::forward;"), 1);
    assert_eq!(complaints("quant/mod.rs", "use crate::{Error, Model};"), 1);
    assert_eq!(complaints("quant/mod.rs", "use crate::{\n    error::{A, B},\n    cpu::{C, D},\n};"), 1);
    assert_eq!(complaints("quant/mod.rs", "fn f() { crate::session::g() }"), 1);
    assert_eq!(complaints("quant/mod.rs", "use super::model;"), 1);
    assert_eq!(complaints("cpu/x86_64/avx2.rs", "use super::super::super::model;\nuse super::super::scalar;"), 1);
    assert_eq!(complaints("quant/mod.rs", "// use crate::model;\nlet text = \"crate::model\";"), 0);
    assert_eq!(complaints("quant/mod.rs", "#[cfg(test)]\nmod tests { use crate::model; }"), 0);
    assert_eq!(complaints("quant/mod.rs", "use crate::nowhere;"), 1);
    assert_eq!(complaints("helpers.rs", ""), 1);
}

#[test]
fn long_files_and_functions_are_found() {
    assert_eq!(length_complaints("a.rs", &"\n".repeat(FILE_LINES_MAX)).len(), 0);
    assert_eq!(length_complaints("a.rs", &"\n".repeat(FILE_LINES_MAX + 1)).len(), 1);
    let function = |lines: usize| format!("fn f(g: fn()) -> u8 {{{}}}", "\n".repeat(lines - 1));
    assert_eq!(length_complaints("a.rs", &function(FUNCTION_LINES_MAX)).len(), 0);
    assert_eq!(length_complaints("a.rs", &function(FUNCTION_LINES_MAX + 1)).len(), 1);
}

#[test]
fn banned_words_are_found_in_code_only() {
    for word in BANNED {
        assert_eq!(banned_complaints("a.rs", &format!("fn f() {{ {word}(x); }}")).len(), 1, "{word}");
        assert_eq!(banned_complaints("a.rs", &format!("// {word}\nlet x = \"{word}\";")).len(), 0, "{word}");
    }
    assert_eq!(banned_complaints("a.rs", "fn f(x: &'static mut u8) { my_print!(x) }").len(), 0);
}

#[test]
fn unsafe_without_proof_is_found() {
    let complaints = |text: &str| unsafe_complaints("a.rs", text).len();
    assert_eq!(complaints("fn f() {\n    unsafe { g() }\n}"), 1);
    assert_eq!(complaints("unsafe impl Send for T {}"), 1);
    assert_eq!(complaints("pub unsafe fn f(x: *const u8) {}"), 1);
    assert_eq!(complaints("pub unsafe extern \"C\" fn f(x: *const u8) {}"), 1);
    assert_eq!(complaints("#[unsafe(no_mangle)]\npub unsafe extern \"C\" fn edgellm_f(x: *const u8) {}"), 1);
    assert_eq!(complaints("/// Reads x.\n#[unsafe(no_mangle)]\npub unsafe extern \"C\" fn edgellm_f() {}"), 0);
    assert_eq!(complaints("// SAFETY: a proof\n\n\n\n\n\nfn f() { unsafe { g() } }"), 1);
    assert_eq!(complaints("impl T {\n    unsafe fn f() {}\n}"), 1);
    assert_eq!(complaints("impl U for T {\n    unsafe fn f() {}\n}"), 0);
    assert_eq!(complaints("impl U for T {\n    fn f() { unsafe { g() } }\n}"), 1);
    assert_eq!(complaints("// SAFETY: a proof\nunsafe impl Send for T {}"), 0);
    assert_eq!(complaints("// SAFETY: a proof\nlet x =\n    unsafe { g() };"), 0);
    assert_eq!(complaints("/// # Safety\n/// One\n/// two\n/// three\n/// four.\n#[inline]\npub unsafe fn f() {}"), 0);
    assert_eq!(complaints("struct T { f: unsafe fn(u8), g: unsafe extern \"C\" fn(u8) }"), 0);
    assert_eq!(complaints("#[unsafe(no_mangle)]\n// an unsafe word\nfn f() {}"), 0);
}

#[test]
fn exported_functions_outside_the_guard_are_found() {
    let function = |head: &str, body: &str| unguarded("a.rs", &format!("pub {head}() -> u8 {{ {body} }}")).len();
    assert_eq!(function("extern \"C\" fn edgellm_f", "guard(0, || 1)"), 0);
    assert_eq!(function("unsafe extern \"C\" fn edgellm_f", "guard_status(|| 1)"), 0);
    assert_eq!(function("extern \"C\" fn edgellm_f", "1"), 1);
    assert_eq!(function("unsafe extern \"C\" fn edgellm_f", "let x = 1; guard(0, || x)"), 1);
    assert_eq!(function("fn edgellm_f", "1"), 0);
    assert_eq!(function("extern \"C\" fn on_signal", "1"), 0);
}

#[test]
fn stray_white_space_is_found() {
    assert_eq!(whitespace_complaints("a.rs", "fn f() {}\n").len(), 0);
    for text in ["a \n", "a\t\n", "\ta\n", "a\r\n\r", "a"] {
        assert!(!whitespace_complaints("a.rs", text).is_empty(), "{text:?}");
    }
    assert_eq!(whitespace_complaints("c/Makefile", "all:\n\tcc\n").len(), 0);
}

#[test]
fn names_and_links_that_lead_nowhere_are_found() {
    let header = "edgellm_status edgellm_load(void);";
    assert_eq!(unknown_names("a.md", "`edgellm_load` and edgellm_* and libedgellm_x", header).len(), 0);
    assert_eq!(unknown_names("a.md", "`edgellm_lo`, edgellm_loads()", header).len(), 2);
    let exists = |target: &str| target == "a.md";
    assert_eq!(dead_links("b.md", "[a](a.md) [b](a.md#part) [c](https://x.org/y) [d](#here)", exists).len(), 0);
    assert_eq!(dead_links("b.md", "[a](c.md)", exists).len(), 1);
}

#[test]
fn odd_kernel_tables_are_found() {
    let table = |name: &str| table_names("a.rs", &format!("Kernels {{ name: \"{name}\", ..SCALAR }}")).len();
    for name in ["scalar", "x86_64-avx2", "x86_64-avx512_vnni", "aarch64-i8mm"] {
        assert_eq!(table(name), 0, "{name}");
    }
    for name in ["", "avx2", "x86-avx2", "x86_64-AVX2", "x86_64-", "neon-aarch64"] {
        assert_eq!(table(name), 1, "{name}");
    }
}
