"""The page in a real headless Chromium against the real server; screenshots go to build/screenshots."""

from __future__ import annotations

import contextlib
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


@contextlib.contextmanager
def serving(*options):
    process = subprocess.Popen(
        [sys.executable, "-m", "jielong.cli", "serve", "--no-open", *map(str, options)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout
    try:
        found = re.search(r"http://\S+", process.stdout.readline())
        assert found
        yield found.group()
    finally:
        process.terminate()
        process.wait(20)


@contextlib.contextmanager
def chromium(problems: list[str], **options):
    """A page in a browser; what its scripts complain about goes into `problems`."""
    if not CHROMIUM:
        assert not os.environ.get("CI"), "CI must have Chromium"
        pytest.skip("no Chromium here; install it to test the page")
    from playwright.sync_api import sync_playwright

    SHOTS.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        page = browser.new_page(viewport={"width": 1200, "height": 800}, locale="en-US", **options)
        page.on("pageerror", lambda e: problems.append(str(e)))
        page.on("console", lambda m: problems.append(m.text) if m.type == "error" else None)
        yield page
        browser.close()


def test_the_page(life):
    from playwright.sync_api import expect

    problems: list[str] = []
    with serving("--run", life) as url, chromium(problems) as page:
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
        assert page.locator("#menu").get_attribute("aria-label") == "選單"
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
        assert page.locator("#model").is_hidden() and page.locator("#key").is_hidden()
        assert not problems, problems


def test_two_models_side_by_side_behind_a_key(life, tmp_path):
    from playwright.sync_api import expect

    keys = tmp_path / "keys"
    made = subprocess.run(
        [sys.executable, "-m", "jielong.cli", "key", "--keys", str(keys)], capture_output=True, text=True
    )
    key = made.stdout.split()[-1]
    models = ("--model", f"tuned={life}:sft", "--model", f"base={life}:base")
    problems: list[str] = []
    with serving(*models, "--require-key", "--keys", keys) as url, chromium(problems, accept_downloads=True) as page:
        page.goto(url)
        expect(page.locator("#key")).to_be_visible()
        page.fill("#key-input", "jl-wrong")
        page.press("#key-input", "Enter")
        expect(page.locator("#key-wrong")).to_be_visible()
        page.screenshot(path=SHOTS / "5-key.png")
        page.fill("#key-input", key)
        page.press("#key-input", "Enter")
        expect(page.locator("#key")).to_be_hidden()
        expect(page.locator("#about")).to_contain_text("parameters")
        assert page.locator("#model option").all_text_contents() == ["tuned", "base"]
        page.select_option("#rival", "base")
        page.fill("#input", "What is the capital of Japan?")
        page.press("#input", "Enter")
        expect(page.locator(".side .tools")).to_have_count(2, timeout=30_000)
        assert page.locator(".who").all_text_contents() == ["tuned", "base"]
        page.fill("#input", "日本的首都是哪裡？")
        page.press("#input", "Enter")
        expect(page.locator(".side .tools")).to_have_count(4, timeout=30_000)
        # each continues from its own answers; another link of one chain leaves the other alone
        page.check("#chain")
        past = page.locator(".side").nth(3).locator(".text").text_content()
        page.locator(".side").nth(2).locator(".token").first.focus()
        page.keyboard.press("Enter")
        page.locator("#candidates button:not(.chosen)").first.click()
        expect(page.locator(".branch")).to_have_count(1, timeout=30_000)
        assert page.locator(".side").nth(3).locator(".text").text_content() == past
        page.screenshot(path=SHOTS / "6-compare.png")
        # the other model alone; the choice outlives a reload, the key too
        page.select_option("#model", "base")
        expect(page.locator("#rival")).to_have_value("")
        page.reload()
        expect(page.locator("#model")).to_have_value("base")
        page.fill("#input", "Who are you?")
        page.press("#input", "Enter")
        expect(page.locator(".side .tools")).to_have_count(5, timeout=30_000)
        assert page.locator(".who").all_text_contents()[-1] == "base"
        with page.expect_download() as report:
            page.click("#report")
        assert "<html" in Path(report.value.path()).read_text()
        page.set_viewport_size({"width": 390, "height": 800})
        page.wait_for_timeout(300)
        page.screenshot(path=SHOTS / "7-compare-phone.png")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        refused = [p for p in problems if "401" not in p]
        assert not refused, refused
