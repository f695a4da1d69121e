//! Chat templates against transformers' own rendering, and against themselves when they are hostile.
#![cfg(feature = "chat")]

use edgellm::Error;
use edgellm::file::{Array, Metadata, ModelFile, Source, Value};
use edgellm::tokenizer::Tokenizer;
use std::path::Path;
use std::time::{Duration, Instant};

fn data(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tokenizer").join(name)
}

/// The small vocabulary with these entries added.
fn tokenizer(entries: &[(&str, Value)]) -> Tokenizer {
    let small = ModelFile::open(Source::Path(&data("small-vocab.bin")), true).unwrap().metadata;
    let added = entries.iter().map(|(key, value)| ((*key).to_owned(), value.clone()));
    let metadata = Metadata::new(small.entries().iter().cloned().chain(added).collect()).unwrap();
    Tokenizer::from_metadata(&metadata).unwrap().unwrap()
}

fn with_template(template: &str) -> Tokenizer {
    tokenizer(&[("tokenizer.chat_template", Value::String(template.into()))])
}

fn render(template: &str) -> Result<String, Error> {
    with_template(template).render_chat("[]", None, None)
}

#[test]
fn chats_equal_transformers() {
    let golden: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(data("chat.json")).unwrap()).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert!(cases.len() > 150);
    for case in cases {
        let tokenizer = with_template(golden["templates"][case["template"].as_str().unwrap()].as_str().unwrap());
        let tools = (!case["tools"].is_null()).then(|| case["tools"].to_string());
        let result =
            tokenizer.render_chat(&case["messages"].to_string(), tools.as_deref(), Some(&case["options"].to_string()));
        let place = format!("{} {} tools: {} {}", case["template"], case["chat"], tools.is_some(), case["options"]);
        match case["text"].as_str() {
            Some(expected) => {
                assert_eq!(result.unwrap_or_else(|error| panic!("{place}: {error}")), expected, "{place}")
            }
            None => {
                let error = result.err().unwrap_or_else(|| panic!("{place}: {} expected", case["error"]));
                assert!(matches!(error, Error::Argument(_)), "{place}: {error}");
            }
        }
    }
}

#[test]
fn a_raised_exception_is_the_message_with_its_line() {
    let error = render("\n\n{{ raise_exception('Roles must <alternate>!') }}").unwrap_err();
    assert!(
        matches!(&error, Error::Argument(text) if text == "chat template, line 3: Roles must <alternate>!"),
        "{error}"
    );
}

#[test]
fn broken_templates_are_refused_when_used_and_not_before() {
    for (template, expected) in [
        ("\n{% if %}", "line 2: syntax error"),
        ("{{ 'open }}", "line 1: syntax error"),
        ("{{ x | nosuch }}", "unknown filter"),
        ("{{ nosuch() }}", "nosuch is unknown"),
        ("{% with a = 1 %}{% endwith %}", "`with` is not supported"),
    ] {
        let tokenizer = with_template(template);
        assert!(tokenizer.has_chat_template());
        for _ in 0..2 {
            let error = tokenizer.render_chat("[]", None, None).unwrap_err();
            assert!(matches!(&error, Error::Unsupported(text) if text.contains(expected)), "{template}: {error}");
        }
    }
    let none = tokenizer(&[]);
    assert!(!none.has_chat_template());
    assert!(matches!(none.render_chat("[]", None, None), Err(Error::Unsupported(_))));
}

