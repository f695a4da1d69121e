//! Work in order: copies, launches, graphs, events.

use super::device::Context;
use super::driver::{Functions, Handle, LaunchAttribute, LaunchConfig, NOT_READY};
use super::memory::DeviceBuffer;
use super::module::Function;
use crate::{Error, Result};
use std::ffi::{c_uint, c_void};
use std::ptr::null_mut;
use std::sync::Arc;

/// Work of other streams, the host's default one among them, is not waited for.
const NON_BLOCKING: c_uint = 1;
/// While a stream is captured, other threads may do what they like.
const CAPTURE_OF_THREAD: i32 = 1;
/// An event that takes no time stamp, which is faster.
const WITHOUT_TIME: c_uint = 2;

/// A queue of work for a device, done in order.
pub struct Stream {
    context: Arc<Context>,
    handle: Handle,
    /// False: the host's.
    own: bool,
}

// SAFETY: streams of the driver may be used from any thread, by several at once.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    /// A new one. Smaller priorities come first; one that is not in [`Context::priorities`] is an error, where the driver
    /// would take the nearest. 0 always is.
    pub fn new(context: &Arc<Context>, priority: i32) -> Result<Stream> {
        if priority != 0 {
            let ((least, greatest), device) = (context.priorities()?, context.info().index);
            if !(greatest..=least).contains(&priority) {
                let text =
                    format!("a stream of priority {priority}: device {device} has {greatest} (first) to {least}");
                return Err(Error::argument(text));
            }
        }
        let mut handle = null_mut();
        let call = "cuStreamCreateWithPriority";
        // SAFETY: one handle; `drop` gives it back.
        context.call(call, |driver| unsafe { (driver.stream_create)(&mut handle, NON_BLOCKING, priority) })?;
        Ok(Stream { context: context.clone(), handle, own: true })
    }

    /// The host's stream, which must be one of this device's primary context.
    ///
    /// # Safety
    /// `handle` is a `CUstream` that lives longer than the result and everything made with it.
    pub unsafe fn borrow(context: &Arc<Context>, handle: *mut c_void) -> Result<Stream> {
        let mut its = null_mut();
        // SAFETY: a live stream by the contract, one handle.
        context.call("cuStreamGetCtx", |driver| unsafe { (driver.stream_context)(handle, &mut its) })?;
        if its != context.handle() {
            let device = context.info().index;
            return Err(Error::argument(format!("the stream is not of the primary context of device {device}")));
        }
        Ok(Stream { context: context.clone(), handle, own: false })
    }

    /// The driver's handle, a `CUstream`.
    pub fn handle(&self) -> *mut c_void {
        self.handle
    }

    /// The context that it is of.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    /// Waits until all work is done. What failed in it says so here.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: a live stream.
        self.context.call("cuStreamSynchronize", |driver| unsafe { (driver.stream_synchronize)(self.handle) })
    }

    /// Whether all work is done.
    pub fn is_done(&self) -> Result<bool> {
        // SAFETY: a live stream.
        let code = self.context.code("cuStreamQuery", |driver| unsafe { (driver.stream_query)(self.handle) })?;
        done(&self.context, code, "cuStreamQuery")
    }

    /// Lets the work that comes after this wait for an event.
    pub fn wait(&self, event: &Event) -> Result<()> {
        // SAFETY: a live stream and a live event.
        self.context.call("cuStreamWaitEvent", |driver| unsafe { (driver.stream_wait)(self.handle, event.handle, 0) })
    }

    // ---- copies ----

    /// Copies `bytes` to `to` at `offset`, and waits until that is done.
    pub fn write(&self, to: &DeviceBuffer, offset: usize, bytes: &[u8]) -> Result<()> {
        // SAFETY: `bytes` are borrowed until the copy is done.
        unsafe { self.write_later(to, offset, bytes.as_ptr(), bytes.len())? };
        self.synchronize()
    }

    /// Copies from `from` at `offset` to `bytes`, and waits until that is done.
    pub fn read(&self, from: &DeviceBuffer, offset: usize, bytes: &mut [u8]) -> Result<()> {
        // SAFETY: `bytes` are borrowed until the copy is done.
        unsafe { self.read_later(from, offset, bytes.as_mut_ptr(), bytes.len())? };
        self.synchronize()
    }

    /// Copies `len` bytes of the host's to `to` at `offset`; from pinned memory that is done later.
    ///
    /// # Safety
    /// `bytes` has `len` readable bytes that stay, unchanged, until the copy is done; captured, until the graph is gone.
    pub unsafe fn write_later(&self, to: &DeviceBuffer, offset: usize, bytes: *const u8, len: usize) -> Result<()> {
        let at = to.at(offset, len)?;
        // SAFETY: inside the buffer (checked), the host's side by the contract.
        let copy = |driver: &Functions| unsafe { (driver.copy_to_device)(at, bytes.cast(), len, self.handle) };
        if len == 0 { Ok(()) } else { self.context.call("cuMemcpyHtoDAsync", copy) }
    }

    /// Copies `len` bytes from `from` at `offset` to the host; to pinned memory that is done later.
    ///
    /// # Safety
    /// `bytes` has `len` writable bytes that stay, and that nobody else uses, until the copy is done; captured, until the
    /// graph is gone.
    pub unsafe fn read_later(&self, from: &DeviceBuffer, offset: usize, bytes: *mut u8, len: usize) -> Result<()> {
        let at = from.at(offset, len)?;
        // SAFETY: inside the buffer (checked), the host's side by the contract.
        let copy = |driver: &Functions| unsafe { (driver.copy_to_host)(bytes.cast(), at, len, self.handle) };
        if len == 0 { Ok(()) } else { self.context.call("cuMemcpyDtoHAsync", copy) }
    }

    /// Copies `len` bytes on the device, later. The two places must not overlap.
    pub fn copy(
        &self,
        (from, from_offset): (&DeviceBuffer, usize),
        (to, to_offset): (&DeviceBuffer, usize),
        len: usize,
    ) -> Result<()> {
        let (from, to) = (from.at(from_offset, len)?, to.at(to_offset, len)?);
        // SAFETY: inside the buffers (checked), whose `drop` waits for what runs.
        let copy = |driver: &Functions| unsafe { (driver.copy_on_device)(to, from, len, self.handle) };
        if len == 0 { Ok(()) } else { self.context.call("cuMemcpyDtoDAsync", copy) }
    }

    /// Fills `len` bytes of `to` at `offset`, later.
    pub fn fill(&self, to: &DeviceBuffer, offset: usize, len: usize, value: u8) -> Result<()> {
        let at = to.at(offset, len)?;
        // SAFETY: inside the buffer (checked), whose `drop` waits for what runs.
        let fill = |driver: &Functions| unsafe { (driver.fill_u8)(at, value, len, self.handle) };
        if len == 0 { Ok(()) } else { self.context.call("cuMemsetD8Async", fill) }
    }

    /// Fills `count` 32-bit words of `to` at `offset`, a multiple of 4, later.
    pub fn fill_words(&self, to: &DeviceBuffer, offset: usize, count: usize, value: u32) -> Result<()> {
        let at = to.at(offset, count.saturating_mul(size_of::<u32>()))?;
        // SAFETY: inside the buffer (checked), whose `drop` waits for what runs.
        let fill = |driver: &Functions| unsafe { (driver.fill_u32)(at, value, count, self.handle) };
        if count == 0 { Ok(()) } else { self.context.call("cuMemsetD32Async", fill) }
    }

    // ---- kernels ----

    /// Launches a kernel on `grid` thread blocks of `block` threads, with `shared_bytes` of dynamic shared memory.
    ///
    /// With `overlap`, where [`Context::overlaps`], the kernel may start while the one before it in the stream still runs:
    /// it waits itself (`griddepcontrol.wait`) before it touches what that one writes.
    ///
    /// # Safety
    /// `params` point to as many values, of the types, as the kernel takes. What the kernel reads and writes is alive
    /// until it has ended, and nobody else uses it in a way that matters; captured, until the graph is gone.
    pub unsafe fn launch(
        &self,
        function: &Function,
        grid: [u32; 3],
        block: [u32; 3],
        shared_bytes: u32,
        overlap: bool,
        params: &mut [*mut c_void],
    ) -> Result<()> {
        if !Arc::ptr_eq(function.context(), &self.context) {
            return Err(Error::Internal("a kernel of one context in a stream of another".into()));
        }
        let (kernel, params) = (function.handle(), params.as_mut_ptr());
        let launch_ex = self.context.driver().functions.launch_ex;
        match launch_ex.filter(|_| overlap && self.context.overlaps()) {
            Some(launch_ex) => {
                let attributes = &LaunchAttribute::OVERLAP;
                let config =
                    LaunchConfig { grid, block, shared_bytes, stream: self.handle, attributes, attribute_count: 1 };
                // SAFETY: a live function and stream; the parameters by the contract.
                self.context.call("cuLaunchKernelEx", |_| unsafe { launch_ex(&config, kernel, params, null_mut()) })
            }
            None => {
                let ([x, y, z], [a, b, c], stream) = (grid, block, self.handle);
                // SAFETY: a live function and stream; the parameters by the contract.
                self.context.call("cuLaunchKernel", |driver| unsafe {
                    (driver.launch)(kernel, x, y, z, a, b, c, shared_bytes, stream, params, null_mut())
                })
            }
        }
    }

    // ---- graphs ----

    /// Makes a graph of what `work` gives to this stream, instead of doing it.
    pub fn capture(&self, work: impl FnOnce(&Stream) -> Result<()>) -> Result<Graph> {
        let (context, handle) = (&self.context, self.handle);
        let call = "cuStreamBeginCapture";
        // SAFETY: a live stream.
        context.call(call, |driver| unsafe { (driver.capture_begin)(handle, CAPTURE_OF_THREAD) })?;
        let capture = Capture { stream: self, graph: null_mut() };
        let worked = work(self);
        let template = capture.end();
        worked?;
        let template = template?;
        let (mut exec, mut nodes) = (null_mut(), 0);
        // SAFETY: a captured graph, one number: NULL asks how many nodes there are.
        context.call("cuGraphGetNodes", |driver| unsafe {
            (driver.graph_nodes)(template.graph, null_mut(), &mut nodes)
        })?;
        let call = "cuGraphInstantiateWithFlags";
        // SAFETY: a captured graph, one handle; `Graph` gives it back.
        context.call(call, |driver| unsafe { (driver.graph_instantiate)(&mut exec, template.graph, 0) })?;
        Ok(Graph { context: context.clone(), exec, nodes })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.own {
            // SAFETY: created by `new`, not destroyed before; work that is left is done first.
            self.context.release("cuStreamDestroy", |driver| unsafe { (driver.stream_destroy)(self.handle) });
        }
    }
}

