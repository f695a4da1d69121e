//! Models: load, share, ask, free.

use super::device::{EDGELLM_DEVICE_AUTO, EDGELLM_DEVICE_CPU};
use super::guard::{guard, guard_status, guard_unit, watch_forks};
use super::handle::{Handle, edgellm_model};
use super::memory::{Buffer, Out, bytes, check_flags, text};
use super::sized::{OutStruct, init, read, sized};
use super::status::{EDGELLM_OK, Failure, edgellm_status};
use super::types::edgellm_str;
use crate::file::Value;
use crate::model::{HostStream, OnThread, Schedule, Source};
use crate::tensor::Residence;
use crate::{Device, Error, I2sLayout, LoadOptions, Model, Result};
use std::ffi::{OsStr, c_char, c_void};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;

/// Called on the loading thread, at most 100 times, with what is done, 0 to 1; a value other than 0 stops the load with
/// EDGELLM_E_CANCELLED. It must not unwind or longjmp.
pub type edgellm_progress_fn = Option<unsafe extern "C" fn(user: *mut c_void, done: f32) -> i32>;

/// Called in each worker thread: when it starts, after its CPUs and scheduling are set (start = 1), and when it ends
/// (start = 0). `index` counts from 0, as in the threads' names "edgellm-w0", ... Workers start during edgellm_load and end
/// when the model and its sessions are freed, or when a load fails; each end follows a start. The thread has 256 KiB of
/// stack. It must not unwind or longjmp, nor call edgellm functions.
pub type edgellm_thread_fn = Option<unsafe extern "C" fn(user: *mut c_void, index: u32, start: i32)>;

/// Locks weights, keys, values and activations in memory, so that they are never swapped out; implies EDGELLM_LOAD_PREFAULT.
/// Load and session_new fail with E_NOMEM where the system does not allow it. Of memory on a device: always so.
pub const EDGELLM_LOAD_MLOCK: u32 = 1;
/// Read the file into memory instead of mapping it.
pub const EDGELLM_LOAD_NO_MMAP: u32 = 2;
/// Touches all memory and code that steps use when the model is loaded and when a session is made, which runs two tokens for
/// it: no step meets a page fault, the first one neither, unless the system takes pages away again. Embeddings that would be
/// read from the mapped file are copied.
pub const EDGELLM_LOAD_PREFAULT: u32 = 8;
/// With EDGELLM_DEVICE_AUTO: where no CUDA device can run the model, the load fails with E_DEVICE, E_DEVICE_MEM or
/// E_UNSUPPORTED, instead of going on to the CPU, which is many times slower.
pub const EDGELLM_LOAD_NO_GPU_FALLBACK: u32 = 16;
/// Weights dequantized to f32 and activations in f32: slow and large, for checking results. Activations that the model
/// itself rounds to int8 (BitNet) are rounded.
pub const EDGELLM_LOAD_EXACT: u32 = 256;
/// On a CUDA device: generated tokens take the way of prompts, with activations in f16 instead of int8. More exact, several
/// times slower, and then a token's bits are the same whether it was generated or given. On the CPU: of no effect.
pub const EDGELLM_LOAD_F16_ACTIVATIONS: u32 = 512;

/// The order of codes in the official bitnet-b1.58-2B-4T-gguf, and in what bitnet.cpp's Python converter writes: blocks of
/// 128 weights.
pub const EDGELLM_I2S_BLOCK128: i32 = 0;
/// What bitnet.cpp's quantizer writes on ARM: blocks of 64 weights.
pub const EDGELLM_I2S_BLOCK64: i32 = 1;
/// What bitnet.cpp's quantizer writes on x86 where it was built without ACT_PARALLEL: groups of 4 rows.
pub const EDGELLM_I2S_ROWS4: i32 = 2;

