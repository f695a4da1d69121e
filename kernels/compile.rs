//! The part of `build.rs` that is there with the feature `cuda`: compiles `kernels/*.cu` to one image for each
//! architecture, which the library embeds (`src/cuda/module.rs`).
//!
//! The compiler is the first that is found of
//!
//! 1. `NVRTC`: NVIDIA's run-time compiler, a path of `libnvrtc.so…`. Several, separated by colons: each architecture is
//!    compiled by the first one that knows it, so that old ones come from an old toolkit, whose images run with old drivers.
//! 2. `NVCC`: a path of `nvcc`, which needs a C++ compiler that it likes.
//! 3. `CUDA_HOME`, else `CUDA_PATH`: the folder of a toolkit: its NVRTC, else its nvcc.
//! 4. `nvcc` in `PATH`.
//!
//! Headers are looked for beside the compiler (a toolkit's folder, or the Python packages' neighbours) and in the folders
//! of `EDGELLM_CUDA_INCLUDE`, separated by colons. `EDGELLM_CUDA_ARCHS` says what to compile for, as in
//! "75 87 90a compute_75"; what is meant for another machine is never guessed from the GPU of this one. A folder that
//! `EDGELLM_CUDA_CACHE` names keeps images, so that other builds from the same sources, such as one for another target or
//! with other features, need not compile them again.

use libloading::Library;
use std::env;
use std::error::Error;
use std::ffi::{CString, c_char, c_int, c_void};
use std::fmt::Write;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr::{null, null_mut};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What is compiled for unless `EDGELLM_CUDA_ARCHS` says otherwise: T4, A100, RTX 30, Orin, RTX 40, H100, and PTX, from
/// which a driver makes code for what is not listed.
const ARCHS: [&str; 7] = ["75", "80", "86", "87", "89", "90", "compute_75"];
/// These too, where the toolkit knows them: B200, Thor, RTX 50.
const NEW_ARCHS: [&str; 3] = ["100", "110", "120"];
/// The PTX of CUDA 11.4, the oldest driver that is meant to be served. PTX says which version it is, and a driver refuses
/// what is newer than itself; what toolkits 11.5 to 11.8 give is no different.
const PTX_VERSION: &str = "7.4";

type Result<T> = std::result::Result<T, String>;

/// What the build script's environment may set.
const SETTINGS: [&str; 7] =
    ["NVRTC", "NVCC", "CUDA_HOME", "CUDA_PATH", "EDGELLM_CUDA_INCLUDE", "EDGELLM_CUDA_ARCHS", "EDGELLM_CUDA_CACHE"];

/// Everything; a failure is told to cargo.
pub fn main() {
    let args: Vec<_> = env::args_os().skip(1).map(PathBuf::from).collect();
    if let [library, source, flag, file, includes @ ..] = &args[..] {
        // Started by `Compiler::command`.
        if let Err(message) = compile_with_nvrtc(library, source, &flag.to_string_lossy(), file, includes) {
            eprintln!("{message}");
            std::process::exit(1);
        }
        return;
    }
    println!("cargo::rerun-if-changed=kernels");
    for name in SETTINGS {
        println!("cargo::rerun-if-env-changed={name}");
    }
    if let Err(message) = build() {
        for line in message.lines() {
            println!("cargo::error={line}");
        }
        std::process::exit(1);
    }
}

/// One thing to compile for.
#[derive(Clone, Copy, PartialEq)]
struct Arch {
    /// 87 for compute capability 8.7.
    number: u32,
    /// `90a`: for 9.0 alone, with what no other architecture has.
    only: bool,
    ptx: bool,
}

impl Arch {
    fn parse(text: &str) -> Result<Arch> {
        let ptx = text.starts_with("compute_");
        let name = text.strip_prefix("compute_").or(text.strip_prefix("sm_")).unwrap_or(text);
        let digits = name.strip_suffix('a').unwrap_or(name);
        match digits.parse() {
            Ok(number) if (50..1000).contains(&number) => Ok(Arch { number, only: digits != name, ptx }),
            _ => Err(format!("EDGELLM_CUDA_ARCHS: `{text}` is no architecture: they look like 87, 90a, compute_75")),
        }
    }

    /// As the compilers call it.
    fn flag(self) -> String {
        let kind = if self.ptx { "compute" } else { "sm" };
        format!("{kind}_{}{}", self.number, if self.only { "a" } else { "" })
    }

    fn extension(self) -> &'static str {
        if self.ptx { "ptx" } else { "cubin" }
    }
}

