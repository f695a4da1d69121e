#!/usr/bin/env python3
"""Makes small-vocab.bin and tokens.json: hard strings and the tokens that llama.cpp gives them.

    python make.py smollm2.gguf qwen0.5b.gguf      (llama-cpp-python 0.3.36, tokenizers 0.23.3, gguf 0.19.0)

small-vocab.bin is a GGUF file with a vocabulary and no tensors: 256 bytes and some thousand merges trained on the
strings below. llama.cpp tokenizes every string with it under each supported pre-tokenizer, and with the two models'
own vocabularies. The test runs the former always and the latter when the models are there.
"""

import json
import pathlib
import sys
import tempfile

import gguf
import llama_cpp
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

HERE = pathlib.Path(__file__).parent
FAMILIES = ["qwen2", "llama-bpe", "smaug-bpe", "smollm", "gpt-2"]
CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|eot_id|>", "<|im_start|>system"]
USER = ["<tool_call>", "</tool_call>", "<think>"]
# Tokens that no merge makes: only pre-tokenizers that take whole pieces give them.
UNMERGED = ["zqx", "Ġzqx"]


def strings():
    out = ["", " ", "a", "\n", "\t", "\r\n", "\0", "Hello, world!", "The quick brown fox jumps over the lazy dog."]
    words = ["we'll", "I'M", "they'Ve", "it'S", "can't", "CAN'T", "he'd", "HE'D", "you're", "YOU'RE", "'s", "'S", "''s",
             "'", "''", "'x", "'re'll'd", "o'clock", "'lL", "'rE 'Re", "rock 'n' roll", "don't'", "x'sy", "x'Sy", " 's", "\n'll"]
    digits = ["0", "12", "123", "1234", "12345", "3.14159", "1,234,567", "a1b22c333", "007", "1 2 3", " 42", "  42",
              "42 ", "x42", "x 42", "42x", "٣٤٥", "१२३४", "²³", "½ 1½", "Ⅷ", "①②③④", "１２３４", "𝟘𝟙𝟚𝟛", "1e-10", "0x1F",
              "2024-07-04T12:34:56Z", "1\n2", "1\r\n2", "\t1", "12 345 678", "   7", "7   ", "१ २", "1²3"]
    spaces = ["  ", "   ", "a  b", "a   b", "a \n b", "a\n\nb", "a\n \nb", "\n\n\n", " \n", "\n ", "  \n  ", "\r", "\r\r\n\n",
              "a\r\nb\r\n", "\t\tx", "x\t\t", "\t \t x", "a\u00a0b", "\u00a0", "\u00a0\u00a0x", "\u3000x", "x\u3000\u3000y", "\u2003a",
              "\u2028a\u2029b", "\u0085x", "a\u0085\nb", "\u200bx", "\ufeffx", " \u00a0 x", "\u1680x", "\u202fy\u205fz", "\v\f\v",
              "x \n\n\n  y", "    def f():\n        return 1\n", "\n\n  \n\n", "  \r\n\t\r\n  z", " \t\n\r", "a \t", "!\n", "!\r\n\r\nx",
              "! \n", "?  !", " !", "  !", "\n!", "\u3000!", "a.\n\n\nb", "...\r\r\n", " ...\n x", "\x1c\x1d\x1e\x1f"]
    unicode = ["é", "e\u0301", "ñandú", "n\u0303", "Å Å Å", "ﬁ ﬂ ﬆ", "ß ẞ", "İıſK", "Ǆǅǆ", "中文", "中文分词。测试，", "日本語テキスト",
               "カタカナ ひらがな", "ｶﾀｶﾅ", "한국어 텍스트", "한국어", "עברית", "العربية", "اَلْعَرَبِيَّةُ", "\u202eabc\u202c", "हिन्दी", "தமிழ்", "ภาษาไทย",
               "ქართული", "Ελληνικά", "Русский язык", "Ў ў", "ייִדיש", "ᚠᛇᚻ", "𐍈𐌰", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢", "𠜎𠜱", "Zo\u0335\u0336e\u0337", "a\u0300\u0301\u0302\u0303b",
               "\u0301", " \u0301x", "x\u20e3", "ǅ x", "ªº", "ʰʱ", "ー", "々", "〇", "\u0e33", "\u093e", "क्षत्रिय", "\U0001e900", "\U00010ffff"[:1],
               "\U0010ffff", "\ue000", "\U000e0041", "\ufffd", "\ufffe", "\u00ad", "\u2060", "ÿ", "Ā", "Ġ", "ĠĊ", "Ċ", "ł", "Ń"]
    emoji = ["😀", "😀😀", "a😀b", " 😀", "👩‍👩‍👧‍👦", "👍🏽", "🇩🇪🇫🇷", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "❤️", "☺︎", "1️⃣", "🤷🏿‍♀️", "✨code✨", "→ ⇒ ≠", "∑∫√", "€£¥", "©®™", "…—–", "“quoted”",
             "‘s ’s", "it’s", "IT’S", "※", "█▓▒░", "⠿⠿", "\U0001fae8"]
    code = ["fn main() { println!(\"{}\", 1 + 2); }", "if (a == b && c != d) || !e { x += 1; }", "for i in range(10):\n\tprint(i)\n",
            "#include <stdio.h>\n\nint main(void)\n{\n    return 0;\n}\n", "SELECT * FROM t WHERE a='b';", "<div class=\"x\">&nbsp;</div>",
            "{\"a\": [1, 2.5, null, true], \"b\": {}}", "https://example.com/a?b=c&d=%20#e", "user@example.com", "C:\\path\\to\\file.txt",
            "/* c */ // d", "a->b::c<d>()", "$HOME/${x}", "`code` **bold** _it_", "# Title\n\n- a\n- b\n\n1. c\n", "| a | b |\n|---|---|\n",
            "x=1;y=2", "snake_case camelCase PascalCase SCREAMING_CASE kebab-case", "\\n\\t\\u0041", "'''doc'''", "\"\"\"doc\"\"\"", "!!!", "?!?!",
            "((()))", "[[[", "----", "====\n", "...", "#!/bin/sh\n", "@decorator\n", "a&&b", "<<EOF\n", "\\", "\\\\", "%d %s\n", "~/.config"]
    special = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "a<|im_end|>b",
               " <|im_end|> ", "<|im_end|><|im_end|>", "<|im_end", "|im_end|>", "<|im_end|", "<| im_end |>", "<|IM_END|>", "<|im_<|im_end|>end|>",
               "<<|im_end|>>", "<tool_call>", "</tool_call>", "a <tool_call>\n{}\n</tool_call> b", "<tool_call", "<think>", "</think>", "<think>x</think>",
               "<|im_start|>system", "<|im_start|>systemic", "<|begin_of_text|>x", "<|eot_id|>", "[PAD1]", "<s>", "</s>", "<|im_end|>\u200d", "é<|im_end|>é",
               "1<|im_end|>2", "  <|im_end|>  ", "\n<|im_end|>\n", "<repo_name>", "<|fim_prefix|>x<|fim_suffix|>y<|fim_middle|>", "<|vision_start|>"]
    control = ["\x01\x02\x03", "a\x00b", "\x7f", "\x1b[31mred\x1b[0m", "a\x04b", "\x04", "the\x06end", "\x08", "\x13\x14\x16\x1d", "\x80\x9f"]
    runs = [c * n for c in "aA1 \n\t!中é😀'\u00a0" for n in (2, 3, 4, 5, 8, 17, 33, 100)] + ["ab" * 60, "a1" * 40, " a" * 40, "a " * 40, "\n " * 20, "'s" * 20]
    mixed = ["Hello" + s + "world" + s + "123" + s + "!" for s in (" ", "  ", "\n", " \n", "\u00a0", "\u3000", "\t", "", "\r\n", "'", "😀", "中")]
    mixed += ["zqx zqx", "zqxzqx  zqx", "In 2024, Zoë's café—№ 5—sold 1,234 “crêpes” for €5.99 each (≈ ¥950)!\n\nThat's 20% more…\t✓ ok\r\n",
              "Ünïcödé: ΑΒΓ αβγ; АБВ абв; 你好，世界！ مرحبا بالعالم 123 שלום 🌍🚀 don't stop", "lorem ipsum dolor sit amet, consectetur adipiscing elit " * 4,
              "The robot turned left at the corner, measured 12.75 m to the wall, and said: \"I'm here.\"\n" * 3]
    return list(dict.fromkeys(out + words + digits + spaces + unicode + emoji + code + special + control + runs + mixed))


