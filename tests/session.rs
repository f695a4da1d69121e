//! What a session promises: steps, events, limits, cancellation, deadlines, all or nothing.

mod common;

use common::{ModelSpec, Vocabulary, forever, random_model, refusal};
use edgellm::{Error, EventKind, Finish, LoadOptions, Model, Sampling, Session, SessionOptions, Source};
use std::sync::Arc;
use std::time::{Duration, Instant};

fn model_of(spec: &ModelSpec) -> Arc<Model> {
    let options = LoadOptions { threads: 2, ..LoadOptions::default() };
    Model::load(Source::Bytes(forever(random_model(spec))), options).expect("a good model")
}

fn model() -> Arc<Model> {
    model_of(&ModelSpec { vocabulary: Vocabulary::Gpt2 { pre: "qwen2" }, ..ModelSpec::tiny("qwen2") })
}

fn session(model: &Arc<Model>, context_len: usize, prefill_chunk: usize) -> Session {
    Session::new(model, &SessionOptions { context_len, prefill_chunk, ..SessionOptions::default() }).expect("memory")
}

const PROMPT: [u32; 10] = [5, 17, 200, 3, 90, 44, 121, 9, 60, 31];

/// Steps to the end: (tokens, text, finish).
fn run(session: &mut Session) -> (Vec<u32>, String, Option<Finish>) {
    let (mut tokens, mut text) = (Vec::new(), String::new());
    loop {
        let event = session.step(None).expect("a good step");
        tokens.extend(event.token);
        text.push_str(event.text);
        if event.kind == EventKind::End {
            return (tokens, text, event.finish);
        }
    }
}

#[test]
fn prefill_comes_in_chunks_and_the_last_one_brings_the_first_token() {
    let mut session = session(&model(), 64, 4);
    session.prompt(&PROMPT).expect("room");
    for done in [4, 8] {
        let event = session.step(None).expect("a good step");
        assert_eq!((event.kind, event.prompt_done, event.prompt_total), (EventKind::Prefill, done, 10));
        assert_eq!((event.token, event.text, event.length), (None, "", 10));
    }
    let event = session.step(None).expect("a good step");
    assert_eq!((event.kind, event.prompt_done, event.length), (EventKind::Token, 10, 11));
    assert!(event.logprob < 0.0 && event.ns > 0);
}

#[test]
fn max_tokens_and_a_full_context_end_with_length() {
    let model = model();
    let mut session = session(&model, 16, 0);
    let limited = Sampling { max_tokens: 3, ignore_eos: true, ..Sampling::default() };
    session.set_sampling(&limited).expect("good settings");
    session.prompt(&PROMPT).expect("room");
    let (tokens, _, finish) = run(&mut session);
    assert_eq!((tokens.len(), finish), (3, Some(Finish::Length)));
    let again = session.step(None).expect("the end, again");
    assert_eq!((again.kind, again.finish), (EventKind::End, Some(Finish::Length)));

    session.set_sampling(&Sampling { max_tokens: 0, ..limited }).expect("good settings");
    session.append(&[7]).expect("room");
    let (tokens, _, finish) = run(&mut session);
    assert_eq!((tokens.len(), finish, session.tokens().len()), (2, Some(Finish::Length), 16));
    assert!(matches!(session.append(&[7]), Err(Error::Context { capacity: 16, wanted: 17 })));
    let full: Vec<u32> = (0..16).collect();
    session.prompt(&full).expect("exactly the context");
    assert_eq!(run(&mut session).2, Some(Finish::Length));
    assert!(matches!(session.prompt(&[0; 17]), Err(Error::Context { capacity: 16, wanted: 17 })));
    assert_eq!(session.tokens(), full, "a refused prompt changes nothing");
}

