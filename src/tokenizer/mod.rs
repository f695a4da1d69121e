//! Text to tokens and back: vocabulary from GGUF, byte-level BPE, chat templates.

mod bpe;
#[cfg(feature = "chat")]
mod chat;
mod classes;
mod merges;
mod pre;
mod special;
mod stream;
mod texts;
mod vocab;

use crate::file::{Metadata, Strings};
use crate::{Error, Result};
use bpe::{Bpe, Scratch};
use classes::Classes;
use merges::{MERGES, Merges};
use pre::{PRE, Pieces, Pre};
use special::{Part, Specials};
use texts::Index;
use vocab::{Kind, TOKEN_TYPE, TOKENS, Vocab};

pub use stream::Utf8Stream;

const MODEL: &str = "tokenizer.ggml.model";
const BOS: &str = "tokenizer.ggml.bos_token_id";
const EOS: &str = "tokenizer.ggml.eos_token_id";
/// With [`EOS`], the keys of the tokens that end generation: end of text, of turn, of message.
const ENDS: [&str; 3] = [EOS, "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];
const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
const ADD_EOS: &str = "tokenizer.ggml.add_eos_token";

/// Tokens that end generation by what they are called, because files often lack the keys of [`ENDS`].
const END_TEXTS: [&str; 14] = [
    "<|eot_id|>",
    "<|eom_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "</s>",
    "<｜end▁of▁sentence｜>",
];

/// The tokenizer of a model: immutable, for any number of threads.
///
/// Text is only text unless a call says otherwise: without `special`, no text becomes a control token.
pub struct Tokenizer {
    vocab: Vocab,
    specials: Specials,
    classes: Classes,
    pre: &'static Pre,
    bpe: Bpe,
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
    add_eos: bool,
    ends: Vec<u32>,
    #[cfg(feature = "chat")]
    chat: Option<chat::Templates>,
    #[cfg(not(feature = "chat"))]
    has_chat_template: bool,
}

const _: () = {
    const fn any_thread<T: Send + Sync>() {}
    any_thread::<Tokenizer>();
};

impl Tokenizer {
    /// None when the file has no vocabulary (`tokenizer.ggml.model` = `no_vocab` or absent).
    pub fn from_metadata(metadata: &Metadata) -> Result<Option<Tokenizer>> {
        match metadata.string(MODEL)? {
            None | Some("no_vocab" | "none") => return Ok(None),
            Some("gpt2") => {}
            Some(model) => {
                return Err(Error::Unsupported(format!("{MODEL} is {model:?}; supported: \"gpt2\" (byte-level BPE)")));
            }
        }
        let missing = |key| Error::Format(format!("{key} is missing"));
        let texts = metadata.strings(TOKENS)?.ok_or_else(|| missing(TOKENS))?;
        let implied = implied_pre(metadata.string("general.architecture")?, &texts);
        let pre = pre::find(metadata.string(PRE)?.or(implied))?;
        let merges = metadata.strings(MERGES)?.ok_or_else(|| missing(MERGES))?;
        if texts.len() > i32::MAX as usize {
            return Err(Error::Format(format!("{TOKENS} has {} entries, at most {}", texts.len(), i32::MAX)));
        }
        let index = Index::new(&texts)?;
        let mut kinds = vocab::kinds(metadata.ints(TOKEN_TYPE)?.as_deref(), texts.len())?;
        let ends = ends(metadata, &index, &merges, &mut kinds)?;
        let vocab = Vocab::new(texts.iter(), kinds)?;
        let bytes = bpe::byte_tokens(&index, &vocab)?;
        let merges = Merges::new(&index, &merges, |token| vocab.mergeable(token))?;
        let bpe = Bpe::new(bytes, merges, &vocab, pre.ignore_merges)?;
        let (bos, eos) = (token_id(metadata, BOS, vocab.len())?, token_id(metadata, EOS, vocab.len())?);
        Ok(Some(Tokenizer {
            specials: Specials::new(&vocab)?,
            classes: Classes::new()?,
            vocab,
            pre,
            bpe,
            bos,
            eos,
            add_bos: adds(metadata, ADD_BOS, bos, BOS)?.unwrap_or(pre.add_bos && bos.is_some()),
            add_eos: adds(metadata, ADD_EOS, eos, EOS)?.unwrap_or(false),
            ends,
            #[cfg(feature = "chat")]
            chat: chat::Templates::from_metadata(metadata)?,
            #[cfg(not(feature = "chat"))]
            has_chat_template: metadata.string("tokenizer.chat_template")?.is_some(),
        }))
    }

    /// Memory held, in bytes; what a chat template becomes when it is first used is not in it.
    pub fn bytes(&self) -> usize {
        let parts = [self.vocab.memory(), self.specials.memory(), self.classes.memory(), self.bpe.memory()];
        #[cfg(feature = "chat")]
        let templates = self.chat.as_ref().map_or(0, chat::Templates::memory);
        #[cfg(not(feature = "chat"))]
        let templates = 0;
        size_of::<Tokenizer>() + parts.iter().sum::<usize>() + self.ends.capacity() * size_of::<u32>() + templates
    }

    /// How many tokens the vocabulary has.
    pub fn vocab_len(&self) -> usize {
        self.vocab.len()
    }

    /// Bytes of the longest token, for [`Utf8Stream::new`].
    pub fn longest_token(&self) -> usize {
        self.vocab.longest()
    }

    /// The tokens of a text.
    ///
    /// `bos`: add BOS (and EOS) as the model wants, unless they are there already. `special`: special tokens in the
    /// text are tokens, not text; never for text from outside. A byte for which the vocabulary has no token (a few
    /// have none for rare control characters) is left out.
    pub fn encode(&self, text: &str, bos: bool, special: bool) -> Result<Vec<u32>> {
        let mut tokens = Vec::new();
        if let (true, true, Some(bos)) = (bos, self.add_bos, self.bos) {
            tokens.push(bos);
        }
        let mut scratch = Scratch::default();
        for part in self.specials.parts(text, special) {
            match part {
                // A chat template may have written BOS already.
                Part::Token(token) if bos && self.add_bos && tokens == [token] => {}
                Part::Token(token) => {
                    let bytes = tokens.len() * size_of::<u32>();
                    tokens.try_reserve(1).map_err(|_| Error::NoMemory { what: "tokens", bytes })?;
                    tokens.push(token);
                }
                Part::Text(text) => {
                    for piece in Pieces::new(text, self.pre.family, &self.classes) {
                        self.bpe.encode(&self.vocab, piece, &mut scratch, &mut tokens)?;
                    }
                }
            }
        }
        if let (true, true, Some(eos)) = (bos, self.add_eos, self.eos)
            && tokens.last() != Some(&eos)
        {
            tokens.push(eos);
        }
        Ok(tokens)
    }

    /// The bytes of a token; of a control token its name. None when out of range.
    pub fn token_bytes(&self, token: u32) -> Option<&[u8]> {
        self.vocab.bytes(token)
    }

    /// The bytes of `tokens`; of control (and unused) tokens only with `special`.
    ///
    /// [`Error::Argument`] names a token out of range.
    pub fn decode(&self, tokens: &[u32], special: bool) -> Result<Vec<u8>> {
        let mut text = Vec::new();
        for (index, token) in tokens.iter().enumerate() {
            let (Some(bytes), Some(kind)) = (self.vocab.bytes(*token), self.vocab.kind(*token)) else {
                let message =
                    format!("token {token} at {index} is out of range: the vocabulary has {}", self.vocab_len());
                return Err(Error::argument(message));
            };
            if special || matches!(kind, Kind::Normal | Kind::Foreign | Kind::UserDefined) {
                let needed = text.len() + bytes.len();
                text.try_reserve(bytes.len()).map_err(|_| Error::NoMemory { what: "text", bytes: needed })?;
                text.extend_from_slice(bytes);
            }
        }
        Ok(text)
    }

    /// Whether a token steers the model rather than being text.
    pub fn is_control(&self, token: u32) -> bool {
        self.vocab.kind(token) == Some(Kind::Control)
    }

    /// Whether a token stands for text: it neither steers the model nor is a gap in the vocabulary.
    pub fn is_text(&self, token: u32) -> bool {
        matches!(self.vocab.kind(token), Some(Kind::Normal | Kind::Foreign | Kind::UserDefined))
    }

    /// End of generation: EOS, EOT, EOM as a set, ascending.
    pub fn eos(&self) -> &[u32] {
        &self.ends
    }

    /// The token for the beginning of a text, whether or not [`Tokenizer::encode`] adds it.
    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// The model's chat template, rendered; encode the result with `special`.
    ///
    /// `messages`, `tools`: JSON arrays as in OpenAI's chat API. `options`: a JSON object whose members become
    /// variables of the template (`add_generation_prompt`, true unless given; `enable_thinking`, `documents`, …).
    #[cfg(feature = "chat")]
    pub fn render_chat(&self, messages: &str, tools: Option<&str>, options: Option<&str>) -> Result<String> {
        let Some(templates) = &self.chat else {
            return Err(Error::Unsupported("the model file has no chat template".into()));
        };
        let text = |token: Option<u32>| token.and_then(|token| std::str::from_utf8(self.vocab.bytes(token)?).ok());
        templates.render(&chat::Input { messages, tools, options, bos: text(self.bos), eos: text(self.eos) })
    }

    /// Whether the model file has a chat template.
    pub fn has_chat_template(&self) -> bool {
        #[cfg(feature = "chat")]
        return self.chat.is_some();
        #[cfg(not(feature = "chat"))]
        self.has_chat_template
    }
}

/// The token that a key names.
fn token_id(metadata: &Metadata, key: &str, count: usize) -> Result<Option<u32>> {
    match metadata.uint(key)? {
        Some(id) if id >= count as u64 => {
            Err(Error::Format(format!("{key} is {id}, out of range: {TOKENS} has {count} entries")))
        }
        id => Ok(id.map(|id| id as u32)),
    }
}

/// Whether a token is to be added, if the file says; then it must say which.
fn adds(metadata: &Metadata, key: &str, token: Option<u32>, token_key: &str) -> Result<Option<bool>> {
    let adds = metadata.bool(key)?;
    if adds == Some(true) && token.is_none() {
        return Err(Error::Format(format!("{key} is true, but {token_key} is missing")));
    }
    Ok(adds)
}

/// The pre-tokenizer of files that say none, where it is known all the same: the files of bitnet-b1.58-2B-4T, which has the
/// vocabulary of Llama 3.
fn implied_pre(architecture: Option<&str>, texts: &Strings<'_>) -> Option<&'static str> {
    let is_llama3 = texts.get(128_000).is_some_and(|text| text == b"<|begin_of_text|>");
    (matches!(architecture, Some("bitnet-b1.58" | "bitnet-25")) && is_llama3).then_some("llama-bpe")
}

/// All tokens that end generation, ascending.
///
/// One known by its text is made a control token: files mark some as plain, and then text could end a turn. Not so what
/// merges make: `</s>` in Qwen's vocabulary is a piece of HTML.
fn ends(metadata: &Metadata, index: &Index, merges: &Strings<'_>, kinds: &mut [Kind]) -> Result<Vec<u32>> {
    let mut ends = Vec::with_capacity(ENDS.len() + END_TEXTS.len());
    for key in ENDS {
        ends.extend(token_id(metadata, key, kinds.len())?);
    }
    for text in END_TEXTS {
        let Some(token) = index.get(text.as_bytes()) else { continue };
        let Some(kind) = kinds.get_mut(token as usize) else { continue };
        let merged = || merges.iter().any(|merge| merges::makes(merge, text.as_bytes()));
        if *kind == Kind::Control || !merged() {
            ends.push(token);
            *kind = Kind::Control;
        }
    }
    ends.sort_unstable();
    ends.dedup();
    Ok(ends)
}