/// As many CPUs as any machine has, and more.
const CPU_MASK_WORDS_MAX: usize = 1024;
const LOAD_FLAGS: u32 = EDGELLM_LOAD_MLOCK
    | EDGELLM_LOAD_NO_MMAP
    | EDGELLM_LOAD_PREFAULT
    | EDGELLM_LOAD_NO_GPU_FALLBACK
    | EDGELLM_LOAD_EXACT
    | EDGELLM_LOAD_F16_ACTIVATIONS;

/// What to load and how. Exactly one of `path` and `data` is set.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct edgellm_load_params {
    /// Set by edgellm_load_params_init.
    pub struct_size: u32,
    /// EDGELLM_LOAD_*, or-ed.
    pub flags: u32,
    /// A GGUF file, NUL-terminated; of a split model the first part.
    pub path: *const c_char,
    /// A GGUF file in memory. The caller keeps it, unchanged, until the model and all its sessions are freed.
    pub data: *const c_void,
    /// In bytes.
    pub data_len: usize,
    /// Threads that compute a step, the caller's included, at most 1024. 1 = the caller's alone, no others are made.
    /// 0 = one per CPU of cpu_mask, or without a mask one per big core, in both cases as far as this process may use them.
    /// A core is big when it is at least half as fast as the fastest; its hyperthreads count once; a quota of the control
    /// group counts. More threads than cores work, and gain nothing.
    pub n_threads: u32,
    /// How long an idle worker thread spins before it sleeps, in microseconds; 0 = it sleeps at once.
    pub spin_us: u32,
    /// May be NULL.
    pub on_progress: edgellm_progress_fn,
    /// Handed to on_progress.
    pub on_progress_user: *mut c_void,
    /// The CPUs that worker threads may run on: bit i % 64 of word i / 64 is CPU i. NULL = the big cores, when there are
    /// others and n_threads has a core for each; else any. A mask without a CPU that this process may use is E_ARG. The
    /// caller's own thread is left as it is in every respect: pin it, and schedule it, as you like.
    pub cpu_mask: *const u64,
    /// How many words cpu_mask has; 0 with NULL.
    pub cpu_mask_words: usize,
    /// How worker threads are scheduled, by the system's numbers (Linux: SCHED_OTHER 0, SCHED_FIFO 1, SCHED_RR 2,
    /// SCHED_BATCH 3, SCHED_IDLE 5); -1 = as the thread that loads. What the system does not allow fails the load with
    /// E_IO, what it does not have with E_ARG. A real-time worker that spins keeps others from its CPU for spin_us.
    pub sched_policy: i32,
    /// Within sched_policy, which must be set then; -1 = the policy's lowest.
    pub sched_priority: i32,
    /// May be NULL.
    pub on_thread: edgellm_thread_fn,
    /// Handed to on_thread. Valid until the last worker thread has ended.
    pub on_thread_user: *mut c_void,
    /// EDGELLM_I2S_*: the order of codes in I2_S tensors, which no file says of itself; a wrong one gives a model that talks
    /// nonsense. Rows are a multiple of 128 weights in all of them. Files without such tensors are not affected.
    pub i2s_layout: i32,
    /// EDGELLM_DEVICE_AUTO, EDGELLM_DEVICE_CPU, or the number of a CUDA device, on which the model then runs, or the load
    /// fails. EDGELLM_LOAD_EXACT means the CPU where the choice is free.
    pub device: i32,
    /// On a CUDA device: the host's CUstream, of the device's primary context, into which all sessions put the work of their
    /// steps, behind what is there, and for which a step waits. It is never destroyed here: the host keeps it until the
    /// model and all its sessions are freed. NULL = each session has a stream of its own.
    pub cuda_stream: *mut c_void,
    /// On a CUDA device: the priority of the sessions' own streams, as in cuStreamCreateWithPriority; smaller numbers come
    /// first, 0 = as all. E_ARG when the device has no such priority, or beside cuda_stream, which has its own. This and
    /// cuda_stream are E_ARG with EDGELLM_DEVICE_CPU, and of no effect when EDGELLM_DEVICE_AUTO has come to the CPU.
    pub cuda_priority: i32,
    /// 0.
    pub reserved0: u32,
    /// What the model and all its sessions may take of memory together, on the host and on the device, in bytes; 0 = any.
    /// What would be more is E_NOMEM, and says how much it is. edgellm_plan_memory says what is counted, and how much of it
    /// there will be.
    pub memory_limit: u64,
}

