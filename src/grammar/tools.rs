//! Calls of tools in the format of a model's own chat template.
//!
//! No table of models: the template is asked. It renders a conversation in which an assistant calls tools of odd names, and
//! what stands around the names and the arguments is the format.

use super::GrammarKind;
use super::source::{Source, check_levels, refused};
use crate::tokenizer::Tokenizer;
use crate::{Error, Result};
use llguidance::api::TopLevelGrammar;
use serde_json::{Value as Json, json};
use std::fmt::Write;

const TOOLS_MAX: usize = 256;
const NAME_BYTES_MAX: usize = 64;

/// How a template writes calls: `lead NAME middle ARGUMENTS (between NAME middle ARGUMENTS)* tail`.
#[derive(Debug, PartialEq, Eq)]
struct Format {
    lead: String,
    middle: String,
    /// None: the template allows one call only.
    between: Option<String>,
    tail: String,
}

/// The grammar of calls of these tools.
pub(super) fn source(tokenizer: &Tokenizer, tools: &Json) -> Result<Source> {
    let tools = read(tools)?;
    let format = format(tokenizer)?;
    let mut lark = String::from("start: first");
    if format.between.is_some() {
        lark.push_str(" next*");
    }
    let literal = |text: &str| literal(tokenizer, text);
    let _ = writeln!(lark, " {}", literal(&format.tail)?);
    let _ = writeln!(lark, "first: {} call", literal(&format.lead)?);
    if let Some(between) = &format.between {
        let _ = writeln!(lark, "next: {} call", literal(between)?);
    }
    let calls: Vec<String> = (0..tools.len()).map(|index| format!("call_{index}")).collect();
    let _ = writeln!(lark, "call: {}", calls.join(" | "));
    for (index, tool) in tools.iter().enumerate() {
        let middle = literal(&format.middle)?;
        let _ = writeln!(lark, "call_{index}: {} {middle} %json {}", Json::from(tool.name), tool.parameters);
    }
    Ok(Source { grammar: TopLevelGrammar::from_lark(lark), opening: Some(format.lead) })
}

struct Tool<'a> {
    name: &'a str,
    /// A schema of an object.
    parameters: Json,
}

fn read(tools: &Json) -> Result<Vec<Tool<'_>>> {
    let refused = |what: String| refused(GrammarKind::Tools, what);
    let list = tools.as_array().ok_or_else(|| refused("not a JSON array".into()))?;
    if list.is_empty() || list.len() > TOOLS_MAX {
        return Err(refused(format!("{} of them, 1 to {TOOLS_MAX} allowed", list.len())));
    }
    let mut read = Vec::with_capacity(list.len());
    for (index, tool) in list.iter().enumerate() {
        let refused = |what: &str| refused(format!("[{index}]{what}"));
        let function = tool.get("function").ok_or_else(|| refused(".function is missing"))?;
        let name = function.get("name").and_then(Json::as_str);
        let name = name.ok_or_else(|| refused(".function.name is missing or no string"))?;
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
        if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(plain) {
            return Err(refused(".function.name is not 1 to 64 letters, digits, `_`, `-` or `.`"));
        }
        if read.iter().any(|tool: &Tool| tool.name == name) {
            return Err(refused(".function.name is there twice"));
        }
        let mut parameters = match function.get("parameters") {
            None | Some(Json::Null) => json!({"properties": {}, "additionalProperties": false}),
            Some(Json::Object(schema)) => Json::Object(schema.clone()),
            Some(_) => return Err(refused(".function.parameters is no object")),
        };
        check_levels(GrammarKind::Tools, &parameters)?;
        if let Json::Object(schema) = &mut parameters {
            schema.entry("type").or_insert_with(|| "object".into());
            // As Python's json writes it, which is what templates and training data have.
            let style = json!({"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": false});
            schema.entry("x-guidance").or_insert(style);
        }
        read.push(Tool { name, parameters });
    }
    Ok(read)
}

/// Text as terms of a Lark grammar: control tokens by their numbers, the rest as it is.
fn literal(tokenizer: &Tokenizer, text: &str) -> Result<String> {
    let mut terms: Vec<String> = Vec::new();
    let mut plain = Vec::new();
    let flush = |plain: &mut Vec<u8>, terms: &mut Vec<String>| {
        let text = String::from_utf8(std::mem::take(plain));
        let text = text.map_err(|_| Error::Internal("a chat template's text is not UTF-8".into()))?;
        if !text.is_empty() {
            terms.push(Json::from(text).to_string());
        }
        Ok::<_, Error>(())
    };
    for token in tokenizer.encode(text, false, true)? {
        if tokenizer.is_control(token) {
            flush(&mut plain, &mut terms)?;
            terms.push(format!("<[{token}]>"));
        } else {
            plain.extend_from_slice(tokenizer.token_bytes(token).unwrap_or_default());
        }
    }
    flush(&mut plain, &mut terms)?;
    Ok(terms.join(" "))
}