/// A file to compile for an architecture, by one of the toolkits.
struct Job<'a> {
    source: &'a Path,
    arch: Arch,
    toolkit: &'a Toolkit,
}

impl Job<'_> {
    fn module(&self) -> &str {
        self.source.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default()
    }

    fn file_name(&self) -> String {
        format!("{}.{}.{}", self.module(), self.arch.flag(), self.arch.extension())
    }
}

fn build() -> Result<()> {
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set: cargo runs this")?);
    let sources = files("cu")?;
    if sources.is_empty() {
        return Err("kernels: no .cu file".into());
    }
    let toolkits = find_toolkits()?;
    let mut jobs = Vec::new();
    for (arch, toolkit) in plan(&toolkits)? {
        jobs.extend(sources.iter().map(|source| Job { source, arch, toolkit }));
    }
    compile_all(&jobs, &out)?;
    let mut table = String::from("static IMAGES: &[Image] = &[\n");
    for job in &jobs {
        let (major, minor) = (job.arch.number / 10, job.arch.number % 10);
        let Arch { only, ptx, .. } = job.arch;
        let file = out.join(job.file_name());
        let _ = writeln!(
            table,
            "    Image {{ module: {:?}, major: {major}, minor: {minor}, only: {only}, ptx: {ptx}, \
             code: &Aligned(*include_bytes!({file:?})) }},",
            job.module(),
        );
    }
    table.push_str("];\n");
    let names: Vec<_> = toolkits.iter().map(|toolkit| toolkit.name.as_str()).collect();
    let _ = writeln!(table, "const COMPILERS: &str = {:?};", names.join(", "));
    write(&out.join("cuda_images.rs"), table.as_bytes())
}

/// The files of `kernels/` with this end.
fn files(end: &str) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir("kernels").map_err(|error| format!("kernels: {error}"))?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut files: Vec<_> = paths.filter(|path| path.extension().is_some_and(|found| found == end)).collect();
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    fs::write(path, bytes).map_err(|error| format!("{}: {error}", path.display()))
}

/// What to compile for, and with which of the toolkits.
fn plan(toolkits: &[Toolkit]) -> Result<Vec<(Arch, &Toolkit)>> {
    let wanted = env::var("EDGELLM_CUDA_ARCHS").unwrap_or_default();
    let named: Vec<_> = wanted.split([' ', ',', ';']).filter(|name| !name.is_empty()).collect();
    let mut plan: Vec<(Arch, &Toolkit)> = Vec::new();
    let mut names = named.clone();
    if named.is_empty() {
        names.extend(ARCHS.iter().chain(&NEW_ARCHS));
    }
    for name in names {
        let arch = Arch::parse(name)?;
        if plan.iter().any(|(other, _)| *other == arch) {
            continue;
        }
        match toolkits.iter().find(|toolkit| toolkit.knows(arch)) {
            Some(toolkit) => plan.push((arch, toolkit)),
            None if NEW_ARCHS.contains(&name) && named.is_empty() => {}
            None => {
                let known: Vec<_> = toolkits.iter().map(|kit| format!("{}: {:?}", kit.name, kit.archs)).collect();
                let message = format!("{} is not known to {}", arch.flag(), known.join(", "));
                if !named.is_empty() {
                    return Err(message);
                }
                println!("cargo::warning={message}: left out");
            }
        }
    }
    if plan.is_empty() { Err("no architecture to compile for".into()) } else { Ok(plan) }
}