sized!(edgellm_load_params {
    struct_size: edgellm_load_params::DEFAULT_SIZE,
    flags: 0,
    path: std::ptr::null(),
    data: std::ptr::null(),
    data_len: 0,
    n_threads: 0,
    spin_us: 100,
    on_progress: None,
    on_progress_user: std::ptr::null_mut(),
    cpu_mask: std::ptr::null(),
    cpu_mask_words: 0,
    sched_policy: -1,
    sched_priority: -1,
    on_thread: None,
    on_thread_user: std::ptr::null_mut(),
    i2s_layout: EDGELLM_I2S_BLOCK128,
    device: EDGELLM_DEVICE_AUTO,
    cuda_stream: std::ptr::null_mut(),
    cuda_priority: 0,
    reserved0: 0,
    memory_limit: 0,
});

/// What a model is. Set struct_size to sizeof(edgellm_model_info) before the call.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct edgellm_model_info {
    /// Set by the caller.
    pub struct_size: u32,
    /// Entries of the vocabulary, which is also the number of logits.
    pub n_vocab: u32,
    /// Tokens of context that the model was trained with.
    pub n_ctx_train: u32,
    /// Layers.
    pub n_layers: u32,
    /// Weights, counted.
    pub n_params: u64,
    /// Memory that the weights take in this process, mapped or not, in bytes; 0 when they are on a CUDA device.
    pub weight_bytes_host: u64,
    /// Architecture, for example "llama". This and the next two: valid as long as the model.
    pub arch: edgellm_str,
    /// What the file calls itself; may be empty.
    pub name: edgellm_str,
    /// The format of most weights, for example "Q4_K"; with others "Q4_K+Q6_K".
    pub quant: edgellm_str,
    /// 1 when edgellm_chat_render has a template to work with, else 0.
    pub has_chat_template: u32,
    /// How many tokens end a generation.
    pub n_eos: u32,
    /// Memory that the weights take on a CUDA device, in bytes; 0 when they are on the CPU.
    pub weight_bytes_device: u64,
    /// Names the model as the owner of saved sessions: a hash of the file's header (metadata, vocabulary, names and places of
    /// tensors), of four samples of every tensor, and of the choice of i2s_layout. It tells apart models that were trained,
    /// converted or quantized differently; a few weights changed in between the samples it does not see, nor is it a
    /// protection against forgery.
    pub fingerprint: [u8; 32],
}

const EMPTY: edgellm_str = edgellm_str { ptr: std::ptr::null(), len: 0 };

sized!(edgellm_model_info {
    struct_size: edgellm_model_info::DEFAULT_SIZE,
    n_vocab: 0,
    n_ctx_train: 0,
    n_layers: 0,
    n_params: 0,
    weight_bytes_host: 0,
    arch: EMPTY,
    name: EMPTY,
    quant: EMPTY,
    has_chat_template: 0,
    n_eos: 0,
    weight_bytes_device: 0,
    fingerprint: [0; 32],
});

/// The model behind a handle.
///
/// # Safety
/// As for [`Handle::get`].
pub(super) unsafe fn model<'a>(model: *const edgellm_model) -> Result<&'a Arc<Model>> {
    // SAFETY: the same contract.
    Ok(unsafe { Handle::<Arc<Model>>::get(model)? })
}

/// Use edgellm_load_params_init.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn edgellm_load_params_init_(p: *mut edgellm_load_params, size: usize) {
    // SAFETY: the caller's contract.
    guard((), || unsafe { init(p, size) });
}

