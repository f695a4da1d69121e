//! The tokenizer against llama.cpp's tokens, against hostile files, and against itself.

use edgellm::Error;
use edgellm::file::{Array, Metadata, ModelFile, Source, Value};
use edgellm::tokenizer::Tokenizer;
use proptest::prelude::*;
use std::path::Path;
use std::sync::OnceLock;

const FAMILIES: [&str; 5] = ["qwen2", "llama-bpe", "smaug-bpe", "smollm", "gpt-2"];

fn data(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tokenizer").join(name)
}

fn metadata(path: &Path) -> Metadata {
    ModelFile::open(Source::Path(path), true).unwrap().metadata
}

fn set(metadata: &mut Metadata, key: &str, value: Option<Value>) {
    let mut entries = metadata.entries().to_vec();
    entries.retain(|(known, _)| known != key);
    entries.extend(value.map(|value| (key.to_owned(), value)));
    *metadata = Metadata::new(entries).unwrap();
}

fn strings<T: AsRef<[u8]>>(items: &[T]) -> Value {
    Value::Array(Array::of_strings(items.iter().map(AsRef::as_ref)))
}

fn ints(items: &[i32]) -> Value {
    Value::Array(Array::of_i32(items))
}

/// The committed vocabulary under a pre-tokenizer.
fn small(pre: &str) -> Tokenizer {
    let mut metadata = metadata(&data("small-vocab.bin"));
    set(&mut metadata, PRE, Some(Value::String(pre.into())));
    Tokenizer::from_metadata(&metadata).unwrap().unwrap()
}

fn families() -> &'static [(&'static str, Tokenizer)] {
    static ALL: OnceLock<Vec<(&str, Tokenizer)>> = OnceLock::new();
    ALL.get_or_init(|| FAMILIES.into_iter().map(|family| (family, small(family))).collect())
}

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";

fn golden() -> serde_json::Value {
    serde_json::from_str(&std::fs::read_to_string(data("tokens.json")).unwrap()).unwrap()
}

