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
                    "Tell me the capital of {s}.", "{s}: what is its capital?", "Where is the government of {s}?", "From which city is {s} governed?",
                    "Which city do the ministers of {s} work in?", "On a map of {s}, which city is marked as the capital?", "The capital of {s} is which city?",
                    "Which capital city belongs to {s}?", "I am going to the capital of {s}; where am I going?",
                    "If I meet the president of {s} at work, in which city am I?", "Which city is the seat of government of {s}?"],
        "country": ["{s} is the capital of which country?", "Which country has {s} as its capital?", "In which country is {s}?", "What country is {s} in?",
                    "{s} is the capital of what?", "Tell me the country of {s}.", "Which country does {s} belong to?", "Where is the city of {s}?",
                    "Which nation is governed from {s}?", "{s} is a capital city; of which country?", "I have a postcard from {s}. Which country did it come from?",
                    "On the map, {s} is inside which country?", "Someone lives in {s}; what is their country?", "Name the country with the capital {s}.",
                    "If I live in {s}, what is my country?"],
        "currency": ["What is the currency of {s}?", "What money do people use in {s}?", "Which currency does {s} use?", "What do people in {s} pay with?",
                     "Name the currency of {s}.", "Tell me the currency of {s}.", "What is the money of {s} called?", "{s}: what is its currency?",
                    "What would I pay with in {s}?", "Prices in {s} are given in which currency?", "I have a shop in {s}; what money do I take?",
                    "Which notes and coins are used in {s}?", "Wages in {s} are paid in what?", "If I work in {s}, in which money am I paid?",
                    "Which money should be in my purse in {s}?"],
        "language": ["What language do people speak in {s}?", "What is the main language of {s}?", "What is the official language of {s}?", "Which language is spoken in {s}?",
                     "Name the language of {s}.", "Tell me the language of {s}.", "{s}: what is its language?", "What do people in {s} speak?",
                    "In {s}, which language will I hear?", "Newspapers in {s} are written in which language?", "Which language do children learn at school in {s}?",
                    "If my friend comes from {s}, what does she speak?", "How do people talk in {s}: in which language?", "A letter to {s} should be in which language?",
                    "The people of {s} speak what?"],
        "region": ["Where is {s}?", "In which region is {s}?", "Which part of the world is {s} in?", "What region does {s} belong to?",
                   "Tell me where {s} lies.", "{s}: what is its region?", "Where does {s} lie?", "Where can I find {s}?",
                    "To which part of the world does {s} belong?", "On a world map, where is {s}?", "Which area of the world is {s} in?",
                    "Someone comes from {s}; which region is that?", "Name the region of {s}.", "{s} is a country in which region?",
                    "Geographers put {s} in which region?"],
        "name": ["What is {s} called in Chinese?", "What is the Chinese name of {s}?", "How do you say {s} in Chinese?", "Translate {s} into Chinese.",
                 "Tell me the Chinese name of {s}.", "{s}: what is its Chinese name?", "How is {s} written in Chinese?", "What do Chinese speakers call {s}?",
                    "What do people in Taiwan call {s}?", "On a Chinese map, what is {s} called?", "What are the Chinese characters for {s}?",
                    "In Chinese, what is {s}?", "I am learning Chinese: what is {s}?", "If a Chinese text means {s}, what does it say?",
                    "{s} has which name in Chinese?"],
        "domain": ["What is the internet domain of {s}?", "Which internet domain does {s} use?", "What do web addresses in {s} end in?", "Name the internet domain of {s}.",
                   "Tell me the domain of {s}.", "{s}: what is its internet domain?", "How do websites in {s} end?", "What is the country domain of {s}?",
                    "What comes after the last dot in addresses of {s}?", "Which letters does {s} have on the web?", "An address from {s} has which ending?",
                    "What domain would a company in {s} use?", "I see a website from {s}; what does its name end with?", "{s} on the internet: which domain?",
                    "If my shop is in {s}, which domain do I take?"],
    },
    "zh": {
        "capital": ["{s}的首都是哪裡？", "{s}的首都是什麼？", "{s}的首都叫什麼？", "哪個城市是{s}的首都？", "請告訴我{s}的首都。", "{s}的首都在哪裡？", "請說出{s}的首都。", "{s}的政府設在哪裡？",
                    "{s}把首都設在哪裡？", "{s}的總統府在哪座城市？", "在{s}的地圖上，首都標在哪個城市？", "我要去{s}的首都，是要去哪裡？", "{s}以哪座城市為首都？", "如果到{s}的國會參觀，要去哪個城市？", "{s}的中央政府在哪個城市？"],
        "country": ["{s}是哪個國家的首都？", "{s}在哪個國家？", "{s}是哪一國的首都？", "哪個國家的首都是{s}？", "{s}位於哪個國家？", "請告訴我{s}在哪個國家。", "{s}屬於哪個國家？", "以{s}為首都的國家是哪一國？",
                    "{s}是哪國的首都？", "我收到{s}寄來的明信片，是從哪個國家寄來的？", "有人住在{s}，他住在哪個國家？", "地圖上的{s}在哪一國裡面？", "如果我住在{s}，我的國家是哪一國？", "哪一國的政府設在{s}？", "請說出首都叫{s}的國家。"],
        "currency": ["{s}的貨幣是什麼？", "{s}用什麼錢？", "{s}使用什麼貨幣？", "在{s}要用什麼付錢？", "請告訴我{s}的貨幣。", "{s}的錢叫什麼？", "{s}的法定貨幣是什麼？", "{s}的貨幣叫什麼？",
                    "{s}的物價用什麼貨幣計算？", "我在{s}開店，要收什麼錢？", "{s}的鈔票和硬幣叫什麼？", "如果在{s}工作，薪水用什麼貨幣付？", "{s}的中央銀行發行什麼貨幣？", "去{s}的時候，皮包裡要放什麼錢？", "請說出{s}的貨幣。"],
        "language": ["{s}的人說什麼語言？", "{s}的主要語言是什麼？", "{s}的官方語言是什麼？", "{s}說什麼話？", "請告訴我{s}的語言。", "{s}使用什麼語言？", "在{s}人們說什麼？", "{s}的語言是什麼？",
                    "在{s}會聽到什麼語言？", "{s}的報紙用什麼語言寫？", "{s}的小孩在學校學什麼語言？", "如果我的朋友來自{s}，他說什麼話？", "寫信到{s}要用什麼語言？", "{s}通用什麼語言？", "請說出{s}的語言。"],
        "region": ["{s}在哪裡？", "{s}位於哪裡？", "{s}在世界的哪個地區？", "{s}屬於哪個地區？", "請告訴我{s}的位置。", "{s}是哪個地區的國家？", "{s}位於哪個地區？", "{s}地處哪裡？",
                    "{s}是世界上哪個地區的國家？", "在世界地圖上，{s}在哪裡？", "有人來自{s}，那是哪個地區？", "地理課本把{s}歸在哪個地區？", "{s}在地球上的什麼地方？", "如果要畫{s}，該畫在地圖的哪個地區？", "請說出{s}的地區。"],
        "name": ["{s}的英文是什麼？", "{s}的英文名稱是什麼？", "{s}的英文怎麼說？", "{s}翻成英文是什麼？", "請告訴我{s}的英文。", "{s}用英文怎麼說？", "{s}英文叫什麼？", "請把{s}翻成英文。",
                    "英文地圖上，{s}叫什麼？", "{s}用英文怎麼寫？", "我在學英文，{s}是什麼？", "{s}的英文國名是什麼？", "如果英文課本提到{s}，會寫什麼？", "外國人用英文怎麼叫{s}？", "請說出{s}的英文。"],
        "domain": ["{s}的網域是什麼？", "{s}的網址以什麼結尾？", "{s}使用什麼網域？", "{s}的網路域名是什麼？", "請告訴我{s}的網域。", "{s}的國家網域是什麼？", "{s}的網站用什麼結尾？", "{s}的網域叫什麼？",
                    "{s}的網址，最後一個點後面是什麼？", "{s}在網路上用哪些字母？", "{s}的公司用什麼網域？", "我看到一個{s}的網站，它的結尾是什麼？", "如果我的店在{s}，要用哪個網域？", "{s}的網路代碼是什麼？", "請說出{s}的網域。"],
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
           "Suppose I go there: {t}?", "Which is {t}?", "Have you heard of {t}?", "Remind me of {t}.", "If someone asks me for {t}, what do I say?",
           "I am writing a report and need {t}.", "Today's lesson is about {t}.", "What would you say is {t}?", "I need {t} for a form.",
           "In the news they spoke of {t}. What is it?", "For a friend's quiz: {t}?", "If I want to learn {t}, what do I read?", "Let us talk about {t}.",
           "Before I leave, I must know {t}.", "My teacher asked me about {t}."],
    "zh": ["可以告訴我{t}嗎？", "我想知道{t}。", "{t}？", "請寫出{t}。", "作業問{t}。", "我忘了{t}。", "朋友想知道{t}。", "能不能說一下{t}？",
           "去旅行之前，我該知道{t}。", "你聽過{t}嗎？", "提醒我{t}。", "假如我要去那裡，{t}？", "講一下{t}。", "{t}是哪個？", "有人問{t}，怎麼回答？", "如果有人問我{t}，我該說什麼？", "我在寫報告，需要{t}。",
           "今天上課講到{t}。", "你覺得{t}是什麼？", "表格上要填{t}。", "新聞提到{t}，那是什麼？", "出發之前，我要先知道{t}。", "老師問我{t}。", "如果我想查{t}，答案是什麼？",
           "來聊聊{t}。"],
}
UNSEEN_PHRASINGS: dict[str, dict[str, list[str]]] = {
    "en": {
        "capital": ["Do you know which city serves as {s}'s capital?", "If I want to see the capital of {s}, which city do I visit?", "Give me the name of {s}'s capital city.",
                    "Which city does {s} have as its capital?", "I am writing about {s}: what should I put down as its capital?"],
        "country": ["Do you know the country whose capital is {s}?", "If I fly to {s}, in which country do I land?", "Give me the name of the country that has {s} as capital.",
                    "{s} is the seat of government of what nation?", "In a quiz they ask whose capital {s} is. What do I answer?"],
        "currency": ["Do you know what currency is used in {s}?", "If I go shopping in {s}, which money do I need?", "Give me the name of {s}'s currency.",
                    "How do shoppers pay in {s}, in which currency?", "Before my holiday in {s}, what money should I get?"],
        "language": ["Do you know which language they speak in {s}?", "If I move to {s}, which language should I learn?", "Give me the name of {s}'s language.",
                    "Which language do the people of {s} use among themselves?", "Which language would a teacher in {s} use?"],
        "region": ["Do you know in which part of the world {s} lies?", "If I travel to {s}, which region do I go to?", "Give me the name of {s}'s region.",
                    "Whereabouts in the world is {s}?", "On a globe, in what region would I look for {s}?"],
        "name": ["Do you know {s}'s name in Chinese?", "If I write about {s} in Chinese, what do I call it?", "Give me the Chinese word for {s}.",
                    "What would a Chinese newspaper call {s}?", "How would I say {s} to a Chinese friend?"],
        "domain": ["Do you know {s}'s domain on the internet?", "If I open a website from {s}, how does its address end?", "Give me the internet domain that belongs to {s}.",
                    "Which letters end a web address from {s}?", "What is the top-level domain for {s}?"],
    },
    "zh": {
        "capital": ["你知道{s}的首都是哪一座城市嗎？", "如果我想看{s}的首都，該去哪座城市？", "說說看，{s}的首都名稱是？",
                    "{s}這個國家的首都是哪一個城市呢？", "猜猜看，{s}的首都是哪座城市？"],
        "country": ["你知道首都是{s}的是哪個國家嗎？", "如果我飛到{s}，我會到哪個國家？", "說說看，{s}這座首都是哪國的？",
                    "{s}是什麼國家的首都城市呢？", "考考你，把首都設在{s}的是哪國？"],
        "currency": ["你知道{s}人用的是哪種貨幣嗎？", "如果我去{s}買東西，要先換什麼錢？", "說說看，{s}的貨幣名稱是？",
                    "到{s}玩之前，我該準備哪種貨幣？", "{s}的商店收的是什麼錢呢？"],
        "language": ["你知道{s}人講的是哪種語言嗎？", "如果我搬到{s}，應該學哪種語言？", "說說看，{s}通行的語言是？",
                    "和{s}人聊天要用什麼語言？", "{s}的老師上課說的是哪種語言？"],
        "region": ["你知道{s}在世界上的哪一帶嗎？", "如果我去{s}旅行，是到哪個地區？", "說說看，{s}所在的地區是？",
                    "{s}大概在地球上的哪個地區呢？", "打開世界地圖，{s}在哪一個區域？"],
        "name": ["你知道{s}在英文裡叫做什麼嗎？", "如果我用英文寫{s}，要寫成什麼？", "說說看，{s}的英文國名是？",
                    "英文報紙會怎麼稱呼{s}？", "跟外國朋友提到{s}，英文要怎麼講？"],
        "domain": ["你知道{s}在網路上的網域嗎？", "如果我打開{s}的網站，網址最後是什麼？", "說說看，{s}的國家頂級網域是？",
                    "{s}的網址最後幾個字母是什麼？", "想註冊{s}的網域，結尾是什麼？"],
    },
}
ANSWERS: dict[str, dict[str, list[str]]] = {
    "en": {
        "capital": ["The capital of {s} is {v}."], "country": ["The country of {s} is {v}."], "currency": ["The currency of {s} is the {v}."],
        "language": ["The main language of {s} is {v}."], "region": ["The region of {s} is {v}."], "name": ["In Chinese, {s} is called {v}."],
        "domain": ["The internet domain of {s} is {v}."],
    },
    "zh": {
        "capital": ["{s}的首都是{v}。"], "country": ["{s}所在的國家是{v}。"], "currency": ["{s}的貨幣是{v}。"], "language": ["{s}的主要語言是{v}。"],
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


def statement(fact: Fact, lang: str) -> str:
    """The fact as a sentence of the language."""
    return ANSWERS[lang][fact.attribute][0].format(s=fact.subject[lang], v=fact.value[lang])


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
