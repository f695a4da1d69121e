//! NVIDIA's driver, opened at run time: one library for machines with and without a GPU.
//!
//! | module | what it is |
//! |---|---|
//! | [`driver`] | the functions of `libcuda.so.1`, and what their failures mean |
//! | [`device`] | which devices there are, and the context of one |
//! | [`memory`] | memory of the device, and of the host for both |
//! | [`module`] | the device code that `build.rs` compiled, and its kernels |
//! | [`stream`] | work in order: copies, launches, graphs, events |
//!
//! Nothing here panics or prints: a driver that is missing, too old or failing is an `Error::Device`, no memory of the
//! device an `Error::DeviceMemory`. Calls of the driver are in these files only. What runs on the device cannot be
//! checked from here: launches are `unsafe`, and their callers say why they are right.

pub mod device;
pub mod driver;
pub mod memory;
pub mod module;
pub mod stream;

pub use device::{Context, DeviceInfo};
pub use driver::Driver;
pub use memory::{DeviceBuffer, PinnedBuffer};
pub use module::{Function, Module};
pub use stream::{Event, Graph, Stream};