fn ids(value: &serde_json::Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

fn assert_golden(name: &str, tokenizer: &Tokenizer, texts: &serde_json::Value, expected: &serde_json::Value) {
    let texts = texts.as_array().unwrap();
    assert!(texts.len() >= 300);
    for (index, text) in texts.iter().enumerate() {
        let text = text.as_str().unwrap();
        let plain = ids(&expected["plain"][index]);
        let special = expected["special"].get(index.to_string()).map_or(plain.clone(), ids);
        assert_eq!(tokenizer.encode(text, false, false).unwrap(), plain, "{name}: {text:?}");
        // llama.cpp takes this ordinary token of Qwen's (HTML) for the end of a text; Qwen's own tokenizer does not.
        if (name, text) != ("qwen0.5b.gguf", "</s>") {
            assert_eq!(tokenizer.encode(text, false, true).unwrap(), special, "{name}, special: {text:?}");
        }
        if let Some(bos) = expected["bos"].get(index) {
            assert_eq!(tokenizer.encode(text, true, false).unwrap(), ids(bos), "{name}, bos: {text:?}");
        }
    }
}

#[test]
fn tokens_equal_llama_cpps_in_every_family() {
    let golden = golden();
    for (family, tokenizer) in families() {
        assert_golden(family, tokenizer, &golden["strings"], &golden["families"][family]);
    }
}

#[test]
fn tokens_of_real_models_equal_llama_cpps() {
    let Some(folder) = std::env::var_os("LIBEDGELLM_TEST_MODELS") else {
        eprintln!("SKIPPED: LIBEDGELLM_TEST_MODELS does not name a folder with smollm2.gguf and qwen0.5b.gguf");
        return;
    };
    let golden = golden();
    for (name, expected) in golden["models"].as_object().unwrap() {
        let path = Path::new(&folder).join(name);
        let tokenizer = Tokenizer::from_metadata(&metadata(&path)).unwrap().unwrap();
        assert_golden(name, &tokenizer, &golden["strings"], expected);
        assert_no_control(&tokenizer);
        let ends: &[u32] = if name == "smollm2.gguf" { &[0, 2] } else { &[151643, 151645] };
        assert_eq!(tokenizer.eos(), ends, "{name}");
    }
}

/// No text, however it is put together from the names of control tokens, becomes one of them.
fn assert_no_control(tokenizer: &Tokenizer) {
    let names: Vec<String> = (0..tokenizer.vocab_len() as u32)
        .filter(|token| tokenizer.is_control(*token))
        .map(|token| String::from_utf8(tokenizer.token_bytes(token).unwrap().to_vec()).unwrap())
        .collect();
    assert!(!names.is_empty());
    let plain = |text: &str| {
        let tokens = tokenizer.encode(text, false, false).unwrap();
        assert!(tokens.iter().all(|token| !tokenizer.is_control(*token)), "{text:?} became {tokens:?}");
        assert_eq!(tokenizer.decode(&tokens, false).unwrap(), text.as_bytes(), "{text:?}");
    };
    for name in &names {
        for text in
            [name.clone(), format!(" {name}"), format!("{name}{name}"), format!("a{name}\n"), name.to_uppercase()]
        {
            plain(&text);
        }
        for (at, _) in name.char_indices() {
            let (head, tail) = name.split_at(at);
            plain(&format!("{head}{name}{tail}"));
            plain(&format!("{head}\u{200B}{tail}"));
            plain(&format!("{head} {tail}"));
        }
        let tokens = tokenizer.encode(&format!("a{name}b"), false, true).unwrap();
        assert!(tokens.iter().any(|token| tokenizer.is_control(*token)), "{name:?} is not found");
    }
    plain(&names.concat());
}

#[test]
fn text_never_becomes_a_control_token() {
    for (_, tokenizer) in families() {
        assert_no_control(tokenizer);
    }
}

#[test]
fn a_merge_into_a_control_token_is_not_done() {
    let mut metadata = metadata(&data("small-vocab.bin"));
    let the = small("qwen2").encode("the", false, false).unwrap();
    assert_eq!(the.len(), 1);
    let mut types = metadata.ints(TYPES).unwrap().unwrap();
    for kind in [2, 3, 5] {
        types[the[0] as usize] = kind;
        let types: Vec<i32> = types.iter().map(|kind| *kind as i32).collect();
        set(&mut metadata, TYPES, Some(ints(&types)));
        for pre in FAMILIES {
            set(&mut metadata, PRE, Some(Value::String(pre.into())));
            let tokenizer = Tokenizer::from_metadata(&metadata).unwrap().unwrap();
            let tokens = tokenizer.encode("the", false, false).unwrap();
            assert!(tokens.len() > 1 && !tokens.contains(&the[0]));
            assert_eq!(tokenizer.decode(&tokens, false).unwrap(), b"the");
        }
    }
}

#[test]
fn bos_and_eos_are_added_as_the_file_says_and_never_twice() {
    let mut metadata = metadata(&data("small-vocab.bin"));
    let plain = small("gpt-2").encode("Hi", false, false).unwrap();
    let (bos, eos) = (small("gpt-2").bos().unwrap(), small("gpt-2").encode("<|im_end|>", false, true).unwrap()[0]);
    assert_eq!(small("gpt-2").encode("Hi", true, false).unwrap(), plain);
    assert_eq!(small("llama-bpe").encode("Hi", true, false).unwrap(), [&[bos], &plain[..]].concat());
    for key in ["tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token"] {
        set(&mut metadata, key, Some(Value::Bool(true)));
    }
    let tokenizer = Tokenizer::from_metadata(&metadata).unwrap().unwrap();
    let framed = [&[bos], &plain[..], &[eos]].concat();
    assert_eq!(tokenizer.encode("Hi", true, false).unwrap(), framed);
    assert_eq!(tokenizer.encode("<|begin_of_text|>Hi<|im_end|>", true, true).unwrap(), framed);
    assert_eq!(tokenizer.encode("Hi", false, true).unwrap(), plain);
    assert_eq!(tokenizer.encode("", true, false).unwrap(), [bos, eos]);
    // The file's own EOS, and those known by name.
    let names: Vec<&[u8]> = tokenizer.eos().iter().map(|token| tokenizer.token_bytes(*token).unwrap()).collect();
    assert_eq!(names, [&b"<|endoftext|>"[..], b"<|im_end|>", b"<|eot_id|>"]);
}

#[test]
fn decode_leaves_out_control_tokens_and_refuses_what_is_no_token() {
    let tokenizer = small("qwen2");
    let tokens = tokenizer.encode("<|im_start|>a<think> b<|im_end|>", false, true).unwrap();
    assert_eq!(tokenizer.decode(&tokens, false).unwrap(), b"a<think> b");
    assert_eq!(tokenizer.decode(&tokens, true).unwrap(), b"<|im_start|>a<think> b<|im_end|>");
    let out = tokenizer.vocab_len() as u32;
    assert_eq!(tokenizer.token_bytes(out), None);
    assert!(!tokenizer.is_control(out));
    for token in [out, u32::MAX] {
        let error = tokenizer.decode(&[0, token], true).unwrap_err();
        assert!(matches!(&error, Error::Argument(text) if text.contains(&format!("token {token} at 1"))), "{error}");
    }
    let longest = (0..out).map(|token| tokenizer.token_bytes(token).unwrap().len()).max();
    assert_eq!(Some(tokenizer.longest_token()), longest);
}

#[test]
fn a_file_without_vocabulary_has_no_tokenizer() {
    assert!(Tokenizer::from_metadata(&Metadata::default()).unwrap().is_none());
    let mut metadata = Metadata::default();
    set(&mut metadata, MODEL, Some(Value::String("no_vocab".into())));
    assert!(Tokenizer::from_metadata(&metadata).unwrap().is_none());
}

#[test]
fn what_is_not_supported_is_refused_by_name() {
    for (key, value, expected) in [
        (MODEL, Some("llama"), "\"llama\""),
        (PRE, Some("default"), "\"default\""),
        (PRE, Some("tekken"), "\"tekken\""),
        (PRE, Some(""), "\"\""),
        (PRE, None, "no tokenizer.ggml.pre"),
    ] {
        let mut metadata = metadata(&data("small-vocab.bin"));
        set(&mut metadata, key, value.map(|value| Value::String(value.into())));
        let error = Tokenizer::from_metadata(&metadata).err().unwrap();
        assert!(matches!(&error, Error::Unsupported(text) if text.contains(expected)), "{error}");
    }
}

#[test]
fn bitnet_files_with_the_vocabulary_of_llama_3_need_no_pre_tokenizer() {
    let mut metadata = metadata(&data("small-vocab.bin"));
    let tokens = metadata.strings(TOKENS).unwrap().unwrap();
    let mut tokens: Vec<Vec<u8>> = tokens.iter().map(<[u8]>::to_vec).collect();
    let mut types: Vec<i32> = metadata.ints(TYPES).unwrap().unwrap().iter().map(|&kind| kind as i32).collect();
    tokens.iter_mut().filter(|token| *token == b"<|begin_of_text|>").for_each(|token| *token = b"[MOVED]".to_vec());
    tokens.extend((tokens.len()..128_000).map(|i| format!("[UNUSED_{i}]").into_bytes()));
    types.resize(tokens.len(), 5);
    tokens.push(b"<|begin_of_text|>".to_vec());
    types.push(3);
    set(&mut metadata, TYPES, Some(ints(&types)));
    set(&mut metadata, PRE, None);
    let mut load = |architecture: &str, last: &[u8]| {
        *tokens.last_mut().unwrap() = last.to_vec();
        set(&mut metadata, TOKENS, Some(strings(&tokens)));
        set(&mut metadata, "general.architecture", Some(Value::String(architecture.into())));
        Tokenizer::from_metadata(&metadata).map(Option::unwrap)
    };
    let text = "1234567 it's  here\n\n.";
    for architecture in ["bitnet-b1.58", "bitnet-25"] {
        let tokenizer = load(architecture, b"<|begin_of_text|>").unwrap();
        let expected = small("llama-bpe").encode(text, false, false).unwrap();
        assert_eq!(tokenizer.encode(text, false, false).unwrap(), expected);
        assert_ne!(small("qwen2").encode(text, false, false).unwrap(), expected);
    }
    assert!(load("bitnet-b1.58", b"<|other|>").is_err() && load("llama", b"<|begin_of_text|>").is_err());
}

/// What a damage does to the token texts, their types and the merges.
type Damage = fn(&mut Vec<Vec<u8>>, &mut Vec<i32>, &mut Vec<Vec<u8>>);

#[test]
fn damaged_vocabularies_are_refused_with_key_and_index() {
    let cases: &[(&str, Damage)] = &[
        ("tokens[7] is empty", |tokens, _, _| tokens[7].clear()),
        ("tokens[9] repeats tokenizer.ggml.tokens[5]", |tokens, _, _| tokens[9] = tokens[5].clone()),
        ("no token for the byte 0x61 (\"a\")", |tokens, _, _| {
            let at = tokens.iter().position(|token| token == b"a").unwrap();
            tokens[at] = b"\xFF\xFE".to_vec();
        }),
        ("no token for the byte 0x20", |tokens, types, _| {
            types[tokens.iter().position(|token| token == "Ġ".as_bytes()).unwrap()] = 3;
        }),
        ("token_type has 3 entries", |_, types, _| types.truncate(3)),
        ("token_type[4] is 77", |_, types, _| types[4] = 77),
        ("token_type[0] is -1", |_, types, _| types[0] = -1),
        ("merges[3] \"ab\" is not two tokens", |_, _, merges| merges[3] = b"ab".to_vec()),
        ("merges[0] \"\" is not two tokens", |_, _, merges| merges[0].clear()),
        ("merges[2] \"a\" is not two tokens", |_, _, merges| merges[2] = b"a".to_vec()),
        ("merges[2] \" \" is not two tokens", |_, _, merges| merges[2] = b" ".to_vec()),
        ("merges[2] \"a \" is not two tokens", |_, _, merges| merges[2] = b"a ".to_vec()),
        ("merges[5] \"nosuch a\" needs the token \"nosuch\"", |_, _, merges| merges[5] = b"nosuch a".to_vec()),
        ("merges[5] \"a \\0\" needs the token", |_, _, merges| merges[5] = b"a \0".to_vec()),
        ("merges[5] \"a b c\" needs the token \"b c\"", |_, _, merges| merges[5] = b"a b c".to_vec()),
        ("needs the token \"zqxzqx\"", |_, _, merges| merges[1] = b"zqx zqx".to_vec()),
        ("is not UTF-8", |_, _, merges| merges[1] = b"a \xFF".to_vec()),
        ("merges[4] \"", |_, _, merges| merges[4] = merges[1].clone()),
        ("has no token for the byte", |tokens, types, merges| {
            tokens.clear();
            types.clear();
            merges.clear();
        }),
    ];
    let good = metadata(&data("small-vocab.bin"));
    let owned = |key| good.strings(key).unwrap().unwrap().iter().map(|text| text.to_vec()).collect::<Vec<_>>();
    for (expected, damage) in cases {
        let (mut tokens, mut merges) = (owned(TOKENS), owned(MERGES));
        let mut types: Vec<i32> = good.ints(TYPES).unwrap().unwrap().iter().map(|kind| *kind as i32).collect();
        damage(&mut tokens, &mut types, &mut merges);
        let mut bad = good.clone();
        for key in ["tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id"] {
            set(&mut bad, key, None);
        }
        set(&mut bad, TOKENS, Some(strings(&tokens)));
        set(&mut bad, TYPES, Some(ints(&types)));
        set(&mut bad, MERGES, Some(strings(&merges)));
        let error = Tokenizer::from_metadata(&bad).err().unwrap_or_else(|| panic!("accepted: {expected}"));
        assert!(matches!(&error, Error::Format(text) if text.contains(expected)), "{error}, not {expected}");
    }
}

#[test]
fn wrong_types_missing_keys_and_wild_ids_are_refused() {
    let good = metadata(&data("small-vocab.bin"));
    let count = small("qwen2").vocab_len() as u32;
    for (key, value) in [
        (TOKENS, None),
        (MERGES, None),
        (TOKENS, Some(ints(&[1, 2]))),
        (TOKENS, Some(Value::U32(1))),
        (MERGES, Some(Value::String("a b".into()))),
        (TYPES, Some(strings(&["1"]))),
        (MODEL, Some(Value::U32(1))),
        (PRE, Some(Value::Bool(true))),
        ("tokenizer.ggml.bos_token_id", Some(Value::U32(count))),
        ("tokenizer.ggml.eos_token_id", Some(Value::U32(u32::MAX))),
        ("tokenizer.ggml.eot_token_id", Some(Value::U64(u64::MAX))),
        ("tokenizer.ggml.eom_token_id", Some(Value::I32(-1))),
        ("tokenizer.ggml.add_bos_token", Some(Value::U32(1))),
        ("tokenizer.chat_template", Some(Value::U32(1))),
    ] {
        let mut bad = good.clone();
        set(&mut bad, key, value.clone());
        let error = Tokenizer::from_metadata(&bad).err().unwrap_or_else(|| panic!("accepted: {key} {value:?}"));
        assert!(matches!(&error, Error::Format(text) if text.contains(key)), "{key} {value:?}: {error}");
    }
    let mut bad = good.clone();
    set(&mut bad, "tokenizer.ggml.bos_token_id", None);
    set(&mut bad, "tokenizer.ggml.add_bos_token", Some(Value::Bool(true)));
    assert!(
        matches!(Tokenizer::from_metadata(&bad), Err(Error::Format(text)) if text.contains("add_bos_token is true"))
    );
}

#[test]
fn bytes_without_a_token_are_left_out_and_nothing_else() {
    let mut metadata = metadata(&data("small-vocab.bin"));
    let mut tokens: Vec<Vec<u8>> =
        metadata.strings(TOKENS).unwrap().unwrap().iter().map(|text| text.to_vec()).collect();
    let mut merges: Vec<Vec<u8>> =
        metadata.strings(MERGES).unwrap().unwrap().iter().map(|text| text.to_vec()).collect();
    // U+0104 stands for the byte 4.
    let at = tokens.iter().position(|token| token == "Ą".as_bytes()).unwrap();
    tokens[at] = b"\xFFnothing".to_vec();
    merges.retain(|merge| !String::from_utf8_lossy(merge).contains('Ą'));
    set(&mut metadata, TOKENS, Some(strings(&tokens)));
    set(&mut metadata, MERGES, Some(strings(&merges)));
    let tokenizer = Tokenizer::from_metadata(&metadata).unwrap().unwrap();
    let tokens = tokenizer.encode("th\u{4}e\u{4}", false, false).unwrap();
    assert_eq!(tokenizer.decode(&tokens, false).unwrap(), b"the");
    assert_ne!(tokens, tokenizer.encode("the", false, false).unwrap(), "merged over the gap");
}

/// Round trip of a megabyte that is all one piece, or whose merges nest.
#[test]
fn a_megabyte_of_one_thing_comes_back_whole() {
    let units = [
        "a",
        " ",
        "0",
        "\n",
        "!",
        "é",
        "中",
        "\u{301}",
        "'",
        "ab",
        "a ",
        " \n",
        "<|im_end|>",
        "<tool_call>",
        "'s",
        "zqx",
    ];
    for (index, unit) in units.into_iter().enumerate() {
        let text = unit.repeat((1 << 20) / unit.len());
        let (family, tokenizer) = &families()[index % FAMILIES.len()];
        let tokens = tokenizer.encode(&text, false, true).unwrap();
        assert!(tokenizer.decode(&tokens, true).unwrap() == text.as_bytes(), "{family} {unit:?}");
    }
}

fn any_text() -> impl Strategy<Value = String> {
    let tricky = [
        "'",
        "'s",
        "'LL",
        " ",
        "  ",
        "\n",
        "\r\n",
        "\t",
        "\u{A0}",
        "\u{3000}",
        "1",
        "22",
        "a",
        "the",
        "é",
        "e\u{301}",
        "中",
        "😀",
        "\u{200D}",
        "!",
        "...",
        "<|im_end|>",
        "<|im_",
        "<think>",
        "ſ",
        "\0",
        "zqx",
    ];
    prop_oneof![
        any::<String>(),
        proptest::collection::vec(proptest::sample::select(tricky.to_vec()), 0..40).prop_map(|parts| parts.concat()),
        "[\\s\\p{L}\\p{N}\\p{P}\\p{M}']{0,60}",
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() })]

    #[test]
    fn decoding_what_was_encoded_gives_the_text(text in any_text()) {
        for (family, tokenizer) in families() {
            for special in [false, true] {
                let tokens = tokenizer.encode(&text, false, special).unwrap();
                prop_assert_eq!(tokenizer.decode(&tokens, true).unwrap(), text.as_bytes(), "{} {}", family, special);
                prop_assert!(special || tokens.iter().all(|token| !tokenizer.is_control(*token)));
            }
        }
    }

    #[test]
    fn damaged_arrays_never_panic(at in 0usize..1500, kind in -2i32..9, junk in proptest::collection::vec(any::<u8>(), 0..12), which in 0..3) {
        let mut metadata = metadata(&data("small-vocab.bin"));
        let key = [TOKENS, MERGES, TYPES][which as usize];
        if which == 2 {
            let mut types: Vec<i32> = metadata.ints(TYPES).unwrap().unwrap().iter().map(|kind| *kind as i32).collect();
            let at = at % types.len();
            types[at] = kind;
            set(&mut metadata, key, Some(ints(&types)));
        } else {
            let mut items: Vec<Vec<u8>> = metadata.strings(key).unwrap().unwrap().iter().map(|item| item.to_vec()).collect();
            let at = at % items.len();
            items[at] = junk;
            set(&mut metadata, key, Some(strings(&items)));
        }
        if let Ok(Some(tokenizer)) = Tokenizer::from_metadata(&metadata) {
            let tokens = tokenizer.encode("the <|im_end|> ÿ", true, true).unwrap();
            tokenizer.decode(&tokens, true).unwrap();
        }
    }
}
