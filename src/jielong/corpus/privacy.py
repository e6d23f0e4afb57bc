"""Private data out: e-mail, telephone, card, national ID, IP and street address, replaced by what they were."""

from __future__ import annotations

import re
from collections import Counter

EMAIL = re.compile(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}")
PHONE = re.compile(
    r"(?<![\w.])(?:\+\d{1,3}[ -]?(?:\(?\d{1,4}\)?[ -]?){1,4}\d{3,4}|\(0\d{1,2}\) ?\d{3,4}-?\d{4}|09\d{2}-?\d{3}-?\d{3}|"
    r"0[2-8]-\d{3,4}-?\d{4}|\(?\d{3}\)?[ -]\d{3}-\d{4})(?![\w])"
)
CARD = re.compile(r"(?<!\d)\d(?:[ -]?\d){12,18}(?!\d)")
TW_ID = re.compile(r"(?<![A-Za-z0-9])[A-Z][12]\d{8}(?!\d)")
IP = re.compile(r"(?<![\d.])(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)(?![\d.])")
_NUMBER = r"[0-9０-９一二三四五六七八九十百]{1,5}"
ADDRESS = re.compile(
    # Taiwan: [city][district] road [section][lane][alley] number [floor]
    rf"(?:[\u4e00-\u9fff]{{2}}[縣市])?(?:[\u4e00-\u9fff]{{1,3}}[鄉鎮市區])?[\u4e00-\u9fff]{{1,5}}(?:路|街|大道)(?:{_NUMBER}段)?"
    rf"(?:{_NUMBER}巷)?(?:{_NUMBER}弄)?{_NUMBER}(?:[之\-]{_NUMBER})?號(?:{_NUMBER}樓(?:之{_NUMBER})?)?|"
    # English: number, name in capitals, kind of street, perhaps a flat
    r"\b(?<![Ii]n )\d{1,5}(?: [NSEW]\.?)?(?: [A-Z][a-z]+){1,3} (?:Street|St|Avenue|Ave|Road|Rd|Boulevard|Blvd|Lane|Ln|Drive|Dr)\b\.?"
    r"(?:,? (?:Apt|Suite|Unit|#)\.? ?\d+[A-Z]?)?"
)
ID_LETTERS = "ABCDEFGHJKLMNPQRSTUVXYWZIO"  # their order gives the numbers 10 to 35


def luhn(number: str) -> bool:
    """Check digit of cards (ISO/IEC 7812)."""
    digits = [int(c) for c in number if c.isdigit()]
    doubled = [d if i % 2 == 0 else (2 * d - 9 if d > 4 else 2 * d) for i, d in enumerate(reversed(digits))]
    return sum(doubled) % 10 == 0


def taiwan_id(text: str) -> bool:
    """Check digit of Taiwan's national ID: letter, sex, seven digits, check digit."""
    n = ID_LETTERS.index(text[0]) + 10
    digits = [n // 10, n % 10, *map(int, text[1:])]
    return sum(d * w for d, w in zip(digits, (1, 9, 8, 7, 6, 5, 4, 3, 2, 1, 1), strict=True)) % 10 == 0


def scrub(text: str, addresses: bool = False) -> tuple[str, Counter[str]]:
    """The text with placeholders, and how many of each kind were found; street addresses only where asked for."""
    found: Counter[str] = Counter()

    def put(kind: str, check=None):
        def replace(match: re.Match[str]) -> str:
            if check is not None and not check(match.group()):
                return match.group()
            found[kind] += 1
            return f"[{kind}]"

        return replace

    text = EMAIL.sub(put("email"), text)
    text = TW_ID.sub(put("id", taiwan_id), text)
    text = CARD.sub(put("card", luhn), text)
    text = PHONE.sub(put("phone"), text)
    text = IP.sub(put("ip"), text)
    if addresses:
        text = ADDRESS.sub(put("address"), text)
    return text, found
