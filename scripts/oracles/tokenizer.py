#!/usr/bin/env python3
"""Makes the tokenizer tests' vocabularies and their expected ids, with llama.cpp as oracle.

    scripts/oracles/tokenizer.py LLAMA_TOKENIZE [NAME=MODEL.gguf ...]

Trains small vocabularies (byte-level BPE for each pre-tokenizer, SPM) on the sentences
below, writes each as a vocabulary-only GGUF file with the `gguf` package, runs
llama-tokenize over a table of texts, and writes the ids beside. Each further NAME=MODEL
adds the ids of a real model. Everything lands in llm/tests/data/tokenizer/:

    texts.json      the texts
    NAME.gguf       a vocabulary made here
    NAME.json       {"special": [ids of each text], "plain": [...]}: BOS and special tokens
                    as the model asks, and neither
"""

import collections
import json
import pathlib
import re
import subprocess
import sys
import tempfile

import gguf

OUT = pathlib.Path(__file__).resolve().parents[2] / "llm/tests/data/tokenizer"

CORPUS = """
The compiler reads a module, runs its passes over it and hands the result to the runtime.
Every value has a type, every type has a shape, and every shape is known or has a range.
I'll say it's done when they've tested what we're shipping; she'd rather it didn't break.
A tokenizer cuts text into words, words into bytes, and joins the bytes again by rank.
for i in range(128):
    if values[i] != 0:
        total += values[i] * weights[i]
    else:
        return None
fn main() { let x: Vec<f32> = vec![0.0; 1024]; println!("{x:?}"); }
In 1999 there were 12345 of them, in 2024 some 67890; that is 3.14159 times as many.
Größe, façade, naïve, Ångström, señor, cœur. Быстрая лиса бежит через лес.
漢字とかなが混ざった文です。 한국어 문장입니다. ภาษาไทย العربية हिन्दी
The end of the text is not the end of the test.
"""

TEXTS = [
    "a",
    " ",
    "Hello world",
    " Hello world",
    "Hello  world ",
    "  leading and trailing  ",
    "The compiler reads a module.",
    "I'll, I'LL, we've WE'VE they're THEY'RE it's IT'S can't CAN'T he'd HE'D I'm I'M",
    "'s't're've'm'll'd 'S'T'RE'VE'M'LL'D 'x ' '' 'sam 'l 're",
    "don\u2019t \u2018quote\u2019 \u201cdouble\u201d",
    "it'\u017f 'K",
    "1",
    "12 123 1234 12345 123456 1234567 3.14159 1,000,000",
    "x1y22z333 v2.0 0xff 1e-9 10% $5 #7",
    "\u0663\u0664\u0665 \u00bd \u00b2\u00b3 \u2167 \u4e00\u4e8c \u0967\u0968\u0969\u096a 1\u06632",
    "\n",
    "\n\n",
    "\n\n\n\n\n",
    "\r\n\r\n",
    "a\nb\n\nc\r\nd\re",
    "a \n b",
    "a \n\n  b   \n   c",
    "\t",
    "\t\tindented\tby\t tabs \t",
    "   three",
    "a    b     c          d",
    " \n \t \n  x",
    "trailing newline\n",
    "trailing spaces   ",
    "!",
    "!!! ??? ... -- --- == != <= => -> :: // /* */ ```",
    "foo(bar)[baz]{qux}<T>; a+b=c|d^e~f`g$h",
    "...\n\n!!!\r\n  ?",
    "wait...what?!no!",
    "#include <stdio.h>\nint main(void) {\n\tprintf(\"%d\\n\", 42);\n\treturn 0;\n}\n",
    "for i in range(10):\n    if x[i]:\n        total += 1\n",
    "{\"key\": [1, 2.5, null, true], \"nested\": {\"a\": \"b\\\\c\"}}",
    "https://example.org/a/b?c=d&e=f#g user@example.com",
    "snake_case camelCase PascalCase SCREAMING_CASE kebab-case",
    "Größe façade naïve Ångström",
    "e\u0301 a\u0308\u0301 o\u0302n n\u0303",
    "Быстрая лиса ЛЕС",
    "漢字とかな、カタカナ。中文，标点！",
    "한국어 문장입니다 \u1112\u1161\u11ab",
    "العربية مع ١٢٣ أرقام",
    "שלום עולם",
    "ภาษาไทยไม่มีช่องว่าง",
    "हिन्दी में लिखा पाठ",
    "😀😃 👍🏽 👨‍👩‍👧‍👦 🏳️‍🌈 🇩🇪🇫🇷",
    "math: ∑∫√∞ ≤≥ α+β=γ 𝔘𝔫𝔦 ℝ",
    "a\u00a0b\u2003c\u3000d\u2028e\u0085f\u200bg\u1680h\ufeffi",
    " \u00a0 \u2003\u3000x",
    "a\u00a0\u00a0 b\n\u00a0c",
    "nul-free controls \x01\x02\x1b[0m\x1c\x1d\x7f",
    "private \ue000\uf8ff unassigned \u0378 new \ua7cb\U00010d40 last \U0010ffff",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "a<|endoftext|>b <|endoftext|> c",
    "<s>text</s> <s> </s>",
    "<unk> <|im_start |> <|im_start<|im_end|>|>",
    "<tool>call</tool><tool>",
    "x <|end|> \n y<|end|>z<|end|>",
    "<0x0A> <0x41> \u2581 \u2581\u2581a",
    " whole  whole wholewhole",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "thethethethethethethethethethethethethethethethethethethethethethethethe",
    "antidisestablishmentarianismantidisestablishmentarianismpneumonoultramicroscopic",
    "0123456789012345678901234567890123456789",
    " " * 70 + "x" + " " * 70,
]

