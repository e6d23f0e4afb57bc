"""Feedback in the page, in a real headless Chromium against the real server."""

from __future__ import annotations

import json
import time
import urllib.request

import pytest
from test_page import SHOTS, chromium, serving

LOST = "net::ERR_FAILED"


def get(url, path):
    with urllib.request.urlopen(url + path, timeout=30) as response:
        return response.read().decode()


def stats(url):
    return json.loads(get(url, "/feedback/stats"))


def exported(url, form):
    return [json.loads(line) for line in get(url, f"/feedback/export?format={form}").splitlines()]


def letters(text):
    """What is left where the page has drawn Markdown, and half characters."""
    return "".join(c for c in text or "" if c.isalpha())


def until(page, seen, wanted, seconds=20):
    end = time.monotonic() + seconds
    page.wait_for_timeout(50)  # the browser's events come only meanwhile, so once even when all is seen already
    while (found := seen()) != wanted and time.monotonic() < end:
        page.wait_for_timeout(50)
    assert found == wanted


def ask(page, text):
    from playwright.sync_api import expect

    count = page.locator(".turn.assistant").count()
    page.fill("#input", text)
    page.press("#input", "Enter")
    expect(page.locator(".turn.assistant .tools")).to_have_count(count + 1, timeout=60_000)
    expect(page.locator("#stop")).to_be_hidden()


def pressed(page, thumb):
    return page.locator(f".icon.{thumb}").last.get_attribute("aria-pressed") == "true"


def narrow(page, name):
    """A screenshot at a phone's width; nothing may stick out."""
    page.set_viewport_size({"width": 390, "height": 844})
    page.wait_for_timeout(300)
    page.screenshot(path=SHOTS / name)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    page.set_viewport_size({"width": 1200, "height": 800})


@pytest.fixture
def served(life, tmp_path):
    with serving("--run", life, "--feedback", tmp_path / "f.db") as url:
        yield url


def test_thumbs_reasons_lessons(served):
    from playwright.sync_api import expect

    problems: list[str] = []
    with chromium(problems) as page:
        page.goto(served)
        ask(page, "What is the capital of Japan?")
        up, down, status = page.locator(".icon.up"), page.locator(".icon.down"), page.locator(".status")
        assert up.get_attribute("aria-label") == "good answer" and "+ u" in (up.get_attribute("title") or "")
        up.click()
        until(page, lambda: (stats(served)["up"], stats(served)["stored"]), (1, 1))
        # reasons and a comment: the thumb is sent again
        page.get_by_role("button", name="correct", exact=True).click()
        page.get_by_role("button", name="polite", exact=True).click()
        page.fill(".comment", "nice <b>one</b>")
        page.screenshot(path=SHOTS / "8-thumb.png")
        narrow(page, "9-thumb-phone.png")
        page.press(".comment", "Enter")
        expect(page.locator(".reasons")).to_be_hidden()
        until(page, lambda: stats(served)["reasons"], {"correct": 1, "polite": 1})
        (user,) = stats(served)["users"]
        assert (
            user.startswith("user-")
            and len(user) == 13
            and user == page.evaluate("JSON.parse(localStorage.jielong).user")
        )
        (row,) = exported(served, "unpaired-preference")
        said = page.locator(".turn.assistant .text").text_content()
        assert row["label"] is True and letters(row["completion"][0]["content"]) == letters(said)
        # the other one replaces it; pressed again it is undone, with all that was sent for it
        down.click()
        until(page, lambda: (stats(served)["up"], stats(served)["down"], stats(served)["reasons"]), (0, 1, {}))
        until(page, lambda: (pressed(page, "down"), pressed(page, "up")), (True, False))
        page.get_by_role("button", name="made up").click()
        until(page, lambda: stats(served)["reasons"], {"made_up": 1})
        page.reload()
        expect(down).to_have_attribute("aria-pressed", "true")
        down.click()
        until(page, lambda: stats(served)["counting"], {})
        assert not pressed(page, "down") and exported(served, "unpaired-preference") == []
        # each branch has its own
        up.click()
        page.locator(".again").click()
        expect(page.locator(".branch")).to_have_count(1, timeout=60_000)
        expect(up).to_have_attribute("aria-pressed", "false")
        down.click()
        until(page, lambda: (stats(served)["up"], stats(served)["down"]), (1, 1))
        page.locator(".branch").click()
        expect(up).to_have_attribute("aria-pressed", "true")
        expect(down).to_have_attribute("aria-pressed", "false")
        # a lesson
        page.locator(".teach").click()
        assert letters(page.locator(".lesson textarea").input_value()) == letters(said)
        page.fill(".lesson textarea", "東京 <img src=x onerror=alert(1)>")
        page.get_by_role("button", name="Save").click()
        expect(page.locator(".own").first).to_contain_text("Your version: 東京 <img")
        until(
            page, lambda: [r["completion"][0]["content"][:2] for r in exported(served, "prompt-completion")], ["東京"]
        )
        assert page.locator("#log img").count() == 0
        page.locator(".undo").click()
        until(page, lambda: exported(served, "prompt-completion"), [])
        expect(page.locator(".undo")).to_have_count(0)
        # without consent nothing is learnt of it
        page.uncheck("#consent")
        ask(page, "Who are you?")
        up.last.click()
        until(page, lambda: stats(served)["without_consent"], 1)
        assert len(exported(served, "unpaired-preference")) == 2
        expect(status.last).to_be_hidden()
        assert not problems, problems


