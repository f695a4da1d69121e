//! Sessions as bytes: saved, and restored in another process.
//!
//! All numbers are little-endian. What stays as it is in every version: the magic (8 bytes), the version (u32), 0 (u32), the
//! length of everything (u64), then what the version says, then XXH3-128 of all that is before it (16 bytes).
//!
//! Version 1: the model's fingerprint (32), the layout of the KV cache (text), the state as `put_state` writes it, the saved
//! KV cache. A text or a list has its length before it (u64).

use super::alternatives::Alternatives;
use super::constraint::Constraint;
use super::text::TextOut;
use super::{Finish, Run, Session, bytes_of};
use crate::backend::Sink;
use crate::tokenizer::Tokenizer;
use crate::{Error, Result, Sampling};
use std::io::Read;
use std::time::Instant;
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

const MAGIC: [u8; 8] = *b"eLmState";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 24;
const CHECKSUM_BYTES: usize = 16;
/// More than everything but the KV cache, the tokens and the logits takes: of a session with no stop texts a few hundred
/// bytes.
const REST_BYTES_MAX: usize = 64 << 20;

/// A session that is about to be saved.
pub struct Saving<'a> {
    session: &'a mut Session,
    /// All that comes before the KV cache.
    head: Vec<u8>,
    bytes: usize,
}

impl Saving<'_> {
    /// How many bytes [`Saving::write`] gives.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Gives all of it to `sink`, part by part.
    pub fn write(self, sink: Sink<'_>) -> Result<()> {
        let mut hash = Xxh3::new();
        let mut hashed = |bytes: &[u8]| {
            hash.update(bytes);
            sink(bytes)
        };
        hashed(&self.head)?;
        self.session.sequence.kv_save(self.session.cached, &mut hashed)?;
        sink(&hash.digest128().to_le_bytes())
    }
}

