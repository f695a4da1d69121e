//! `make install` gives a tree that users of pkg-config and of CMake build with, wherever it is moved to, and libraries that
//! can stand beside others in Rust. The user is `tests/package/main.c`.
#![cfg(all(target_os = "linux", feature = "chat"))]

mod common;
#[path = "capi/library.rs"]
mod library;

use common::{TempDir, cross};
use library::{Library, cargo_archive, succeed, target_folder};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// `make install` builds in one folder, so one at a time.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn skip(what: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {what}");
}

fn installed(tool: &str) -> bool {
    Command::new(tool).arg("--version").output().is_ok_and(|output| output.status.success())
}

/// `make GOAL`, with these variables.
fn make(goal: &str, variables: &[String]) {
    let mut make = Command::new("make");
    make.current_dir(root()).args(["--no-print-directory", goal]).args(variables);
    make.env("CARGO", env!("CARGO")).env("CARGO_TARGET_DIR", target_folder());
    if let Some(target) = cross::target() {
        make.arg(format!("TARGET={target}"));
        make.arg(format!("CC={}", cross::tool("cc").get_program().to_string_lossy()));
    }
    if cfg!(feature = "cuda") {
        make.arg("FEATURES=cuda");
    }
    succeed(&mut make);
}

/// Installs with this libdir below the prefix /opt/edgellm, and moves the prefix elsewhere: where it is then.
fn install(into: &TempDir, libdir: &str) -> PathBuf {
    let _turn = turn();
    let destination = into.path().join("destination");
    let variables = ["prefix=/opt/edgellm".to_owned(), format!("libdir=/opt/edgellm/{libdir}")];
    make("install", &[&variables[..], &[format!("DESTDIR={}", destination.display())]].concat());
    let moved = into.path().join("moved tree");
    fs::rename(destination.join("opt/edgellm"), &moved).expect("it can be moved");
    moved
}

/// Every file and link below a folder, from there, sorted.
fn tree(folder: &Path) -> Vec<String> {
    let (mut names, mut open) = (Vec::new(), vec![folder.to_owned()]);
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).expect("a folder") {
            let entry = entry.expect("an entry");
            if entry.file_type().expect("a type").is_dir() {
                open.push(entry.path());
            } else {
                names.push(entry.path().strip_prefix(folder).expect("below").display().to_string());
            }
        }
    }
    names.sort();
    names
}

/// What pkg-config says of the tree.
fn pkg_config(libdir: &Path, options: &[&str]) -> Vec<String> {
    let mut command = Command::new("pkg-config");
    command.env("PKG_CONFIG_LIBDIR", libdir.join("pkgconfig")).args(options).arg("edgellm");
    let output = succeed(&mut command);
    let text = String::from_utf8(output.stdout).expect("flags");
    // A space in a path comes with a backslash.
    let words = text.trim().replace("\\ ", "\0");
    words.split(' ').map(|word| word.replace('\0', " ")).collect()
}

/// What a program says of a small model that is known.
fn said(program: &Path) -> String {
    let mut command = cross::program(program);
    let output = succeed(command.arg(root().join("tests/data/edgellm-tiny-b1.58.gguf")));
    let text = String::from_utf8(output.stdout).expect("text");
    assert_eq!(text, "{\"action\":\"stop\"}\n", "{}", program.display());
    text
}

