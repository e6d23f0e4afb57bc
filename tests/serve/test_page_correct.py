"""Correct this answer, in a real headless Chromium against the real server. What takes a trained model (an answer that says a fact, an
edit that is kept or refused by the guard) is given to the page as the server would say it (tests/edit/test_edit_api.py)."""

from __future__ import annotations

import json
import re
from typing import Any

from test_page import SHOTS, chromium, serving
from test_page_feedback import ask, narrow, until

SAID = "I can help. The capital of France is Paris. Thank you!"
FACT = {"prompt": "The capital of France is", "subject": "France", "old": "Paris", "target": "Lyon"}
CHINESE = {"prompt": "法國的首都是", "subject": "法國", "old": "巴黎", "target": "里昂"}
BEFORE = {"efficacy": 0.0, "knowledge_kept": 1.0, "bits_per_byte": 0.7123}
DONE = {"id": "abcd1234", "model": "edited-1", "fact": FACT | {"also": [CHINESE]}, "before": BEFORE, "after": {"efficacy": 1.0, "knowledge_kept": 0.99, "bits_per_byte": 0.7124, "weights": 0.01}}  # fmt: skip
BROKEN = {"name": "knowledge_kept", "now": 0.9, "before": 1.0, "bound": 0.97, "least": True, "percent": True}
REFUSED = {
    "error": {
        "message": "Refused …",
        "code": "refused",
        "values": {"broken": [BROKEN], "next": [{"ridge": 100.0}, {"method": "memit"}]},
    }
}
LEDGER = {"changes": [{"edits": [{"id": "abcd1234", **FACT}]}], "in_use": ["abcd1234"]}


def mark(page, text: str, button: str) -> None:
    """Select the text in the answer as a person does, then press the button."""
    page.evaluate(
        """(text) => { const node = document.querySelector("#correct blockquote").firstChild, at = node.data.indexOf(text);
        getSelection().setBaseAndExtent(node, at, node, at + text.length); }""",
        text,
    )
    page.get_by_role("button", name=button).click()


def field(page, name: str) -> str:
    return page.locator(f"#correct-{name}").input_value()


