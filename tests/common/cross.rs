//! Tests that were built for another machine (`cargo test --target …`) and run under an emulator, while the compilers
//! that they call are this machine's. What is what comes from the variables of cargo and of the `cc` crate:
//!
//! ```sh
//! CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER=qemu-aarch64
//! CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc      # CXX_… and NM_… alike
//! ```

use std::path::Path;
use std::process::Command;

/// The `--target` of cargo, if it had one: temporary files are then in `target/TARGET/tmp`.
pub fn target() -> Option<&'static str> {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).parent()?.file_name()?.to_str()?;
    folder.starts_with(&format!("{}-", std::env::consts::ARCH)).then_some(folder)
}

/// The words that start a program of the target, if cargo has been told any.
fn runner() -> Option<Vec<String>> {
    let target = target()?.replace('-', "_").to_uppercase();
    let words = std::env::var(format!("CARGO_TARGET_{target}_RUNNER")).ok()?;
    Some(words.split_whitespace().map(str::to_owned).collect())
}

/// Whether this test runs under an emulator: some tools do not work there, and everything is slow.
pub fn emulated() -> bool {
    runner().is_some()
}

/// A command that runs a program of the target.
pub fn program(path: impl AsRef<Path>) -> Command {
    let words = runner().unwrap_or_default();
    let Some((first, rest)) = words.split_first() else { return Command::new(path.as_ref()) };
    let mut command = Command::new(first);
    command.args(rest).arg(path.as_ref());
    command
}

/// A tool of this machine that works on programs of the target: `cc`, `c++` or one of the binutils.
pub fn tool(name: &str) -> Command {
    let (variable, gnu) = match name {
        "cc" => ("CC", "gcc"),
        "c++" => ("CXX", "g++"),
        "nm" => ("NM", "nm"),
        "objdump" => ("OBJDUMP", "objdump"),
        "readelf" => ("READELF", "readelf"),
        _ => unreachable!("{name}"),
    };
    let target = target().filter(|_| emulated());
    Command::new(match target {
        Some(target) => std::env::var(format!("{variable}_{}", target.replace('-', "_")))
            .unwrap_or_else(|_| format!("{}-linux-gnu-{gnu}", std::env::consts::ARCH)),
        None => name.to_owned(),
    })
}
