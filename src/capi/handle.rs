//! What a handle points to: a tag word, the fork generation, and the object; and the lock of a session.

use super::guard::fork_generation;
use super::status::Failure;
use crate::session::Control;
use crate::{Error, Grammar, Model, Result, Session};
use std::cell::UnsafeCell;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// A loaded model: immutable, counted by reference (edgellm_ref, edgellm_free), used by any number of threads at once.
pub struct edgellm_model {
    _opaque: [u8; 0],
}

/// A compiled grammar: immutable, used by any number of sessions of its model and threads at once.
pub struct edgellm_grammar {
    _opaque: [u8; 0],
}

/// One sequence being generated. One caller at a time; edgellm_session_cancel, _run, _length and _stats from any thread.
pub struct edgellm_session {
    _opaque: [u8; 0],
}

/// An object that C holds by a pointer to `Self::Opaque`.
pub(super) trait Object: Send + Sync {
    /// The type that the header declares and never defines.
    type Opaque;
    /// First word of every handle of this kind; recognises a wrong pointer, and often a freed one.
    const TAG: u32;
    const NOT_ONE: &'static str;
}

impl Object for Arc<Model> {
    type Opaque = edgellm_model;
    const TAG: u32 = u32::from_ne_bytes(*b"eLmM");
    const NOT_ONE: &'static str = "not a model handle";
}

impl Object for Arc<Grammar> {
    type Opaque = edgellm_grammar;
    const TAG: u32 = u32::from_ne_bytes(*b"eLmG");
    const NOT_ONE: &'static str = "not a grammar handle";
}

impl Object for Shared {
    type Opaque = edgellm_session;
    const TAG: u32 = u32::from_ne_bytes(*b"eLmS");
    const NOT_ONE: &'static str = "not a session handle";
}

/// Lives in an `Arc`; C holds what `Arc::into_raw` gave. The first two words are the same for every kind of object.
#[repr(C)]
pub(super) struct Handle<T: Object> {
    tag: AtomicU32,
    generation: u32,
    object: T,
}

impl<T: Object> Handle<T> {
    /// A new handle with one reference, the caller's.
    #[allow(clippy::new_ret_no_self)] // What C holds is all that there is of it.
    pub(super) fn new(object: T) -> *mut T::Opaque {
        let handle = Handle { tag: AtomicU32::new(T::TAG), generation: fork_generation(), object };
        Arc::into_raw(Arc::new(handle)).cast_mut().cast()
    }

    /// The handle behind a pointer, if it is one of this kind and of this process.
    ///
    /// # Safety
    /// `pointer` is NULL or points to readable memory of a handle of any kind that lives as long as `'a`.
    pub(super) unsafe fn get<'a>(pointer: *const T::Opaque) -> Result<&'a Handle<T>> {
        let handle = pointer.cast::<Handle<T>>();
        // SAFETY: not NULL and aligned, so by the contract readable; the tag is the first word of every kind of handle.
        if handle.is_null() || !handle.is_aligned() || unsafe { &(*handle).tag }.load(Ordering::Relaxed) != T::TAG {
            return Err(Error::argument(T::NOT_ONE));
        }
        // SAFETY: the tag says that this memory is a `Handle<T>`; it lives by the contract.
        let handle = unsafe { &*handle };
        if handle.generation == fork_generation() { Ok(handle) } else { Err(Error::Forked) }
    }

    /// One more reference to a handle that [`Handle::get`] gave.
    pub(super) fn keep(&self) -> Arc<Handle<T>> {
        // SAFETY: handles are only ever made by `new`, inside an `Arc`; `self` proves that it still has a reference.
        unsafe {
            Arc::increment_strong_count(self);
            Arc::from_raw(self)
        }
    }

    /// Takes the caller's reference back.
    ///
    /// # Safety
    /// As for [`Handle::get`]; and the caller of the C API gives up one reference that it owns.
    pub(super) unsafe fn take(pointer: *mut T::Opaque) -> Result<Arc<Handle<T>>> {
        // SAFETY: the same contract.
        let handle = unsafe { Handle::<T>::get(pointer)? };
        // SAFETY: made by `Arc::into_raw` in `new` or `keep`; the reference is the caller's, who gives it up.
        Ok(unsafe { Arc::from_raw(handle) })
    }
}

impl<T: Object> Deref for Handle<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.object
    }
}

impl<T: Object> Drop for Handle<T> {
    fn drop(&mut self) {
        self.tag.store(0, Ordering::Relaxed);
    }
}