CONTROL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
USER = ["<tool>", "   "]


def byte_alphabet():
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in plain]
    return {**{b: chr(b) for b in plain}, **{b: chr(256 + i) for i, b in enumerate(rest)}}


def train(words, count):
    """The `count` most frequent pairs, joined one after the other; ties by text."""
    words = collections.Counter(tuple(w) for w in words)
    merges = []
    for _ in range(count):
        pairs = collections.Counter()
        for word, times in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += times
        if not pairs:
            break
        best = min(pairs, key=lambda p: (-pairs[p], p))
        merges.append(best)
        joined = collections.Counter()
        for word, times in words.items():
            new, i = [], 0
            while i < len(word):
                if word[i : i + 2] == best:
                    new.append(best[0] + best[1])
                    i += 2
                else:
                    new.append(word[i])
                    i += 1
            joined[tuple(new)] += times
        words = joined
    return merges


def writer(name, title):
    w = gguf.GGUFWriter(OUT / f"{name}.gguf", "llama")
    w.add_name(title)
    w.add_context_length(512)
    w.add_embedding_length(8)
    w.add_block_count(1)
    w.add_feed_forward_length(8)
    w.add_head_count(1)
    w.add_layer_norm_rms_eps(1e-5)
    return w


def finish(w):
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()


def make_bpe(name, pre, merges, bos=None):
    normal = list(byte_alphabet().values())
    for left, right in merges:
        if left + right not in normal:
            normal.append(left + right)
    # A word that no merges lead to: only vocabularies that take whole words find it.
    normal.append(byte_alphabet()[0x20] + "whole")
    tokens = CONTROL + USER + normal
    types = [3] * len(CONTROL) + [4] * len(USER) + [1] * len(normal)
    w = writer(name, name)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre(pre)
    w.add_token_list(tokens)
    w.add_token_types(types)
    w.add_token_merges([f"{left} {right}" for left, right in merges])
    w.add_bos_token_id(0)
    w.add_eos_token_id(2)
    if bos is not None:
        w.add_add_bos_token(bos)
    finish(w)


def make_spm(name, title, specials, prefix=None):
    text = CORPUS.replace(" ", "▁")
    merges = train(re.findall(r"▁*[^▁\n]+|\n", text), 350)
    pieces = {}
    for i, (left, right) in enumerate(merges):
        pieces.setdefault(left + right, -float(i))
    for i, char in enumerate(sorted(set(text) - set("\n漢한ไ😀"))):
        pieces.setdefault(char, -1000.0 - i)
    # Equal scores: the leftmost pair goes first.
    pieces |= {"xy": -5.0, "yx": -5.0, "xyx": -5.0}
    tokens = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    types = [2, 3, 3] + [6] * 256
    tokens += specials + USER[:1] + list(pieces)
    types += [3] * len(specials) + [4] + [1] * len(pieces)
    scores = [0.0] * (len(tokens) - len(pieces)) + list(pieces.values())
    w = writer(name, title)
    w.add_tokenizer_model("llama")
    w.add_tokenizer_pre("default")
    w.add_token_list(tokens)
    w.add_token_scores(scores)
    w.add_token_types(types)
    w.add_bos_token_id(1)
    w.add_eos_token_id(2)
    w.add_unk_token_id(0)
    if prefix is not None:
        w.add_add_space_prefix(prefix)
    finish(w)


def ids(tool, model, text, flags):
    with tempfile.NamedTemporaryFile() as file:
        file.write(text.encode())
        file.flush()
        command = [tool, "-m", model, "-f", file.name, "--no-escape", "--ids", "--log-disable"]
        done = subprocess.run(command + flags, capture_output=True, check=True)
    return json.loads(done.stdout)


def expect(tool, name, model):
    table = {
        "special": [ids(tool, model, t, []) for t in TEXTS],
        "plain": [ids(tool, model, t, ["--no-bos", "--no-parse-special"]) for t in TEXTS],
    }
    rows = [
        f'"{key}": [\n' + ",\n".join(json.dumps(r, separators=(",", ":")) for r in table[key]) + "\n]"
        for key in table
    ]
    (OUT / f"{name}.json").write_text("{\n" + ",\n".join(rows) + "\n}\n")
    print(name, sum(map(len, table["plain"])), "ids")


def main():
    tool, models = sys.argv[1], [m.split("=", 1) for m in sys.argv[2:]]
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / "texts.json").write_text(json.dumps(TEXTS, indent=0) + "\n")
    alphabet = byte_alphabet()
    words = re.findall(r" ?\w+| ?[^\w\s]+|\s+", CORPUS + "\n\n    \n")
    merges = train(["".join(alphabet[b] for b in w.encode()) for w in words], 400)
    for pre in ["default", "gpt-2", "smollm", "llama-bpe", "qwen2", "deepseek-coder", "deepseek-llm",
                "deepseek-v3", "falcon", "tekken"]:
        make_bpe(f"bpe-{pre}", pre, merges, bos=True if pre == "gpt-2" else None)
        models.append([f"bpe-{pre}", OUT / f"bpe-{pre}.gguf"])
    make_spm("spm", "small", [])
    make_spm("spm-strip", "Small Phi-3", ["<|end|>", "<|endoftext|>", "<|im_start|>"], prefix=False)
    models += [["spm", OUT / "spm.gguf"], ["spm-strip", OUT / "spm-strip.gguf"]]
    for name, model in models:
        expect(tool, name, str(model))


if __name__ == "__main__":
    main()
