//! On a real device, where there is one. It is skipped aloud where there is none; `LIBEDGELLM_TEST_CUDA=1` makes that a
//! failure, for machines that are there for it.
#![cfg(all(feature = "cuda", target_os = "linux"))]

#[path = "cuda/scenario.rs"]
mod scenario;

use edgellm::Error;
use edgellm::cuda::{Context, DeviceBuffer, DeviceInfo, Driver, Module, Stream, module};
use std::io::Write;
use std::sync::Arc;

/// The first device, or why nothing is tested.
fn device() -> Option<(&'static Driver, Arc<Context>)> {
    let found = Driver::get().and_then(|driver| Ok((driver, Context::of(driver, 0)?)));
    match found {
        Ok(found) => Some(found),
        Err(error) => {
            assert!(std::env::var_os("LIBEDGELLM_TEST_CUDA").is_none(), "no CUDA device: {error}");
            // Past the harness, which hides what a passing test prints.
            let _ = writeln!(std::io::stderr(), "SKIPPED: no CUDA device ({error})");
            None
        }
    }
}

/// Memory, copies, a kernel with and without overlap, a graph that is replayed after the device's memory changed.
#[test]
fn everything_works() {
    let Some((driver, context)) = device() else { return };
    let _ = writeln!(std::io::stderr(), "{:?}, CUDA {}", context.info(), driver.version());
    scenario::everything(driver).expect("a device that works");
}

#[test]
fn each_module_is_there_for_the_device() {
    let Some((_, context)) = device() else { return };
    context.info().check_usable().expect("code for it");
    for name in module::modules() {
        Module::load(&context, name).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn too_much_memory_is_refused_and_less_is_had_afterwards() {
    let Some((driver, context)) = device() else { return };
    let info = DeviceInfo::new(driver, 0).expect("a device");
    let available = context.memory_available().expect("an answer");
    assert!(available <= info.memory_bytes, "{available} of {}", info.memory_bytes);
    let bytes = info.memory_bytes as usize * 2;
    match DeviceBuffer::new(&context, "too much", bytes).map(|_| ()) {
        Err(Error::DeviceMemory { what: "too much", bytes: asked }) => assert_eq!(asked, bytes),
        other => panic!("{other:?}"),
    }
    let stream = Stream::new(&context, 0).expect("a stream");
    let buffer = DeviceBuffer::new(&context, "less", 1 << 20).expect("memory");
    stream.fill(&buffer, 0, 1 << 20, 7).expect("a context that works");
    let mut found = vec![0; 1 << 20];
    stream.read(&buffer, 0, &mut found).expect("a context that works");
    assert!(found.iter().all(|byte| *byte == 7));
}
