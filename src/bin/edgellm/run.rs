//! `edgellm run`: one prompt, one text.

use crate::args::{PromptArgs, RunArgs};
use crate::failure::Failure;
use crate::generate::{chat_tokens, generate, message, tokenizer};
use edgellm::Session;
use std::fs::File;
use std::io::{Read, Write};

/// A prompt longer than this is a mistake (a pipe that does not end), not a prompt.
const PROMPT_BYTES_MAX: u64 = 64 << 20;

/// Runs the command.
pub fn run(args: &RunArgs) -> Result<(), Failure> {
    let prompt = read_prompt(&args.prompt)?; // Before the load: it may be wrong, and it is quick.
    let model = args.load.load()?;
    let tokenizer = tokenizer(&model)?;
    let tokens = if args.chat {
        let system = args.system.iter().map(|system| message("system", system));
        let messages: Vec<_> = system.chain([message("user", &prompt)]).collect();
        chat_tokens(tokenizer, &messages)?
    } else {
        tokenizer.encode(&prompt, true, true)?
    };

    let options = args.sampling.session();
    let mut session = Session::new(&model, &options)?;
    session.set_sampling(&args.sampling.sampling(0.0))?;
    session.prompt(&tokens)?;

    let mut stdout = std::io::stdout().lock();
    if args.token_ids {
        let answer = generate(&mut session, &mut std::io::sink())?;
        let object = serde_json::json!({ "prompt_ids": tokens, "ids": answer.ids, "text": answer.text });
        writeln!(stdout, "{object}")?;
    } else {
        generate(&mut session, &mut stdout)?;
        writeln!(stdout)?;
    }
    stdout.flush()?;
    Ok(())
}

fn read_prompt(args: &PromptArgs) -> Result<String, Failure> {
    if let Some(prompt) = &args.prompt {
        return Ok(prompt.clone());
    }
    let path = args.file.as_deref().unwrap_or("-".as_ref());
    let (name, mut input): (_, Box<dyn Read>) = if path.as_os_str() == "-" {
        ("stdin".to_owned(), Box::new(std::io::stdin()))
    } else {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|error| Failure::new(format_args!("{name}: {error}")))?;
        (name, Box::new(file))
    };
    let mut prompt = String::new();
    let read = (&mut input).take(PROMPT_BYTES_MAX + 1).read_to_string(&mut prompt);
    read.map_err(|error| Failure::new(format_args!("{name}: {error}")))?;
    if prompt.len() as u64 > PROMPT_BYTES_MAX {
        return Err(Failure::new(format_args!("{name}: a prompt may have at most {PROMPT_BYTES_MAX} bytes")));
    }
    if prompt.ends_with('\n') {
        prompt.pop();
    }
    Ok(prompt)
}
