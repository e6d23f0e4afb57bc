"""Forgetting from the page, in a real headless Chromium against a real server: look, refuse, forget, certificate, audit, in both
languages."""

from __future__ import annotations

import json

from small_runs import SECRET, press, raise_small
from test_page import SHOTS, chromium, serving
from test_page_feedback import ask, narrow


def test_forget_from_the_page(tmp_path):
    from playwright.sync_api import expect

    problems: list[str] = []
    run = raise_small(tmp_path / "runs" / "small", tmp_path)
    press(run)
    with serving("--run", run.path) as url, chromium(problems, accept_downloads=True) as page:
        page.goto(url)
        ask(page, f"Who is {SECRET}?")
        page.click("#forget-open")
        expect(page.locator("#forget-entries")).to_have_text("Nothing yet.")
        look, trouble = page.locator("#forget-look"), page.locator("#forget .trouble")
        look.click()
        expect(trouble.last).to_have_text("Write what is to be forgotten.")
        page.fill("#forget-text", "Nobody Atall")
        look.click()
        expect(page.locator("#forget-found .trouble")).to_contain_text("Nothing in the corpus")
        expect(page.locator("#forget-start")).to_be_hidden()
        page.select_option("#forget-kind", "grep")
        page.fill("#forget-text", "Every summer")
        look.click()
        expect(page.locator("#forget-found .trouble")).to_contain_text("% of the documents, more than 50 %")
        # what says it, what would be done, and only then a button that does it
        page.select_option("#forget-kind", "name")
        page.fill("#forget-text", SECRET.upper())
        expect(page.locator("#forget-found")).to_be_hidden()
        look.click()
        found = page.locator("#forget-found")
        expect(found).to_contain_text("3 records say it: documents 1, conversations 1, answers in the feedback 1.")
        expect(found.locator("mark").first).to_have_text(SECRET)
        expect(found.locator("li").filter(has_text="base:")).to_contain_text(
            "trained again without them (first seen in"
        )
        expect(page.locator("#forget-start")).to_be_disabled()
        page.check("#forget-sure")
        page.fill("#forget-who", f"for {SECRET}")
        page.locator("#forget-found h3").scroll_into_view_if_needed()
        page.screenshot(path=SHOTS / "50-forget-found.png")
        page.click("#forget-start")
        expect(page.locator("#forget-trouble")).to_contain_text("Do not write there what is to be forgotten")
        page.fill("#forget-who", "the person concerned")
        page.fill("#forget-why", "Article 17")
        page.click("#forget-start")
        expect(page.locator("#forget-status")).to_contain_text(
            "entry 1 of the ledger. sft answers from now on", timeout=180_000
        )
        assert page.input_value("#forget-text") == page.input_value("#forget-who") == ""
        # what the browser keeps goes, too; all of this is still there after a reload
        page.locator(".talks").click()
        expect(page.locator(".talks")).to_have_count(0)
        assert SECRET not in page.evaluate("JSON.stringify({...localStorage})")
        page.reload()
        page.click("#forget-open")
        entry = page.locator("#forget details")
        expect(entry).to_have_count(1)
        expect(entry.locator("summary")).to_contain_text("3 records forgotten (replay)")
        expect(entry).to_contain_text("the person concerned; Article 17")
        expect(entry).to_contain_text("base: trained again without them, from step")
        page.click("#forget-verify")
        expect(page.locator("#forget-verdict")).to_contain_text("The ledger holds: 1 entry")
        with page.expect_download() as download:
            page.locator(".certificate").click()
        certificate = json.loads(download.value.path().read_text())
        assert certificate["entry"]["number"] == 1 and SECRET not in json.dumps(certificate)
        page.locator("#forget summary").scroll_into_view_if_needed()
        page.screenshot(path=SHOTS / "51-forget-ledger.png")
        narrow(page, "52-forget-phone.png")
        page.set_viewport_size({"width": 1200, "height": 800})
        # in Chinese, in the dark
        page.click("#forget-close")
        page.click("#lang")
        page.click("#theme")
        page.click("#forget-open")
        page.fill("#forget-text", SECRET)
        look.click()
        expect(page.locator("#forget-found .trouble")).to_have_text("語料、對話和評價裡都沒有提到它，什麼都沒有改。")
        expect(entry.locator("summary")).to_contain_text("遺忘了 3 筆記錄")
        entry.locator("summary").click()
        expect(entry).to_contain_text("語料原本的檔案、備份")
        page.screenshot(path=SHOTS / "53-forget-zh-dark.png")
        assert not [p for p in problems if "400" not in p], problems