def small_vocabulary(texts):
    """Tokens and merges trained on the strings; the specials are added at the end.

    Trained on whole strings, so that merges cross the borders of pieces: a border in the wrong place shows.
    """
    model = tokenizers.Tokenizer(models.BPE())
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    model.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=2400, min_frequency=1, max_token_length=4, initial_alphabet=alphabet, show_progress=False)
    model.train_from_iterator(texts, trainer)
    state = json.loads(model.to_str())["model"]
    tokens = [token for token, _ in sorted(state["vocab"].items(), key=lambda item: item[1])]
    tokens += UNMERGED
    merges = [" ".join(pair) for pair in state["merges"]]
    types = [1] * len(tokens) + [3] * len(CONTROL) + [4] * len(USER) + [5]
    return tokens + CONTROL + USER + ["[PAD1]"], types, merges


def write_vocabulary(path, pre, tokens, types, merges):
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(tokens.index("<|begin_of_text|>"))
    writer.add_eos_token_id(tokens.index("<|im_end|>"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def golden(path, texts):
    """Tokens of each text: as text; with special tokens where that differs; with BOS for the first few."""
    model = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    encode = lambda text, bos, special: model.tokenize(text.encode(), add_bos=bos, special=special)
    plain = [encode(text, False, False) for text in texts]
    special = {str(i): ids for i, text in enumerate(texts) if (ids := encode(text, False, True)) != plain[i]}
    return {"plain": plain, "special": special, "bos": [encode(text, True, False) for text in texts[:8]]}


def main():
    texts = strings()
    assert len(texts) >= 300, len(texts)
    tokens, types, merges = small_vocabulary([text for text in texts if "zqx" not in text])
    write_vocabulary(HERE / "small-vocab.bin", "qwen2", tokens, types, merges)
    result = {"made_by": "make.py: llama-cpp-python " + llama_cpp.__version__, "strings": texts, "families": {}, "models": {}}
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "vocab.gguf"
            write_vocabulary(path, family, tokens, types, merges)
            result["families"][family] = golden(path, texts)
    for path in map(pathlib.Path, sys.argv[1:]):
        result["models"][path.name] = golden(path, texts)
    text = json.dumps(result, ensure_ascii=True, separators=(",", ":")).replace(']],"', ']],\n"').replace('"],', '"],\n')
    (HERE / "tokens.json").write_text(text + "\n")
    print(len(texts), "strings,", len(tokens), "tokens,", len(text), "bytes")


main()
