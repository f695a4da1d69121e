//! What templates expect of Python: its methods, its JSON, its way of writing values, its clock.

use super::clock;
use minijinja::value::{Kwargs, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;
use std::fmt::Write;

/// How deeply a value may nest to be written; the parser of messages allows as much.
const DEPTH_MAX: usize = 128;

/// Adds what templates may call, and puts bounds on what would write values without any.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.set_unknown_method_callback(method);
    environment.set_formatter(|output, state, value| match value.as_str() {
        Some(text) => output.write_str(text).map_err(Error::from),
        None => output.write_str(&string(state, value)?).map_err(Error::from),
    });
    environment.add_filter("string", string);
    environment.add_filter("join", |state: &State, items: &Value, separator: Option<&str>| {
        join(state, items, separator.unwrap_or_default())
    });
    environment.add_filter("tojson", tojson);
    environment.add_function("raise_exception", |message: String| -> Result<String, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", |format: &str| {
        clock::now(format).map_err(|message| Error::new(ErrorKind::UnknownFunction, message))
    });
    // These write whole values without bounds, and chat templates do not use them.
    for filter in ["pprint", "format", "urlencode"] {
        environment.remove_filter(filter);
    }
    environment.remove_global("debug");
}

/// Python's methods. Those whose result can be longer than the fuel pays for are bounded here.
fn method(state: &mut State, value: &Value, name: &str, args: &[Value]) -> Result<Value, Error> {
    let Some(text) = value.as_str() else {
        return pycompat::unknown_method_callback(state, value, name, args);
    };
    pay(state, text.len())?;
    match name {
        "replace" => {
            let (old, new, count): (&str, &str, Option<i64>) = from_args(args)?;
            let most = count.and_then(|count| usize::try_from(count).ok()).unwrap_or(usize::MAX);
            pay(state, text.matches(old).take(most).count().saturating_mul(new.len()))?;
            Ok(text.replacen(old, new, most).into())
        }
        "join" => {
            let (items,): (&Value,) = from_args(args)?;
            join(state, items, text).map(Value::from)
        }
        // Its widths have no bound, and chat templates do not use it.
        "format" => Err(ErrorKind::UnknownMethod.into()),
        _ => pycompat::unknown_method_callback(state, value, name, args),
    }
}

/// Takes the fuel for writing so many bytes, before they are written.
fn pay(state: &State, bytes: usize) -> Result<(), Error> {
    const BYTES_PER_FUEL: u64 = 64;
    state.consume_fuel(1 + bytes as u64 / BYTES_PER_FUEL)
}

fn too_deep() -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("a value nests more than {DEPTH_MAX} deep"))
}

fn join(state: &State, items: &Value, separator: &str) -> Result<String, Error> {
    let mut text = String::new();
    for (index, item) in items.try_iter()?.checked().enumerate() {
        let item = item?;
        if index > 0 {
            pay(state, separator.len())?;
            text.push_str(separator);
        }
        match item.as_str() {
            Some(item) => {
                pay(state, item.len())?;
                text.push_str(item);
            }
            None => text.push_str(&string(state, &item)?),
        }
    }
    Ok(text)
}

/// Python's `str`.
fn string(state: &State, value: &Value) -> Result<String, Error> {
    let mut text = String::new();
    match value.as_str() {
        Some(value) => text.push_str(value),
        None if value.kind() == ValueKind::Undefined => {}
        None => push_repr(state, value, 0, &mut text)?,
    }
    Ok(text)
}

/// Python's `repr`.
fn push_repr(state: &State, value: &Value, depth: usize, text: &mut String) -> Result<(), Error> {
    if depth > DEPTH_MAX {
        return Err(too_deep());
    }
    let [open, close] = match value.kind() {
        ValueKind::Seq | ValueKind::Iterable if value.is_tuple() => ['(', ')'],
        ValueKind::Seq | ValueKind::Iterable => ['[', ']'],
        ValueKind::Map => ['{', '}'],
        // Loops, macros and the like: what they hold is not for the text.
        ValueKind::Plain => return text.write_str("<object>").map_err(Error::from),
        ValueKind::Number if !value.is_integer() => {
            return f64::try_from(value.clone()).map(|value| push_float(value, text));
        }
        _ => {
            pay(state, value.as_str().map_or(0, str::len))?;
            return write!(text, "{value:?}").map_err(Error::from);
        }
    };
    text.push(open);
    let mut count = 0;
    for item in value.try_iter()?.checked() {
        let item = item?;
        pay(state, 0)?;
        text.push_str(if count > 0 { ", " } else { "" });
        count += 1;
        push_repr(state, &item, depth + 1, text)?;
        if value.kind() == ValueKind::Map {
            text.push_str(": ");
            push_repr(state, &value.get_item(&item)?, depth + 1, text)?;
        }
    }
    text.push_str(if open == '(' && count == 1 { "," } else { "" });
    text.push(close);
    Ok(())
}

/// Python's shortest form of a float.
fn push_float(value: f64, text: &mut String) {
    if !value.is_finite() {
        text.push_str(if value.is_nan() {
            "nan"
        } else if value > 0.0 {
            "inf"
        } else {
            "-inf"
        });
        return;
    }
    let scientific = format!("{value:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    let power: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&power) {
        text.push_str(&format!("{value:?}"));
    } else {
        let sign = if power < 0 { '-' } else { '+' };
        text.push_str(&format!("{digits}e{sign}{:02}", power.unsigned_abs()));
    }
}