def test_two_answers_are_compared(served):
    from playwright.sync_api import expect

    problems: list[str] = []
    events: list[dict] = []
    with chromium(problems) as page:
        page.on("request", lambda r: events.append(r.post_data_json) if r.url.endswith("/feedback") else None)
        page.goto(served)
        ask(page, "What is the capital of Japan?")
        old = page.locator(".turn.assistant .text").text_content()
        for n, (shown, button) in enumerate([("other", ".better >> nth=0"), ("answer", ".better >> nth=1")]):
            page.evaluate(f"Math.random = () => {0.9 if shown == 'other' else 0.1}")
            page.locator(".compare").click()
            expect(page.locator(".better:enabled")).to_have_count(2, timeout=60_000)
            page.screenshot(path=SHOTS / "10-compare-answers.png")
            narrow(page, "11-compare-answers-phone.png")
            place = 0 if button.endswith("0") else 1
            chosen = page.locator(".two .text").nth(place).text_content()
            passed = page.locator(".two .text").nth(1 - place).text_content()
            page.locator(button).click()
            until(page, lambda: len(exported(served, "preference")), 1)
            until(page, lambda: [e["kind"] for e in events[-1:]], ["compare"])
            assert events[-1]["value"] == "other" and events[-1]["shown"] == shown
            assert events[-1]["other"] == events[-1]["answer"] + ":1" and events[-1]["user"].startswith("user-")
            (row,) = exported(served, "preference")
            assert letters(row["chosen"][0]["content"]) == letters(chosen)
            assert letters(row["rejected"][0]["content"]) == letters(passed)
            # it is the answer now, can be judged itself, and the old one is a branch
            until(page, lambda: page.locator(".turn.assistant .text").text_content(), chosen)
            expect(page.locator(".branch")).to_contain_text(f"({n + 1})")
            page.locator(".undo").click()
            until(page, lambda: exported(served, "preference"), [])
            until(page, lambda: page.locator(".turn.assistant .text").text_content(), old)
        # neither: the old answer stays, and can be taken back
        page.locator(".compare").click()
        page.locator(".neither:enabled").click(timeout=60_000)
        until(page, lambda: events[-1].get("value"), "neither")
        until(page, lambda: page.locator(".turn.assistant .text").text_content(), old)
        expect(page.locator(".own:visible")).to_contain_text("neither was good")
        # one that is broken off, and one that fails, leave the old answer
        page.route("**/v1/chat/completions", lambda route: None)
        page.locator(".compare").click()
        expect(page.locator(".better:disabled")).to_have_count(2)
        page.click("#stop")
        until(page, lambda: page.locator(".turn.assistant .text").text_content(), old)
        page.unroute("**/v1/chat/completions")
        page.route("**/v1/chat/completions", lambda route: route.abort())
        page.locator(".compare").click()
        expect(page.locator(".duel .error")).to_be_visible()
        page.locator(".leave").click()
        until(page, lambda: page.locator(".turn.assistant .text").text_content(), old)
        assert not [p for p in problems if LOST not in p], problems


