//! Steps that a deadline suspends: at every border at which it can, in prefill and in decode, with everything that may
//! happen in between.

use edgellm::{Event, EventKind, KvFormat, LoadOptions, Model, Sampling, Session, SessionOptions, Source};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// The model that comes with the library.
fn model() -> Arc<Model> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/edgellm-mini-b1.58.gguf");
    let options = LoadOptions { threads: 2, ..LoadOptions::default() };
    Model::load(Source::Path(&path), options).expect("a good model")
}

const PROMPT: [u32; 10] = [5, 17, 200, 3, 90, 44, 121, 9, 60, 31];
/// Tokens that each run generates.
const GENERATED: usize = 2;

/// A session at the start of a run whose prompt takes two passes.
fn start(model: &Arc<Model>, kv_format: KvFormat) -> Session {
    let mut session = Session::new(
        model,
        &SessionOptions { context_len: 64, prefill_chunk: 6, kv_format, ..SessionOptions::default() },
    )
    .expect("memory");
    let sampling = Sampling { temperature: 0.8, seed: 9, ignore_eos: true, ..Sampling::default() };
    session.set_sampling(&sampling).expect("good settings");
    session.prompt(&PROMPT).expect("room");
    session
}

/// Everything that a step says but the time it took: kind, token, bits of the logprob, text, counts.
type Said = (EventKind, Option<u32>, u32, String, [usize; 3]);

fn said(event: &Event<'_>) -> Said {
    let counts = [event.prompt_done, event.prompt_total, event.length];
    (event.kind, event.token, event.logprob.to_bits(), event.text.to_owned(), counts)
}

/// The events of a run, and the bits of the logits after it, when the first `stops` borders suspend a step.
fn run(session: &mut Session, stops: usize, mut meanwhile: impl FnMut()) -> (Vec<Said>, Vec<u32>) {
    let (mut events, mut suspended) = (Vec::new(), 0);
    let deadline = |suspended| (suspended < stops).then(Instant::now);
    while session.tokens().len() < PROMPT.len() + GENERATED {
        let event = session.step(deadline(suspended)).expect("a good step");
        match event.kind {
            EventKind::Again => {
                suspended += 1;
                meanwhile();
            }
            _ => events.push(said(&event)),
        }
    }
    while !session.forward(deadline(suspended)).expect("a good pass") {
        suspended += 1;
        meanwhile();
    }
    let logits = session.logits().expect("just computed").iter().map(|logit| logit.to_bits()).collect();
    (events, logits)
}

#[test]
fn a_run_suspended_at_the_first_borders_however_many_goes_on_bit_for_bit() {
    let model = model();
    let layers = model.info().layers;
    // Two passes over the prompt, two over generated tokens; each stage but a pass's last, and each embedding.
    let borders = 5 * layers + (1 + GENERATED) * (5 * layers + 1);
    for kv_format in [KvFormat::F16, KvFormat::I8] {
        let expected = run(&mut start(&model, kv_format), 0, || panic!("no deadline"));
        for stops in 1..=borders {
            let (mut suspended, mut other) = (0, start(&model, kv_format));
            let found = run(&mut start(&model, kv_format), stops, || {
                suspended += 1;
                if suspended == stops {
                    run(&mut other, 0, || panic!("no deadline")); // Another session uses the same threads meanwhile.
                }
            });
            assert_eq!(suspended, stops, "there are {borders} borders");
            assert!(found == expected, "{kv_format:?}: after {stops} borders");
        }
    }
}

#[test]
fn a_suspended_step_may_be_abandoned_at_any_border() {
    let model = model();
    let borders = 5 * model.info().layers;
    let expected = run(&mut start(&model, KvFormat::Auto), 0, || panic!("no deadline"));
    for stops in 0..borders {
        for abandon in [|_: &mut Session| {}, |session: &mut Session| session.rewind(0).expect("shorter")] {
            let mut session = start(&model, KvFormat::Auto);
            session.prompt(&[7, 8, 9, 10, 11, 12, 13, 14]).expect("room");
            for _ in 0..stops {
                assert_eq!(session.step(Some(Instant::now())).expect("a good step").kind, EventKind::Again);
            }
            abandon(&mut session);
            session.prompt(&PROMPT).expect("room");
            assert!(run(&mut session, 0, || panic!("no deadline")) == expected, "after {stops} borders");
        }
    }
}
