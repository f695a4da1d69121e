//! Compiling a grammar within bounds, and walking it.

use super::source::{self, refused};
use super::{GrammarKind, Mask, Vocabulary};
use crate::cpu::threads::BlockedSignals;
use crate::{Error, Result};
use llguidance::api::ParserLimits;
use llguidance::{Matcher as Walker, toktrie};
use std::fmt;
use std::sync::Arc;

/// The compiler follows references and nested parts by recursion, so it has a stack of its own. The worst of what the bounds
/// on texts allow (`source.rs`) takes about half of it; what is not used is not paid for.
const STACK_BYTES: usize = 64 << 20;

/// What a grammar may cost.
pub(super) fn limits() -> ParserLimits {
    ParserLimits {
        // Each state takes 1 to 2 KB, in every session.
        max_lexer_states: 50_000,
        max_grammar_size: 200_000,
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

/// Runs `work` on a thread with a large stack. A panic in it is an error.
pub(super) fn apart<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| {
        let _blocked = BlockedSignals::block();
        let builder = std::thread::Builder::new().name("edgellm-grammar".into()).stack_size(STACK_BYTES);
        let thread = builder
            .spawn_scoped(scope, work)
            .map_err(|_| Error::NoMemory { what: "the stack of a grammar's compiler", bytes: STACK_BYTES })?;
        thread.join().unwrap_or_else(|_| Err(Error::Grammar("the grammar is too much for its compiler".into())))
    })
}

/// A compiled grammar of one model: immutable, shared by sessions and threads.
pub struct Grammar {
    vocabulary: Arc<Vocabulary>,
    /// At the beginning, with what the compiler and the first mask have found out.
    start: Walker,
    opening: Option<String>,
}

const _: () = {
    const fn any_thread<T: Send + Sync>() {}
    any_thread::<Grammar>();
};

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammar").field("opening", &self.opening).finish_non_exhaustive()
    }
}

impl Grammar {
    /// Compiles a grammar for the model of this vocabulary. [`Error::Grammar`] says what is wrong with it and where.
    pub(crate) fn new(vocabulary: &Arc<Vocabulary>, kind: GrammarKind, text: &str) -> Result<Grammar> {
        apart(|| {
            let source = source::read(&vocabulary.tokenizer, kind, text)?;
            let parser = vocabulary.factory.create_parser(source.grammar);
            let parser = parser.map_err(|error| refused(kind, message(error)))?;
            let mut start = Walker::new(Ok(parser));
            // Also finds grammars that nothing satisfies.
            start.compute_mask_or_eos().map_err(|error| refused(kind, message(error)))?;
            Ok(Grammar { vocabulary: vocabulary.clone(), start, opening: source.opening })
        })
    }

    pub(crate) fn vocabulary(&self) -> &Arc<Vocabulary> {
        &self.vocabulary
    }

    /// What its sentences begin with, where that is known: of tools, the beginning of a call.
    pub(crate) fn opening(&self) -> Option<&str> {
        self.opening.as_deref()
    }

    /// What announces a sentence in free text, where that is known.
    pub(crate) fn trigger(&self) -> Option<&str> {
        self.opening.as_deref().map(super::tools::trigger)
    }

    /// A walk from the beginning, independent of all others.
    pub(crate) fn matcher(&self) -> Matcher {
        Matcher { walker: self.start.deep_clone(), tokens: self.vocabulary.factory.tok_env().clone() }
    }
}

/// The message of an error of the compiler, without the traces that it adds for its own developers.
fn message(error: impl fmt::Display) -> String {
    let text = format!("{error:#}");
    let text = text.split("\n<").next().unwrap_or_default().trim();
    text.replace("; stopping", "")
}

/// A walk through a grammar: where it stands after the tokens so far.
pub(crate) struct Matcher {
    walker: Walker,
    tokens: toktrie::TokEnv,
}

impl Clone for Matcher {
    fn clone(&self) -> Self {
        Matcher { walker: self.walker.deep_clone(), tokens: self.tokens.clone() }
    }
}

/// The walk is lost: only `restart` helps.
fn stuck(error: impl fmt::Display) -> Error {
    Error::Grammar(format!("the grammar cannot go on: {}", message(error)).into())
}

impl Matcher {
    /// Writes which tokens may come next; none, when the grammar is complete.
    pub(crate) fn mask(&mut self, mask: &mut Mask) -> Result<()> {
        mask.fill(0);
        if !self.is_complete() {
            let found = self.walker.compute_mask().map_err(stuck)?;
            for (word, &found) in mask.iter_mut().zip(found.as_slice()) {
                *word = found;
            }
        }
        Ok(())
    }

    /// Whether these bytes may come next.
    pub(crate) fn follows(&mut self, bytes: &[u8]) -> Result<bool> {
        let Some(tokens) = self.bytes_as_tokens(bytes) else { return Ok(false) };
        let valid = self.walker.validate_tokens(&tokens).map_err(stuck)?;
        Ok(valid == tokens.len())
    }

    /// How many of these tokens, from the first on, may come next one after the other.
    pub(crate) fn allowed_of(&mut self, tokens: &[u32]) -> Result<usize> {
        self.walker.validate_tokens(tokens).map_err(stuck)
    }

    /// Tokens that must come next, one after the other.
    pub(crate) fn forced(&mut self) -> Vec<u32> {
        self.walker.compute_ff_tokens()
    }

    /// Goes on by these bytes, which `follows` has found good.
    pub(crate) fn accept_bytes(&mut self, bytes: &[u8]) -> Result<()> {
        let tokens = self.bytes_as_tokens(bytes).unwrap_or_default();
        self.walker.consume_tokens(&tokens).map_err(stuck)
    }

    /// Goes on by this token, which the mask has.
    pub(crate) fn accept(&mut self, token: u32) -> Result<()> {
        self.walker.consume_token(token).map_err(stuck)
    }

    /// Whether nothing may follow.
    pub(crate) fn is_complete(&self) -> bool {
        self.walker.is_stopped() && self.walker.stop_reason().is_ok()
    }

    /// Back to the beginning; false when the walk is lost and a new one is to be made.
    pub(crate) fn restart(&mut self) -> bool {
        self.walker.reset().is_ok()
    }

    fn bytes_as_tokens(&self, bytes: &[u8]) -> Option<Vec<u32>> {
        let trie = self.tokens.tok_trie();
        let tokens = trie.greedy_tokenize(bytes);
        (trie.decode_raw(&tokens) == bytes).then_some(tokens)
    }
}
