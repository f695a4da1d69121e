//! Chat templates: the model's Jinja program, run with bounds.
//!
//! Templates come with the file, so they are code from outside. Work and memory are bounded by fuel, which
//! also pays for every byte that an expression makes; nesting by a limit; the output by a length.

mod clock;
mod guard;
mod python;

use crate::file::Metadata;
use crate::{Error, Result};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, ErrorKind};
use serde_json::Value as Json;
use std::sync::OnceLock;

const TEMPLATE: &str = "tokenizer.chat_template";
const TEMPLATES: &str = "tokenizer.chat_templates";

/// Templates of real models stay under 30,000 bytes.
const TEMPLATE_BYTES_MAX: usize = 128 << 10;
/// What a template may do on any input; one fuel is about one instruction or 64 bytes.
const FUEL: u64 = 50_000;
/// And more for each value of the input, and each byte of it: loops over messages cost some hundred instructions each.
const FUEL_PER_VALUE: u64 = 200;
const BYTES_PER_FUEL: u64 = 2;
/// How much longer than its input a rendered chat may be.
const OUTPUT_BYTES_MAX: usize = 1 << 20;
/// Nested calls of macros, loops and conditions.
const RECURSION_MAX: usize = 100;

/// The chat templates of a file.
pub(super) struct Templates {
    default: Template,
    /// Used when there are tools.
    tool_use: Option<Template>,
}

/// One template, compiled when it is first needed.
struct Template {
    source: String,
    environment: OnceLock<Result<Environment<'static>, String>>,
}

/// What a template is given; the first three are JSON texts.
pub(super) struct Input<'a> {
    pub(super) messages: &'a str,
    pub(super) tools: Option<&'a str>,
    pub(super) options: Option<&'a str>,
    pub(super) bos: Option<&'a str>,
    pub(super) eos: Option<&'a str>,
}

impl Templates {
    /// Memory held, in bytes, before a template is first used.
    pub(super) fn memory(&self) -> usize {
        self.default.source.capacity() + self.tool_use.as_ref().map_or(0, |template| template.source.capacity())
    }

    /// None when the file has no template.
    pub(super) fn from_metadata(metadata: &Metadata) -> Result<Option<Templates>> {
        let find = |key: &str| Ok::<_, Error>(metadata.string(key)?.map(Template::new));
        let named = |name: &str| find(&format!("{TEMPLATE}.{name}"));
        let mut default = find(TEMPLATE)?;
        if default.is_none() {
            default = named("default")?;
        }
        let tool_use = named("tool_use")?;
        if default.is_none()
            && let Some(names) = metadata.strings(TEMPLATES)?
            && let (1, Some(name)) = (names.len(), names.get(0))
        {
            let name = std::str::from_utf8(name).map_err(|_| Error::Format(format!("{TEMPLATES}[0] is not UTF-8")))?;
            default = named(name)?;
        }
        Ok(default.map(|default| Templates { default, tool_use }))
    }

    /// The text of a chat.
    pub(super) fn render(&self, input: &Input<'_>) -> Result<String> {
        let mut messages = json("messages", input.messages)?;
        let tools = input.tools.map(|tools| json("tools", tools)).transpose()?.unwrap_or(Json::Null);
        let options = input.options.map(|options| json("options", options)).transpose()?.unwrap_or(Json::Null);
        let Json::Array(list) = &mut messages else {
            return Err(Error::argument("messages: not a JSON array"));
        };
        for (index, message) in list.iter_mut().enumerate() {
            parse_arguments(index, message)?;
        }
        let mut variables = match options {
            Json::Null => serde_json::Map::new(),
            Json::Object(options) => options,
            _ => return Err(Error::argument("options: not a JSON object")),
        };
        if let Some(name) = ["messages", "tools"].into_iter().find(|name| variables.contains_key(*name)) {
            return Err(Error::argument(format!("options: {name:?} is an argument of its own")));
        }
        let template = match (&tools, &self.tool_use) {
            (Json::Null, _) | (_, None) => &self.default,
            (Json::Array(tools), Some(_)) if tools.is_empty() => &self.default,
            (Json::Array(_), Some(tool_use)) => tool_use,
            _ => return Err(Error::argument("tools: not a JSON array")),
        };
        // Absent tools and documents are none rather than undefined, as `transformers` gives them.
        variables.entry("documents").or_insert(Json::Null);
        variables.entry("add_generation_prompt").or_insert(Json::Bool(true));
        for (name, text) in [("bos_token", input.bos), ("eos_token", input.eos)] {
            if let Some(text) = text {
                variables.entry(name).or_insert_with(|| text.into());
            }
        }
        variables.insert("messages".into(), messages);
        variables.insert("tools".into(), tools);
        template.render(&Json::Object(variables), input)
    }
}