fn done(context: &Context, code: i32, call: &'static str) -> Result<bool> {
    if code == NOT_READY { Ok(false) } else { context.check(code, call).map(|()| true) }
}

/// A capture that is going on, then what it gave; ended and given back also when the work panics.
struct Capture<'a> {
    stream: &'a Stream,
    graph: Handle,
}

impl Capture<'_> {
    fn end(mut self) -> Result<Self> {
        let (context, stream) = (&self.stream.context, self.stream.handle);
        // SAFETY: a live stream, one handle; `drop` gives it back.
        context.call("cuStreamEndCapture", |driver| unsafe { (driver.capture_end)(stream, &mut self.graph) })?;
        Ok(self)
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        let (context, stream) = (&self.stream.context, self.stream.handle);
        if self.graph.is_null() {
            // SAFETY: as in `end`; if that failed there is no capture to end, and the driver says so.
            context.release("cuStreamEndCapture", |driver| unsafe { (driver.capture_end)(stream, &mut self.graph) });
        }
        if !self.graph.is_null() {
            // SAFETY: given by the end of the capture, not destroyed before.
            context.release("cuGraphDestroy", |driver| unsafe { (driver.graph_destroy)(self.graph) });
        }
    }
}

/// Captured work, to be launched again and again.
pub struct Graph {
    context: Arc<Context>,
    exec: Handle,
    nodes: usize,
}

