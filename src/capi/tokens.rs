//! Text to tokens and back.

use super::guard::{guard, guard_status};
use super::handle::edgellm_model;
use super::memory::{Buffer, Out, check_flags, text, tokens};
use super::model::model;
use super::status::{EDGELLM_OK, edgellm_status};
use super::types::{edgellm_str, edgellm_token};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};
use std::ffi::c_char;

/// Add BOS and EOS as the model wants.
pub const EDGELLM_TOK_BOS: u32 = 1;
/// Tokenize: "<|im_end|>" in the text is a special token. Off for text of a user! Detokenize: special tokens give their
/// names; without it, nothing.
pub const EDGELLM_TOK_SPECIAL: u32 = 2;

/// The tokenizer of a model that has one.
///
/// # Safety
/// As for [`model`].
pub(super) unsafe fn tokenizer<'a>(m: *const edgellm_model) -> Result<&'a Tokenizer> {
    // SAFETY: the same contract.
    let tokenizer = unsafe { model(m)? }.tokenizer();
    tokenizer.ok_or_else(|| Error::Unsupported("this model file has no vocabulary".into()))
}

/// Text to tokens. `text` is UTF-8, `len` bytes or EDGELLM_NUL; `flags` are EDGELLM_TOK_*, or-ed; `out` has room for `cap`
/// tokens, *n is how many there are. NULL with cap = 0 asks for *n alone.
///
/// Any thread. Errors: E_ARG, E_BUFFER (*n is what is needed), E_UNSUPPORTED (no vocabulary), E_NOMEM.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn edgellm_tokenize(
    m: *const edgellm_model,
    text: *const c_char,
    len: usize,
    flags: u32,
    out: *mut edgellm_token,
    cap: usize,
    n: *mut usize,
) -> edgellm_status {
    guard_status(|| {
        // SAFETY: the caller's contract; u32 and i32 have the same layout.
        let (tokenizer, text, buffer) =
            unsafe { (tokenizer(m)?, self::text(text, len, "text")?, Buffer::new(out.cast::<u32>(), cap, n)?) };
        check_flags(flags, EDGELLM_TOK_BOS | EDGELLM_TOK_SPECIAL, "tokenize flags")?;
        buffer.write(&tokenizer.encode(text, flags & EDGELLM_TOK_BOS != 0, flags & EDGELLM_TOK_SPECIAL != 0)?)
    })
}

/// Tokens to text. `flags` is 0 or EDGELLM_TOK_SPECIAL; `buf` has `cap` bytes and is not NUL-terminated, *n is the length
/// in bytes. Tokens that end inside a character give incomplete UTF-8. NULL with cap = 0 asks for *n alone.
///
/// Any thread. Errors: E_ARG (also: a token out of range), E_BUFFER (*n is what is needed), E_UNSUPPORTED (no
/// vocabulary), E_NOMEM.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn edgellm_detokenize(
    m: *const edgellm_model,
    t: *const edgellm_token,
    n_tokens: usize,
    flags: u32,
    buf: *mut c_char,
    cap: usize,
    n: *mut usize,
) -> edgellm_status {
    guard_status(|| {
        // SAFETY: the caller's contract.
        let (tokenizer, tokens, buffer) =
            unsafe { (tokenizer(m)?, tokens(t, n_tokens)?, Buffer::new(buf.cast::<u8>(), cap, n)?) };
        check_flags(flags, EDGELLM_TOK_SPECIAL, "detokenize flags")?;
        buffer.write(&tokenizer.decode(tokens, flags & EDGELLM_TOK_SPECIAL != 0)?)
    })
}

/// The bytes of one token; of a special token its name. *out is valid as long as the model.
///
/// Any thread. Errors: E_ARG (also: a token out of range), E_UNSUPPORTED (no vocabulary).
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn edgellm_token_bytes(
    m: *const edgellm_model,
    t: edgellm_token,
    out: *mut edgellm_str,
) -> edgellm_status {
    guard_status(|| {
        // SAFETY: the caller's contract.
        let (tokenizer, out) = unsafe { (tokenizer(m)?, Out::new(out, "out")?) };
        let bytes = u32::try_from(t).ok().and_then(|token| tokenizer.token_bytes(token)).ok_or_else(|| {
            Error::argument(format!("token {t}: the vocabulary has {} entries", tokenizer.vocab_len()))
        })?;
        out.write(bytes.into());
        Ok(EDGELLM_OK)
    })
}

/// 1 when the token ends a generation, else 0; also 0 when `m` is no model or `t` no token of it. Any thread.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn edgellm_token_is_eos(m: *const edgellm_model, t: edgellm_token) -> i32 {
    guard(0, || {
        // SAFETY: the caller's contract.
        let eos = unsafe { tokenizer(m) }.map_or(&[][..], |tokenizer| tokenizer.eos());
        i32::from(u32::try_from(t).is_ok_and(|token| eos.binary_search(&token).is_ok()))
    })
}
