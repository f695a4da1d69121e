//! Constrained output: every sentence is one of the grammar's, however it is stepped, and no grammar hangs or crashes.
#![cfg(feature = "grammar")]

mod common;

use common::{ModelSpec, Vocabulary, forever, random_model_writer, refusal};
use edgellm::{
    Error, EventKind, Finish, Grammar, GrammarKind, GrammarMode, LoadOptions, Model, Sampling, Session, SessionOptions,
    Source,
};
use serde_json::{Value as Json, json};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// As the templates of Qwen and Hermes write calls.
const TEMPLATE: &str = "{%- for message in messages -%}<|im_start|>{{ message.role }}\n\
    {{- message.content }}\n\
    {%- for call in message.tool_calls or [] -%}\
    {%- if not loop.first %}{{ '\\n' }}{% endif -%}\
    {{- '<tool_call>\\n{\"name\": \"' + call.function.name + '\", \"arguments\": ' + (call.function.arguments | tojson) }}\
    {{- '}\\n</tool_call>' }}{%- endfor -%}<|im_end|>\n{%- endfor -%}\
    {%- if add_generation_prompt -%}<|im_start|>assistant\n{%- endif -%}";

fn load(template: &str) -> Arc<Model> {
    let spec =
        ModelSpec { vocabulary: Vocabulary::Gpt2 { pre: "qwen2" }, context_len: 1024, ..ModelSpec::tiny("qwen2") };
    let mut writer = random_model_writer(&spec);
    writer.remove("tokenizer.chat_template").kv_str("tokenizer.chat_template", template);
    let options = LoadOptions { threads: 1, ..LoadOptions::default() };
    Model::load(Source::Bytes(forever(writer.write(3))), options).expect("a good model")
}

/// A random model: what it says is noise, so whatever has form has it from the grammar.
fn model() -> &'static Arc<Model> {
    static MODEL: OnceLock<Arc<Model>> = OnceLock::new();
    MODEL.get_or_init(|| load(TEMPLATE))
}

fn session() -> Session {
    Session::new(model(), &SessionOptions { context_len: 1024, ..SessionOptions::default() }).expect("memory")
}

fn grammar(kind: GrammarKind, text: &str) -> Arc<Grammar> {
    model().grammar(kind, text).unwrap_or_else(|error| panic!("{kind:?} {text}: {error}"))
}

fn under(grammar: &Arc<Grammar>, seed: u64) -> Sampling {
    Sampling { temperature: 1.0, seed, grammar: Some(grammar.clone()), max_tokens: 900, ..Sampling::default() }
}

const PROMPT: [u32; 4] = [5, 17, 200, 3];

/// Steps to the end of a run.
fn finish(session: &mut Session) -> (String, Option<Finish>) {
    let mut text = String::new();
    loop {
        let event = session.step(None).expect("a good step");
        text.push_str(event.text);
        if event.kind == EventKind::End {
            return (text, event.finish);
        }
    }
}

fn generate(session: &mut Session, sampling: &Sampling) -> (String, Option<Finish>) {
    session.set_sampling(sampling).expect("good settings");
    session.prompt(&PROMPT).expect("room");
    finish(session)
}

fn ended(finish: Option<Finish>) -> bool {
    matches!(finish, Some(Finish::Grammar | Finish::Eos))
}

const ROBOT: &str = r##"{"type": "object", "required": ["action", "speed"], "additionalProperties": false, "properties": {
    "action": {"enum": ["goto", "pick", "wait"]}, "speed": {"type": "integer", "minimum": 0, "maximum": 100},
    "note": {"$ref": "#/$defs/short"}}, "$defs": {"short": {"type": "string", "maxLength": 6}},
    "x-guidance": {"whitespace_flexible": false}}"##;