def test_correct_this_answer(small_run):
    from playwright.sync_api import expect

    problems: list[str] = []
    asked: list[dict] = []

    def saying(route):
        data = {"id": "chat-1", "choices": [{"index": 0, "delta": {"content": SAID}, "logprobs": {"content": [
            {"id": 5, "token": SAID, "bytes": list(SAID.encode()), "logprob": -0.1, "top_logprobs": []}]}, "finish_reason": "stop"}]}  # fmt: skip
        route.fulfill(
            status=200, content_type="text/event-stream", body=f"data: {json.dumps(data)}\n\ndata: [DONE]\n\n"
        )

    def edits(status: int, body: dict):
        def answer(route):
            asked.append(route.request.post_data_json)
            route.fulfill(status=status, content_type="application/json", body=json.dumps(body))

        page.unroute("**/v1/edit")
        page.route("**/v1/edit", answer)

    with serving("--run", small_run, "--feedback", "off") as url, chromium(problems) as page:
        page.route("**/v1/chat/completions", saying)
        page.goto(url)
        ask(page, "What is the capital of France?")
        page.route("**/v1/changes", lambda r: r.fulfill(status=400, json={"error": {"message": "No list."}}))
        page.locator(".correct").click()
        expect(page.locator("#correct blockquote")).to_have_text(SAID)
        expect(page.locator("#correct .trouble")).to_have_text("No list.")
        expect(page.locator("#correct h3")).to_be_hidden()  # no heading without a list
        page.unroute("**/v1/changes")
        # marked: the sentence up to the wrong words, and what it is about
        page.get_by_role("button", name="The marked words are wrong").click()
        expect(page.locator("#correct .trouble")).to_contain_text("Mark some words")
        mark(page, "Paris", "The marked words are wrong")
        mark(page, "France", "The marked words are what it is about")
        assert [field(page, n) for n in ("prompt", "subject", "old")] == ["The capital of France is", "France", "Paris"]
        mark(page, "I can", "The marked words are wrong")
        expect(page.locator("#correct .trouble")).to_contain_text("begin the sentence")
        mark(page, "Paris", "The marked words are wrong")
        # the real server refuses what cannot be meant, and the page says it
        page.fill("#correct-subject", "Spain")
        page.fill("#correct-to", "Lyon")
        page.get_by_role("button", name="Correct", exact=True).click()
        expect(page.locator("#correct .trouble")).to_have_text(
            "“Spain” does not stand in “The capital of France is”. Write it exactly as it stands there."
        )
        # the guard refuses: what broke, and two next steps that one can press
        page.fill("#correct-subject", "France")
        edits(400, REFUSED)
        page.get_by_role("button", name="Correct", exact=True).click()
        expect(page.locator("#correct .trouble li")).to_have_text(
            "other facts kept: 90.0 % (before: 100.0 %); allowed is at least 97.0 %."
        )
        expect(page.locator("#correct .step")).to_have_count(2)
        page.screenshot(path=SHOTS / "40-correct-refused.png")
        sent = {"prompt": FACT["prompt"], "subject": "France", "old": "Paris", "to": "Lyon", "translate": True}
        assert asked == [sent]
        page.route("**/v1/changes", lambda route: route.fulfill(json=LEDGER))
        edits(200, DONE)
        page.locator(".step").nth(1).click()
        expect(page.locator("#correct table tr").nth(1)).to_have_text("the edit, asked freely0.0 %100.0 %")
        expect(page.locator("#correct [role=status]")).to_contain_text("edited-1 answers from now on")
        expect(page.locator("#correct [role=status]")).to_contain_text("法國的首都是 巴黎 → 里昂")
        assert "may stay" not in (page.locator("#correct [role=status]").text_content() or "")
        assert asked[1] == sent | {"method": "memit"}
        page.screenshot(path=SHOTS / "41-correct-done.png")
        narrow(page, "42-correct-phone.png")
        # what is being done stays in sight when the dialog is closed and opened again
        page.set_viewport_size({"width": 1200, "height": 800})
        page.unroute("**/v1/edit")
        held: list[Any] = []
        page.route("**/v1/edit", lambda route: held.append(route))
        page.get_by_role("button", name="Correct", exact=True).click()
        expect(page.locator("#correct [role=status]")).to_contain_text("being made and examined")
        page.locator("#correct-close").click()
        page.locator(".correct").click()
        expect(page.locator("#correct [role=status]")).to_contain_text("being made and examined")
        assert field(page, "to") == "Lyon"
        until(page, lambda: len(held), 1)
        held[0].fulfill(json=DONE | {"fact": FACT})
        expect(page.locator("#correct [role=status]")).to_contain_text("edited-1 answers from now on")
        expect(page.locator("#correct [role=status]")).to_contain_text("In the other language the old answer may stay")
        # undone from the list below
        undone: list[dict] = []
        page.route("**/v1/undo", lambda r: (undone.append(r.request.post_data_json), r.fulfill(json={"model": "sft"})))
        page.locator("#correct ul .undo").click()
        expect(page.locator("#correct [role=status]")).to_have_text("Taken back. sft answers again.")
        assert undone == [{"id": "abcd1234"}]
        # in Chinese, the refusals too: the real server's and the guard's
        page.locator("#correct-close").click()
        page.click("#lang")
        page.locator(".correct").click()
        page.unroute("**/v1/edit")
        page.fill("#correct-prompt", "法國的首都是")
        page.get_by_role("button", name="更正", exact=True).click()
        expect(page.locator("#correct .trouble")).to_have_text("請填寫事實、主詞和對的答案。")
        page.fill("#correct-subject", "日本")
        page.fill("#correct-to", "里昂")
        page.get_by_role("button", name="更正", exact=True).click()
        expect(page.locator("#correct .trouble")).to_have_text(
            "「法國的首都是」裡沒有「日本」，主詞要和句子裡寫的一模一樣。"
        )
        edits(400, REFUSED)
        page.get_by_role("button", name="更正", exact=True).click()
        expect(page.locator("#correct .trouble li")).to_have_text(
            "保住的其他事實：90.0 %（之前 100.0 %），至少要有 97.0 %。"
        )
        page.screenshot(path=SHOTS / "43-correct-zh.png")
        assert not [p for p in problems if "400" not in p], problems
        # corrected in another window: this one asks the new model as soon as it is looked at (and, as the server does not know it, gets 404)
        page.locator("#correct-close").click()
        told = {"card": {"name": "edited-1"}, "models": ["edited-1", "sft"]}
        page.route(re.compile(r"/v1/run"), lambda route: route.fulfill(json=told))
        page.evaluate("dispatchEvent(new Event('focus'))")
        expect(page.locator("#model")).to_have_value("edited-1")