/// A value that one thread at a time may enter, and none after a panic inside.
pub(super) struct Exclusive<T> {
    busy: AtomicBool,
    poisoned: AtomicBool,
    value: UnsafeCell<T>,
}

// SAFETY: `value` is only reached through `Entered`, of which `busy` lets one exist at a time; T itself may move between
// threads.
unsafe impl<T: Send> Sync for Exclusive<T> {}

impl<T> Exclusive<T> {
    pub(super) fn new(value: T) -> Self {
        Exclusive { busy: AtomicBool::new(false), poisoned: AtomicBool::new(false), value: UnsafeCell::new(value) }
    }

    /// Enters, or says at once why not: another caller is inside, or one that panicked was.
    pub(super) fn enter(&self) -> Result<Entered<'_, T>> {
        if self.busy.swap(true, Ordering::Acquire) {
            return Err(Error::Busy);
        }
        let entered = Entered { place: self, unwinding: std::thread::panicking() }; // Leaves again when dropped.
        if self.poisoned.load(Ordering::Relaxed) {
            return Err(Error::Internal("an internal error happened in this session: it can only be freed".into()));
        }
        Ok(entered)
    }

    /// From now on nobody enters.
    fn poison(&self) {
        self.poisoned.store(true, Ordering::Relaxed);
    }
}

/// The right to use the value of an [`Exclusive`], until dropped.
pub(super) struct Entered<'a, T> {
    place: &'a Exclusive<T>,
    /// Whether the thread was unwinding before: then that is not ours.
    unwinding: bool,
}

impl<T> Deref for Entered<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: `busy` was false and is ours until drop, so no other `Entered` of this value exists.
        unsafe { &*self.place.value.get() }
    }
}

impl<T> DerefMut for Entered<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: as for `deref`.
        unsafe { &mut *self.place.value.get() }
    }
}

impl<T> Drop for Entered<'_, T> {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.unwinding {
            self.place.poison();
        }
        self.place.busy.store(false, Ordering::Release);
    }
}

/// What a session handle holds: the session behind its lock, and what any thread may reach past the lock.
pub(super) struct Shared {
    pub(super) control: Arc<Control>,
    freed: AtomicBool,
    session: Exclusive<Session>,
}

impl Shared {
    pub(super) fn new(session: Session) -> Self {
        Shared { control: session.control(), freed: AtomicBool::new(false), session: Exclusive::new(session) }
    }

    /// Ends a step that another thread is in; that thread's reference then frees the session.
    pub(super) fn free(&self) {
        self.freed.store(true, Ordering::SeqCst);
        self.control.cancel(0);
    }
}

/// Runs `body` inside the session, as its only caller. What it returns may hold raw pointers into the session.
///
/// # Safety
/// As for [`Handle::get`].
pub(super) unsafe fn with_session<R>(
    session: *const edgellm_session,
    body: impl FnOnce(&mut Session) -> Result<R, Failure>,
) -> Result<R, Failure> {
    // SAFETY: the same contract. The reference is kept because the session may be freed while we are inside.
    let shared = unsafe { Handle::<Shared>::get(session)? }.keep();
    let result = body(&mut *shared.session.enter()?);
    if let Err(Failure::Error(Error::Internal(_))) = result {
        shared.session.poison();
    }
    if shared.freed.load(Ordering::SeqCst) {
        return Err(Error::Cancelled.into()); // Pointers into the session would dangle.
    }
    result
}

// The header's promise: a model is used by any number of threads at once; a session handle may be touched by any thread.
const _: () = {
    const fn any_thread<T: Send + Sync>() {}
    any_thread::<Handle<Arc<Model>>>();
    any_thread::<Handle<Arc<Grammar>>>();
    any_thread::<Handle<Shared>>();
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_caller_is_busy_until_the_first_leaves() {
        let value = Exclusive::new(vec![1]);
        let mut first = value.enter().unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| assert!(matches!(value.enter(), Err(Error::Busy))));
        });
        first.push(2);
        drop(first);
        assert_eq!(*value.enter().unwrap(), [1, 2]);
    }

    #[test]
    fn a_panic_inside_poisons_and_leaves() {
        let value = Exclusive::new(0);
        let panicked = std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                let _entered = value.enter().unwrap();
                panic!("inside");
            });
            inside.join().is_err()
        });
        assert!(panicked);
        for _ in 0..2 {
            assert!(matches!(value.enter(), Err(Error::Internal(_))));
        }
    }
}
