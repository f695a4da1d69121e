//! Keeps the values of a template small enough for the engine.
//!
//! The engine's fuel pays for strings and instructions, but a list that holds one list twice, forty times over, costs
//! no fuel to make and forever to compare; a namespace that holds itself overflows the stack when it is written. So
//! every value that gets a name passes through a filter first, which refuses those. This file puts the filters into
//! the template's text: at each `set`, loop variable and macro parameter. The other ways to name a value (`with`,
//! `call` with parameters, recursive loops) are refused: chat templates do not use them. What is left is one expression
//! on values of bounded size, which grows them only by its own length or by repetition (`*`), so that is allowed once.

use minijinja::value::ValueKind;
use minijinja::{Environment, Error, ErrorKind, State, Value};

/// What goes around the value of a variable.
const VALUE: &str = "_bounded";
/// What goes around the value of a namespace's member.
const MEMBER: &str = "_bounded_member";
/// How deeply a value with a name may nest.
const DEPTH_MAX: usize = 64;
/// What each value inside one with a name costs: later comparisons of it are free.
const FUEL_PER_VALUE: u64 = 4;
/// How many tokens a statement or expression may have: the engine recurses once for each operator of `1 + 1 + …`.
const TOKENS_MAX: usize = 1000;
/// How many `elif`s a template may have: the engine recurses once for each.
const ELIFS_MAX: usize = 200;

/// Adds the filters.
pub(super) fn install(environment: &mut Environment<'static>) {
    environment.add_filter(VALUE, |state: &State, value: Value| match is_namespace(&value) {
        // It may have a name, so that its members can be set. They are checked, but may not be namespaces.
        true => {
            for key in value.try_iter()? {
                check(state, &value.get_item(&key)?, 1)?;
            }
            Ok(value)
        }
        false => check(state, &value, 0).map(|()| value),
    });
    environment.add_filter(MEMBER, |state: &State, value: Value| check(state, &value, 1).map(|()| value));
}

/// Pays for every value inside; refuses deep ones and namespaces.
fn check(state: &State, value: &Value, depth: usize) -> Result<(), Error> {
    if !matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable) {
        return Ok(());
    }
    if depth > DEPTH_MAX {
        return Err(refused(format!("a value nests more than {DEPTH_MAX} deep")));
    }
    if is_namespace(value) {
        return Err(refused("a namespace may not hold a namespace".into()));
    }
    for item in value.try_iter()?.checked() {
        let item = item?;
        state.consume_fuel(FUEL_PER_VALUE)?;
        match value.kind() {
            ValueKind::Map => check(state, &value.get_item(&item)?, depth + 1)?,
            _ => check(state, &item, depth + 1)?,
        }
    }
    Ok(())
}

fn is_namespace(value: &Value) -> bool {
    value.as_object().is_some_and(|object| object.type_name().ends_with("::Namespace"))
}

fn refused(message: String) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// The template with the filters in it; lines stay where they were.
///
/// Statements are found as the engine's lexer finds them. What it would refuse is left for it to refuse.
pub(super) fn guard(source: &str) -> Result<String, String> {
    let mut guarded = String::with_capacity(source.len() + source.len() / 4);
    let (mut at, mut elifs) = (0, 0);
    while let Some(start) = find_marker(source, at) {
        let (marker, rest) = source[start..].split_at(2);
        guarded.push_str(&source[at..start + 2]);
        at = start + 2;
        if marker == "{#" {
            let inner = usize::from(rest.starts_with(['-', '+']));
            let Some(len) = rest[inner..].find("#}") else { break };
            let end = inner + len + 2;
            guarded.push_str(&rest[..end]);
            at += end;
            continue;
        }
        let refused = |what: &str| {
            let line = 1 + source[..start].matches('\n').count();
            format!("chat template, line {line}: {what} is not supported")
        };
        let Some(code) = Code::lex(rest, if marker == "{{" { "}}" } else { "%}" }) else { break };
        code.check().map_err(refused)?;
        at += code.end;
        if marker == "{{" {
            guarded.push_str(&rest[..code.end]);
            continue;
        }
        match code.token(0) {
            "set" => code.guard_set(&mut guarded),
            "for" => code.guard_for(&mut guarded).map_err(refused)?,
            "macro" => code.guard_macro(&mut guarded),
            "call" if code.token(1) == "(" => return Err(refused("`call` with parameters")),
            "with" => return Err(refused("`with`")),
            // Marks what the model wrote, for training.
            "generation" => code.replace("if true ", &mut guarded),
            "endgeneration" => code.replace("endif ", &mut guarded),
            "raw" => {
                let Some(end) = find_endraw(source, at) else { break };
                guarded.push_str(&source[start + 2..end]);
                at = end;
            }
            keyword => {
                elifs += usize::from(keyword == "elif");
                if elifs > ELIFS_MAX {
                    return Err(refused(&format!("`elif` more than {ELIFS_MAX} times")));
                }
                guarded.push_str(&rest[..code.end]);
            }
        }
    }
    guarded.push_str(&source[at..]);
    Ok(guarded)
}