/// Loads a model and checks all of it. *out is the new model, the caller's to free; on failure NULL.
///
/// Any thread; waits for the disk. Everything in *p is copied during the call, except `data`. Errors: E_ARG, E_IO (no such
/// file; see edgellm_last_errno), E_FORMAT (damaged), E_UNSUPPORTED (what this build cannot run, by name), E_NOMEM,
/// E_CANCELLED (by on_progress); of a CUDA device that was named, E_DEVICE and E_DEVICE_MEM.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn edgellm_load(p: *const edgellm_load_params, out: *mut *mut edgellm_model) -> edgellm_status {
    guard_status(|| {
        // SAFETY: the caller's contract.
        let (out, params) = unsafe { (Out::new(out, "out")?, read(p)) };
        out.write(std::ptr::null_mut());
        watch_forks()?;
        // SAFETY: the caller's contract.
        let model = unsafe { with_options(&params?, Model::load)? };
        out.write(Handle::new(model));
        Ok(EDGELLM_OK)
    })
}

/// Hands `body` what the parameters ask for.
///
/// # Safety
/// What `params` points to is valid; `data` until what `body` makes is gone.
pub(super) unsafe fn with_options<R>(
    params: &edgellm_load_params,
    body: impl FnOnce(Source<'_>, LoadOptions<'_>) -> Result<R>,
) -> Result<R> {
    check_flags(params.flags, LOAD_FLAGS, "load_params.flags")?;
    check_flags(params.reserved0, 0, "load_params.reserved0")?;
    let source = if params.data.is_null() {
        if params.path.is_null() || params.data_len != 0 {
            return Err(Error::argument("load_params: exactly one of path and data (with data_len) must be set"));
        }
        // SAFETY: the caller's contract: NUL-terminated.
        let path = unsafe { bytes(params.path, usize::MAX, "load_params.path")? };
        Source::Path(Path::new(OsStr::from_bytes(path)))
    } else {
        if !params.path.is_null() {
            return Err(Error::argument("load_params: both path and data are set"));
        }
        if params.data_len > isize::MAX as usize {
            return Err(Error::argument("load_params.data_len is more than there is memory"));
        }
        // SAFETY: readable by the contract, no longer than an isize; 'static because the header makes the caller keep
        // it until the model and its sessions are freed, and nothing else holds on to it.
        Source::Bytes(unsafe { std::slice::from_raw_parts(params.data.cast::<u8>(), params.data_len) })
    };
    let mut report = |done: f32| match params.on_progress {
        // SAFETY: the caller's function, with what the caller wants it to be called with, on the caller's thread.
        Some(on_progress) => unsafe { on_progress(params.on_progress_user, done) == 0 },
        None => true,
    };
    let options = LoadOptions {
        device: device(params)?,
        threads: params.n_threads as usize,
        spin_us: params.spin_us,
        // SAFETY: the caller's contract.
        cpu_mask: unsafe { cpu_mask(params)? },
        schedule: schedule(params)?,
        on_thread: on_thread(params),
        mmap: params.flags & EDGELLM_LOAD_NO_MMAP == 0,
        residence: residence(params.flags),
        cpu_fallback: params.flags & EDGELLM_LOAD_NO_GPU_FALLBACK == 0,
        exact: params.flags & EDGELLM_LOAD_EXACT != 0,
        f16_activations: params.flags & EDGELLM_LOAD_F16_ACTIVATIONS != 0,
        // SAFETY: the header makes the caller keep it until the model and its sessions are freed.
        cuda_stream: NonNull::new(params.cuda_stream).map(|stream| unsafe { HostStream::new(stream) }),
        cuda_priority: params.cuda_priority,
        memory_limit: (params.memory_limit > 0).then_some(params.memory_limit),
        i2s_layout: i2s_layout(params)?,
        progress: Some(&mut report),
        ..LoadOptions::default()
    };
    body(source, options)
}

