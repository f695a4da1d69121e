//! What the tests of the C side share: the library as C gets it, and the header's names. They have `mod common`, too.
#![allow(dead_code)] // Each test program uses a part.

use crate::common::cross;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// The two libraries that are installed: what `package/link.sh` makes of cargo's static one.
pub struct Library {
    pub shared: PathBuf,
    pub archive: PathBuf,
}

impl Library {
    /// Builds them, in the target directory of this test; cargo does nothing when its own are there.
    pub fn build() -> Library {
        let cargos = cargo_archive(&features());
        Library::link(&cargos, &cargos.with_file_name("package"))
    }

    /// Links them from cargo's static one into `folder`.
    pub fn link(cargos: &Path, folder: &Path) -> Library {
        let mut link = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("package/link.sh"));
        succeed(link.arg(cargos).arg(folder).env("CC", cross::tool("cc").get_program()));
        Library { shared: folder.join("libedgellm.so"), archive: folder.join("libedgellm.a") }
    }
}

/// The target directory of this test.
pub fn target_folder() -> PathBuf {
    // Temporary files are in `folder/tmp`, or in `folder/TARGET/tmp` for `--target TARGET`.
    let mut ancestors = Path::new(env!("CARGO_TARGET_TMPDIR")).ancestors().skip(1 + cross::target().iter().len());
    let folder = std::env::var_os("CARGO_TARGET_DIR").map(PathBuf::from);
    folder.unwrap_or_else(|| ancestors.next().expect("a target directory").to_owned())
}

/// Cargo's options for the features of this test, as far as they matter to the library.
fn features() -> Vec<&'static str> {
    let mut options = vec!["--release"];
    if !cfg!(feature = "chat") {
        options.push("--no-default-features");
    }
    if cfg!(feature = "cuda") {
        options.extend(["--features", "cuda"]);
    }
    options
}

/// Cargo's static library, built with these options.
pub fn cargo_archive(options: &[&str]) -> PathBuf {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).args(["build", "--lib", "--message-format=json"]);
    cargo.arg("--target-dir").arg(target_folder()).args(options).stderr(Stdio::inherit());
    if let Some(target) = cross::target() {
        cargo.args(["--target", target]);
    }
    let output = cargo.output().expect("cargo runs");
    assert!(output.status.success(), "the library does not build");
    let files = artifacts(&String::from_utf8_lossy(&output.stdout));
    files.into_iter().find(|path| path.to_string_lossy().ends_with(".a")).expect("a static library")
}

/// The files that cargo's messages name for the library of this package.
fn artifacts(messages: &str) -> Vec<PathBuf> {
    let messages = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let ours =
        messages.filter(|message| message["reason"] == "compiler-artifact" && message["target"]["name"] == "edgellm");
    ours.flat_map(|message| message["filenames"].as_array().cloned().unwrap_or_default())
        .filter_map(|name| name.as_str().map(PathBuf::from))
        .collect()
}

/// Every `edgellm_*` word of a text that an opening parenthesis follows and that is not a macro's definition.
pub fn functions(text: &str) -> BTreeSet<String> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let skipped = |line: &str| ["//", "/*", "*", "#"].iter().any(|start| line.trim_start().starts_with(start));
    let code = text.lines().filter(move |line| !skipped(line));
    code.flat_map(|line| {
        let starts = line.match_indices("edgellm_").filter(move |&(at, _)| !line[..at].ends_with(is_word));
        starts.filter_map(move |(at, _)| {
            let end = line[at..].find(|c| !is_word(c))? + at;
            line[end..].starts_with('(').then(|| line[at..end].to_owned())
        })
    })
    .collect()
}

/// Runs a command that has to succeed, and shows all of it when it does not.
pub fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}
