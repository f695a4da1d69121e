//! `edgellm bench`: how fast, beside how fast the memory is.

use crate::args::BenchArgs;
use crate::failure::Failure;
use crate::memory::{Memory, Stream};
use edgellm::{Device, EventKind, Sampling, Session, SessionOptions};
use serde_json::json;
use std::io::Write;
use std::time::Instant;

/// Passes over the memory per repeat; the best of all counts.
const READS_PER_REPEAT: usize = 3;

/// What one repeat took, in seconds.
struct Times {
    /// From the prompt to the first token.
    first_token: f64,
    /// `gen_tokens` more tokens.
    decode: f64,
}

/// Everything measured.
struct Report {
    load_ms: f64,
    load_to_first_token_ms: f64,
    first_token_ms: f64,
    prefill_tokens_per_s: f64,
    decode_tokens_per_s: f64,
    /// Bytes of weights per second while decoding.
    decode_bytes_per_s: f64,
    /// What the threads read of the CPU's memory; None: they do not compute.
    read_bytes_per_s: Option<f64>,
    memory: Memory,
}

/// Runs the command.
pub fn bench(args: &BenchArgs) -> Result<(), Failure> {
    let from = Instant::now();
    let model = args.load.load()?;
    let load_ms = ms(from.elapsed().as_secs_f64());

    let (prompt_len, gen_len) = (args.prompt_tokens as usize, args.gen_tokens as usize);
    let context_len = prompt_len + gen_len + 1;
    let options = SessionOptions { context_len, kv_format: args.kv.format(), ..SessionOptions::default() };
    let mut session = Session::new(&model, &options)?;
    session.set_sampling(&Sampling { ignore_eos: true, ..Sampling::default() })?;

    // The first step of all, with what it pages in: a robot waits for this after power-up.
    let tokens = random_tokens(model.info().vocab_len, prompt_len);
    repeat(&mut session, &tokens[..1], 0)?;
    let load_to_first_token_ms = ms(from.elapsed().as_secs_f64());

    // A warm-up that counts for nothing but memory: all of it is in use now, and the stream's comes after.
    repeat(&mut session, &tokens, 1)?;
    let memory = Memory::now();
    let stream = if model.info().device == Device::Cpu { Some(Stream::new()?) } else { None };

    // Measured in turns, so that a machine that slows down slows both.
    let (mut times, mut read_bytes_per_s) = (Vec::new(), None);
    for _ in 0..args.repeat {
        times.push(repeat(&mut session, &tokens, gen_len)?);
        for _ in 0..READS_PER_REPEAT {
            if let Some(stream) = &stream {
                read_bytes_per_s = Some(stream.read(&model)?.max(read_bytes_per_s.unwrap_or(0.0)));
            }
        }
    }
    let first_token = median(times.iter().map(|times| times.first_token).collect());
    let decode = median(times.iter().map(|times| times.decode).collect());
    let decode_tokens_per_s = gen_len as f64 / decode;
    let report = Report {
        load_ms,
        load_to_first_token_ms,
        first_token_ms: ms(first_token),
        prefill_tokens_per_s: prompt_len as f64 / first_token,
        decode_tokens_per_s,
        decode_bytes_per_s: decode_tokens_per_s * model.info().weights_bytes_per_token as f64,
        read_bytes_per_s,
        memory,
    };
    let mut stdout = std::io::stdout().lock();
    write!(stdout, "{}", if args.json { to_json(args, &model, &report) } else { to_lines(args, &model, &report) })?;
    stdout.flush()?;
    Ok(())
}

/// Runs the prompt in an emptied session, then decodes `gen_len` tokens after the first.
fn repeat(session: &mut Session, prompt: &[u32], gen_len: usize) -> Result<Times, Failure> {
    session.rewind(0)?; // Or the prompt would be found there and kept.
    let from = Instant::now();
    session.prompt(prompt)?;
    next_token(session)?;
    let first_token = from.elapsed().as_secs_f64();
    let from = Instant::now();
    for _ in 0..gen_len {
        next_token(session)?;
    }
    Ok(Times { first_token, decode: from.elapsed().as_secs_f64() })
}