/// Compiles as many at once as cargo allows, and says everything that failed.
fn compile_all(jobs: &[Job], out: &Path) -> Result<()> {
    let threads = env::var("NUM_JOBS").ok().and_then(|count| count.parse().ok()).unwrap_or(1);
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..jobs.len().min(threads) {
            scope.spawn(|| {
                while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(message) = compile(job, out) {
                        let what = format!("{} for {}: {message}", job.source.display(), job.arch.flag());
                        failures.lock().expect("no thread panics").push(what);
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().expect("no thread panics");
    if failures.is_empty() { Ok(()) } else { Err(failures.join("\n")) }
}

fn compile(job: &Job, out: &Path) -> Result<()> {
    let file = out.join(job.file_name());
    let kept = kept(job)?;
    if let Some(kept) = &kept
        && fs::copy(kept, &file).is_ok()
    {
        return Ok(());
    }
    let output = job.toolkit.command(job, &file)?.output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(format!("{}\n{}", output.status, String::from_utf8_lossy(&output.stderr)));
    }
    if job.arch.ptx {
        write(&file, &lower_ptx(read(&file)?))?;
    }
    if let Some(kept) = &kept {
        // Whole or not at all, also when two builds do it at once.
        let part = kept.with_extension(format!("{}.part", std::process::id()));
        fs::create_dir_all(kept.parent().unwrap_or(kept)).map_err(|error| format!("EDGELLM_CUDA_CACHE: {error}"))?;
        write(&part, &read(&file)?)?;
        fs::rename(&part, kept).map_err(|error| format!("{}: {error}", kept.display()))?;
    }
    Ok(())
}

/// Where the image is kept, if images are: a name that everything that goes into it is in.
fn kept(job: &Job) -> Result<Option<PathBuf>> {
    let Some(folder) = env::var_os("EDGELLM_CUDA_CACHE").filter(|folder| !folder.is_empty()) else { return Ok(None) };
    let mut hasher = DefaultHasher::new();
    (&job.toolkit.name, &job.toolkit.includes, PTX_VERSION).hash(&mut hasher);
    for path in [vec![job.source.to_owned()], files("cuh")?].concat() {
        (&path, read(&path)?).hash(&mut hasher);
    }
    Ok(Some(Path::new(&folder).join(format!("{:016x}-{}", hasher.finish(), job.file_name()))))
}

/// PTX that says it is of version [`PTX_VERSION`], where it was of a later one of CUDA 11, with a NUL at the end.
fn lower_ptx(code: Vec<u8>) -> Vec<u8> {
    let text = String::from_utf8_lossy(&code);
    let text = text.trim_end_matches('\0');
    let said = text.split(".version ").nth(1).and_then(|rest| rest.split_whitespace().next()).unwrap_or_default();
    let text = match said.split_once('.') {
        Some(("7", minor)) if minor.parse().is_ok_and(|minor: u32| minor > 4) => {
            text.replacen(&format!(".version {said}"), &format!(".version {PTX_VERSION}"), 1)
        }
        _ => text.to_owned(),
    };
    [text.as_bytes(), &[0]].concat()
}

// ---- compilers ----

struct Toolkit {
    /// "NVRTC 11.8": for people.
    name: String,
    /// 11.
    major: u32,
    /// The architectures that it knows.
    archs: Vec<u32>,
    includes: Vec<PathBuf>,
    compiler: Compiler,
}

enum Compiler {
    Nvrtc(PathBuf),
    Nvcc(PathBuf),
}

impl Toolkit {
    fn knows(&self, arch: Arch) -> bool {
        self.archs.contains(&arch.number) && (!arch.only || self.major >= 12)
    }

    /// What compiles an image into a file.
    fn command(&self, job: &Job, file: &Path) -> Result<Command> {
        let flag = job.arch.flag();
        Ok(match &self.compiler {
            Compiler::Nvrtc(library) => {
                // This program again: NVRTC compiles one thing at a time in each process.
                let own = env::current_exe().map_err(|error| error.to_string())?;
                let mut command = Command::new(own);
                command.args([library, job.source]).arg(flag).arg(file).args(&self.includes);
                command
            }
            Compiler::Nvcc(nvcc) => {
                let mut command = Command::new(nvcc);
                command.args([format!("--{}", job.arch.extension()), format!("--gpu-architecture={flag}")]);
                command.arg("--std=c++17").args(self.includes.iter().flat_map(|path| [Path::new("-I"), path]));
                command.arg("-o").args([file, job.source]);
                command
            }
        })
    }
}

fn find_toolkits() -> Result<Vec<Toolkit>> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    if let Some(paths) = set("NVRTC") {
        return env::split_paths(&paths).map(|path| ask_nvrtc(&path)).collect();
    }
    if let Some(path) = set("NVCC") {
        return Ok(vec![ask_nvcc(Path::new(&path))?]);
    }
    if let Some(folder) = set("CUDA_HOME").or_else(|| set("CUDA_PATH")) {
        let folder = PathBuf::from(folder);
        if let Some(path) = nvrtc_of(&folder) {
            return Ok(vec![ask_nvrtc(&path)?]);
        }
        let nvcc = folder.join("bin/nvcc");
        if !nvcc.is_file() {
            return Err(format!("CUDA_HOME: {} has neither libnvrtc.so nor bin/nvcc", folder.display()));
        }
        return Ok(vec![ask_nvcc(&nvcc)?]);
    }
    println!("cargo::rerun-if-env-changed=PATH");
    let path = set("PATH").unwrap_or_default();
    let nvcc = env::split_paths(&path).map(|folder| folder.join("nvcc")).find(|path| path.is_file());
    match nvcc {
        Some(nvcc) => Ok(vec![ask_nvcc(&nvcc)?]),
        None => Err("the feature `cuda` needs a CUDA compiler, and NVRTC, NVCC, CUDA_HOME and PATH name none. Either\n\
             - kernels/cuda-setup.sh && . target/cuda-setup/env.sh: NVRTC from Python packages, without root or GPU; or\n\
             - install NVIDIA's CUDA toolkit, 11.4 or later, and set CUDA_HOME to its folder."
            .into()),
    }
}

/// Where a toolkit has its NVRTC.
fn nvrtc_of(toolkit: &Path) -> Option<PathBuf> {
    let targets = fs::read_dir(toolkit.join("targets")).into_iter().flatten();
    let targets = targets.filter_map(|entry| Some(entry.ok()?.path().join("lib")));
    let folders = [toolkit.join("lib64"), toolkit.join("lib")].into_iter().chain(targets);
    let mut found: Vec<_> = folders
        .flat_map(|folder| fs::read_dir(folder).into_iter().flatten())
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libnvrtc.so")))
        .collect();
    found.sort();
    found.into_iter().next()
}

/// The folders of headers that go with a compiler in `folder`, and those that the environment names.
fn includes(folder: &Path) -> Vec<PathBuf> {
    let up = |levels| folder.ancestors().nth(levels).unwrap_or(folder).to_owned();
    // A toolkit has bin/, lib64/ and include/ side by side, or targets/…/lib and include/; the Python packages have
    // nvidia/cuda_nvrtc/lib beside nvidia/cuda_runtime/include.
    let packages = ["cuda_runtime", "cuda_nvcc", "cuda_cccl"];
    let own = [up(1).join("include"), up(1).join("include/cccl")];
    let near = own.into_iter().chain(packages.map(|name| up(2).join(name).join("include")));
    let named = env::var_os("EDGELLM_CUDA_INCLUDE").unwrap_or_default();
    let named: Vec<_> = env::split_paths(&named).filter(|path| !path.as_os_str().is_empty()).collect();
    named.into_iter().chain(near.filter(|path| path.is_dir())).chain([PathBuf::from("kernels")]).collect()
}

fn ask_nvcc(nvcc: &Path) -> Result<Toolkit> {
    let ask = |option: &str| {
        let output = Command::new(nvcc).arg(option).output();
        let output = output.map_err(|error| format!("{} {option}: {error}", nvcc.display()))?;
        Ok::<_, String>(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let version = ask("--version")?;
    let release = version.split("release ").nth(1).and_then(|rest| rest.split(',').next()).unwrap_or("?");
    let major = release.split('.').next().and_then(|major| major.parse().ok()).unwrap_or(0);
    let archs = ask("--list-gpu-arch")?;
    let archs: Vec<u32> = archs.lines().filter_map(|line| line.strip_prefix("compute_")?.parse().ok()).collect();
    if archs.is_empty() {
        return Err(format!("{} --list-gpu-arch names none: is it nvcc 11.4 or later?", nvcc.display()));
    }
    let includes = includes(nvcc.parent().unwrap_or(nvcc));
    Ok(Toolkit { name: format!("nvcc {release}"), major, archs, includes, compiler: Compiler::Nvcc(nvcc.to_owned()) })
}

// ---- NVRTC ----

type Program = *mut c_void;
type Create =
    unsafe extern "C" fn(*mut Program, *const c_char, *const c_char, c_int, *const c_void, *const c_void) -> c_int;
type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
/// An opened NVRTC, which stays so: it may have threads of its own.
struct Nvrtc<'a> {
    path: &'a Path,
    library: &'static Library,
}

impl Nvrtc<'_> {
    fn open(path: &Path) -> Result<Nvrtc<'_>> {
        // SAFETY: the one who builds names the library, whose constructors do no harm.
        let library = unsafe { Library::new(path) }.map_err(|error| {
            let reason = error.source().map_or(error.to_string(), |source| source.to_string());
            format!("NVRTC: {}: {reason}", path.display())
        })?;
        Ok(Nvrtc { path, library: Box::leak(Box::new(library)) })
    }

    /// # Safety
    /// `F` is the function's type.
    unsafe fn function<F: Copy + 'static>(&self, name: &str) -> Result<F> {
        // SAFETY: the contract.
        let symbol = unsafe { self.library.get::<F>(name.as_bytes()) };
        Ok(*symbol.map_err(|_| format!("{} has no {name}: is it NVRTC 11.2 or later?", self.path.display()))?)
    }

    /// What the program has of one kind: `CUBIN`, `PTX` or `ProgramLog`.
    ///
    /// # Safety
    /// The program was made by this library, and not destroyed.
    unsafe fn take(&self, program: Program, kind: &str) -> Result<Vec<u8>> {
        let mut len = 0;
        // SAFETY: the types are those of nvrtc.h, as all that are asked for here. They write one number, and then as many
        // bytes as that says.
        unsafe {
            let size: unsafe extern "C" fn(Program, *mut usize) -> c_int =
                self.function(&format!("nvrtcGet{kind}Size"))?;
            let get: unsafe extern "C" fn(Program, *mut c_char) -> c_int = self.function(&format!("nvrtcGet{kind}"))?;
            let mut code = size(program, &mut len);
            let mut bytes = vec![0u8; len];
            if code == 0 {
                code = get(program, bytes.as_mut_ptr().cast());
            }
            if code == 0 { Ok(bytes) } else { Err(format!("nvrtcGet{kind}: {code}")) }
        }
    }
}

