//! Constrained output.

use super::guard::{guard_status, guard_unit};
use super::handle::{Handle, edgellm_grammar, edgellm_model};
use super::memory::{Out, text};
use super::model::model;
use super::status::{EDGELLM_OK, edgellm_status};
use crate::{Error, Grammar, GrammarKind, Result};
use std::ffi::c_char;
use std::sync::Arc;

/// The text is a JSON schema; the output is JSON that it accepts. References stay within the text ("#/$defs/name"); what
/// is not supported is refused by name. Members come in the order of "properties". Between values there may be a space, or
/// a line break with up to 32 spaces, unless the schema has a member "x-guidance" that says otherwise, as llguidance
/// documents it. The digits of a "number" have no bound: give max_tokens.
pub const EDGELLM_GRAMMAR_JSON_SCHEMA: i32 = 1;
/// The text is a regular expression, in the syntax of Rust's crate regex without anchors; all of the output matches it.
pub const EDGELLM_GRAMMAR_REGEX: i32 = 2;
/// The text is a grammar in llguidance's variant of Lark; the output is a sentence of its rule "start".
pub const EDGELLM_GRAMMAR_LARK: i32 = 3;
/// The text is a JSON array of strings; the output is one of them.
pub const EDGELLM_GRAMMAR_CHOICE: i32 = 4;
/// The text is an array of tools as in the OpenAI chat API; the output is calls of them, each with a name and arguments
/// that its "parameters" accept, in the call format of the model's own chat template, which is found by rendering calls.
pub const EDGELLM_GRAMMAR_TOOLS: i32 = 5;

/// The grammar governs from the first generated token on.
pub const EDGELLM_GRAMMAR_NOW: u32 = 0;
/// Text is free until grammar_trigger has been generated; what follows it the grammar governs. Of EDGELLM_GRAMMAR_TOOLS, a
/// trigger with which the calls begin is a part of them, and without one the model's own beginning of a call is it.
pub const EDGELLM_GRAMMAR_ON_TRIGGER: u32 = 1;

/// Compiles a grammar for sessions of a model. *out is the caller's to free.
///
/// `kind`: EDGELLM_GRAMMAR_*. `text`: UTF-8, `len` bytes or EDGELLM_NUL, at most 256 KiB (of a regular expression 16, of a
/// Lark grammar 32). Any thread; takes milliseconds. The first grammar of a model also builds an index of its vocabulary,
/// which stays with the model: for 152,000 tokens 60 MB, in 0.3 s. edgellm_plan_memory and memory_limit count neither it nor
/// what grammars take. The work is bounded whatever the text is, and done on a thread of its own, so that the caller's stack
/// may be small. Errors: E_GRAMMAR (what is wrong with the text and where, or which bound it exceeds), E_ARG, E_UNSUPPORTED
/// (no vocabulary; for tools no chat template, or one without calls that have JSON arguments; or the library was built without
/// feature `grammar`), E_NOMEM, E_FORKED.
#[unsafe(no_mangle)]
#[must_use]
pub unsafe extern "C" fn edgellm_grammar_new(
    m: *mut edgellm_model,
    kind: i32,
    text: *const c_char,
    len: usize,
    out: *mut *mut edgellm_grammar,
) -> edgellm_status {
    guard_status(|| {
        // SAFETY: the caller's contract.
        let (model, text, out) = unsafe { (model(m)?, self::text(text, len, "text")?, Out::new(out, "out")?) };
        out.write(Handle::new(model.grammar(grammar_kind(kind)?, text)?));
        Ok(EDGELLM_OK)
    })
}

fn grammar_kind(kind: i32) -> Result<GrammarKind> {
    match kind {
        EDGELLM_GRAMMAR_JSON_SCHEMA => Ok(GrammarKind::JsonSchema),
        EDGELLM_GRAMMAR_REGEX => Ok(GrammarKind::Regex),
        EDGELLM_GRAMMAR_LARK => Ok(GrammarKind::Lark),
        EDGELLM_GRAMMAR_CHOICE => Ok(GrammarKind::Choice),
        EDGELLM_GRAMMAR_TOOLS => Ok(GrammarKind::Tools),
        unknown => Err(Error::argument(format!("kind: {unknown} is no kind of grammar"))),
    }
}

/// Frees a grammar. Sessions keep their own references, so it may be freed while they use it. NULL is fine. Any thread. In
/// a child process after fork() it does nothing: the memory goes with the process.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn edgellm_grammar_free(g: *mut edgellm_grammar) {
    guard_unit(|| {
        if !g.is_null() {
            // SAFETY: the caller's contract.
            drop(unsafe { Handle::<Arc<Grammar>>::take(g)? });
        }
        Ok(())
    });
}