#[test]
fn stop_tokens_and_stop_texts_end_the_run() {
    let model = model();
    let mut session = session(&model, 128, 0);
    let free = Sampling { max_tokens: 30, ignore_eos: true, temperature: 1.0, seed: 3, ..Sampling::default() };
    session.set_sampling(&free).expect("good settings");
    session.prompt(&PROMPT).expect("room");
    let (tokens, text, _) = run(&mut session);

    let stop_tokens = vec![tokens[4]];
    session.set_sampling(&Sampling { stop_tokens, ..free.clone() }).expect("good settings");
    session.prompt(&PROMPT).expect("room");
    let (stopped, _, finish) = run(&mut session);
    let first = tokens.iter().position(|token| *token == tokens[4]).expect("it is there");
    assert_eq!((&stopped[..], finish), (&tokens[..=first], Some(Finish::Stop)));

    // A stop text that begins in the middle of the text, and may begin inside a token.
    let middle = text.char_indices().nth(text.chars().count() / 2).expect("some text").0;
    let stop = text[middle..].chars().take(3).collect::<String>();
    let expected = &text[..text.find(&stop).expect("it is there")];
    session.set_sampling(&Sampling { stops: vec![stop.clone()], ..free }).expect("good settings");
    session.prompt(&PROMPT).expect("room");
    let (_, found, finish) = run(&mut session);
    assert_eq!((found.as_str(), finish), (expected, Some(Finish::Stop)), "{stop:?} in {text:?}");
}

#[test]
fn an_eos_token_ends_the_run_unless_ignored() {
    let model = model();
    let eos = model.tokenizer().expect("a vocabulary").eos()[0];
    let mut session = session(&model, 64, 0);
    let always = Sampling { bias: vec![(eos, 1e6)], max_tokens: 3, ..Sampling::default() };
    session.set_sampling(&always).expect("good settings");
    session.prompt(&PROMPT).expect("room");
    let event = session.step(None).expect("a good step");
    assert_eq!((event.kind, event.finish, event.token), (EventKind::End, Some(Finish::Eos), Some(eos)));
    assert_eq!(session.tokens().last(), Some(&eos), "it is part of the sequence, as chat templates expect");
    session.set_sampling(&Sampling { ignore_eos: true, ..always }).expect("good settings");
    session.prompt(&PROMPT).expect("room");
    assert_eq!(run(&mut session), (vec![eos; 3], String::new(), Some(Finish::Length)));
}

#[test]
fn a_prompt_keeps_the_common_prefix() {
    let mut session = session(&model(), 64, 0);
    assert_eq!(session.prompt(&PROMPT).expect("room"), 0);
    let expected = {
        session.forward(None).expect("a good pass");
        session.logits().expect("just computed").to_vec()
    };
    let other = [5, 17, 200, 3, 91, 92];
    assert_eq!(session.prompt(&other).expect("room"), 4);
    session.forward(None).expect("a good pass");
    assert_eq!(session.prompt(&PROMPT).expect("room"), 4);
    session.forward(None).expect("a good pass");
    assert_eq!(session.logits().expect("just computed"), expected);
    assert_eq!(session.prompt(&PROMPT).expect("room"), 9, "the last token runs again for its logits");
    session.forward(None).expect("a good pass");
    assert_eq!(session.logits().expect("just computed"), expected);
}

#[test]
fn forward_and_accept_replace_the_sampler() {
    let model = model();
    let mut greedy = session(&model, 64, 0);
    greedy.set_sampling(&Sampling { max_tokens: 8, ignore_eos: true, ..Sampling::default() }).expect("good settings");
    greedy.prompt(&PROMPT).expect("room");
    let (expected, expected_text, _) = run(&mut greedy);
    let mut own = session(&model, 64, 3);
    own.set_sampling(&Sampling { ignore_eos: true, ..Sampling::default() }).expect("good settings");
    own.prompt(&PROMPT).expect("room");
    assert!(matches!(own.logits(), Err(Error::State(_))) && matches!(own.accept(1), Err(Error::State(_))));
    let (mut tokens, mut text) = (Vec::new(), String::new());
    for _ in 0..8 {
        assert!(own.forward(None).expect("a good pass"));
        let logits = own.logits().expect("just computed");
        let best = (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).expect("a token") as u32;
        let event = own.accept(best).expect("a token in range");
        assert_eq!((event.kind, event.token), (EventKind::Token, Some(best)));
        text.push_str(event.text);
        tokens.push(best);
    }
    assert_eq!((tokens, text.as_str()), (expected, expected_text.as_str()));
    assert!(own.forward(None).expect("a good pass"));
    assert!(matches!(own.accept(u32::MAX), Err(Error::Argument(_))));
}