impl Session {
    /// Everything that the session would go on from: the sequence and its KV cache, how far the run is, the sampling settings
    /// (of the random numbers the seed and the position, which is all they depend on), text that was held back, logits.
    ///
    /// A step that a deadline suspended is saved as if it had not begun. Statistics are not saved.
    pub fn save(&mut self) -> Result<Saving<'_>> {
        let kv_bytes = self.sequence.kv_saved_bytes(self.cached);
        let mut head = Vec::new();
        let guess = HEADER_BYTES + 4 * (self.tokens.len() + self.model.config().shape.vocab_len) + 4096;
        head.try_reserve(guess).map_err(|_| no_memory(guess))?;
        self.put_head(&mut head)?;
        put_u64(&mut head, kv_bytes);
        let bytes = head.len() + kv_bytes + CHECKSUM_BYTES;
        head[16..HEADER_BYTES].copy_from_slice(&(bytes as u64).to_le_bytes());
        Ok(Saving { session: self, head, bytes })
    }

    fn put_head(&mut self, out: &mut Vec<u8>) -> Result<()> {
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 12]); // The length comes later.
        out.extend_from_slice(self.model.fingerprint());
        put_text(out, self.sequence.kv_layout().as_bytes());
        put_list(out, &self.tokens, |out, token| out.extend_from_slice(&token.to_le_bytes()));
        for number in [self.cached, self.dropped, self.run.prompt_start, self.run.prompt_end, self.run.generated] {
            put_u64(out, number);
        }
        put_u64(out, finish_code(self.run.finish));
        let (pending, held) = self.text.waiting();
        put_text(out, pending);
        put_text(out, held.as_bytes());
        put_sampling(out, &self.sampling);
        put_u64(out, self.grammar_start()?.map_or(0, |start| 1 + start));
        let log_sum_exp = if self.logits_ready { self.sequence.log_sum_exp() } else { 0.0 };
        put_f32(out, log_sum_exp);
        let logits = if self.logits_ready { self.sequence.logits()? } else { &[] };
        put_list(out, logits, |out, logit| put_f32(out, *logit));
        Ok(())
    }

    /// Where the grammar began that the session follows.
    fn grammar_start(&self) -> Result<Option<usize>> {
        let Some(constraint) = &self.constraint else { return Ok(None) };
        let gone = "save: a full context has dropped where the grammar began: start a new run first";
        constraint.start().map(Some).ok_or(Error::State(gone.into()))
    }

    /// The walk of a session that was saved while it followed a grammar, through the grammar that this one has.
    fn walk(&self, saved: &mut Saved<'_>) -> Result<Option<Constraint>> {
        let Some(start) = saved.grammar_start else { return Ok(None) };
        let (grammar, mode) = (self.sampling.grammar.clone(), self.sampling.grammar_mode.clone());
        let missing = "the saved session follows a grammar, which is not saved: set it before the restore";
        saved.sampling.grammar = Some(grammar.ok_or(Error::State(missing.into()))?);
        saved.sampling.grammar_mode = mode;
        let vocab_len = self.model.config().shape.vocab_len;
        let longest = self.model.tokenizer().map_or(0, Tokenizer::longest_token);
        let mut walk = Constraint::new(&saved.sampling, start, vocab_len, longest)?.ok_or_else(damaged)?;
        let tokens: Vec<u32> = collected(saved.tokens.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes)))?;
        let walked = walk.cut(&tokens, |token| bytes_of(&self.model, token));
        match walked {
            // What ended a run need not be part of the grammar.
            Err(error) if saved.run.finish.is_none() => {
                let text = format!("the saved session does not follow this session's grammar: {error}");
                Err(Error::Mismatch(text))
            }
            _ => Ok(Some(walk)),
        }
    }

    /// Takes over what another session of the same model saved, in this process or another; its sampling settings too. A new
    /// run number, as after `prompt`. All of it is checked first: a failure has changed nothing.
    pub fn restore(&mut self, saved: &[u8]) -> Result<()> {
        let saved = Saved::read(open(saved)?, self)?;
        self.take_over(saved)
    }

    /// [`Session::restore`] from where `reader` is, which is then after what was saved.
    pub fn restore_from(&mut self, reader: &mut dyn Read) -> Result<()> {
        let mut saved = Vec::new();
        read_more(reader, &mut saved, HEADER_BYTES)?;
        let length = check_header(&saved)?;
        let shape = &self.model.config().shape;
        let most = self.sequence.kv_saved_bytes(self.model.config().context_len_max)
            + 4 * (self.model.config().context_len_max + shape.vocab_len)
            + REST_BYTES_MAX;
        if length > most {
            let text = format!("saved session of {length} bytes: one of this model has at most {most}");
            return Err(Error::Mismatch(text));
        }
        read_more(reader, &mut saved, length - HEADER_BYTES)?;
        self.restore(&saved)
    }

    fn take_over(&mut self, mut saved: Saved<'_>) -> Result<()> {
        let constraint = self.walk(&mut saved)?;
        let text = TextOut::resumed(self.model.tokenizer(), &saved.sampling.stops, (saved.pending, saved.held))?;
        let text = text.ok_or_else(damaged)?;
        let mut alternatives = Alternatives::default();
        alternatives.reserve(saved.sampling.alternatives)?;
        let mut logits = Vec::new();
        logits.try_reserve_exact(saved.logits.len() / 4).map_err(|_| no_memory(saved.logits.len()))?;
        logits.extend(saved.logits.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)));
        self.sequence.kv_restore(saved.cached, saved.kv)?;
        if !logits.is_empty() {
            self.sequence.set_logits(&logits, saved.log_sum_exp)?;
        }
        // From here on nothing fails.
        self.tokens.clear();
        self.tokens.extend(saved.tokens());
        self.cached = saved.cached;
        self.dropped = saved.dropped;
        self.logits_ready = !logits.is_empty();
        self.pass = None;
        self.run = saved.run;
        self.sampling = saved.sampling;
        self.text = text;
        self.constraint = constraint;
        self.lookup.clear();
        self.alternatives = alternatives;
        self.control.start_run();
        self.control.set_length(self.tokens.len());
        Ok(())
    }
}

/// What was saved, checked for a session.
struct Saved<'a> {
    tokens: &'a [u8], // u32 each
    cached: usize,
    dropped: usize,
    run: Run,
    pending: &'a [u8],
    held: &'a str,
    sampling: Sampling,
    grammar_start: Option<usize>,
    log_sum_exp: f32,
    logits: &'a [u8], // f32 each
    kv: &'a [u8],
}

impl<'a> Saved<'a> {
    fn read(mut from: Reader<'a>, session: &Session) -> Result<Self> {
        if from.take(32)? != session.model.fingerprint() {
            return Err(Error::Mismatch("the saved session is another model's".into()));
        }
        let (theirs, ours) = (from.text()?, session.sequence.kv_layout());
        if theirs != ours {
            let text = format!("the saved session's KV cache is `{theirs}`, this session's is `{ours}`");
            return Err(Error::Mismatch(text));
        }
        let tokens = from.list(4)?;
        let [cached, dropped, prompt_start, prompt_end, generated] = [(); 5].map(|()| from.count());
        let (cached, dropped) = (cached?, dropped?);
        let (prompt_start, prompt_end, generated) = (prompt_start?, prompt_end?, generated?);
        let finish = finish_of(from.count()?)?;
        let pending = from.list(1)?;
        let held = from.text()?;
        let sampling = read_sampling(&mut from)?;
        let grammar_start = from.count()?.checked_sub(1);
        let log_sum_exp = from.f32()?;
        let logits = from.list(4)?;
        let kv = from.list(1)?;
        let run = Run { start: Instant::now(), prompt_start, prompt_end, generated, finish };
        let saved =
            Saved { tokens, cached, dropped, run, pending, held, sampling, grammar_start, log_sum_exp, logits, kv };
        if from.bytes.is_empty() { saved.checked(session) } else { Err(damaged()) }
    }

