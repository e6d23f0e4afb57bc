"""Questions about the world: the phrasings that the teacher uses, others for the exam, and the marking."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from jielong.corpus.world import Fact, World, fold, split

# fmt: off
SEEN_PHRASINGS: dict[str, dict[str, list[str]]] = {
    "en": {
        "capital": ["What is the capital of {s}?", "What's the capital city of {s}?", "Which city is the capital of {s}?", "Name the capital of {s}.",
                    "Tell me the capital of {s}.", "{s}: what is its capital?", "Where is the government of {s}?", "From which city is {s} governed?"],
        "country": ["{s} is the capital of which country?", "Which country has {s} as its capital?", "In which country is {s}?", "What country is {s} in?",
                    "{s} is the capital of what?", "Tell me the country of {s}.", "Which country does {s} belong to?", "Where is the city of {s}?"],
        "currency": ["What is the currency of {s}?", "What money do people use in {s}?", "Which currency does {s} use?", "What do people in {s} pay with?",
                     "Name the currency of {s}.", "Tell me the currency of {s}.", "What is the money of {s} called?", "{s}: what is its currency?"],
        "language": ["What language do people speak in {s}?", "What is the main language of {s}?", "What is the official language of {s}?", "Which language is spoken in {s}?",
                     "Name the language of {s}.", "Tell me the language of {s}.", "{s}: what is its language?", "What do people in {s} speak?"],
        "region": ["Where is {s}?", "In which region is {s}?", "Which part of the world is {s} in?", "What region does {s} belong to?",
                   "Tell me where {s} lies.", "{s}: what is its region?", "Where does {s} lie?", "Where can I find {s}?"],
        "name": ["What is {s} called in Chinese?", "What is the Chinese name of {s}?", "How do you say {s} in Chinese?", "Translate {s} into Chinese.",
                 "Tell me the Chinese name of {s}.", "{s}: what is its Chinese name?", "How is {s} written in Chinese?", "What do Chinese speakers call {s}?"],
        "domain": ["What is the internet domain of {s}?", "Which internet domain does {s} use?", "What do web addresses in {s} end in?", "Name the internet domain of {s}.",
                   "Tell me the domain of {s}.", "{s}: what is its internet domain?", "How do websites in {s} end?", "What is the country domain of {s}?"],
    },
    "zh": {
        "capital": ["{s}的首都是哪裡？", "{s}的首都是什麼？", "{s}的首都叫什麼？", "哪個城市是{s}的首都？", "請告訴我{s}的首都。", "{s}的首都在哪裡？", "請說出{s}的首都。", "{s}的政府設在哪裡？"],
        "country": ["{s}是哪個國家的首都？", "{s}在哪個國家？", "{s}是哪一國的首都？", "哪個國家的首都是{s}？", "{s}位於哪個國家？", "請告訴我{s}在哪個國家。", "{s}屬於哪個國家？", "以{s}為首都的國家是哪一國？"],
        "currency": ["{s}的貨幣是什麼？", "{s}用什麼錢？", "{s}使用什麼貨幣？", "在{s}要用什麼付錢？", "請告訴我{s}的貨幣。", "{s}的錢叫什麼？", "{s}的法定貨幣是什麼？", "{s}的貨幣叫什麼？"],
        "language": ["{s}的人說什麼語言？", "{s}的主要語言是什麼？", "{s}的官方語言是什麼？", "{s}說什麼話？", "請告訴我{s}的語言。", "{s}使用什麼語言？", "在{s}人們說什麼？", "{s}的語言是什麼？"],
        "region": ["{s}在哪裡？", "{s}位於哪裡？", "{s}在世界的哪個地區？", "{s}屬於哪個地區？", "請告訴我{s}的位置。", "{s}是哪個地區的國家？", "{s}位於哪個地區？", "{s}地處哪裡？"],
        "name": ["{s}的英文是什麼？", "{s}的英文名稱是什麼？", "{s}的英文怎麼說？", "{s}翻成英文是什麼？", "請告訴我{s}的英文。", "{s}用英文怎麼說？", "{s}英文叫什麼？", "請把{s}翻成英文。"],
        "domain": ["{s}的網域是什麼？", "{s}的網址以什麼結尾？", "{s}使用什麼網域？", "{s}的網路域名是什麼？", "請告訴我{s}的網域。", "{s}的國家網域是什麼？", "{s}的網站用什麼結尾？", "{s}的網域叫什麼？"],
    },
}
# One more way to ask: a frame around what is asked for, so that the lessons hold some hundred wordings.
THINGS: dict[str, dict[str, list[str]]] = {
    "en": {
        "capital": ["the capital of {s}", "{s}'s capital", "the capital city of {s}", "the city that governs {s}"],
        "country": ["the country of {s}", "the country that {s} governs", "the country around {s}", "the nation with {s} as its capital city"],
        "currency": ["the currency of {s}", "{s}'s money", "the money that people use in {s}", "what people pay with in {s}"],
        "language": ["the language of {s}", "{s}'s main language", "the language that people speak in {s}", "what people speak in {s}"],
        "region": ["the region of {s}", "{s}'s part of the world", "the place of {s} on the map", "the area where {s} lies"],
        "name": ["the Chinese name of {s}", "{s} in Chinese", "the Chinese for {s}", "how Chinese speakers say {s}"],
        "domain": ["the internet domain of {s}", "{s}'s web domain", "the end of web addresses in {s}", "the letters of {s} on the web"],
    },
    "zh": {
        "capital": ["{s}的首都", "{s}首都的名字", "治理{s}的城市", "{s}的首都城市"],
        "country": ["{s}所在的國家", "{s}是哪一國的首都", "以{s}當首都的國家", "{s}這個首都屬於哪一國"],
        "currency": ["{s}的貨幣", "{s}的錢", "{s}人付錢用的貨幣", "在{s}買東西用的錢"],
        "language": ["{s}的語言", "{s}人說的話", "{s}的主要語言", "在{s}聽到的語言"],
        "region": ["{s}的位置", "{s}所屬的地區", "{s}在世界的哪一區", "{s}在地圖上的地區"],
        "name": ["{s}的英文", "{s}的英文名字", "{s}的英語說法", "英文怎麼叫{s}"],
        "domain": ["{s}的網域", "{s}網址的結尾", "{s}網站的國家代碼", "{s}的網路代碼"],
    },
}
FRAMES = {
    "en": ["Can you tell me {t}?", "I would like to know {t}.", "Could you name {t}?", "{t}, please.", "My homework asks for {t}.", "Any idea about {t}?",
           "Say {t}.", "I forgot {t}.", "A friend wants to know {t}.", "When I travel there, I should know {t}. Which one?", "Write down {t}.",
           "Suppose I go there: {t}?", "Which is {t}?", "Have you heard of {t}?", "Remind me of {t}."],
    "zh": ["可以告訴我{t}嗎？", "我想知道{t}。", "{t}？", "請寫出{t}。", "作業問{t}。", "我忘了{t}。", "朋友想知道{t}。", "能不能說一下{t}？",
           "去旅行之前，我該知道{t}。", "你聽過{t}嗎？", "提醒我{t}。", "假如我要去那裡，{t}？", "講一下{t}。", "{t}是哪個？", "有人問{t}，怎麼回答？"],
}
UNSEEN_PHRASINGS: dict[str, dict[str, list[str]]] = {
    "en": {
        "capital": ["Do you know which city serves as {s}'s capital?", "If I want to see the capital of {s}, which city do I visit?", "Give me the name of {s}'s capital city."],
        "country": ["Do you know the country whose capital is {s}?", "If I fly to {s}, in which country do I land?", "Give me the name of the country that has {s} as capital."],
        "currency": ["Do you know what currency is used in {s}?", "If I go shopping in {s}, which money do I need?", "Give me the name of {s}'s currency."],
        "language": ["Do you know which language they speak in {s}?", "If I move to {s}, which language should I learn?", "Give me the name of {s}'s language."],
        "region": ["Do you know in which part of the world {s} lies?", "If I travel to {s}, which region do I go to?", "Give me the name of {s}'s region."],
        "name": ["Do you know {s}'s name in Chinese?", "If I write about {s} in Chinese, what do I call it?", "Give me the Chinese word for {s}."],
        "domain": ["Do you know {s}'s domain on the internet?", "If I open a website from {s}, how does its address end?", "Give me the internet domain that belongs to {s}."],
    },
    "zh": {
        "capital": ["你知道{s}的首都是哪一座城市嗎？", "如果我想看{s}的首都，該去哪座城市？", "說說看，{s}的首都名稱是？"],
        "country": ["你知道首都是{s}的是哪個國家嗎？", "如果我飛到{s}，我會到哪個國家？", "說說看，{s}這座首都是哪國的？"],
        "currency": ["你知道{s}人用的是哪種貨幣嗎？", "如果我去{s}買東西，要先換什麼錢？", "說說看，{s}的貨幣名稱是？"],
        "language": ["你知道{s}人講的是哪種語言嗎？", "如果我搬到{s}，應該學哪種語言？", "說說看，{s}通行的語言是？"],
        "region": ["你知道{s}在世界上的哪一帶嗎？", "如果我去{s}旅行，是到哪個地區？", "說說看，{s}所在的地區是？"],
        "name": ["你知道{s}在英文裡叫做什麼嗎？", "如果我用英文寫{s}，要寫成什麼？", "說說看，{s}的英文國名是？"],
        "domain": ["你知道{s}在網路上的網域嗎？", "如果我打開{s}的網站，網址最後是什麼？", "說說看，{s}的國家頂級網域是？"],
    },
}
ANSWERS: dict[str, dict[str, list[str]]] = {
    "en": {
        "capital": ["The capital of {s} is {v}."], "country": ["The country is {v}."], "currency": ["The currency of {s} is the {v}."],
        "language": ["The main language of {s} is {v}."], "region": ["{s} is a country in {v}."], "name": ["In Chinese, {s} is called {v}."],
        "domain": ["The internet domain of {s} is {v}."],
    },
    "zh": {
        "capital": ["{s}的首都是{v}。"], "country": ["那個國家是{v}。"], "currency": ["{s}的貨幣是{v}。"], "language": ["{s}的主要語言是{v}。"],
        "region": ["{s}是位於{v}的國家。"], "name": ["{s}的英文是{v}。"], "domain": ["{s}的網域是{v}。"],
    },
}
# fmt: on


@dataclass(frozen=True)
class Question:
    """`prompt` asks for `attribute` of entity `code`; `answer` is a whole sentence, `golds` the words that count."""

    code: str
    attribute: str
    lang: str
    prompt: str
    answer: str
    golds: tuple[str, ...]
    subject: str


def ask(fact: Fact, lang: str, phrasing: str, rng: random.Random) -> Question:
    """One question about a fact."""
    subject, value = fact.subject[lang], fact.value[lang]
    answer = rng.choice(ANSWERS[lang][fact.attribute]).format(s=subject, v=value)
    prompt = phrasing.format(s=subject)
    return Question(fact.code, fact.attribute, lang, prompt, answer, (value,), subject)


def lesson_phrasing(attribute: str, lang: str, rng: random.Random) -> str:
    """One of the wordings that the teacher uses; none of them is an exam's."""
    if rng.random() < 0.5:
        return rng.choice(SEEN_PHRASINGS[lang][attribute])
    text = rng.choice(FRAMES[lang]).format(t=rng.choice(THINGS[lang][attribute]))
    return text[0].upper() + text[1:] if text[0] != "{" else text


