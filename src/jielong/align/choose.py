"""Which state of a training, if any, takes over: the one that the judge likes most among those that keep the guards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from jielong.align.baselines import distance
from jielong.align.contest import Contest
from jielong.align.policy import State
from jielong.align.scoring import Scored, merged_copy
from jielong.config import ImproveConfig
from jielong.corpus.documents import read_documents
from jielong.evaluate.bpb import bits_per_byte
from jielong.evaluate.qa import examine
from jielong.evaluate.statistics import Interval
from jielong.generate.engine import Engine
from jielong.model.gpt import GPT
from jielong.run import Run
from jielong.tokens.tokenizer import Tokenizer

QUESTIONS, DOCUMENTS = 400, 200  # of the exam, per language; of the held-out text: enough for a guard


class Chooser:
    """Picks the state whose answers to the held-out prompts win most often, among those that keep the guards. It draws other
    answers than the verdict does.

    One guard is the distance from the start. The judge learnt from the start's answers, so that it is deceived by answers
    far from all of them just as the reward model is (Gao et al. 2023): there it cannot be asked. What the model knows
    takes long to measure and is looked at last: the next best state takes the place of one that forgot too much.
    """

    def __init__(
        self,
        config: ImproveConfig,
        contest: Contest,
        judge: Scored,
        start: GPT,
        know: Callable[[GPT], dict[str, float]],
        dtype: torch.dtype,
    ):
        self.config, self.contest, self.judge, self.start, self.dtype = config, contest, judge, start, dtype
        self.old = contest.answers(start, "choose")
        self.before = contest.describe(self.old) | {"kl": 0.0}
        self.know, self.known = know, know(start)

    def __call__(self, states: list[State], actor: GPT) -> tuple[State, dict[str, Any]]:
        curve = [self.judged(state, actor) for state in states]
        order = sorted(range(len(states)), key=lambda n: -curve[n]["win_rate"][0])  # of equals the earlier one
        chosen = 0
        for n in order:
            if not states[n].iteration:  # nothing better is left
                break
            if curve[n]["broken"]:
                continue
            states[n].load(actor)
            curve[n]["knowledge"] = self.know(actor)
            curve[n]["broken"] = guards(self.config, self.known, curve[n]["knowledge"])
            if not curve[n]["broken"]:
                chosen = n
                break
        rule = "highest win rate on held-out prompts within the guards"
        return states[chosen], {"rule": rule, "knowledge": curve[chosen].get("knowledge", self.known), "curve": curve}

    def judged(self, state: State, actor: GPT) -> dict[str, Any]:
        """What the judge says about the state's answers, what else changed about them, and which guards that breaks."""
        drawn, far = self.old, 0.0
        if state.iteration:  # not the start itself
            state.load(actor)
            drawn = self.contest.answers(actor, "choose")
            far = distance(actor, self.start, drawn.sequences, self.dtype, self.contest.temperature)
        won = self.contest.win_rate(self.judge, drawn, self.old, self.dtype)
        after = self.contest.describe(drawn) | {"kl": far}
        return {
            "iteration": state.iteration,
            "win_rate": won,
            **after,
            "broken": guards(self.config, self.before, after),
        }


def knowledge(run: Run, model: GPT, tokenizer: Tokenizer, seed: int) -> dict[str, float]:
    """Bits per byte and exam accuracy where the run has held-out text and was taught the world; else nothing."""
    corpus = run.artifact("corpus")
    if corpus is None:
        return {}
    model = merged_copy(model)
    documents = read_documents(corpus.file("heldout.parquet"))[:DOCUMENTS]
    found = {f"bits_per_byte_{lang}": bits for lang, bits in bits_per_byte(model, tokenizer, documents).items()}
    if corpus.card["config"].get("default") and run.artifact("sft") is not None:
        marks = examine(Engine(model, tokenizer, rows=128), run.need("sft").card["seed"], "unseen", QUESTIONS)
        found |= {f"knowledge_{lang}": marks[lang]["accuracy"] for lang in ("en", "zh")}
    return found


def guards(config: ImproveConfig, before: dict[str, float], after: dict[str, float]) -> list[str]:
    """What went beyond what is allowed, in words; empty when all is well. What was not measured is not guarded."""
    broken = []
    for name, old in before.items():
        new = after[name]
        if name.startswith("bits_per_byte") and new > old * (1 + config.guard_bits):
            broken.append(f"bits per byte ({name[-2:]}) rose from {old:.3f} to {new:.3f}")
        elif name.startswith("knowledge") and new < old - config.guard_knowledge:
            broken.append(f"the exam's accuracy ({name[-2:]}) fell from {old:.1%} to {new:.1%}")
        elif name == "repetition" and new > max(old * config.guard_repetition, 0.02):
            broken.append(f"repetition rose from {old:.1%} to {new:.1%}")
        elif name == "length" and new > old * config.guard_length + 4:
            broken.append(f"answers grew from {old:.0f} to {new:.0f} tokens")
        elif name == "language" and new < old - config.guard_language:
            broken.append(f"answers in the language of their question fell from {old:.1%} to {new:.1%}")
        elif name == "kl" and new > config.guard_kl:
            broken.append(f"answers went {new:.1f} nats from the served model's; {config.guard_kl:g} are allowed")
        elif name == "ended" and new < old - 0.05:
            broken.append(f"answers that end by themselves fell from {old:.1%} to {new:.1%}")
    return broken


def verdict(
    config: ImproveConfig,
    won: Interval,
    before: dict[str, float],
    after: dict[str, float],
    who: str,
    picked: dict[str, Any],
) -> tuple[bool, str]:
    """(promote?, why), in words. `picked` is what the card says about the state that was chosen."""
    if not picked["iteration"] and (first := next((s for s in picked.get("curve", []) if s["broken"]), None)):
        return False, (
            "no state of the training wins and keeps the guards, so that the start was kept; "
            f"after iteration {first['iteration']} {'; '.join(first['broken'])}."
        )
    value, low, high = won
    told = f"its answers to held-out prompts win {value:.1%} ({low:.1%}–{high:.1%}) against the served model's, judged by {who}"
    broken = guards(config, before, after)
    if not low > 0.5:
        return False, f"{told}; the interval includes 50 %" + "".join(f"; {b}" for b in broken) + "."
    if broken:
        return False, f"{told}, but {'; '.join(broken)}."
    return True, f"{told}; knowledge, text, repetition, length and language are within the guards."
