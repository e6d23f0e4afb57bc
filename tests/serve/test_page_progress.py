"""What the page shows of a training, whose events are made up here; a real one is in test_page_training.py."""

from __future__ import annotations

import json

from test_page import SHOTS, chromium
from test_page_feedback import ask, narrow, served, stats, until

__all__ = ["served"]


START = [
    {"event": "start", "labels": {"thumbs": 240, "up": 150, "pairs": 31}},
    {"event": "stage", "stage": "judge"},
    {"event": "stage", "stage": "reward"},
    {"event": "stage", "stage": "ppo"},
]


def steps(count, of=16):
    return [
        {"event": "iteration", "iteration": n, "of": of, "score": -0.4 + 1.9 * n / of, "kl": 0.02 * n * n,
         "length": 31.5 - 0.8 * n, "repetition": 0.004 * (n % 3), **({"entropy": 1.9 - n / 20} if n > 1 else {})}
        for n in range(1, count + 1)
    ]  # fmt: skip


END = [
    {"event": "stage", "stage": "evaluation"},
    {"event": "samples", "pairs": [
        {"prompt": "What is the capital of Japan?", "before": "The capital of Japan is the capital of Japan is", "after": "The capital of Japan is Tokyo."},
        {"prompt": "巴西的人說什麼語言？", "before": "<b>巴西</b>的人說巴西的人說巴西的人說", "after": "巴西的人說葡萄牙語。"},
    ]},
    {"event": "stage", "stage": "promotion"},
    {"event": "result", "promoted": True, "model": "ppo-1", "why": "Its answers win; knowledge and language are within the guards.", "win_rate": [0.71, 0.63, 0.78]},
]  # fmt: skip


class Training:
    """A server that trains as these tests tell it."""

    def __init__(self, page):
        self.state, self.events, self.models, self.posts = "idle", [], ["sft"], []
        self.refuse = 0
        page.route("**/v1/improve", self.improve)
        page.route("**/v1/improve/events", self.follow)
        page.route("**/v1/improve/stop", self.stop)
        page.route("**/v1/rollback", self.rollback)
        page.route("**/v1/run*", self.run)
        page.route(
            "**/v1/prompts*", lambda route: self.json(route, {"data": []})
        )  # the server knows none of these models

    def json(self, route, what, status=200):
        route.fulfill(status=status, body=json.dumps(what), content_type="application/json")

    def improve(self, route):
        if self.refuse:
            self.json(route, {"error": {"message": "no"}}, self.refuse)
        elif route.request.method == "POST":
            self.posts.append(route.request.post_data_json)
            self.state, self.events = "running", [*START, *steps(1)]
            self.json(route, {"state": "running"}, 202)
        else:
            self.json(route, {"state": self.state, "events": self.events})

    def follow(self, route):
        lines = [f"data: {json.dumps(e)}\n\n" for e in self.events] + [": quiet\n\n"]
        end = "" if self.state == "running" else "data: [DONE]\n\n"  # else the line breaks
        route.fulfill(body="".join(lines) + end, content_type="text/event-stream")

    def stop(self, route):
        self.state = "failed"
        self.events = [*self.events, {"event": "error", "message": "Stopped."}]
        self.json(route, {"state": "failed"})

    def rollback(self, route):
        self.models = ["sft", "ppo-1"]
        self.json(route, {"model": "sft"})

    def run(self, route):
        name = (
            "ppo-1"
            if "model=ppo-1" in route.request.url or not ("model=" in route.request.url or self.models[0] == "sft")
            else "sft"
        )
        card = {"name": name, "parameters": 1234567}
        self.json(route, {"card": card, "models": self.models, "report": False, "feedback": True, "improve": True})


