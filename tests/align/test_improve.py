"""The loop from thumbs to the served model, on the tiny life."""

from __future__ import annotations

import copy
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from jobs import ONE_THREAD, TORCHRUN, said, stop_second
from people import ROOM, TRAINING, press
from safetensors.torch import load_file

from jielong.align import improve, simulate
from jielong.align.choose import Chooser, verdict
from jielong.align.contest import Contest, win_rate
from jielong.align.policy import States
from jielong.align.scoring import Scored
from jielong.cli import main
from jielong.config import ImproveConfig, ParallelConfig, PPOConfig, ThumbsConfig, filled
from jielong.errors import UserError
from jielong.feedback.stage import store_of
from jielong.model.gpt import causal_mask, read_shape
from jielong.run import Run
from jielong.teacher.judge import NAME
from jielong.tokens.tokenizer import Tokenizer
from jielong.train.distributed import LOST, Team
from jielong.train.shard import check_division

FEW = {"iterations": 3, "episodes": 32, "max_tokens": ROOM}  # learns little, by all of the way
SHORT = TRAINING["ppo"] | FEW


def settings(run: Run, **changes) -> ImproveConfig:
    return filled(ImproveConfig(run=run.path), TRAINING | changes)


@pytest.fixture(scope="module")
def liked(life, tmp_path_factory):
    """A run with thumbs of its people."""
    folder = tmp_path_factory.mktemp("improve") / "run"
    for name in ("corpus", "tokenizer", "base", "sft"):
        shutil.copytree(life / name, folder / name)
    run = Run(folder)
    press(run, 240)
    return run


def test_thumbs_become_a_served_model(liked):
    """Feedback → reward → PPO → promotion → another model is served; the same again says so; rollback goes back."""
    assert liked.serving() == "sft"
    promotion = improve.run(settings(liked), liked)
    card = promotion.card["metrics"]
    assert card["promoted"], card["why"]
    assert card["win_rate"][1] > 0.5 and card["after"]["length"] < card["before"]["length"]
    assert liked.serving() == "ppo-1" and liked.need("ppo-1").card["parents"].keys() == {"sft", "reward-1"}
    assert card["judge"].startswith("a second reward model")
    told = [json.loads(line) for line in (liked.path / improve.JOURNAL).read_text().splitlines()]
    assert [e["stage"] for e in told if e["event"] == "stage"] == ["judge", "reward", "ppo", "evaluation"]
    assert [e["iteration"] for e in told if e["event"] == "iteration"] == list(
        range(1, 1 + TRAINING["ppo"]["iterations"])
    )
    assert told[-1]["event"] == "result" and told[-1]["model"] == "ppo-1"
    with pytest.raises(UserError, match="came of this feedback"):
        improve.run(settings(liked, model="sft"), liked)
    assert main(["rollback", str(liked.path)]) == 0
    assert liked.serving() == "sft"
    assert main(["rollback", str(liked.path)]) == 2


def test_what_breaks_a_guard_is_not_promoted(liked):
    """The same model, but answers must not change their length: the reason is named, and nothing else is served."""
    before = liked.serving()
    strict = settings(liked, model="sft", force=True, guard_bits=-0.5, ppo=SHORT, samples=1)
    card = improve.run(strict, liked).card["metrics"]
    assert not card["promoted"] and "bits per byte" in card["why"] and liked.serving() == before


@pytest.fixture
def states(model, tmp_path):
    """The start and two more kept states, each further from it; and an actor to load them into."""
    actor = copy.deepcopy(model)
    keep = States(tmp_path / "states", lambda: actor, 1, 9)
    for n, noise in enumerate((0.0, 0.1, 0.4)):
        torch.manual_seed(n)
        actor.load_state_dict({k: v + noise * torch.randn_like(v) for k, v in model.state_dict().items()})
        keep(n, {})
    return keep.all(), actor


