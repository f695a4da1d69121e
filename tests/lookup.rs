//! Prompt lookup: the same tokens with the same logprobs as without it, in whatever way the session is used, and sooner.

mod common;

use common::{ModelSpec, Vocabulary, forever, random_model};
use edgellm::{
    Error, Event, EventKind, Finish, KvFormat, LoadOptions, Model, OnFull, Sampling, Session, SessionOptions, Source,
};
use std::sync::Arc;
use std::time::Instant;

fn models() -> Vec<Arc<Model>> {
    let load =
        |source| Model::load(source, LoadOptions { threads: 2, ..LoadOptions::default() }).expect("a good model");
    let mini =
        std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/models/edgellm-mini-b1.58.gguf")).expect("the model");
    let random = ["llama", "qwen3"].map(|architecture| {
        let spec = ModelSpec { vocabulary: Vocabulary::Gpt2 { pre: "qwen2" }, ..ModelSpec::tiny(architecture) };
        load(Source::Bytes(forever(random_model(&spec))))
    });
    random.into_iter().chain([load(Source::Bytes(forever(mini)))]).collect()
}

fn session(model: &Arc<Model>, options: SessionOptions) -> Session {
    Session::new(model, &options).expect("memory")
}

fn short() -> SessionOptions {
    SessionOptions { context_len: 256, ..SessionOptions::default() }
}

fn with(sampling: &Sampling) -> Sampling {
    Sampling { prompt_lookup: true, ..sampling.clone() }
}

/// Text that repeats.
const PROMPT: [u32; 30] =
    [7, 90, 12, 33, 7, 90, 12, 33, 7, 90, 12, 33, 7, 91, 12, 7, 90, 12, 33, 7, 90, 60, 61, 62, 7, 90, 12, 33, 7, 90];

/// Tokens, the bits of their logprobs, text, and why it ended.
#[derive(Debug, Default, PartialEq)]
struct Run {
    tokens: Vec<(u32, u32)>,
    text: String,
    finish: Option<Finish>,
}

impl Run {
    /// Takes an event in; whether it was the last.
    fn add(&mut self, event: &Event<'_>) -> bool {
        self.tokens.extend(event.token.map(|token| (token, event.logprob.to_bits())));
        self.text.push_str(event.text);
        self.finish = event.finish;
        event.kind == EventKind::End
    }
}

fn run(session: &mut Session) -> Run {
    let mut run = Run::default();
    while !run.add(&session.step(None).expect("a good step")) {}
    run
}

fn generate(session: &mut Session, sampling: &Sampling) -> Run {
    session.set_sampling(sampling).expect("good settings");
    session.prompt(&PROMPT).expect("room");
    run(session)
}

fn samplings() -> Vec<Sampling> {
    let greedy = Sampling { max_tokens: 100, ignore_eos: true, ..Sampling::default() };
    let hot = |seed, temperature| Sampling { seed, temperature, ..greedy.clone() };
    let penalized = Sampling { repeat_penalty: 1.2, ..hot(3, 0.3) };
    vec![greedy.clone(), hot(1, 0.2), hot(2, 1.0), penalized, Sampling { max_tokens: 0, ..greedy.clone() }]
}

#[test]
fn tokens_and_logprobs_are_the_same_bits_and_drafts_are_accepted() {
    for model in models() {
        for options in [short(), SessionOptions { kv_format: KvFormat::I8, prefill_chunk: 3, ..short() }] {
            let (mut plain, mut looking) = (session(&model, options), session(&model, options));
            for sampling in samplings() {
                let expected = generate(&mut plain, &sampling);
                assert_eq!(generate(&mut looking, &with(&sampling)), expected, "{}", model.info().architecture);
            }
            let stats = looking.control().stats(false);
            assert!(stats.tokens_accepted > 20 && stats.tokens_accepted <= stats.tokens_drafted, "{stats:?}");
            assert!(stats.steps < plain.control().stats(false).steps, "fewer passes");
            assert_eq!(plain.control().stats(false).tokens_drafted, 0, "off by default");
        }
    }
}