/// Where the next `{{`, `{%` or `{#` is.
fn find_marker(source: &str, at: usize) -> Option<usize> {
    let pairs = source.as_bytes()[at..].windows(2);
    pairs.into_iter().position(|pair| matches!(pair, b"{{" | b"{%" | b"{#")).map(|found| at + found)
}

/// The end of the next `endraw` statement.
fn find_endraw(source: &str, mut at: usize) -> Option<usize> {
    loop {
        at += source[at..].find("{%")? + 2;
        let tag = &source[at..];
        let tag = tag.strip_prefix(['-', '+']).unwrap_or(tag).trim_start();
        let Some(tag) = tag.strip_prefix("endraw").map(str::trim_start) else { continue };
        if let Some(rest) = tag.strip_prefix(['-', '+']).unwrap_or(tag).strip_prefix("%}") {
            return Some(source.len() - rest.len());
        }
    }
}

/// The inside of a statement or expression.
struct Code<'a> {
    text: &'a str,
    /// Where each token begins, and the token: a name, a string, one or two signs.
    tokens: Vec<(usize, &'a str)>,
    /// Where the end marker begins, with its `-` or `+`.
    close: usize,
    end: usize,
}

impl<'a> Code<'a> {
    /// The code that begins after an opening marker; None when it has no end.
    fn lex(text: &'a str, marker: &str) -> Option<Code<'a>> {
        let (mut tokens, mut depth) = (Vec::new(), 0);
        let mut at = usize::from(text.starts_with(['-', '+']));
        loop {
            at = text.len() - text[at..].trim_start().len();
            let rest = &text[at..];
            let first = rest.chars().next()?;
            let trims = usize::from(matches!(first, '-' | '+'));
            if depth == 0 && rest[trims..].starts_with(marker) {
                return Some(Code { text, tokens, close: at, end: at + trims + marker.len() });
            }
            match first {
                '(' | '[' | '{' => depth += 1,
                ')' | ']' | '}' => depth -= 1,
                _ => {}
            }
            let len = token_len(rest, first)?;
            tokens.push((at, &rest[..len]));
            at += len;
        }
    }

    fn token(&self, index: usize) -> &'a str {
        self.tokens.get(index).map_or("", |(_, token)| token)
    }

    /// Refuses long code, and code that repeats (`*`) twice, as in `[[a] * 99] * 99`; strings are paid for and do not
    /// count.
    fn check(&self) -> Result<(), &'static str> {
        const _: () = assert!(TOKENS_MAX == 1000);
        if self.tokens.len() > TOKENS_MAX {
            return Err("an expression of more than 1000 words");
        }
        let is_string = |index: usize| self.token(index).starts_with(['\'', '"']);
        let repeats = |index: &usize| self.token(*index) == "*" && !is_string(index - 1) && !is_string(index + 1);
        if (1..self.tokens.len()).filter(repeats).count() > 1 {
            return Err("more than one `*` in an expression");
        }
        Ok(())
    }

    /// `set TARGET = VALUE` becomes `set TARGET = (VALUE)|filter`. The value of a block `set` is a string.
    fn guard_set(&self, guarded: &mut String) {
        let assignment = self.tokens.iter().position(|(_, token)| matches!(*token, "=" | "|"));
        let Some(assignment) = assignment.filter(|index| self.token(*index) == "=") else {
            return guarded.push_str(&self.text[..self.end]);
        };
        let (target, value) = self.tokens.split_at(assignment);
        let filter = if target.iter().any(|(_, token)| *token == ".") { MEMBER } else { VALUE };
        let value = value[0].0 + 1;
        let parts = [&self.text[..value], "(", &self.text[value..self.close], ")|", filter];
        guarded.extend(parts);
        guarded.push_str(&self.text[self.close..self.end]);
    }

    /// After `for TARGETS in …` the targets are set to themselves through the filter.
    fn guard_for(&self, guarded: &mut String) -> Result<(), &'static str> {
        let mut tokens = self.tokens.iter().skip(1).map(|(_, token)| *token);
        let names: Vec<&str> =
            tokens.by_ref().take_while(|token| *token != "in").filter(|token| is_name(token)).collect();
        if tokens.any(|token| token == "recursive") {
            return Err("a recursive loop");
        }
        self.rebind(&names, guarded);
        Ok(())
    }

    /// After `macro NAME(PARAMETERS)` the parameters are set to themselves through the filter.
    fn guard_macro(&self, guarded: &mut String) {
        let (mut names, mut depth, mut expected) = (Vec::new(), 0, false);
        for (_, token) in &self.tokens {
            match *token {
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" => depth -= 1,
                name if expected && is_name(name) => names.push(name),
                _ => {}
            }
            expected = depth == 1 && matches!(*token, "(" | ",");
        }
        self.rebind(&names, guarded);
    }

    /// Another statement in its place, with the same trimming of spaces.
    fn replace(&self, statement: &str, guarded: &mut String) {
        let trims = usize::from(self.text.starts_with(['-', '+']));
        guarded.extend([&self.text[..trims], " ", statement, &self.text[self.close..self.end]]);
    }

    /// Copies the statement and adds `set NAME = NAME|filter` for each name, with the same trimming of spaces.
    fn rebind(&self, names: &[&str], guarded: &mut String) {
        guarded.push_str(&self.text[..self.end]);
        for name in names {
            guarded.extend(["{%set ", name, "=", name, "|", VALUE, " ", &self.text[self.close..self.end]]);
        }
    }
}

