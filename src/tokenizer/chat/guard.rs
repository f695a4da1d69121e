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
/// How many statements and expressions a template may have.
const EXPRESSIONS_MAX: usize = 10_000;
/// How many of them may be `elif`: the engine recurses once for each.
const ELIFS_MAX: usize = 200;
/// How long one may be. The engine recurses once for each operator of `1 + 1 + …`.
const EXPRESSION_TOKENS_MAX: usize = 1000;
const EXPRESSION_BYTES_MAX: usize = 32 << 10;

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
/// Everything that looks like a statement is taken for one, even inside a string or comment: nothing can hide.
pub(super) fn guard(source: &str) -> Result<String, String> {
    check_expressions(source)?;
    let mut guarded = String::with_capacity(source.len() + source.len() / 4);
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, statement) = rest.split_at(start + 2);
        guarded.push_str(before);
        let tokens = Tokens { text: statement, at: usize::from(statement.starts_with(['-', '+'])) };
        let end = match statement_keyword(tokens) {
            Some(("set", tokens)) => guard_set(tokens, &mut guarded),
            Some(("for", tokens)) => guard_for(tokens, &mut guarded)?,
            Some(("macro", tokens)) => guard_macro(tokens, &mut guarded),
            Some(("call", tokens)) if tokens.clone().next() == Some("(") => {
                return Err(unsupported("`call` with parameters", source, rest));
            }
            Some(("with", _)) => return Err(unsupported("`with`", source, rest)),
            _ => 0,
        };
        rest = &statement[end..];
    }
    guarded.push_str(rest);
    Ok(guarded)
}

/// Refuses long expressions, and those that repeat (`*`) twice, as in `[[a] * 99] * 99`; strings are paid for and do not
/// count.
fn check_expressions(source: &str) -> Result<(), String> {
    let mut elifs = 0;
    let starts = source.match_indices("{{").chain(source.match_indices("{%"));
    for (count, (start, _)) in starts.enumerate() {
        if count == EXPRESSIONS_MAX {
            return Err(format!("chat template: more than {EXPRESSIONS_MAX} statements and expressions"));
        }
        let mut tokens = Tokens { text: &source[start + 2..], at: 0 };
        let (mut count, mut depth, mut repetitions, mut last) = (0, 0, 0, "");
        while let Some(token) = tokens.next() {
            count += 1;
            elifs += usize::from(token == "elif");
            match token {
                "%}" => break,
                "{" => depth += 1,
                "}" if depth == 0 => break,
                "}" => depth -= 1,
                "*" => {
                    let next = tokens.clone().next().unwrap_or_default();
                    repetitions += usize::from(![last, next].iter().any(|side| side.starts_with(['\'', '"'])));
                }
                _ => {}
            }
            last = token;
            if repetitions > 1 {
                return Err(unsupported("more than one `*` in an expression", source, &source[start..]));
            }
            if elifs > ELIFS_MAX {
                return Err(unsupported(&format!("`elif` more than {ELIFS_MAX} times"), source, &source[start..]));
            }
            if count > EXPRESSION_TOKENS_MAX || tokens.at > EXPRESSION_BYTES_MAX {
                let what = format!("an expression of more than {EXPRESSION_TOKENS_MAX} words");
                return Err(unsupported(&what, source, &source[start..]));
            }
        }
    }
    Ok(())
}

fn unsupported(what: &str, source: &str, rest: &str) -> String {
    let line = 1 + source[..source.len() - rest.len()].matches('\n').count();
    format!("chat template, line {line} or after: {what} is not supported")
}

fn statement_keyword(mut tokens: Tokens<'_>) -> Option<(&str, Tokens<'_>)> {
    let keyword = tokens.next()?;
    Some((keyword, tokens))
}

/// `set TARGET = VALUE` becomes `set TARGET = (VALUE)|filter`. Returns where copying goes on.
fn guard_set(mut tokens: Tokens<'_>, guarded: &mut String) -> usize {
    let (mut filter, mut depth) = (VALUE, 0);
    while let Some(token) = tokens.next() {
        match token {
            "." => filter = MEMBER,
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            "=" if depth == 0 => break,
            // A block `set`: its value is a string.
            "%}" | "|" => return 0,
            _ => {}
        }
    }
    let value = tokens.at;
    let Some(close) = tokens.find_end() else { return 0 };
    let text = &tokens.text[value..close];
    guarded.push_str(&format!("{}({text})|{filter}", &tokens.text[..value]));
    close
}