def test_keys(served):
    from playwright.sync_api import expect

    problems: list[str] = []
    events: list[dict] = []
    with chromium(problems) as page:
        page.on("request", lambda r: events.append(r.post_data_json) if r.url.endswith("/feedback") else None)
        page.goto(served)
        ask(page, "What is the capital of Japan?")
        page.keyboard.type("u+")  # into the field, as it has the focus
        expect(page.locator("#input")).to_have_value("u+")
        page.keyboard.press("Escape")
        for key, seen in (("u", (1, 0)), ("d", (0, 1)), ("+", (1, 0)), ("-", (0, 1)), ("z", (0, 0))):
            page.keyboard.press(key)
            until(page, lambda: (stats(served)["up"], stats(served)["down"]), seen)
        page.keyboard.press("t")
        expect(page.locator(".lesson textarea")).to_be_focused()
        page.keyboard.press("Control+a")
        page.keyboard.type("Tokyo, z")
        page.keyboard.press("Control+Enter")
        until(
            page, lambda: [r["completion"][0]["content"] for r in exported(served, "prompt-completion")], ["Tokyo, z"]
        )
        for key, value in (("1", "left"), ("2", "right"), ("0", "tie")):
            page.keyboard.press("c")
            expect(page.locator(".better:enabled")).to_have_count(2, timeout=60_000)
            before = len(events)
            page.keyboard.press(key)
            until(page, lambda n=before: len(events), before + 1)
            first = events[-1]["shown"]
            second = "answer" if first == "other" else "other"
            assert events[-1]["value"] == {"left": first, "right": second, "tie": "tie"}[value]
        page.keyboard.press("z")
        until(page, lambda: events[-1]["kind"], "undo")
        assert not problems, problems


def test_chinese_dark_phone(served):
    from playwright.sync_api import expect

    problems: list[str] = []
    with chromium(problems, color_scheme="dark") as page:
        page.goto(served)
        page.click("#lang")
        ask(page, "日本的首都是哪裡？")
        page.locator(".icon.down").click()
        expect(page.locator(".chip").first).to_have_text("錯誤")
        page.locator(".teach").click()
        page.screenshot(path=SHOTS / "12-feedback-zh-dark.png")
        narrow(page, "13-feedback-zh-dark-phone.png")
        page.get_by_role("button", name="儲存").click()
        expect(page.locator(".own").first).to_contain_text("你的版本：")
        page.locator(".compare").click()
        expect(page.locator(".better").first).to_have_text("這個比較好")
        expect(page.locator(".better:enabled")).to_have_count(2, timeout=60_000)
        narrow(page, "14-compare-zh-dark-phone.png")
        assert not problems, problems


