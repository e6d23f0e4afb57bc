"""A watermark's key: the secret and every parameter that detection must know, in one file that only its owner reads."""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jielong.errors import UserError
from jielong.tokens.tokenizer import Tokenizer

FORMAT = 2
"""1: what a text repeats was not marked."""


@dataclass(frozen=True)
class Key:
    scheme: str
    id: str
    """Public name, random."""
    secret: str
    """32 bytes in hexadecimal digits."""
    vocabulary: str
    """Fingerprint (Tokenizer.fingerprint) of the vocabulary that it marks."""
    context: int = 4
    """Tokens that choose the numbers of the next one."""
    green: float = 0.25
    """greenlist: share of the vocabulary that is favoured after a context."""
    bias: float = 2.0
    """greenlist: what is added to the logits of these tokens."""
    again: bool = True
    """Is a context that a text has again marked again, by other numbers? Keys of format 1 left it to chance."""

    @property
    def bytes(self) -> bytes:
        return bytes.fromhex(self.secret)

    def fit(self, tokenizer: Tokenizer, name: str) -> None:
        """Raises UserError when the key was made for another vocabulary than that of the model `name`."""
        if self.vocabulary != tokenizer.fingerprint:
            raise UserError(
                f"The watermark key {self.id} was made for another vocabulary than that of {name}; use the run that it was "
                "made for, or make a key for this one with `jielong detect key`."
            )


def make_key(path: Path, tokenizer: Tokenizer, scheme: str, context: int, green: float, bias: float) -> Key:
    """Write a new key, readable by its owner only. Raises UserError for a file that exists, and for settings that mark
    nothing."""
    from jielong.detect.watermark.scheme import SCHEMES

    if scheme not in SCHEMES:
        raise UserError(f"There is no watermark {scheme!r}; there are {', '.join(SCHEMES)}.")
    if not 1 <= context <= 16:
        raise UserError(f"context must lie between 1 and 16 tokens, not {context}.")
    if not 0 < green < 1 or not 0 < bias <= 20:
        raise UserError("green must lie between 0 and 1, bias above 0 and be at most 20.")
    key = Key(scheme, "wm-" + secrets.token_hex(4), secrets.token_hex(32), tokenizer.fingerprint, context, green, bias)
    text = json.dumps({"jielong_watermark": FORMAT, **asdict(key)}, indent=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise UserError(f"{path} exists; a key is never overwritten, since nothing else finds its marks.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be written ({error.strerror}).") from error
    with open(file, "w", encoding="utf-8") as f:
        f.write(text)
    return key


def load_key(path: Path) -> Key:
    """Raises UserError for a file that is missing, no key, or readable by others."""
    from jielong.detect.watermark.scheme import SCHEMES

    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; make a key with `jielong detect key {path}`.") from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is no watermark key.") from error
    if os.name == "posix" and mode & 0o077:
        raise UserError(f"{path} can be read by others, who could then erase the mark; `chmod 600 {path}`.")
    try:
        version = found.pop("jielong_watermark")
        if version not in (1, FORMAT) or (version == 1) == ("again" in found):
            raise ValueError
        key = Key(**{"again": False, **found})
        kinds = {"context": int, "green": (int, float), "bias": (int, float), "again": bool}
        if not all(isinstance(getattr(key, f), kinds.get(f, str)) for f in found) or len(key.bytes) != 32:
            raise ValueError
        if key.scheme not in SCHEMES or not 1 <= key.context <= 16 or not 0 < key.green < 1 or not 0 < key.bias <= 20:
            raise ValueError
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is no watermark key, or a damaged one.") from error
    return key
