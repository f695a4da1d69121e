//! The device code that `build.rs` compiled: one image for each file and architecture, of which a device takes one.

use super::device::{Context, DeviceInfo};
use super::driver::{Functions, Handle};
use crate::{Error, Result};
use std::ffi::{CStr, c_int, c_void};
use std::sync::Arc;

/// A file of `kernels/`, compiled for one architecture.
struct Image {
    /// The file's name without its end.
    module: &'static str,
    /// Compute capability that it is for.
    major: u32,
    minor: u32,
    /// It runs with this very capability only (`90a`).
    only: bool,
    /// PTX, with a NUL at the end, which the driver compiles; else machine code.
    ptx: bool,
    code: &'static Aligned<[u8]>,
}

/// Images begin where everything in them is aligned.
#[repr(C, align(64))]
struct Aligned<T: ?Sized>(T);

include!(concat!(env!("OUT_DIR"), "/cuda_images.rs"));

/// Jetson's and its kin, which no other machine's code runs on, nor the other way round.
const TEGRA: [(u32, u32); 4] = [(7, 2), (8, 7), (10, 1), (11, 0)];

/// The dynamic shared memory that a kernel may be launched with.
const SHARED_BYTES_MAX: c_int = 8;
/// How much of its fast memory a multiprocessor keeps as shared memory, in percent.
const SHARED_PERCENT: c_int = 9;
const LOCAL_BYTES: c_int = 3;
const REGISTERS: c_int = 4;

impl Image {
    /// "sm_87", "compute_75".
    fn arch(&self) -> String {
        let kind = if self.ptx { "compute" } else { "sm" };
        format!("{kind}_{}{}{}", self.major, self.minor, if self.only { "a" } else { "" })
    }

    /// How well it suits a device; None: not at all.
    fn suits(&self, capability: (u32, u32)) -> Option<(bool, u32, u32, bool)> {
        let own = (self.major, self.minor);
        let runs = match (self.only, self.ptx) {
            _ if own == capability => true,
            (true, _) => false,
            (false, true) => own <= capability,
            (false, false) => {
                !TEGRA.contains(&own) && !TEGRA.contains(&capability) && own.0 == capability.0 && own.1 < capability.1
            }
        };
        runs.then_some((!self.ptx, self.major, self.minor, self.only))
    }
}

/// The best image of a module for a device: machine code of the same major version and the highest minor one that runs
/// there, else PTX.
fn choose(images: &'static [Image], module: &str, capability: (u32, u32)) -> Option<&'static Image> {
    let of_module = images.iter().filter(|image| image.module == module);
    let suited = of_module.filter_map(|image| Some((image.suits(capability)?, image)));
    suited.max_by_key(|(suits, _)| *suits).map(|(_, image)| image)
}

/// The modules that are built in.
pub fn modules() -> impl Iterator<Item = &'static str> {
    let first = |(index, image): (usize, &'static Image)| {
        IMAGES[..index].iter().all(|before| before.module != image.module).then_some(image.module)
    };
    IMAGES.iter().enumerate().filter_map(first)
}

/// What the images are for, as in "sm_87", each once.
pub fn archs() -> Vec<String> {
    let mut archs = Vec::new();
    for image in IMAGES {
        if !archs.contains(&image.arch()) {
            archs.push(image.arch());
        }
    }
    archs
}

/// What the images were compiled by, as in "NVRTC 11.8".
pub fn compilers() -> &'static str {
    COMPILERS
}

/// An error if there is no code for the device.
pub(super) fn check_capability(device: &DeviceInfo) -> Result<()> {
    modules().try_for_each(|module| image(module, device).map(|_| ()))
}

fn image(module: &str, device: &DeviceInfo) -> Result<&'static Image> {
    choose(IMAGES, module, device.capability).ok_or_else(|| {
        let (which, built) = (format!("device {} ({})", device.index, device.name), archs().join(", "));
        Error::device(format!("{which} is {}, and module {module} is built for {built}", device.arch()))
    })
}

/// Device code, loaded into a context.
pub struct Module {
    context: Arc<Context>,
    handle: Handle,
}

// SAFETY: modules of the driver may be used from any thread, by several at once.
unsafe impl Send for Module {}
// SAFETY: as above.
unsafe impl Sync for Module {}

impl Module {
    /// Loads `kernels/NAME.cu`, compiled for this device or, from PTX, by its driver.
    pub fn load(context: &Arc<Context>, name: &str) -> Result<Arc<Module>> {
        let image = image(name, context.info())?;
        log::debug!("{name}: {} for {}", image.arch(), context.info().arch());
        // SAFETY: what the compiler gave, PTX with a NUL at the end.
        unsafe { Module::from_image(context, &image.code.0) }
    }

    /// Loads other code.
    ///
    /// # Safety
    /// `code` is a whole image: a cubin, or PTX that ends with a NUL.
    pub unsafe fn from_image(context: &Arc<Context>, code: &[u8]) -> Result<Arc<Module>> {
        let mut handle = std::ptr::null_mut();
        let image = code.as_ptr().cast::<c_void>();
        // SAFETY: a whole image by the contract, one handle; `drop` gives it back.
        context.call("cuModuleLoadData", |driver| unsafe { (driver.module_load)(&mut handle, image) })?;
        Ok(Arc::new(Module { context: context.clone(), handle }))
    }

