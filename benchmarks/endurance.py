"""A server under mixed load for a long time: does it fall, leak, or mix up answers?

    python benchmarks/endurance.py --run runs/spark --minutes 30

It starts `jielong serve` on the run, then at once: chats and completions, streamed or whole, whose answers must be letter for
letter those that the idle server gave to the same question; conversations of thousands of turns; echoes of random markers;
answers that are cancelled or read slowly; malformed JSON, invalid UTF-8, 10 MB bodies, unknown routes; 100 idle connections;
and schemathesis against the OpenAPI schema. It ends with an error when a request was answered with 5xx, an answer was lost or not its own, a mistake was
answered with another status than it deserves, memory grew by more than 5 % after the warm-up, or the server died.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import json
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx

QUESTIONS = (
    "What is the capital of Japan?", "法國的首都是哪裡？", "Who are you?", "What language do people speak in Brazil?",
    "巴西的人說什麼語言？", "你好！", "Tell me a long story about a dragon.", "1 + 1 = ?", "🙂 é \n\t 說", "Why?",
)  # fmt: skip
JSON = {"Content-Type": "application/json"}


class Load:
    def __init__(self, url: str, until: float):
        self.url, self.until = url, until
        self.client = httpx.AsyncClient(base_url=url, timeout=120, limits=httpx.Limits(max_connections=200))
        self.done: collections.Counter[str] = collections.Counter()
        self.problems: list[str] = []
        self.expected: dict[str, str] = {}
        self.latency: list[float] = []
        self.random = random.Random(1)

    def body(self, question: str, **more: object) -> dict:
        spread = sum(map(ord, question))
        settings = {"temperature": (0, 0.8)[spread % 2], "seed": spread, "max_tokens": 16 + spread % 80}
        return {"messages": [{"role": "user", "content": question}], **settings, **more}

    def blame(self, what: str) -> None:
        self.problems.append(what)
        if len(self.problems) <= 20:
            print(f"  problem: {what}", flush=True)

    async def post(
        self, path: str, body: object = None, content: bytes | None = None, name: str = ""
    ) -> httpx.Response:
        """Asks again after 429. Every answer must carry the id of its own request."""
        mine = f"marker-{self.random.random()}"
        data = json.dumps(body).encode() if content is None else content
        while True:
            started = time.perf_counter()
            response = await self.client.post(path, content=data, headers={**JSON, "X-Request-Id": mine})
            self.latency.append(time.perf_counter() - started)
            if response.headers.get("x-request-id") != mine:
                self.blame(f"{name or path}: the answer to another request")
            if response.status_code >= 500:
                self.blame(f"{name or path}: {response.status_code} {response.text[:200]}")
            if response.status_code != 429:
                return response
            self.done["asked again after 429"] += 1
            await asyncio.sleep(float(response.headers["retry-after"]))

    # what an honest client does

    async def learn(self) -> None:
        """The answers of an idle server, one by one."""
        for question in QUESTIONS:
            response = await self.post("/v1/chat/completions", self.body(question))
            self.expected[question] = response.json()["choices"][0]["message"]["content"]

    async def chat(self) -> None:
        question = self.random.choice(QUESTIONS)
        response = await self.post("/v1/chat/completions", self.body(question))
        found = response.json()["choices"][0]["message"]["content"]
        if found != self.expected[question]:
            self.blame(f"chat: {question!r} was answered {found!r}, not {self.expected[question]!r}")

    async def stream(self, slow: bool = False, cancel: bool = False) -> None:
        question = self.random.choice(QUESTIONS)
        text, ended = "", False
        async with self.client.stream(
            "POST", "/v1/chat/completions", json=self.body(question, stream=True)
        ) as response:
            if response.status_code == 429:
                self.done["asked again after 429"] += 1
                return await asyncio.sleep(1)
            if response.status_code != 200:
                self.blame(f"stream: {response.status_code}")
            async for line in response.aiter_lines():
                if line == "data: [DONE]":
                    ended = True
                elif line.startswith("data: "):
                    event = json.loads(line[6:])
                    text += "".join(c["delta"].get("content") or "" for c in event["choices"])
                if slow:
                    await asyncio.sleep(0.05)
                if cancel and self.random.random() < 0.2:
                    return None
        if not ended or text != self.expected[question]:
            self.blame(f"stream: {question!r} was answered {text!r}, not {self.expected[question]!r}")

    async def slow(self) -> None:
        await self.stream(slow=True)

    async def cancel(self) -> None:
        await self.stream(cancel=True)

    async def hang_up(self) -> None:
        """Leaves without waiting for the answer."""
        body = self.body(self.random.choice(QUESTIONS), max_tokens=200, n=2)
        with contextlib.suppress(httpx.HTTPError):
            await self.client.post("/v1/chat/completions", json=body, timeout=self.random.uniform(0.005, 0.3))

    async def echo(self) -> None:
        markers = [f"{self.random.random()} 接龍" for _ in range(self.random.randint(1, 4))]
        body = {"prompt": markers, "echo": True, "max_tokens": 4, "logprobs": 1, "temperature": 0.5}
        for choice, marker in zip((await self.post("/v1/completions", body)).json()["choices"], markers, strict=True):
            if not choice["text"].startswith(marker):
                self.blame(f"echo: {marker!r} came back as {choice['text']!r}")

    async def tokens(self) -> None:
        marker = f"{self.random.random()} 說 🙂"
        ids = (await self.post("/tokenize", {"prompt": marker})).json()["tokens"]
        back = (await self.post("/detokenize", {"tokens": ids})).json()["prompt"]
        if back != marker:
            self.blame(f"tokens: {marker!r} came back as {back!r}")

    async def embeddings(self) -> None:
        texts = self.random.sample(QUESTIONS, 3)
        data = (await self.post("/v1/embeddings", {"input": [*texts, texts[0]]})).json()["data"]
        if len(data) != 4 or data[0]["embedding"] != data[3]["embedding"]:
            self.blame("embeddings: the same text has two vectors")

    async def turns(self) -> None:
        """A conversation of thousands of turns, of which the context holds a few."""
        said = [
            {"role": ("user", "assistant")[n % 2], "content": ""} for n in range(self.random.randrange(2001, 9000, 2))
        ]
        response = await self.post("/v1/chat/completions", {"messages": said, "max_tokens": 4})
        if response.status_code != 200:
            self.blame(f"turns: {response.status_code} {response.text[:100]}")

    async def look(self) -> None:
        for path in ("/health", "/v1/models", "/v1/run", "/metrics", "/"):
            if (await self.client.get(path)).status_code != 200:
                self.blame(path)

    # what a careless or hostile one does

    async def wrong(self) -> None:
        chat = "/v1/chat/completions"
        good = json.dumps(self.body("Who are you?")).encode()
        path, content, status = self.random.choice([
            (chat, good[: self.random.randrange(len(good))], 400),
            (chat, b'{"messages": "' + bytes(self.random.randrange(128, 256) for _ in range(40)) + b'"}', 400),
            (chat, b'{"messages": [{"role": "user", "content": "\\ud800"}]}', 400),
            (chat, json.dumps({"messages": [], "max_tokens": 4}).encode(), 400),
            (chat, json.dumps(self.body("x", temperature=-1)).encode(), 400),
            (chat, json.dumps(self.body("x", model="nobody")).encode(), 404),
            (chat, b"[" * 100_000, 400),
            ("/v1/completions", json.dumps({"prompt": [10**9], "max_tokens": 4}).encode(), 400),
            ("/v1/completions", json.dumps({"prompt": "x " * 100_000, "max_tokens": 4}).encode(), 400),
            ("/v1/nothing", b"{}", 404),
        ])  # fmt: skip
        response = await self.post(path, content=content, name="wrong")
        if response.status_code != status or "message" not in response.json()["error"]:
            self.blame(
                f"wrong: {content[:60]!r} on {path} got {response.status_code} {response.text[:100]}, not {status}"
            )

    async def huge(self) -> None:
        """10 MB; the server may hang up before it has read all of them."""
        try:
            response = await self.client.post("/v1/chat/completions", content=b"x" * 10_000_000, headers=JSON)
        except httpx.TransportError:
            return
        if response.status_code != 413:
            self.blame(f"huge: {response.status_code}")

    async def idle(self) -> None:
        """A connection that says nothing, or half a request, for a while."""
        host, port = self.url.removeprefix("http://").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            self.random.choice(
                [b"", b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Le", b"\xff\xfe\r\n"]
            )
        )
        await asyncio.sleep(min(self.random.uniform(5, 40), max(0.0, self.until - time.time())))
        writer.close()

    async def keep(self, action, pause: float) -> None:
        """Do it again and again until the time is over."""
        while time.time() < self.until:
            try:
                await action()
                self.done[action.__name__] += 1
            except (httpx.HTTPError, OSError) as problem:
                self.blame(f"{action.__name__}: {problem!r}")
                await asyncio.sleep(0.5)
            except (KeyError, ValueError) as problem:
                self.blame(f"{action.__name__}: an answer of another form, {problem!r}")
            await asyncio.sleep(self.random.uniform(0, 2 * pause))


def resident(pid: int) -> float:
    """Memory of a process in MB."""
    found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    return int(found.group(1)) / 1024 if found else 0.0


async def watch(server: subprocess.Popen, load: Load, memory: list[float], every: float) -> None:
    while time.time() < load.until:
        await asyncio.sleep(every)
        if server.poll() is not None:
            load.blame(f"the server ended with {server.returncode}")
            load.until = 0
            return
        memory.append(resident(server.pid))
        if len(memory) % 12 == 0:
            left = max(0, load.until - time.time())
            print(f"  {sum(load.done.values()):7} actions, {memory[-1]:.0f} MB, {left:.0f} s left", flush=True)


# its own list, and 413: 257 answers where 256 are allowed may be too many bytes to be read at all
REFUSALS = '[checks]\nnegative_data_rejection.expected-statuses = [400, 401, 403, 404, 405, 406, 409, 413, 415, 422, 428, 429, "5xx"]\n'


async def schemathesis(load: Load) -> None:
    """Requests made from the schema, with a new seed each round; without those that would rightly put another model in the place
    of the one whose answers are compared, where there is another."""
    models = (await load.client.get("/v1/models")).json()["data"]
    without = ["--exclude-path-regex", "/v1/(improve|rollback|edit|undo)$"] if len(models) > 1 else []
    checks = "not_a_server_error,content_type_conformance,response_schema_conformance,negative_data_rejection"
    for seed in range(1, 10**6):
        left = int(load.until - time.time())
        if left < 10:
            return
        with tempfile.TemporaryDirectory() as place:
            Path(place, "schemathesis.toml").write_text(REFUSALS)
            process = await asyncio.create_subprocess_exec(
                str(Path(sys.executable).with_name("schemathesis")), "run", f"{load.url}/openapi.json", "--no-color", "-c", checks,
                "--max-time", str(min(left, 300)), "--seed", str(seed), "--rate-limit", "20/s", "--warnings", "off", *without,
                cwd=place, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
            )  # fmt: skip
            output = (await process.communicate())[0].decode()
        if found := re.search(r"(\d+) generated", output):
            load.done["schemathesis cases"] += int(found.group(1))
        if process.returncode:
            load.blame(f"schemathesis, seed {seed}:\n{output[-20_000:]}")


async def run(args: argparse.Namespace, url: str, server: subprocess.Popen) -> Load:
    load = Load(url, time.time() + 60 * args.minutes)
    await load.learn()
    memory: list[float] = []
    jobs = [
        (load.chat, 0.1, 6),
        (load.stream, 0.1, 6),
        (load.slow, 0.1, 3),
        (load.cancel, 0.1, 3),
        (load.hang_up, 0.3, 2),
    ]
    jobs += [
        (load.echo, 0.2, 2),
        (load.tokens, 0.3, 1),
        (load.embeddings, 0.5, 1),
        (load.look, 0.5, 1),
        (load.turns, 1.0, 1),
    ]
    jobs += [(load.wrong, 0.1, 2), (load.huge, 2.0, 1), (load.idle, 0.0, 100)]
    every = min(5.0, args.minutes)
    tasks = [load.keep(action, pause) for action, pause, count in jobs for _ in range(count)]
    await asyncio.gather(*tasks, schemathesis(load), watch(server, load, memory, every))
    # after the warm-up: a fifth, and at least a minute, in which everything is used and loaded for the first time
    settled = memory[max(len(memory) // 5, min(len(memory) // 2, round(60 / every))) :]
    part = max(1, len(settled) // 4)
    before, after = statistics.median(settled[:part]), statistics.median(settled[-part:])
    print(
        f"memory: {memory[0]:.0f} MB at first, {before:.0f} MB after the warm-up, {after:.0f} MB at the end ({after / before - 1:+.1%})"
    )
    if after > 1.05 * before:
        load.blame("memory grew by more than 5 %")
    if server.poll() is None:
        counted = (await load.client.get("/metrics")).text
        failed = [line for line in counted.splitlines() if re.search(r'status="5\d\d"', line)]
        if failed:
            load.blame(f"the server counts 5xx: {failed}")
        await load.chat()  # and it still answers
    await load.client.aclose()
    return load


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/spark"))
    parser.add_argument("--minutes", type=float, default=30)
    args = parser.parse_args()
    command = [sys.executable, "-u", "-m", "jielong.cli", "serve", "--run", str(args.run), "--no-open"]
    command += ["--prefix-mb", "8"]  # full within the warm-up: a cache that still fills would look like a leak
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        assert server.stdout
        try:
            found = re.search(r"http://\S+", server.stdout.readline())
            load = asyncio.run(run(args, found.group(), server)) if found else None
        finally:
            server.send_signal(signal.SIGTERM)
            code = server.wait(60)
        log.seek(0)
        said = log.read()
    if load is None:
        sys.exit(f"The server did not start: {said}")
    if "Traceback" in said:
        load.blame(f"the server's log has a traceback:\n{said[:3000]}")
    if code not in (0, -signal.SIGTERM):
        load.blame(f"the server ended with {code}")
    print(", ".join(f"{count} {name}" for name, count in sorted(load.done.items())))
    times = sorted(load.latency)
    print(
        f"whole answers: median {statistics.median(times) * 1000:.0f} ms, p99 {times[int(0.99 * len(times))] * 1000:.0f} ms"
    )
    print(f"{len(load.problems)} problems")
    sys.exit(bool(load.problems))


if __name__ == "__main__":
    main()