fn is_name(token: &str) -> bool {
    token.starts_with(|char: char| char.is_alphabetic() || char == '_')
}

/// How long the token is that `rest` begins with; None for a string without end.
fn token_len(rest: &str, first: char) -> Option<usize> {
    let word = |char: char| char.is_alphanumeric() || char == '_';
    if matches!(first, '\'' | '"') {
        let mut escaped = false;
        let close = rest[1..].find(|char| {
            let closes = char == first && !escaped;
            escaped = char == '\\' && !escaped;
            closes
        });
        return close.map(|close| close + 2);
    }
    Some(match first {
        _ if rest.starts_with("==") || rest.starts_with("**") => 2,
        _ if word(first) => rest.find(|char| !word(char)).unwrap_or(rest.len()),
        _ => first.len_utf8(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_name_a_value_is_guarded_and_lines_stay() {
        for (source, expected) in [
            ("{%- set a = [1, '%}'] -%}x", "{%- set a =( [1, '%}'] )|_bounded-%}x"),
            ("{% set ns.a = x == 1 %}", "{% set ns.a =( x == 1 )|_bounded_member%}"),
            ("{% set a, b = 1, 2 %}", "{% set a, b =( 1, 2 )|_bounded%}"),
            ("{% set a %}b{% endset %}", "{% set a %}b{% endset %}"),
            ("{% set a | replace('x', y='z') %}b{% endset %}", "{% set a | replace('x', y='z') %}b{% endset %}"),
            (
                "{%for k, v in d.items() if v -%}\n{%endfor%}",
                "{%for k, v in d.items() if v -%}{%set k=k|_bounded -%}{%set v=v|_bounded -%}\n{%endfor%}",
            ),
            (
                "{% macro f(a, b=[c], d=g(h)) +%}",
                "{% macro f(a, b=[c], d=g(h)) +%}{%set a=a|_bounded +%}{%set b=b|_bounded +%}{%set d=d|_bounded +%}",
            ),
            ("{{ '{% set a = b %}' }}", "{{ '{% set a = b %}' }}"),
            ("{# {% set a = ' #}{% set b = b %}{# ' %} #}", "{# {% set a = ' #}{% set b =( b )|_bounded%}{# ' %} #}"),
            (
                "{%raw%}{{ ' {% set a = b %}{%- endraw -%}{%set a=b%}",
                "{%raw%}{{ ' {% set a = b %}{%- endraw -%}{%set a=(b)|_bounded%}",
            ),
            ("{{ {'a': {'b': '}}'}} }}{%set a=b-%}", "{{ {'a': {'b': '}}'}} }}{%set a=(b)|_bounded-%}"),
            ("{% set a = {'%}': [1 %}, b] %}", "{% set a =( {'%}': [1 %}, b] )|_bounded%}"),
            ("{% set a = 'é\\'%}", "{% set a = 'é\\'%}"),
            ("{{ '=' * 9 ~ a ~ 9 * '=' ~ 2 ** 3 * 4 }}", "{{ '=' * 9 ~ a ~ 9 * '=' ~ 2 ** 3 * 4 }}"),
            ("{%- generation -%}a{% endgeneration %}", "{%- if true -%}a{% endif %}"),
            ("{% se", "{% se"),
            ("{%", "{%"),
        ] {
            assert_eq!(guard(source).as_deref(), Ok(expected), "{source}");
        }
        for source in [
            "{% with a = [a, a] %}",
            "\n{%- call(x) f() %}",
            "{% for x in y recursive %}",
            "{{ {'a': {}}, [[a] * 9] * 9 }}",
        ] {
            assert!(guard(source).is_err(), "{source}");
        }
    }
}