fn next_token(session: &mut Session) -> Result<(), Failure> {
    loop {
        match session.step(None)?.kind {
            EventKind::Token => return Ok(()),
            EventKind::End => return Err(Failure::new("the session ended before the measurement did")),
            EventKind::Prefill | EventKind::Again => {}
        }
    }
}

/// `count` ids below `vocab_len`, the same on every machine.
fn random_tokens(vocab_len: usize, count: usize) -> Vec<u32> {
    let mut state = 1u64;
    let next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407); // Knuth's MMIX.
        ((state >> 33) % vocab_len.max(1) as u64) as u32
    };
    std::iter::repeat_with(next).take(count).collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => values[len / 2],
        len => (values[len / 2 - 1] + values[len / 2]) / 2.0,
    }
}

fn ms(seconds: f64) -> f64 {
    seconds * 1e3
}

fn to_json(args: &BenchArgs, model: &edgellm::Model, report: &Report) -> String {
    let info = model.info();
    let object = json!({
        "model": args.load.model.to_string_lossy(),
        "architecture": info.architecture,
        "quant": info.quant,
        "isa": info.isa,
        "threads": info.threads,
        "prompt_tokens": args.prompt_tokens,
        "gen_tokens": args.gen_tokens,
        "repeat": args.repeat,
        "prefill_tokens_per_s": report.prefill_tokens_per_s,
        "decode_tokens_per_s": report.decode_tokens_per_s,
        "weights_bytes_per_token": info.weights_bytes_per_token,
        "decode_gb_per_s": report.decode_bytes_per_s / 1e9,
        "read_gb_per_s": report.read_bytes_per_s.map(|bytes| bytes / 1e9),
        "load_ms": report.load_ms,
        "load_to_first_token_ms": report.load_to_first_token_ms,
        "first_token_ms": report.first_token_ms,
        "memory_peak_bytes": report.memory.peak,
        "memory_anon_bytes": report.memory.anon,
        "memory_file_bytes": report.memory.file,
    });
    format!("{object}\n")
}

fn to_lines(args: &BenchArgs, model: &edgellm::Model, report: &Report) -> String {
    let info = model.info();
    let mib = |bytes: Option<u64>| bytes.map_or("?".to_owned(), |bytes| format!("{:.0} MiB", bytes as f64 / 1048576.0));
    let beside_read = report.read_bytes_per_s.map_or(String::new(), |read| {
        format!(", {:.0} % of the {:.1} GB/s these threads read", 100.0 * report.decode_bytes_per_s / read, read / 1e9)
    });
    format!(
        "\
model         {} {} ({:.1} MB of weights read per token)
kernels       {}, {} threads
prefill       {:.1} tokens/s ({} tokens, median of {})
decode        {:.1} tokens/s ({} tokens, median of {})
              {:.1} GB/s of weights{}
first token   {:.1} ms with the prompt, {:.1} ms from the start of the load ({:.1} ms) with one token
memory        {} at most; {} of our own, {} of mapped file
",
        info.architecture,
        info.quant,
        info.weights_bytes_per_token as f64 / 1e6,
        info.isa,
        info.threads,
        report.prefill_tokens_per_s,
        args.prompt_tokens,
        args.repeat,
        report.decode_tokens_per_s,
        args.gen_tokens,
        args.repeat,
        report.decode_bytes_per_s / 1e9,
        beside_read,
        report.first_token_ms,
        report.load_to_first_token_ms,
        report.load_ms,
        mib(report.memory.peak),
        mib(report.memory.anon),
        mib(report.memory.file),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_is_the_middle_of_any_order() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), 2.5);
        assert!(median(vec![]).is_nan());
    }

    #[test]
    fn random_tokens_are_fixed_and_in_range() {
        let tokens = random_tokens(1000, 64);
        assert_eq!(tokens, random_tokens(1000, 64));
        assert!(tokens.iter().all(|token| *token < 1000));
        assert!(tokens.iter().collect::<std::collections::HashSet<_>>().len() > 32, "{tokens:?}");
    }
}
