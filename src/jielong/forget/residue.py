"""Is anything left? A search of a run's files for what was to be forgotten."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from jielong.corpus.documents import read_documents
from jielong.tokens.shards import read_shard
from jielong.tokens.tokenizer import Tokenizer

PIECE, MOST_PIECES = 40, 64  # characters of a piece; pieces that are looked for
NUMBERS = (".safetensors", ".npz", ".gguf")  # hold no text
OTHERWISE = ("tokenizer.json", "feedback.db", "feedback.db-wal", "feedback.db-shm")  # looked at in other ways


def pieces(texts: Sequence[str], kept: Iterable[str]) -> list[str]:
    """Pieces of `PIECE` characters that tell the records from all kept texts; a shorter record is one piece. At most
    `MOST_PIECES`, drawn by their hashes. What kept texts say as well is theirs, and no residue."""
    drawn = {text[at : at + PIECE] for text in texts for at in range(0, max(1, len(text) - PIECE + 1), PIECE // 2)}
    order = sorted(drawn, key=lambda p: hashlib.sha256(p.encode("utf-8", "replace")).digest())
    whole = "\x00".join(kept)
    return [p for p in order[: 8 * MOST_PIECES] if p.strip() and p not in whole][:MOST_PIECES]


def search(files: Iterable[Path], matches: Callable[[str], bool]) -> list[Path]:
    """Those of the files whose text `matches`: parquet and token shards are read as what they are, JSON's escapes undone."""
    return [p for p in files if p.suffix not in NUMBERS and p.name not in OTHERWISE and any(map(matches, _read(p)))]


def _read(path: Path) -> list[str]:
    if path.suffix == ".parquet":
        return ["\x00".join(f"{d.id}\x00{d.text}" for d in read_documents(path))]
    if path.name == "tokens.bin" and (path.parent / "shard.json").is_file():
        return _read_shard(path.parent)
    text = path.read_bytes().decode("utf-8", "replace")
    plain = re.sub(r"\\u([0-9a-fA-F]{4})", lambda m: chr(int(m[1], 16)), text)
    plain = plain.encode("utf-16", "surrogatepass").decode(
        "utf-16", "replace"
    )  # rare characters are escaped in two halves
    plain = plain.replace("\\n", "\n").replace('\\"', '"').replace("\\\\", "\\")
    return [text] if plain == text else [text, plain]


def _read_shard(folder: Path) -> list[str]:
    """What its tokens spell, by the tokenizer of the artifact that the work folder belongs to."""
    name = folder.name.removeprefix(".").removesuffix(".work")
    beside = (folder.parent / artifact / "tokenizer.json" for artifact in (name, "base", "tokenizer"))
    file = next((f for f in beside if f.is_file()), None)
    if file is None:
        return []
    tokenizer = Tokenizer.load(file)
    spelt = np.array([tokenizer.token_bytes(i) or b"\x00" for i in range(tokenizer.vocab_size)], dtype=object)
    return [b"".join(spelt[np.asarray(read_shard(folder).tokens)]).decode("utf-8", "replace")]
