//! What `run` and `chat` share: a prompt into tokens, and tokens into text that streams.

use crate::failure::Failure;
use edgellm::tokenizer::Tokenizer;
use edgellm::{Error, EventKind, Finish, Model, Session};
use std::io::Write;

/// The text of one run and why it ended.
pub struct Answer {
    /// Generated tokens, without the one that ended the text.
    pub ids: Vec<u32>,
    pub text: String,
    /// None: cancelled.
    pub finish: Option<Finish>,
}

/// The model's tokenizer, or why there is none.
pub fn tokenizer(model: &Model) -> Result<&Tokenizer, Failure> {
    model.tokenizer().ok_or_else(|| Failure::new("this model file has no vocabulary: it can be benched, not prompted"))
}

/// The tokens of a conversation as the model's chat template writes it, up to where the answer begins.
pub fn chat_tokens(tokenizer: &Tokenizer, messages: &[serde_json::Value]) -> Result<Vec<u32>, Failure> {
    let text = tokenizer.render_chat(&serde_json::Value::from(messages).to_string(), None, None)?;
    Ok(tokenizer.encode(&text, true, true)?)
}

/// A chat message as the templates want it.
pub fn message(role: &str, content: &str) -> serde_json::Value {
    serde_json::json!({ "role": role, "content": content })
}

/// Runs the session to the end of its run (or until it is cancelled), writing text to `out` as it comes.
pub fn generate(session: &mut Session, out: &mut dyn Write) -> Result<Answer, Failure> {
    let mut answer = Answer { ids: Vec::new(), text: String::new(), finish: None };
    loop {
        let event = match session.step(None) {
            Ok(event) => event,
            Err(Error::Cancelled) => return Ok(answer),
            Err(error) => return Err(error.into()),
        };
        if !event.text.is_empty() {
            out.write_all(event.text.as_bytes())?;
            out.flush()?;
            answer.text.push_str(event.text);
        }
        match event.kind {
            EventKind::Token => answer.ids.extend(event.token),
            EventKind::End => {
                answer.finish = event.finish;
                return Ok(answer);
            }
            EventKind::Prefill | EventKind::Again => {}
        }
    }
}
