//! A plan of memory is what the library takes: to the page, before anything is loaded.

mod common;

use common::{Formats, ModelSpec, Rng, TempDir, Vocabulary, forever, random_model, refusal};
use edgellm::model::plan::MemoryPlan;
use edgellm::quant::Format;
use edgellm::session::SessionPlan;
use edgellm::tensor::{Bytes, page_bytes};
use edgellm::{Device, KvFormat, LoadOptions, Model, Result, Session, SessionOptions, Source};
use std::path::Path;
use std::sync::Arc;

/// Where a model is; `Source` itself is used up by a load.
#[derive(Clone, Copy)]
enum Place<'a> {
    Path(&'a Path),
    Bytes(&'static [u8]),
}

impl<'a> Place<'a> {
    fn source(self) -> Source<'a> {
        match self {
            Place::Path(path) => Source::Path(path),
            Place::Bytes(bytes) => Source::Bytes(bytes),
        }
    }
}

/// The settings of a load that memory depends on.
#[derive(Clone, Copy, Debug)]
struct Load {
    threads: usize,
    mmap: bool,
    exact: bool,
    limit: Option<u64>,
}

impl Load {
    fn options(self) -> LoadOptions<'static> {
        let Load { threads, mmap, exact, limit } = self;
        LoadOptions { device: Device::Cpu, threads, mmap, exact, memory_limit: limit, ..LoadOptions::default() }
    }
}

fn plan(place: Place<'_>, load: Load, session: &SessionOptions) -> (MemoryPlan, SessionPlan) {
    let plan = MemoryPlan::new(place.source(), &load.options()).expect("a good model");
    let session = SessionPlan::new(&plan, session).expect("good options");
    (plan, session)
}

fn load(place: Place<'_>, load: Load) -> Result<Arc<Model>> {
    Model::load(place.source(), load.options())
}

/// Prompt and answer of a session: everything that it uses is used.
fn steps(session: &mut Session) {
    let tokens: Vec<u32> = (0..session.context_len().min(40) as u32 - 1).collect();
    session.prompt(&tokens[..tokens.len().max(1)]).expect("room");
    for _ in 0..3 {
        session.step(None).expect("a good model");
    }
}

/// Planned is taken, that much is enough, a page less is not. The plan's `needed`.
fn check(name: &str, place: Place<'_>, settings: Load, options: &SessionOptions) -> u64 {
    let (model_plan, session_plan) = plan(place, settings, options);
    let session_bytes = session_plan.memory.kv + session_plan.memory.scratch;
    let needed = model_plan.needed(session_bytes);
    let limited = Load { limit: Some(needed), ..settings };
    let (model_limited, _) = plan(place, limited, options);
    assert!(model_limited.fits(session_bytes), "{name}: this machine has no memory for the test");
    let model = load(place, limited).unwrap_or_else(|error| panic!("{name}, {settings:?}: {error}"));
    assert_eq!(model.ledger().taken(), model_plan.model, "{name}: {settings:?}");
    assert_eq!(model.ledger().host_peak(), model_plan.peak_load().host, "{name}: {settings:?}");
    let mut session = Session::new(&model, options).unwrap_or_else(|error| panic!("{name}, {options:?}: {error}"));
    let chunk = if options.prefill_chunk == 0 { 512 } else { options.prefill_chunk }.min(session.context_len());
    let sequence = model_plan.sequence(session.context_len(), chunk, options.kv_format).expect("as before");
    assert_eq!(session.held(), sequence, "{name}: {options:?}");
    assert_eq!(model.ledger().taken(), model_plan.model + session_bytes, "{name}: {options:?}");
    steps(&mut session);
    drop(session);
    assert_eq!(model.ledger().taken(), model_plan.model, "{name}: what a session took is given back");
    drop(model);
    let less = Load { limit: Some(needed - page_bytes()), ..settings };
    assert!(!plan(place, less, options).0.fits(session_bytes));
    let (variant, text) = refusal(load(place, less).and_then(|model| Session::new(&model, options).map(|_| ())));
    assert_eq!(variant, "MemoryLimit", "{name}: {text}");
    assert!(text.contains(&(needed - page_bytes()).to_string()), "{name}: {text}");
    needed
}

fn models() -> Vec<(&'static str, ModelSpec)> {
    let tiny = ModelSpec::tiny;
    let vocabulary = Vocabulary::Gpt2 { pre: "qwen2" };
    vec![
        ("llama, untied", ModelSpec { vocabulary, ..tiny("llama") }),
        ("qwen2, tied", ModelSpec { tied: true, formats: Formats::all(Format::Q4_0), ..tiny("qwen2") }),
        ("qwen3, odd", ModelSpec { heads: 6, kv_heads: 2, head_dim: 80, hidden: 96, ..tiny("qwen3") }),
        ("bitnet, TQ1_0", ModelSpec { formats: Formats::ternary(Format::TQ1_0), ..tiny("bitnet-b1.58") }),
        ("bitnet, I2_S", ModelSpec { formats: Formats::ternary(Format::I2_S), ..tiny("bitnet-b1.58") }),
        ("Q3_K", ModelSpec { formats: Formats::all(Format::Q3_K), ..tiny("llama") }),
    ]
}

