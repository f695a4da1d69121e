//! `tokenizer.json` and the files around it, as GGUF's `tokenizer.*` keys.

use super::folder::{Fields, Folder};
use super::pretokenizer;
use crate::file::{Array, Metadata, Value};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};
use serde_json::Value as Json;
use std::collections::{BTreeSet, HashMap};

const FILE: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";
/// GGUF's types of tokens.
const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;

/// The pairs for a vocabulary of `vocab_len` tokens; `config` is `config.json`.
pub(super) fn metadata(folder: &Folder, config: &Json, vocab_len: usize) -> Result<Vec<(String, Value)>> {
    let Some(json) = folder.tokenizer()? else {
        let text = "is missing; only byte-level BPE tokenizers, which have it, are supported";
        return Err(Error::Unsupported(format!("{FILE} {text}")));
    };
    let about = folder.settings(CONFIG)?.unwrap_or_default();
    let generation = folder.settings("generation_config.json")?.unwrap_or_default();
    let sources = Sources {
        about: Fields { file: CONFIG, object: &about },
        generation: Fields { file: "generation_config.json", object: &generation },
        config: Fields { file: "config.json", object: config },
    };
    let model = bpe(&json)?;
    let mut vocabulary = Vocabulary::read(&json, model, vocab_len)?;
    let pre = pretokenizer::name(&json, model)?;
    let mut pairs = vec![pair("model", string("gpt2")), pair("pre", string(pre))];
    let tokens = std::mem::take(&mut vocabulary.tokens);
    pairs.push(pair("tokens", Value::Array(Array::of_strings(tokens.iter().map(String::as_bytes)))));
    pairs.push(pair("token_type", Value::Array(Array::of_i32(&vocabulary.types))));
    let merges = merges(model)?;
    pairs.push(pair("merges", Value::Array(Array::of_strings(merges.iter().map(String::as_bytes)))));
    specials(&mut pairs, &json, &sources, &vocabulary)?;
    chat_template(&mut pairs, folder, &sources.about)?;
    Ok(pairs)
}

fn pair(key: &str, value: Value) -> (String, Value) {
    (format!("tokenizer.ggml.{key}"), value)
}

fn string(text: &str) -> Value {
    Value::String(text.into())
}

fn wrong(text: impl std::fmt::Display) -> Error {
    Error::Format(format!("{FILE}: {text}"))
}

fn unsupported(text: impl std::fmt::Display) -> Error {
    Error::Unsupported(format!("{FILE}: {text}"))
}

/// The files that name special tokens.
struct Sources<'a> {
    about: Fields<'a>,
    generation: Fields<'a>,
    config: Fields<'a>,
}

/// The model in `tokenizer.json`, which is byte-level BPE without the options that other kinds have.
fn bpe(json: &Json) -> Result<&Json> {
    let model = json.get("model").ok_or_else(|| wrong("no `model`"))?;
    // Old files do not say.
    let kind = model.get("type").and_then(Json::as_str).unwrap_or("BPE");
    if kind != "BPE" {
        return Err(unsupported(format_args!("model type {kind:?}; BPE (byte-level) is supported")));
    }
    let off = |value: &Json| matches!(value, Json::Null | Json::Bool(false)) || value.as_str() == Some("");
    for key in ["byte_fallback", "dropout", "continuing_subword_prefix", "end_of_word_suffix"] {
        if let Some(value) = model.get(key).filter(|value| !off(value)) {
            return Err(unsupported(format_args!("`model.{key}` = {value}; byte-level BPE has none")));
        }
    }
    let normalizer = json.get("normalizer").filter(|value| !value.is_null());
    match normalizer.map(|normalizer| normalizer.get("type").and_then(Json::as_str)) {
        // Text that is not in this form is rare enough for GGUF to have no word for it.
        None | Some(Some("NFC")) => Ok(model),
        Some(kind) => {
            Err(unsupported(format_args!("normalizer {:?}; none and NFC are supported", kind.unwrap_or("?"))))
        }
    }
}

/// All tokens by their ids.
struct Vocabulary {
    tokens: Vec<String>,
    types: Vec<i32>,
    ids: HashMap<String, u32>,
}

