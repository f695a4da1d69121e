//! Rust source with what is not code blanked out, so that the rules can look for words and braces.

/// A copy of the same length and lines, with comments, strings and character literals turned into spaces.
pub fn code(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = not_code(bytes, at);
        for byte in &mut out[at..end] {
            if *byte != b'\n' {
                *byte = b' ';
            }
        }
        at = end.max(at + 1);
    }
    String::from_utf8(out).unwrap() // Whole literals and comments went, so whole characters.
}

/// Where the comment or literal that starts at `at` ends; `at` itself when none starts there.
fn not_code(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    let until = |found: Option<usize>| found.map_or(bytes.len(), |len| at + len);
    match rest {
        [b'/', b'/', ..] => until(rest.iter().position(|byte| *byte == b'\n')),
        [b'/', b'*', ..] => until(block_comment(rest)),
        [b'"', ..] => until(quoted(rest, b'"')),
        [b'\'', b'\\', ..] => until(quoted(rest, b'\'')),
        [b'\'', first, tail @ ..] => {
            // `'x'` is a character, `'x` a lifetime.
            let more = first.leading_ones().saturating_sub(1) as usize;
            if tail.get(more) == Some(&b'\'') { at + more + 3 } else { at }
        }
        [b'r', ..] if !at.checked_sub(1).is_some_and(|before| in_word(bytes[before]) && bytes[before] != b'b') => {
            let hashes = rest[1..].iter().take_while(|byte| **byte == b'#').count();
            if rest.get(1 + hashes) != Some(&b'"') {
                return at;
            }
            let end = [b"\"".as_slice(), &b"#".repeat(hashes)].concat();
            let body = 2 + hashes;
            until(rest[body..].windows(end.len()).position(|window| window == end).map(|len| body + len + end.len()))
        }
        _ => at,
    }
}

fn block_comment(rest: &[u8]) -> Option<usize> {
    let (mut depth, mut at) = (0, 0);
    loop {
        match rest.get(at..at + 2)? {
            b"/*" => (depth, at) = (depth + 1, at + 2),
            b"*/" if depth == 1 => return Some(at + 2),
            b"*/" => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
    }
}

fn quoted(rest: &[u8], quote: u8) -> Option<usize> {
    let mut at = 1;
    loop {
        match rest.get(at)? {
            b'\\' => at += 2,
            byte if *byte == quote => return Some(at + 1),
            _ => at += 1,
        }
    }
}

/// `code` without its `#[cfg(test)] mod … { … }`, blanked as well.
pub fn without_tests(code: &str) -> String {
    let mut out = code.to_owned();
    for at in words(code, "#[cfg(test)]") {
        let rest = &code[at..];
        let Some(open) = rest.find('{') else { continue };
        if words(&rest[..open], "mod").is_empty() || rest[..open].contains(';') {
            continue;
        }
        let end = at + block_end(rest, open);
        let blank: String = code[at..end].chars().map(|char| if char == '\n' { '\n' } else { ' ' }).collect();
        out.replace_range(at..end, &blank);
    }
    out
}

/// One past the brace that closes the one at `open`.
pub fn block_end(code: &str, open: usize) -> usize {
    let mut depth = 0;
    for (at, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' if depth == 1 => return at + 1,
            b'}' => depth -= 1,
            _ => {}
        }
    }
    code.len()
}

/// Where `word` stands as a word of its own (ends that are punctuation may touch anything).
pub fn words(code: &str, word: &str) -> Vec<usize> {
    let edge = |byte: Option<&u8>, end: Option<u8>| !(end.is_some_and(in_word) && byte.copied().is_some_and(in_word));
    let bytes = code.as_bytes();
    let alone = |at: &usize| {
        let before = at.checked_sub(1).and_then(|before| bytes.get(before));
        edge(before, word.bytes().next()) && edge(bytes.get(at + word.len()), word.bytes().last())
    };
    code.match_indices(word).map(|(at, _)| at).filter(alone).collect()
}

/// The identifier at the start of `text`, empty when there is none.
pub fn identifier(text: &str) -> &str {
    &text[..text.bytes().take_while(|byte| in_word(*byte)).count()]
}

/// The line (from 1) of a byte.
pub fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes()[..at].iter().filter(|byte| **byte == b'\n').count() + 1
}

fn in_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

#[test]
fn comments_and_literals_are_blanked_and_nothing_else() {
    let cases = [
        ("a // b\nc", "a     \nc"),
        ("a /* b /* c */ \n d */ e", "a              \n      e"),
        (r#"f("x\"y", 'z', '\'', 'é')"#, "f(      ,    ,     ,     )"),
        ("r#\"a\"b\"# + br\"c\" + for\"d\"", "         + b     + for   "),
        ("fn f<'a>(x: &'a u8, 'static)", "fn f<'a>(x: &'a u8, 'static)"),
        ("\"open", "     "),
    ];
    for (text, expected) in cases {
        assert_eq!(code(text), expected, "{text}");
    }
}

#[test]
fn test_modules_are_blanked_and_their_neighbours_stay() {
    let text = "a;\n#[cfg(test)]\nmod tests { fn f() { {} } }\nb; #[cfg(test)] mod x; #[cfg(test)] fn g() {}";
    let found = without_tests(text);
    assert_eq!(found.len(), text.len());
    assert!(!found.contains("tests") && !found.contains("f()"), "{found}");
    assert!(found.starts_with("a;\n") && found.ends_with("\nb; #[cfg(test)] mod x; #[cfg(test)] fn g() {}"), "{found}");
}

#[test]
fn words_stand_alone() {
    assert_eq!(words("print! eprint! println! static", "print!"), [0]);
    assert_eq!(words("unsafely unsafe not_unsafe", "unsafe"), [9]);
}
