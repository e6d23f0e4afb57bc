"""The whole loop in a real headless Chromium: press thumbs, compare, teach, train from the feedback, see the model switch."""

from __future__ import annotations

import json
import shutil

import httpx
from people import TRAINING, press, served
from test_page import SHOTS, chromium
from test_page_feedback import ask, until

from jielong.run import Run


def test_from_thumbs_to_another_model(life, tmp_path):
    from playwright.sync_api import expect

    folder = tmp_path / "run"
    for name in ("corpus", "tokenizer", "base", "sft"):
        shutil.copytree(life / name, folder / name)
    press(Run(folder), 240)
    (folder / "settings.json").write_text(json.dumps(TRAINING))
    problems: list[str] = []
    with served(Run(folder), "--improve", str(folder / "settings.json")) as url, chromium(problems) as page:

        def counting() -> dict[str, int]:
            return httpx.get(f"{url}/feedback/stats", timeout=30).json()["counting"]

        page.goto(url)
        expect(page.locator("#about")).to_contain_text("sft", timeout=20_000)
        ask(page, "What is the capital of Japan?")
        page.locator(".icon.up").click()
        until(page, counting, {"thumb": 241})
        page.locator(".teach").click()
        page.fill(".lesson textarea", "The capital of Japan is Tokyo.")
        page.get_by_role("button", name="Save").click()
        until(page, counting, {"thumb": 241, "teach": 1})
        page.locator("h1").click()
        page.keyboard.press("c")
        expect(page.locator(".better:enabled")).to_have_count(2, timeout=60_000)
        page.keyboard.press("1")
        until(page, counting, {"thumb": 241, "teach": 1, "compare": 1})
        # train, with curves, and the model that answers is another one
        page.click("#train")
        page.click("#training-start")
        expect(page.locator("#curves figure")).to_have_count(5, timeout=60_000)
        expect(page.locator("#training-result")).to_contain_text("ppo-1", timeout=120_000)
        page.screenshot(path=SHOTS / "22-trained.png")
        expect(page.locator("#samples tr").nth(3)).to_be_visible()
        expect(page.locator("#about")).to_contain_text("ppo-1", timeout=20_000)
        assert httpx.get(f"{url}/health", timeout=30).json()["model"] == "ppo-1"
        page.click("#training-back")
        expect(page.locator("#about")).to_contain_text("sft", timeout=20_000)
        page.click("#training-close")
        ask(page, "Hello!")
        assert Run(folder).serving() == "sft" and not problems