def test_training(served):
    from playwright.sync_api import expect

    problems: list[str] = []
    with chromium(problems) as page:
        training = Training(page)
        page.goto(served)
        expect(page.locator("#about")).to_contain_text("sft")
        ask(page, "What is the capital of Japan?")
        page.locator(".icon.up").click()
        until(page, lambda: stats(served)["up"], 1)
        page.click("#train")
        expect(page.locator("#training-counts")).to_contain_text("1 marked good")
        expect(page.locator("#training-counts")).to_contain_text("from people")
        page.keyboard.press("u")  # no key reaches the chat behind it
        page.check("#people")
        page.click("#training-start")
        expect(page.locator("#stages .now")).to_contain_text("PPO")
        expect(page.locator("#training-from")).to_contain_text("thumbs 240")
        assert training.posts == [{"people_only": True}] and stats(served)["up"] == 1
        expect(page.locator("#curves figure")).to_have_count(5)
        training.events = [*START, *steps(9)]
        expect(page.locator("#stages .now")).to_contain_text("9/16", timeout=15_000)
        assert page.locator("#curves polyline").count() == 5
        expect(page.locator("#curves figure").first).to_contain_text("0.67")
        page.screenshot(path=SHOTS / "16-training.png")
        # a reload listens again
        page.reload()
        expect(page.locator("#train")).to_contain_text("9/16")
        page.click("#train")
        expect(page.locator("#stages .now")).to_contain_text("9/16")
        # the end: another model answers from now on
        training.events, training.state, training.models = [*START, *steps(16), *END], "done", ["ppo-1", "sft"]
        expect(page.locator("#training-result")).to_contain_text("ppo-1 is better", timeout=15_000)
        expect(page.locator("#training-result")).to_contain_text("71 % of the comparisons (63 % to 78 %)")
        expect(page.locator("#samples td")).to_have_count(6)
        assert page.locator("#samples b").count() == 0
        expect(page.locator("#about")).to_contain_text("ppo-1")
        expect(page.locator("#model")).to_have_value("ppo-1")
        page.screenshot(path=SHOTS / "17-trained.png")
        narrow(page, "18-trained-phone.png")
        page.locator("#samples").scroll_into_view_if_needed()
        page.set_viewport_size({"width": 390, "height": 844})
        page.locator("#samples tr").last.scroll_into_view_if_needed()
        page.screenshot(path=SHOTS / "19-samples-phone.png")
        page.set_viewport_size({"width": 1200, "height": 800})
        # and back
        page.click("#training-back")
        expect(page.locator("#training-note")).to_contain_text("sft answers again")
        expect(page.locator("#training-back")).to_be_hidden()
        expect(page.locator("#model")).to_have_value("sft")
        expect(page.locator("#about")).to_contain_text("sft")
        expect(page.locator("#training-result")).to_contain_text("taken back since")
        # once more, in Chinese and in the dark; it runs already; it is stopped
        page.click("#training-close")
        page.click("#lang")
        page.click("#theme")
        page.click("#train")
        page.screenshot(path=SHOTS / "20-trained-zh-dark.png")
        training.refuse = 409
        page.uncheck("#people")
        page.click("#training-start")
        expect(page.locator("#training-trouble")).to_contain_text("已經有訓練")
        training.refuse = 0
        page.click("#training-start")
        expect(page.locator("#training-stop")).to_be_visible()
        assert training.posts[-1] == {}
        page.click("#training-stop")
        expect(page.locator("#training-error")).to_contain_text("Stopped", timeout=15_000)
        expect(page.locator("#training-start")).to_be_visible()
        # a model that someone else promotes is found while the panel is open
        training.models = ["ppo-2", "sft"]
        expect(page.locator("#model")).to_have_value("ppo-2", timeout=15_000)
        assert not [p for p in problems if "409" not in p], problems


def test_no_training_here(served):
    from playwright.sync_api import expect

    problems: list[str] = []
    with chromium(problems) as page:
        training = Training(page)
        training.refuse = 404
        page.goto(served)
        expect(page.locator("#consent-row")).to_be_visible()
        expect(page.locator("#train")).to_be_hidden()
        # a server that does not say so beforehand
        page.unroute("**/v1/run*")
        page.route("**/v1/run*", lambda route: training.json(route, {"card": {}, "models": ["sft"]}))
        page.reload()
        page.click("#train")
        expect(page.locator("#train")).to_be_hidden()
        expect(page.locator("#training")).to_be_hidden()
        assert not [p for p in problems if "404" not in p], problems


def test_too_little_to_learn_from(life, served):
    """Nothing is made up here: the server starts a training, which says what it lacks."""
    from playwright.sync_api import expect

    problems: list[str] = []
    with chromium(problems) as page:
        page.goto(served)
        ask(page, "What is the capital of Japan?")
        page.locator(".icon.up").click()
        until(page, lambda: stats(served)["up"], 1)
        page.click("#train")
        page.click("#training-start")
        expect(page.locator("#training-stop")).to_be_visible()
        expect(page.locator("#training-error")).to_contain_text("thumbs", timeout=60_000)
        expect(page.locator("#training-start")).to_be_visible()
        page.screenshot(path=SHOTS / "21-too-little.png")
        assert not problems, problems
    for name in ("improve.jsonl", "improve.log"):
        (life / name).unlink()