impl Vocabulary {
    fn read(json: &Json, model: &Json, vocab_len: usize) -> Result<Vocabulary> {
        let words = model.get("vocab").and_then(Json::as_object).ok_or_else(|| wrong("no `model.vocab`"))?;
        let mut found: Vec<Option<(&str, i32)>> = vec![None; vocab_len];
        for (token, id) in words {
            let place = place(id.as_u64(), token, vocab_len)?;
            if let Some((other, _)) = found[place] {
                return Err(wrong(format_args!("tokens {other:?} and {token:?} have the same id {place}")));
            }
            found[place] = Some((token, NORMAL));
        }
        for added in json.get("added_tokens").and_then(Json::as_array).into_iter().flatten() {
            let fields = Fields { file: FILE, object: added };
            let token = fields.string("content")?.ok_or_else(|| wrong("an added token has no `content`"))?;
            let place = place(added.get("id").and_then(Json::as_u64), token, vocab_len)?;
            for key in ["lstrip", "rstrip", "single_word"] {
                if fields.bool(key)?.unwrap_or(false) {
                    return Err(unsupported(format_args!("added token {token:?} has `{key}` = true")));
                }
            }
            if let Some((other, _)) = found[place].filter(|(other, _)| *other != token) {
                return Err(wrong(format_args!("tokens {other:?} and {token:?} have the same id {place}")));
            }
            let kind = if fields.bool("special")?.unwrap_or(false) { CONTROL } else { USER_DEFINED };
            found[place] = Some((token, kind));
        }
        let mut vocabulary = Vocabulary { tokens: Vec::new(), types: Vec::new(), ids: HashMap::new() };
        for (id, token) in found.into_iter().enumerate() {
            let (token, kind) = match token {
                Some((token, kind)) => (token.to_owned(), kind),
                None => (format!("[PAD{id}]"), UNUSED),
            };
            if vocabulary.ids.insert(token.clone(), id as u32).is_some() {
                return Err(wrong(format_args!("token {token:?} has two ids")));
            }
            vocabulary.tokens.push(token);
            vocabulary.types.push(kind);
        }
        Ok(vocabulary)
    }

    /// The id that the special token `key` of a file of settings has there: a text, or an object that holds one.
    fn special(&self, fields: &Fields<'_>, key: &str) -> Result<Option<u32>> {
        let Some(value) = fields.get(key) else { return Ok(None) };
        let text = value.as_str().or_else(|| value.get("content").and_then(Json::as_str));
        let id = text.and_then(|text| self.ids.get(text)).copied();
        id.map(Some).ok_or_else(|| fields.wrong(key, "a token of the vocabulary"))
    }
}

/// An id that is below the size of the vocabulary.
fn place(id: Option<u64>, token: &str, vocab_len: usize) -> Result<usize> {
    match id {
        Some(id) if id < vocab_len as u64 => Ok(id as usize),
        id => {
            let id = id.map_or("not a number".into(), |id| id.to_string());
            Err(wrong(format_args!("the id of token {token:?} is {id}; `vocab_size` is {vocab_len}")))
        }
    }
}

/// The merges, each as two tokens with a space between them.
fn merges(model: &Json) -> Result<Vec<String>> {
    let merges = model.get("merges").and_then(Json::as_array).ok_or_else(|| wrong("no `model.merges`"))?;
    let merge = |merge: &Json| match merge {
        Json::String(text) => Some(text.clone()),
        Json::Array(parts) => match parts.as_slice() {
            // No character of the byte-level alphabet is a space.
            [Json::String(left), Json::String(right)] if !left.contains(' ') && !right.contains(' ') => {
                Some(format!("{left} {right}"))
            }
            _ => None,
        },
        _ => None,
    };
    let merges = merges.iter().enumerate();
    merges
        .map(|(i, json)| merge(json).ok_or_else(|| wrong(format_args!("merge {i}, {json}, is not two tokens"))))
        .collect()
}

/// The special tokens: which begin and end a text, which are added, and all that end generation.
fn specials(
    pairs: &mut Vec<(String, Value)>,
    json: &Json,
    sources: &Sources<'_>,
    vocabulary: &Vocabulary,
) -> Result<()> {
    let Sources { about, generation, config } = sources;
    let (first, last) = template(json, vocabulary)?;
    let one = |key: &str| Ok::<_, Error>([generation.ids(key)?, config.ids(key)?].concat());
    let bos = match first.or(vocabulary.special(about, "bos_token")?) {
        Some(bos) => Some(bos),
        None => one("bos_token_id")?.first().copied(),
    };
    // The tokenizer's own first: it is the end of a turn where there are several.
    let mut ends: Vec<u32> = vocabulary.special(about, "eos_token")?.into_iter().collect();
    ends.extend(one("eos_token_id")?);
    let pad = match vocabulary.special(about, "pad_token")? {
        Some(pad) => Some(pad),
        None => one("pad_token_id")?.first().copied(),
    };
    let named = [("bos", bos), ("padding", pad), ("unknown", vocabulary.special(about, "unk_token")?)];
    let all = named.iter().filter_map(|(_, id)| *id).chain(ends.iter().copied());
    if let Some(id) = all.into_iter().find(|&id| id as usize >= vocabulary.types.len()) {
        let text = format!("special token {id} is not below `vocab_size` {}", vocabulary.types.len());
        return Err(Error::Format(format!("generation_config.json or config.json: {text}")));
    }
    for (key, id) in named {
        pairs.extend(id.map(|id| pair(&format!("{key}_token_id"), Value::U32(id))));
    }
    pairs.extend(ends.first().map(|&id| pair("eos_token_id", Value::U32(id))));
    // Where the tokenizer itself adds nothing, its class may.
    let adds = |key: &str, in_template: bool| Ok::<_, Error>(in_template || about.bool(key)?.unwrap_or(false));
    let has_template = first.is_some() || last.is_some();
    let add_bos = if has_template { first.is_some() } else { adds("add_bos_token", false)? && bos.is_some() };
    let add_eos = if has_template { last.is_some() } else { adds("add_eos_token", false)? && !ends.is_empty() };
    if let Some(last) = last.filter(|last| ends.first() != Some(last)) {
        let text = format!("its template adds token {last} at the end, which is not the EOS {:?}", ends.first());
        return Err(unsupported(text));
    }
    pairs.push(pair("add_bos_token", Value::Bool(add_bos)));
    pairs.push(pair("add_eos_token", Value::Bool(add_eos)));
    other_ends(pairs, &ends)
}

