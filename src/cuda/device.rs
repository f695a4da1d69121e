//! Which devices there are, and the context in which one is used.

use super::driver::{Code, Driver, Functions, Handle, OUT_OF_MEMORY, is_sticky};
use super::module;
use crate::tensor::host_memory;
use crate::{Error, Result};
use std::ffi::{CStr, c_char, c_int};
use std::sync::{Arc, OnceLock};

/// What is asked of a device, by the driver's numbers.
const MULTIPROCESSOR_COUNT: c_int = 16;
const INTEGRATED: c_int = 18;
const L2_BYTES: c_int = 38;
const CAPABILITY_MAJOR: c_int = 75;
const CAPABILITY_MINOR: c_int = 76;
const SHARED_BYTES_MAX: c_int = 97;

/// What a device is.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceInfo {
    /// The driver's number for it, from 0.
    pub index: usize,
    /// For example "NVIDIA H100 80GB HBM3".
    pub name: String,
    /// Compute capability: (8, 7) for sm_87.
    pub capability: (u32, u32),
    /// Streaming multiprocessors.
    pub multiprocessors: u32,
    /// All memory of the device; on unified memory, the part of the machine's that it can use.
    pub memory_bytes: u64,
    /// The device uses the machine's memory, as on Jetson.
    pub unified_memory: bool,
    /// Dynamic shared memory that a thread block may ask for.
    pub shared_bytes_max: usize,
    /// Of the level 2 cache.
    pub l2_bytes: usize,
}

impl DeviceInfo {
    /// How many devices the driver has.
    pub fn count(driver: &Driver) -> Result<usize> {
        let mut count = 0;
        // SAFETY: one number.
        driver.check(unsafe { (driver.functions.device_count)(&mut count) }, "cuDeviceGetCount")?;
        Ok(usize::try_from(count).unwrap_or(0))
    }

    /// Asks what device `index` is. This makes no context.
    pub fn new(driver: &Driver, index: usize) -> Result<DeviceInfo> {
        let (device, functions) = (device(driver, index)?, &driver.functions);
        let mut name = [0; 256];
        // SAFETY: at most as many bytes as there are.
        let code = unsafe { (functions.device_name)(name.as_mut_ptr().cast::<c_char>(), name.len() as c_int, device) };
        driver.check(code, "cuDeviceGetName")?;
        let mut bytes = 0;
        // SAFETY: one number.
        driver.check(unsafe { (functions.device_memory)(&mut bytes, device) }, "cuDeviceTotalMem")?;
        let attribute = |which| {
            let mut value = 0;
            // SAFETY: one number.
            driver.check(unsafe { (functions.device_attribute)(&mut value, which, device) }, "cuDeviceGetAttribute")?;
            Ok::<u32, Error>(u32::try_from(value).unwrap_or(0))
        };
        let name = CStr::from_bytes_until_nul(&name).unwrap_or_default().to_string_lossy().into_owned();
        Ok(DeviceInfo {
            index,
            name,
            capability: (attribute(CAPABILITY_MAJOR)?, attribute(CAPABILITY_MINOR)?),
            multiprocessors: attribute(MULTIPROCESSOR_COUNT)?,
            memory_bytes: bytes as u64,
            unified_memory: attribute(INTEGRATED)? != 0,
            shared_bytes_max: attribute(SHARED_BYTES_MAX)? as usize,
            l2_bytes: attribute(L2_BYTES)? as usize,
        })
    }

    /// "sm_87".
    pub fn arch(&self) -> String {
        format!("sm_{}{}", self.capability.0, self.capability.1)
    }

    /// An error that says why this library has no code for the device, if so.
    pub fn check_usable(&self) -> Result<()> {
        module::check_capability(self)
    }
}

/// The driver's handle of a device.
fn device(driver: &Driver, index: usize) -> Result<c_int> {
    let count = DeviceInfo::count(driver)?;
    if index >= count {
        let there = if count == 0 { "there is none".to_owned() } else { format!("0 to {} are there", count - 1) };
        return Err(Error::device(format!("no CUDA device {index}: {there}")));
    }
    let mut device = 0;
    // SAFETY: one number.
    driver.check(unsafe { (driver.functions.device_get)(&mut device, index as c_int) }, "cuDeviceGet")?;
    Ok(device)
}

/// The primary context of a device, which the whole process shares. Everything of the device is made in it and keeps it.
///
/// A thread of the host's may have another context current: each call makes this one current and puts the other one back.
/// After a failure that the context does not survive, all calls fail with it; dropping things stays safe.
pub struct Context {
    driver: &'static Driver,
    info: DeviceInfo,
    device: c_int,
    handle: Handle,
    lost: OnceLock<String>,
}

