"""`jielong lab all`: every experiment, and one report, "The talk, checked", in English and zh-TW."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from importlib import import_module
from typing import Any

from jielong.config import (
    CodeConfig,
    CutoffConfig,
    LabAllConfig,
    LabConfig,
    PromptingConfig,
    SizeLadderConfig,
    TeachingConfig,
    TwoLanguagesConfig,
)
from jielong.errors import UserError
from jielong.lab import EXPERIMENTS
from jielong.lab.branch import folder, say, sized
from jielong.lab.claims import LANGS, RULE, WORDS
from jielong.pages import render
from jielong.run import Artifact, Run

NAME = "report"
CONFIGS: dict[str, type[LabConfig]] = {
    "two-languages": TwoLanguagesConfig, "cutoff": CutoffConfig, "prompting": PromptingConfig, "thumbs": TeachingConfig,
    "size-ladder": SizeLadderConfig, "code": CodeConfig,
}  # fmt: skip
FILES = {"en": "report.html", "zh": "report.zh-TW.html"}
WORDING = {
    "en": {
        "title": "The talk, checked", "claim": "claim", "verdict": "verdict", "condition": "condition", "seen": "seen",
        "about": "What Hung-yi Lee's talk says of ChatGPT, as experiments on models that are raised here. What holds at this size need not hold for ChatGPT, and the other way round.",
        "quick": "This is the quick size, which is only for a look at the report: its figures say nothing.",
        "page": "the experiment's page", "points": "Figures are in points (hundredths), with their 95 % interval.", "missing": "Not measured on this run: ",
        "seeds": "seeds", "settings": "Settings",
    },
    "zh": {
        "title": "檢驗那場演講", "claim": "主張", "verdict": "判定", "condition": "條件", "seen": "看到的數字",
        "about": "李宏毅老師的演講怎麼說 ChatGPT，這裡用自己養大的模型做成實驗。在這個大小成立的，對 ChatGPT 不一定成立；反過來也一樣。",
        "quick": "這是快速版，只用來看報告長什麼樣子，數字沒有意義。",
        "page": "實驗的頁面（英文）", "points": "數字以百分點表示，括號裡是 95 % 區間。", "missing": "這個 run 沒有量測：",
        "seeds": "個種子", "settings": "設定",
    },
}  # fmt: skip


def run(config: LabAllConfig, run: Run) -> Artifact:
    """What is missing is run; the artifact `lab-report` holds the report in both languages and as JSON. An experiment that this run
    cannot have (no corpus, no fine-tuned model) is named with the reason."""
    unknown = sorted(set(config.only) - EXPERIMENTS.keys())
    if unknown:
        raise UserError(f"There is no experiment {unknown[0]!r}; known are {', '.join(EXPERIMENTS)}.")
    sized(config, {})
    found: dict[str, Artifact] = {}
    missing: dict[str, str] = {}
    for name, module in EXPERIMENTS.items():
        artifact = current(run, name, config.quick)
        if artifact is None and name in (config.only or EXPERIMENTS):
            say(f"{name} …")
            try:
                artifact = import_module(module).run(settings(name, config), run)
            except UserError as reason:
                say(f"{name}: {reason}")
                missing[name] = str(reason)
        if artifact is not None:
            found[name] = artifact
    if not found:
        reasons = "; ".join(f"{name}: {why}" for name, why in missing.items())
        raise UserError(
            f"No experiment could be run. {reasons}" if missing else "There is no experiment to tell about."
        )
    rows = [row(name, artifact) for name, artifact in found.items()]
    with run.build(
        f"lab-{folder(NAME, config.quick)}", kind="lab", config=config, parents=list(found.values()), seed=config.seed
    ) as build:
        build.metrics = {"verdicts": {r["name"]: r["verdict"] for r in rows}, "missing": missing}
        report = {"run": run.path.name, "quick": config.quick, "rule": RULE, "experiments": rows, "missing": missing}
        (build.path / "report.json").write_text(json.dumps(report, ensure_ascii=False, indent=1), encoding="utf-8")
        for lang in LANGS:
            (build.path / FILES[lang]).write_text(page(report, lang), encoding="utf-8")
    for r in rows:
        say(f"{r['claim']['title']['en']}: {WORDS[r['verdict']]['en']}.")
    return build.artifact


def settings(name: str, config: LabAllConfig) -> Any:
    """The experiment's own defaults with what all were told."""
    return replace(CONFIGS[name](), **{f.name: getattr(config, f.name) for f in fields(LabConfig)})


def current(run: Run, name: str, quick: bool) -> Artifact | None:
    """The experiment's artifact, if it is there and was made of what the run has now."""
    found = run.artifact(f"lab-{folder(name, quick)}")
    if found is None or "conditions" not in found.card["metrics"]:
        return None
    for parent, stamp in found.card["parents"].items():
        now = run.artifact(parent)
        if now is None or now.hash != stamp:
            return None
    found.verify()
    return found


def row(name: str, artifact: Artifact) -> dict[str, Any]:
    """What the report tells of one experiment."""
    metrics = artifact.card["metrics"]
    told = {k: metrics[k] for k in ("claim", "conditions", "verdict", "findings")}
    return {
        "name": name, **told, "about": metrics.get("about", ""), "seeds": artifact.card["config"]["seeds"],
        "settings": artifact.card["config"], "page": f"../{artifact.name}/page.html", "created": artifact.card["created"],
    }  # fmt: skip


def page(report: dict[str, Any], lang: str) -> str:
    """One language's report."""
    return render(
        "jielong.lab", "report.html", words=WORDING[lang], verdicts={k: w[lang] for k, w in WORDS.items()}, which=lang,
        lang={"en": "en", "zh": "zh-Hant-TW"}[lang], rule_text=RULE[lang], **report,
    )  # fmt: skip
