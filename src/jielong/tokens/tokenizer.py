"""Byte-level BPE: every Unicode string in, the same string out.

The split into pieces is GPT-2's, so that the vocabulary exports unchanged. GPT-2's split keeps a whole Chinese clause
as one piece, and a small corpus would then merge across words ("國的首都" as one token), which hides names from the
model. So the *training* of the merges sees Chinese words cut by longest match in a dictionary; encoding does not
need the dictionary.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jielong.config import TokenizerConfig
from jielong.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as RustTokenizer

    from jielong.run import Artifact, Run

END_OF_TEXT, IM_START, IM_END, PAD = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"
SPECIAL = (END_OF_TEXT, IM_START, IM_END, PAD)
SETTINGS = "tokenizer_config.json"
SMALLEST = 256 + len(SPECIAL)
TRAINING_CHARS = 6_000_000


class Tokenizer:
    """A vocabulary: home-grown, or imported with the settings that its makers ship beside it.

    `settings` are the fields of a Hugging Face tokenizer_config.json that matter here: chat_template, bos_token,
    eos_token, pad_token, and `ends`, the ids that end an answer. A home-grown vocabulary needs none.
    """

    def __init__(self, rust: RustTokenizer, settings: dict[str, Any] | None = None):
        self.rust = rust
        self.settings = settings or {}
        self._lock = threading.Lock()  # the Rust object reads its mode, special tokens or not, from a field
        vocab = rust.get_vocab(with_added_tokens=True)
        self.vocab_size: int = max(vocab.values()) + 1
        self._added = {i: (t.content, t.special) for i, t in rust.get_added_tokens_decoder().items()}
        self.template: str | None = self.settings.get("chat_template")
        self.imported = bool(self.settings)
        if not self.imported:
            missing = [t for t in SPECIAL if t not in vocab]
            if missing:
                raise UserError(f"The tokenizer lacks {missing[0]}; make it with `jielong tokenizer`.")
            self.end_of_text, self.im_start, self.im_end, self.pad = (int(vocab[t]) for t in SPECIAL)
            self.begin: int | None = None
            self.ends = frozenset({self.end_of_text, self.im_end, self.pad})
            return
        eos = vocab.get(self.settings.get("eos_token") or END_OF_TEXT)
        if eos is None:
            raise UserError("The tokenizer names no token that ends a text (eos_token in tokenizer_config.json).")
        self.end_of_text = int(eos)
        self.begin = vocab.get(self.settings.get("bos_token") or "")
        self.pad = int(vocab.get(self.settings.get("pad_token") or "", eos))
        self.im_start, self.im_end = -1, self.end_of_text
        self.ends = frozenset({self.end_of_text, *self.settings.get("ends", ())})

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read tokenizer.json and, where it lies beside it, tokenizer_config.json. Raises UserError when it cannot."""
        from tokenizers import Tokenizer as RustTokenizer

        beside = path.with_name(SETTINGS)
        try:
            settings = json.loads(beside.read_text(encoding="utf-8")) if beside.is_file() else None
            return cls(RustTokenizer.from_file(str(path)), settings)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"The tokenizer {path} cannot be read: {error}") from error

    def save(self, folder: Path) -> None:
        """tokenizer.json and, for an imported one, tokenizer_config.json."""
        self.rust.save(str(folder / "tokenizer.json"))
        if self.imported:
            text = json.dumps(self.settings, ensure_ascii=False, indent=1)
            (folder / SETTINGS).write_text(text, encoding="utf-8")

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits of all token ids and their texts: equal for equal vocabularies."""
        vocabulary = sorted(self.rust.get_vocab(with_added_tokens=True).items(), key=lambda item: (item[1], item[0]))
        return hashlib.sha256(json.dumps(vocabulary).encode()).hexdigest()[:16]

    def encode(self, text: str, markup: bool = False) -> list[int]:
        """Token ids of text; what looks like a special token stays text unless `markup`."""
        return self._encode([text], markup)[0].ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [e.ids for e in self._encode(texts, False)]

    def encode_spans(self, text: str, markup: bool = True) -> tuple[list[int], list[tuple[int, int]]]:
        """Ids of text, by default with markup, and for each the characters [start, end) that it stands for."""
        found = self._encode([text], markup)[0]
        return found.ids, found.offsets

    def _encode(self, texts: list[str], markup: bool) -> list[Any]:
        with self._lock:
            self.rust.encode_special_tokens = not markup
            if len(texts) == 1:
                return [self.rust.encode(texts[0], add_special_tokens=False)]
            return self.rust.encode_batch(texts, add_special_tokens=False)

    def prompt(self, text: str) -> list[int]:
        """Ids of a text to be continued: with the token that begins a text, where the vocabulary's makers use one."""
        ids = self.encode(text)
        return [self.begin, *ids] if self.begin is not None and self.settings.get("add_bos_token") else ids

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; special tokens are left out and broken characters become U+FFFD."""
        text = b"".join(self.token_bytes(i) for i in ids).decode("utf-8", errors="replace")
        return text.removeprefix(" ") if self._spaced else text

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token stands for; empty for special tokens and unused ids."""
        return self._bytes[token_id] if token_id < len(self._bytes) else b""

    def name(self, token_id: int) -> str:
        """A special token's own name, or the token's text."""
        return self.token_bytes(token_id).decode("utf-8", "replace") or str(self.rust.id_to_token(token_id))

    @cached_property
    def _spaced(self) -> bool:
        """A SentencePiece vocabulary writes a space before the first word, which decoding takes away."""
        decoder = json.dumps(json.loads(self.rust.to_str()).get("decoder"), ensure_ascii=False)
        return "\u2581" in decoder

    @cached_property
    def _bytes(self) -> list[bytes]:
        back = {c: b for b, c in byte_alphabet().items()}
        return [self._bytes_of(i, back) for i in range(self.vocab_size)]

    def _bytes_of(self, token_id: int, back: dict[str, int]) -> bytes:
        if token_id in self._added:
            content, special = self._added[token_id]
            return b"" if special else content.encode()
        token = self.rust.id_to_token(token_id)
        if token is None:
            return b""
        if not self._spaced:
            return bytes(back[c] for c in token)
        if len(token) == 6 and token.startswith("<0x"):  # a byte that the vocabulary has no piece for
            return bytes([int(token[3:5], 16)])
        return token.replace("\u2581", " ").encode()