// SAFETY: a graph may be used from any thread, but by one at a time: it is not `Sync`.
unsafe impl Send for Graph {}

impl Graph {
    /// Launches all of it into a stream.
    ///
    /// # Safety
    /// What the captured work reads and writes is alive until it has ended, as are its kernels' modules.
    pub unsafe fn launch(&self, stream: &Stream) -> Result<()> {
        // SAFETY: a live graph and stream; the rest is the contract.
        self.context.call("cuGraphLaunch", |driver| unsafe { (driver.graph_launch)(self.exec, stream.handle) })
    }

    /// How many nodes it has.
    pub fn nodes(&self) -> usize {
        self.nodes
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: instantiated by `capture`, not destroyed before; a launch that still runs goes on.
        self.context.release("cuGraphExecDestroy", |driver| unsafe { (driver.graph_exec_destroy)(self.exec) });
    }
}

/// A point in a stream.
pub struct Event {
    context: Arc<Context>,
    handle: Handle,
}

// SAFETY: events of the driver may be used from any thread, by several at once.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl Event {
    /// An event that can be waited for; with `timed`, it says when.
    pub fn new(context: &Arc<Context>, timed: bool) -> Result<Event> {
        let (mut handle, flags) = (null_mut(), if timed { 0 } else { WITHOUT_TIME });
        // SAFETY: one handle; `drop` gives it back.
        context.call("cuEventCreate", |driver| unsafe { (driver.event_create)(&mut handle, flags) })?;
        Ok(Event { context: context.clone(), handle })
    }

    /// Puts it behind the work that the stream has now.
    pub fn record(&self, stream: &Stream) -> Result<()> {
        // SAFETY: a live event and stream.
        self.context.call("cuEventRecord", |driver| unsafe { (driver.event_record)(self.handle, stream.handle) })
    }

    /// Whether the work before it is done.
    pub fn is_done(&self) -> Result<bool> {
        // SAFETY: a live event.
        let code = self.context.code("cuEventQuery", |driver| unsafe { (driver.event_query)(self.handle) })?;
        done(&self.context, code, "cuEventQuery")
    }

    /// Waits until the work before it is done.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: a live event.
        self.context.call("cuEventSynchronize", |driver| unsafe { (driver.event_synchronize)(self.handle) })
    }

    /// Milliseconds from `start` to this; both timed, recorded and done.
    pub fn ms_since(&self, start: &Event) -> Result<f32> {
        let mut ms = 0.0;
        let call = "cuEventElapsedTime";
        // SAFETY: live events, one number.
        self.context.call(call, |driver| unsafe { (driver.event_elapsed)(&mut ms, start.handle, self.handle) })?;
        Ok(ms)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: created by `new`, not destroyed before.
        self.context.release("cuEventDestroy", |driver| unsafe { (driver.event_destroy)(self.handle) });
    }
}