#[test]
fn what_is_planned_is_taken_and_a_page_less_is_refused() {
    let (folder, mut rng) = (TempDir::new(), Rng::new(3));
    for (name, spec) in models() {
        let bytes = random_model(&spec);
        let path = folder.file("model.gguf", &bytes);
        let bytes = forever(bytes);
        for round in 0..12 {
            let place = if round % 2 == 0 { Place::Path(&path) } else { Place::Bytes(bytes) };
            let (exact, mmap) = (round % 5 == 4, round % 4 < 2);
            let settings = Load { threads: 1 + rng.below(3), mmap, exact, limit: None };
            let kv_format = match rng.below(3) {
                _ if exact => KvFormat::Auto,
                0 => KvFormat::F16,
                _ => KvFormat::I8,
            };
            let context_len = if round == 0 { 0 } else { 2 + rng.below(spec.context_len - 1) };
            let prefill_chunk = rng.below(2) * rng.below(700);
            check(
                name,
                place,
                settings,
                &SessionOptions { context_len, prefill_chunk, kv_format, ..SessionOptions::default() },
            );
        }
    }
}

/// All that are there: of the repository, and what somebody has put beside them.
#[test]
fn the_models_of_the_repository_take_what_is_planned() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("models");
    let mut found = 0;
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|extension| extension == "gguf") {
            let name = path.display().to_string();
            let settings = Load { threads: 2, mmap: true, exact: false, limit: None };
            for (context_len, kv_format) in [(0, KvFormat::F16), (100, KvFormat::I8), (333, KvFormat::Auto)] {
                let options = SessionOptions { context_len, prefill_chunk: 64, kv_format, ..SessionOptions::default() };
                let needed = check(&name, Place::Path(&path), settings, &options);
                eprintln!("{name}: {needed} bytes for a context of {context_len} (0: default), {kv_format:?}");
            }
            found += 1;
        }
    }
    assert!(found > 0);
}

#[test]
fn the_limit_is_for_all_sessions_together() {
    let bytes = forever(random_model(&ModelSpec::tiny("llama")));
    let settings = Load { threads: 1, mmap: true, exact: false, limit: None };
    let options =
        SessionOptions { context_len: 256, prefill_chunk: 16, kv_format: KvFormat::Auto, ..SessionOptions::default() };
    let (model_plan, session_plan) = plan(Place::Bytes(bytes), settings, &options);
    let one = session_plan.memory.kv + session_plan.memory.scratch;
    let two = model_plan.needed(one + one);
    let model = load(Place::Bytes(bytes), Load { limit: Some(two), ..settings }).expect("room");
    let first = Session::new(&model, &options).expect("room for the first");
    let _second = Session::new(&model, &options).expect("room for the second");
    let (variant, text) = refusal(Session::new(&model, &options).map(|_| ()));
    assert_eq!(variant, "MemoryLimit");
    assert!(text.contains(&one.total().to_string()) && text.contains(&two.to_string()), "{text}");
    drop(first);
    Session::new(&model, &options).expect("room for another");
}

#[test]
fn the_longest_context_that_fits_fits_and_a_longer_one_does_not() {
    let spec = ModelSpec { context_len: 4000, ..ModelSpec::tiny("llama") };
    let bytes = forever(random_model(&spec));
    let settings = Load { threads: 1, mmap: true, exact: false, limit: None };
    for (wanted, chunk) in [(1, 0), (40, 0), (700, 16), (3000, 512)] {
        let options = |context_len| SessionOptions { context_len, prefill_chunk: chunk, ..SessionOptions::default() };
        let (model_plan, session_plan) = plan(Place::Bytes(bytes), settings, &options(wanted));
        let needed = model_plan.needed(session_plan.memory.kv + session_plan.memory.scratch);
        let limited = Load { limit: Some(needed), ..settings };
        let fits = plan(Place::Bytes(bytes), limited, &options(0)).1.context_len_fits;
        // Whole tiles of positions and whole pages have room for more than was asked for.
        assert!((wanted..wanted + 400).contains(&fits), "{wanted}: {fits}");
        let model = load(Place::Bytes(bytes), limited).expect("room");
        Session::new(&model, &options(fits)).unwrap_or_else(|error| panic!("{fits}: {error}"));
        assert_eq!(refusal(Session::new(&model, &options(fits + 1)).map(|_| ())).0, "MemoryLimit", "{fits}");
    }
    let nothing = Load { limit: Some(page_bytes()), ..settings };
    let (model_plan, session_plan) = plan(Place::Bytes(bytes), nothing, &SessionOptions::default());
    assert_eq!(session_plan.context_len_fits, 0);
    assert!(!model_plan.fits(Bytes::default()), "not even the model");
    let unlimited = plan(Place::Bytes(bytes), settings, &SessionOptions::default()).1;
    assert_eq!(unlimited.context_len_fits, spec.context_len);
}

