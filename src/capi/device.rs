//! Devices: which there are, and what they are.

use super::guard::{guard, guard_status};
use super::sized::{OutStruct, sized};
use super::status::{EDGELLM_OK, edgellm_status};
use super::text::Text;
use crate::cpu::threads::cores;
use crate::tensor::host_memory;
use crate::{Error, Result, cpu};
use std::ffi::c_char;

/// load_params.device: the first CUDA device that can run the model, else the CPU.
pub const EDGELLM_DEVICE_AUTO: i32 = -1;
/// load_params.device and edgellm_device_info.device of the CPU; CUDA devices have the driver's numbers, from 0.
pub const EDGELLM_DEVICE_CPU: i32 = -2;

/// What a device is. Set struct_size to sizeof(edgellm_device_info) before the call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct edgellm_device_info {
    /// Set by the caller.
    pub struct_size: u32,
    /// EDGELLM_DEVICE_CPU, or the number of a CUDA device.
    pub device: i32,
    /// What its maker calls it; NUL-terminated, as the next one is.
    pub name: [c_char; 64],
    /// What it runs: of the CPU the kernel table that is used, for example "aarch64-dotprod"; of a CUDA device "sm_87".
    pub isa: [c_char; 32],
    /// In bytes.
    pub memory_total: u64,
    /// What could be had now. Of the CPU and of devices that share its memory: what Linux calls available.
    pub memory_available: u64,
    /// 1 when the device shares the memory of the CPU, as on Jetson.
    pub unified_memory: u32,
    /// 1, or 0 when this library cannot use the device now; then edgellm_last_error() says why.
    pub usable: u32,
    /// Of the CPU, the cores of which n_threads = 0 makes threads; of a CUDA device all its multiprocessors.
    pub big_cores: u32,
    /// Of the CPU, the CPUs that this process may use; of a CUDA device its multiprocessors.
    pub cores: u32,
}

sized!(edgellm_device_info {
    struct_size: edgellm_device_info::DEFAULT_SIZE,
    device: EDGELLM_DEVICE_CPU,
    name: [0; 64],
    isa: [0; 32],
    memory_total: 0,
    memory_available: 0,
    unified_memory: 0,
    usable: 0,
    big_cores: 0,
    cores: 0,
});

/// How many devices there are: the CPU, and the CUDA devices if the library was built for them and there is a driver. Any
/// thread; the first call opens the driver.
#[unsafe(no_mangle)]
pub extern "C" fn edgellm_device_count() -> u32 {
    guard(1, || 1 + cuda::count().map_or(0, |count| u32::try_from(count).unwrap_or(0)))
}

/// Says what device `index` is: 0 is the CPU, then come the CUDA devices in the driver's order.
///
/// Any thread. What memory a CUDA device has left is asked in its primary context, which takes a while where this process
/// does not use the device yet. Errors: E_ARG (no such index), E_DEVICE (no such index, because CUDA is not there: says
/// what is missing).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn edgellm_device_get(index: u32, out: *mut edgellm_device_info) -> edgellm_status {
    guard_status(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { OutStruct::new(out)? };
        out.write(&match index.checked_sub(1) {
            None => processor(),
            Some(index) => cuda::info(index as usize)?,
        });
        Ok(EDGELLM_OK)
    })
}

fn processor() -> edgellm_device_info {
    let memory = host_memory();
    let (cores, big_cores) = cores::machine().map_or((0, 0), |(usable, big)| (usable.len(), big.count));
    edgellm_device_info {
        name: chars(&processor_name()),
        isa: chars(cpu::select(None).map_or("", |kernels| kernels.name())),
        memory_total: memory.map_or(0, |memory| memory.total),
        memory_available: memory.map_or(0, |memory| memory.available),
        unified_memory: 1,
        usable: 1,
        big_cores: u32::try_from(big_cores).unwrap_or(0),
        cores: u32::try_from(cores).unwrap_or(0),
        ..<edgellm_device_info as super::sized::SizedStruct>::DEFAULT
    }
}

/// What the system calls the CPU, or the board that it is on.
fn processor_name() -> String {
    let list = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = list.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':')).map(|(_, name)| name);
    let board = || std::fs::read_to_string("/proc/device-tree/model").ok();
    let name = model.map(str::to_owned).or_else(board).unwrap_or_default();
    let name = name.trim_matches(|char: char| char.is_whitespace() || char == '\0');
    if name.is_empty() { std::env::consts::ARCH.to_owned() } else { name.to_owned() }
}

/// As much of a text as there is room for, NUL-terminated.
fn chars<const N: usize>(text: &str) -> [c_char; N] {
    let mut short = Text::<N>::new();
    short.set(format_args!("{text}"));
    let mut chars = [0; N];
    for (to, from) in chars.iter_mut().zip(short.as_str().bytes()) {
        *to = from as c_char;
    }
    chars
}

#[cfg(feature = "cuda")]
mod cuda {
    use super::*;
    use crate::capi::status::record_text;
    use crate::cuda::{Context, DeviceInfo, Driver};

    pub(super) fn count() -> Result<usize> {
        DeviceInfo::count(Driver::get()?)
    }

    pub(super) fn info(index: usize) -> Result<edgellm_device_info> {
        let count = count()?;
        if index >= count {
            return Err(Error::argument(format!("index: {}, and there are {} devices", index + 1, count + 1)));
        }
        let device = DeviceInfo::new(Driver::get()?, index)?;
        let available = device.check_usable().and_then(|()| Context::new(index)?.memory_available());
        if let Err(error) = &available {
            record_text(format_args!("{error}"), 0);
        }
        Ok(edgellm_device_info {
            struct_size: edgellm_device_info::DEFAULT_SIZE,
            device: i32::try_from(index).unwrap_or(i32::MAX),
            name: chars(&device.name),
            isa: chars(&device.arch()),
            memory_total: device.memory_bytes,
            memory_available: *available.as_ref().unwrap_or(&0),
            unified_memory: u32::from(device.unified_memory),
            usable: u32::from(available.is_ok()),
            big_cores: device.multiprocessors,
            cores: device.multiprocessors,
        })
    }
}

#[cfg(not(feature = "cuda"))]
mod cuda {
    use super::*;

    pub(super) fn count() -> Result<usize> {
        Err(Error::device("this build has no CUDA (feature `cuda`)"))
    }

    pub(super) fn info(_index: usize) -> Result<edgellm_device_info> {
        count().map(|_| processor())
    }
}