fn ask_nvrtc(path: &Path) -> Result<Toolkit> {
    type Ask = unsafe extern "C" fn(*mut c_int) -> c_int;
    let nvrtc = Nvrtc::open(path)?;
    let (mut major, mut minor, mut count) = (0, 0, 0);
    // SAFETY: the types are those of nvrtc.h; they write one number behind each pointer, the last one as many numbers as
    // it said there are.
    let (code, archs) = unsafe {
        let version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int = nvrtc.function("nvrtcVersion")?;
        let arch_count: Ask = nvrtc.function("nvrtcGetNumSupportedArchs")?;
        let list: Ask = nvrtc.function("nvrtcGetSupportedArchs")?;
        let codes = version(&mut major, &mut minor) | arch_count(&mut count);
        let mut archs = vec![0; usize::try_from(count).unwrap_or(0)];
        (codes | list(archs.as_mut_ptr()), archs)
    };
    if code != 0 {
        return Err(format!("{} does not say what it knows", path.display()));
    }
    Ok(Toolkit {
        name: format!("NVRTC {major}.{minor}"),
        major: u32::try_from(major).unwrap_or(0),
        archs: archs.into_iter().filter_map(|arch| u32::try_from(arch).ok()).collect(),
        includes: includes(path.parent().unwrap_or(path)),
        compiler: Compiler::Nvrtc(path.to_owned()),
    })
}

