"""Dirt that is planted in the default corpus, labelled, so that the filters can be measured on it."""

from __future__ import annotations

import random
from collections.abc import Iterator

from jielong.corpus.privacy import ID_LETTERS
from jielong.corpus.readers import Raw

# fmt: off
SPAM_EN = ["Click here for free money!", "Buy now, limited offer!", "Win the casino jackpot today!", "Earn $500 a day, work from home!", "Cheap pills, no prescription, buy now!",
           "Lose weight fast, act now!", "Subscribe now, 100% free!", "No credit check, click here!"]
SPAM_ZH = ["點擊領取免費註冊獎金！", "限時優惠，立即購買！", "線上賭場日賺三萬，加LINE領優惠碼！", "娛樂城首儲送一千，點擊領取！", "貸款免保人，私訊馬上過件！", "穩賺不賠，加賴了解！"]
STUFF = {"en": ["shoes", "cheap", "sale", "hotel", "insurance", "laptop"], "zh": ["便宜", "鞋子", "保險", "飯店", "特價", "貸款"]}
MENUS = ["Home | Login | Sign up | Privacy policy | Terms of use | Cookie settings | Copyright 2026. All rights reserved.",
         "首頁 登入 註冊 會員中心 隱私權政策 版權所有 登入 註冊 首頁 會員條款"]
SIMPLIFIED = ["这个国家的经济发展很快，人们的生活也变得更好了。", "我们应该学习历史，从过去的错误里得到经验。", "图书馆里有许多关于世界各国的书籍，欢迎大家来阅读。", "医生说他需要好好休息，过几天再来检查身体。"]
FOREIGN = ["La capitale de ce pays est une grande ville où vivent beaucoup de gens depuis longtemps.", "Das Land liegt im Norden und seine Hauptstadt ist seit vielen Jahren sehr bekannt.",
           "El país tiene muchas ciudades y la gente vive cerca del mar desde hace siglos.", "この国の首都はとても大きな町で、たくさんの人が住んでいます。"]
NAMES_EN = ["Anna Brook", "Peter Lind", "Maria Stone", "John Weller", "Lucy Hart"]
NAMES_ZH = ["林小明", "陳大文", "王美玲", "張志豪", "李淑芬"]
# fmt: on


def fake_id(rng: random.Random) -> str:
    """An invented national ID with a right check digit."""
    letter = rng.choice(ID_LETTERS)
    n = ID_LETTERS.index(letter) + 10
    body = [rng.choice([1, 2]), *(rng.randrange(10) for _ in range(7))]
    total = sum(d * w for d, w in zip([n // 10, n % 10, *body], (1, 9, 8, 7, 6, 5, 4, 3, 2, 1), strict=True))
    return letter + "".join(map(str, body)) + str(-total % 10)


def fake_card(rng: random.Random) -> str:
    """An invented card number that passes Luhn's test."""
    digits = [4, *(rng.randrange(10) for _ in range(14))]
    total = sum(d if i % 2 else (2 * d - 9 if d > 4 else 2 * d) for i, d in enumerate(reversed(digits)))
    number = "".join(map(str, [*digits, -total % 10]))
    return " ".join(number[i : i + 4] for i in range(0, 16, 4))


def private_line(lang: str, rng: random.Random) -> tuple[str, list[str]]:
    """A sentence with invented private data, and the strings that must not survive."""
    user = rng.choice(["mail", "info", "me", "hello"]) + str(rng.randrange(1000))
    email = f"{user}@example{rng.randrange(100)}.com"
    phone = f"09{rng.randrange(10, 99)}-{rng.randrange(100, 999)}-{rng.randrange(100, 999)}"
    number, card = fake_id(rng), fake_card(rng)
    if lang == "zh":
        line = f"聯絡人{rng.choice(NAMES_ZH)}，電子郵件 {email}，電話 {phone}，身分證字號 {number}，卡號 {card}。"
    else:
        phone = f"+1 {rng.randrange(200, 999)}-{rng.randrange(200, 999)}-{rng.randrange(1000, 9999)}"
        line = f"Write to {rng.choice(NAMES_EN)} at {email} or call {phone}; ID {number}, card {card}."
    return line, [email, phone, number, card]


def plant(documents: list[Raw], seed: int, share: float = 0.07) -> Iterator[Raw]:
    """`documents` with about `share` of labelled dirt among them.

    Labels: spam, stuffing, boilerplate, foreign, mojibake, exact and near (duplicates), and private:a|b|… for a good
    document into which private strings were written.
    """
    clean: list[Raw] = []  # only texts that came before: of two copies the first one is kept
    for n, document in enumerate(documents):
        yield document
        if not document.html and len(document.text) > 120:
            clean.append(document)
        rng = random.Random(f"dirt/{seed}/{n}")
        if not clean or rng.random() >= share:
            continue
        other = rng.choice(clean)
        lang = "zh" if any("\u4e00" <= c <= "\u9fff" for c in other.text[:20]) else "en"
        kind = rng.choice(
            ["spam", "spam", "exact", "near", "private", "private", "boilerplate", "foreign", "stuffing", "mojibake"]
        )
        if kind == "spam":
            lines = [rng.choice(SPAM_ZH if lang == "zh" else SPAM_EN) for _ in range(rng.randint(3, 8))]
            yield Raw("\n".join(lines) + f" {rng.randrange(10**6)}", "dirt", label=kind)
        elif kind == "exact":
            yield Raw(other.text + rng.choice([" ", "\n", "  \n"]), "dirt", label=kind)
        elif kind == "near":
            at = rng.randrange(len(other.text) - 8)
            yield Raw(other.text[:at] + other.text[at + rng.randint(1, 3) :], "dirt", label=kind)
        elif kind == "private":
            line, secrets = private_line(lang, rng)
            tail = [f"{rng.randrange(10**6)}", rng.choice(clean).text[:120], other.text[:160]]
            rng.shuffle(tail)
            yield Raw("\n".join([*tail, line]), "dirt", label="private:" + "|".join(secrets))
        elif kind == "boilerplate":
            yield Raw(f"{rng.choice(MENUS)} {rng.randrange(10**6)}", "dirt", label=kind)
        elif kind == "foreign":
            yield Raw(
                rng.choice(SIMPLIFIED if rng.random() < 0.5 else FOREIGN) + f" {rng.randrange(10**6)}",
                "dirt",
                label=kind,
            )
        elif kind == "stuffing":
            words = [rng.choice(STUFF[lang][:3]) for _ in range(60)]
            yield Raw(" ".join(words) + f" {rng.randrange(10**6)}", "dirt", label=kind)
        else:
            broken = other.text.encode("utf-8").decode("latin-1") if lang == "zh" else other.text.replace("e", "\ufffd")
            yield Raw(broken, "dirt", label=kind)