/// How `tojson` writes.
struct Json<'a, 'state, 'env> {
    state: &'a State<'state, 'env>,
    text: String,
    indent: Option<usize>,
    item_separator: String,
    key_separator: String,
    ascii: bool,
    sort: bool,
}

/// `json.dumps` as `transformers` gives it to templates: no escaping for HTML, non-ASCII as it is.
fn tojson(state: &State, value: &Value, args: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = args.get("indent")?;
    let separators: Option<Value> = args.get("separators")?;
    let (ascii, sort): (Option<bool>, Option<bool>) = (args.get("ensure_ascii")?, args.get("sort_keys")?);
    args.assert_all_used()?;
    let mut json = Json {
        state,
        text: String::new(),
        indent: indent.map(|indent| indent.min(64)),
        item_separator: if indent.is_some() { "," } else { ", " }.to_owned(),
        key_separator: ": ".to_owned(),
        ascii: ascii.unwrap_or(false),
        sort: sort.unwrap_or(false),
    };
    if let Some(separators) = separators.filter(|separators| !separators.is_none()) {
        let separator = |index| separators.get_item_by_index(index).map(|separator| separator.to_string());
        (json.item_separator, json.key_separator) = (separator(0)?, separator(1)?);
    }
    json.value(value, 0)?;
    Ok(json.text)
}

impl Json<'_, '_, '_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > DEPTH_MAX {
            return Err(too_deep());
        }
        pay(self.state, 0)?;
        match value.kind() {
            ValueKind::None => self.text.push_str("null"),
            ValueKind::Bool => self.text.push_str(if value.is_true() { "true" } else { "false" }),
            ValueKind::Number if value.is_integer() => write!(self.text, "{value}")?,
            ValueKind::Number => match f64::try_from(value.clone())? {
                float if float.is_finite() => push_float(float, &mut self.text),
                float if float.is_nan() => self.text.push_str("NaN"),
                float => self.text.push_str(if float > 0.0 { "Infinity" } else { "-Infinity" }),
            },
            ValueKind::String => self.string(value.as_str().unwrap_or_default())?,
            ValueKind::Seq | ValueKind::Iterable => self.list(value, depth)?,
            ValueKind::Map => self.map(value, depth)?,
            kind => return Err(Error::new(ErrorKind::BadSerialization, format!("{kind} has no JSON form"))),
        }
        Ok(())
    }

    fn list(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        self.text.push('[');
        let mut empty = true;
        for item in value.try_iter()?.checked() {
            self.start(empty, depth + 1)?;
            empty = false;
            self.value(&item?, depth + 1)?;
        }
        self.end(empty, ']', depth)
    }

    fn map(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        let mut keys = value.try_iter()?.checked().collect::<Result<Vec<Value>, Error>>()?;
        pay(self.state, keys.len().saturating_mul(size_of::<Value>()))?;
        if self.sort {
            keys.sort_by(|a, b| a.as_str().cmp(&b.as_str()));
        }
        self.text.push('{');
        for (index, key) in keys.iter().enumerate() {
            self.start(index == 0, depth + 1)?;
            match key.as_str() {
                Some(key) => self.string(key)?,
                // Numbers, booleans and none become strings.
                None if matches!(key.kind(), ValueKind::Number | ValueKind::Bool | ValueKind::None) => {
                    self.text.push('"');
                    self.value(key, depth + 1)?;
                    self.text.push('"');
                }
                None => return Err(Error::new(ErrorKind::BadSerialization, "a key of a JSON object must be simple")),
            }
            self.text.push_str(&self.key_separator);
            self.value(&value.get_item(key)?, depth + 1)?;
        }
        self.end(keys.is_empty(), '}', depth)
    }

    /// What comes before an item.
    fn start(&mut self, first: bool, depth: usize) -> Result<(), Error> {
        if !first {
            pay(self.state, self.item_separator.len())?;
            self.text.push_str(&self.item_separator);
        }
        self.line(depth)
    }

    /// What comes after the last item.
    fn end(&mut self, empty: bool, close: char, depth: usize) -> Result<(), Error> {
        if !empty {
            self.line(depth)?;
        }
        self.text.push(close);
        Ok(())
    }

    fn line(&mut self, depth: usize) -> Result<(), Error> {
        if let Some(indent) = self.indent {
            pay(self.state, indent * depth)?;
            self.text.push('\n');
            self.text.extend(std::iter::repeat_n(' ', indent * depth));
        }
        Ok(())
    }

    fn string(&mut self, value: &str) -> Result<(), Error> {
        pay(self.state, value.len())?;
        self.text.push('"');
        for char in value.chars() {
            match char {
                '"' => self.text.push_str("\\\""),
                '\\' => self.text.push_str("\\\\"),
                '\n' => self.text.push_str("\\n"),
                '\r' => self.text.push_str("\\r"),
                '\t' => self.text.push_str("\\t"),
                '\u{8}' => self.text.push_str("\\b"),
                '\u{c}' => self.text.push_str("\\f"),
                '\0'..' ' => write!(self.text, "\\u{:04x}", u32::from(char))?,
                _ if self.ascii && !char.is_ascii() => {
                    for unit in char.encode_utf16(&mut [0; 2]) {
                        write!(self.text, "\\u{unit:04x}")?;
                    }
                }
                _ => self.text.push(char),
            }
        }
        self.text.push('"');
        Ok(())
    }
}