    fn tokens(&self) -> impl Iterator<Item = u32> {
        self.tokens.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes))
    }

    /// What a session relies on. Whoever damages a state by accident is found out by its checksum; this is for the others.
    fn checked(self, session: &Session) -> Result<Self> {
        let (len, vocab_len) = (self.tokens.len() / 4, session.model.config().shape.vocab_len);
        if len > session.context_len {
            return Err(Error::Context { capacity: session.context_len, wanted: len });
        }
        let logits_len = if len > 0 && self.cached == len { 4 * vocab_len } else { 0 };
        let good = self.tokens().all(|token| (token as usize) < vocab_len)
            && self.cached <= len
            && self.run.prompt_start <= self.run.prompt_end
            && self.run.prompt_end <= len
            && self.logits.len() == logits_len
            && self.kv.len() == session.sequence.kv_saved_bytes(self.cached)
            && self.dropped.checked_add(session.context_len).is_some()
            && self.sampling.check(vocab_len).is_ok();
        if good { Ok(self) } else { Err(damaged()) }
    }
}

/// What is between the header and the checksum, both checked.
fn open(saved: &[u8]) -> Result<Reader<'_>> {
    let length = check_header(saved)?;
    if saved.len() != length {
        return Err(Error::Integrity("the saved session is cut off, or something follows it".into()));
    }
    let (checked, checksum) = saved.split_at(length - CHECKSUM_BYTES);
    if xxh3_128(checked).to_le_bytes() != *checksum {
        return Err(Error::Integrity("the saved session is damaged: its checksum is another".into()));
    }
    let version = u32::from_le_bytes([saved[8], saved[9], saved[10], saved[11]]);
    if version != VERSION {
        let text = format!("saved session of version {version}: this library reads version {VERSION}");
        return Err(Error::Mismatch(text));
    }
    Ok(Reader { bytes: &checked[HEADER_BYTES..] })
}

/// How long everything is.
fn check_header(saved: &[u8]) -> Result<usize> {
    let header = saved.first_chunk::<HEADER_BYTES>();
    let header = header.filter(|header| header.starts_with(&MAGIC));
    let header = header.ok_or(Error::Integrity("this is no saved session".into()))?;
    let length = header.last_chunk().map(|length| u64::from_le_bytes(*length));
    let length = length.and_then(|length| usize::try_from(length).ok());
    length.filter(|&length| length >= HEADER_BYTES + CHECKSUM_BYTES).ok_or_else(damaged)
}

/// Exactly so many bytes more.
fn read_more(reader: &mut dyn Read, into: &mut Vec<u8>, bytes: usize) -> Result<()> {
    into.try_reserve_exact(bytes).map_err(|_| no_memory(bytes))?;
    match reader.take(bytes as u64).read_to_end(into) {
        Ok(read) if read == bytes => Ok(()),
        Ok(_) => Err(Error::Integrity("the saved session is cut off".into())),
        Err(error) => Err(Error::io("reading a saved session", &error)),
    }
}

fn damaged() -> Error {
    Error::Integrity("the saved session says what no session can".into())
}

fn no_memory(bytes: usize) -> Error {
    Error::NoMemory { what: "a saved session", bytes }
}

fn finish_code(finish: Option<Finish>) -> usize {
    match finish {
        None => 0,
        Some(Finish::Eos) => 1,
        Some(Finish::Stop) => 2,
        Some(Finish::Length) => 3,
        Some(Finish::Grammar) => 4,
    }
}

fn finish_of(code: usize) -> Result<Option<Finish>> {
    match code {
        0 => Ok(None),
        1 => Ok(Some(Finish::Eos)),
        4 => Ok(Some(Finish::Grammar)),
        2 => Ok(Some(Finish::Stop)),
        3 => Ok(Some(Finish::Length)),
        _ => Err(damaged()),
    }
}

