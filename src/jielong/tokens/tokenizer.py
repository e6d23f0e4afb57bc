"""Byte-level BPE: every Unicode string in, the same string out.

The split into pieces is GPT-2's, so that the vocabulary exports unchanged. GPT-2's split keeps a whole Chinese clause
as one piece, and a small corpus would then merge across words ("國的首都" as one token), which hides names from the
model. So the *training* of the merges sees Chinese words cut by longest match in a dictionary; encoding does not
need the dictionary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from jielong.config import TokenizerConfig
from jielong.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer as RustTokenizer

    from jielong.run import Artifact, Run

END_OF_TEXT, IM_START, IM_END, PAD = "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"
SPECIAL = (END_OF_TEXT, IM_START, IM_END, PAD)
SMALLEST = 256 + len(SPECIAL)
TRAINING_CHARS = 6_000_000


class Tokenizer:
    """A trained vocabulary."""

    def __init__(self, rust: RustTokenizer):
        self.rust = rust
        self.vocab_size: int = rust.get_vocab_size()
        vocab = rust.get_vocab(with_added_tokens=True)
        missing = [t for t in SPECIAL if t not in vocab]
        if missing:
            raise UserError(f"The tokenizer lacks {missing[0]}; make it with `jielong tokenizer`.")
        self.end_of_text, self.im_start, self.im_end, self.pad = (int(vocab[t]) for t in SPECIAL)

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Read tokenizer.json. Raises UserError when it cannot be read."""
        from tokenizers import Tokenizer as RustTokenizer

        try:
            return cls(RustTokenizer.from_file(str(path)))
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"The tokenizer {path} cannot be read: {error}") from error

    def encode(self, text: str) -> list[int]:
        """Token ids of plain text; text that looks like a special token stays text."""
        return self.rust.encode(text, add_special_tokens=False).ids

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        return [e.ids for e in self.rust.encode_batch(texts, add_special_tokens=False)]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; special tokens are left out and broken characters become U+FFFD."""
        return b"".join(self.token_bytes(i) for i in ids).decode("utf-8", errors="replace")

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes that one token stands for; empty for special tokens."""
        return self._bytes[token_id]

    def name(self, token_id: int) -> str:
        """A special token's own name, or the token's text."""
        return self._bytes[token_id].decode("utf-8", "replace") or str(self.rust.id_to_token(token_id))

    @cached_property
    def _bytes(self) -> list[bytes]:
        back = {c: b for b, c in byte_alphabet().items()}
        table = []
        for i in range(self.vocab_size):
            token = self.rust.id_to_token(i)
            table.append(b"" if token is None or token in SPECIAL else bytes(back[c] for c in token))
        return table


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
