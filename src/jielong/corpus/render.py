"""Facts → many varied pages, so that each fact is met in many wordings, orders and companies.

Allen-Zhu & Li ("Physics of Language Models 3.1", 2023) show that a model can be asked for a fact only if pretraining
met it in many forms. Everything is drawn from generators keyed by strings, so that a page depends on nothing else.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from jielong.corpus.phrases import LISTS, SENTENCES, TITLES
from jielong.corpus.world import ATTRIBUTES, Entity, Fact, World


@dataclass(frozen=True)
class Page:
    """One page: `html` is its raw form where it came from the web, else None."""

    title: str
    text: str
    lang: str
    html: str | None = None


def sentence(fact: Fact, lang: str, rng: random.Random) -> str:
    """One wording of a fact."""
    return rng.choice(SENTENCES[lang][fact.attribute]).format(s=fact.subject[lang], v=fact.value[lang])


def render_pages(world: World, seed: int, variants: int) -> Iterator[Page]:
    """Pages in both languages; each fact stands in about `variants` of them per language.

    Two thirds are pages about one country, one third are lists that state one attribute of several countries, and
    pages about one capital: only a name that stands several times in a text is learnt well enough to be repeated.
    """
    for lang in ("en", "zh"):
        for variant in range(variants):
            for entity in world.entities:
                rng = random.Random(f"{seed}/{lang}/{variant}/{entity.code}")
                if variant % 3 < 2:
                    yield _dress(_country_page(world, entity, lang, rng), rng)
            if variant % 3 == 2:
                yield from _lists(world, lang, random.Random(f"{seed}/{lang}/{variant}"))
                yield from _city_pages(world, lang, f"{seed}/{lang}/{variant}/city")


def _country_page(world: World, entity: Entity, lang: str, rng: random.Random) -> Page:
    facts = list(world.of(entity.code).values())
    rng.shuffle(facts)
    title = rng.choice(TITLES[lang]).format(s=entity.name(lang))
    joint = " " if lang == "en" else ""
    cut = rng.randint(2, len(facts))
    paragraphs = [joint.join(sentence(f, lang, rng) for f in part) for part in (facts[:cut], facts[cut:]) if part]
    return Page(title, "\n".join(paragraphs), lang)


def _city_pages(world: World, lang: str, key: str) -> Iterator[Page]:
    joint = " " if lang == "en" else ""
    for fact in world.facts:
        if fact.attribute == "country":
            rng = random.Random(f"{key}/{fact.code}")
            wordings = rng.sample(SENTENCES[lang]["country"], 3)
            lines = [w.format(s=fact.subject[lang], v=fact.value[lang]) for w in wordings]
            lines.insert(rng.randrange(4), sentence(world.of(fact.code)["capital"], lang, rng))
            title = rng.choice(TITLES[lang][:-1]).format(s=fact.subject[lang])  # the last one is for countries only
            yield _dress(Page(title, joint.join(lines), lang), rng)


def _lists(world: World, lang: str, rng: random.Random) -> Iterator[Page]:
    for attribute in ATTRIBUTES:
        facts = [f for f in world.facts if f.attribute == attribute]
        rng.shuffle(facts)
        at = 0
        while at < len(facts):
            size = rng.randint(4, 7)
            part = facts[at : at + size]
            at += size
            lines = [sentence(f, lang, rng) for f in part]
            title = LISTS[lang][attribute]
            yield _dress(Page(title, rng.choice(["\n", " " if lang == "en" else ""]).join(lines), lang), rng)


def _dress(page: Page, rng: random.Random) -> Page:
    """A third of the pages come as raw web pages, in one of three site designs with boilerplate around the text."""
    if rng.random() > 0.34:
        return Page(page.title, f"{page.title}\n{page.text}" if rng.random() < 0.5 else page.text, page.lang)
    en = page.lang == "en"
    nav = ["Home", "News", "Shop", "Contact", "Login"] if en else ["首頁", "新聞", "商店", "聯絡我們", "登入"]
    rng.shuffle(nav)
    links = "".join(f'<li><a href="/{i}">{n}</a></li>' for i, n in enumerate(nav))
    cookie = "We use cookies. Accept all" if en else "本網站使用 Cookie，按此接受"
    legal = "All rights reserved. Privacy policy" if en else "版權所有。隱私權政策"
    body = "".join(f"<p>{line}</p>" for line in page.text.split("\n"))
    menu = f"<nav class='menu'><ul>{links}</ul></nav>"
    foot = f"<footer><div class='cookie-banner'>{cookie}</div><p class='copyright'>© 2026 {legal}</p></footer>"
    side = f"<aside class='sidebar'><ul>{links}</ul></aside>"
    shape = rng.choice(
        [
            f"{menu}<main><article><h1>{page.title}</h1>{body}</article></main>{side}{foot}",
            f"<header>{menu}</header><div id='content' class='post-content'><h2>{page.title}</h2>{body}</div>{foot}",
            f"{side}<div class='article-body'>{body}</div>{menu}{foot}",
        ]
    )
    lang = "en" if en else "zh-Hant-TW"
    html = f"<!doctype html><html lang='{lang}'><head><meta charset='utf-8'><title>{page.title}</title></head><body>{shape}</body></html>"
    return Page(page.title, page.text, page.lang, html)
