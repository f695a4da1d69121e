//! What comes of a driver that is missing, old or failing: an error that says so, from Rust and from C, and never a panic.
//! No device is needed: `cuda/fake.c` stands in for the driver.
#![cfg(all(feature = "cuda", target_os = "linux"))]

mod common;
#[path = "capi/library.rs"]
mod library;
#[path = "cuda/scenario.rs"]
mod scenario;

use common::{cross, refusal};
use edgellm::cuda::driver::SYMBOLS;
use edgellm::cuda::{Context, DeviceBuffer, DeviceInfo, Driver, Module, Stream, module};
use edgellm::{Error, Result};
use library::{Library, succeed};
use std::ffi::{CStr, CString, c_char, c_int, c_long, c_void};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

const STICKY: c_int = 700;
/// Calls that give something back: their failure has nobody to be told to.
const RELEASING: [&str; 9] = [
    "cuCtxPopCurrent_v2",
    "cuDevicePrimaryCtxRelease_v2",
    "cuMemFree_v2",
    "cuMemFreeHost",
    "cuModuleUnload",
    "cuStreamDestroy_v2",
    "cuGraphExecDestroy",
    "cuGraphDestroy",
    "cuEventDestroy_v2",
];

fn scratch(name: &str) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("cuda-{name}-{}", std::process::id()))
}

/// The compiled `fake.c`.
fn fake() -> &'static [u8] {
    static FAKE: OnceLock<Vec<u8>> = OnceLock::new();
    FAKE.get_or_init(|| fake_with("-DMAJOR=9"))
}

