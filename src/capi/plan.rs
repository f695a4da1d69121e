//! What a model and a session would take of memory.

use super::device::EDGELLM_DEVICE_CPU;
use super::guard::guard_status;
use super::model::{edgellm_load_params, with_options};
use super::session::{edgellm_session_params, session_options};
use super::sized::{OutStruct, read, read_optional, sized};
use super::status::{EDGELLM_OK, edgellm_status};
use crate::Device;
use crate::model::plan::MemoryPlan;
use crate::session::SessionPlan;

/// What a model and one session of it take of memory, in bytes. Buffers are counted in the units in which the system (whole
/// pages) or the device (2 MiB) gives them, and so are the tokenizer and the stacks of threads; not counted are grammars, small
/// objects, some KiB in all, and what the CUDA driver keeps for itself. Set struct_size to sizeof(edgellm_plan) before the call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct edgellm_plan {
    /// Set by the caller.
    pub struct_size: u32,
    /// 1 when `needed` is within memory_limit, and all of it within what is available now; else 0.
    pub fits: u32,
    /// As long as the model lives: weights that are not on a device, the tokenizer, the stacks of threads.
    pub weights_host: u64,
    /// Weights on the device.
    pub weights_device: u64,
    /// The keys and values of one session, on the CPU,
    pub kv_host: u64,
    /// or on the device.
    pub kv_device: u64,
    /// What else one session takes of the host's memory.
    pub scratch_host: u64,
    /// And of the device's.
    pub scratch_device: u64,
    /// Of the model's file, mapped while it is loaded; the rows of some embeddings are read from there later. The system
    /// takes these pages back when it needs memory: no other number counts them.
    pub mapped_file: u64,
    /// The most that loading takes at a time, of host and device together.
    pub peak_load: u64,
    /// What could be had of the host's memory now: what Linux calls available, or what control groups leave, if less.
    pub available_host: u64,
    /// And of the device's; where it is the host's, what Linux calls available.
    pub available_device: u64,
    /// The longest context of such a session that fits; 0 = none.
    pub n_ctx_fits: u32,
    /// Where the model would run: EDGELLM_DEVICE_CPU, or the number of a CUDA device.
    pub device: i32,
    /// The least memory_limit with which the model can be loaded and one such session made.
    pub needed: u64,
}

sized!(edgellm_plan {
    struct_size: edgellm_plan::DEFAULT_SIZE,
    fits: 0,
    weights_host: 0,
    weights_device: 0,
    kv_host: 0,
    kv_device: 0,
    scratch_host: 0,
    scratch_device: 0,
    mapped_file: 0,
    peak_load: 0,
    available_host: 0,
    available_device: 0,
    n_ctx_fits: 0,
    device: EDGELLM_DEVICE_CPU,
    needed: 0,
});

/// Says what edgellm_load and edgellm_session_new with the same parameters would take of memory, to the byte: a
/// memory_limit of out.needed is enough for both, and one page less is not. `session` = NULL: all defaults. Only what files
/// say of themselves is read; no weight is, and nothing is left in memory. With EDGELLM_DEVICE_AUTO the plan is for the first
/// device that can run the model, whether it has room or not, while the load would go on to the CPU.
///
/// Any thread; waits for the disk. Errors: as edgellm_load and edgellm_session_new for what is wrong with the parameters
/// or the file; memory that is not there is no error, but out.fits.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn edgellm_plan_memory(
    load: *const edgellm_load_params,
    session: *const edgellm_session_params,
    out: *mut edgellm_plan,
) -> edgellm_status {
    guard_status(|| {
        // SAFETY: the caller's contract.
        let (load, session, out) = unsafe { (read(load)?, read_optional(session)?, OutStruct::new(out)?) };
        let options = session_options(&session)?;
        // SAFETY: the caller's contract.
        let plan = unsafe { with_options(&load, |source, options| MemoryPlan::new(source, &options))? };
        let session = SessionPlan::new(&plan, &options)?;
        let (kv, scratch) = (session.memory.kv, session.memory.scratch);
        out.write(&edgellm_plan {
            struct_size: edgellm_plan::DEFAULT_SIZE,
            fits: u32::from(plan.fits(kv + scratch)),
            weights_host: plan.model.host,
            weights_device: plan.model.device,
            kv_host: kv.host,
            kv_device: kv.device,
            scratch_host: scratch.host,
            scratch_device: scratch.device,
            mapped_file: plan.mapped_file,
            peak_load: plan.peak_load().total(),
            available_host: plan.available.host,
            available_device: plan.available.device,
            n_ctx_fits: u32::try_from(session.context_len_fits).unwrap_or(u32::MAX),
            device: match plan.device {
                Device::Cuda(index) => i32::try_from(index).unwrap_or(i32::MAX),
                Device::Cpu | Device::Auto => EDGELLM_DEVICE_CPU,
            },
            needed: plan.needed(kv + scratch),
        });
        Ok(EDGELLM_OK)
    })
}
