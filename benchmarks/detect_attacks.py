"""What people do to a text so that it is not recognised: the attacks of benchmarks/detect.py, all offline and by a seed."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence

from jielong.generate.engine import Engine
from jielong.generate.sampling import Sampling

Attack = Callable[[random.Random, str], str]

# each word ↔ the one after it; our own list of common words that may stand for each other in most places
PAIRS = """big large, small little, begin start, end finish, quick fast, say state, show reveal, help assist, need require, get obtain,
buy purchase, use employ, think believe, important significant, often frequently, very extremely, also additionally, but however,
so therefore, because since, many numerous, about around, make create, give provide, find discover, happy glad, sad unhappy,
hard difficult, easy simple, near close, old ancient, new recent, man gentleman, woman lady, house home, job position, children kids,
people persons, whole entire, almost nearly, later afterwards, before previously, while whereas, told informed, asked questioned,
said stated, used employed, found discovered, made created, began started, bought purchased, shows reveals, needs requires, several various,
usually typically, main chief, idea notion, problem issue, answer reply, part portion, place spot, area region, road street, maybe perhaps,
only merely, just simply, still yet, again anew, study investigation, result outcome, increase rise, reduce lower, method approach,
among amid, rich wealthy, famous renowned, strange odd, beautiful lovely, angry furious, afraid scared, quiet silent, sick ill, doctor physician,
company firm, money cash, error mistake, car vehicle, ship vessel, film movie, picture image, country nation, town village, king monarch"""
PAIRS_ZH = """但是 不過, 因为 由于, 所以 因此, 如果 假如, 很多 许多, 非常 十分, 开始 起初, 使用 采用, 帮助 协助, 重要 关键, 可以 能够, 认为 觉得,
同时 与此同时, 方法 办法, 问题 疑问, 以及 还有, 例如 比如, 通常 一般, 需要 必须, 提高 提升, 因為 由於, 許多 不少, 開始 起初, 幫助 協助, 能夠 可以,
認為 覺得, 例如 譬如, 方法 做法, 成為 變成, 位於 坐落於, 建立 創立, 之後 其後, 當時 那時, 由於 因為"""


def _both_ways(pairs: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for a, b in (p.split() for p in pairs.replace("\n", " ").split(",")):
        found.setdefault(a, b)
        found.setdefault(b, a)
    return found


SYNONYM, SYNONYM_ZH = _both_ways(PAIRS), _both_ways(PAIRS_ZH)


def _units(text: str) -> tuple[list[str], str]:
    """Words (Chinese: characters), and what joins them."""
    spaced = " " in text.strip()
    return (text.split() if spaced else list(text)), " " if spaced else ""


def deletion(rng: random.Random, text: str) -> str:
    """20 % of the words (Chinese: characters) are gone."""
    words, space = _units(text)
    return space.join(w for w in words if rng.random() > 0.2)


def noise(rng: random.Random, text: str) -> str:
    """3 % of the characters are another letter, doubled or gone."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    return "".join(c if rng.random() > 0.03 else rng.choice((rng.choice(letters), c + c, "")) for c in text)


def alike(rng: random.Random, text: str) -> str:
    """Half of the letters that have Cyrillic doubles are these; invisible characters between words."""
    table = dict(zip("aeopcyx", "аеорсух", strict=True))
    changed = "".join(table.get(c, c) if rng.random() < 0.5 else c for c in text)
    return changed.replace(" ", " \u200b")


def synonyms(rng: random.Random, text: str) -> str:
    """Every word of the list is another one."""

    def other(found: re.Match[str]) -> str:
        word = found[0]
        new = SYNONYM.get(word.lower(), word)
        return new.capitalize() if word[0].isupper() else new

    text = re.sub(r"[A-Za-z]+", other, text)
    known = "|".join(sorted(SYNONYM_ZH, key=len, reverse=True))
    return re.sub(known, lambda found: SYNONYM_ZH[found[0]], text)


def swaps(rng: random.Random, text: str) -> str:
    """10 % of the words (Chinese: characters) change places with the next."""
    words, space = _units(text)
    at = 0
    while at + 1 < len(words):
        if rng.random() < 0.1:
            words[at], words[at + 1] = words[at + 1], words[at]
            at += 1
        at += 1
    return space.join(words)


def sentences(text: str) -> list[str]:
    return [s for s in re.split(r"(?<=[.!?])\s+|(?<=[。！？])|\n+", text.strip()) if s and not s.isspace()]


def order(rng: random.Random, text: str) -> str:
    """The sentences in another order."""
    found = sentences(text)
    rng.shuffle(found)
    return (" " if " " in text.strip() else "").join(found)


ATTACKS: dict[str, Attack] = {
    "20 % of the words deleted": deletion, "3 % character noise": noise, "look-alikes, invisible characters": alike,
    "synonyms": synonyms, "10 % neighbours swapped": swaps, "sentences in another order": order,
}  # fmt: skip


def rewritten(engine: Engine, texts: Sequence[str], seed: int) -> list[str]:
    """Every sentence said anew by a model that chats, one by one; what it answers stands in the text, good or bad."""
    parts = [sentences(t) for t in texts]
    flat = [s for own in parts for s in own]
    asked = [
        [{"role": "user", "content": f"Rewrite this sentence in other words. Give only the new sentence.\n\n{s[:600]}"}]
        for s in flat
    ]
    done: list[str] = []
    for at in range(0, len(asked), 32):
        prompts = [engine.chat_ids(m) for m in asked[at : at + 32]]
        sampling = Sampling(temperature=0.7, top_p=0.9, max_tokens=80, seed=seed)
        done += [" ".join(r.text.split()).strip('"') for r in engine.generate(prompts, sampling)]
    answers = iter(done)
    return [" ".join(next(answers) for _ in own) for own in parts]