/// After `for TARGETS in …` the targets are set to themselves through the filter.
fn guard_for(mut tokens: Tokens<'_>, guarded: &mut String) -> Result<usize, String> {
    let mut names = Vec::new();
    for token in tokens.by_ref().take_while(|token| *token != "in" && *token != "%}") {
        names.extend(is_name(token).then_some(token));
    }
    if tokens.clone().take_while(|token| *token != "%}").any(|token| token == "recursive") {
        return Err("chat template: recursive loops are not supported".into());
    }
    Ok(rebind(tokens, &names, guarded))
}

/// After `macro NAME(PARAMETERS)` the parameters are set to themselves through the filter.
fn guard_macro(tokens: Tokens<'_>, guarded: &mut String) -> usize {
    let (mut names, mut depth, mut expected) = (Vec::new(), 0, false);
    for token in tokens.clone().take_while(|token| *token != "%}") {
        match token {
            "(" | "[" | "{" => depth += 1,
            ")" | "]" | "}" => depth -= 1,
            _ if expected && is_name(token) => names.push(token),
            _ => {}
        }
        expected = depth == 1 && matches!(token, "(" | ",");
    }
    rebind(tokens, &names, guarded)
}

/// Copies a statement to its end and adds `set NAME = NAME|filter` for each name, with the same trimming of spaces.
fn rebind(mut tokens: Tokens<'_>, names: &[&str], guarded: &mut String) -> usize {
    let Some(close) = tokens.find_end() else { return 0 };
    let end = close + tokens.text[close..].find("%}").map_or(0, |marker| marker + 2);
    let marker = &tokens.text[close..end];
    guarded.push_str(&tokens.text[..end]);
    for name in names {
        guarded.push_str(&format!("{{%set {name}={name}|{VALUE} {marker}"));
    }
    end
}

fn is_name(token: &str) -> bool {
    token.starts_with(|char: char| char.is_alphabetic() || char == '_')
}

/// The tokens of a statement, as far as they matter here: names, strings, single signs, the end.
#[derive(Clone)]
struct Tokens<'a> {
    text: &'a str,
    at: usize,
}

impl Tokens<'_> {
    /// Skips to the end of the statement; where its `%}`, `-%}` or `+%}` begins.
    fn find_end(&mut self) -> Option<usize> {
        self.by_ref().find(|token| *token == "%}")?;
        let close = self.at - 2;
        let trims = self.text[..close].ends_with(['-', '+']);
        Some(close - usize::from(trims))
    }
}

impl<'a> Iterator for Tokens<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let rest = self.text[self.at..].trim_start();
        self.at = self.text.len() - rest.len();
        let first = rest.chars().next()?;
        let word = |char: char| char.is_alphanumeric() || char == '_';
        let len = match first {
            '\'' | '"' => {
                let mut escaped = false;
                let close = rest[1..].char_indices().find(|(_, char)| {
                    let closes = *char == first && !escaped;
                    escaped = *char == '\\' && !escaped;
                    closes
                });
                close.map_or(rest.len(), |(at, _)| at + 2)
            }
            _ if ["%}", "==", "**"].iter().any(|two| rest.starts_with(two)) => 2,
            _ if word(first) => rest.find(|char| !word(char)).unwrap_or(rest.len()),
            _ => first.len_utf8(),
        };
        self.at += len;
        Some(&rest[..len])
    }
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
            ("{{ '{% set a = b %}' }}", "{{ '{% set a =( b )|_bounded%}' }}"),
            ("{% set a = 'é\\'%}", "{% set a = 'é\\'%}"),
            ("{{ '=' * 9 ~ a ~ 9 * '=' ~ 2 ** 3 * 4 }}", "{{ '=' * 9 ~ a ~ 9 * '=' ~ 2 ** 3 * 4 }}"),
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