const NAMES: [&str; 2] = ["edgellm_tool_a", "edgellm_tool_b"];
const ARGUMENT: &str = "edgellm_argument";

#[cfg(not(feature = "chat"))]
fn format(_: &Tokenizer) -> Result<Format> {
    Err(Error::Unsupported("tools need chat templates: this library was built without feature `chat`".into()))
}

#[cfg(feature = "chat")]
fn format(tokenizer: &Tokenizer) -> Result<Format> {
    let user = json!({"role": "user", "content": "?"});
    let call = |name: &str| {
        let function = json!({"name": name, "arguments": {ARGUMENT: 1}});
        json!({"type": "function", "id": "call00000", "function": function})
    };
    let tools: Vec<Json> = NAMES
        .iter()
        .map(|name| {
            json!({"type": "function", "function": {"name": name, "description": "?",
        "parameters": {"type": "object", "properties": {ARGUMENT: {"type": "integer"}}}}})
        })
        .collect();
    let tools = Json::from(tools).to_string();
    let render = |messages: Vec<Json>, prompt: bool| {
        let options = json!({"add_generation_prompt": prompt}).to_string();
        tokenizer.render_chat(&Json::from(messages).to_string(), Some(&tools), Some(&options))
    };
    let unsupported = |what: &str| Error::Unsupported(format!("tools: the model's chat template {what}"));
    let prompt = render(vec![user.clone()], true)?;
    let said = |names: &[&str]| {
        let calls: Vec<Json> = names.iter().map(|name| call(name)).collect();
        let chat = render(vec![user.clone(), json!({"role": "assistant", "content": "", "tool_calls": calls})], false)?;
        match chat.strip_prefix(&prompt) {
            Some(said) => Ok(said.to_owned()),
            None => Err(unsupported("writes calls that do not follow its prompt for a generation")),
        }
    };
    let ends: Vec<&str> = tokenizer.eos().iter().filter_map(|&end| name_of(tokenizer, end)).collect();
    let one = said(&NAMES[..1])?;
    let mut format = split(&one, &ends).ok_or_else(|| unsupported("has no tool calls with JSON arguments"))?;
    // Templates that allow one call say so by an error.
    if let Ok(two) = said(&NAMES) {
        let rest = two.strip_prefix(&format.lead).and_then(|rest| rest.strip_prefix(NAMES[0]));
        let rest = rest.and_then(|rest| arguments(rest)).map(|(_, after)| after);
        format.between = rest.and_then(|rest| rest.split_once(NAMES[1])).map(|(between, _)| between.to_owned());
    }
    // A template that shows thoughts has a place for them before the call, which is not part of it.
    if let Some((_, call)) = format.lead.rsplit_once("</think>") {
        format.lead = call.trim_start().to_owned();
    }
    Ok(format)
}

#[cfg(feature = "chat")]
fn name_of(tokenizer: &Tokenizer, token: u32) -> Option<&str> {
    std::str::from_utf8(tokenizer.token_bytes(token)?).ok()
}

/// What stands around the one call in this text, up to the first end of a turn.
fn split(said: &str, ends: &[&str]) -> Option<Format> {
    let (lead, rest) = said.split_once(NAMES[0])?;
    let (middle, tail) = arguments(rest)?;
    let end = ends.iter().filter_map(|end| tail.find(end)).min().unwrap_or(tail.len());
    let text = |text: &str| text.to_owned();
    Some(Format { lead: text(lead), middle: text(middle), between: None, tail: text(&tail[..end]) })
}

/// The text before and after the JSON object with the argument.
fn arguments(text: &str) -> Option<(&str, &str)> {
    let start = text[..text.find(ARGUMENT)?].rfind('{')?;
    let mut values = serde_json::Deserializer::from_str(&text[start..]).into_iter::<Json>();
    values.next()?.ok()?;
    Some((&text[..start], &text[start + values.byte_offset()..]))
}

/// The shortest part of an opening that tells it from other text: its first word.
pub(super) fn trigger(opening: &str) -> &str {
    match opening.find(['{', '[', ' ', '\n']) {
        None | Some(0) => opening,
        Some(end) => &opening[..end],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_is_split_into_what_stands_around_it() {
        let hermes = "<tool_call>\n{\"name\": \"edgellm_tool_a\", \"arguments\": {\"edgellm_argument\": 1}}\n</tool_call><|im_end|>\n";
        let format = split(hermes, &["<|im_end|>"]).expect("a call");
        assert_eq!(format.lead, "<tool_call>\n{\"name\": \"");
        assert_eq!(format.middle, "\", \"arguments\": ");
        assert_eq!(format.tail, "}\n</tool_call>");
        assert_eq!(split("<function=edgellm_tool_a><parameter=edgellm_argument>1</parameter>", &[]), None);
        assert_eq!(trigger(&format.lead), "<tool_call>");
        assert_eq!(trigger("{\"name\": \""), "{\"name\": \"");
    }
}
