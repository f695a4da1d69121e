//! Everything that `edgellm::cuda` does, once, on a driver: the real one or `fake.c`.

use edgellm::Result;
use edgellm::cuda::{Context, DeviceBuffer, Driver, Event, Function, Graph, Module, PinnedBuffer, Stream};
use std::ffi::c_void;
use std::sync::Arc;

/// PTX, which ends with a NUL for the driver.
pub const PROBE: &str = concat!(include_str!("probe.ptx"), "\0");
const COUNT: usize = 1000;
const BYTES: usize = 4 * COUNT;

/// The bytes of `first`, `first + 1`, …
fn numbers(first: u32) -> Vec<u8> {
    (0..COUNT as u32).flat_map(|index| (first + index).to_ne_bytes()).collect()
}

/// Launches `y[i] = x[i] + add`.
fn launch(stream: &Stream, probe: &Function, x: u64, y: u64, add: u32, overlap: bool) -> Result<()> {
    let (mut x, mut y, mut count, mut add) = (x, y, COUNT as u32, add);
    let mut params: [*mut c_void; 4] =
        [(&raw mut x).cast(), (&raw mut y).cast(), (&raw mut count).cast(), (&raw mut add).cast()];
    let grid = [count.div_ceil(256), 1, 1];
    // SAFETY: the parameters of `probe_add`; callers keep both buffers, of COUNT numbers each, until they have waited.
    unsafe { stream.launch(probe, grid, [256, 1, 1], 0, overlap, &mut params) }
}

/// All of it; what comes out is checked, what fails is given back.
pub fn everything(driver: &'static Driver) -> Result<()> {
    let context = Context::of(driver, 0)?;
    assert!(context.memory_available()? > 0);
    let (least, greatest) = context.priorities()?;
    assert!(greatest <= least);
    let stream = Stream::new(&context, greatest)?;
    assert_eq!(Arc::as_ptr(stream.context()), Arc::as_ptr(&context));
    // SAFETY: a whole image.
    let module = unsafe { Module::from_image(&context, PROBE.as_bytes())? };
    let probe = module.function(c"probe_add")?;
    assert!(probe.registers()? > 0 && probe.local_bytes()? == 0);
    assert!(probe.blocks_per_multiprocessor(256, 0)? > 0);
    probe.allow_shared(49_152)?;
    probe.prefer_shared(50)?;
    context.synchronize()?;
    copies(&context, &stream)?;
    launches(&context, &stream, &probe)?;
    let (graph, x, y) = captured(&context, &stream, &probe)?;
    assert_eq!(graph.nodes(), 2);
    drop((graph, x, y));
    context.check_alive()
}

fn copies(context: &Arc<Context>, stream: &Stream) -> Result<()> {
    let x = DeviceBuffer::new(context, "x", BYTES)?;
    let y = DeviceBuffer::new(context, "y", BYTES)?;
    assert!(DeviceBuffer::new(context, "nothing", 0)?.is_empty() && x.len() == BYTES && x.pointer() != 0);
    let mut found = vec![0; BYTES];
    stream.write(&x, 0, &numbers(5))?;
    stream.copy((&x, 0), (&y, 0), BYTES)?;
    stream.fill(&y, 8, 4, 0xff)?;
    stream.fill_words(&y, 16, 2, 0x0102_0304)?;
    stream.read(&y, 0, &mut found)?;
    let mut expected = numbers(5);
    expected[8..12].fill(0xff);
    expected[16..20].copy_from_slice(&0x0102_0304u32.to_ne_bytes());
    expected[20..24].copy_from_slice(&0x0102_0304u32.to_ne_bytes());
    assert_eq!(found, expected);
    stream.read(&y, BYTES - 4, &mut found[..4])?;
    assert_eq!(found[..4], expected[BYTES - 4..]);
    for (offset, len) in [(BYTES, 1), (1, BYTES), (usize::MAX, 2)] {
        assert!(stream.fill(&y, offset, len, 0).is_err(), "{offset} {len}");
    }
    let mut pinned = PinnedBuffer::new(context, "pinned", BYTES)?;
    assert!((0..COUNT).all(|index| pinned.load(index) == 0) && pinned.len() == BYTES && !pinned.is_empty());
    // SAFETY: the buffer lives until `synchronize`, and nobody looks before.
    unsafe { stream.read_later(&x, 0, pinned.as_ptr(), BYTES)? };
    stream.synchronize()?;
    assert_eq!(pinned.load(1), 6);
    pinned.store(1, 77);
    // SAFETY: the device does nothing.
    unsafe { pinned.bytes_mut()[0] = 1 };
    // SAFETY: the buffer lives until `synchronize`, and stays as it is.
    unsafe { stream.write_later(&y, 0, pinned.as_ptr(), BYTES)? };
    stream.read(&y, 0, &mut found[..8])?;
    // SAFETY: the device does nothing.
    assert_eq!(found[..8], unsafe { pinned.bytes() }[..8]);
    Ok(())
}

/// From memory of the device to mapped memory of the host, with and without overlap.
fn launches(context: &Arc<Context>, stream: &Stream, probe: &Function) -> Result<()> {
    let x = DeviceBuffer::new(context, "x", BYTES)?;
    let y = PinnedBuffer::new(context, "y", BYTES)?;
    let (start, end) = (Event::new(context, true)?, Event::new(context, true)?);
    let other = Stream::new(context, 0)?;
    let after = Event::new(context, false)?;
    stream.write(&x, 0, &numbers(100))?;
    start.record(stream)?;
    launch(stream, probe, x.pointer(), y.pointer(), 7, false)?;
    end.record(stream)?;
    end.synchronize()?;
    assert!(end.is_done()? && end.ms_since(&start)? >= 0.0);
    assert_eq!((y.load(0), y.load(COUNT - 1)), (107, 106 + COUNT as u32));
    after.record(stream)?;
    other.wait(&after)?;
    launch(&other, probe, x.pointer(), y.pointer(), 9, true)?;
    while !other.is_done()? {}
    assert_eq!((y.load(0), y.load(COUNT - 1)), (109, 108 + COUNT as u32));
    Ok(())
}

/// A graph of two kernels, the second of which reads what the first wrote; replayed after the device's memory changed.
fn captured(context: &Arc<Context>, stream: &Stream, probe: &Function) -> Result<(Graph, DeviceBuffer, DeviceBuffer)> {
    let x = DeviceBuffer::new(context, "x", BYTES)?;
    let y = DeviceBuffer::new(context, "y", BYTES)?;
    let graph = stream.capture(|stream| {
        launch(stream, probe, x.pointer(), y.pointer(), 1, false)?;
        launch(stream, probe, y.pointer(), y.pointer(), 10, false)
    })?;
    for first in [0, 1000, 50] {
        stream.write(&x, 0, &numbers(first))?;
        // SAFETY: both buffers live until `read` has waited, and `probe` keeps its module.
        unsafe { graph.launch(stream)? };
        let mut found = vec![0; BYTES];
        stream.read(&y, 0, &mut found)?;
        assert_eq!(found, numbers(first + 11));
    }
    Ok((graph, x, y))
}
