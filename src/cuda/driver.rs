//! The functions of `libcuda.so.1`, looked up at run time, and what their failures mean.
//!
//! Names and types are those of the headers of CUDA 11.4, which every later driver has, too.

use crate::{Error, Result};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

/// What every function of the driver returns; 0 is success.
pub type Code = c_int;
/// An address in the memory of a device.
pub type DevicePointer = u64;
/// What the driver's handles are.
pub type Handle = *mut c_void;

/// There was not enough memory.
pub(super) const OUT_OF_MEMORY: Code = 2;
/// The work is not done yet.
pub(super) const NOT_READY: Code = 600;
/// After these nothing of the context works any more, in this process. 4: the process is ending; 214, 220: uncorrectable
/// memory or link; 226: an error of another process, contained; 700: illegal address; 702: timeout; 709: context
/// destroyed; 710: assertion; 714-719: stack, instruction, alignment, address space, program counter, launch failed;
/// 721: tensor memory leaked; 999: unknown.
const STICKY: [Code; 16] = [4, 214, 220, 226, 700, 702, 709, 710, 714, 715, 716, 717, 718, 719, 721, 999];

/// A launch with attributes, `CUlaunchConfig`.
#[repr(C)]
pub struct LaunchConfig {
    /// Thread blocks.
    pub grid: [c_uint; 3],
    /// Threads of a block.
    pub block: [c_uint; 3],
    /// Dynamic shared memory.
    pub shared_bytes: c_uint,
    /// Where to.
    pub stream: Handle,
    /// As many as `attribute_count` says.
    pub attributes: *const LaunchAttribute,
    /// How many.
    pub attribute_count: c_uint,
}

/// `CUlaunchAttribute`.
#[repr(C)]
pub struct LaunchAttribute {
    /// Which.
    pub id: c_uint,
    pad: [u8; 4],
    /// A union of 64 bytes, of which only integers are used.
    pub value: [u64; 8],
}

impl LaunchAttribute {
    /// The kernel may start before the one before it in the stream has ended, and waits for it where it needs to.
    pub const OVERLAP: LaunchAttribute = LaunchAttribute { id: 6, pad: [0; 4], value: [1, 0, 0, 0, 0, 0, 0, 0] };
}

const _: () = assert!(size_of::<LaunchAttribute>() == 72 && size_of::<LaunchConfig>() == 56);

/// The table, from one list: each name once, with its type. Those after `optional` may be missing.
macro_rules! functions {
    (
        required { $($field:ident: $symbol:ident($($type:ty),*);)+ }
        optional { $($may:ident: $may_symbol:ident($($may_type:ty),*);)+ }
    ) => {
        /// Every function of the driver that is used.
        pub(super) struct Functions {
            $(pub $field: unsafe extern "C" fn($($type),*) -> Code,)+
            $(pub $may: Option<unsafe extern "C" fn($($may_type),*) -> Code>,)+
        }

        /// The names that a driver must have.
        pub const SYMBOLS: &[&str] = &[$(stringify!($symbol)),+];

        impl Functions {
            /// # Safety
            /// `library` is a handle of dlopen's to a library whose functions of these names have these types.
            unsafe fn find(library: Handle) -> Result<Functions> {
                // SAFETY: a live handle, NUL-terminated names; the types are the contract of this function, and a
                // pointer from dlsym that is not NULL is that of a function.
                unsafe {
                    Ok(Functions {
                        $($field: {
                            let name = concat!(stringify!($symbol), "\0");
                            let found = libc::dlsym(library, name.as_ptr().cast());
                            if found.is_null() {
                                return Err(too_old(stringify!($symbol)));
                            }
                            std::mem::transmute::<Handle, unsafe extern "C" fn($($type),*) -> Code>(found)
                        },)+
                        $($may: {
                            let name = concat!(stringify!($may_symbol), "\0");
                            let found = libc::dlsym(library, name.as_ptr().cast());
                            std::mem::transmute::<Handle, Option<unsafe extern "C" fn($($may_type),*) -> Code>>(found)
                        },)+
                    })
                }
            }
        }
    };
}

