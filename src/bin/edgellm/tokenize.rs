//! `edgellm tokenize`: text to token ids.

use crate::args::TokenizeArgs;
use crate::failure::Failure;
use edgellm::Source;
use edgellm::file::ModelFile;
use edgellm::tokenizer::Tokenizer;
use std::io::Write;

/// Runs the command. Only the header is read: weights of any kind may follow.
pub fn tokenize(args: &TokenizeArgs) -> Result<(), Failure> {
    let file = ModelFile::open(Source::Path(&args.model), true)?;
    let tokenizer = Tokenizer::from_metadata(&file.metadata)?
        .ok_or_else(|| Failure::new(format_args!("{}: the file has no vocabulary", args.model.display())))?;
    let tokens = tokenizer.encode(&args.text, args.bos, args.special)?;
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{}", serde_json::json!(tokens))?;
    stdout.flush()?;
    Ok(())
}
