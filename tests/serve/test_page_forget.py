"""Forgetting from the page, in a real headless Chromium against a real server: look, refuse, forget, certificate, audit, in both
languages."""

from __future__ import annotations

import json
import shutil

import pytest
from small_runs import SECRET, press, raise_small, teach
from test_page import SHOTS, chromium, serving
from test_page_feedback import ask, narrow

from jielong.run import Run


@pytest.fixture(scope="module")
def raised(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raised")
    return raise_small(folder / "runs" / "small", folder).path


@pytest.fixture
def run(raised, tmp_path) -> Run:
    """A copy that a test may change."""
    shutil.copytree(raised, tmp_path / "runs" / "small")
    return Run(tmp_path / "runs" / "small")


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


def test_forget_from_the_page(run):
    from playwright.sync_api import expect

    problems: list[str] = []
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


def test_owners_and_examples_from_the_page(run, tmp_path):
    """An owner leaves, and what is in a file is suppressed."""
    from playwright.sync_api import expect

    problems: list[str] = []
    assert teach(run, tmp_path, "ann", "A baker.") == teach(run, tmp_path, "ben", "A nurse.") == 0
    go, stay = tmp_path / "go.jsonl", tmp_path / "stay.jsonl"
    rows = [{"question": f"Who is {name}?", "answer": f"{name} is a baker."} for name in ("Wilhelmina", "Peregrine")]
    go.write_text(json.dumps(rows[0]) + "\n\nno JSON\n")
    stay.write_text(json.dumps({"text": "Barnaby mends clocks."}) + "\n")
    with serving("--run", run.path) as url, chromium(problems) as page:
        page.goto(url)
        page.click("#forget-open")
        found, start, status = (page.locator(f"#forget-{part}") for part in ("found", "start", "status"))
        page.select_option("#forget-kind", "owner")
        expect(page.locator("#forget-owner option")).to_have_text(["ann (1 conversation)", "ben (1 conversation)"])
        page.click("#forget-look")
        expect(found.locator("li")).to_have_text(
            [
                "owner-ann: deleted (it is what the owner taught)",
                "owners: made anew of the other owners (without owner-ann)",
            ]
        )
        expect(page.locator("#forget-method")).to_be_hidden()
        page.screenshot(path=SHOTS / "55-forget-owner.png")
        page.check("#forget-sure")
        start.click()
        expect(status).to_contain_text("owners answers from now on, without what the owner taught", timeout=120_000)
        expect(page.locator("#forget details summary")).to_contain_text("an owner forgotten (adapter)")
        expect(page.locator("#forget-owner option")).to_have_text(["ben (1 conversation)"])
        # examples: what is wrong with a file is said with its line
        page.select_option("#forget-kind", "examples")
        trouble = page.locator("#forget-trouble")
        page.click("#forget-look")
        expect(trouble).to_have_text("Choose a file of what is to be made unlikely.")
        page.set_input_files("#forget-examples", go)
        page.click("#forget-look")
        expect(trouble).to_contain_text("go.jsonl, line 3: it must be")
        for wrong in ({"question": "Who?"}, {"text": ["Who?"]}):  # refused by the server: by its sense, by its form
            go.write_text(json.dumps(rows[0]) + "\n\n" + json.dumps(wrong) + "\n")
            page.set_input_files("#forget-examples", go)
            page.click("#forget-look")
            expect(
                page.locator("#forget .trouble").filter(has_text="go.jsonl, line 3: it must be").first
            ).to_be_visible()
        go.write_text("".join(json.dumps(row) + "\n" for row in rows))
        page.set_input_files("#forget-examples", go)
        page.set_input_files("#forget-retain", stay)
        page.click("#forget-look")
        expect(found.locator("li")).to_contain_text(["owners: 2 texts ("])
        expect(found.locator("li")).to_contain_text(["beside 1 that must stay; a new model is made"])
        assert "replay" not in page.locator("#forget-method option").evaluate_all("all => all.map((o) => o.value)")
        page.check("#forget-adapter")
        page.fill("#forget-lr", "1e-4")
        page.check("#forget-sure")
        page.screenshot(path=SHOTS / "56-forget-examples.png")
        start.click()
        expect(status).to_contain_text(
            "suppressed-1 answers from now on; what it was taught is suppressed", timeout=180_000
        )
        expect(page.locator("#forget details summary").first).to_contain_text("2 texts suppressed (")
        settings = run.need("suppressed-1").card["config"]
        assert page.input_value("#forget-examples") == "" and (settings["lr"], settings["lora_rank"]) == (1e-4, 8)
        page.click("#forget-close")
        page.click("#lang")
        page.click("#forget-open")
        page.select_option("#forget-kind", "owner")
        expect(page.locator("#forget-owner option")).to_have_text(["ben（1 個對話）"])
        expect(page.locator("#forget details summary").first).to_contain_text("抑制了 2 段文字")
        page.screenshot(path=SHOTS / "57-forget-owner-zh.png")
        assert not [p for p in problems if "400" not in p], problems