functions! { required {
    init: cuInit(c_uint);
    driver_version: cuDriverGetVersion(*mut c_int);
    error_name: cuGetErrorName(Code, *mut *const c_char);
    error_string: cuGetErrorString(Code, *mut *const c_char);
    device_count: cuDeviceGetCount(*mut c_int);
    device_get: cuDeviceGet(*mut c_int, c_int);
    device_name: cuDeviceGetName(*mut c_char, c_int, c_int);
    device_memory: cuDeviceTotalMem_v2(*mut usize, c_int);
    device_attribute: cuDeviceGetAttribute(*mut c_int, c_int, c_int);
    context_retain: cuDevicePrimaryCtxRetain(*mut Handle, c_int);
    context_release: cuDevicePrimaryCtxRelease_v2(c_int);
    context_push: cuCtxPushCurrent_v2(Handle);
    context_pop: cuCtxPopCurrent_v2(*mut Handle);
    context_synchronize: cuCtxSynchronize();
    priority_range: cuCtxGetStreamPriorityRange(*mut c_int, *mut c_int);
    memory_info: cuMemGetInfo_v2(*mut usize, *mut usize);
    memory_alloc: cuMemAlloc_v2(*mut DevicePointer, usize);
    memory_free: cuMemFree_v2(DevicePointer);
    host_alloc: cuMemHostAlloc(*mut *mut c_void, usize, c_uint);
    host_free: cuMemFreeHost(*mut c_void);
    host_device_pointer: cuMemHostGetDevicePointer_v2(*mut DevicePointer, *mut c_void, c_uint);
    copy_to_device: cuMemcpyHtoDAsync_v2(DevicePointer, *const c_void, usize, Handle);
    copy_to_host: cuMemcpyDtoHAsync_v2(*mut c_void, DevicePointer, usize, Handle);
    copy_on_device: cuMemcpyDtoDAsync_v2(DevicePointer, DevicePointer, usize, Handle);
    fill_u8: cuMemsetD8Async(DevicePointer, u8, usize, Handle);
    fill_u32: cuMemsetD32Async(DevicePointer, c_uint, usize, Handle);
    module_load: cuModuleLoadData(*mut Handle, *const c_void);
    module_unload: cuModuleUnload(Handle);
    module_function: cuModuleGetFunction(*mut Handle, Handle, *const c_char);
    function_set: cuFuncSetAttribute(Handle, c_int, c_int);
    function_get: cuFuncGetAttribute(*mut c_int, c_int, Handle);
    occupancy: cuOccupancyMaxActiveBlocksPerMultiprocessor(*mut c_int, Handle, c_int, usize);
    stream_create: cuStreamCreateWithPriority(*mut Handle, c_uint, c_int);
    stream_destroy: cuStreamDestroy_v2(Handle);
    stream_context: cuStreamGetCtx(Handle, *mut Handle);
    stream_query: cuStreamQuery(Handle);
    stream_synchronize: cuStreamSynchronize(Handle);
    stream_wait: cuStreamWaitEvent(Handle, Handle, c_uint);
    capture_begin: cuStreamBeginCapture_v2(Handle, c_int);
    capture_end: cuStreamEndCapture(Handle, *mut Handle);
    graph_nodes: cuGraphGetNodes(Handle, *mut Handle, *mut usize);
    graph_instantiate: cuGraphInstantiateWithFlags(*mut Handle, Handle, u64);
    graph_launch: cuGraphLaunch(Handle, Handle);
    graph_exec_destroy: cuGraphExecDestroy(Handle);
    graph_destroy: cuGraphDestroy(Handle);
    event_create: cuEventCreate(*mut Handle, c_uint);
    event_record: cuEventRecord(Handle, Handle);
    event_query: cuEventQuery(Handle);
    event_synchronize: cuEventSynchronize(Handle);
    event_elapsed: cuEventElapsedTime(*mut f32, Handle, Handle);
    event_destroy: cuEventDestroy_v2(Handle);
    launch: cuLaunchKernel(
        Handle, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, Handle, *mut *mut c_void, *mut *mut c_void
    );
} optional {
    launch_ex: cuLaunchKernelEx(*const LaunchConfig, Handle, *mut *mut c_void, *mut *mut c_void);
} }

fn too_old(symbol: &str) -> Error {
    let floor = "this library needs the one of CUDA 11.4 or a later one";
    Error::device(format!("the CUDA driver libcuda.so.1 has no {symbol}: {floor}"))
}