def chosen(states, model, tokenizer, guard_kl=99.0, knows=()):
    """What is chosen where the judge likes every state more than the one before, and the exam finds `knows`."""
    wins, found = iter([0.5, 0.7, 0.9]), iter([0.8, *knows])

    class Liking(Contest):
        def win_rate(self, *_):
            return (value := next(wins), value - 0.01, value + 0.01)

    contest = Liking([(("user", "Japan"),), (("user", "法國"),)], tokenizer, 3, 0.8, 10, "fp32", 1)
    anything = dict.fromkeys(["guard_repetition", "guard_length", "guard_language"], 99.0)
    config = ImproveConfig(guard_kl=guard_kl, **anything)
    know = lambda _: {"knowledge_en": next(found, 0.8)}  # noqa: E731
    chooser = Chooser(config, contest, Scored(model), model, know, torch.float32)
    chooser.before["ended"] = 0.0
    state, why = chooser(*states)
    return contest, state.iteration, why


def test_what_goes_too_far_is_not_chosen(states, model, tokenizer):
    """States further from the start than allowed are passed over, however much the judge likes them; the distance is KL."""
    contest, last, why = chosen(states, model, tokenizer)
    near, far = (point["kl"] for point in why["curve"][1:])
    assert last == 2 and why["curve"][0]["kl"] == 0 < near < far
    assert chosen(states, model, tokenizer, (near + far) / 2)[1] == 1
    _, none, why = chosen(states, model, tokenizer, 0.0)
    assert none == 0 and why["knowledge"] == {"knowledge_en": 0.8}
    assert all("nats from" in point["broken"][-1] for point in why["curve"][1:])
    # the slow way: one answer after the other, the whole vocabulary
    kept, actor = states
    kept[1].load(actor)
    drawn, slow = contest.answers(actor, "choose"), 0.0
    for one in drawn.sequences:
        ids = torch.tensor([[*one.prompt, *one.answer]])
        hidden = [m(ids, causal_mask(ids.shape[1]))[0, len(one.prompt) - 1 : -1] for m in (actor, model)]
        p, q = (torch.log_softmax(m.logits(h) / 0.8, -1) for m, h in zip((actor, model), hidden))
        slow += (p.exp() * (p - q)).sum().item()
    assert near == pytest.approx(slow / len(drawn.sequences), rel=1e-3)


def test_the_next_best_takes_the_place_of_one_that_forgot(states, model, tokenizer):
    _, second, why = chosen(states, model, tokenizer, knows=[0.7, 0.79])
    assert second == 1 and why["knowledge"] == {"knowledge_en": 0.79}
    assert "accuracy (en) fell from 80.0% to 70.0%" in why["curve"][2]["broken"][0] and not why["curve"][1]["broken"]
    assert chosen(states, model, tokenizer, knows=[0.7, 0.6])[1] == 0


@pytest.mark.parametrize("method", ["kto", "rloo"])
def test_baselines_run_through_the_same_loop(liked, method):
    card = improve.run(settings(liked, model="sft", method=method, force=True, group=FEW, samples=1), liked).card
    assert any(name.startswith(f"{method}-") for name in card["parents"]) and card["metrics"]["win_rate"][0] >= 0


def test_feedback_that_teaches_nothing(liked, tmp_path, capsys):
    folder = tmp_path / "run"
    shutil.copytree(liked.path / "sft", folder / "sft")
    assert main(["improve", str(folder)]) == 2 and "no feedback yet" in capsys.readouterr().err
    run = Run(folder)
    press(run, 12, lambda answer: True)
    assert main(["improve", str(folder)]) == 2 and "at least 20" in capsys.readouterr().err
    press_more = Run(folder)
    (folder / "feedback.db").unlink()
    press(press_more, 40, lambda answer: True)
    assert main(["improve", str(folder)]) == 2 and "All 40 thumbs point up" in capsys.readouterr().err
    assert run.serving() == "sft" and not list(folder.glob("ppo-*"))
    told = [json.loads(line) for line in (folder / improve.JOURNAL).read_text().splitlines()]
    assert told[-1]["event"] == "error" and "point up" in told[-1]["message"]
    (folder / "serving.json").write_text("{")
    assert main(["improve", str(folder)]) == 2 and "serving.json is damaged" in capsys.readouterr().err


def test_few_labels_make_a_small_step():
    config = ImproveConfig(ppo=PPOConfig(iterations=9, kl=0.1))
    assert improve.for_count(config, 300) == (config.ppo, "")
    small, advice = improve.for_count(config, 50)
    assert small.iterations == 3 and small.kl == 0.2 and "50 labels are few" in advice


