"""Breaks one detail of PPO at a time, and demands that a test notices: `make mutate` (some minutes on two cores).

    python tests/mutate.py [--only WORDS] [--workers 2]

Each worker has a copy of src/ and of tests/align/ in a scratch folder. A mutation replaces one piece of text, which must stand
in its file exactly once, and a forked process, which has never imported jielong, runs the quick tests of tests/align on the
copy until the first one fails. The forked process makes sure that what it tested was the mutated file. A mutation that
no test notices, or that only keeps the tests from starting, makes the whole run fail.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TESTS = ("test_golden", "test_losses", "test_details", "test_ppo", "test_reward", "test_distributed")
SLOW = (
    "tests/align/test_ppo.py::test_converges_to_the_closed_form",
    "tests/align/test_reward.py::test_learns_from_noisy_thumbs_of_strict_and_lenient_users",
    "tests/align/test_reward.py::test_bootstrap_covers",
)
SECONDS = 180  # longer than this no run of the tests may take


@dataclass(frozen=True)
class Mutation:
    what: str
    file: str
    """below src/jielong/"""
    old: str
    new: str


LOSSES, PPO, SCORING, ROLLOUT = "align/losses.py", "align/ppo.py", "align/scoring.py", "align/rollout.py"
POLICY = "align/policy.py"
REWARD, OPTIM = "align/reward.py", "train/optim.py"

MUTATIONS = [
    # rewards
    Mutation("score one token before the end", LOSSES, "rewards[ends(lengths)] += scores", "rewards[ends(lengths) - 1] += scores"),
    Mutation("score at every token", LOSSES, "rewards[ends(lengths)] += scores", "rewards += scores.repeat_interleave(lengths)"),
    Mutation("KL penalty with the wrong sign", LOSSES, "rewards = -kl * (logprobs - reference)", "rewards = kl * (logprobs - reference)"),
    Mutation("no KL penalty", LOSSES, "rewards = -kl * (logprobs - reference)", "rewards = 0.0 * (logprobs - reference)"),
    Mutation("missing end ignored", PPO, "return scores if missing_end is None else torch.where(", "return scores if True else torch.where("),
    Mutation("missing end where there is one", PPO, "torch.where(drawn.ended, scores,", "torch.where(~drawn.ended, scores,"),
    Mutation("end token left out of the answer", ROLLOUT, "[Answered(tuple(r.prompt), tuple(r.answer)) for r in requests],", "[Answered(tuple(r.prompt), tuple(r.answer[:-1] if r.finish == 'stop' and len(r.answer) > 1 else r.answer)) for r in requests],"),
    Mutation("reward read one token before the end", SCORING, "_indices([len(s) - 1 for s in sequences])]", "_indices([len(s) - 2 for s in sequences])]"),
    Mutation("reward model not normalised", REWARD, "    mean, std = normalise(reward, reference_answers(start, messages, config), dtype)", "    mean, std = 0.0, 1.0"),
    Mutation("reward model scaled, not shifted", REWARD, "reward.score.bias.sub_(mean).div_(std)", "reward.score.bias.div_(std)"),
    Mutation("reward whitening loses the mean", PPO, "rewards = whiten(rewards, keep_mean=True, team=self.team)", "rewards = whiten(rewards, team=self.team)"),
    Mutation("reward whitening left out", PPO, "rewards = whiten(rewards, keep_mean=True, team=self.team)", "pass"),
    # advantages
    Mutation("λ ignored", LOSSES, "running = delta[:, t] + gamma * lam * running", "running = delta[:, t] + gamma * running"),
    Mutation("γ ignored", LOSSES, "delta = r + gamma * v[:, 1:] - v[:, :L]", "delta = r + v[:, 1:] - v[:, :L]"),
    Mutation("GAE leaks across answers", LOSSES, "    E, L = len(lengths), max(lengths.tolist(), default=0)\n    column", "    lengths = lengths.sum().view(1)\n    E, L = 1, int(lengths)\n    column"),
    Mutation("values one token late", SCORING, "columns = [len(s.prompt) - 1 + t for", "columns = [len(s.prompt) + t - (t + 1 == len(s.answer)) for"),
    Mutation("returns from whitened advantages", PPO, "returns = advantages + values", "returns = whiten(advantages) + values"),
    Mutation("returns without values", PPO, "returns = advantages + values", "returns = advantages"),
    Mutation("whitening off", PPO, "values, whiten(advantages, team=self.team), returns), metrics", "values, advantages, returns), metrics"),
    Mutation("whitening per micro-batch", PPO, "policy_loss(new, part.logprobs, part.advantages, c.clip)", "policy_loss(new, part.logprobs, whiten(part.advantages), c.clip)"),
    Mutation("whitening per process", LOSSES, "count, first = team.sum(torch.tensor([float(values.numel()), float(values.sum(dtype=torch.float64))]).double())", "count, first = torch.tensor([float(values.numel()), float(values.sum(dtype=torch.float64))]).double()"),
    Mutation("advantages keep a gradient", SCORING, "@torch.no_grad()\ndef answer_values(", "def answer_values("),
    # losses
    Mutation("objective with the wrong sign", LOSSES, "plain, clipped = -advantages * ratio, -advantages * ratio.clamp", "plain, clipped = advantages * ratio, advantages * ratio.clamp"),
    Mutation("clip with the wrong sign", LOSSES, "-advantages * ratio.clamp(1 - clip, 1 + clip)", "advantages * ratio.clamp(1 - clip, 1 + clip)"),
    Mutation("no policy clip", LOSSES, "ratio.clamp(1 - clip, 1 + clip)", "ratio"),
    Mutation("min for max in the policy loss", LOSSES, "return torch.maximum(plain, clipped).sum()", "return torch.minimum(plain, clipped).sum()"),
    Mutation("ratio upside down", LOSSES, "ratio = (new - old).exp()", "ratio = (old - new).exp()"),
    Mutation("min for max in the value loss", LOSSES, "0.5 * torch.maximum((new - returns)", "0.5 * torch.minimum((new - returns)"),
    Mutation("no value clip", LOSSES, "near = torch.maximum(torch.minimum(new, old + clip), old - clip)", "near = new"),
    Mutation("value loss without its half", LOSSES, "return 0.5 * torch.maximum(", "return torch.maximum("),
    Mutation("value weight ignored", PPO, "+ c.value_weight * value) / count", "+ value) / count"),
    Mutation("loss divided by its micro-batch", PPO, "self.loss(part.rows(group), dtype, count, train_actor)", "self.loss(part.rows(group), dtype, float(part.rows(group).lengths.sum()), train_actor)"),
    Mutation("temperature not in the old log-probabilities", PPO, "answer_logprobs(actor, sequences, dtype, c.temperature, team=self.team)", "answer_logprobs(actor, sequences, dtype, team=self.team)"),
    Mutation("temperature not in the reference", PPO, "answer_logprobs(self.reference, sequences, dtype, c.temperature, team=self.team)", "answer_logprobs(self.reference, sequences, dtype, team=self.team)"),
    Mutation("temperature not in the update", PPO, "hidden_before(actor, part.sequences, dtype), c.temperature)", "hidden_before(actor, part.sequences, dtype))"),
    Mutation("temperature not in any re-scoring", SCORING, "body.logits(hidden).float() / temperature", "body.logits(hidden).float()"),
    Mutation("k3 for k1 upside down", LOSSES, '"k3": torch.expm1(-k1) + k1', '"k3": torch.expm1(k1) - k1'),
    Mutation("pretraining mix left out", PPO, "if self.mix is not None and c.ptx and train_actor:", "if False:"),
    Mutation("weight of the pretraining mix ignored", PPO, "loss = c.ptx * self.mix(", "loss = self.mix("),
    # who is who
    Mutation("reference = actor", POLICY, "reference = merged_copy(actor)", "reference = actor"),
    Mutation("critic shares the actor's weights", PPO, "model = ActorCritic(actor, Scored.load(reward.path))", "model = ActorCritic(actor, Scored(actor))"),
    Mutation("critic does not start from the reward model", PPO, "model = ActorCritic(actor, Scored.load(reward.path))", "model = ActorCritic(actor, Scored(__import__('copy').deepcopy(reference).requires_grad_(True)))"),
    Mutation("judge = critic", PPO, "return score(judge, drawn.sequences, dtype, team=team)", "return score(model.critic, drawn.sequences, dtype, team=team)"),
    Mutation("LoRA not rolled out", SCORING, "+= layer.scale * (layer.b @ layer.a).detach()", "+= 0.0"),
    Mutation("actor learns in the critic's warm-up", PPO, "torch.set_grad_enabled(train_actor)", "torch.set_grad_enabled(True)"),
    # the update and its loop
    Mutation("seeds by place in the batch", PPO, 'seeds.append(key(c.seed, "draw", n))', 'seeds.append(key(c.seed, "draw", len(seeds)))'),
    Mutation("seeds by process", PPO, 'seeds.append(key(c.seed, "draw", n))', 'seeds.append(key(c.seed, "draw", n, size))'),
    Mutation("every minibatch is the whole batch", PPO, "for i in order[n :: c.minibatches]", "for i in order"),
    Mutation("the same order in every pass", PPO, 'key(c.seed, "pass", step, epoch)', 'key(c.seed, "pass")'),
    Mutation("learning rate falls within an iteration", PPO, "optimizer.step((number + 0.5) / (c.iterations * c.epochs * c.minibatches))", "optimizer.step((number % c.epochs + 0.5) / (c.epochs * c.minibatches))"),
    Mutation("adaptive KL with the wrong sign", LOSSES, "kl / target - 1", "1 - kl / target"),
    Mutation("adaptive KL not bounded", LOSSES, "min(0.2, max(-0.2, kl / target - 1))", "kl / target - 1"),
    Mutation("resume forgets the KL weight", PPO, 'history.seen[-1]["next_kl_weight"] if history.seen else c.kl', "c.kl"),
    Mutation("exploded ratio learnt from", PPO, "if float(sums[5]) / count > c.most_ratio or not", "if not"),
    Mutation("KL limit ignored", PPO, 'if metrics["kl"] > c.kl_limit:', "if False:"),
    Mutation("kept state one iteration late", PPO, "        if self.keep is not None:\n            self.keep(step, metrics)\n        metrics |= self.learn(experience, optimizer, step, dtype)\n", "        metrics |= self.learn(experience, optimizer, step, dtype)\n        if self.keep is not None:\n            self.keep(step, metrics)\n"),
    Mutation("no early end of the passes", PPO, 'if c.early_stop and passes[-1]["approx_kl"] > c.early_stop:', "if False:"),
    # Adam
    Mutation("no bias correction of m", OPTIM, "value=-lr * root / (1 - c.beta1**updates))", "value=-lr * root)"),
    Mutation("no bias correction of v", OPTIM, "root = (1 - c.beta2**updates) ** 0.5", "root = 1.0"),
    Mutation("ε of the other form", OPTIM, "eps = c.eps if c.tf_eps else c.eps * root", "eps = c.eps * root if c.tf_eps else c.eps"),
    Mutation("Adam's state not loaded", "train/checkpoint.py", "                    stored.read(name, part)", "                    name.startswith(\"model\") and stored.read(name, part)"),
]  # fmt: skip


class Witness:
    """A pytest plugin: the first test that failed, by what, and whether the tests could be collected."""

    def __init__(self) -> None:
        self.failed, self.error, self.broken, self.passed = "", "", "", 0

    def pytest_collectreport(self, report) -> None:
        if report.failed:
            self.broken = str(report.longrepr)[-500:]

    def pytest_runtest_logreport(self, report) -> None:
        self.passed += report.when == "call" and report.passed
        if report.failed and not self.failed:
            self.failed = report.nodeid.rpartition("/")[2]
            crash = getattr(report.longrepr, "reprcrash", None)
            self.error = (crash.message if crash else str(report.longrepr)).partition("\n")[0][:60]


def copy_of_the_tests(folder: Path) -> None:
    """src/ and what tests/align needs, without compiled files, whose time stamps would hide a mutation."""
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    shutil.copytree(ROOT / "src", folder / "src", ignore=ignore)
    shutil.copytree(ROOT / "tests" / "align", folder / "tests" / "align", ignore=ignore)
    for name in ("conftest.py", "jobs.py"):
        shutil.copy(ROOT / "tests" / name, folder / "tests")
    shutil.copy(ROOT / "pyproject.toml", folder)


def mutated(text: str, mutation: Mutation) -> str:
    """Raises SystemExit unless the piece of text is there exactly once."""
    if text.count(mutation.old) != 1:
        sys.exit(
            f"{mutation.what}: {mutation.old!r} stands {text.count(mutation.old)} times in {mutation.file}, not once"
        )
    return text.replace(mutation.old, mutation.new)


@dataclass
class Job:
    """A forked process that runs the tests on the copy in `folder`."""

    mutation: Mutation | None
    folder: Path

    def start(self) -> None:
        self.out = self.folder / "found.json"
        self.out.unlink(missing_ok=True)
        self.path = self.folder / "src" / "jielong" / self.mutation.file if self.mutation else None
        if self.path and self.mutation:
            self.original = self.path.read_text(encoding="utf-8")
            self.path.write_text(mutated(self.original, self.mutation), encoding="utf-8")
        self.started = time.monotonic()
        self.pid = os.fork()
        if not self.pid:
            try:
                in_the_child(self.folder, self.path, self.mutation, self.out)
            finally:
                os._exit(0)

    def result(self) -> dict | None:
        """None while it runs."""
        if not os.waitpid(self.pid, os.WNOHANG)[0]:
            if time.monotonic() - self.started < SECONDS:
                return None
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        if self.path:
            self.path.write_text(self.original, encoding="utf-8")
        found = json.loads(self.out.read_text()) if self.out.exists() else {"broken": "no result"}
        found["seconds"] = time.monotonic() - self.started
        return {"failed": "", "error": "", "broken": "", "passed": 0, **found}


def in_the_child(folder: Path, path: Path | None, mutation: Mutation | None, out: Path) -> None:
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.chdir(folder)
    sys.path.insert(0, str(folder / "src"))
    os.environ["PYTHONPATH"] = str(folder / "src")  # of the processes that tests start
    import pytest
    import torch

    torch.set_num_threads(1)
    torch.set_num_threads = lambda threads: None  # several runs go on at once, over small models
    witness = Witness()
    options = ["-x", "-q", "-p", "no:cacheprovider", "--durations=0", *(f"--deselect={name}" for name in SLOW)]
    pytest.main([*options, *(f"tests/align/{name}.py" for name in TESTS)], plugins=[witness])
    if mutation and path:
        name = "jielong." + mutation.file.removesuffix(".py").replace("/", ".")
        module = sys.modules.get(name)
        if module is None or Path(str(module.__file__)) != path or mutation.new not in path.read_text(encoding="utf-8"):
            witness.broken = f"{name} was not imported from {path}"
    out.write_text(json.dumps(vars(witness)))


def all_of(mutations: Sequence[Mutation | None], workers: int) -> list[tuple[Mutation | None, dict]]:
    """Each result is printed as soon as it is there."""
    waiting, running, done = list(mutations), [], []
    with tempfile.TemporaryDirectory() as scratch:
        free = [Path(scratch) / str(n) for n in range(workers)]
        for folder in free:
            copy_of_the_tests(folder)
        while waiting or running:
            while waiting and free:
                running.append(Job(waiting.pop(0), free.pop()))
                running[-1].start()
            for job in list(running):
                found = job.result()
                if found is not None:
                    running.remove(job)
                    free.append(job.folder)
                    done.append((job.mutation, found))
                    print(line(job.mutation, found), flush=True)
            time.sleep(0.05)
    return done


def line(mutation: Mutation | None, found: dict) -> str:
    what = mutation.what if mutation else "(nothing changed)"
    if found["broken"]:
        return f"{what:46} BROKEN: {found['broken']}"
    by = (
        f"{found['failed']} [{found['error']}]"
        if found["failed"]
        else "SURVIVED"
        if mutation
        else f"{found['passed']} passed"
    )
    return f"{what:46} {found['seconds']:5.1f} s  {by}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="mutations whose name holds these words")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    sys.dont_write_bytecode = True
    os.environ |= {"PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    chosen = [m for m in MUTATIONS if args.only in m.what]
    for m in chosen:  # before anything runs
        mutated((ROOT / "src" / "jielong" / m.file).read_text(encoding="utf-8"), m)
    for name in ("pytest", "safetensors.torch", "tokenizers", "torch._dynamo"):  # once for all forked processes
        importlib.import_module(name)

    started = time.perf_counter()
    [(_, sound)] = all_of([None], 1)
    if sound["failed"] or sound["broken"] or not sound["passed"]:
        sys.exit(f"the tests fail without any mutation: {sound['failed'] or sound['broken']}")
    results = all_of(chosen, args.workers)
    alive = [m.what for m, found in results if m and (found["broken"] or not found["failed"])]
    print(f"{len(results) - len(alive)} of {len(results)} mutations killed in {time.perf_counter() - started:.0f} s")
    if alive:
        sys.exit("alive: " + ", ".join(alive))


if __name__ == "__main__":
    main()