def copy_tokenizer(file: Path, folder: Path) -> None:
    """Copy tokenizer.json, and the settings beside it, into `folder`."""
    for path in (file, file.with_name(SETTINGS)):
        if path.is_file():
            shutil.copyfile(path, folder / path.name)


def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {b: chr(b) for b in printable}
    for n, b in enumerate(b for b in range(256) if b not in table):
        table[b] = chr(256 + n)
    return table


def is_han(char: str) -> bool:
    return "\u4e00" <= char <= "\u9fff" or "\u3400" <= char <= "\u4dbf"


def cut_words(text: str, words: set[str], longest: int = 5) -> Iterator[str]:
    """Pieces of `text`: Han runs cut by longest match in `words`, everything else as it stands."""
    start, i, n = 0, 0, len(text)
    while i < n:
        if not is_han(text[i]):
            i += 1
            continue
        if start < i:
            yield text[start:i]
        while i < n and is_han(text[i]):
            size = next((k for k in range(min(longest, n - i), 1, -1) if text[i : i + k] in words), 1)
            yield text[i : i + size]
            i += size
        start = i
    if start < n:
        yield text[start:]


def dictionary() -> set[str]:
    """Traditional headwords of CC-CEDICT of 2 to 5 characters."""
    from jielong.corpus.world import cedict_headwords

    return {w for w in cedict_headwords() if 2 <= len(w) <= 5 and all(map(is_han, w))}


def train(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Learn the merges. Raises UserError when the corpus is too small for the vocabulary."""
    from tokenizers import Tokenizer as RustTokenizer
    from tokenizers import decoders, models, pre_tokenizers, trainers

    if vocab_size < SMALLEST:
        raise UserError(
            f"vocab-size {vocab_size} is too small: the 256 bytes and {len(SPECIAL)} specials need {SMALLEST}."
        )
    rust = RustTokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    rust.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(byte_alphabet().values()),
        show_progress=False,
        min_frequency=2,
    )
    words = dictionary()
    # equal pieces are counted once and repeated, which the trainer's own word count then sees
    pieces: Counter[str] = Counter()
    for text in texts:
        pieces.update(cut_words(text, words))

    def feed() -> Iterator[str]:
        for piece, count in sorted(pieces.items()):
            for _ in range(count):
                yield piece

    rust.train_from_iterator(feed(), trainer=trainer)
    if rust.get_vocab_size() < vocab_size:
        raise UserError(
            f"The corpus is too small for a vocabulary of {vocab_size}: it yields {rust.get_vocab_size()} tokens. "
            f"Use --vocab-size {max(SMALLEST, rust.get_vocab_size() // 64 * 64)} or more text."
        )
    return Tokenizer(rust)


def compression(tokenizer: Tokenizer, rows: list[tuple[str, str]]) -> dict[str, dict[str, float]]:
    """Bytes and characters per token of (language, text) rows, per language."""
    table: dict[str, dict[str, float]] = {}
    for lang in sorted({lang for lang, _ in rows}):
        texts = [text for each, text in rows if each == lang]
        tokens = sum(len(ids) for ids in tokenizer.encode_batch(texts)) or 1
        table[lang] = {
            "bytes_per_token": sum(len(t.encode()) for t in texts) / tokens,
            "chars_per_token": sum(map(len, texts)) / tokens,
        }
    return table


def run(config: TokenizerConfig, run: Run) -> Artifact:
    """The tokenizer stage: corpus → tokenizer.json."""
    from jielong.corpus.documents import read_documents

    corpus = run.need("corpus")
    train_set = read_documents(corpus.file("train.parquet"))
    held_out = read_documents(corpus.file("heldout.parquet"))
    with run.build("tokenizer", kind="tokenizer", config=config, parents=[corpus], seed=config.seed) as build:
        tokenizer = train(sample([d.text for d in train_set], TRAINING_CHARS), config.vocab_size)
        tokenizer.rust.save(str(build.path / "tokenizer.json"))
        rows = [(d.lang, d.text) for d in (held_out or train_set)]
        found = compression(tokenizer, rows)
        build.metrics = {"vocab_size": tokenizer.vocab_size, "compression": found}
        each = ", ".join(f"{lang} {row['bytes_per_token']:.2f}" for lang, row in found.items())
        print(f"vocabulary of {tokenizer.vocab_size:,}; bytes per token: {each}")
    return build.artifact


def sample(texts: list[str], chars: int) -> list[str]:
    """Every k-th text, so that about `chars` characters remain."""
    total = sum(map(len, texts))
    return texts[:: max(1, round(total / chars))]