fn put_u64(out: &mut Vec<u8>, value: usize) {
    out.extend_from_slice(&(value as u64).to_le_bytes());
}

fn put_f32(out: &mut Vec<u8>, value: f32) {
    out.extend_from_slice(&value.to_le_bytes());
}

fn put_list<T>(out: &mut Vec<u8>, list: &[T], put: impl Fn(&mut Vec<u8>, &T)) {
    put_u64(out, list.len());
    list.iter().for_each(|item| put(out, item));
}

fn put_text(out: &mut Vec<u8>, text: &[u8]) {
    put_u64(out, text.len());
    out.extend_from_slice(text);
}

fn put_sampling(out: &mut Vec<u8>, sampling: &Sampling) {
    let Sampling {
        temperature,
        top_k,
        top_p,
        min_p,
        repeat_penalty,
        frequency_penalty,
        presence_penalty,
        penalty_last_n,
        seed,
        max_tokens,
        ignore_eos,
        bias,
        stops,
        stop_tokens,
        prompt_lookup,
        alternatives,
        grammar: _, // Not saved; where it began is.
        grammar_mode: _,
    } = sampling;
    for value in [temperature, top_p, min_p, repeat_penalty, frequency_penalty, presence_penalty] {
        put_f32(out, *value);
    }
    out.extend_from_slice(&seed.to_le_bytes());
    for value in
        [*top_k, *penalty_last_n, *max_tokens, usize::from(*ignore_eos), usize::from(*prompt_lookup), *alternatives]
    {
        put_u64(out, value);
    }
    put_list(out, bias, |out, (token, bias)| {
        out.extend_from_slice(&token.to_le_bytes());
        put_f32(out, *bias);
    });
    put_list(out, stop_tokens, |out, token| out.extend_from_slice(&token.to_le_bytes()));
    put_list(out, stops, |out, stop| put_text(out, stop.as_bytes()));
}

fn read_sampling(from: &mut Reader<'_>) -> Result<Sampling> {
    let mut sampling = Sampling::default();
    for value in [
        &mut sampling.temperature,
        &mut sampling.top_p,
        &mut sampling.min_p,
        &mut sampling.repeat_penalty,
        &mut sampling.frequency_penalty,
        &mut sampling.presence_penalty,
    ] {
        *value = from.f32()?;
    }
    sampling.seed = u64::from_le_bytes(from.array()?);
    sampling.top_k = from.count()?;
    sampling.penalty_last_n = from.count()?;
    sampling.max_tokens = from.count()?;
    sampling.ignore_eos = from.count()? != 0;
    sampling.prompt_lookup = from.count()? != 0;
    sampling.alternatives = from.count()?;
    let pair = |bytes: &[u8; 8]| {
        let [a, b, c, d, e, f, g, h] = *bytes;
        (u32::from_le_bytes([a, b, c, d]), f32::from_le_bytes([e, f, g, h]))
    };
    sampling.bias = collected(from.list(8)?.as_chunks().0.iter().map(pair))?;
    let token = |bytes: &[u8; 4]| u32::from_le_bytes(*bytes);
    sampling.stop_tokens = collected(from.list(4)?.as_chunks().0.iter().map(token))?;
    for _ in 0..from.count()? {
        let stop = from.text()?; // Fails when there are not so many: each takes some of what is left.
        sampling.stops.try_reserve(1).map_err(|_| no_memory(stop.len()))?;
        sampling.stops.push(stop.to_owned());
    }
    Ok(sampling)
}

fn collected<T>(items: impl ExactSizeIterator<Item = T>) -> Result<Vec<T>> {
    let mut list = Vec::new();
    list.try_reserve_exact(items.len()).map_err(|_| no_memory(items.len() * size_of::<T>()))?;
    list.extend(items);
    Ok(list)
}

/// What is left to read.
struct Reader<'a> {
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(count).ok_or_else(damaged)?;
        self.bytes = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.take(N)?.first_chunk().copied().ok_or_else(damaged)
    }

    fn count(&mut self) -> Result<usize> {
        usize::try_from(u64::from_le_bytes(self.array()?)).map_err(|_| damaged())
    }

    fn f32(&mut self) -> Result<f32> {
        Ok(f32::from_le_bytes(self.array()?))
    }

    /// A list of items of so many bytes each.
    fn list(&mut self, item_bytes: usize) -> Result<&'a [u8]> {
        let bytes = self.count()?.checked_mul(item_bytes).ok_or_else(damaged)?;
        self.take(bytes)
    }

    fn text(&mut self) -> Result<&'a str> {
        std::str::from_utf8(self.list(1)?).map_err(|_| damaged())
    }
}