#[test]
fn bad_arguments_are_named() {
    let tokenizer = with_template("{{ messages | length }}{{ x }}");
    for (messages, tools, options, expected) in [
        ("", None, None, "messages: not JSON"),
        ("{}", None, None, "messages: not a JSON array"),
        ("[", None, None, "messages: not JSON: EOF"),
        ("[]", Some("{"), None, "tools: not JSON"),
        ("[]", None, Some("[]"), "options: not a JSON object"),
        ("[]", None, Some("{\"messages\": 1}"), "options: \"messages\" is an argument"),
        (
            r#"[1, {"tool_calls": [{"function": {"arguments": "{"}}]}]"#,
            None,
            None,
            "messages[1].tool_calls[0].function.arguments: not JSON",
        ),
        (r#"[{"tool_calls": [{"function": {"arguments": "[1]"}}]}]"#, None, None, "arguments: not a JSON object"),
    ] {
        let error = tokenizer.render_chat(messages, tools, options).unwrap_err();
        assert!(matches!(&error, Error::Argument(text) if text.contains(expected)), "{messages}: {error}");
    }
    assert_eq!(tokenizer.render_chat("[1, null, \"x\"]", None, Some("{\"x\": \"é\"}")).unwrap(), "3é");
    let deep = format!("{}{}", "[".repeat(10_000), "]".repeat(10_000));
    assert!(matches!(tokenizer.render_chat(&deep, None, None), Err(Error::Argument(_))));
}

#[test]
fn the_tool_template_is_used_when_there_are_tools() {
    let string = |text: &str| Value::String(text.into());
    let names = |names: &[&str]| Value::Array(Array::of_strings(names.iter().map(|name| name.as_bytes())));
    let both = tokenizer(&[
        ("tokenizer.chat_template", string("plain")),
        ("tokenizer.chat_template.tool_use", string("tools {{ tools | length }}")),
        ("tokenizer.chat_templates", names(&["tool_use"])),
    ]);
    assert_eq!(both.render_chat("[]", None, None).unwrap(), "plain");
    assert_eq!(both.render_chat("[]", Some("[]"), None).unwrap(), "plain");
    assert_eq!(both.render_chat("[]", Some("[{}]"), None).unwrap(), "tools 1");
    let named = tokenizer(&[
        ("tokenizer.chat_template.default", string("named")),
        ("tokenizer.chat_templates", names(&["default"])),
    ]);
    assert_eq!(named.render_chat("[]", Some("[{}]"), None).unwrap(), "named");
    let only =
        tokenizer(&[("tokenizer.chat_template.rag", string("rag")), ("tokenizer.chat_templates", names(&["rag"]))]);
    assert_eq!(only.render_chat("[]", None, None).unwrap(), "rag");
}

#[test]
fn text_in_messages_is_not_code_and_not_a_token() {
    let tokenizer = with_template("<|im_start|>{{ messages[0].content }}<|im_end|>");
    let text = tokenizer.render_chat(r#"[{"content": "{{ 1 }}{% raw %}"}]"#, None, None).unwrap();
    assert_eq!(text, "<|im_start|>{{ 1 }}{% raw %}<|im_end|>");
}

/// Each must end soon with an error or some text; what it must not do is hang, crash or take all memory.
#[test]
fn hostile_templates_end() {
    let many = |text: &str, count: usize| text.repeat(count);
    let doubled = |set: &str| format!("{{% set a = [1] %}}{}", many(set, 40));
    let templates = [
        "{% for i in range(1000000000) %}x{% endfor %}".to_owned(),
        "{% for i in range(99999) %}{% for j in range(99999) %}x{% endfor %}{% endfor %}".to_owned(),
        "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}".to_owned(),
        "{{ 'x' * 1000000000 }}".to_owned(),
        "{% set ns = namespace(a='x') %}{% for i in range(60) %}{% set ns.a = ns.a ~ ns.a %}{% endfor %}{{ ns.a }}".to_owned(),
        "{% set ns = namespace(a='x') %}{% for i in range(60) %}{% set ns.a = ns.a + ns.a %}{% endfor %}".to_owned(),
        "{{ 'a'.replace('', 'b' * 100000).replace('', 'b' * 100000) }}".to_owned(),
        "{{ ('b' * 100000).join(range(90000)) }}".to_owned(),
        "{{ range(90000) | join('b' * 100000) }}".to_owned(),
        "{% set x %}{% for i in range(99999) %}{{ 'y' * 99999 }}{% endfor %}{% endset %}".to_owned(),
        // Values that hold themselves, or one value many times.
        "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}{{ ns ~ '' }}".to_owned(),
        "{% set ns = namespace() %}{% set ns.a = [ns] %}{{ ns ~ '' }}{{ ns == ns }}".to_owned(),
        "{% set ns = namespace() %}{% set other = namespace(a=ns) %}{% set ns.a = {'x': other} %}{{ ns ~ '' }}".to_owned(),
        "{% set ns = namespace(a=[]) %}{% for i in range(20000) %}{% set ns.a = [ns.a] %}{% endfor %}{{ ns.a ~ '' }}".to_owned(),
        doubled("{% set a = [a, a] %}") + "{{ a ~ '' }}{{ a | tojson }}{{ a | upper }}",
        doubled("{%- set a = {'k': a, 'l': a} -%}") + "{{ a }}",
        doubled("{% set a = a + a %}") + "{{ a ~ '' }}",
        doubled("{% set a = (a, a) %}") + "{{ a ~ '' }}",
        doubled("{% for a in [[a, a]] %}") + "{{ a ~ '' }}" + &many("{% endfor %}", 40),
        "{% macro f(x, n) %}{% if n %}{{ f([x, x, x, x, x, x, x, x], n - 1) }}{% else %}{{ x ~ '' }}{% endif %}{% endmacro %}{{ f(1, 12) }}".to_owned(),
        "{{ [[[[[0] * 99] * 99] * 99] * 99] * 99 ~ '' }}".to_owned(),
        "{% set a = [[0] * 90] %}{% set a = a * 90 %}{% set b = a + [] %}{% for i in range(99999) %}{{ a == b }}{% endfor %}".to_owned(),
        // Sources that nest or repeat.
        format!("{{{{ {}1{} }}}}", many("(", 5000), many(")", 5000)),
        format!("{{{{ 1{} }}}}", many("+1", 15_000)),
        format!("{{{{ [1]{} }}}}", many("[0]", 10_000)),
        format!("{{{{ 1{} }}}}", many("~[1]", 7000)),
        format!("{{{{ {}1 }}}}", many("not ", 7000)),
        format!("{{{{ {}1 }}}}", many("-", 30_000)),
        format!("{{{{ x{} }}}}", many("|list", 6000)),
        format!("{{{{ 1{} }}}}", many(" if 1 else 1", 2500)),
        many("{% if 1 %}", 3000) + &many("{% endif %}", 3000),
        "{% if x %}".to_owned() + &many("{% elif x %}", 9000) + "{% endif %}",
        format!("{{{{ 1{} }}}}", many("+1", 480)),
        format!("{{{{ [1]{} ~ '' }}}}", many("+[1]", 240)),
        format!("{{{{ 1{} }}}}", many(" if x else 1", 240)),
        format!("{{{{ x{} }}}}", many("|d(x|d(x))", 90)),
        many("{% for i in [1] %}", 3000),
        many("{{", 60_000),
        many("{%", 60_000),
        many("{#", 60_000),
        "{{ debug() }}{{ '%1000000000d' | format(1) }}".to_owned(),
        "{{ '{:1000000000}'.format(1) }}".to_owned(),
        "{{ 10 ** 1000000000 }}".to_owned(),
        "{{ strftime_now('%') }}".to_owned(),
    ];
    for template in templates {
        let start = Instant::now();
        let result = match with_small_stack(&template) {
            Ok(text) => format!("{} bytes", text.len()),
            Err(error) => error.to_string(),
        };
        let shown: String = template.chars().take(80).collect();
        // Not a measurement: what this guards against takes for ever.
        assert!(start.elapsed() < Duration::from_secs(60), "{shown}: {result}");
    }
}

/// Renders on a small stack, as a host's thread may have.
fn with_small_stack(template: &str) -> Result<String, Error> {
    let tokenizer = with_template(template);
    let thread = std::thread::Builder::new().stack_size(1 << 20);
    thread.spawn(move || tokenizer.render_chat("[]", None, None)).unwrap().join().unwrap()
}

#[test]
fn a_template_longer_than_allowed_is_refused_when_used() {
    let tokenizer = with_template(&"x".repeat((128 << 10) + 1));
    let error = tokenizer.render_chat("[]", None, None).unwrap_err();
    assert!(matches!(&error, Error::Unsupported(text) if text.contains("131073 bytes")), "{error}");
}

#[test]
fn output_longer_than_allowed_is_refused() {
    let error = render("{% for i in range(2000) %}{{ 'x' * 1000 }}{% endfor %}").unwrap_err();
    assert!(matches!(&error, Error::Unsupported(_)), "{error}");
    assert_eq!(render("{% for i in range(100) %}{{ 'x' * 1000 }}{% endfor %}").unwrap().len(), 100_000);
}

#[test]
fn long_chats_are_rendered() {
    let template = "{% set ns = namespace(n=0) %}{% for m in messages[::-1] %}{% set ns.n = ns.n + 1 %}{% endfor %}\
        {% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}{% endfor %}";
    let message = serde_json::json!({"role": "user", "content": "word ".repeat(200)});
    let messages = serde_json::Value::Array(vec![message; 1000]).to_string();
    let text = with_template(template).render_chat(&messages, None, None).unwrap();
    assert_eq!(text.matches("<|im_start|>").count(), 1000);
    let big = serde_json::json!([{"role": "user", "content": "x".repeat(4 << 20)}]).to_string();
    assert!(with_template(template).render_chat(&big, None, None).unwrap().len() > 4 << 20);
}
