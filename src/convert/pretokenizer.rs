//! Which of GGUF's names for pre-tokenizers a `tokenizer.json` means, by its expression, compared letter by letter: a
//! guess would give wrong tokens in silence.

use crate::{Error, Result};
use serde_json::Value as Json;

/// Expressions of a `Split`, whether a piece that is a token is taken without merging, and what GGUF calls that.
const SPLITS: [(&str, bool, &str); 4] = [
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        true,
        "llama-bpe",
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        false,
        "smaug-bpe",
    ),
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        false,
        "qwen2",
    ),
    (r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+", false, "gpt-2"),
];

/// The name in `tokenizer.ggml.pre` of what this tokenizer cuts text with.
pub(super) fn name(json: &Json, model: &Json) -> Result<&'static str> {
    let none = Json::Null;
    let pre = json.get("pre_tokenizer").unwrap_or(&none);
    let steps = match pre.get("pretokenizers").and_then(Json::as_array) {
        Some(steps) => steps.iter().collect(),
        None => vec![pre],
    };
    let whole = model.get("ignore_merges").and_then(Json::as_bool).unwrap_or(false);
    let steps: Option<Vec<Step<'_>>> = steps.into_iter().map(Step::read).collect();
    let found = match steps.as_deref() {
        Some([Step::Split(expression), Step::Bytes { cuts: false }]) => {
            let split = SPLITS.iter().find(|(known, whole_too, _)| known == expression && *whole_too == whole);
            split.map(|(_, _, name)| *name)
        }
        Some([Step::Bytes { cuts: true }]) if !whole => Some("gpt-2"),
        Some([Step::Digits, Step::Bytes { cuts: true }]) if !whole => Some("smollm"),
        _ => None,
    };
    found.ok_or_else(|| {
        let text = format!("the pre-tokenizer is not one that this library has (`ignore_merges` = {whole}): {pre}");
        Error::Unsupported(format!("tokenizer.json: {text}"))
    })
}

/// One step of a pre-tokenizer that is known here.
enum Step<'a> {
    /// Cuts text into what the expression finds.
    Split(&'a str),
    /// Each digit is a piece.
    Digits,
    /// Bytes as characters, after GPT-2's expression or without.
    Bytes { cuts: bool },
}

impl<'a> Step<'a> {
    fn read(json: &'a Json) -> Option<Step<'a>> {
        let flag = |key: &str, default: bool| json.get(key).map_or(Some(default), Json::as_bool);
        match json.get("type")?.as_str()? {
            "Split" => {
                let isolated = json.get("behavior")?.as_str()? == "Isolated" && !flag("invert", false)?;
                isolated.then_some(Step::Split(json.get("pattern")?.get("Regex")?.as_str()?))
            }
            "Digits" => flag("individual_digits", false)?.then_some(Step::Digits),
            "ByteLevel" if !flag("add_prefix_space", true)? => Some(Step::Bytes { cuts: flag("use_regex", true)? }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn found(pre: Json, ignore_merges: bool) -> Result<&'static str> {
        name(&json!({ "pre_tokenizer": pre }), &json!({ "ignore_merges": ignore_merges }))
    }

    fn split(expression: &str) -> Json {
        let split = json!({"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated", "invert": false});
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        json!({"type": "Sequence", "pretokenizers": [split, bytes]})
    }

    #[test]
    fn known_pre_tokenizers_have_names() {
        for (expression, whole, name) in SPLITS {
            assert_eq!(found(split(expression), whole).unwrap(), name);
        }
        let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": true});
        assert_eq!(found(bytes.clone(), false).unwrap(), "gpt-2");
        let digits = json!({"type": "Digits", "individual_digits": true});
        assert_eq!(found(json!({"type": "Sequence", "pretokenizers": [digits, bytes]}), false).unwrap(), "smollm");
    }

    #[test]
    fn anything_else_is_refused_and_shown() {
        let almost = SPLITS[2].0.replace(r"\p{N}|", r"\p{N}+|");
        let error = found(split(&almost), false).unwrap_err().to_string();
        assert!(error.contains(r"\\p{N}+|"), "{error}");
        assert!(found(split(SPLITS[2].0), true).is_err());
        for pre in [
            Json::Null,
            json!({"type": "Metaspace"}),
            json!({"type": "ByteLevel"}), // A space before the text, unless it says otherwise.
            json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": false}),
            json!({"type": "Sequence", "pretokenizers": []}),
        ] {
            assert!(found(pre.clone(), false).is_err(), "{pre}");
        }
    }
}
