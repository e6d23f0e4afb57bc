"""The page in a real headless Chromium against the real server; screenshots go to build/screenshots."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SHOTS = Path(__file__).parents[2] / "build" / "screenshots"
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]  # fmt: skip


@pytest.fixture
def url(life):
    process = subprocess.Popen(
        [sys.executable, "-m", "jielong.cli", "serve", "--run", str(life), "--no-open"],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    found = re.search(r"http://\S+", process.stdout.readline())
    assert found
    yield found.group()
    process.terminate()
    process.wait(20)


def test_the_page(url):
    if not CHROMIUM:
        assert not os.environ.get("CI"), "CI must have Chromium"
        pytest.skip("no Chromium here; install it to test the page")
    from playwright.sync_api import expect, sync_playwright

    SHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        page = browser.new_page(viewport={"width": 1200, "height": 800}, locale="en-US")
        problems: list[str] = []
        page.on("pageerror", lambda e: problems.append(str(e)))
        page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        page.goto(url)
        page.screenshot(path=SHOTS / "1-empty.png")
        page.fill("#input", "What is the capital of Japan?")
        page.press("#input", "Enter")
        expect(page.locator(".turn.assistant .tools")).to_have_count(1, timeout=30_000)
        tokens = page.locator(".token")
        assert tokens.count() > 0
        # the chain: candidates with bars, and another one continues
        tokens.first.click()
        expect(page.locator("#candidates li")).to_have_count(10)
        page.screenshot(path=SHOTS / "2-candidates.png")
        page.keyboard.press("Escape")
        expect(page.locator("#panel")).to_be_hidden()
        tokens.first.focus()
        page.keyboard.press("Enter")
        expect(page.locator("#panel")).to_be_visible()
        other = page.locator("#candidates button:not(.chosen)").first
        other.click()
        expect(page.locator(".branch")).to_have_count(1, timeout=30_000)
        # regenerate, colours, languages, themes
        page.locator(".again").click()
        expect(page.locator(".branch")).to_contain_text("2", timeout=30_000)
        page.check("#chain")
        page.click("#lang")
        expect(page.locator("#send")).to_have_text("送出")
        page.click("#theme")
        page.screenshot(path=SHOTS / "3-chain-zh-dark.png")
        # stop: a slow connection, then a second conversation, and all is kept after a reload
        page.click("#new")
        page.fill("#input", "你好！")
        page.click("#send")
        expect(page.locator(".turn.assistant .tools")).to_have_count(1, timeout=30_000)
        page.reload()
        assert page.locator("#list > div").count() == 2
        expect(page.locator(".turn.user")).to_contain_text("你好")
        page.route("**/v1/chat/completions", lambda route: None)  # never answers
        page.fill("#input", "再見")
        page.click("#send")
        page.click("#stop")
        expect(page.locator(".turn.assistant").last).to_contain_text("已停止")
        page.unroute("**/v1/chat/completions")
        page.set_viewport_size({"width": 390, "height": 800})
        page.wait_for_timeout(400)
        page.screenshot(path=SHOTS / "4-phone.png")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        page.click("#menu")
        expect(page.locator("#new")).to_be_visible()
        # text never becomes markup
        page.keyboard.press("Escape")
        page.fill("#input", "<img src=x onerror=alert(1)>")
        page.click("#send")
        expect(page.locator(".turn.assistant .tools").last).to_be_visible(timeout=30_000)
        assert page.locator("#log img").count() == 0
        assert not problems, problems
        browser.close()
