//! Sessions that go on in two ways, later, or elsewhere.

use super::guard::guard_status;
use super::handle::{Handle, Shared, edgellm_session, with_session};
use super::memory::{Buffer, Out, blob};
use super::status::{EDGELLM_OK, edgellm_status};
use crate::{Error, Result};
use std::ffi::c_void;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::mem::ManuallyDrop;
use std::os::fd::FromRawFd;

/// Bytes that are written at a time when they come in small parts.
const WRITE_BYTES: usize = 1 << 18;

/// A second session that stands where this one does: the same tokens, sampling settings and pending text. Both go on
/// independently, on any threads, in whatever order they are freed. *out is the caller's to free.
///
/// On the CPU the KV cache is copied on write, in pages of 256 positions: full pages are shared, the last one is copied by
/// this call, and steps never write to a shared page. edgellm_session_prompt and _rewind copy one when they go back into it:
/// then they ask for memory and may fail with E_NOMEM. So does a step that shifts a full context (EDGELLM_FULL_SHIFT), once.
/// On a CUDA device all of the KV cache is copied by this call. Everything else that a session needs is allocated here. A
/// step that AGAIN suspended starts over in the new session. Statistics start at zero.
///
/// The session's caller only. Errors: E_ARG, E_NOMEM, E_BUSY, E_FORKED, E_INTERNAL; on a CUDA device also E_DEVICE_MEM,
/// E_DEVICE.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn edgellm_session_fork(
    s: *mut edgellm_session,
    out: *mut *mut edgellm_session,
) -> edgellm_status {
    guard_status(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(out, "out")? };
        // SAFETY: the caller's contract.
        let fork = unsafe { with_session(s, |session| Ok(session.fork()?))? };
        out.write(Handle::new(Shared::new(fork)));
        Ok(EDGELLM_OK)
    })
}

/// Everything that the session would go on from, as bytes: tokens, KV cache as it is stored, sampling settings, how far the
/// run is, text that was held back. A session of the same model that restores it, in this process or another one, goes on bit
/// for bit (on a machine and with a build that compute the same bits: for the CPU all do). A grammar is not saved, but
/// where the output stands in it is: who restores the session sets the same one before.
///
/// *n is the length in bytes, mostly that of the KV cache of the tokens that are in it. Nothing in the bytes is secret to
/// who has them: they hold the whole conversation. A step that AGAIN suspended is saved as if it had not begun; statistics are
/// not saved. The session's caller only; the session stays as it is. Errors: E_ARG, E_BUFFER (*n is the length needed),
/// E_STATE (a shift has dropped the start of what a grammar governs), E_NOMEM, E_BUSY, E_DEVICE, E_FORKED, E_INTERNAL.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn edgellm_session_save(
    s: *mut edgellm_session,
    buf: *mut c_void,
    cap: usize,
    n: *mut usize,
) -> edgellm_status {
    guard_status(|| {
        // SAFETY: the caller's contract.
        let buffer = unsafe { Buffer::new(buf.cast::<u8>(), cap, n)? };
        // SAFETY: the caller's contract.
        unsafe {
            with_session(s, |session| {
                let saving = session.save()?;
                let mut room = buffer.room(saving.bytes())?;
                Ok(saving.write(&mut |bytes| room.put(bytes))?)
            })?;
        }
        Ok(EDGELLM_OK)
    })
}

/// Takes over what edgellm_session_save gave, all `n` bytes of it; sampling settings too. What the session held before is
/// gone, and a new run begins (edgellm_session_run). Its own n_ctx, prefill_chunk and on_full stay.
///
/// All of it is checked before anything changes: whatever the error, the session is as it was. A bit that was flipped, bytes
/// that are missing or too many, or what is no saved session at all: E_INTEGRITY. Another model (model_info.fingerprint),
/// another kind of KV cache (kv_type, EDGELLM_LOAD_EXACT, CPU or CUDA), a version of the format that this library does not
/// know: E_MISMATCH. More tokens than n_ctx: E_CONTEXT. It followed a grammar and this session has none set: E_STATE; or it
/// has one that those tokens do not follow: E_MISMATCH. The checksum finds accidents, not forgers; what a forger writes is
/// still checked so far that nothing but the conversation can be wrong. Memory is asked for. The session's caller only. Other
/// errors: E_ARG, E_NOMEM, E_BUSY, E_FORKED, E_INTERNAL; E_DEVICE on a CUDA device, whose session may then only be freed.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn edgellm_session_restore(
    s: *mut edgellm_session,
    buf: *const c_void,
    n: usize,
) -> edgellm_status {
    guard_status(|| {
        // SAFETY: the caller's contract.
        let saved = unsafe { blob(buf.cast::<u8>(), n, "buf")? };
        // SAFETY: the caller's contract.
        unsafe { with_session(s, |session| Ok(session.restore(saved)?))? };
        Ok(EDGELLM_OK)
    })
}

/// edgellm_session_save to a file descriptor: written from where it stands, one byte after the other, so that a pipe or a
/// socket will do; a call that is interrupted by a signal goes on. `fd` stays the caller's.
///
/// When it fails, part of it may have been written, which no restore will take. For a file that is whole or not there: write
/// to a new file, fsync it, and rename it to its place. Errors: E_IO (edgellm_last_errno), and as edgellm_session_save.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn edgellm_session_save_fd(s: *mut edgellm_session, fd: i32) -> edgellm_status {
    guard_status(|| {
        // SAFETY: the caller's contract.
        let file = unsafe { borrowed(fd)? };
        let mut file = BufWriter::with_capacity(WRITE_BYTES, &*file);
        let failed = |error| Error::io("writing a saved session", &error);
        // SAFETY: the caller's contract.
        let saved = unsafe {
            with_session(s, |session| {
                session.save()?.write(&mut |bytes| file.write_all(bytes).map_err(failed))?;
                Ok(file.flush().map_err(failed)?)
            })
        };
        drop(file.into_parts()); // Without another attempt to write what could not be written.
        saved.map(|()| EDGELLM_OK)
    })
}

/// edgellm_session_restore from a file descriptor: read from where it stands, up to the end of what was saved and no
/// further, so that several may follow one another. `fd` stays the caller's. The session changes only after all of it was
/// read and checked, so that much memory is needed for a moment.
///
/// Errors: E_IO (edgellm_last_errno), and as edgellm_session_restore; where `fd` then stands is not defined.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn edgellm_session_restore_fd(s: *mut edgellm_session, fd: i32) -> edgellm_status {
    guard_status(|| {
        // SAFETY: the caller's contract.
        let file = unsafe { borrowed(fd)? };
        // SAFETY: the caller's contract.
        unsafe { with_session(s, |session| Ok(session.restore_from(&mut &*file)?))? };
        Ok(EDGELLM_OK)
    })
}

/// The caller's file, which stays open.
///
/// # Safety
/// `fd` is negative or stays the caller's own as long as the result lives; one that is not open is refused by the system.
unsafe fn borrowed(fd: i32) -> Result<ManuallyDrop<File>> {
    if fd < 0 {
        return Err(Error::argument(format!("fd: {fd} is no file descriptor")));
    }
    // SAFETY: not -1, and never closed by us; the rest is the contract.
    Ok(ManuallyDrop::new(unsafe { File::from_raw_fd(fd) }))
}
