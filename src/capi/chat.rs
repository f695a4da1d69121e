//! Chat templates.

use super::guard::guard_status;
use super::handle::edgellm_model;
use super::memory::{Buffer, optional_text, text};
use super::status::edgellm_status;
use super::tokens::tokenizer;
use crate::Result;
use crate::tokenizer::Tokenizer;
use std::ffi::c_char;

/// Renders a conversation with the model's chat template: text for edgellm_tokenize with EDGELLM_TOK_SPECIAL.
///
/// `messages`: JSON as in the OpenAI chat API, [{"role": "user", "content": "..."}, ..]. `tools`: JSON in the same manner,
/// NULL = none. `options`: a JSON object of variables for the template, NULL = none; "add_generation_prompt" is true
/// unless it says otherwise. Each length is in bytes or EDGELLM_NUL. `buf` has `cap` bytes and is not NUL-terminated; *n
/// is the length in bytes. NULL with cap = 0 asks for *n alone.
///
/// Any thread. Errors: E_ARG (not such JSON, or the template refused it), E_BUFFER (*n is what is needed), E_UNSUPPORTED
/// (the model has no template, or the library was built without feature `chat`), E_NOMEM.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn edgellm_chat_render(
    m: *const edgellm_model,
    messages: *const c_char,
    messages_len: usize,
    tools: *const c_char,
    tools_len: usize,
    options: *const c_char,
    options_len: usize,
    buf: *mut c_char,
    cap: usize,
    n: *mut usize,
) -> edgellm_status {
    guard_status(|| {
        // SAFETY: the caller's contract.
        let (tokenizer, messages, tools, options, buffer) = unsafe {
            (
                tokenizer(m)?,
                text(messages, messages_len, "messages")?,
                optional_text(tools, tools_len, "tools")?,
                optional_text(options, options_len, "options")?,
                Buffer::new(buf.cast::<u8>(), cap, n)?,
            )
        };
        buffer.write(render(tokenizer, messages, tools, options)?.as_bytes())
    })
}

#[cfg(feature = "chat")]
fn render(tokenizer: &Tokenizer, messages: &str, tools: Option<&str>, options: Option<&str>) -> Result<String> {
    tokenizer.render_chat(messages, tools, options)
}

#[cfg(not(feature = "chat"))]
fn render(_: &Tokenizer, _: &str, _: Option<&str>, _: Option<&str>) -> Result<String> {
    Err(crate::Error::Unsupported("this library was built without chat templates (feature `chat`)".into()))
}