#[test]
fn a_plan_refuses_what_a_load_or_a_session_would() {
    let spec = ModelSpec::tiny("llama");
    let bytes = random_model(&spec);
    let options = || LoadOptions { device: Device::Cpu, threads: 1, ..LoadOptions::default() };
    let cut = forever(bytes[..bytes.len() / 2].to_vec());
    assert_eq!(refusal(MemoryPlan::new(Source::Bytes(cut), &options()).map(|_| ())).0, "Format");
    let too_many = LoadOptions { threads: 5000, ..options() };
    let bytes = forever(bytes);
    assert_eq!(refusal(MemoryPlan::new(Source::Bytes(bytes), &too_many).map(|_| ())).0, "Argument");
    let plan = MemoryPlan::new(Source::Bytes(bytes), &options()).expect("a good model");
    let long = SessionOptions { context_len: spec.context_len + 1, ..SessionOptions::default() };
    assert_eq!(refusal(SessionPlan::new(&plan, &long).map(|_| ())).0, "Argument");
    let exact = LoadOptions { exact: true, ..options() };
    let plan = MemoryPlan::new(Source::Bytes(bytes), &exact).expect("a good model");
    let int8 = SessionOptions { kv_format: KvFormat::I8, ..SessionOptions::default() };
    let (variant, text) = refusal(SessionPlan::new(&plan, &int8).map(|_| ()));
    assert!(variant == "Argument" && text.contains("exact"), "{text}");
    let odd = random_model(&ModelSpec { heads: 66, kv_heads: 1, head_dim: 16, ..spec });
    let refused = MemoryPlan::new(Source::Bytes(forever(odd)), &options()).map(|_| ());
    assert_eq!(refusal(refused).0, "Unsupported");
}

/// On the CPU, pages of 256 positions that are full are one memory, as long as one of the sessions is there.
#[test]
fn forks_are_counted_by_what_they_do_not_share() {
    let spec = ModelSpec { context_len: 1024, ..ModelSpec::tiny("qwen2") };
    let bytes = forever(random_model(&spec));
    let settings = Load { threads: 1, mmap: true, exact: false, limit: None };
    for kv_format in [KvFormat::F16, KvFormat::I8] {
        let options = SessionOptions { context_len: 1024, prefill_chunk: 64, kv_format, ..SessionOptions::default() };
        let (model_plan, session_plan) = plan(Place::Bytes(bytes), settings, &options);
        let (kv, scratch) = (session_plan.memory.kv.host, session_plan.memory.scratch.host);
        let model = load(Place::Bytes(bytes), settings).expect("no limit");
        let taken = || model.ledger().taken().host - model_plan.model.host;
        let mut first = Session::new(&model, &options).expect("no limit");
        assert_eq!(taken(), kv + scratch);
        let prompt: Vec<u32> = (0..600).map(|i| i * 7 % 300).collect();
        first.prompt(&prompt).expect("room");
        assert!(first.forward(None).expect("a good model"));
        let mut fork = first.fork().expect("no limit");
        // Two pages of four are full. What int8 keys are without is shared, too.
        let copied = taken() - kv - 2 * scratch;
        let half = if kv_format == KvFormat::F16 { kv / 2..kv / 2 + 1 } else { kv / 3..kv / 2 };
        assert!(half.contains(&copied), "{kv_format:?}: {copied} more of {kv}");
        drop(first);
        assert_eq!(taken(), kv + scratch, "{kv_format:?}: what is shared is the fork's now");
        // It writes where it shared before: nobody else is there, so nothing is copied.
        fork.prompt(&prompt[..10]).expect("room");
        fork.append(&prompt[..20]).expect("room");
        steps_of(&mut fork);
        assert_eq!(taken(), kv + scratch);
        let mut second = fork.fork().expect("no limit");
        second.rewind(0).expect("shorter");
        drop((fork, second));
        assert_eq!(taken(), 0, "{kv_format:?}");
    }
    // A limit holds for forks.
    let options = SessionOptions { context_len: 512, prefill_chunk: 64, ..SessionOptions::default() };
    let (model_plan, session_plan) = plan(Place::Bytes(bytes), settings, &options);
    let needed = model_plan.needed(session_plan.memory.kv + session_plan.memory.scratch);
    let model = load(Place::Bytes(bytes), Load { limit: Some(needed), ..settings }).expect("room");
    let mut session = Session::new(&model, &options).expect("room");
    session.prompt(&[1, 2, 3]).expect("room");
    assert_eq!(refusal(session.fork().map(|_| ())).0, "MemoryLimit");
    assert_eq!(model.ledger().taken().total(), needed, "a fork that failed has taken nothing");
    steps_of(&mut session);
}

fn steps_of(session: &mut Session) {
    for _ in 0..3 {
        session.step(None).expect("a good model");
    }
}
