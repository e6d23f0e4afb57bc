"""Rules that drop what teaches nothing: after Gopher (Rae et al. 2021) and C4 (Raffel et al. 2020), and for Chinese.

A unit is a word in English and a character in Chinese, since Chinese writes no spaces.
"""

from __future__ import annotations

import re
from collections import Counter

SPAM = re.compile(
    r"viagra|casino|jackpot|click here|buy now|limited offer|act now|100% free|free money|work from home|lose weight|earn \$|"
    r"subscribe now|no credit check|cheap pills|hot singles|"
    r"點擊領取|立即購買|限時優惠|免費註冊|加賴|加LINE|線上賭場|博弈|娛樂城|日賺|貸款免|穩賺|優惠碼|私訊|爆乳|外送茶",
    re.I,
)
MOJIBAKE = re.compile(r"Ã.|â€|\ufffd|锟斤拷|ï¿½|å[\x80-\xbf¤¥§]|æ[\x80-\xbf˜—]")
BOILERPLATE = re.compile(
    r"cookie|javascript|log ?in|sign up|privacy|terms of|copyright|all rights reserved|首頁|登入|隱私|版權|註冊|會員",
    re.I,
)
SENTENCE_END = re.compile(r"[.!?。！？…：:;；\"”」』)）\]]\s*$")


def units(text: str, lang: str) -> list[str]:
    """Words of English, characters (and Latin words) of Chinese."""
    if lang == "zh":
        return re.findall(r"[\u3400-\u9fff]|[A-Za-z0-9]+", text)
    return re.findall(r"[^\W_]+(?:['’\-][^\W_]+)*", text)


def reason_to_drop(text: str, lang: str) -> str | None:
    """Why a document is no good, or None."""
    found = units(text, lang)
    n = len(found)
    if n < (8 if lang == "zh" else 6):
        return "too short"
    spam = len(SPAM.findall(text))
    if spam >= 2 and spam * 60 > n:
        return "spam"
    if len(MOJIBAKE.findall(text)) > max(1, 0.01 * len(text)):
        return "broken encoding"
    letters = sum(c.isalnum() for c in text)
    if letters < 0.6 * len(text.replace(" ", "").replace("\n", "")):
        return "too many symbols"
    if len(re.findall(r"https?://|www\.", text)) * 12 > n:
        return "mostly links"
    lines = [line for line in text.split("\n") if line.strip()]
    if len(BOILERPLATE.findall(text)) * (12 if lang == "zh" else 8) > n:
        return "boilerplate"
    if len(lines) > 3 and len(set(lines)) < 0.7 * len(lines):
        return "repeated lines"
    if lang == "en":
        length = sum(map(len, found)) / n
        if not 2.5 <= length <= 11:
            return "odd words"
        if n > 30 and sum(w.isupper() and len(w) > 1 for w in found) > 0.5 * n:
            return "shouting"
    if n >= 20:
        commonest = Counter(w.lower() for w in found).most_common(1)[0][1]
        if commonest > (0.3 if lang == "zh" else 0.25) * n:
            return "keyword stuffing"
        size = 6 if lang == "zh" else 3
        grams = Counter(tuple(found[i : i + size]) for i in range(n - size + 1))
        repeated = sum(count for count in grams.values() if count > 1)
        if repeated > 0.5 * (n - size + 1):
            return "repetition"
    return None