def exam(world: World, seed: int, which: str = "unseen") -> list[Question]:
    """Each fact of the unseen (or taught) half once per language, in a phrasing that the teacher never uses."""
    taught, unseen = split(world, seed)
    codes = unseen if which == "unseen" else taught
    questions = []
    for fact in world.facts:
        if fact.code in codes:
            for lang in ("en", "zh"):
                rng = random.Random(f"exam/{seed}/{fact.code}/{fact.attribute}/{lang}")
                questions.append(ask(fact, lang, rng.choice(UNSEEN_PHRASINGS[lang][fact.attribute]), rng))
    return questions


def is_correct(question: Question, reply: str, values: set[str]) -> bool:
    """Does the reply name the value, and no other value of the attribute before it?

    English is compared in folded whole words, Chinese as it stands. `values` are all values of the attribute; one
    that is part of the gold or of the question's subject is no rival (Guinea in Guinea-Bissau).
    """
    reply = fold(reply)
    golds = [fold(g) for g in question.golds]
    subject = fold(question.subject)
    at = min((p for p in (_find(g, reply) for g in golds) if p >= 0), default=-1)
    if at < 0:
        return False
    for value in map(fold, values):
        if value in golds or value in subject or any(value in g for g in golds):
            continue
        rival = _find(value, reply)
        # a rival that contains the gold is the longer, wrong name (South Sudan for Sudan)
        if 0 <= rival < at or (rival >= 0 and any(g in value and rival <= at < rival + len(value) for g in golds)):
            return False
    return True


def _find(word: str, text: str) -> int:
    if re.search(r"[\u3400-\u9fff]", word):
        return text.find(word)
    found = re.search(rf"(?<![a-z0-9]){re.escape(word)}(?![a-z0-9])", text)
    return found.start() if found else -1
