"""Invented documents and crawl records for the tests of large corpora."""

from __future__ import annotations

import random

WORDS = [
    "river", "hill", "town", "market", "school", "mill", "railway", "valley", "farmer", "wheat", "barley", "sheep",
    "meadow", "spring", "water", "bridge",
]  # fmt: skip
HAN = "河山城鎮市場學校工廠鐵路谷農夫小麥羊草春天水橋車站旅客老樹花鳥雨雪風月日星"


def prose(rng: random.Random, lang: str = "en", sentences: int = 8) -> str:
    """Sentences that no two documents share."""
    if lang == "zh":
        made = [
            "在"
            + "".join(rng.choice(HAN) for _ in range(14))
            + "的時候，有"
            + "".join(rng.choice(HAN) for _ in range(6))
            for _ in range(sentences)
        ]
        return "。".join(made) + "。"
    made = [
        "The "
        + " ".join(rng.choice(WORDS) + rng.choice(["", "s", "er"]) for _ in range(9))
        + " of the "
        + rng.choice(WORDS)
        for _ in range(sentences)
    ]
    return ". ".join(made) + "."


def record(body: bytes, kind: str = "text/html", status: str = "200 OK", url: str = "http://a.example/") -> bytes:
    http = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n\r\n".encode() + body
    head = f"WARC/1.0\r\nWARC-Type: response\r\nWARC-Target-URI: {url}\r\nWARC-Date: 2026-01-01T00:00:00Z\r\nWARC-Record-ID: <urn:x>\r\nContent-Type: application/http; msgtype=response\r\nContent-Length: {len(http)}\r\n\r\n"
    return head.encode() + http + b"\r\n\r\n"


def html(text: str) -> bytes:
    top = "<html><body><nav><a href='/'>Home</a></nav><article>"
    return f"{top}<h1>{text[:20]}</h1><p>{text}</p></article></body></html>".encode()