/// Compiles main.c with these flags after it.
fn compile(out: &Path, flags: &[String]) {
    let mut command = cross::tool("cc");
    command.args(["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]);
    succeed(command.arg(root().join("tests/package/main.c")).arg("-o").arg(out).args(flags));
}

#[test]
fn an_installed_tree_has_these_files_and_make_takes_them_away_again() {
    let _turn = turn();
    let folder = TempDir::new();
    let variables = [format!("DESTDIR={}", folder.path().display()), "prefix=/usr".to_owned()];
    make("install", &variables);
    let version = env!("CARGO_PKG_VERSION");
    let short = version.rsplit_once('.').expect("a version").0;
    let wanted = [
        "usr/include/edgellm.h".to_owned(),
        "usr/include/edgellm.hpp".into(),
        "usr/lib/cmake/edgellm/edgellmConfig.cmake".into(),
        "usr/lib/cmake/edgellm/edgellmConfigVersion.cmake".into(),
        "usr/lib/libedgellm.a".into(),
        "usr/lib/libedgellm.so".into(),
        format!("usr/lib/libedgellm.so.{short}"),
        format!("usr/lib/libedgellm.so.{version}"),
        "usr/lib/pkgconfig/edgellm.pc".into(),
    ];
    let found = tree(folder.path());
    assert_eq!(found, wanted);
    for name in found.iter().filter(|name| name.ends_with(".pc") || name.ends_with(".cmake")) {
        let text = fs::read_to_string(folder.path().join(name)).expect(name);
        assert!(!text.contains("/usr") && !text.contains('@'), "{name} has a path of its own:\n{text}");
    }
    make("uninstall", &variables);
    assert_eq!(tree(folder.path()), [] as [String; 0]);
}

#[test]
fn a_program_builds_with_pkg_config_from_a_tree_that_was_moved_shared_and_static() {
    if !installed("pkg-config") {
        return skip("pkg-config is not installed");
    }
    let folder = TempDir::new();
    // Where Debian has libraries, two levels down, in a path with a space.
    let libdir = install(&folder, "lib/some-linux-gnu").join("lib/some-linux-gnu");
    assert_eq!(pkg_config(&libdir, &["--modversion"]), [env!("CARGO_PKG_VERSION")]);
    let program = folder.path().join("shared");
    let mut flags = pkg_config(&libdir, &["--cflags", "--libs"]);
    flags.push(format!("-Wl,-rpath,{}", libdir.display()));
    compile(&program, &flags);
    let shared = said(&program);

    // With the static library alone there is nothing to find at run time.
    for entry in fs::read_dir(&libdir).expect("the libraries") {
        let path = entry.expect("an entry").path();
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libedgellm.so")) {
            fs::remove_file(path).expect("it can be removed");
        }
    }
    let program = folder.path().join("static");
    compile(&program, &pkg_config(&libdir, &["--static", "--cflags", "--libs"]));
    assert_eq!(said(&program), shared);
}

/// A CMake build of `tests/package` in a folder of this name with these definitions, and its outcome.
fn cmake(folder: &TempDir, name: &str, definitions: &[String]) -> Result<PathBuf, String> {
    let build = folder.path().join(name);
    let mut configure = Command::new("cmake");
    configure.arg("-S").arg(root().join("tests/package")).arg("-B").arg(&build).args(definitions);
    if cross::emulated() {
        let arch = std::env::consts::ARCH;
        configure.args(["-DCMAKE_SYSTEM_NAME=Linux", &format!("-DCMAKE_SYSTEM_PROCESSOR={arch}")]);
        configure.arg(format!("-DCMAKE_C_COMPILER={}", cross::tool("cc").get_program().to_string_lossy()));
        configure.arg(format!("-DCMAKE_LIBRARY_ARCHITECTURE={arch}-linux-gnu"));
    }
    let output = configure.output().expect("cmake runs");
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    succeed(Command::new("cmake").arg("--build").arg(&build).env("CARGO", env!("CARGO")));
    Ok(build)
}

#[test]
fn a_project_builds_with_cmake_from_a_tree_that_was_moved_and_gets_no_other_version() {
    if !installed("cmake") {
        return skip("cmake is not installed");
    }
    let folder = TempDir::new();
    let prefix = install(&folder, "lib");
    let wanted = |version: &str| {
        let prefix = format!("-DCMAKE_PREFIX_PATH={}", prefix.display());
        cmake(
            &folder,
            version,
            &[prefix, "-DCMAKE_FIND_USE_CMAKE_SYSTEM_PATH=OFF".into(), format!("-DWANTED={version}")],
        )
    };
    let build = wanted(env!("CARGO_PKG_VERSION")).expect("the version that there is");
    assert_eq!(said(&build.join("with_shared")), said(&build.join("with_static")));
    for other in ["0.0.9", "0.2", "1.0", "0.1.99"] {
        let refused = wanted(other).expect_err(other);
        assert!(refused.contains("compatible with requested version"), "{other}: {refused}");
    }
}

#[test]
fn a_project_builds_with_the_sources_in_a_folder() {
    if !installed("cmake") {
        return skip("cmake is not installed");
    }
    let _turn = turn();
    let folder = TempDir::new();
    let mut definitions = vec![format!("-DSOURCE={}", root().display())];
    definitions.push(format!("-DEDGELLM_CARGO_DIR={}", target_folder().display()));
    definitions.push(format!("-DEDGELLM_FEATURES={}", if cfg!(feature = "cuda") { "cuda" } else { "" }));
    definitions.push(format!("-DEDGELLM_TARGET={}", cross::target().unwrap_or_default()));
    let build = cmake(&folder, "build", &definitions).expect("it builds");
    assert_eq!(said(&build.join("with_shared")), said(&build.join("with_static")));
}

/// The words of an environment variable.
fn words(variable: &str) -> Vec<String> {
    std::env::var(variable).unwrap_or_default().split_whitespace().map(str::to_owned).collect()
}

/// Rust's runtime is defined by every static library in Rust; ours keeps its own to itself.
#[test]
fn the_static_library_links_beside_another_in_rust_and_both_catch_their_panics() {
    let folder = TempDir::new();
    let other = folder.path().join("libother.a");
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc.args(["--edition=2024", "--crate-type=staticlib", "-O", "-o"]).arg(&other);
    if let Some(target) = cross::target() {
        rustc.args(["--target", target]);
        rustc.args(words(&format!("CARGO_TARGET_{}_RUSTFLAGS", target.replace('-', "_").to_uppercase())));
    }
    succeed(rustc.arg(root().join("tests/package/other.rs")));
    let library = {
        let _turn = turn();
        Library::build()
    };
    let libraries = [&library.archive, &other];
    for (name, order) in [("ours-first", [0, 1]), ("ours-last", [1, 0])] {
        let program = folder.path().join(name);
        let mut flags = vec!["-DOTHER".to_owned(), "-I".into(), root().join("include").display().to_string()];
        // All of the other one, as a program would that uses all of it.
        flags.push("-Wl,--whole-archive".into());
        flags.extend(order.map(|which| libraries[which].display().to_string()));
        flags.push("-Wl,--no-whole-archive".into());
        flags.extend(["-lgcc_s", "-lpthread", "-ldl", "-lm"].map(str::to_owned));
        compile(&program, &flags);
        said(&program);
    }
}

/// What differs between two builds with other features and other optimization: nothing that a caller sees.
#[test]
fn another_build_has_the_same_interface() {
    if cross::emulated() || !installed("abidiff") {
        return skip("comparing builds: for this machine's alone, with abidiff");
    }
    let _turn = turn();
    let bare = Library::link(&cargo_archive(&["--no-default-features"]), &target_folder().join("tmp/package-bare"));
    let full = Library::build();
    let abidiff = |first: &Path, second: &Path| {
        Command::new("abidiff").args([first, second]).output().expect("abidiff runs").status.code()
    };
    assert_eq!(abidiff(&bare.shared, &full.shared), Some(0));
    // That functions are missing would be seen.
    let folder = TempDir::new();
    let less = folder.file("less.c", b"int edgellm_load(void) { return 0; }\n");
    let other = folder.path().join("libless.so");
    succeed(cross::tool("cc").args(["-shared", "-fPIC", "-o"]).arg(&other).arg(less));
    assert_ne!(abidiff(&full.shared, &other), Some(0));
}
