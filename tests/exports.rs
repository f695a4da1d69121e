//! The libraries that are installed define what the header declares, which is what `src/capi` defines, and nothing else.
#![cfg(target_os = "linux")]

mod common;
#[path = "capi/library.rs"]
mod library;

use common::cross;
use library::{Library, functions, succeed};
use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::sync::OnceLock;

fn library() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    LIBRARY.get_or_init(Library::build)
}

fn declared() -> BTreeSet<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("include/edgellm.h");
    let found = functions(&fs::read_to_string(path).expect("include/edgellm.h"));
    assert!(found.contains("edgellm_load") && found.contains("edgellm_event_init_"), "{found:?}");
    found
}

/// Names of `extern "C"` functions, and of those whose body is inside the panic guard from its first word on.
fn defined() -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut all, mut guarded) = (BTreeSet::new(), BTreeSet::new());
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/capi")).expect("src/capi") {
        let text = fs::read_to_string(entry.expect("an entry").path()).expect("a source");
        for (at, _) in text.match_indices("#[unsafe(no_mangle)]") {
            let rest = &text[at..];
            let name = rest.split("extern \"C\" fn ").nth(1).and_then(|rest| rest.split('(').next()).unwrap_or("?");
            let body = rest.split_once("{\n").map_or("", |(_, body)| body);
            let first = body.lines().map(str::trim).find(|line| !line.starts_with("//")).unwrap_or_default();
            if first.starts_with("guard") {
                guarded.insert(name.to_owned());
            }
            all.insert(name.to_owned());
        }
    }
    (all, guarded)
}

#[test]
fn the_header_declares_exactly_the_exported_functions_and_each_is_guarded() {
    let (all, guarded) = defined();
    assert_eq!(declared(), all);
    assert_eq!(guarded, all);
}

/// Defined global symbols, as `nm` with these options names them.
fn symbols(options: &[&str], library: &Path) -> BTreeSet<String> {
    let output = succeed(cross::tool("nm").args(["--defined-only", "--format=posix"]).args(options).arg(library));
    let lines = String::from_utf8(output.stdout).expect("symbols");
    // The node of the version script is a symbol of its own, of kind A. In an archive members have lines of one word.
    let words = lines.lines().map(|line| line.split(' ').take(2).collect::<Vec<_>>());
    words.filter(|words| words.len() == 2 && words[1] != "A").map(|words| words[0].to_owned()).collect()
}

/// While 0.x every minor may break, so that it is part of the names.
fn interface() -> String {
    match env!("CARGO_PKG_VERSION_MAJOR") {
        "0" => concat!("0.", env!("CARGO_PKG_VERSION_MINOR")).into(),
        major => major.into(),
    }
}

#[test]
fn both_libraries_define_exactly_what_the_header_declares_and_the_shared_one_with_versions() {
    let library = library();
    let node = if interface().contains('.') { interface() } else { format!("{}.0", interface()) };
    let versioned = declared().into_iter().map(|name| format!("{name}@@LIBEDGELLM_{node}")).collect();
    assert_eq!(symbols(&["-D", "--with-symbol-versions"], &library.shared), versioned);
    assert_eq!(symbols(&["-g"], &library.archive), declared());
}

#[test]
fn the_shared_library_has_its_name_and_is_bound_and_read_only_once_it_is_loaded() {
    let output = succeed(cross::tool("readelf").args(["-W", "-d", "-l"]).arg(&library().shared));
    let text = String::from_utf8(output.stdout).expect("what readelf says");
    let value = |line: &str| line.split(['[', ']']).nth(1).unwrap_or_default().to_owned();
    let entries = |tag: &str| text.lines().filter(|line| line.contains(tag)).map(value).collect::<Vec<_>>();
    assert_eq!(entries("(SONAME)"), [format!("libedgellm.so.{}", interface())]);
    let usual = ["libgcc_s.so.1", "libc.so.6", "libm.so.6", "libdl.so.2", "libpthread.so.0"];
    let needed = entries("(NEEDED)");
    let loader = |name: &String| name.starts_with("ld-linux");
    assert!(needed.iter().all(|name| usual.contains(&name.as_str()) || loader(name)), "it needs {needed:?}");
    assert!(text.contains("GNU_RELRO") && text.contains("BIND_NOW"), "{text}");
    let stack = text.lines().find(|line| line.contains("GNU_STACK")).expect("a GNU_STACK");
    assert!(stack.contains("RW ") && !text.contains("TEXTREL") && entries("RPATH").is_empty(), "{text}");
}

/// Says what the oldest glibc is that the library loads with: that of the machine it was linked on, or older.
#[test]
fn the_glibc_that_the_shared_library_asks_for_is_known() {
    let output = succeed(cross::tool("objdump").arg("-T").arg(&library().shared));
    let text = String::from_utf8(output.stdout).expect("what objdump says");
    let version = |rest: &str| -> Vec<u32> {
        rest.split([')', ' ']).next().unwrap_or_default().split('.').map_while(|part| part.parse().ok()).collect()
    };
    let newest = text.split("GLIBC_").skip(1).map(version).max().expect("it asks for a glibc");
    let _ = writeln!(std::io::stderr(), "libedgellm.so asks for glibc {}.{}", newest[0], newest[1]);
    assert!(newest >= vec![2, 17], "{newest:?}");
}
