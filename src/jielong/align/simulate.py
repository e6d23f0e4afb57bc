"""The thumbs stage: a simulated teacher presses where no person has yet. Whatever it leaves in the store bears its name."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

from jielong.align.rollout import key, rollout
from jielong.config import ThumbsConfig
from jielong.corpus.world import load_world
from jielong.errors import UserError
from jielong.feedback.stage import store_of
from jielong.feedback.store import Answer, Event
from jielong.model.gpt import load_model
from jielong.run import Artifact, Run
from jielong.teacher import judge
from jielong.tokens.chat import chat_ids
from jielong.tokens.tokenizer import Tokenizer
from jielong.train.loop import precision, use_threads


def run(config: ThumbsConfig, run: Run) -> Artifact:
    """sft → thumbs: rows in the store, and thumbs.jsonl with what the teacher thought of each answer."""
    if config.count < 1 or config.users < 1 or config.answers < 1:
        raise UserError("--count, --users and --answers must be at least 1.")
    start, world = run.need(config.model), load_world()
    config = dataclasses.replace(config, threads=use_threads(config.threads))
    tokenizer = Tokenizer.load(start.file("tokenizer.json"))
    store = store_of(config.store, run)
    # each prompt comes `answers` times, before one user
    asked = [a for a in judge.prompts(world, config.seed, config.count, config.draw) for _ in range(config.answers)][
        : config.count
    ]
    messages = [[{"role": "user", "content": a.prompt}] for a in asked]
    with run.build("thumbs", kind="thumbs", config=config, parents=[start], seed=config.seed) as build:
        prompts = [chat_ids(tokenizer, m, True) for m in messages]
        seeds = [key("thumbs", config.draw, n) for n in range(len(asked))]
        drawn = rollout(
            load_model(start.path), tokenizer, prompts, seeds, config.temperature, config.max_tokens, precision()
        )
        rows, lines, wrong = [], [], 0
        pieces = drawn.sampled.split(drawn.lengths.tolist())
        for n, (one, text, sequence) in enumerate(zip(asked, drawn.texts, drawn.sequences, strict=True)):
            user = (n // config.answers) % config.users
            up, value = judge.thumb(world, one, text, user, config.draw, n), judge.score(world, one, text)
            wrong += up != (value >= judge.GOOD)
            answer = Answer(
                f"simulated-{start.hash[:12]}-{config.draw}-{n}",
                messages[n],
                text,
                list(sequence.prompt),
                list(sequence.answer),
                [round(x, 6) for x in pieces[n].tolist()],
                {"temperature": config.temperature, "max_tokens": config.max_tokens, "seed": seeds[n]},
                "stop" if drawn.ended[n] else "length",
                start.name,
                start.hash,
                f"simulated-{user + 1}",
                judge.NAME,
            )
            rows.append((Event("thumb", answer.user, answer.id, "up" if up else "down"), [answer]))
            lines.append(
                {"prompt": messages[n], "completion": text, "label": up, "user": answer.user, "score": round(value, 3)}
            )
        known = {e.answer for e in store.all_events()}
        store.add_all([(event, answers) for event, answers in rows if event.answer not in known])
        (build.path / "thumbs.jsonl").write_text(
            "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8"
        )
        presses = Counter(line["label"] for line in lines)
        build.threads = config.threads
        build.metrics = {
            "teacher": judge.NAME,
            "thumbs": len(lines),
            "up": presses[True],
            "down": presses[False],
            "against_the_score": wrong,
            "mean_score": round(sum(line["score"] for line in lines) / len(lines), 3),
        }
    return build.artifact