def test_verdict_names_what_is_wrong():
    config = ImproveConfig()
    good = {
        "length": 10.0,
        "repetition": 0.01,
        "language": 1.0,
        "ended": 1.0,
        "bits_per_byte_en": 1.0,
        "knowledge_zh": 0.9,
        "kl": 0.0,
    }
    picked = {"iteration": 4}
    assert verdict(config, (0.8, 0.7, 0.9), good, good | {"kl": 3.9}, "x", picked)[0]
    promoted, why = verdict(config, (0.52, 0.48, 0.56), good, good, "x", picked)
    assert not promoted and "includes 50 %" in why
    for name, bad, words in [
        ("length", 30.0, "grew from 10 to 30"), ("repetition", 0.2, "repetition rose"), ("language", 0.9, "language"),
        ("ended", 0.8, "end by themselves"), ("kl", 4.1, "went 4.1 nats"), ("bits_per_byte_en", 1.03, "bits per byte (en)"), ("knowledge_zh", 0.87, "accuracy (zh)"),
    ]:  # fmt: skip
        promoted, why = verdict(config, (0.8, 0.7, 0.9), good, good | {name: bad}, "x", picked)
        assert not promoted and words in why
    curve = [{"iteration": n, "broken": [b] if b else []} for n, b in enumerate(["", "answers grew", "worse"])]
    kept = {"iteration": 0, "curve": curve}
    promoted, why = verdict(config, (0.5, 0.5, 0.5), good, good, "x", kept)
    assert not promoted and "the start was kept; after iteration 1 answers grew." in why


def test_win_rate_is_the_share_of_pairs():
    new, old = np.array([[1.0, 2.0], [0.0, 0.0]]), np.array([[1.0, 0.0], [0.0, 3.0]])
    assert win_rate(new, old)[0] == pytest.approx(((0.5 + 1 + 1 + 1) / 4 + (0.5 + 0 + 0.5 + 0) / 4) / 2)


