//! The text of a run: whole characters, and nothing of a stop text.

use crate::tokenizer::{Tokenizer, Utf8Stream};
use crate::{Error, Result};

/// Turns the bytes of tokens into text that may be shown. Memory is asked for in `set_stops` only.
pub struct TextOut {
    /// None: the model has no vocabulary, and there is no text.
    stream: Option<Utf8Stream>,
    longest_push: usize,
    stops: Vec<String>,
    /// What might be the beginning of a stop text.
    held: String,
    /// What the last call made presentable.
    out: String,
}

impl TextOut {
    pub fn new(tokenizer: Option<&Tokenizer>) -> Result<Self> {
        let longest = tokenizer.map_or(0, Tokenizer::longest_token);
        let stream = tokenizer.map(|_| Utf8Stream::new(longest)).transpose()?;
        // Each byte may become a U+FFFD of 3 bytes; up to 3 bytes wait for the rest of a character.
        let longest_push = 3 * (longest + 3);
        let mut text = TextOut { stream, longest_push, stops: Vec::new(), held: String::new(), out: String::new() };
        text.set_stops(&[])?;
        Ok(text)
    }

    /// A new one that stands where another did that had these stop texts, and of which [`TextOut::waiting`] said this; None
    /// when none can have.
    pub fn resumed(
        tokenizer: Option<&Tokenizer>,
        stops: &[String],
        (pending, held): (&[u8], &str),
    ) -> Result<Option<Self>> {
        let mut text = TextOut::new(tokenizer)?;
        text.set_stops(stops)?;
        if held.len() + text.longest_push > text.held.capacity() {
            return Ok(None);
        }
        for byte in pending {
            match text.stream.as_mut().map(|stream| stream.push(&[*byte])) {
                Some(Ok("")) => {}
                _ => return Ok(None),
            }
        }
        text.held.push_str(held);
        Ok(Some(text))
    }

    /// What has come and is not shown yet: bytes of an unfinished character, and text that may become a stop text.
    pub fn waiting(&self) -> (&[u8], &str) {
        (self.stream.as_ref().map_or(&[], Utf8Stream::pending), &self.held)
    }

    /// Sets the texts that end a run.
    pub fn set_stops(&mut self, stops: &[String]) -> Result<()> {
        let longest_stop = stops.iter().map(String::len).max().unwrap_or(0);
        let bytes = self.held.len() + longest_stop + 2 * self.longest_push;
        for buffer in [&mut self.held, &mut self.out] {
            let more = bytes.saturating_sub(buffer.len());
            buffer.try_reserve(more).map_err(|_| Error::NoMemory { what: "a session's text", bytes })?;
        }
        self.stops = stops.to_vec();
        Ok(())
    }

    /// Forgets everything: a new run.
    pub fn clear(&mut self) {
        self.held.clear();
        self.out.clear();
        if let Some(stream) = &mut self.stream {
            stream.clear();
        }
    }

    /// No text for this step.
    pub fn silence(&mut self) {
        self.out.clear();
    }

    /// Takes the bytes of a token; true when the text has come to a stop text, which is not shown.
    pub fn push(&mut self, bytes: &[u8]) -> Result<bool> {
        self.out.clear();
        let Some(stream) = &mut self.stream else { return Ok(false) };
        self.held.push_str(stream.push(bytes)?);
        Ok(self.settle())
    }

    /// The run is over: all that was held back may be shown as well.
    pub fn finish(&mut self) {
        if let Some(stream) = &mut self.stream {
            self.held.push_str(stream.finish());
        }
        self.out.push_str(&self.held);
        self.held.clear();
    }

    /// What the last call made presentable.
    pub fn shown(&self) -> &str {
        &self.out
    }

    /// Moves text from `held` to `out`: up to a stop text, or up to what may become one.
    fn settle(&mut self) -> bool {
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.out.push_str(&self.held[..at]);
            self.held.clear();
            return true;
        }
        let waits = |tail: &str| self.stops.iter().any(|stop| stop.starts_with(tail));
        let keep = self.held.char_indices().map(|(at, _)| at).find(|&at| waits(&self.held[at..]));
        let show = keep.unwrap_or(self.held.len());
        self.out.push_str(&self.held[..show]);
        self.held.drain(..show);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All that is shown for these pieces, and whether a stop text ended it.
    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut text = TextOut {
            stream: Some(Utf8Stream::new(64).expect("memory")),
            longest_push: 3 * 67,
            stops: Vec::new(),
            held: String::new(),
            out: String::new(),
        };
        text.set_stops(&stops.iter().map(|stop| stop.to_string()).collect::<Vec<_>>()).expect("memory");
        let mut shown = Vec::new();
        for piece in pieces {
            let stopped = text.push(piece.as_bytes()).expect("short pieces");
            shown.push(text.shown().to_owned());
            if stopped {
                return (shown, true);
            }
        }
        text.silence();
        text.finish();
        shown.push(text.shown().to_owned());
        (shown, false)
    }

    #[test]
    fn a_stop_text_is_never_shown_however_it_is_cut() {
        assert_eq!(run(&["END"], &["abEN", "D cd"]), (vec!["ab".into(), "".into()], true));
        assert_eq!(run(&["END", "b"], &["abEND"]), (vec!["a".into()], true));
        assert_eq!(run(&["aab"], &["a", "a", "a", "b"]).0, ["", "", "a", ""]);
    }

    #[test]
    fn what_was_only_held_back_comes_out() {
        assert_eq!(run(&["END"], &["EN", "x", "E"]), (vec!["".into(), "ENx".into(), "".into(), "E".into()], false));
        assert_eq!(run(&[], &["é", "!"]).0, ["é", "!", ""]);
    }
}
