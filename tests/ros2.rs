//! What of `ros2/` can be tested without ROS: the logic, compiled alone; the interfaces, through ROS's own generator; the node,
//! among fakes of what it uses of ROS (`tests/ros2`); and that the packages agree with each other.
#![cfg(all(target_os = "linux", feature = "chat"))]

mod common;
#[path = "capi/library.rs"]
mod library;

use common::{TempDir, cross};
use library::{Library, succeed, target_folder};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const WARNINGS: [&str; 5] = ["-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Werror"];

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

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Compiles a program with the target's compiler and runs it with a small model.
fn run(source: &str, includes: &[PathBuf], systems: &[PathBuf]) {
    let folder = TempDir::new();
    let out = folder.path().join("program");
    let mut command = cross::tool("c++");
    command.args(["-std=c++17", "-pthread"]).args(WARNINGS).arg(root().join(source)).arg("-o").arg(&out);
    for folder in includes {
        command.arg("-I").arg(folder);
    }
    for folder in systems {
        command.arg("-isystem").arg(folder);
    }
    let libraries = library().shared.parent().expect("a folder");
    command.arg(&library().shared).arg(format!("-Wl,-rpath,{}", libraries.display()));
    succeed(&mut command);
    let output = succeed(cross::program(&out).arg(root().join("tests/data/edgellm-tiny-b1.58.gguf")));
    assert!(output.stdout.is_empty() && output.stderr.is_empty(), "{source} printed {output:?}");
}

fn includes() -> Vec<PathBuf> {
    ["include", "ros2/edgellm_ros/include"].map(|name| root().join(name)).to_vec()
}

#[test]
fn the_nodes_logic_does_what_it_says() {
    run("ros2/edgellm_ros/test/generator_test.cpp", &includes(), &[]);
}

/// Python 3.12, for which ROS's generators are to be had: on the path, or pyenv's.
fn python_3_12() -> Option<PathBuf> {
    let pyenvs = Command::new("pyenv").args(["prefix", "3.12"]).output().ok().filter(|output| output.status.success());
    let pyenvs = pyenvs.map(|output| Path::new(String::from_utf8_lossy(&output.stdout).trim()).join("bin/python3.12"));
    let works = |path: &PathBuf| {
        Command::new(path).args(["-c", "import ensurepip"]).output().is_ok_and(|it| it.status.success())
    };
    [Some(PathBuf::from("python3.12")), pyenvs].into_iter().flatten().find(works)
}

/// The headers that ROS's generator makes of our interfaces, and those that they include. `None`: why not was said.
fn messages(out: &Path) -> Option<Vec<PathBuf>> {
    let generate = root().join("tests/ros2/generate.py");
    let Some(python) = python_3_12() else {
        skip("edgellm_msgs and the node: ROS's generators need Python 3.12 with venv");
        return None;
    };
    // Installing takes half a minute: the environment is kept until what it takes changes.
    let text = |output: std::process::Output| String::from_utf8(output.stdout).expect("text");
    let wanted = text(succeed(Command::new(&python).arg(&generate).arg("--requirements")));
    let environment = target_folder().join("ros2-generators");
    let own = environment.join("bin/python");
    let done = environment.join("installed");
    if fs::read_to_string(&done).ok().as_deref() != Some(&wanted) {
        succeed(Command::new(&python).args(["-m", "venv", "--clear"]).arg(&environment));
        let mut pip = Command::new(&own);
        let output =
            pip.args(["-m", "pip", "install", "--quiet"]).args(wanted.split_whitespace()).output().expect("pip");
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            skip(&format!("edgellm_msgs and the node: ROS's generators cannot be installed: {said}"));
            return None;
        }
        fs::write(&done, &wanted).expect("it is kept");
    }
    succeed(Command::new(&own).arg(&generate).arg(root().join("ros2/edgellm_msgs")).arg(out));
    let packages = fs::read_dir(environment.join("include")).expect("headers").map(|entry| entry.unwrap().path());
    let wanted = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.ends_with("_msgs") || name.ends_with("_interfaces") || name.starts_with("rosidl_") || name == "rcutils"
    };
    Some(packages.filter(wanted).chain([out.to_owned()]).collect())
}

#[test]
fn the_node_answers_cancels_and_follows_its_transitions_among_fakes_of_ros() {
    let folder = TempDir::new();
    let Some(systems) = messages(folder.path()) else { return };
    run("tests/ros2/node_test.cpp", &[includes(), vec![root().join("tests/ros2/fake")]].concat(), &systems);
}

#[test]
fn the_packages_have_the_librarys_version_and_say_what_they_depend_on() {
    for package in ["edgellm_msgs", "edgellm_ros"] {
        let manifest = read(&format!("ros2/{package}/package.xml"));
        assert!(manifest.contains(concat!("<version>", env!("CARGO_PKG_VERSION"), "</version>")), "{package}");
        assert!(manifest.contains(&format!("<name>{package}</name>")), "{package}");
        let lists = read(&format!("ros2/{package}/CMakeLists.txt"));
        let found = lists.split("find_package(").skip(1).filter_map(|rest| rest.split([' ', ')']).next());
        for name in found.filter(|name| *name != "edgellm") {
            assert!(manifest.contains(&format!("depend>{name}<")), "{package}/package.xml does not name {name}");
        }
    }
    let ros = read("ros2/edgellm_ros/CMakeLists.txt");
    let interface = env!("CARGO_PKG_VERSION").rsplit_once('.').expect("a version").0;
    assert!(ros.contains(&format!("find_package(edgellm {interface} REQUIRED CONFIG)")), "another interface");
    // Every interface is generated.
    let lists = read("ros2/edgellm_msgs/CMakeLists.txt");
    for kind in ["action", "msg", "srv"] {
        for entry in fs::read_dir(root().join("ros2/edgellm_msgs").join(kind)).expect(kind) {
            let name = entry.expect("an entry").file_name().to_string_lossy().into_owned();
            assert!(lists.contains(&format!("\"{kind}/{name}\"")), "{kind}/{name} is not in CMakeLists.txt");
        }
    }
}

#[test]
fn every_parameter_of_the_node_has_its_default_in_the_file_of_parameters() {
    let node = read("ros2/edgellm_ros/src/node.cpp");
    let file = read("ros2/edgellm_ros/config/edgellm.yaml");
    let declared: Vec<&str> =
        node.split("declare_parameter(\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
    let set: Vec<&str> = file.lines().filter_map(|line| line.strip_prefix("    ")?.split(':').next()).collect();
    assert!(!declared.is_empty());
    assert_eq!(declared, set);
}

#[test]
fn the_launch_files_are_python() {
    for name in ["launch/edgellm.launch.py", "test/launch_test.py"] {
        let path = root().join("ros2/edgellm_ros").join(name);
        let code = "import ast, sys; ast.parse(open(sys.argv[1]).read(), sys.argv[1])";
        succeed(Command::new("python3").args(["-c", code]).arg(path));
    }
}
