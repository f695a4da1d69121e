//! `make wheel` makes a Python package that works where it is installed, and whose type hints hold. `tests/wheel/installed.py`
//! is its user.
#![cfg(all(target_os = "linux", feature = "chat"))]

mod common;
#[path = "capi/library.rs"]
mod library;

use common::{TempDir, cross};
use library::{succeed, target_folder};
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn skip(what: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {what}");
}

fn run<S: AsRef<OsStr>>(program: &Path, arguments: &[S]) -> Output {
    Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{}: {error}", program.display()))
}

/// Whether pip can get packages here. Only where it cannot may something be left out.
fn index_is_reachable(python: &Path, folder: &TempDir) -> bool {
    let to = folder.path().join("probe").display().to_string();
    let arguments = ["-m", "pip", "download", "--quiet", "--no-deps", "--dest", &to, "hatchling"];
    run(python, &arguments).status.success()
}

/// `make wheel`: where it is, or what was wrong.
fn make_wheel(python: &Path) -> Result<PathBuf, Output> {
    let mut make = Command::new("make");
    make.current_dir(root()).args(["--no-print-directory", "wheel"]).arg(format!("PYTHON={}", python.display()));
    make.env("CARGO", env!("CARGO")).env("CARGO_TARGET_DIR", target_folder());
    let mut release = target_folder();
    if let Some(target) = cross::target() {
        make.arg(format!("TARGET={target}"));
        make.arg(format!("CC={}", cross::tool("cc").get_program().to_string_lossy()));
        release.push(target);
    }
    let output = make.output().expect("make runs");
    if !output.status.success() {
        return Err(output);
    }
    let mut files = fs::read_dir(release.join("release/wheel")).expect("a folder").map(|entry| entry.unwrap().path());
    let wheel = files.next().expect("a wheel");
    assert_eq!(files.next(), None);
    Ok(wheel)
}

#[test]
fn the_wheel_says_what_it_is_for_and_works_where_it_is_installed_and_its_types_hold() {
    let folder = TempDir::new();
    let environment = folder.path().join("venv");
    let made = Command::new("python3").args(["-m", "venv"]).arg(&environment).output();
    if !made.is_ok_and(|output| output.status.success()) {
        return skip("the wheel: there is no Python with venv");
    }
    let python = environment.join("bin/python");
    let wheel = match make_wheel(&python) {
        Ok(wheel) => wheel,
        Err(_) if !index_is_reachable(&python, &folder) => {
            return skip("the wheel: the package index, which has its builder, cannot be reached");
        }
        Err(output) => panic!("make wheel: {}", String::from_utf8_lossy(&output.stderr)),
    };
    let name = wheel.file_name().expect("a name").to_string_lossy().into_owned();
    let _ = writeln!(std::io::stderr(), "{name}: {} KB", fs::metadata(&wheel).expect("a file").len() / 1000);
    assert!(name.starts_with(concat!("libedgellm-", env!("CARGO_PKG_VERSION"), "-py3-none-manylinux_2_")), "{name}");
    assert!(name.ends_with(&format!("_{}.whl", std::env::consts::ARCH)), "{name}");
    if cross::emulated() {
        return skip("using the wheel: there is no Python for the other machine");
    }

    let pip = |arguments: &[&str]| run(&python, &[&["-m", "pip", "install", "--quiet"], arguments].concat());
    let installed = pip(&["--no-index", "--no-deps", &wheel.display().to_string()]);
    assert!(installed.status.success(), "{installed:?}");
    let mut user = Command::new(&python);
    // Not in this folder, and with nothing of the environment that could find another library.
    user.current_dir(folder.path()).env_remove("PYTHONPATH").env_remove("LD_LIBRARY_PATH");
    user.arg(root().join("tests/wheel/installed.py")).arg(root().join("tests/data/edgellm-tiny-b1.58.gguf"));
    let output = succeed(&mut user);
    assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{output:?}");

    if !pip(&["mypy>=1.11,<3"]).status.success() {
        assert!(!index_is_reachable(&python, &folder), "mypy cannot be installed");
        return skip("the wheel's types: the package index cannot be reached");
    }
    let cache = folder.path().join("mypy").display().to_string();
    let checked = ["-m", "mypy", "--strict", "--cache-dir", &cache, "-p", "libedgellm"];
    let output = run(&python, &checked);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}
