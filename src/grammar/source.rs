//! A caller's text as the grammar that the compiler takes.

use super::{GrammarKind, tools};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};
use llguidance::api::TopLevelGrammar;
use serde_json::{Value as Json, json};
use std::collections::BTreeSet;

/// Schemas of real interfaces stay far under this.
const TEXT_BYTES_MAX: usize = 256 << 10;
/// The same for grammars of languages.
const LARK_BYTES_MAX: usize = 32 << 10;
/// The compiler's work on regular expressions grows with the square of their length; this much takes up to a second.
const REGEX_BYTES_MAX: usize = 16 << 10;
/// How deep a schema may nest through its references. A level takes the compiler 4 to 9 KB of stack.
const LEVELS_MAX: usize = 4096;

/// What may stand between the values of JSON, once at a place: without a bound, some models write it until their tokens are
/// out.
const WHITE_SPACE: &str = r" |\n {0,32}";

/// A grammar to compile, and the text that its sentences begin with where that is known.
pub(super) struct Source {
    pub(super) grammar: TopLevelGrammar,
    pub(super) opening: Option<String>,
}

impl From<TopLevelGrammar> for Source {
    fn from(grammar: TopLevelGrammar) -> Self {
        Source { grammar, opening: None }
    }
}

/// What went wrong, after the name of what it is about.
pub(super) fn refused(kind: GrammarKind, what: impl std::fmt::Display) -> Error {
    let name = match kind {
        GrammarKind::JsonSchema => "JSON schema",
        GrammarKind::Regex => "regular expression",
        GrammarKind::Lark => "Lark grammar",
        GrammarKind::Choice => "choices",
        GrammarKind::Tools => "tools",
    };
    Error::Grammar(format!("{name}: {what}").into())
}

/// Checks what can be checked without the compiler.
pub(super) fn read(tokenizer: &Tokenizer, kind: GrammarKind, text: &str) -> Result<Source> {
    let most = match kind {
        GrammarKind::Regex => REGEX_BYTES_MAX,
        GrammarKind::Lark => LARK_BYTES_MAX,
        GrammarKind::JsonSchema | GrammarKind::Choice | GrammarKind::Tools => TEXT_BYTES_MAX,
    };
    if text.len() > most {
        return Err(refused(kind, format_args!("{} bytes, at most {most}", text.len())));
    }
    if text.trim().is_empty() {
        return Err(refused(kind, "empty"));
    }
    match kind {
        GrammarKind::JsonSchema => match parse(kind, text)? {
            mut schema @ (Json::Object(_) | Json::Bool(_)) => {
                check_levels(kind, &schema)?;
                if let Json::Object(members) = &mut schema {
                    members.entry("x-guidance").or_insert_with(|| json!({"whitespace_pattern": WHITE_SPACE}));
                }
                Ok(TopLevelGrammar::from_json_schema(schema).into())
            }
            _ => Err(refused(kind, "neither an object nor a boolean")),
        },
        GrammarKind::Regex => Ok(TopLevelGrammar::from_regex(text).into()),
        GrammarKind::Lark => Ok(TopLevelGrammar::from_lark(text.to_owned()).into()),
        GrammarKind::Choice => Ok(TopLevelGrammar::from_lark(choice(&parse(kind, text)?)?).into()),
        GrammarKind::Tools => tools::source(tokenizer, &parse(kind, text)?),
    }
}

fn parse(kind: GrammarKind, text: &str) -> Result<Json> {
    // The parser bounds how deep values nest.
    let json = serde_json::from_str(text).map_err(|error| refused(kind, format_args!("not JSON: {error}")))?;
    let bytes = pattern_bytes(&json);
    if bytes > REGEX_BYTES_MAX {
        let what = format_args!("its patterns have {bytes} bytes, at most {REGEX_BYTES_MAX} together");
        return Err(refused(kind, what));
    }
    Ok(json)
}

/// Checks that a schema does not nest too deep when every reference in it is followed, each target once.
pub(super) fn check_levels(kind: GrammarKind, schema: &Json) -> Result<()> {
    let mut references = BTreeSet::new();
    collect_references(schema, &mut references);
    let targets = references.iter().filter_map(|reference| schema.pointer(reference.strip_prefix('#')?));
    let levels = depth(schema) + targets.map(depth).sum::<usize>();
    match levels {
        levels if levels > LEVELS_MAX => {
            let what = format_args!("it may nest {levels} levels through its references, at most {LEVELS_MAX}");
            Err(refused(kind, what))
        }
        _ => Ok(()),
    }
}

fn collect_references<'a>(json: &'a Json, references: &mut BTreeSet<&'a str>) {
    match json {
        Json::Array(items) => items.iter().for_each(|item| collect_references(item, references)),
        Json::Object(members) => {
            references.extend(members.get("$ref").and_then(Json::as_str));
            members.values().for_each(|member| collect_references(member, references));
        }
        _ => {}
    }
}

/// Of arrays and objects within each other. The parser's bound on it holds for these recursions, too.
fn depth(json: &Json) -> usize {
    match json {
        Json::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Json::Object(members) => 1 + members.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// How long the regular expressions of a schema are together.
fn pattern_bytes(json: &Json) -> usize {
    match json {
        Json::Array(items) => items.iter().map(pattern_bytes).sum(),
        Json::Object(members) => members
            .iter()
            .map(|(key, value)| match (key.as_str(), value) {
                ("pattern", Json::String(pattern)) => pattern.len(),
                ("patternProperties", Json::Object(patterns)) => {
                    patterns.keys().map(String::len).sum::<usize>()
                        + patterns.values().map(pattern_bytes).sum::<usize>()
                }
                _ => pattern_bytes(value),
            })
            .sum(),
        _ => 0,
    }
}

fn choice(choices: &Json) -> Result<String> {
    let refused = |what: String| refused(GrammarKind::Choice, what);
    let list = choices.as_array().ok_or_else(|| refused("not a JSON array".into()))?;
    if list.is_empty() {
        return Err(refused("an empty array".into()));
    }
    let mut literals = Vec::with_capacity(list.len());
    for (index, choice) in list.iter().enumerate() {
        match choice {
            Json::String(text) if text.is_empty() => return Err(refused(format!("[{index}] is empty"))),
            Json::String(_) => literals.push(choice.to_string()),
            _ => return Err(refused(format!("[{index}] is not a string"))),
        }
    }
    Ok(format!("start: CHOICE\nCHOICE: {}\n", literals.join(" | ")))
}