fn fake_with(setting: &str) -> Vec<u8> {
    let out = scratch(&format!("fake{setting}.so"));
    let mut compiler = cross::tool("cc");
    compiler.args(["-shared", "-fPIC", "-std=gnu99", "-Wall", "-Wextra", "-Werror", "-O1", "-g", setting, "-o"]);
    succeed(compiler.arg(&out).arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda/fake.c")));
    let bytes = fs::read(&out).expect("the library");
    let _ = fs::remove_file(out);
    bytes
}

/// `fake.c` without a function: the name that is looked up is another one there.
fn without(symbol: &str) -> Vec<u8> {
    let (mut bytes, mut found) = (fake().to_vec(), 0);
    let name = [b"\0", symbol.as_bytes(), b"\0"].concat();
    for at in 0..bytes.len() - name.len() {
        if bytes[at..].starts_with(&name) {
            bytes[at + 1] = b'X';
            found += 1;
        }
    }
    assert!(found > 0, "fake.c has no {symbol}");
    bytes
}

/// A driver of a test's own, with its own memory of what was done.
struct Fake {
    path: PathBuf,
    library: *mut c_void,
}

impl Fake {
    fn new(name: &str, bytes: &[u8]) -> Fake {
        let path = scratch(name);
        fs::write(&path, bytes).expect("a library is written");
        let text = CString::new(path.to_str().expect("UTF-8")).expect("no NUL");
        // SAFETY: `fake.c`, which does nothing when it is loaded.
        let library = unsafe { libc::dlopen(text.as_ptr(), libc::RTLD_NOW) };
        assert!(!library.is_null());
        Fake { path, library }
    }

    fn open(&self) -> Result<&'static Driver> {
        let path = CString::new(self.path.to_str().expect("UTF-8")).expect("no NUL");
        // SAFETY: `fake.c`, whose functions have the driver's types.
        unsafe { Driver::open(&path) }
    }

    fn symbol(&self, name: &CStr) -> *mut c_void {
        // SAFETY: an open library, a NUL-terminated name.
        let found = unsafe { libc::dlsym(self.library, name.as_ptr()) };
        assert!(!found.is_null(), "{name:?}");
        found
    }

    /// Forgets everything; the `at`-th call from now on fails with a code, none with 0.
    fn reset(&self, at: c_long, code: c_int) {
        // SAFETY: the function has this type.
        let reset: extern "C" fn(c_long, c_int) = unsafe { std::mem::transmute(self.symbol(c"fake_reset")) };
        reset(at, code);
    }

    /// How many devices of which compute capability there are, with or without a memory of their own, which CUDA the
    /// driver is of, and what `cuInit` returns.
    fn device(&self, count: c_int, version: c_int, capability: c_int, unified: bool, init: c_int) {
        type Set = extern "C" fn(c_int, c_int, c_int, c_int, c_int);
        // SAFETY: the function has this type.
        let device: Set = unsafe { std::mem::transmute(self.symbol(c"fake_device")) };
        device(count, version, capability, c_int::from(unified), init);
    }

    fn ask(&self, name: &CStr) -> i64 {
        // SAFETY: the functions that are asked have this type.
        let ask: extern "C" fn() -> c_long = unsafe { std::mem::transmute(self.symbol(name)) };
        ask() as i64
    }

    /// The call that failed because it had to.
    fn failed(&self) -> String {
        // SAFETY: the function has this type, and gives NULL or a static string.
        let failed = unsafe {
            let failed: extern "C" fn() -> *const c_char = std::mem::transmute(self.symbol(c"fake_failed"));
            let text = failed();
            if text.is_null() { c"" } else { CStr::from_ptr(text) }
        };
        failed.to_str().expect("UTF-8").to_owned()
    }

    /// The host's context is the current one of this thread, and nothing else is on its stack.
    fn host_is_undisturbed(&self) -> bool {
        // SAFETY: the functions have these types.
        let (depth, current): (extern "C" fn() -> c_int, extern "C" fn() -> usize) = unsafe {
            (
                std::mem::transmute::<*mut c_void, extern "C" fn() -> c_int>(self.symbol(c"fake_depth")),
                std::mem::transmute::<*mut c_void, extern "C" fn() -> usize>(self.symbol(c"fake_current")),
            )
        };
        (depth(), current()) == (1, 0x11)
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

#[test]
fn without_a_driver_that_is_what_it_says() {
    match Driver::get() {
        Ok(driver) => assert!(driver.version() >= 11_040),
        Err(error) => {
            let (variant, text) = refusal(Err::<(), _>(error));
            assert_eq!(variant, "Device");
            assert!(text.contains("CUDA") && text.contains("driver") || text.contains("cuInit"), "{text}");
            assert!(Context::new(0).is_err());
        }
    }
    // SAFETY: there is nothing to load.
    let (variant, text) = refusal(unsafe { Driver::open(c"/no/such/libcuda.so.1") }.map(|_| ()));
    assert_eq!(variant, "Device");
    assert!(text.contains("/no/such/libcuda.so.1"), "{text}");
}

#[test]
fn each_missing_function_is_named() {
    for symbol in SYMBOLS {
        let fake = Fake::new(&format!("without-{symbol}"), &without(symbol));
        let (variant, text) = refusal(fake.open().map(|_| ()));
        assert_eq!(variant, "Device");
        assert!(text.contains(&format!(" {symbol}:")) && text.contains("11.4"), "{text}");
    }
}

#[test]
fn a_driver_that_cannot_start_says_why() {
    let fake = Fake::new("init", fake());
    fake.device(0, 12_040, 90, false, 100);
    assert_eq!(refusal(fake.open().map(|_| ())), ("Device", "cuInit: CUDA_ERROR_NO_DEVICE (100)".into()));
    fake.device(0, 12_040, 90, false, 12_345);
    assert_eq!(refusal(fake.open().map(|_| ())), ("Device", "cuInit: an unknown error (12345)".into()));
    fake.device(2, 12_040, 90, false, 0);
    let driver = fake.open().expect("a driver");
    assert_eq!((DeviceInfo::count(driver).expect("a count"), driver.version()), (2, 12_040));
    let (variant, text) = refusal(Context::of(driver, 2).map(|_| ()));
    assert_eq!((variant, text.as_str()), ("Device", "no CUDA device 2: 0 to 1 are there"));
}

#[test]
fn each_call_that_fails_is_an_error_and_everything_is_given_back() {
    let fake = Fake::new("fails", fake());
    let run = || fake.open().and_then(scenario::everything);
    fake.reset(0, 0);
    run().expect("a driver that works");
    assert!(fake.host_is_undisturbed() && fake.ask(c"fake_live") == 0);
    let calls = fake.ask(c"fake_calls");
    assert!(calls > 200, "{calls}");
    let (mut errors, mut names) = (0, std::collections::BTreeSet::new());
    for code in [1, 2, STICKY] {
        for at in 1..=calls {
            fake.reset(at, code);
            let result = run();
            let failed = fake.failed();
            assert!(!failed.is_empty(), "call {at} is not reached");
            let (released, pushed) = (RELEASING.contains(&failed.as_str()), failed == "cuCtxPushCurrent_v2");
            match result {
                // A context that is pushed to give something back has nobody to be told to, either.
                Ok(()) => assert!(released || pushed, "{failed}: no error"),
                Err(Error::Device(text)) => assert!(text.contains(&format!("({code})")), "{failed}: {text}"),
                Err(Error::DeviceMemory { .. }) => assert_eq!(code, 2, "{failed}"),
                Err(Error::NoMemory { .. }) => assert_eq!((code, failed.as_str()), (2, "cuMemHostAlloc")),
                Err(error) => panic!("{failed}: {error}"),
            }
            // Nothing can be given back in a context that is lost, or by a call that fails.
            if code != STICKY && !released && !pushed {
                assert_eq!(fake.ask(c"fake_live"), 0, "{failed} ({code}) at {at} leaks");
            }
            assert!(fake.host_is_undisturbed() || failed == "cuCtxPopCurrent_v2", "{failed}");
            errors += 1;
            names.insert(failed);
        }
    }
    assert_eq!(errors, 3 * calls);
    // Every function was called but those that name errors and borrow a stream, and that launch without attributes.
    let missing: Vec<_> = SYMBOLS.iter().filter(|name| !names.contains(**name)).copied().collect();
    assert_eq!(missing, ["cuGetErrorName", "cuGetErrorString", "cuStreamGetCtx"]);
}

#[test]
fn a_lost_device_stays_lost_and_names_its_cause() {
    let fake = Fake::new("lost", fake());
    fake.reset(0, 0);
    let driver = fake.open().expect("a driver");
    let context = Context::of(driver, 0).expect("a context");
    let stream = Stream::new(&context, 0).expect("a stream");
    let buffer = DeviceBuffer::new(&context, "x", 64).expect("memory");
    fake.reset(2, STICKY); // The second call from here: after the push.
    let (variant, text) = refusal(stream.synchronize());
    assert_eq!(variant, "Device");
    for word in ["device 0 (Fake)", "cuStreamSynchronize", "CUDA_ERROR_ILLEGAL_ADDRESS (700)", "lost"] {
        assert!(text.contains(word), "{text}");
    }
    let after = fake.ask(c"fake_calls");
    assert_eq!(refusal(DeviceBuffer::new(&context, "y", 64).map(|_| ())), ("Device", text.clone()));
    assert_eq!(refusal(stream.fill(&buffer, 0, 64, 0)), ("Device", text.clone()));
    assert_eq!(refusal(context.check_alive()), ("Device", text));
    assert_eq!(fake.ask(c"fake_calls"), after, "a lost context is not asked again");
    drop((buffer, stream, context));
    assert!(fake.host_is_undisturbed());
}

#[test]
fn no_memory_of_the_device_says_for_what() {
    let fake = Fake::new("memory", fake());
    fake.reset(0, 0);
    let context = Context::of(fake.open().expect("a driver"), 0).expect("a context");
    let (variant, text) = refusal(DeviceBuffer::new(&context, "weights", 1 << 40).map(|_| ()));
    assert_eq!((variant, text.as_str()), ("DeviceMemory", "no memory of the device for weights: 1099511627776 bytes"));
    DeviceBuffer::new(&context, "weights", 1 << 20).expect("that much is there");
    assert_eq!(context.memory_available().expect("an answer"), 1 << 29);
    // What shares the machine's memory has as much as the machine has, though at most what it can use.
    fake.device(1, 12_040, 87, true, 0);
    let context = Context::of(fake.open().expect("a driver"), 0).expect("a context");
    assert!(context.info().unified_memory);
    assert_eq!(context.memory_available().expect("an answer"), (1 << 30).min(available()));
}

/// A lower bound of what the machine has available, up to 1 GiB, which test machines have more than.
fn available() -> u64 {
    edgellm::tensor::host_memory().expect("/proc/meminfo").available.min(1 << 30)
}

#[test]
fn kernels_overlap_where_driver_and_device_can() {
    let optional = without("cuLaunchKernelEx");
    for (name, bytes, version, capability, overlaps) in [
        ("hopper", fake(), 12_030, 90, true),
        ("blackwell", fake(), 13_000, 120, true),
        ("old-driver", fake(), 12_020, 90, false),
        ("ada", fake(), 12_040, 89, false),
        ("no-attributes", &optional, 12_040, 90, false),
    ] {
        let fake = Fake::new(name, bytes);
        fake.reset(0, 0);
        fake.device(1, version, capability, false, 0);
        let driver = fake.open().expect("a driver");
        assert_eq!(Context::of(driver, 0).expect("a context").overlaps(), overlaps, "{name}");
        scenario::everything(driver).expect("the same results");
        assert_eq!(fake.ask(c"fake_launches_ex"), i64::from(overlaps), "{name}");
    }
}

#[test]
fn kernels_and_streams_that_are_not_there_are_refused() {
    let fake = Fake::new("refused", fake());
    fake.reset(0, 0);
    let driver = fake.open().expect("a driver");
    let context = Context::of(driver, 0).expect("a context");
    // SAFETY: the fake does not look at it.
    let module = unsafe { Module::from_image(&context, b"\0") }.expect("a module");
    let (variant, text) = refusal(module.function(c"no_such_kernel").map(|_| ()));
    assert_eq!(variant, "Device");
    assert!(text.contains("no_such_kernel"), "{text}");
    let (variant, text) = refusal(Module::load(&context, "no_such_module").map(|_| ()));
    assert_eq!(variant, "Device");
    assert!(text.contains("no_such_module") && text.contains("sm_90"), "{text}");
    // SAFETY: the fake asks nothing of a stream but whose it is, and says that NULL is another context's.
    let (variant, text) = refusal(unsafe { Stream::borrow(&context, std::ptr::null_mut()) }.map(|_| ()));
    assert_eq!(variant, "Argument");
    assert!(text.contains("primary context"), "{text}");
    // The fake has priorities from -5 to 0.
    for priority in [-5, -1, 0] {
        Stream::new(&context, priority).expect("a stream");
        assert_eq!(fake.ask(c"fake_priority"), i64::from(priority));
    }
    for priority in [-6, 1, i32::MIN, i32::MAX] {
        let (variant, text) = refusal(Stream::new(&context, priority).map(|_| ()));
        assert_eq!(variant, "Argument");
        assert!(text.contains(&format!("{priority}:")) && text.contains("-5 (first) to 0"), "{text}");
    }
    let own = Stream::new(&context, 0).expect("a stream");
    let live = fake.ask(c"fake_live");
    let mut handle = 1u64;
    // SAFETY: as above.
    let borrowed = unsafe { Stream::borrow(&context, (&raw mut handle).cast()) }.expect("the context's");
    drop(borrowed);
    assert_eq!(fake.ask(c"fake_live"), live, "a borrowed stream is not destroyed");
    // A capture whose work fails is over, and the stream goes on.
    let (variant, _) = refusal(own.capture(|_| Err(Error::Cancelled)).map(|_| ()));
    assert_eq!((variant, fake.ask(c"fake_live")), ("Cancelled", live));
    own.synchronize().expect("a stream that is not captured");
    // A device that there is no code for.
    fake.device(1, 12_040, 61, false, 0);
    let (variant, text) = refusal(DeviceInfo::new(driver, 0).expect("a device").check_usable());
    assert_eq!(variant, "Device");
    assert!(text.contains("sm_61") && text.contains("device 0 (Fake)"), "{text}");
}

#[test]
fn c_gets_the_same_as_statuses() {
    let (library, root) = (Library::build(), Path::new(env!("CARGO_MANIFEST_DIR")));
    let program = scratch("devices");
    let mut compiler = cross::tool("cc");
    compiler.args(["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-I"]).arg(root.join("include"));
    compiler.arg(root.join("tests/cuda/devices.c")).arg("-o").arg(&program).arg(&library.shared);
    let folder = library.shared.parent().expect("a folder");
    succeed(compiler.arg(format!("-Wl,-rpath,{}", folder.display())));
    let run = |driver: Option<&[u8]>, wanted: [&str; 3]| {
        // The loader looks there first. A file that is no library stands for a machine without one.
        let folder = scratch("libraries");
        fs::create_dir_all(&folder).expect("a folder");
        fs::write(folder.join("libcuda.so.1"), driver.unwrap_or(b"nothing")).expect("a library is written");
        let mut command = cross::program(&program);
        let model = root.join("models/edgellm-mini-b1.58.gguf");
        succeed(command.args(wanted).arg(model).env("LD_LIBRARY_PATH", &folder));
        let _ = fs::remove_dir_all(folder);
    };
    // The fake device is an sm_90, for which a build of other architectures has no code.
    let runs = module::archs().iter().any(|arch| arch.starts_with("sm_90") || arch.starts_with("compute_"));
    run(Some(fake()), ["EDGELLM_OK", if runs { "" } else { "sm_90" }, "2"]);
    run(Some(&fake_with("-DMAJOR=6")), ["EDGELLM_OK", "sm_60", "2"]);
    run(Some(&fake_with("-DINIT=100")), ["EDGELLM_E_DEVICE", "CUDA_ERROR_NO_DEVICE", "1"]);
    run(None, ["EDGELLM_E_DEVICE", "libcuda.so.1", "1"]);
    run(Some(&without("cuMemAlloc_v2")), ["EDGELLM_E_DEVICE", "cuMemAlloc_v2", "1"]);
    let _ = fs::remove_file(program);
}