fn compile_with_nvrtc(library: &Path, source: &Path, flag: &str, file: &Path, includes: &[PathBuf]) -> Result<()> {
    let nvrtc = Nvrtc::open(library)?;
    let text = CString::new(read(source)?).map_err(|_| "a NUL in the source")?;
    let name = CString::new(source.to_string_lossy().as_ref()).map_err(|_| "a NUL in the name")?;
    let mut options = vec![format!("--gpu-architecture={flag}"), "--std=c++17".into()];
    options.extend(includes.iter().map(|path| format!("--include-path={}", path.display())));
    let options: Vec<_> = options.into_iter().filter_map(|option| CString::new(option).ok()).collect();
    let pointers: Vec<_> = options.iter().map(|option| option.as_ptr()).collect();
    let mut program = null_mut();
    // SAFETY: the types are those of nvrtc.h; NUL-terminated strings that live until the end of this function, no further
    // headers, as many options as it says. The program goes with the process.
    let code = unsafe {
        let create: Create = nvrtc.function("nvrtcCreateProgram")?;
        let compile: Compile = nvrtc.function("nvrtcCompileProgram")?;
        match create(&mut program, text.as_ptr(), name.as_ptr(), 0, null(), null()) {
            0 => compile(program, pointers.len() as c_int, pointers.as_ptr()),
            code => return Err(format!("nvrtcCreateProgram: {code}")),
        }
    };
    let kind = if flag.starts_with("sm_") { "CUBIN" } else { "PTX" };
    // SAFETY: made above.
    let (log, code_bytes) = unsafe { (nvrtc.take(program, "ProgramLog")?, nvrtc.take(program, kind)) };
    if code != 0 {
        let log = String::from_utf8_lossy(&log);
        return Err(format!("nvrtcCompileProgram: {code}\n{}", log.trim_end_matches('\0')));
    }
    write(file, &code_bytes?)
}