/// # Safety
/// `params.cpu_mask` has as many words as it says, for as long as the result lives.
unsafe fn cpu_mask(params: &edgellm_load_params) -> Result<Option<&[u64]>> {
    let (mask, words) = (params.cpu_mask, params.cpu_mask_words);
    if mask.is_null() && words == 0 {
        return Ok(None);
    }
    if mask.is_null() || !mask.is_aligned() || words > CPU_MASK_WORDS_MAX {
        let what = "cpu_mask is NULL or misaligned, or has too many words";
        return Err(Error::argument(format!("load_params: {what} ({words}, at most {CPU_MASK_WORDS_MAX})")));
    }
    // SAFETY: checked above, readable by the contract.
    Ok(Some(unsafe { std::slice::from_raw_parts(mask, words) }))
}

fn device(params: &edgellm_load_params) -> Result<Device> {
    match params.device {
        EDGELLM_DEVICE_AUTO => Ok(Device::Auto),
        EDGELLM_DEVICE_CPU => Ok(Device::Cpu),
        number => {
            let unknown = |_| Error::argument(format!("load_params.device: {number} is no EDGELLM_DEVICE_*"));
            usize::try_from(number).map(Device::Cuda).map_err(unknown)
        }
    }
}

fn residence(flags: u32) -> Residence {
    if flags & EDGELLM_LOAD_MLOCK != 0 {
        Residence::Locked
    } else if flags & EDGELLM_LOAD_PREFAULT != 0 {
        Residence::Touched
    } else {
        Residence::Lazy
    }
}

fn i2s_layout(params: &edgellm_load_params) -> Result<I2sLayout> {
    match params.i2s_layout {
        EDGELLM_I2S_BLOCK128 => Ok(I2sLayout::Block128),
        EDGELLM_I2S_BLOCK64 => Ok(I2sLayout::Block64),
        EDGELLM_I2S_ROWS4 => Ok(I2sLayout::Rows4),
        unknown => Err(Error::argument(format!("load_params.i2s_layout: {unknown} is no EDGELLM_I2S_*"))),
    }
}

fn schedule(params: &edgellm_load_params) -> Result<Option<Schedule>> {
    let (policy, priority) = (params.sched_policy, params.sched_priority);
    if policy < -1 || priority < -1 {
        let given = format!("sched_policy {policy}, sched_priority {priority}");
        return Err(Error::argument(format!("load_params: {given}: -1 leaves them, less is nothing")));
    }
    match (policy, priority) {
        (-1, -1) => Ok(None),
        (-1, _) => Err(Error::argument("load_params: sched_priority without sched_policy")),
        (policy, priority) => Ok(Some(Schedule { policy, priority: (priority >= 0).then_some(priority) })),
    }
}

fn on_thread(params: &edgellm_load_params) -> Option<OnThread> {
    /// The caller's pointer, for the caller's function alone.
    struct User(*mut c_void);
    // SAFETY: the header says in which threads it is handed to `on_thread`; nothing is done with it here.
    unsafe impl Send for User {}
    // SAFETY: as above.
    unsafe impl Sync for User {}

    let (call, user) = (params.on_thread?, User(params.on_thread_user));
    Some(Arc::new(move |index, start| {
        let User(user) = &user;
        // SAFETY: the caller's function, with what the caller wants it to be called with, in the threads that it is for.
        unsafe { call(*user, index as u32, i32::from(start)) }
    }))
}

/// One more reference to a model: returns `m` itself, to be freed once more. NULL when `m` is not a model handle. Any
/// thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn edgellm_ref(m: *mut edgellm_model) -> *mut edgellm_model {
    guard(std::ptr::null_mut(), || {
        // SAFETY: the caller's contract.
        match unsafe { Handle::<Arc<Model>>::get(m) } {
            Ok(handle) => {
                std::mem::forget(handle.keep()); // The reference is the caller's now.
                m
            }
            Err(_) => std::ptr::null_mut(),
        }
    })
}