#[test]
fn deadlines_cancellations_forks_scores_and_rewinds_change_nothing() {
    let model = &models()[0];
    for sampling in samplings() {
        let expected = generate(&mut session(model, short()), &sampling);
        let mut looking = session(model, short());
        looking.set_sampling(&with(&sampling)).expect("good settings");
        looking.prompt(&PROMPT).expect("room");
        let mut hurried = Run::default();
        while !hurried.add(&looking.step(Some(Instant::now())).expect("a good step")) {}
        assert_eq!(hurried, expected, "in pieces");

        looking.prompt(&PROMPT).expect("room");
        let (mut found, mut turn) = (Run::default(), 0);
        loop {
            turn += 1;
            match turn % 5 {
                1 if found.tokens.len() < 90 => {
                    looking.control().cancel(0);
                    assert!(matches!(looking.step(None), Err(Error::Cancelled)));
                }
                2 => {
                    looking.score(&[3, 4, 5]).expect("room");
                }
                3 => {
                    let before = found.tokens.len();
                    let rest = run(&mut looking.fork().expect("memory")).tokens;
                    assert_eq!(rest, expected.tokens[before..], "forked after {before}");
                }
                _ => {}
            }
            if looking.tokens().len() + 4 > looking.context_len() || found.add(&looking.step(None).expect("a step")) {
                break;
            }
        }
        assert_eq!(found.tokens, expected.tokens[..found.tokens.len()], "disturbed");
        assert!(found.tokens.len() > 90);
        looking.rewind(PROMPT.len() + 10).expect("shorter");
        let again: Vec<u32> = run(&mut looking).tokens.iter().map(|(token, _)| *token).collect();
        let wanted: Vec<u32> = expected.tokens[10..].iter().map(|(token, _)| *token).collect();
        let common = again.len().min(wanted.len());
        assert_eq!(again[..common], wanted[..common], "rewound");
    }
}

#[test]
fn full_contexts_shift_and_saved_sessions_go_on_the_same() {
    let model = &models()[1];
    let options = SessionOptions { context_len: 64, on_full: OnFull::Shift { keep: 8 }, ..SessionOptions::default() };
    let sampling = Sampling { max_tokens: 150, ignore_eos: true, ..Sampling::default() };
    let expected = generate(&mut session(model, options), &sampling);
    let mut looking = session(model, options);
    assert_eq!(generate(&mut looking, &with(&sampling)), expected);
    looking.prompt(&PROMPT).expect("room");
    let mut found = Run::default();
    for turn in 0.. {
        let mut bytes = Vec::new();
        let mut other = session(model, options);
        looking
            .save()
            .expect("memory")
            .write(&mut |part: &[u8]| {
                bytes.extend_from_slice(part);
                Ok(())
            })
            .expect("memory");
        other.restore(&bytes).expect("the same model");
        if turn % 2 == 0 {
            looking = other;
        }
        if found.add(&looking.step(None).expect("a good step")) {
            break;
        }
    }
    assert_eq!(found, expected);
}

#[cfg(feature = "grammar")]
#[test]
fn grammars_check_drafts_and_give_some() {
    let schema = r#"{"type": "array", "minItems": 8, "maxItems": 8, "items": {"type": "object", "required": ["name", "kind"],
        "additionalProperties": false, "properties": {"name": {"enum": ["arm", "leg"]}, "kind": {"const": "part"}}}}"#;
    for model in models() {
        let grammar = model.grammar(edgellm::GrammarKind::JsonSchema, schema).expect("a good schema");
        let (mut plain, mut looking) = (session(&model, short()), session(&model, short()));
        for (seed, temperature) in [(0, 0.0), (1, 1.0), (2, 1.0)] {
            let grammar = Some(grammar.clone());
            let sampling = Sampling { seed, temperature, grammar, max_tokens: 220, ..Sampling::default() };
            let expected = generate(&mut plain, &sampling);
            assert_eq!(generate(&mut looking, &with(&sampling)), expected);
        }
        let stats = looking.control().stats(false);
        assert!(2 * stats.tokens_accepted > stats.tokens_out, "most of it is forced: {stats:?}");
    }
}