/// Where a driver is, if not where the system's libraries are: in containers on Jetson (JetPack 5; 6 and later), and under
/// Windows.
const PATHS: [&CStr; 4] = [
    c"libcuda.so.1",
    c"/usr/lib/aarch64-linux-gnu/tegra/libcuda.so.1",
    c"/usr/lib/aarch64-linux-gnu/nvidia/libcuda.so.1",
    c"/usr/lib/wsl/lib/libcuda.so.1",
];

/// A driver that has been opened and initialized. It is never closed: it has threads of its own.
pub struct Driver {
    pub(super) functions: Functions,
    version: u32,
}

impl Driver {
    /// The driver of this machine, opened at the first call. A failure, too, is found once and for all.
    pub fn get() -> Result<&'static Driver> {
        static DRIVER: OnceLock<Result<Driver, String>> = OnceLock::new();
        let driver = DRIVER.get_or_init(|| {
            let mut reason = String::new();
            for path in PATHS {
                match dlopen(path) {
                    // SAFETY: what bears this name is NVIDIA's driver: the system's administrator says so.
                    Ok(library) => return unsafe { Driver::new(library) }.map_err(|error| error.to_string()),
                    Err(text) if reason.is_empty() => reason = text,
                    Err(_) => {}
                }
            }
            Err(format!("there is no CUDA driver: libcuda.so.1 could not be loaded ({reason})"))
        });
        driver.as_ref().map_err(|text| Error::device(text.clone()))
    }

    /// The driver in this file, for tests; it is never closed.
    ///
    /// # Safety
    /// It is safe to load, and its functions have the types of the driver's.
    pub unsafe fn open(path: &CStr) -> Result<&'static Driver> {
        let library = dlopen(path).map_err(Error::device)?;
        // SAFETY: the contract.
        Ok(Box::leak(Box::new(unsafe { Driver::new(library)? })))
    }

    /// # Safety
    /// As for [`Functions::find`].
    unsafe fn new(library: Handle) -> Result<Driver> {
        // SAFETY: the contract.
        let functions = unsafe { Functions::find(library)? };
        let mut driver = Driver { functions, version: 0 };
        let mut version = 0;
        // SAFETY: no flags.
        driver.check(unsafe { (driver.functions.init)(0) }, "cuInit")?;
        // SAFETY: one number.
        driver.check(unsafe { (driver.functions.driver_version)(&mut version) }, "cuDriverGetVersion")?;
        driver.version = u32::try_from(version).unwrap_or(0);
        Ok(driver)
    }

    /// The CUDA that the driver is for, as 1000 * major + 10 * minor.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// An error for a code that is not 0.
    pub(super) fn check(&self, code: Code, call: &'static str) -> Result<()> {
        match code {
            0 => Ok(()),
            OUT_OF_MEMORY => Err(Error::DeviceMemory { what: call, bytes: 0 }),
            _ => Err(Error::device(self.failure(code, call))),
        }
    }

    /// What a failed call says: "cuMemAlloc: CUDA_ERROR_INVALID_VALUE (1): invalid argument".
    pub(super) fn failure(&self, code: Code, call: &str) -> String {
        let text = |function: unsafe extern "C" fn(Code, *mut *const c_char) -> Code| {
            let mut text: *const c_char = std::ptr::null();
            // SAFETY: one pointer, to a static string or NULL.
            let known = unsafe { function(code, &mut text) } == 0 && !text.is_null();
            // SAFETY: a static NUL-terminated string of the driver's.
            known.then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy())
        };
        let name = text(self.functions.error_name).unwrap_or("an unknown error".into());
        match text(self.functions.error_string) {
            Some(meaning) => format!("{call}: {name} ({code}): {meaning}"),
            None => format!("{call}: {name} ({code})"),
        }
    }
}

/// Whether nothing works any more after this failure.
pub(super) fn is_sticky(code: Code) -> bool {
    STICKY.contains(&code)
}

/// Opens a library, or says why it cannot be.
fn dlopen(path: &CStr) -> Result<Handle, String> {
    // SAFETY: a NUL-terminated path; `dlerror` gives this thread's last failure, or NULL.
    unsafe {
        let library = libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
        if !library.is_null() {
            return Ok(library);
        }
        let text = libc::dlerror();
        Err(if text.is_null() { "dlopen".into() } else { CStr::from_ptr(text).to_string_lossy().into_owned() })
    }
}