impl Template {
    fn new(source: &str) -> Template {
        Template { source: source.to_owned(), environment: OnceLock::new() }
    }

    fn render(&self, variables: &Json, input: &Input<'_>) -> Result<String> {
        let compiled = self.environment.get_or_init(|| compile(&self.source));
        let environment = match compiled {
            Ok(environment) => environment,
            Err(message) => return Err(Error::Unsupported(message.clone())),
        };
        let texts = [Some(input.messages), input.tools, input.options];
        let input_len: usize = texts.into_iter().flatten().map(str::len).sum();
        // A copy shares the compiled template.
        let mut environment = environment.clone();
        environment.set_fuel(Some(FUEL + FUEL_PER_VALUE * values(variables) + input_len as u64 / BYTES_PER_FUEL));
        let template = environment.get_template(NAME).map_err(|error| refusal(&error))?;
        let mut output = Output { text: Vec::new(), most: OUTPUT_BYTES_MAX.saturating_add(input_len), full: false };
        let rendered = template.render_captured_to(Serde(variables), &mut output);
        match rendered {
            _ if output.full => {
                Err(Error::Unsupported(format!("chat template: the output is longer than {} bytes", output.most)))
            }
            Err(error) => Err(refusal(&error)),
            Ok(_) => String::from_utf8(output.text)
                .map_err(|_| Error::Internal("chat template: the output is not UTF-8".into())),
        }
    }
}

const NAME: &str = "chat template";

fn compile(source: &str) -> Result<Environment<'static>, String> {
    if source.len() > TEMPLATE_BYTES_MAX {
        return Err(format!("the chat template has {} bytes, at most {TEMPLATE_BYTES_MAX}", source.len()));
    }
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(|error| error.to_string())?);
    environment.set_recursion_limit(RECURSION_MAX);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    python::install(&mut environment);
    guard::install(&mut environment);
    match environment.add_template_owned(NAME, guard::guard(source)?) {
        Ok(()) => Ok(environment),
        Err(error) => Err(describe(&error)),
    }
}

/// Where the rendered text goes: as long as allowed, and no longer.
struct Output {
    text: Vec<u8>,
    most: usize,
    full: bool,
}

impl std::io::Write for Output {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.full |= bytes.len() > self.most - self.text.len();
        if self.full || self.text.try_reserve(bytes.len()).is_err() {
            return Err(std::io::ErrorKind::OutOfMemory.into());
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A template's failure: what this build cannot run, or what the template does not accept.
fn refusal(error: &minijinja::Error) -> Error {
    let message = describe(error);
    match error.kind() {
        ErrorKind::OutOfFuel
        | ErrorKind::SyntaxError
        | ErrorKind::UnknownFilter
        | ErrorKind::UnknownFunction
        | ErrorKind::UnknownMethod
        | ErrorKind::UnknownTest => Error::Unsupported(message),
        _ => Error::argument(message),
    }
}

fn describe(error: &minijinja::Error) -> String {
    let what = match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => "too much work for its input".to_owned(),
        // `raise_exception` and failed operations: the text is the message.
        (ErrorKind::InvalidOperation, Some(detail)) => detail.to_owned(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    };
    match error.line() {
        Some(line) => format!("chat template, line {line}: {what}"),
        None => format!("chat template: {what}"),
    }
}

fn json(what: &str, text: &str) -> Result<Json> {
    serde_json::from_str(text).map_err(|error| Error::argument(format!("{what}: not JSON: {error}")))
}

/// OpenAI's API has a tool call's arguments as a JSON text; templates want the object.
fn parse_arguments(index: usize, message: &mut Json) -> Result<()> {
    let Some(Json::Array(calls)) = message.get_mut("tool_calls") else { return Ok(()) };
    for (call_index, call) in calls.iter_mut().enumerate() {
        let Some(arguments) = call.pointer_mut("/function/arguments") else { continue };
        let Json::String(text) = arguments else { continue };
        let parsed =
            if text.trim().is_empty() { Ok(Json::Object(Default::default())) } else { serde_json::from_str(text) };
        let place = || format!("messages[{index}].tool_calls[{call_index}].function.arguments");
        *arguments = match parsed {
            Ok(Json::Object(object)) => Json::Object(object),
            Ok(_) => return Err(Error::argument(format!("{}: not a JSON object", place()))),
            Err(error) => return Err(Error::argument(format!("{}: not JSON: {error}", place()))),
        };
    }
    Ok(())
}

/// How many values a JSON text has. Its nesting is bounded by the parser.
fn values(json: &Json) -> u64 {
    1 + match json {
        Json::Array(items) => items.iter().map(values).sum::<u64>(),
        Json::Object(members) => members.values().map(values).sum(),
        _ => 0,
    }
}
