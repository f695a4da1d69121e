//! Sequences that fork, that are scored, and that outgrow their context.

mod common;

use common::{ModelSpec, Rng, Vocabulary, forever, random_model, refusal};
use edgellm::{
    Error, EventKind, Finish, KvFormat, LoadOptions, Model, OnFull, Sampling, Session, SessionOptions, Source,
};
use std::sync::Arc;
use std::time::Instant;

fn model() -> Arc<Model> {
    let spec =
        ModelSpec { vocabulary: Vocabulary::Gpt2 { pre: "qwen2" }, context_len: 1024, ..ModelSpec::tiny("qwen2") };
    let options = LoadOptions { threads: 2, ..LoadOptions::default() };
    Model::load(Source::Bytes(forever(random_model(&spec))), options).expect("a good model")
}

fn session(model: &Arc<Model>, kv_format: KvFormat) -> Session {
    let options = SessionOptions { context_len: 800, prefill_chunk: 100, kv_format, ..SessionOptions::default() };
    let mut session = Session::new(model, &options).expect("memory");
    let sampling = Sampling { temperature: 0.9, seed: 5, ignore_eos: true, ..Sampling::default() };
    session.set_sampling(&sampling).expect("good settings");
    session
}

fn tokens(count: usize, seed: u64) -> Vec<u32> {
    let mut rng = Rng::new(seed);
    (0..count).map(|_| rng.below(320) as u32).collect()
}

fn generate(session: &mut Session, count: usize) -> Vec<u32> {
    let mut generated = Vec::new();
    while generated.len() < count {
        generated.extend(session.step(None).expect("a good step").token);
    }
    generated
}

fn logits(session: &mut Session) -> Vec<u32> {
    assert!(session.forward(None).expect("a good pass"));
    session.logits().expect("just computed").iter().map(|logit| logit.to_bits()).collect()
}

/// The logits that a new session has after these tokens.
fn logits_after(model: &Arc<Model>, kv_format: KvFormat, tokens: &[u32]) -> Vec<u32> {
    let mut session = session(model, kv_format);
    session.prompt(tokens).expect("room");
    logits(&mut session)
}

// ---- forks ----

#[test]
fn forks_go_on_as_if_each_were_alone() {
    let model = model();
    for kv_format in [KvFormat::F16, KvFormat::I8] {
        // On and beside the borders of pages of 256.
        for prefix_len in [1, 31, 255, 256, 257, 511, 512, 700] {
            let prefix = tokens(prefix_len, 1);
            let mut first = session(&model, kv_format);
            first.prompt(&prefix).expect("room");
            let at_once = logits(&mut first);
            let mut forks: Vec<Session> = (0..3).map(|_| first.fork().expect("memory")).collect();
            let of_a_fork = forks[2].fork().expect("memory");
            forks.push(of_a_fork);
            let expected = generate(&mut session_at(&model, kv_format, &prefix), 12);
            for (i, fork) in forks.iter_mut().enumerate() {
                assert_eq!(fork.tokens(), prefix);
                assert_eq!(logits(fork), at_once, "logits are forked too");
                if i % 2 == 0 {
                    assert_eq!(generate(fork, 12), expected, "{kv_format:?}, {prefix_len}");
                }
                let more = tokens(20, 10 + i as u64);
                fork.append(&more).expect("room");
                let whole = fork.tokens().to_vec();
                assert!(logits(fork) == logits_after(&model, kv_format, &whole), "{kv_format:?}, {prefix_len}: {i}");
            }
            assert_eq!(generate(&mut first, 12), expected, "the first one is as it was");
        }
    }
}

fn session_at(model: &Arc<Model>, kv_format: KvFormat, tokens: &[u32]) -> Session {
    let mut session = session(model, kv_format);
    session.prompt(tokens).expect("room");
    session
}

#[test]
fn going_back_into_shared_pages_does_not_touch_the_others() {
    let model = model();
    let prefix = tokens(600, 1);
    let expected = logits_after(&model, KvFormat::Auto, &prefix);
    for (keep, back_first) in [(0, true), (10, false), (256, true), (300, false), (512, true), (599, false)] {
        let mut first = session_at(&model, KvFormat::Auto, &prefix);
        logits(&mut first);
        let mut second = first.fork().expect("memory");
        let (back, stays) = if back_first { (&mut first, &mut second) } else { (&mut second, &mut first) };
        let other = [&prefix[..keep], &tokens(90, 7)[..]].concat();
        let reused = back.prompt(&other).expect("room");
        assert!(reused >= keep.min(other.len() - 1), "what is common is kept");
        assert!(logits(back) == logits_after(&model, KvFormat::Auto, &other), "back to {keep}");
        // One token more, from the end of what is shared.
        stays.append(&[3]).expect("room");
        let longer = [&prefix[..], &[3]].concat();
        assert!(logits(stays) == logits_after(&model, KvFormat::Auto, &longer), "back to {keep}");
        stays.rewind(600).expect("shorter");
        assert!(logits(stays) == expected);
    }
}