/// Gives a reference back. Sessions keep their own, so a model may be freed before them. NULL is fine. Any thread. In a
/// child process after fork() it does nothing: the memory goes with the process.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn edgellm_free(m: *mut edgellm_model) {
    guard_unit(|| {
        if !m.is_null() {
            // SAFETY: the caller's contract.
            drop(unsafe { Handle::<Arc<Model>>::take(m)? });
        }
        Ok(())
    });
}

/// Says what the model is. Any thread. Errors: E_ARG.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn edgellm_model_get_info(
    m: *const edgellm_model,
    out: *mut edgellm_model_info,
) -> edgellm_status {
    guard_status(|| {
        // SAFETY: the caller's contract.
        let (model, out) = unsafe { (model(m)?, OutStruct::new(out)?) };
        let info = model.info();
        let tokenizer = model.tokenizer();
        let on_device = matches!(info.device, Device::Cuda(_));
        out.write(&edgellm_model_info {
            struct_size: edgellm_model_info::DEFAULT_SIZE,
            n_vocab: clamp(info.vocab_len),
            n_ctx_train: clamp(info.context_len_max),
            n_layers: clamp(info.layers),
            n_params: info.parameters,
            weight_bytes_host: if on_device { 0 } else { info.weights_bytes },
            weight_bytes_device: if on_device { info.weights_bytes } else { 0 },
            arch: info.architecture.as_bytes().into(),
            name: info.name.as_bytes().into(),
            quant: info.quant.as_bytes().into(),
            has_chat_template: u32::from(tokenizer.is_some_and(|tokenizer| tokenizer.has_chat_template())),
            n_eos: clamp(tokenizer.map_or(0, |tokenizer| tokenizer.eos().len())),
            fingerprint: *model.fingerprint(),
        });
        Ok(EDGELLM_OK)
    })
}

fn clamp(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

/// One value of the file's metadata as text: strings as they are, numbers in decimal, booleans "true" or "false".
///
/// `key` is UTF-8, `key_len` bytes or EDGELLM_NUL. `buf` has `cap` bytes and is not NUL-terminated; *n is the length in
/// bytes. Any thread. Errors: E_ARG (also: no such key), E_BUFFER (*n is the length needed), E_UNSUPPORTED (an array).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn edgellm_model_get_meta(
    m: *const edgellm_model,
    key: *const c_char,
    key_len: usize,
    buf: *mut c_char,
    cap: usize,
    n: *mut usize,
) -> edgellm_status {
    guard_status(|| {
        // SAFETY: the caller's contract.
        let (model, key, buffer) =
            unsafe { (model(m)?, text(key, key_len, "key")?, Buffer::new(buf.cast::<u8>(), cap, n)?) };
        let value = model.metadata().get(key);
        let value = value.ok_or_else(|| Error::argument(format!("no metadata `{}` in this model", excerpt(key))))?;
        match value {
            Value::String(text) => buffer.write(text.as_bytes()),
            value => buffer.write(scalar(key, value)?.as_bytes()),
        }
    })
}

/// A number or boolean in words.
fn scalar(key: &str, value: &Value) -> Result<String, Failure> {
    Ok(match value {
        Value::U8(value) => value.to_string(),
        Value::I8(value) => value.to_string(),
        Value::U16(value) => value.to_string(),
        Value::I16(value) => value.to_string(),
        Value::U32(value) => value.to_string(),
        Value::I32(value) => value.to_string(),
        Value::U64(value) => value.to_string(),
        Value::I64(value) => value.to_string(),
        Value::F32(value) => value.to_string(),
        Value::F64(value) => value.to_string(),
        Value::Bool(value) => value.to_string(),
        Value::String(value) => value.clone(),
        Value::Array(array) => {
            return Err(Error::Unsupported(format!("metadata `{key}` is an array of {} elements", array.count)).into());
        }
    })
}

/// As much of a caller's text as belongs into a message.
fn excerpt(text: &str) -> &str {
    text.char_indices().nth(80).map_or(text, |(end, _)| &text[..end])
}