/// Names the other tokens that end generation, as far as the loader does not know them by their texts.
fn other_ends(pairs: &mut Vec<(String, Value)>, ends: &[u32]) -> Result<()> {
    let loaded = Tokenizer::from_metadata(&Metadata::new(pairs.clone())?)?;
    let known: BTreeSet<u32> = loaded.iter().flat_map(Tokenizer::eos).copied().collect();
    let unknown: BTreeSet<u32> = ends.iter().copied().filter(|id| !known.contains(id)).collect();
    let keys = ["eot_token_id", "eom_token_id"];
    if unknown.len() > keys.len() {
        let text = format!("`eos_token_id` names {ends:?}: GGUF has no keys for so many");
        return Err(Error::Unsupported(format!("generation_config.json: {text}")));
    }
    pairs.extend(keys.iter().zip(unknown).map(|(key, id)| pair(key, Value::U32(id))));
    Ok(())
}

/// The tokens that the post-processor puts before and after a text.
fn template(json: &Json, vocabulary: &Vocabulary) -> Result<(Option<u32>, Option<u32>)> {
    let Some(processor) = json.get("post_processor").filter(|value| !value.is_null()) else {
        return Ok((None, None));
    };
    let steps = match processor.get("processors").and_then(Json::as_array) {
        Some(steps) => steps.iter().collect(),
        None => vec![processor],
    };
    let (mut first, mut last) = (None, None);
    for step in steps {
        match step.get("type").and_then(Json::as_str) {
            Some("ByteLevel") => {} // Changes offsets only.
            Some("TemplateProcessing") => {
                let parts = step.get("single").and_then(Json::as_array).map_or(&[][..], Vec::as_slice);
                let special = |part: &Json| part.get("SpecialToken")?.get("id")?.as_str().map(str::to_owned);
                let is_text = |part: &&Json| part.get("Sequence").is_some();
                let (before, after) = match parts {
                    [text] if is_text(&text) => (None, None),
                    [before, text] if is_text(&text) => (special(before), None),
                    [text, after] if is_text(&text) => (None, special(after)),
                    [before, text, after] if is_text(&text) => (special(before), special(after)),
                    _ => return Err(unsupported("a post-processor that adds more than a token at each end")),
                };
                let added = before.is_some() as usize + after.is_some() as usize;
                if added + 1 != parts.len() {
                    return Err(wrong("a template of the post-processor holds what is neither token nor text"));
                }
                let id = |token: Option<String>| match token {
                    None => Ok(None),
                    Some(token) => match vocabulary.ids.get(&token) {
                        Some(&id) => Ok(Some(id)),
                        None => Err(wrong(format_args!("the post-processor adds {token:?}, which is no token"))),
                    },
                };
                (first, last) = (id(before)?, id(after)?);
            }
            kind => return Err(unsupported(format_args!("post-processor {:?}", kind.unwrap_or("?")))),
        }
    }
    Ok((first, last))
}

/// The chat template: a file of its own, or in the tokenizer's settings, one or several by name.
fn chat_template(pairs: &mut Vec<(String, Value)>, folder: &Folder, about: &Fields<'_>) -> Result<()> {
    let in_json = folder.settings("chat_template.json")?;
    let template = match folder.text("chat_template.jinja")? {
        Some(text) => Some(Json::String(text)),
        None => in_json.as_ref().and_then(|json| json.get("chat_template")).or(about.get("chat_template")).cloned(),
    };
    let key = |name: &str| match name {
        "default" => "tokenizer.chat_template".to_owned(),
        name => format!("tokenizer.chat_template.{name}"),
    };
    match template {
        None => {}
        Some(Json::String(text)) => pairs.push((key("default"), Value::String(text))),
        Some(Json::Array(templates)) => {
            let mut names = Vec::new();
            for object in &templates {
                let fields = Fields { file: CONFIG, object };
                let (Some(name), Some(text)) = (fields.string("name")?, fields.string("template")?) else {
                    return Err(about.wrong("chat_template", "a list of names and templates"));
                };
                if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte)) {
                    return Err(fields.wrong("name", "a name of letters and digits"));
                }
                pairs.push((key(name), string(text)));
                names.extend((name != "default").then_some(name.as_bytes()));
            }
            if !names.is_empty() {
                pairs.push(("tokenizer.chat_templates".into(), Value::Array(Array::of_strings(names))));
            }
        }
        Some(_) => return Err(about.wrong("chat_template", "a text or a list of them")),
    }
    Ok(())
}