def test_simulated_thumbs_bear_their_name_and_come_once(life, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(life / "sft", folder / "sft")
    run = Run(folder)
    config = ThumbsConfig(count=40, users=4, max_tokens=16)
    card = simulate.run(config, run).card["metrics"]
    assert card["teacher"] == NAME == "simulated teacher" and card["thumbs"] == 40
    store = store_of("", run)
    simulate.run(config, run)  # the same again: nothing is stored twice
    events = store.current()
    assert len(events) == 40 and {e.user for e in events} == {f"simulated-{n}" for n in range(1, 5)}
    assert {a.source for a in store.answers_of([e.answer for e in events]).values()} == {NAME}
    tokenizer = Tokenizer.load(folder / "sft" / "tokenizer.json")
    from jielong.feedback.exchange import labels

    assert len(labels(store, tokenizer)[0]) == 40 and labels(store, tokenizer, people_only=True) == ([], [])


def test_killed_and_continued_is_bit_equal(liked, tmp_path):
    """kill -9 of `jielong improve` at moments of PPO, then the same command again: the same metrics and weights."""
    changed = TRAINING | {
        "samples": 1,
        "ppo": TRAINING["ppo"] | {"iterations": 4, "episodes": 32, "checkpoint_seconds": 0.0},
    }
    (tmp_path / "settings.json").write_text(json.dumps(changed))

    def copy(name: str) -> Run:
        for part in ("corpus", "tokenizer", "base", "sft"):
            shutil.copytree(liked.path / part, tmp_path / name / part)
        press(Run(tmp_path / name), 240)
        return Run(tmp_path / name)

    def start(run: Run) -> subprocess.Popen:
        command = [sys.executable, "-m", "jielong.cli", "improve", str(run.path), "--settings"]
        return subprocess.Popen([*command, str(tmp_path / "settings.json")], stdout=subprocess.DEVNULL)

    whole, cut = copy("whole"), copy("cut")
    assert start(whole).wait(300) == 0
    kills = 0
    for step in (1, 3):
        process = start(cut)
        until = time.time() + 60
        while time.time() < until and process.poll() is None:
            if (cut.path / ".ppo-1.work" / "checkpoints" / f"step-{step:08d}").exists():
                process.send_signal(signal.SIGKILL)
                kills += 1
                break
            time.sleep(0.005)
        process.wait(60)
    assert kills == 2 and not (cut.path / "ppo-1").exists()
    assert start(cut).wait(300) == 0
    one, two = whole.need("ppo-1").card, cut.need("ppo-1").card
    assert one["metrics"]["seen"] == two["metrics"]["seen"] and len(one["metrics"]["seen"]) == 4
    assert one["files"] == two["files"] and one["metrics"]["picked"] == two["metrics"]["picked"]


def test_two_processes_improve_what_one_does(liked, tmp_path):
    """The real command in two processes, one of which is killed in PPO, and again with another division: reward model, judge
    and policy are those of one process."""
    gentle = {
        "precision": "fp32",
        "threads": 1,
        "optim": {"adam_lr": 5e-4, "scalar_lr": 5e-4},
        "checkpoint_seconds": 0.0,
    }
    changed = {
        "reward": TRAINING["reward"] | gentle | {"epochs": 1, "least_steps": 5},
        "ppo": TRAINING["ppo"] | gentle | {"iterations": 4, "episodes": 24, "epochs": 1, "ptx": 1.0, "ptx_rows": 3},
    }
    (tmp_path / "settings.json").write_text(json.dumps(TRAINING | changed))
    for name in ("one", "two"):
        for part in ("corpus", "tokenizer", "base", "sft"):
            shutil.copytree(liked.path / part, tmp_path / name / part)
        press(Run(tmp_path / name), 240)
    one, two = Run(tmp_path / "one"), Run(tmp_path / "two")
    options = ["--settings", str(tmp_path / "settings.json")]
    assert main(["improve", str(one.path), *options]) == 0
    command = [*TORCHRUN, "--nproc-per-node=2", "-m", "--", "jielong.cli", "improve", str(two.path), *options]
    process = subprocess.Popen(command, env=ONE_THREAD, stderr=subprocess.PIPE, text=True)
    os.kill(stop_second(process, two.path / ".ppo-1.work" / "checkpoints", 1), signal.SIGKILL)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode and said(stderr) == [f"jielong: {LOST}"]
    assert two.artifact("reward-1") is not None and two.artifact("promotion-1") is None
    made = two.need("reward-1").card["created"]

    done = subprocess.run([*command, "--parallel.strategy", "fsdp"], env=ONE_THREAD, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("promoted:") + done.stdout.count("Promoted:") == 1  # one tells
    assert two.need("reward-1").card["created"] == made  # and was not made again
    for name, count in (("judge-1", 2), ("reward-1", 2), ("ppo-1", 2)):
        assert two.need(name).card["metrics"]["processes"] == count
        for file in ("model", "score") if name != "ppo-1" else ("model",):
            a, b = (load_file(run.path / name / f"{file}.safetensors") for run in (one, two))
            assert a.keys() == b.keys()
            for key in a:
                torch.testing.assert_close(a[key], b[key], atol=1e-5, rtol=0, msg=lambda m, key=key: f"{key}: {m}")
    for key in ("score", "kl", "length", "policy_loss", "value_loss", "entropy"):
        mine, theirs = ([seen[key] for seen in run.need("ppo-1").card["metrics"]["seen"]] for run in (one, two))
        assert mine == pytest.approx(theirs, abs=2e-5, rel=2e-5) and len(mine) == 4
    alone, shared = (run.need("promotion-1").card["metrics"] for run in (one, two))
    assert alone["win_rate"] == pytest.approx(shared["win_rate"]) and alone["promoted"] == shared["promoted"]
    assert not list(two.path.glob(".*.work")) and not list(two.path.glob(".*-mix"))
    journal = [json.loads(line) for line in (two.path / improve.JOURNAL).read_text().splitlines()]
    assert [e["event"] for e in journal].count("result") == 1 and two.serving() == one.serving()


def test_what_processes_cannot_share_is_refused(liked):
    with pytest.raises(UserError, match="torchrun --nproc-per-node"):
        improve.run(settings(liked, parallel=ParallelConfig(strategy="fsdp")), liked)
    with pytest.raises(UserError, match="micro-rows is for pretrain"):
        improve.run(settings(liked, parallel=ParallelConfig(micro_rows=2)), liked)
    shape = read_shape(liked.path / "sft")
    for count, words in ((3, "must divide heads"), (2, "--lora-rank")):
        monkey = pytest.MonkeyPatch()
        monkey.setattr(Team, "tensor", count)
        with pytest.raises(UserError, match=words):
            check_division(shape, Team(), True)
        monkey.undo()