fn is_robot(text: &str) -> bool {
    let Ok(value) = serde_json::from_str::<Json>(text) else { return false };
    let action = ["goto", "pick", "wait"].iter().any(|action| value["action"] == *action);
    let note = value.get("note").is_none_or(|note| note.as_str().is_some_and(|note| note.chars().count() <= 6));
    action && note && value["speed"].as_u64().is_some_and(|speed| speed <= 100) && value.as_object().unwrap().len() <= 3
}

#[test]
fn every_sentence_is_one_of_the_grammars() {
    let mut session = session();
    let greedy = |sampling: Sampling| Sampling { temperature: 0.0, ..sampling };
    let tools = json!([
        {"type": "function", "function": {"name": "go", "parameters": {"type": "object", "required": ["x"],
            "additionalProperties": false, "properties": {"x": {"$ref": "#/$defs/n"}}, "$defs": {"n": {"enum": [1, 2]}}}}},
        {"type": "function", "function": {"name": "stop"}}
    ]);
    let is_call = |call: &str| {
        let call = call.strip_prefix("<tool_call>\n").and_then(|call| call.strip_suffix("\n</tool_call>"));
        let calls =
            [r#"{"x": 1}"#, r#"{"x": 2}"#].map(|arguments| format!(r#"{{"name": "go", "arguments": {arguments}}}"#));
        call.is_some_and(|call| {
            calls.iter().any(|wanted| wanted == call) || call == r#"{"name": "stop", "arguments": {}}"#
        })
    };
    let is_calls = |text: &str| {
        text.split("\n<tool_call>").enumerate().all(|(index, call)| match index {
            0 => is_call(call),
            _ => is_call(&format!("<tool_call>{call}")),
        })
    };
    type Case<'a> = (GrammarKind, String, &'a dyn Fn(&str) -> bool);
    let cases: [Case; 6] = [
        (GrammarKind::JsonSchema, ROBOT.into(), &is_robot),
        (
            GrammarKind::JsonSchema,
            r#"{"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 3}"#.into(),
            &|text| serde_json::from_str::<Vec<bool>>(text).is_ok_and(|list| (2..=3).contains(&list.len())),
        ),
        (GrammarKind::Regex, "[a-c]{3}-[0-9]{2,4}(/x)?".into(), &|text| {
            let (head, tail) = text.split_at(3.min(text.len()));
            let digits = tail.strip_prefix('-').map(|tail| tail.strip_suffix("/x").unwrap_or(tail)).unwrap_or_default();
            head.bytes().all(|byte| (b'a'..=b'c').contains(&byte))
                && (2..=4).contains(&digits.len())
                && digits.bytes().all(|byte| byte.is_ascii_digit())
        }),
        (GrammarKind::Lark, "start: \"move \" DIR+\nDIR: \"left;\" | \"right;\"\n".into(), &|text| {
            text.strip_prefix("move ").is_some_and(|text| {
                text.ends_with(';') && text.split_terminator(';').all(|word| word == "left" || word == "right")
            })
        }),
        (GrammarKind::Choice, r#"["yes", "no", "a \"quoted\" é\n"]"#.into(), &|text| {
            ["yes", "no", "a \"quoted\" é\n"].contains(&text)
        }),
        (GrammarKind::Tools, tools.to_string(), &is_calls),
    ];
    for (kind, text, valid) in cases {
        let grammar = grammar(kind, &text);
        let mut different = std::collections::BTreeSet::new();
        for seed in 0..25 {
            let (text, finish) = generate(&mut session, &under(&grammar, seed));
            // A call may be followed by another without end.
            let whole = ended(finish) || kind == GrammarKind::Tools || kind == GrammarKind::Lark;
            assert!(whole, "{kind:?}: {finish:?} after {text:?}");
            assert!(!ended(finish) || valid(&text), "{kind:?}, seed {seed}: {text:?}");
            different.insert(text);
        }
        assert!(different.len() > 1, "{kind:?}: the model still chooses: {different:?}");
        let (text, finish) = generate(&mut session, &greedy(under(&grammar, 0)));
        assert!(!ended(finish) || valid(&text), "{kind:?}, greedy: {text:?}");
        let banned = Sampling { repeat_penalty: 1.3, bias: vec![(3, 5.0)], ..under(&grammar, 1) };
        let (text, finish) = generate(&mut session, &banned);
        assert!(!ended(finish) || valid(&text), "{kind:?}, with bias and penalties: {text:?}");
    }
}

