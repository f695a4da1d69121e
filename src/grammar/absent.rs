//! A library without grammars: none can be made, so nothing that needs one is ever called.

use super::{GrammarKind, Mask};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};
use std::sync::Arc;

/// A compiled grammar. This build makes none.
#[derive(Debug)]
pub struct Grammar {
    vocabulary: Arc<Vocabulary>,
}

#[derive(Debug)]
pub(crate) struct Vocabulary;

#[derive(Clone)]
pub(crate) struct Matcher;

fn unsupported<T>() -> Result<T> {
    Err(Error::Unsupported("this library was built without grammars (feature `grammar`)".into()))
}

impl Vocabulary {
    pub(crate) fn new(_: &Arc<Tokenizer>, _: usize) -> Result<Arc<Vocabulary>> {
        unsupported()
    }
}

impl Grammar {
    pub(crate) fn new(_: &Arc<Vocabulary>, _: GrammarKind, _: &str) -> Result<Grammar> {
        unsupported()
    }

    pub(crate) fn vocabulary(&self) -> &Arc<Vocabulary> {
        &self.vocabulary
    }

    pub(crate) fn opening(&self) -> Option<&str> {
        None
    }

    pub(crate) fn trigger(&self) -> Option<&str> {
        None
    }

    pub(crate) fn matcher(&self) -> Matcher {
        Matcher
    }
}

impl Matcher {
    pub(crate) fn mask(&mut self, _: &mut Mask) -> Result<()> {
        unsupported()
    }

    pub(crate) fn follows(&mut self, _: &[u8]) -> Result<bool> {
        unsupported()
    }

    pub(crate) fn allowed_of(&mut self, _: &[u32]) -> Result<usize> {
        unsupported()
    }

    pub(crate) fn forced(&mut self) -> Vec<u32> {
        Vec::new()
    }

    pub(crate) fn accept_bytes(&mut self, _: &[u8]) -> Result<()> {
        unsupported()
    }

    pub(crate) fn accept(&mut self, _: u32) -> Result<()> {
        unsupported()
    }

    pub(crate) fn is_complete(&self) -> bool {
        false
    }

    pub(crate) fn restart(&mut self) -> bool {
        false
    }
}
