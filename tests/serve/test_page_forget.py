"""Forgetting from the page, in a real headless Chromium against a real server: look, refuse, forget, certificate, audit, in both
languages."""

from __future__ import annotations

import json

from small_runs import SECRET, press, raise_small
from test_page import SHOTS, chromium, serving
from test_page_feedback import ask, narrow


class Work:
    """A server whose forgetting goes on until it is stopped."""

    def __init__(self, page):
        self.state, self.unfinished = "running", False
        self.events = [
            {"event": "start"}, {"event": "stage", "stage": "corpus"}, {"event": "stage", "stage": "base"},
            {"event": "step", "stage": "base", "step": 120, "of": 260},
        ]  # fmt: skip
        page.route("**/v1/forget", lambda route: route.fulfill(json=self.told()))
        page.route("**/v1/forget/events", self.follow)
        page.route("**/v1/forget/stop", self.stop)
        page.route("**/v1/forget/finish", self.finish)

    def told(self):
        return {"state": self.state, "events": self.events, "unfinished": self.unfinished}

    def follow(self, route):
        lines = "".join(f"data: {json.dumps(e)}\n\n" for e in self.events)
        end = "" if self.state == "running" else "data: [DONE]\n\n"  # else the line breaks
        route.fulfill(body=lines + end, content_type="text/event-stream")

    def stop(self, route):
        self.state, self.events = "failed", [*self.events, {"event": "error", "code": "stopped", "message": "…"}]
        route.fulfill(json={"state": "failed"})

    def finish(self, route):
        result = {"event": "result", "number": 1, "word": "forgotten", "model": "sft"}
        self.state, self.unfinished, self.events = "done", False, [{"event": "stage", "stage": "commit"}, result]
        route.fulfill(status=202, json={"state": "running"})


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
        expect(entry.locator("li").filter(has_text="語料原本的檔案、備份")).to_be_visible()
        page.screenshot(path=SHOTS / "53-forget-zh-dark.png")
        # how a long one looks, whose events are made up here: it goes on after a reload, is stopped, or must be finished
        work = Work(page)
        page.reload()
        expect(page.locator("#forget-open")).to_have_text("遺忘 · 120/260")
        page.click("#forget-open")
        expect(page.locator("#forget ol .now")).to_have_text("base 120/260")
        expect(look).to_be_hidden()
        page.screenshot(path=SHOTS / "54-forget-running.png")
        page.click("#forget-stop")
        expect(page.locator("#forget-trouble")).to_contain_text("已停止，什麼都沒有改")
        expect(look).to_be_visible()
        work.unfinished = True
        page.reload()
        page.click("#forget-open")
        page.get_by_role("button", name="把它完成").click()
        expect(page.locator("#forget-status")).to_contain_text("完成：帳本第 1 筆。從現在起由 sft 回答")
        assert not [p for p in problems if "400" not in p], problems