#[test]
fn forks_run_on_threads_of_their_own_and_outlive_the_first() {
    let model = model();
    let prefix = tokens(520, 1);
    let mut first = session_at(&model, KvFormat::Auto, &prefix);
    logits(&mut first);
    let mut forks: Vec<Session> = (0..4).map(|_| first.fork().expect("memory")).collect();
    let expected = generate(&mut first, 20);
    drop(first);
    let found: Vec<Vec<u32>> = std::thread::scope(|scope| {
        let threads: Vec<_> = forks.iter_mut().map(|fork| scope.spawn(|| generate(fork, 20))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert!(found.iter().all(|found| *found == expected));
}

#[test]
fn a_fork_in_the_middle_of_a_suspended_step_starts_it_over() {
    let model = model();
    let prefix = tokens(250, 1);
    let expected = generate(&mut session_at(&model, KvFormat::Auto, &prefix), 3);
    for stops in [1, 5, 10] {
        let mut first = session_at(&model, KvFormat::Auto, &prefix);
        assert_eq!(first.step(None).expect("a good step").kind, EventKind::Prefill);
        for _ in 0..stops {
            assert_eq!(first.step(Some(Instant::now())).expect("a good step").kind, EventKind::Again);
        }
        let mut second = first.fork().expect("memory");
        assert_eq!(generate(&mut first, 3), expected);
        assert_eq!(generate(&mut second, 3), expected);
    }
}

// ---- scores ----

#[test]
fn scores_are_the_logprobs_of_accepting_token_by_token_and_leave_the_session_as_it_was() {
    let model = model();
    for kv_format in [KvFormat::F16, KvFormat::I8] {
        for (prompt_len, count) in [(1, 1), (30, 2), (250, 120), (10, 210)] {
            let (prompt, text) = (tokens(prompt_len, 1), tokens(count, 2));
            let mut by_hand = session_at(&model, kv_format, &prompt);
            let expected: Vec<u32> = text
                .iter()
                .map(|&token| {
                    by_hand.forward(None).expect("a good pass");
                    by_hand.accept(token).expect("in range").logprob.to_bits()
                })
                .collect();
            let mut scored = session_at(&model, kv_format, &prompt);
            let bits = |found: &[f32]| found.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            for _ in 0..2 {
                assert_eq!(bits(scored.score(&text).expect("a good text")), expected, "{prompt_len} {count}");
            }
            assert_eq!(scored.tokens(), prompt);
            assert_eq!(logits(&mut scored), logits_after(&model, kv_format, &prompt));
            let expected = generate(&mut session_at(&model, kv_format, &prompt), 5);
            assert_eq!(generate(&mut scored, 5), expected, "and so it goes on");
        }
    }
}

#[test]
fn scores_in_the_middle_of_a_run_do_not_change_it() {
    let model = model();
    let prompt = tokens(220, 1);
    let expected = generate(&mut session_at(&model, KvFormat::Auto, &prompt), 10);
    let mut session = session_at(&model, KvFormat::Auto, &prompt);
    let mut generated = Vec::new();
    while generated.len() < 10 {
        let event = session.step(Some(Instant::now())).expect("a good step");
        let again = event.kind == EventKind::Again;
        generated.extend(event.token);
        if !again || generated.is_empty() {
            session.score(&tokens(7, 3)).expect("a good text");
        }
    }
    assert_eq!(generated, expected);
}

#[test]
fn scores_that_cannot_be_are_refused() {
    let mut session = session(&model(), KvFormat::Auto);
    assert_eq!(refusal(session.score(&[1])).0, "State");
    session.prompt(&tokens(799, 1)).expect("room");
    assert_eq!(refusal(session.score(&[])).0, "Argument");
    assert_eq!(refusal(session.score(&[1, 320])).0, "Context");
    assert_eq!(refusal(session.score(&[320])).0, "Argument");
    session.score(&[1]).expect("as much as fits");
    session.control().cancel(0);
    session.rewind(10).expect("shorter");
    session.forward(None).expect("a new run");
    session.control().cancel(0);
    assert!(matches!(session.score(&[1, 2, 3]), Err(Error::Cancelled)));
    session.score(&[1, 2, 3]).expect("one cancellation, one cancelled call");
}

// ---- full contexts ----

fn shifting(model: &Arc<Model>, keep: usize, kv_format: KvFormat) -> Session {
    let on_full = OnFull::Shift { keep };
    let options =
        SessionOptions { context_len: 64, prefill_chunk: 10, kv_format, on_full, ..SessionOptions::default() };
    let mut session = Session::new(model, &options).expect("memory");
    let sampling = Sampling { temperature: 0.9, seed: 5, ignore_eos: true, ..Sampling::default() };
    session.set_sampling(&sampling).expect("good settings");
    session
}

#[test]
fn a_full_context_drops_the_older_half_of_what_need_not_be_kept_and_goes_on() {
    let model = model();
    for kv_format in [KvFormat::F16, KvFormat::I8] {
        for keep in [0, 7, 40, 62] {
            let mut session = shifting(&model, keep, kv_format);
            let prompt = tokens(50, 1);
            session.prompt(&prompt).expect("room");
            let (mut expected, mut shifts) = (prompt.clone(), 0);
            for _ in 0..200 {
                let token = generate(&mut session, 1)[0];
                if expected.len() == 64 {
                    expected.drain(keep..keep + (64 - keep) / 2);
                    shifts += 1;
                }
                assert_eq!(session.tokens()[..expected.len()], expected, "keep {keep}");
                expected.push(token);
                assert_eq!(session.tokens(), expected, "keep {keep}");
            }
            assert!(shifts >= 3, "keep {keep}: {shifts}");
            // What is in the cache is what a new session would have.
            expected.truncate(60);
            session.rewind(expected.len().min(session.tokens().len())).expect("shorter");
            let now = session.tokens().to_vec();
            assert!(logits(&mut session) == logits_after(&model, kv_format, &now), "keep {keep}");
        }
    }
}

#[test]
fn a_shift_is_made_in_bounded_steps_and_a_deadline_changes_no_token() {
    let model = model();
    let run = |hurried: bool| {
        let mut session = shifting(&model, 7, KvFormat::Auto);
        session.prompt(&tokens(50, 1)).expect("room");
        let (mut generated, mut prefills) = (Vec::new(), 0);
        while generated.len() < 100 {
            let event = session.step(hurried.then(Instant::now)).expect("a good step");
            generated.extend(event.token);
            if event.kind == EventKind::Prefill {
                prefills += 1;
                assert!(event.prompt_done <= event.prompt_total && event.prompt_total <= 64);
            }
        }
        (generated, prefills)
    };
    let (generated, prefills) = run(false);
    assert!(prefills > 4 + 3 * 2, "28 tokens and one more, in chunks of 10: {prefills}");
    assert_eq!(run(true), (generated, prefills));
}

#[test]
fn a_prompt_as_long_as_the_context_is_shifted_and_a_longer_one_refused() {
    let model = model();
    let mut session = shifting(&model, 10, KvFormat::Auto);
    assert!(matches!(session.prompt(&tokens(65, 1)), Err(Error::Context { capacity: 64, wanted: 65 })));
    let prompt = tokens(64, 1);
    session.prompt(&prompt).expect("exactly the context");
    let token = generate(&mut session, 1)[0];
    assert_eq!(session.tokens(), [&prompt[..10], &prompt[37..], &[token]].concat());
    // A sampler of the caller's own has room too.
    session.prompt(&prompt).expect("exactly the context");
    session.forward(None).expect("a good pass");
    session.accept(3).expect("room");
    assert_eq!(session.tokens().len(), 38);
    let limit = Sampling { max_tokens: 2, ignore_eos: true, ..Sampling::default() };
    session.set_sampling(&limit).expect("good settings");
    session.prompt(&tokens(62, 1)).expect("room");
    generate(&mut session, 2);
    let event = session.step(None).expect("the end");
    assert_eq!(
        (event.kind, event.finish, event.length),
        (EventKind::End, Some(Finish::Length), 64),
        "no shift for nothing"
    );
    let options = SessionOptions { context_len: 64, on_full: OnFull::Shift { keep: 63 }, ..SessionOptions::default() };
    assert_eq!(refusal(Session::new(&model, &options).map(|_| ())).0, "Argument");
}

#[test]
fn a_shifted_fork_leaves_the_other_alone() {
    let model = model();
    let options = SessionOptions { context_len: 600, on_full: OnFull::Shift { keep: 20 }, ..SessionOptions::default() };
    let mut first = Session::new(&model, &options).expect("memory");
    let sampling = Sampling { ignore_eos: true, ..Sampling::default() };
    first.set_sampling(&sampling).expect("good settings");
    let prompt = tokens(590, 1);
    first.prompt(&prompt).expect("room");
    logits(&mut first);
    let mut second = first.fork().expect("memory");
    let shifted = generate(&mut second, 20);
    assert!(second.tokens().len() < 400);
    assert_eq!(generate(&mut first, 20), shifted);
    let mut third = first.fork().expect("memory");
    first.rewind(5).expect("shorter");
    let now = third.tokens().to_vec();
    assert!(logits(&mut third) == logits_after(&model, KvFormat::Auto, &now));
}
