"""API keys: shown once when they are made, kept as hashes, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
from pathlib import Path

from jielong.errors import UserError
from jielong.run import write_atomic


def make_key(path: Path, name: str) -> str:
    """A new key of 256 random bits, whose hash is added to the file under `name`. Raises UserError for a taken name."""
    known = _read(path) if path.exists() else {}
    if name in known:
        raise UserError(f"{path} has a key named {name!r} already; choose another --name.")
    key = "jl-" + secrets.token_urlsafe(32)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps({**known, name: _hash(key)}, indent=1))
    path.chmod(0o600)
    return key


def _hash(key: str) -> str:
    # the keys are random, so that one round of SHA-256 cannot be guessed back
    return hashlib.sha256(key.encode()).hexdigest()


def _read(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and all(isinstance(v, str) for v in found.values()):
            return found
    except (OSError, ValueError):
        pass
    raise UserError(f"{path} is no file of keys; delete it and make new ones with `jielong key`.")


class Keys:
    """The hashes of a file of keys."""

    def __init__(self, path: Path):
        self._hashes = _read(path) if path.exists() else {}

    def __len__(self) -> int:
        return len(self._hashes)

    def accept(self, key: str) -> str | None:
        """The key's name, None for a wrong one. Every hash is compared, so that the time tells nothing."""
        given = _hash(key)
        found = [name for name, known in self._hashes.items() if hmac.compare_digest(given, known)]
        return found[0] if found else None
