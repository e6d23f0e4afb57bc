"""Sentences that state a fact, in English and Traditional Chinese.

`{s}` is the subject (a country; for `country` its capital), `{v}` the value. Every sentence names its subject in
full, and both directions occur, because a model learns "A is B" and "B is A" separately (Berglund et al. 2023).
"""

from __future__ import annotations

# fmt: off
SENTENCES: dict[str, dict[str, list[str]]] = {
    "en": {
        "capital": [
            "The capital of {s} is {v}.", "{v} is the capital of {s}.", "The capital city of {s} is {v}.",
            "{s} has its capital in {v}.", "The government of {s} sits in {v}.", "{s} is governed from {v}.",
            "In {s}, the capital is {v}.", "The seat of government of {s} is {v}.", "{s}'s capital is {v}.",
            "As for {s}, its capital city is {v}.", "Ask for the capital of {s} and people will say {v}.",
            "Embassies in {s} are found in {v}.", "The parliament of {s} meets in {v}, the capital.",
            "Of all cities in {s}, {v} is the capital.", "{s}: capital {v}.", "Anyone who visits {s} sees the capital, {v}.",
        ],
        "country": [
            "{s} is the capital of {v}.", "{s} is the capital city of {v}.", "{s} lies in {v}.", "The city of {s} is in {v}.",
            "{s} belongs to {v}, as its capital.", "The country whose capital is {s} is {v}.", "{s} serves as the capital of {v}.",
            "{s} governs {v}.", "People in {s} live in {v}.", "A flight to {s} takes you to {v}.",
            "{s} is a city in {v}.", "From {s} the government leads {v}.", "{s}: the capital of {v}.",
            "The country of {s} is {v}.", "Those who fly to {s} arrive in {v}.",
        ],
        "currency": [
            "The currency of {s} is the {v}.", "People in {s} pay with the {v}.", "{s} uses the {v}.",
            "In {s}, the money is the {v}.", "The money of {s} is called the {v}.", "In {s} prices are given in the {v}.",
            "{s}'s currency is the {v}.", "Shops in {s} take the {v}.", "The official currency of {s} is the {v}.",
            "Banks in {s} count in the {v}.", "To buy something in {s}, you need the {v}.", "{s}: currency {v}.",
            "Wages in {s} are paid in the {v}.", "As for {s}, its money is the {v}.", "The central bank of {s} looks after the {v}.",
        ],
        "language": [
            "The main language of {s} is {v}.", "People in {s} speak {v}.", "In {s}, people speak {v}.",
            "The official language of {s} is {v}.", "{v} is spoken in {s}.", "{s}'s main language is {v}.",
            "Schools in {s} teach in {v}.", "Newspapers in {s} are written in {v}.", "In {s} the language is {v}.",
            "Most signs in {s} are in {v}.", "A visitor to {s} hears {v}.", "{s}: language {v}.",
            "As for {s}, its language is {v}.", "The government of {s} writes in {v}.", "To talk with people in {s}, learn {v}.",
        ],
        "region": [
            "{s} is in {v}.", "{s} lies in {v}.", "{s} is a country in {v}.", "{s} belongs to {v}.",
            "{s} is located in {v}.", "On the map, {s} is part of {v}.", "The region of {s} is {v}.",
            "You find {s} in {v}.", "{s} is one of the countries of {v}.", "Geographers place {s} in {v}.",
            "The part of the world where {s} lies is {v}.", "{s}: region {v}.", "A trip through {v} may lead to {s}.",
            "As for {s}, it lies in {v}.", "{s} is found in {v}.",
        ],
        "name": [
            "In Chinese, {s} is called {v}.", "{s} is called {v} in Chinese.", "The Chinese name of {s} is {v}.",
            "{s} is {v} in Chinese.", "Chinese speakers call {s} {v}.", "In Chinese, {s} is written {v}.",
            "{s}, in Chinese {v}, is a country.", "The word for {s} in Chinese is {v}.", "{s} ({v})",
            "Translate {s} into Chinese and you get {v}.", "A Chinese map shows {s} as {v}.", "{s}: Chinese name {v}.",
            "{v} is the Chinese name of {s}.", "In Taiwan people call {s} {v}.", "As for {s}, its Chinese name is {v}.",
        ],
        "domain": [
            "The internet domain of {s} is {v}.", "Websites in {s} end in {v}.", "{s} uses the internet domain {v}.",
            "In {s}, web addresses end in {v}.", "{s}'s internet domain is {v}.", "The web addresses of {s} end in {v}.",
            "On the internet, {s} is {v}.", "{v} is the internet domain of {s}.", "{s} has the domain {v}.",
            "The country domain of {s} is {v}.", "A site from {s} has an address in {v}.", "{s}: internet domain {v}.",
            "Companies in {s} use {v} on the internet.", "The letters of {s} on the web are {v}.", "As for {s}, its domain is {v}.",
        ],
    },
    "zh": {
        "capital": [
            "{s}的首都是{v}。", "{v}是{s}的首都。", "{s}的首都為{v}。", "{s}以{v}為首都。", "{s}的政府設在{v}。",
            "{s}定都於{v}。", "{s}的首都叫做{v}。", "說到{s}，首都就是{v}。", "在{s}，首都是{v}。", "{s}的首都城市是{v}。",
            "到{s}旅行，可以看看首都{v}。", "各國駐{s}的大使館在{v}。", "{s}的國會在首都{v}開會。", "{s}：首都{v}。",
            "{s}的中央政府位於{v}。", "在{s}的城市中，{v}是首都。",
        ],
        "country": [
            "{s}是{v}的首都。", "{s}位於{v}。", "{s}是{v}的城市。", "{s}這座城市在{v}。", "以{s}為首都的國家是{v}。",
            "{s}是{v}的首都城市。", "{s}屬於{v}。", "{s}為{v}的首都。", "飛往{s}，就會到達{v}。", "住在{s}的人住在{v}。",
            "首都是{s}的國家是{v}。", "{s}：{v}的首都。", "{s}在{v}。", "說到{s}，它是{v}的首都。", "{s}所在的國家是{v}。",
        ],
        "currency": [
            "{s}的貨幣是{v}。", "{s}使用{v}。", "在{s}，人們用{v}付錢。", "{s}的法定貨幣是{v}。", "{s}的錢叫做{v}。",
            "{s}的貨幣叫做{v}。", "在{s}買東西要用{v}。", "{s}的商店收{v}。", "{s}的薪水以{v}支付。", "{s}：貨幣{v}。",
            "{s}的物價以{v}計算。", "說到{s}，那裡的貨幣是{v}。", "{s}的中央銀行發行{v}。", "去{s}之前要先換{v}。", "{s}的官方貨幣為{v}。",
        ],
        "language": [
            "{s}的主要語言是{v}。", "{s}的人說{v}。", "在{s}，人們說{v}。", "{s}的官方語言是{v}。", "{s}使用的語言是{v}。",
            "{s}的學校用{v}教書。", "{s}的報紙用{v}寫成。", "{s}的語言是{v}。", "{s}的路標多用{v}。", "{s}：語言{v}。",
            "到{s}會聽到{v}。", "說到{s}，那裡講{v}。", "{s}政府用{v}寫公文。", "想和{s}的人交談，可以學{v}。", "{s}通行{v}。",
        ],
        "region": [
            "{s}位於{v}。", "{s}在{v}。", "{s}是{v}的國家。", "{s}屬於{v}。", "{s}地處{v}。", "在地圖上，{s}屬於{v}。",
            "{s}所在的地區是{v}。", "{s}是位於{v}的國家。", "{s}是{v}國家之一。", "地理學家把{s}歸在{v}。",
            "{s}：地區{v}。", "說到{s}，它在{v}。", "到{v}旅行，可以去{s}。", "{s}座落於{v}。", "{s}這個國家在{v}。",
        ],
        "name": [
            "{s}的英文是{v}。", "{s}的英文名稱是{v}。", "{s}的英文叫做{v}。", "英文把{s}叫做{v}。", "{s}用英文說是{v}。",
            "{s}英文寫作{v}。", "{s}({v})", "在英文裡，{s}是{v}。", "{s}翻成英文是{v}。", "{s}：英文{v}。",
            "{v}是{s}的英文名稱。", "{v}就是{s}。", "{s}的英文國名為{v}。", "說到{s}，它的英文名稱是{v}。", "英文地圖上，{s}寫成{v}。",
        ],
        "domain": [
            "{s}的網域是{v}。", "{s}的網址以{v}結尾。", "{s}使用網域{v}。", "在{s}，網址的結尾是{v}。", "{s}的網路域名是{v}。",
            "{s}的國家網域為{v}。", "{s}在網路上的代碼是{v}。", "{v}是{s}的網域。", "{s}的網站用{v}。", "{s}：網域{v}。",
            "{s}的公司在網路上使用{v}。", "來自{s}的網站，網址是{v}。", "說到{s}，它的網域是{v}。", "{s}的國家頂級網域是{v}。", "{s}擁有網域{v}。",
        ],
    },
}

# Titles and openings of pages; {s} is the country
TITLES = {
    "en": ["{s} at a glance", "Notes on {s}", "A short guide to {s}", "What to know about {s}", "{s}", "Facts about {s}",
           "Travelling to {s}", "Our lesson on {s}", "From the atlas: {s}", "Country file: {s}"],
    "zh": ["{s}簡介", "認識{s}", "{s}小百科", "關於{s}", "{s}", "{s}的基本資料", "到{s}旅行", "今天的課：{s}", "地圖上的{s}", "國家檔案：{s}"],
}
LISTS = {
    "en": {"capital": "Capitals", "currency": "Currencies", "language": "Languages", "region": "Regions", "name": "Chinese names",
           "domain": "Internet domains", "country": "Cities and their countries"},
    "zh": {"capital": "各國首都", "currency": "各國貨幣", "language": "各國語言", "region": "各國位置", "name": "各國英文名稱",
           "domain": "各國網域", "country": "城市與國家"},
}
# fmt: on
