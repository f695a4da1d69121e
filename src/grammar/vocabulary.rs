//! A model's tokens as the matcher wants them: a trie of their bytes.

use crate::tokenizer::Tokenizer;
use crate::{Error, Result};
use llguidance::ParserFactory;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{INVALID_TOKEN, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenizerEnv};
use std::sync::Arc;

/// A grammar never makes a longer token, and the trie does not take many more bytes.
const TOKEN_BYTES_MAX: usize = 1000;

/// Built once per model, when its first grammar is made; shared by all its grammars.
pub(crate) struct Vocabulary {
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) factory: ParserFactory,
}

impl std::fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Vocabulary of {}", self.tokenizer.vocab_len())
    }
}

impl Vocabulary {
    /// `logits`: how many a step gives, at least one per token.
    pub(crate) fn new(tokenizer: &Arc<Tokenizer>, logits: usize) -> Result<Arc<Vocabulary>> {
        super::compiled::apart(|| {
            let trie = trie(tokenizer, logits);
            let env: TokEnv = Arc::new(Tokens { trie, tokenizer: tokenizer.clone() });
            let slices = SlicedBiasComputer::json_slices();
            let factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices);
            let mut factory = factory.map_err(|error| Error::Internal(format!("vocabulary: {error:#}").into()))?;
            factory.quiet();
            *factory.limits_mut() = super::compiled::limits();
            Ok(Arc::new(Vocabulary { tokenizer: tokenizer.clone(), factory }))
        })
    }
}

fn trie(tokenizer: &Tokenizer, logits: usize) -> TokTrie {
    let word = |token: u32| -> Vec<u8> {
        let bytes = tokenizer.token_bytes(token).filter(|bytes| bytes.len() <= TOKEN_BYTES_MAX).unwrap_or_default();
        match tokenizer.is_control(token) {
            // What marks control tokens can begin no text, as it is not UTF-8.
            true => [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat(),
            false if bytes.first() == Some(&TokTrie::SPECIAL_TOKEN_MARKER) => Vec::new(),
            false if !tokenizer.is_text(token) => Vec::new(),
            false => bytes.to_vec(),
        }
    };
    let words: Vec<Vec<u8>> = (0..logits as u32).map(word).collect();
    let ends = tokenizer.eos();
    let end = ends.first().copied().unwrap_or(INVALID_TOKEN);
    let trie = TokTrie::from(&TokRxInfo::new(logits as u32, end), &words);
    if ends.len() > 1 { trie.with_eos_tokens(ends) } else { trie }
}

struct Tokens {
    trie: TokTrie,
    tokenizer: Arc<Tokenizer>,
}

impl TokenizerEnv for Tokens {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    /// As the model's own tokenizer has it, so that text that the grammar forces comes in the tokens that the model knows.
    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        let own = std::str::from_utf8(bytes).ok().and_then(|text| self.tokenizer.encode(text, false, false).ok());
        // A few vocabularies lack some bytes, which then are left out: such text is not forced.
        let whole = own.filter(|tokens| self.trie.decode_raw(tokens) == bytes);
        whole.unwrap_or_else(|| self.trie.greedy_tokenize(bytes))
    }
}
