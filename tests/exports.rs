//! The shared library exports what the header declares, which is what `src/capi` defines, and nothing else.
#![cfg(target_os = "linux")]

mod common;
#[path = "capi/library.rs"]
mod library;

use common::cross;
use library::{Library, functions, succeed};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

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

#[test]
fn the_shared_library_exports_exactly_what_the_header_declares() {
    let library = Library::build();
    let output = succeed(cross::tool("nm").args(["-D", "--defined-only", "--format=posix"]).arg(&library.shared));
    let symbols = String::from_utf8(output.stdout).expect("symbols");
    let exported: BTreeSet<String> =
        symbols.lines().filter_map(|line| line.split(' ').next()).map(Into::into).collect();
    assert_eq!(exported, declared());
}