def test_what_is_not_stored(served):
    from playwright.sync_api import expect

    problems: list[str] = []

    def answers(status, message="no"):
        page.unroute("**/feedback")
        body = json.dumps({"error": {"message": message}})
        page.route("**/feedback", lambda r: r.fulfill(status=status, body=body, content_type="application/json"))

    with chromium(problems) as page:
        page.clock.install()
        page.goto(served)
        ask(page, "What is the capital of Japan?")
        up, down, status = page.locator(".icon.up"), page.locator(".icon.down"), page.locator(".status")
        # refused: the button shows what is stored, and why
        for code, told in ((404, "Ask again"), (429, "today"), (400, "no such thing")):
            answers(code, "no such thing")
            up.click()
            expect(status).to_contain_text(told)
            expect(up).to_have_attribute("aria-pressed", "false")
        page.unroute("**/feedback")
        down.click()
        until(page, lambda: stats(served)["down"], 1)
        expect(status).to_be_hidden()
        answers(429)
        up.click()
        expect(down).to_have_attribute("aria-pressed", "true")
        expect(up).to_have_attribute("aria-pressed", "false")
        # a lesson that is refused is not lost
        page.locator(".teach").click()
        page.fill(".lesson textarea", "my words")
        page.get_by_role("button", name="Save").click()
        expect(page.locator(".status")).to_contain_text("today")
        page.locator(".teach").click()
        expect(page.locator(".lesson textarea")).to_have_value("my words")
        page.get_by_role("button", name="Cancel").click()
        # the store is down: it waits, and is sent within ten seconds after it is up again
        answers(503)
        up.click()
        expect(status).to_contain_text("Waiting to be sent")
        expect(up).to_have_attribute("aria-pressed", "true")
        page.screenshot(path=SHOTS / "15-waiting.png")
        assert stats(served)["up"] == 0
        page.unroute("**/feedback")
        page.clock.fast_forward(11_000)
        until(page, lambda: (stats(served)["up"], stats(served)["down"]), (1, 0))
        expect(status).to_be_hidden()
        # no network: it outlives a reload, and the next press sends both
        page.route("**/feedback", lambda route: route.abort())
        down.click()
        expect(status).to_contain_text("Waiting to be sent")
        page.reload()
        expect(down).to_have_attribute("aria-pressed", "true")
        expect(status).to_contain_text("Waiting to be sent")
        page.unroute("**/feedback")
        ask(page, "Who are you?")
        up.last.click()
        until(page, lambda: (stats(served)["up"], stats(served)["down"]), (1, 1))
        # an old page's talk: answers without an id, branches without a name
        page.evaluate(
            """() => { const s = JSON.parse(localStorage.jielong), old = s.talks[0].turns[1];
            delete old.id; old.branches = [old.tokens]; s.talks[0].turns.length = 2; localStorage.jielong = JSON.stringify(s); }"""
        )
        page.reload()
        expect(page.locator(".branch")).to_have_count(1)
        expect(page.locator(".icon")).to_have_count(0)
        page.locator(".branch").click()
        expect(page.locator(".icon")).to_have_count(0)
        expected = ("404", "429", "400", "503", LOST)
        assert not [p for p in problems if not any(e in p for e in expected)], problems


def test_the_server_restarts(life, tmp_path):
    """It knows only those answers that were judged before; the page says so."""
    from playwright.sync_api import expect

    problems: list[str] = []
    with chromium(problems) as page:
        with serving("--run", life, "--feedback", tmp_path / "f.db") as url:
            page.goto(url)
            ask(page, "What is the capital of Japan?")
            page.locator(".icon.up").click()
            until(page, lambda: stats(url)["up"], 1)
            ask(page, "Who are you?")
        page.locator(".icon.down").last.click()
        expect(page.locator(".status").last).to_contain_text("Waiting to be sent")
        with serving("--run", life, "--feedback", tmp_path / "f.db", "--port", url.rsplit(":", 1)[1]):
            page.locator(".icon.down").first.click()
            until(page, lambda: stats(url)["down"], 1)
            expect(page.locator(".status").last).to_contain_text("does not know this answer")
            assert not pressed(page, "down")


def test_feedback_off(life):
    from playwright.sync_api import expect

    problems: list[str] = []
    with serving("--run", life, "--feedback", "off") as url, chromium(problems) as page:
        page.goto(url)
        ask(page, "What is the capital of Japan?")
        page.keyboard.press("Escape")
        page.keyboard.press("u")
        page.keyboard.press("c")
        expect(page.locator(".again")).to_be_visible()
        for what in (".icon", ".teach", ".compare", ".duel"):
            assert page.locator(what).count() == 0
        assert page.locator("#train").is_hidden() and page.locator("#consent-row").is_hidden()
        assert not problems, problems
