//! The small types that functions share.

use std::ffi::c_char;

/// A token: an index into the model's vocabulary. -1 where there is none.
pub type edgellm_token = i32;

/// Text that somebody else owns: `len` bytes at `ptr`, not NUL-terminated. How long it lives is said where it is given.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct edgellm_str {
    /// May be NULL when len is 0.
    pub ptr: *const c_char,
    /// In bytes.
    pub len: usize,
}

impl From<&[u8]> for edgellm_str {
    fn from(bytes: &[u8]) -> Self {
        edgellm_str { ptr: bytes.as_ptr().cast(), len: bytes.len() }
    }
}

/// The number is added to the logit of the token before it is sampled.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct edgellm_logit_bias {
    /// Which token.
    pub token: edgellm_token,
    /// Finite, or -infinity to forbid the token.
    pub bias: f32,
}

const _: () = assert!(size_of::<edgellm_str>() == 2 * size_of::<usize>());
const _: () = assert!(size_of::<edgellm_logit_bias>() == 8);