#[test]
fn the_logprob_is_that_of_the_softmax_of_the_logits() {
    let mut session = session(&model(), 64, 0);
    session.prompt(&PROMPT).expect("room");
    session.forward(None).expect("a good pass");
    let logits: Vec<f64> = session.logits().expect("just computed").iter().map(|&logit| logit as f64).collect();
    let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
    let event = session.accept(77).expect("a token in range");
    assert!((event.logprob as f64 - (logits[77] - sum.ln())).abs() < 1e-5);
}

#[test]
fn a_deadline_in_the_past_makes_progress_by_stages_and_changes_no_result() {
    let model = model();
    let sampling = Sampling { max_tokens: 6, ignore_eos: true, temperature: 0.8, seed: 9, ..Sampling::default() };
    let mut free = session(&model, 64, 4);
    free.set_sampling(&sampling).expect("good settings");
    free.prompt(&PROMPT).expect("room");
    let (expected, expected_text, _) = run(&mut free);
    let mut hurried = session(&model, 64, 4);
    hurried.set_sampling(&sampling).expect("good settings");
    hurried.prompt(&PROMPT).expect("room");
    let (mut tokens, mut text, mut again) = (Vec::new(), String::new(), 0);
    loop {
        let event = hurried.step(Some(Instant::now())).expect("a good step");
        tokens.extend(event.token);
        text.push_str(event.text);
        match event.kind {
            EventKind::Again => again += 1,
            EventKind::End => break,
            _ => {}
        }
    }
    assert_eq!((tokens, text), (expected, expected_text));
    // Three passes over the prompt and five more, each of 2 layers · 5 stages + embed (+ head), all borders but the last.
    assert_eq!(again, 3 * 10 + 1 + 5 * 11);
}

#[test]
fn a_deadline_gives_the_thread_back_before_a_long_prompt_is_done() {
    let mut session = session(&model(), 512, 512);
    session.prompt(&vec![7; 500]).expect("room");
    assert!(!session.forward(Some(Instant::now())).expect("a good pass"));
    assert!(matches!(session.logits(), Err(Error::State(_))));
    assert!(session.forward(Some(Instant::now() + Duration::from_secs(3600))).expect("a good pass"));
}

#[test]
fn a_cancelled_step_leaves_the_session_as_it_was() {
    let model = model();
    let mut session = session(&model, 64, 4);
    let sampling = Sampling { max_tokens: 5, ignore_eos: true, ..Sampling::default() };
    session.set_sampling(&sampling).expect("good settings");
    let control = session.control();
    session.prompt(&PROMPT).expect("room");
    let (expected, ..) = run(&mut session);
    session.rewind(0).expect("shorter");
    session.prompt(&PROMPT).expect("room");
    let mut tokens = Vec::new();
    loop {
        control.cancel(0);
        let before = session.tokens().to_vec();
        match session.step(None) {
            Err(Error::Cancelled) => assert_eq!(session.tokens(), before),
            Ok(event) if event.kind == EventKind::End => break,
            other => panic!("{other:?}"),
        }
        let event = session.step(None).expect("one cancellation, one cancelled step");
        tokens.extend(event.token);
    }
    assert_eq!(tokens, expected);
    session.append(&[3]).expect("room");
    session.forward(None).expect("a cancellation of an earlier run is not for this one");
    control.cancel(0);
    assert!(matches!(session.step(None), Err(Error::Cancelled)), "also where forward has left nothing to compute");
    let run_now = control.run();
    control.cancel(run_now - 1);
    session.prompt(&PROMPT).expect("room");
    session.step(None).expect("a cancellation of an earlier run is not for this one");
}