    /// The kernel of this name.
    pub fn function(self: &Arc<Self>, name: &CStr) -> Result<Function> {
        let mut handle = std::ptr::null_mut();
        // SAFETY: a loaded module, a NUL-terminated name, one handle, which lives as long as the module.
        let get = |driver: &Functions| unsafe { (driver.module_function)(&mut handle, self.handle, name.as_ptr()) };
        self.context.call("cuModuleGetFunction", get).map_err(|error| match error {
            Error::Device(text) => Error::device(format!("kernel {}: {text}", name.to_string_lossy())),
            error => error,
        })?;
        Ok(Function { module: self.clone(), handle })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: loaded by `from_image`; its functions kept it, so they are gone.
        self.context.release("cuModuleUnload", |driver| unsafe { (driver.module_unload)(self.handle) });
    }
}

/// A kernel, which keeps its module.
#[derive(Clone)]
pub struct Function {
    module: Arc<Module>,
    handle: Handle,
}

// SAFETY: functions of the driver may be used from any thread, by several at once.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Function {
    /// Allows launches with this much dynamic shared memory; without it they may have 48 KiB.
    pub fn allow_shared(&self, bytes: usize) -> Result<()> {
        self.set(SHARED_BYTES_MAX, c_int::try_from(bytes).unwrap_or(c_int::MAX))
    }

    /// Asks for this part of a multiprocessor's fast memory to be shared memory, the rest to be cache.
    pub fn prefer_shared(&self, percent: u32) -> Result<()> {
        self.set(SHARED_PERCENT, percent.min(100) as c_int)
    }

    /// Registers that a thread uses.
    pub fn registers(&self) -> Result<u32> {
        self.get(REGISTERS)
    }

    /// Local memory that a thread uses: what does not fit its registers.
    pub fn local_bytes(&self) -> Result<u32> {
        self.get(LOCAL_BYTES)
    }

    /// How many thread blocks of so many threads, with so much dynamic shared memory, a multiprocessor has room for.
    pub fn blocks_per_multiprocessor(&self, threads: u32, shared_bytes: usize) -> Result<u32> {
        let mut count = 0;
        let threads = c_int::try_from(threads).unwrap_or(c_int::MAX);
        let call = "cuOccupancyMaxActiveBlocksPerMultiprocessor";
        // SAFETY: a live function, one number.
        let ask = |driver: &Functions| unsafe { (driver.occupancy)(&mut count, self.handle, threads, shared_bytes) };
        self.module.context.call(call, ask)?;
        Ok(u32::try_from(count).unwrap_or(0))
    }

    pub(super) fn handle(&self) -> Handle {
        self.handle
    }

    pub(super) fn context(&self) -> &Arc<Context> {
        &self.module.context
    }

    fn set(&self, attribute: c_int, value: c_int) -> Result<()> {
        let call = "cuFuncSetAttribute";
        // SAFETY: a live function, two numbers.
        self.module.context.call(call, |driver| unsafe { (driver.function_set)(self.handle, attribute, value) })
    }

    fn get(&self, attribute: c_int) -> Result<u32> {
        let mut value = 0;
        // SAFETY: a live function, one number.
        let get = |driver: &Functions| unsafe { (driver.function_get)(&mut value, attribute, self.handle) };
        self.module.context.call("cuFuncGetAttribute", get)?;
        Ok(u32::try_from(value).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn image(major: u32, minor: u32, only: bool, ptx: bool) -> Image {
        Image { module: "m", major, minor, only, ptx, code: &Aligned([]) }
    }

    static TABLE: [Image; 9] = [
        image(7, 5, false, true),
        image(7, 5, false, false),
        image(8, 0, false, false),
        image(8, 6, false, false),
        image(8, 7, false, false),
        image(8, 9, false, false),
        image(9, 0, false, false),
        image(9, 0, true, false),
        image(11, 0, false, false),
    ];

    #[test]
    fn a_device_takes_code_that_runs_there() {
        let chosen = |capability| choose(&TABLE, "m", capability).map(Image::arch).unwrap_or_default();
        assert_eq!(chosen((7, 5)), "sm_75");
        assert_eq!(chosen((8, 0)), "sm_80");
        assert_eq!(chosen((8, 6)), "sm_86");
        assert_eq!(chosen((8, 7)), "sm_87");
        assert_eq!(chosen((8, 8)), "sm_86"); // Not Jetson's.
        assert_eq!(chosen((8, 9)), "sm_89");
        assert_eq!(chosen((9, 0)), "sm_90a");
        assert_eq!(chosen((9, 1)), "sm_90");
        assert_eq!(chosen((10, 0)), "compute_75"); // Another major version.
        assert_eq!(chosen((10, 1)), "compute_75");
        assert_eq!(chosen((11, 0)), "sm_110");
        assert_eq!(chosen((7, 0)), "");
        assert!(choose(&TABLE, "n", (8, 0)).is_none());
    }

    #[test]
    fn every_module_is_built_for_the_same_architectures() {
        for module in modules() {
            let count = IMAGES.iter().filter(|image| image.module == module).count();
            assert_eq!(count, archs().len(), "{module}");
        }
        for image in IMAGES {
            assert_eq!(image.code.0.as_ptr() as usize % 64, 0);
            match image.ptx {
                true => assert_eq!(image.code.0.last(), Some(&0)),
                false => assert!(image.code.0.starts_with(b"\x7fELF")),
            }
        }
    }
}
