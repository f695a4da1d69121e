//! Constrained output: what a grammar is made of, and which tokens it lets come next.
//!
//! A [`Grammar`] is compiled once per model and shared; a session walks a copy of it. The work is the crate `llguidance`'s
//! (feature `grammar`); here is what bounds it. Without the feature there are no grammars: making one is
//! [`crate::Error::Unsupported`].

#[cfg(not(feature = "grammar"))]
mod absent;
#[cfg(feature = "grammar")]
mod compiled;
#[cfg(feature = "grammar")]
mod source;
#[cfg(feature = "grammar")]
mod tools;
#[cfg(feature = "grammar")]
mod vocabulary;

#[cfg(not(feature = "grammar"))]
pub use absent::Grammar;
#[cfg(not(feature = "grammar"))]
pub(crate) use absent::{Matcher, Vocabulary};
#[cfg(feature = "grammar")]
pub use compiled::Grammar;
#[cfg(feature = "grammar")]
pub(crate) use compiled::Matcher;
#[cfg(feature = "grammar")]
pub(crate) use vocabulary::Vocabulary;

/// What a grammar's text is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrammarKind {
    /// A JSON schema: the output is JSON that it accepts.
    JsonSchema,
    /// A regular expression, which all of the output matches.
    Regex,
    /// A grammar in llguidance's variant of Lark.
    Lark,
    /// A JSON array of strings: the output is one of them.
    Choice,
    /// A JSON array of tools as in OpenAI's chat API: the output is calls of them, as the model's chat template has calls.
    Tools,
}

/// From where on a grammar governs what a session generates.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum GrammarMode {
    /// From the first generated token on.
    #[default]
    Now,
    /// Free text until this text has been generated, then the grammar. Of [`GrammarKind::Tools`], a trigger with which the
    /// calls begin is a part of them; the empty one is what the model's calls begin with.
    OnTrigger(String),
}

/// One bit per token of the vocabulary, in words of 32 from the lowest bit on: those that may come next.
pub(crate) type Mask = [u32];

/// Whether the mask has this token.
pub(crate) fn admits(mask: &Mask, token: u32) -> bool {
    mask.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
}