#[test]
fn cancel_from_another_thread_ends_a_long_step() {
    let mut session = session(&model_of(&ModelSpec { context_len: 4096, ..ModelSpec::tiny("llama") }), 4096, 4096);
    session.prompt(&vec![3; 4000]).expect("room");
    let control = session.control();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(5));
            control.cancel(0);
        });
        assert!(matches!(session.step(None), Err(Error::Cancelled)));
    });
    assert_eq!(session.tokens().len(), 4000);
}

#[test]
fn sessions_of_one_model_do_not_disturb_each_other() {
    let model = model();
    let generate = |seed| {
        let mut session = session(&model, 64, 0);
        let sampling = Sampling { max_tokens: 20, ignore_eos: true, temperature: 1.0, seed, ..Sampling::default() };
        session.set_sampling(&sampling).expect("good settings");
        session.prompt(&PROMPT).expect("room");
        run(&mut session)
    };
    let alone: Vec<_> = (0..4).map(generate).collect();
    assert_ne!(alone[0].0, alone[1].0);
    let together = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|seed| scope.spawn(move || generate(seed))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect::<Vec<_>>()
    });
    assert_eq!(alone, together);
}

#[test]
fn wrong_calls_are_refused_and_change_nothing() {
    let model = model();
    let mut session = session(&model, 64, 0);
    let (kind, text) = refusal(session.step(None).map(|_| ()));
    assert_eq!((kind, text.as_str()), ("State", "no tokens: call prompt or append first"));
    assert_eq!(refusal(session.prompt(&[])).0, "Argument");
    let (kind, text) = refusal(session.prompt(&[1, 2, 320]));
    assert_eq!((kind, text.as_str()), ("Argument", "token 320 at index 2 is out of range: the vocabulary has 320"));
    assert_eq!(refusal(session.rewind(1)).0, "Argument");
    assert_eq!(refusal(session.set_sampling(&Sampling { top_p: f32::NAN, ..Sampling::default() })).0, "Argument");
    assert_eq!(session.tokens(), [0u32; 0]);
    let too_long = SessionOptions { context_len: 513, ..SessionOptions::default() };
    assert_eq!(refusal(Session::new(&model, &too_long).map(|_| ())).0, "Argument");
}

#[test]
fn a_model_without_vocabulary_generates_tokens_without_text() {
    let model = model_of(&ModelSpec::tiny("qwen3"));
    assert!(model.tokenizer().is_none());
    let mut session = session(&model, 64, 0);
    session.set_sampling(&Sampling { max_tokens: 4, ..Sampling::default() }).expect("good settings");
    session.prompt(&PROMPT).expect("room");
    let (tokens, text, finish) = run(&mut session);
    assert_eq!((tokens.len(), text.as_str(), finish), (4, "", Some(Finish::Length)));
}

#[test]
fn stats_count_what_happened() {
    let mut session = session(&model(), 64, 4);
    let sampling = Sampling { max_tokens: 4, ignore_eos: true, ..Sampling::default() };
    session.set_sampling(&sampling).expect("good settings");
    session.prompt(&PROMPT).expect("room");
    run(&mut session);
    session.prompt(&PROMPT).expect("room");
    let stats = session.control().stats(true);
    assert_eq!((stats.steps, stats.tokens_prompt, stats.tokens_reused, stats.tokens_out), (6, 20, 9, 4));
    assert!(stats.ns_load > 0 && stats.ns_first_token > 0 && stats.ns_prefill > 0 && stats.ns_decode > 0);
    assert!(0 < stats.step_ns_p50 && stats.step_ns_p50 <= stats.step_ns_p99);
    assert_eq!(stats.kv_bytes, 2 * 2 * 2 * 64 * 64 * 2);
    assert_eq!(session.control().stats(false).steps, 0, "reset");
    assert_eq!(session.control().length(), 10);
}
