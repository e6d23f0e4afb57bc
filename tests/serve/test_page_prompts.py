"""Prompts before a talk: over HTTP, and in the page in a real headless Chromium."""

from __future__ import annotations

import json

import pytest
from fastapi.testclient import TestClient
from test_page import SHOTS, chromium
from test_page_feedback import ask, get, narrow, served

from jielong.generate.engine import Engine
from jielong.prompt.store import BUILT_IN
from jielong.serve.app import Served, make_app

__all__ = ["served"]

FOUND = """name: opposites
title: Opposites <b>found</b>
purpose: Shows two.
lang: en
variable: tone = kind
---
Be {{tone}}.
=== user
Word: hot
=== assistant
cold
=== user
Word: {{input}}
"""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def test_the_library_over_http(model, tokenizer, tmp_path):
    (tmp_path / "prompts").mkdir()
    (tmp_path / "prompts" / "opposites.en.md").write_text(FOUND, encoding="utf-8")
    (tmp_path / "prompts" / "broken.md").write_text("nothing", encoding="utf-8")
    with TestClient(make_app([Served(Engine(model, tokenizer, name="sft"), tmp_path)])) as client:
        told = client.get("/v1/prompts").json()
        assert len(told["data"]) == len(list(BUILT_IN.iterdir())) + 1
        (mine,) = [p for p in told["data"] if p["source"] == "run"]
        assert (
            mine["system"] == "Be {{tone}}."
            and mine["shots"] == [["Word: hot", "cold"]]
            and mine["ask"] == "Word: {{input}}"
        )
        assert mine["variables"] == [{"name": "tone", "default": "kind"}] and mine["labels"] == []
        (problem,) = told["problems"]
        assert "broken.md" in problem
        assert client.get("/v1/prompts?model=sft").json() == told
        assert client.get("/v1/prompts?model=other").status_code == 404


def test_a_prompt_is_picked_before_a_talk_and_stays_with_it(served, life):
    from playwright.sync_api import expect

    (life / "prompts").mkdir(exist_ok=True)
    own = life / "prompts" / "opposites.en.md"
    own.write_text(FOUND, encoding="utf-8")
    problems: list[str] = []
    sent: list[list[dict[str, str]]] = []
    try:
        with chromium(problems) as page:
            page.on("request", lambda r: sent.append(json.loads(r.post_data or "{}")["messages"]) if r.url.endswith("/v1/chat/completions") else None)  # fmt: skip
            page.goto(served)
            expect(page.locator("#role")).to_be_visible()
            titles = page.locator("#role option").all_text_contents()
            assert titles[0] == "itself" and titles.index("Translator") < titles.index("翻譯")
            assert "Opposites <b>found</b>" in titles
            # a role of the library, with a value of one's own
            page.select_option("#role", label="Translator")
            expect(page.locator(".role-text")).to_contain_text("a translator into French")
            page.fill(".roles input", "Latin {{input}}")
            expect(page.locator(".role-text")).to_contain_text("a translator into Latin {{input}}.")
            page.screenshot(path=SHOTS / "30-role.png")
            narrow(page, "31-role-phone.png")
            page.reload()  # what was chosen is still there
            expect(page.locator(".role-text")).to_contain_text("Latin")
            ask(page, "Good morning")
            assert [m["role"] for m in sent[-1]] == ["system", "user"]
            assert "Latin {{input}}." in sent[-1][0]["content"] and sent[-1][1]["content"] == "Good morning"
            expect(page.locator(".role-shown summary")).to_have_text("Prompt: Translator")
            box = page.locator(".role-shown").bounding_box()
            first = page.locator(".turn").first.bounding_box()
            assert box and first and box["y"] < first["y"]
            ask(page, "And now?")
            assert [m["role"] for m in sent[-1]] == ["system", "user", "assistant", "user"]
            page.screenshot(path=SHOTS / "32-role-talk.png")
            # another talk has none; one with demonstrations and a form for what the user says
            page.click("#new")
            expect(page.locator("#role")).to_have_value("")
            page.select_option("#role", label="Opposites <b>found</b>")
            ask(page, "up {{tone}}")
            assert [m["content"] for m in sent[-1]] == ["Be kind.", "Word: hot", "cold", "Word: up {{tone}}"]
            assert page.locator(".turn.user .text").text_content() == "up {{tone}}"
            assert page.locator("#log b").count() == 0
            # in Chinese its own prompts come first, and nothing is left of one that is taken back
            page.click("#new")
            page.click("#lang")
            titles = page.locator("#role option").all_text_contents()
            assert titles[0] == "它自己" and titles.index("翻譯") < titles.index("Translator")
            page.select_option("#role", label="翻譯")
            expect(page.locator(".role-text")).to_contain_text("譯成英文的翻譯")
            page.select_option("#role", label="它自己")
            ask(page, "早安")
            assert [m["role"] for m in sent[-1]] == ["user"]
            assert page.locator(".role-shown").count() == 0
            assert not problems, problems
        assert json.loads(get(served, "/v1/prompts"))["problems"] == []
    finally:
        own.unlink()