#[test]
fn the_end_comes_after_the_last_token_and_says_grammar() {
    let grammar = grammar(GrammarKind::Choice, r#"["yes"]"#);
    let mut session = session();
    session.set_sampling(&under(&grammar, 1)).expect("good settings");
    session.prompt(&PROMPT).expect("room");
    let mut text = String::new();
    let event = loop {
        let event = session.step(None).expect("a good step");
        if event.kind == EventKind::End {
            break event;
        }
        assert_eq!((event.kind, event.finish), (EventKind::Token, None));
        text.push_str(event.text);
    };
    assert_eq!((event.finish, event.token, event.text), (Some(Finish::Grammar), None, ""));
    assert_eq!(text, "yes");
    assert_eq!(session.step(None).expect("again").finish, Some(Finish::Grammar));
    assert!(session.control().stats(false).ns_grammar > 0);
    // Where more may follow, the model ends it.
    let open = model().grammar(GrammarKind::Regex, "ab*").expect("a good expression");
    let eos = model().tokenizer().expect("a vocabulary").eos()[0];
    let sampling = Sampling { bias: vec![(eos, 1e6)], ..under(&open, 1) };
    assert_eq!(generate(&mut session, &sampling), ("a".into(), Some(Finish::Eos)));
    let ignored = Sampling { ignore_eos: true, ..sampling };
    assert_eq!(
        generate(&mut session, &ignored),
        ("a".into(), Some(Finish::Grammar)),
        "an end that is ignored is an end"
    );
}

#[test]
fn a_session_saved_in_the_middle_of_a_sentence_goes_on_in_it() {
    let saved = |session: &mut Session| {
        let mut state = Vec::new();
        let mut sink = |part: &[u8]| {
            state.extend_from_slice(part);
            Ok(())
        };
        session.save().expect("memory").write(&mut sink).expect("memory");
        state
    };
    let robot = grammar(GrammarKind::JsonSchema, ROBOT);
    let mut first = session();
    first.set_sampling(&under(&robot, 7)).expect("good settings");
    first.prompt(&PROMPT).expect("room");
    let mut states = vec![saved(&mut first)];
    while first.step(None).expect("a good step").kind != EventKind::End {
        states.push(saved(&mut first));
    }
    // As another process would: a grammar of its own, made of the same text, and other settings.
    let mut restored = session();
    for state in &states {
        restored.set_sampling(&under(&grammar(GrammarKind::JsonSchema, ROBOT), 1)).expect("good settings");
        restored.restore(state).expect("as it was saved");
        let (_, end) = finish(&mut restored);
        assert!(ended(end) && restored.tokens() == first.tokens());
    }
    restored.set_sampling(&Sampling::default()).expect("good settings");
    assert!(matches!(restored.restore(&states[3]), Err(Error::State(_))), "no grammar is set");
    restored.set_sampling(&under(&grammar(GrammarKind::Choice, r#"["yes"]"#), 1)).expect("good settings");
    assert!(matches!(restored.restore(&states[3]), Err(Error::Mismatch(_))), "another grammar");
    assert_eq!(restored.tokens(), first.tokens(), "a refusal changes nothing");
    restored.set_sampling(&under(&robot, 1)).expect("good settings");
    restored.restore(&saved(&mut first)).expect("at its end");
    assert_eq!(restored.step(None).expect("the end").kind, EventKind::End);
}

#[test]
fn a_run_is_the_same_however_it_is_stepped() {
    let grammar = grammar(GrammarKind::JsonSchema, ROBOT);
    let mut session = session();
    for seed in 0..4 {
        let expected = generate(&mut session, &under(&grammar, seed));
        assert_eq!(generate(&mut session, &under(&grammar, seed)), expected, "a second run");
        session.prompt(&PROMPT).expect("room");
        let (mut text, mut again) = (String::new(), 0);
        let found = loop {
            let event = session.step(Some(Instant::now())).expect("a good step");
            text.push_str(event.text);
            again += u32::from(event.kind == EventKind::Again);
            if event.kind == EventKind::End {
                break event.finish;
            }
        };
        assert_eq!((text, found), expected, "in pieces");
        assert!(again > 20);
        session.prompt(&PROMPT).expect("room");
        let control = session.control();
        for _ in 0..3 {
            control.cancel(0);
            assert!(matches!(session.step(None), Err(Error::Cancelled)));
            session.step(None).expect("a good step");
        }
        let kept = session.tokens().to_vec();
        let mut other = session.fork().expect("memory");
        finish(&mut session);
        finish(&mut other);
        assert_eq!(other.tokens(), session.tokens(), "a fork in the middle of a sentence");
        let whole = session.tokens().to_vec();
        // Back into the middle of the sentence, and to its start: the rest comes again.
        for keep in [kept.len(), PROMPT.len()] {
            session.rewind(keep).expect("shorter");
            finish(&mut session);
            assert_eq!(session.tokens(), whole, "rewound to {keep}");
        }
        // The grammar that is set already goes on, another begins.
        session.rewind(kept.len()).expect("shorter");
        session.set_sampling(&under(&grammar, seed)).expect("good settings");
        finish(&mut session);
        assert_eq!(session.tokens(), whole, "set again");
    }
}

#[test]
fn an_own_sampler_sees_only_what_is_allowed_and_may_choose_nothing_else() {
    let grammar = grammar(GrammarKind::Choice, r#"["yes", "no"]"#);
    let mut session = session();
    session.set_sampling(&under(&grammar, 1)).expect("good settings");
    session.prompt(&PROMPT).expect("room");
    session.forward(None).expect("a good pass");
    let token = |text: &str| model().tokenizer().expect("a vocabulary").encode(text, false, false).expect("tokens")[0];
    let logits = session.logits().expect("just computed").to_vec();
    let allowed: Vec<u32> = (0..).zip(&logits).filter(|(_, logit)| logit.is_finite()).map(|(token, _)| token).collect();
    let mut wanted = vec![token("y"), token("n")];
    wanted.sort_unstable();
    assert_eq!(allowed, wanted);
    let (kind, text) = refusal(session.accept(token("x")).map(|_| ()));
    assert_eq!((kind, text.contains("does not allow")), ("Grammar", true), "{text}");
    assert_eq!(session.tokens().len(), PROMPT.len(), "a refused token changes nothing");
    session.accept(token("n")).expect("allowed");
    session.forward(None).expect("a good pass");
    let event = session.accept(token("o")).expect("allowed");
    assert_eq!((event.kind, event.finish, event.text), (EventKind::End, Some(Finish::Grammar), "o"));
    session.forward(None).expect("a good pass");
    assert!(
        session.logits().expect("just computed").iter().all(|&logit| logit == f32::NEG_INFINITY),
        "nothing may follow"
    );
}

#[test]
fn a_trigger_starts_the_grammar_in_free_text() {
    let tokenizer = model().tokenizer().expect("a vocabulary");
    let choice = grammar(GrammarKind::Choice, r#"["yes", "no"]"#);
    let tool = grammar(GrammarKind::Tools, r#"[{"type": "function", "function": {"name": "stop"}}]"#);
    let call = "\n{\"name\": \"stop\", \"arguments\": {}}\n</tool_call>";
    let mut session = session();
    for (grammar, trigger, said, rest) in [
        (&choice, "Answer: ", "AnswAnswer: ", vec!["yes", "no"]),
        (&choice, "aab", "aaab", vec!["yes", "no"]),
        (&tool, "<tool_call>", "well <tool_call>", vec![call]),
        (&tool, "", "<tool_call>", vec![call]),
        (&tool, "call", "I call", vec!["<tool_call>"]),
    ] {
        let sampling = Sampling { grammar_mode: GrammarMode::OnTrigger(trigger.into()), ..under(grammar, 4) };
        session.set_sampling(&sampling).expect("good settings");
        session.prompt(&PROMPT).expect("room");
        for token in tokenizer.encode(said, false, false).expect("tokens") {
            session.forward(None).expect("a good pass");
            session.accept(token).expect("free text");
        }
        let (text, _) = finish(&mut session);
        assert!(rest.iter().any(|rest| text.starts_with(rest)), "{trigger:?}: {said:?}, then {text:?}");
    }
    // A token that completes the trigger must go on as the grammar does: " the" is one, and so is "th".
    let sampling = Sampling { grammar_mode: GrammarMode::OnTrigger(" t".into()), ..under(&choice, 4) };
    let the = tokenizer.encode(" the", false, false).expect("tokens");
    assert_eq!(the.len(), 1, "the vocabulary has it whole");
    session.set_sampling(&Sampling { bias: vec![(the[0], 1e6)], ..sampling.clone() }).expect("good settings");
    session.prompt(&PROMPT).expect("room");
    let event = session.step(None).expect("another token");
    assert_ne!(event.token, Some(the[0]));
    let he = grammar(GrammarKind::Choice, r#"["he", "hen"]"#);
    let sampling = Sampling { grammar: Some(he), bias: vec![(the[0], 1e6)], ..sampling };
    assert!(generate(&mut session, &sampling).0.starts_with(" the"));
    let none = Sampling { grammar_mode: GrammarMode::OnTrigger(String::new()), ..under(&choice, 4) };
    assert_eq!(refusal(session.set_sampling(&none)).0, "Argument");
}

#[test]
fn alternatives_are_the_likeliest_tokens_and_agree_with_the_logprob() {
    let mut session = session();
    session.set_sampling(&Sampling { alternatives: 20, ..Sampling::default() }).expect("good settings");
    session.prompt(&PROMPT).expect("room");
    session.forward(None).expect("a good pass");
    let logits = session.logits().expect("just computed").to_vec();
    let event = session.step(None).expect("a good step");
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
    assert_eq!(event.alternatives.iter().map(|found| found.token).collect::<Vec<_>>(), order[..20]);
    assert_eq!(event.alternatives[0].logprob, event.logprob, "greedy");
    let too_many = Sampling { alternatives: 21, ..Sampling::default() };
    assert_eq!(refusal(session.set_sampling(&too_many)).0, "Argument");
}

#[test]
fn sessions_share_a_grammar_and_outlive_it() {
    let grammar = grammar(GrammarKind::JsonSchema, ROBOT);
    let alone: Vec<_> = (0..4).map(|seed| generate(&mut session(), &under(&grammar, seed))).collect();
    let shared = &grammar;
    let together = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|seed| {
                // Steps need little stack, whatever the compiler needs.
                let builder = std::thread::Builder::new().stack_size(128 << 10);
                builder.spawn_scoped(scope, move || generate(&mut session(), &under(shared, seed))).expect("a thread")
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Vec<_>>()
    });
    assert_eq!(together, alone);
    let mut last = session();
    last.set_sampling(&under(&grammar, 3)).expect("good settings");
    drop(grammar);
    last.prompt(&PROMPT).expect("room");
    assert_eq!(finish(&mut last), alone[3]);
    let other = load(TEMPLATE).grammar(GrammarKind::Regex, "a").expect("a good expression");
    let (kind, text) = refusal(last.set_sampling(&under(&other, 1)));
    assert_eq!((kind, text.as_str()), ("Argument", "sampling: the grammar was made for another model"));
}

#[test]
fn refusals_say_what_and_where() {
    let refused = |kind, text: &str| match model().grammar(kind, text) {
        Err(Error::Grammar(message)) => message.to_string(),
        other => panic!("{text}: {other:?}"),
    };
    for (kind, text, words) in [
        (GrammarKind::JsonSchema, "{\n\"type\": }", "JSON schema: not JSON: expected value at line 2 column 9"),
        (GrammarKind::JsonSchema, "[]", "JSON schema: neither an object nor a boolean"),
        (GrammarKind::JsonSchema, r#"{"type": "frob"}"#, "frob"),
        (GrammarKind::JsonSchema, r#"{"not": {"type": "string"}}"#, "Unimplemented keys: [\"not\"]"),
        (
            GrammarKind::JsonSchema,
            r#"{"type": "integer", "minimum": 5, "maximum": 4}"#,
            "minimum (5) is greater than maximum (4)",
        ),
        (GrammarKind::JsonSchema, r##"{"$ref": "#/$defs/none"}"##, "$defs"),
        (GrammarKind::JsonSchema, r#"{"$ref": "https://example.org/schema"}"#, "https://example.org/schema"),
        (GrammarKind::Regex, "a(b", "regular expression: "),
        (GrammarKind::Regex, " ", "regular expression: empty"),
        (GrammarKind::Lark, "start: b\nb: c d", "unknown name"),
        (GrammarKind::Lark, "start: \"a\" )", "1(12)"),
        (GrammarKind::Choice, "{}", "choices: not a JSON array"),
        (GrammarKind::Choice, "[]", "choices: an empty array"),
        (GrammarKind::Choice, r#"["a", 5]"#, "choices: [1] is not a string"),
        (GrammarKind::Tools, "{}", "tools: not a JSON array"),
        (GrammarKind::Tools, r#"[{"function": {"name": "a"}}, {}]"#, "tools: [1].function is missing"),
        (GrammarKind::Tools, r#"[{"function": {"name": "a b"}}]"#, "tools: [0].function.name is not"),
        (
            GrammarKind::Tools,
            r#"[{"function": {"name": "a"}}, {"function": {"name": "a"}}]"#,
            "[1].function.name is there twice",
        ),
        (
            GrammarKind::Tools,
            r#"[{"function": {"name": "a", "parameters": 3}}]"#,
            "[0].function.parameters is no object",
        ),
    ] {
        let message = refused(kind, text);
        assert!(message.contains(words), "{text}: {message}");
        assert!(!message.contains("backtrace") && message.len() < 500, "{text}: {message}");
    }
    let plain = load("{% for message in messages %}{{ message.content }}{% endfor %}");
    let (kind, text) = refusal(plain.grammar(GrammarKind::Tools, r#"[{"function": {"name": "a"}}]"#).map(|_| ()));
    assert_eq!((kind, text.contains("no tool calls")), ("Unsupported", true), "{text}");
    let spec = ModelSpec::tiny("qwen2");
    let options = LoadOptions { threads: 1, ..LoadOptions::default() };
    let wordless = Model::load(Source::Bytes(forever(common::random_model(&spec))), options).expect("a good model");
    assert_eq!(refusal(wordless.grammar(GrammarKind::Regex, "a").map(|_| ())).0, "Unsupported");
}

/// Texts that try to take all time, memory or stack.
fn hostile() -> Vec<(GrammarKind, String)> {
    let nested = |open: &str, close: &str, depth: usize| open.repeat(depth) + "1" + &close.repeat(depth);
    let schema = |text: String| (GrammarKind::JsonSchema, text);
    let lark = |text: String| (GrammarKind::Lark, text);
    let regex = |text: &str| (GrammarKind::Regex, text.to_owned());
    let any_of = |count: usize| {
        let options: Vec<Json> = (0..count).map(|i| json!({"properties": {format!("p{i}"): {"const": i}}})).collect();
        json!({"anyOf": options})
    };
    let defs = |depth: usize, of: &dyn Fn(usize) -> Json| {
        let defs: serde_json::Map<_, _> = (0..depth).map(|i| (format!("d{i}"), of(i + 1))).collect();
        let mut schema = json!({"$ref": "#/$defs/d0"});
        schema["$defs"] = defs.into();
        schema["$defs"][format!("d{depth}")] = json!({"type": "null"});
        schema.to_string()
    };
    let chain = |depth: usize, link: &dyn Fn(usize) -> String, last: String| -> String {
        (0..depth).map(link).collect::<String>() + &last
    };
    vec![
        schema("[".repeat(100_000)),
        schema(nested("{\"items\":", "}", 20_000)),
        schema(nested("{\"items\":", "}", 120)),
        schema(nested("{\"anyOf\":[", "]}", 60).replace('1', "{}")),
        schema("x".repeat(300_000)),
        schema(json!({"allOf": vec![any_of(20); 20]}).to_string()),
        schema(
            json!({"allOf": (0..2000).map(|i| json!({"properties": {format!("k{i}"): {}}})).collect::<Vec<_>>()})
                .to_string(),
        ),
        schema(defs(2000, &|next| json!({"$ref": format!("#/$defs/d{next}")}))),
        schema(defs(2000, &|next| json!({"type": "array", "items": {"$ref": format!("#/$defs/d{next}")}}))),
        schema(defs(5000, &|next| json!({"items": {"$ref": format!("#/$defs/d{next}")}}))),
        schema(defs(800, &|next| json!({"anyOf": [{"properties": {"a": {"$ref": format!("#/$defs/d{next}")}}}]}))),
        schema(defs(500, &|next| {
            let next = json!({"$ref": format!("#/$defs/d{next}")});
            json!({"allOf": [next, next]})
        })),
        schema(defs(60, &|next| {
            let next = json!({"$ref": format!("#/$defs/d{next}")});
            json!({"properties": {"a": next, "b": next}, "required": ["a", "b"]})
        })),
        schema(r##"{"$ref": "#"}"##.into()),
        schema(r##"{"allOf": [{"$ref": "#"}, {"type": "object"}]}"##.into()),
        schema(r#"{"type": "string", "minLength": 4000000000}"#.into()),
        schema(r#"{"type": "string", "maxLength": 4000000000}"#.into()),
        schema(
            r#"{"type": "string", "pattern": "^(a|b|ab){1000000}$", "minLength": 99999, "maxLength": 100000}"#.into(),
        ),
        schema(r#"{"type": "array", "items": {"type": "number"}, "minItems": 1000000000}"#.into()),
        schema(r#"{"type": "array", "items": {}, "maxItems": 1000000000}"#.into()),
        schema(r#"{"type": "integer", "multipleOf": 1000003, "minimum": 1}"#.into()),
        schema(r#"{"type": "number", "minimum": 1e-300, "maximum": 1e300}"#.into()),
        schema(json!({"enum": (0..30_000).map(|i| format!("v{i}")).collect::<Vec<_>>()}).to_string()),
        schema(json!({"patternProperties": {"(a|aa)+$": {}, "(b|bb)+$": {}, "^(.*a){20}": {}}}).to_string()),
        regex("(a*)*b"),
        regex("(a|aa)+$"),
        regex("(((a{1000}){1000}){1000}){1000}"),
        regex("(.*a){500}.{500}b"),
        regex("[a-z]{1,100000}[0-9]{1,100000}x"),
        regex("(x+x+)+y"),
        regex(&("(".repeat(100_000) + "a" + &")".repeat(100_000))),
        regex(&("(".repeat(200) + "a" + &"){2}".repeat(200))),
        regex(&"a?".repeat(8_192)),
        regex(&"a?".repeat(8_193)),
        schema(json!({"type": "string", "pattern": "a?".repeat(8_192)}).to_string()),
        schema(json!({"anyOf": vec![json!({"type": "string", "pattern": "a?".repeat(300)}); 100]}).to_string()),
        regex(&format!("({})", (0..20_000).map(|i| format!("w{i}")).collect::<Vec<_>>().join("|"))),
        regex(&(r"\p{L}{0,500}".repeat(200))),
        lark("start: ".to_owned() + &"(".repeat(16_000) + "\"a\"" + &")".repeat(16_000)),
        lark("start: ".to_owned() + &"[".repeat(32_000)),
        lark("start: ".to_owned() + &"~".repeat(32_000) + "\"a\""),
        lark("start: A\nA: ".to_owned() + &"~(".repeat(28) + "/(a|b)*a(a|b){12}/" + &")".repeat(28)),
        lark("start: A\nA: /(a|b)*a(a|b){18}/ & ~/(a|b)*b(a|b){18}/ & ~/(a|b){0,19}/\n".into()),
        lark("start: A\nA: ".to_owned() + &"\"a\"?".repeat(6_000)),
        lark(chain(2_600, &|i| format!("r{i}:r{}\n", i + 1), "r2600:\"a\"\n".into()) + "start:r0\n"),
        lark(chain(2_600, &|i| format!("T{i}:T{}\n", i + 1), "T2600:\"a\"\n".into()) + "start:T0\n"),
        lark(chain(60, &|i| format!("T{i}: T{} T{}\n", i + 1, i + 1), "T60: \"a\"\n".into()) + "start: T0\n"),
        lark(chain(60, &|i| format!("r{i}: r{} r{}\n", i + 1, i + 1), "r60: \"a\"\n".into()) + "start: r0\n"),
        lark("start: start".into()),
        lark("start: start start | \"a\" |".into()),
        lark("start: \"a\"{1000000000}\n".into()),
        lark("start: A\nA: \"a\"{1000000000}\n".into()),
        lark("start: (((x{1000}){1000}){1000}){1000}\nx: \"a\" | \"b\"\n".into()),
        lark("start: %json ".to_owned() + &"{\"items\":".repeat(3_000)),
        lark("start: ".to_owned() + &"%lark { start: ".repeat(1_500) + "\"a\"" + &"}".repeat(1_500)),
        lark("start: <[0-4000000000]>\n".into()),
        lark("start: a::0x0\na::_: \"x\" a::incr(_) %if lt(_, 1000000000) | \"y\"\n".into()),
        (GrammarKind::Choice, json!((0..20_000).map(|i| format!("c{i}")).collect::<Vec<_>>()).to_string()),
        (GrammarKind::Choice, json!(["x".repeat(250_000)]).to_string()),
    ]
}

/// A hostile text is refused, or it makes a grammar whose steps are bounded: refused there, or good.
#[test]
fn hostile_grammars_neither_hang_nor_crash() {
    let mut session = session();
    let mut refused = 0;
    for (index, (kind, text)) in hostile().into_iter().enumerate() {
        let start = Instant::now();
        let shown: String = text.chars().take(60).collect();
        match model().grammar(kind, &text) {
            Err(Error::Grammar(message)) => {
                assert!(!message.is_empty() && !message.contains("panic"), "{index} {kind:?} {shown}: {message}");
                refused += 1;
            }
            Err(other) => panic!("{index} {kind:?} {shown}: {other:?}"),
            Ok(grammar) => {
                let sampling = Sampling { max_tokens: 20, ..under(&grammar, 1) };
                session.set_sampling(&sampling).expect("good settings");
                session.prompt(&PROMPT).expect("room");
                loop {
                    let before = session.tokens().len();
                    match session.step(None) {
                        Ok(event) if event.kind == EventKind::End => break,
                        Ok(_) => {}
                        Err(Error::Grammar(_)) => {
                            assert_eq!(session.tokens().len(), before);
                            refused += 1;
                            break;
                        }
                        Err(other) => panic!("{index} {kind:?} {shown}: {other:?}"),
                    }
                }
            }
        }
        let took = start.elapsed();
        let most = Duration::from_secs(if common::cross::emulated() { 600 } else { 20 });
        assert!(took < most, "{index} {kind:?} {shown}: {took:?}");
    }
    assert!(refused > 10, "{refused} refused");
    let good = grammar(GrammarKind::JsonSchema, ROBOT);
    assert!(is_robot(&generate(&mut session, &under(&good, 1)).0), "the session is as good as before");
}
