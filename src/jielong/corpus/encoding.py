"""Text whose UTF-8 was once read as Windows-1252 or Latin-1 ("cafÃ©", "æ±äº¬"), turned back."""

from __future__ import annotations

import re

ROUNDS = 2  # some pages went through it twice


def _bytes_of_characters() -> dict[str, int]:
    """The byte from 0x80 to 0xFF that each character stood for, in Windows-1252 or Latin-1."""
    found = {chr(b): b for b in range(0x80, 0x100)}
    for b in range(0x80, 0xA0):
        try:
            found[bytes([b]).decode("cp1252")] = b
        except UnicodeDecodeError:
            pass  # five bytes have no character in Windows-1252
    return found


BYTES = _bytes_of_characters()
_TAIL = "[" + re.escape("".join(c for c, b in BYTES.items() if b < 0xC0)) + "]"
_SEQUENCE = re.compile(f"[\u00c2-\u00df]{_TAIL}|[\u00e0-\u00ef]{_TAIL}{{2}}|[\u00f0-\u00f4]{_TAIL}{{3}}")


def repair(text: str) -> str:
    """The text with every such sequence replaced by the character it was; text without any comes back unchanged.

    A sequence must be valid UTF-8, which two or three neighbouring letters of a real word are not by chance: a capital
    letter with an accent would have to be followed by a sign such as © or ¼.
    """
    for _ in range(ROUNDS):
        repaired = _SEQUENCE.sub(_decode, text)
        if repaired == text:
            break
        text = repaired
    return text


def _decode(match: re.Match[str]) -> str:
    try:
        return bytes(BYTES[c] for c in match.group()).decode("utf-8")
    except UnicodeDecodeError:
        return match.group()