// SAFETY: contexts of the driver may be used from any thread, by several at once.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// Opens device `index` of this machine's driver.
    pub fn new(index: usize) -> Result<Arc<Context>> {
        Context::of(Driver::get()?, index)
    }

    /// Opens device `index` of a driver.
    pub fn of(driver: &'static Driver, index: usize) -> Result<Arc<Context>> {
        let (device, info) = (device(driver, index)?, DeviceInfo::new(driver, index)?);
        let mut handle = std::ptr::null_mut();
        // SAFETY: one handle; `drop` gives it back.
        driver.check(unsafe { (driver.functions.context_retain)(&mut handle, device) }, "cuDevicePrimaryCtxRetain")?;
        Ok(Arc::new(Context { driver, info, device, handle, lost: OnceLock::new() }))
    }

    /// What the device is.
    pub fn info(&self) -> &DeviceInfo {
        &self.info
    }

    /// The driver.
    pub fn driver(&self) -> &'static Driver {
        self.driver
    }

    /// Whether a kernel may start before the one before it has ended ([`super::Stream::launch`]): from Hopper on, with
    /// CUDA 12.3, the first one whose graphs can do it.
    pub fn overlaps(&self) -> bool {
        self.info.capability >= (9, 0) && self.driver.version() >= 12030 && self.driver.functions.launch_ex.is_some()
    }

    /// Memory that could be had now. On unified memory that is what the machine has left, which what the driver calls
    /// free is not: it does not count what the system would give up.
    pub fn memory_available(&self) -> Result<u64> {
        if self.info.unified_memory
            && let Some(host) = host_memory()
        {
            return Ok(host.available.min(self.info.memory_bytes));
        }
        let (mut free, mut total) = (0, 0);
        // SAFETY: two numbers.
        self.call("cuMemGetInfo", |driver| unsafe { (driver.memory_info)(&mut free, &mut total) })?;
        Ok(free as u64)
    }

    /// The least and the greatest priority of streams; smaller numbers come first.
    pub fn priorities(&self) -> Result<(i32, i32)> {
        let (mut least, mut greatest) = (0, 0);
        let call = "cuCtxGetStreamPriorityRange";
        // SAFETY: two numbers.
        self.call(call, |driver| unsafe { (driver.priority_range)(&mut least, &mut greatest) })?;
        Ok((least, greatest))
    }

    /// Waits until the device has done everything.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: waits.
        self.call("cuCtxSynchronize", |driver| unsafe { (driver.context_synchronize)() })
    }

    /// An error if the context does not work any more.
    pub fn check_alive(&self) -> Result<()> {
        match self.lost.get() {
            Some(why) => Err(Error::device(why.clone())),
            None => Ok(()),
        }
    }

    pub(super) fn handle(&self) -> Handle {
        self.handle
    }

    /// A call of the driver in this context.
    pub(super) fn call(&self, name: &'static str, call: impl FnOnce(&Functions) -> Code) -> Result<()> {
        let code = self.code(name, call)?;
        self.check(code, name)
    }

    /// The same for a call whose codes mean something; only what a lost context gives is an error.
    pub(super) fn code(&self, name: &'static str, call: impl FnOnce(&Functions) -> Code) -> Result<Code> {
        self.check_alive()?;
        let _current = self.enter()?;
        let code = call(&self.driver.functions);
        if is_sticky(code) { self.check(code, name).map(|()| code) } else { Ok(code) }
    }

    /// A call that gives something back. A lost context has nothing left to give: its failures are no news.
    pub(super) fn release(&self, name: &'static str, call: impl FnOnce(&Functions) -> Code) {
        if let Ok(_current) = self.enter() {
            let _ = self.check(call(&self.driver.functions), name);
        }
    }

    /// The error of a code that is not 0; one that the context does not survive is kept.
    pub(super) fn check(&self, code: Code, call: &'static str) -> Result<()> {
        if code == 0 || code == OUT_OF_MEMORY {
            return self.driver.check(code, call);
        }
        let what = format!("device {} ({}): {}", self.info.index, self.info.name, self.driver.failure(code, call));
        if is_sticky(code) {
            // The first one is the cause.
            let lost = format!("{what}: the device is lost to this process, free what uses it");
            return Err(Error::device(self.lost.get_or_init(|| lost).clone()));
        }
        Err(Error::device(what))
    }

    fn enter(&self) -> Result<Current<'_>> {
        // SAFETY: a retained context; `Current` takes it from this thread's stack again.
        self.check(unsafe { (self.driver.functions.context_push)(self.handle) }, "cuCtxPushCurrent")?;
        Ok(Current(self))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once by `of`; all that was made in the context kept it, so that is gone.
        unsafe { (self.driver.functions.context_release)(self.device) };
    }
}

/// While it lives, the context is current in this thread.
struct Current<'a>(&'a Context);

impl Drop for Current<'_> {
    fn drop(&mut self) {
        let mut popped: Handle = std::ptr::null_mut();
        // SAFETY: takes what `enter` put there.
        unsafe { (self.0.driver.functions.context_pop)(&mut popped) };
    }
}
