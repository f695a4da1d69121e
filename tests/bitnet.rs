//! A trained BitNet model against transformers: `tests/data/edgellm-tiny-b1.58.gguf`, a robot's commands and stories.
//!
//! `tests/data/bitnet_tiny.json` has what transformers said, and says how it was made. Two correct programs differ in
//! int8 codes of activations that lie between two values, which moves logits by about 1 % of the largest (here 20), and
//! the embedding of the file is rounded besides; so only tokens are compared whose two best logits are 0.5 apart.

use edgellm::{EventKind, LoadOptions, Model, Result, Session, SessionOptions, Source};
use serde_json::Value;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const CLEAR: f64 = 0.5;
const THREADS: [usize; 5] = [1, 2, 3, 4, 7];

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn golden() -> Value {
    serde_json::from_str(&std::fs::read_to_string(data("bitnet_tiny.json")).expect("the file")).expect("JSON")
}

fn model(threads: usize, isa: Option<&str>) -> Arc<Model> {
    let options = LoadOptions { threads, isa, ..LoadOptions::default() };
    Model::load(Source::Path(&data("edgellm-tiny-b1.58.gguf")), options).expect("a good model")
}

fn tokens(value: &Value) -> Vec<u32> {
    value.as_array().expect("an array").iter().map(|id| id.as_u64().expect("an id") as u32).collect()
}

fn likeliest(logits: &[f32]) -> u32 {
    let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).expect("a vocabulary");
    best.0 as u32
}

/// What the model answers to a chat of one message.
fn answer(session: &mut Session, request: &str) -> Result<String> {
    let text = format!("<|im_start|>user\n{request}<|im_end|>\n<|im_start|>assistant\n");
    let prompt = session.model().tokenizer().expect("a vocabulary").encode(&text, false, true)?;
    session.prompt(&prompt)?;
    let mut answer = String::new();
    loop {
        let event = session.step(None)?;
        answer.push_str(event.text);
        if event.kind == EventKind::End {
            return Ok(answer);
        }
    }
}

#[test]
fn commands_become_the_json_that_transformers_gives() -> Result<()> {
    let golden = golden();
    let commands = golden["commands"].as_array().expect("commands");
    let mut session = Session::new(&model(2, None), &SessionOptions::default())?;
    let mut answers = BTreeSet::new();
    for command in commands {
        let found = answer(&mut session, command["request"].as_str().expect("a request"))?;
        assert_eq!(found, command["answer"], "{}", command["request"]);
        answers.insert(found);
    }
    assert!(commands.len() == 50 && answers.len() > 40, "{} different answers", answers.len());
    Ok(())
}

/// The likeliest token after each of transformers' own, wherever it is clear; returns how many were.
fn follow(session: &mut Session, golden: &Value, place: &str) -> Result<usize> {
    let (ids, expected) = (tokens(&golden["ids"]), tokens(&golden["greedy_ids"]));
    let text = golden["prompt"].as_str().expect("a text");
    assert_eq!(session.model().tokenizer().expect("a vocabulary").encode(text, false, true)?, ids, "{place}");
    session.prompt(&ids)?;
    let mut clear = 0;
    for (i, token) in expected.iter().enumerate() {
        assert!(session.forward(None)?);
        if golden["margins"][i].as_f64().expect("a margin") >= CLEAR {
            assert_eq!(likeliest(session.logits()?), *token, "{place}, token {i}");
            clear += 1;
        }
        session.append(&[*token])?;
    }
    Ok(clear)
}

#[test]
fn greedy_tokens_are_those_of_transformers_whatever_computes_them() -> Result<()> {
    let golden = golden();
    let isas = edgellm::cpu::available().map(|kernels| (2, Some(kernels.name())));
    for (threads, isa) in THREADS.iter().map(|&threads| (threads, None)).chain(isas) {
        let mut session = Session::new(&model(threads, isa), &SessionOptions::default())?;
        let mut clear = 0;
        for (i, golden) in golden["greedy"].as_array().expect("texts").iter().enumerate() {
            clear += follow(&mut session, golden, &format!("text {i}, {threads} threads, {isa:?}"))?;
        }
        assert!(clear > 100, "{clear} tokens compared");
    }
    Ok(())
}

#[test]
fn another_text_is_told_apart() -> Result<()> {
    let golden = golden();
    let mut session = Session::new(&model(2, None), &SessionOptions::default())?;
    let commands = golden["commands"].as_array().expect("commands");
    for pair in commands.windows(2).filter(|pair| pair[0]["answer"] != pair[1]["answer"]) {
        assert_ne!(answer(&mut session, pair[0]["request"].as_str().expect("a request"))?, pair[1]["answer"]);
    }
    Ok(())
}
