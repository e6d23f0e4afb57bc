"""The page's detector, in a real headless Chromium against the real server, which keeps a ledger and marks its answers."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest
from test_page import SHOTS, chromium, serving
from test_page_feedback import narrow


@pytest.fixture
def marked(small_run, tmp_path):
    """A small run behind a server with a watermark and a ledger, in a folder of its own."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "sft").symlink_to(small_run / "sft")
    key = tmp_path / "key.json"
    command = [sys.executable, "-m", "jielong.cli", "detect", "key", str(key), "--run", str(folder), "--context", "2"]
    subprocess.run(command, check=True, capture_output=True)
    with serving("--run", folder, "--watermark", key, "--ledger", "--feedback", "off") as url:
        yield url


def test_look_at_a_text(marked, letters):
    from playwright.sync_api import expect

    problems: list[str] = []
    with chromium(problems) as page:
        page.goto(marked)
        expect(page.locator("#about")).to_contain_text("sft")
        asked = {
            "messages": [{"role": "user", "content": "Hi"}],
            "max_tokens": 90,
            "temperature": 1,
            "seed": 3,
            "logit_bias": letters,
        }
        answer = page.request.post(
            f"{marked}/v1/chat/completions", data=json.dumps(asked), headers={"Content-Type": "application/json"}
        )
        text = answer.json()["choices"][0]["message"]["content"] + " 😀 法國\u200b的首都。"
        page.click("#detect-open")
        expect(page.locator("#detect-text")).to_be_visible()
        page.keyboard.press("u")  # no key of the chat reaches it
        page.fill("#detect-text", text)
        page.click("#detect-look")
        expect(page.locator("#detect-verdict")).to_contain_text("Generated")
        rows = page.locator("#detect-table tr")
        expect(rows.filter(has_text="watermark").first).to_contain_text("random-key")
        expect(rows.filter(has_text="ledger")).to_contain_text("in an answer of sft")
        expect(rows.filter(has_text="disguise")).to_contain_text("undone before measuring: 1")
        # the heat map is the text itself, in colours
        assert page.locator("#detect-map").evaluate("n => n.textContent") == text
        tokens = page.locator("#detect-map .seen")
        assert tokens.count() > 30
        assert {page.evaluate("n => n.className", h) for h in tokens.element_handles()} <= {
            f"seen r{k}" for k in range(5)
        }
        tokens.nth(3).hover()
        expect(page.locator("#detect-token")).to_contain_text("First candidates")
        tokens.nth(5).focus()
        said = tokens.nth(5).get_attribute("title") or ""
        assert said.count("·") == 4
        expect(page.locator("#detect-token")).to_contain_text(said.split(".")[0])
        page.screenshot(path=SHOTS / "22-detect.png")
        narrow(page, "23-detect-phone.png")
        # a text that is too short to say anything; markup stays text
        page.fill("#detect-text", "<b>Hi</b>")
        page.press("#detect-alpha", "5")
        page.click("#detect-look")
        expect(page.locator("#detect-verdict")).to_contain_text("No answer")
        assert page.locator("#detect-map b").count() == 0
        # what the server would refuse is said by the page: nothing but signs, too long (an emoji is one character)
        page.fill("#detect-text", " ?! ")
        page.click("#detect-look")
        expect(page.locator("#detect-trouble")).to_have_text(
            "There is nothing to look at: write or paste a text with letters."
        )
        expect(page.locator("#detect-found")).to_be_hidden()
        page.fill("#detect-text", "😀" * 60_000 + "a" * 40_001)
        page.click("#detect-look")
        expect(page.locator("#detect-trouble")).to_have_text(
            "That is too long: 100,001 characters, and at most 100,000 are looked at."
        )
        # in Chinese, in the dark
        page.click("#detect-close")
        page.click("#lang")
        page.click("#theme")
        page.click("#detect-open")
        expect(page.locator("#detect-trouble")).to_have_text("太長了：100,001 個字元，最多只看 100,000 個。")
        page.fill("#detect-text", "Hi")
        page.click("#detect-look")
        expect(page.locator("#detect-verdict")).to_contain_text("無法回答")
        expect(rows.filter(has_text="fast-detect")).to_contain_text("太短：2 個 token，至少要 50 個")
        expect(rows.filter(has_text="帳本")).to_contain_text("太短：1 個詞，至少要 12 個")
        page.fill("#detect-text", text)
        page.click("#detect-look")
        expect(page.locator("#detect-verdict")).to_contain_text("是生成的")
        for row in rows.all()[1:]:  # notes and standards are said in Chinese
            assert all(re.search(r"[\u4e00-\u9fff]|^–?$", row.locator("td").nth(n).inner_text()) for n in (2, 4))
        page.screenshot(path=SHOTS / "24-detect-zh-dark.png")
        # mistakes of the server are told, and leave no verdict
        page.route(
            "**/v1/detect",
            lambda route: route.fulfill(status=429, body=json.dumps({"error": {"message": "Too many."}})),
        )
        page.click("#detect-look")
        expect(page.locator("#detect-trouble")).to_contain_text("太忙")
        expect(page.locator("#detect-found")).to_be_hidden()
        assert not [p for p in problems if "429" not in p], problems
