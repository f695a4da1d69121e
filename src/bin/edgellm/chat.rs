//! `edgellm chat`: a conversation, one line a message.

use crate::args::ChatArgs;
use crate::failure::Failure;
use crate::generate::{chat_tokens, generate, message, tokenizer};
use crate::interrupt;
use edgellm::{Error, Finish, Session};
use serde_json::Value;
use std::io::{BufRead, IsTerminal, Read, Write};

/// Bytes a line may have: a pipe without newlines must not fill the memory.
const LINE_BYTES_MAX: u64 = 1 << 20;
const TEMPERATURE: f32 = 0.7;

/// Runs the command.
pub fn chat(args: &ChatArgs) -> Result<(), Failure> {
    let model = args.load.load()?;
    let tokenizer = tokenizer(&model)?;
    let options = args.sampling.session();
    let mut session = Session::new(&model, &options)?;
    session.set_sampling(&args.sampling.sampling(TEMPERATURE))?;
    interrupt::install(session.control())?;

    let opening: Vec<Value> = args.system.iter().map(|system| message("system", system)).collect();
    let mut messages = opening.clone();
    let mut input = std::io::stdin().lock();
    let mut out = std::io::stdout().lock();
    let people = input.is_terminal() && out.is_terminal();
    loop {
        if people {
            write!(out, "> ")?;
            out.flush()?;
        }
        let Some(line) = read_line(&mut input)? else {
            if people {
                writeln!(out)?; // The shell's prompt goes on a line of its own.
            }
            return Ok(());
        };
        match line.trim() {
            "" => continue,
            "/exit" => return Ok(()),
            "/clear" => {
                messages.clone_from(&opening);
                continue;
            }
            _ => messages.push(message("user", &line)),
        }

        // The whole conversation again: `prompt` keeps what the session already has of it.
        let tokens = chat_tokens(tokenizer, &messages)?;
        match session.prompt(&tokens) {
            Err(error @ Error::Context { .. }) => {
                messages.pop();
                let _ = writeln!(std::io::stderr(), "edgellm: {error}: /clear starts anew, --ctx makes more room");
                continue;
            }
            result => result?,
        };
        let answer = interrupt::answering(|| generate(&mut session, &mut out))?;
        writeln!(out)?;
        if answer.finish == Some(Finish::Length) && people {
            let _ = writeln!(std::io::stderr(), "(cut: -n tokens, or the context is full)");
        }
        messages.push(message("assistant", &answer.text));
    }
}

/// The next line without its end; None at the end of the input.
fn read_line(input: &mut impl BufRead) -> Result<Option<String>, Failure> {
    let mut line = String::new();
    let read = input.take(LINE_BYTES_MAX).read_line(&mut line);
    let read = read.map_err(|error| Failure::new(format_args!("stdin: {error}")))?;
    if read == 0 {
        return Ok(None);
    }
    if read as u64 == LINE_BYTES_MAX && !line.ends_with('\n') {
        return Err(Failure::new(format_args!("stdin: a line may have at most {LINE_BYTES_MAX} bytes")));
    }
    line.truncate(line.trim_end_matches(['\r', '\n']).len());
    Ok(Some(line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_lose_their_ends_and_the_last_needs_none() {
        let mut input = &b"one\r\n\ntwo"[..];
        let mut next = || read_line(&mut input).unwrap();
        assert_eq!(next().as_deref(), Some("one"));
        assert_eq!(next().as_deref(), Some(""));
        assert_eq!(next().as_deref(), Some("two"));
        assert_eq!(next(), None);
    }

    #[test]
    fn a_line_without_end_is_refused() {
        let mut input = std::io::BufReader::new(std::io::repeat(b'a'));
        assert!(matches!(read_line(&mut input), Err(Failure::Message(message)) if message.contains("at most")));
    }
}
