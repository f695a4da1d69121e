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
//! "75 87 90a compute_75"; what is meant for another machine is never guessed from the GPU of this one.

use libloading::Library;
use std::env;
use std::ffi::{CString, c_char, c_int, c_void};
use std::fmt::Write;
use std::fs;
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

/// Everything; a failure is told to cargo.
pub fn main() {
    println!("cargo::rerun-if-changed=kernels");
    for name in ["NVRTC", "NVCC", "CUDA_HOME", "CUDA_PATH", "EDGELLM_CUDA_INCLUDE", "EDGELLM_CUDA_ARCHS"] {
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
    let sources = sources(Path::new("kernels"))?;
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

fn sources(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let paths = entries.filter_map(|entry| Some(entry.ok()?.path()));
    let mut sources: Vec<_> = paths.filter(|path| path.extension().is_some_and(|end| end == "cu")).collect();
    sources.sort();
    if sources.is_empty() { Err(format!("{}: no .cu file", folder.display())) } else { Ok(sources) }
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
        match toolkits.iter().find(|toolkit| toolkit.archs.contains(&arch.number)) {
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

/// Compiles on as many threads as cargo allows, and says everything that failed.
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
    let mut code = match &job.toolkit.compiler {
        Compiler::Nvrtc(nvrtc) => nvrtc.compile(job, &job.toolkit.includes)?,
        Compiler::Nvcc(nvcc) => compile_with_nvcc(nvcc, job, &job.toolkit.includes, &file)?,
    };
    if job.arch.ptx {
        code = lower_ptx(code);
    }
    write(&file, &code)
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
    /// The architectures that it knows.
    archs: Vec<u32>,
    includes: Vec<PathBuf>,
    compiler: Compiler,
}

enum Compiler {
    Nvrtc(Nvrtc),
    Nvcc(PathBuf),
}

fn find_toolkits() -> Result<Vec<Toolkit>> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
    if let Some(paths) = set("NVRTC") {
        return env::split_paths(&paths).map(|path| open_nvrtc(&path)).collect();
    }
    if let Some(path) = set("NVCC") {
        return Ok(vec![ask_nvcc(Path::new(&path))?]);
    }
    if let Some(folder) = set("CUDA_HOME").or_else(|| set("CUDA_PATH")) {
        let folder = PathBuf::from(folder);
        if let Some(path) = nvrtc_of(&folder) {
            return Ok(vec![open_nvrtc(&path)?]);
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
    let near = [up(1).join("include")].into_iter().chain(packages.map(|name| up(2).join(name).join("include")));
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
    let archs = ask("--list-gpu-arch")?;
    let archs: Vec<u32> = archs.lines().filter_map(|line| line.strip_prefix("compute_")?.parse().ok()).collect();
    if archs.is_empty() {
        return Err(format!("{} --list-gpu-arch names none: is it nvcc 11.4 or later?", nvcc.display()));
    }
    let includes = includes(nvcc.parent().unwrap_or(nvcc));
    Ok(Toolkit { name: format!("nvcc {release}"), archs, includes, compiler: Compiler::Nvcc(nvcc.to_owned()) })
}

fn compile_with_nvcc(nvcc: &Path, job: &Job, includes: &[PathBuf], file: &Path) -> Result<Vec<u8>> {
    let mut command = Command::new(nvcc);
    command.args([&format!("--{}", job.arch.extension()), &format!("--gpu-architecture={}", job.arch.flag())]);
    command.arg("--std=c++17").args(includes.iter().flat_map(|path| [Path::new("-I"), path]));
    let output = command.arg("-o").arg(file).arg(job.source).output();
    let output = output.map_err(|error| format!("{}: {error}", nvcc.display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{}: {}\n{said}", nvcc.display(), output.status));
    }
    fs::read(file).map_err(|error| format!("{}: {error}", file.display()))
}

// ---- NVRTC ----

type Program = *mut c_void;
type Create =
    unsafe extern "C" fn(*mut Program, *const c_char, *const c_char, c_int, *const c_void, *const c_void) -> c_int;
type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type Get = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;

/// The functions of one NVRTC, which stays loaded.
struct Nvrtc {
    create: Create,
    compile: Compile,
    destroy: Destroy,
    log: (Size, Get),
    cubin: (Size, Get),
    ptx: (Size, Get),
}

fn open_nvrtc(path: &Path) -> Result<Toolkit> {
    type Ask = unsafe extern "C" fn(*mut c_int) -> c_int;
    type Version = unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int;
    // SAFETY: the one who builds names the library, whose constructors do no harm.
    let library = unsafe { Library::new(path) }.map_err(|error| format!("NVRTC: {}: {error}", path.display()))?;
    // It has threads of its own perhaps, and is needed until the end.
    let library: &'static Library = Box::leak(Box::new(library));
    fn function<F: Copy + 'static>(library: &'static Library, path: &Path, name: &str) -> Result<F> {
        // SAFETY: every type asked for below is that of nvrtc.h of CUDA 11.2 and later.
        let symbol = unsafe { library.get::<F>(name.as_bytes()) };
        Ok(*symbol.map_err(|_| format!("{} has no {name}: is it NVRTC 11.2 or later?", path.display()))?)
    }
    let get = |name: &str| -> Result<(Size, Get)> {
        let size = function(library, path, &format!("nvrtcGet{name}Size"))?;
        Ok((size, function(library, path, &format!("nvrtcGet{name}"))?))
    };
    let (mut major, mut minor, mut count) = (0, 0, 0);
    let version: Version = function(library, path, "nvrtcVersion")?;
    let arch_count: Ask = function(library, path, "nvrtcGetNumSupportedArchs")?;
    let list: Ask = function(library, path, "nvrtcGetSupportedArchs")?;
    // SAFETY: the functions write one number behind each pointer.
    let codes = unsafe { [version(&mut major, &mut minor), arch_count(&mut count)] };
    let mut archs = vec![0; usize::try_from(count).unwrap_or(0)];
    // SAFETY: it writes as many numbers as it just said.
    if codes != [0, 0] || unsafe { list(archs.as_mut_ptr()) } != 0 {
        return Err(format!("{} does not say what it knows", path.display()));
    }
    let nvrtc = Nvrtc {
        create: function(library, path, "nvrtcCreateProgram")?,
        compile: function(library, path, "nvrtcCompileProgram")?,
        destroy: function(library, path, "nvrtcDestroyProgram")?,
        log: get("ProgramLog")?,
        cubin: get("CUBIN")?,
        ptx: get("PTX")?,
    };
    Ok(Toolkit {
        name: format!("NVRTC {major}.{minor}"),
        archs: archs.into_iter().filter_map(|arch| u32::try_from(arch).ok()).collect(),
        includes: includes(path.parent().unwrap_or(path)),
        compiler: Compiler::Nvrtc(nvrtc),
    })
}

impl Nvrtc {
    fn compile(&self, job: &Job, includes: &[PathBuf]) -> Result<Vec<u8>> {
        let text = fs::read(job.source).map_err(|error| error.to_string())?;
        let text = CString::new(text).map_err(|_| "a NUL in the source")?;
        let name = CString::new(job.source.to_string_lossy().as_ref()).map_err(|_| "a NUL in the name")?;
        let mut options = vec![format!("--gpu-architecture={}", job.arch.flag()), "--std=c++17".into()];
        options.extend(includes.iter().map(|path| format!("--include-path={}", path.display())));
        let options: Vec<_> = options.into_iter().filter_map(|option| CString::new(option).ok()).collect();
        let pointers: Vec<_> = options.iter().map(|option| option.as_ptr()).collect();
        let mut program = null_mut();
        // SAFETY: NUL-terminated strings that live until the end of this function, and no further headers.
        let created = unsafe { (self.create)(&mut program, text.as_ptr(), name.as_ptr(), 0, null(), null()) };
        if created != 0 {
            return Err(format!("nvrtcCreateProgram: {created}"));
        }
        // SAFETY: a program made above, as many options as it says.
        let code = unsafe { (self.compile)(program, pointers.len() as c_int, pointers.as_ptr()) };
        let result = match code {
            0 => self.take(program, if job.arch.ptx { self.ptx } else { self.cubin }),
            _ => {
                let log = self.take(program, self.log).unwrap_or_default();
                Err(format!("nvrtcCompileProgram: {code}\n{}", String::from_utf8_lossy(&log).trim_end_matches('\0')))
            }
        };
        // SAFETY: made above, not used again.
        unsafe { (self.destroy)(&mut program) };
        result
    }

    /// What the program has of one kind.
    fn take(&self, program: Program, (size, get): (Size, Get)) -> Result<Vec<u8>> {
        let mut len = 0;
        // SAFETY: a program that was not destroyed, one number.
        let mut code = unsafe { size(program, &mut len) };
        let mut bytes = vec![0u8; len];
        if code == 0 {
            // SAFETY: as many bytes as it just said.
            code = unsafe { get(program, bytes.as_mut_ptr().cast()) };
        }
        if code == 0 { Ok(bytes) } else { Err(format!("NVRTC gives no result: {code}")) }
    }
}
