"""Run folders, artifacts and their cards.

`runs/NAME/` holds one folder per stage. A folder appears whole or not at all: a stage writes into a hidden folder
beside it, which is renamed when the card is complete. The card names the parents by hash, so that lineage is
read and never guessed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from jielong.errors import Unclear, UserError

CARD = "card.json"
MADE_BY = {
    "corpus": "jielong corpus",
    "tokenizer": "jielong tokenizer",
    "base": "jielong pretrain",
    "sft": "jielong finetune",
    "control": "jielong finetune --from-scratch",
    "evaluation": "jielong evaluate",
    "thumbs": "jielong thumbs",
}
SERVING = "serving.json"
STALE = "stale.json"  # in the place of an artifact that was taken away: why, and what makes it anew
FORGETTING = ".forget"  # where jielong forget works; while its commit.json is there, the run is between two states
COMMIT = "commit.json"


def plain(value: Any) -> Any:
    """`value` (dataclasses, paths, tuples, numpy scalars) as plain JSON data."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(v) for v in value]
    if isinstance(value, Path):
        return str(value)
    item = getattr(value, "item", None)  # numpy and torch scalars
    return item() if callable(item) else value


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write `path` whole or not at all: beside it, flushed to the disk, then renamed."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    raw = data.encode() if isinstance(data, str) else data
    try:
        with open(beside, "wb") as f:
            f.write(raw)
            f.flush()
            os.fsync(f.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def peak_memory(pid: int | str = "self") -> int:
    """Peak resident bytes of a process since the last reset; elsewhere than on Linux, of this one since its start."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    if pid != "self":
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_memory() -> None:
    """Start a new measurement of the peak, where the system allows it (Linux)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass


class Artifact:
    """A finished stage: files and a card."""

    def __init__(self, path: Path):
        self.path = path
        try:
            self.card: dict[str, Any] = json.loads((path / CARD).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"{path / CARD} cannot be read ({error}); delete {path} and make it again.") from error

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def hash(self) -> str:
        """Identity of the content: the hash of its files, kind and parents, not of when or how fast it was made."""
        core = {k: self.card.get(k) for k in ("kind", "config", "seed", "parents", "files")}
        return hashlib.sha256(json.dumps(core, sort_keys=True).encode()).hexdigest()

    def file(self, name: str) -> Path:
        return self.path / name

    def verify(self) -> None:
        """Compare every file with the card. Raises UserError that names the damaged file."""
        for name, stamp in self.card["files"].items():
            path = self.path / name
            if not path.is_file():
                raise UserError(f"{path} is missing, so {self.path} is damaged; delete that folder and make it again.")
            if path.stat().st_size != stamp["bytes"] or sha256_file(path) != stamp["sha256"]:
                raise UserError(
                    f"{path} is damaged (its hash differs from its card); delete {self.path} and make it again."
                )


class Build:
    """An artifact in the making: `path` is its staging folder, `metrics` go into the card."""

    def __init__(self, path: Path):
        self.path = path
        self.metrics: dict[str, Any] = {}
        self.extra: dict[str, Any] = {}
        self.device = "cpu"
        self.threads: int | None = None
        self.workers_memory = 0
        """Peak bytes of processes that worked beside this one; what they share with it is counted twice."""
        self.artifact: Artifact


class Run:
    """A run's folder, `runs/NAME/`."""

    def __init__(self, path: Path | str):
        self.path = Path(path)

    def artifact(self, name: str) -> Artifact | None:
        """The finished artifact, or None."""
        path = self.path / name
        return Artifact(path) if (path / CARD).is_file() else None

    def artifacts(self) -> list[Artifact]:
        """Every finished artifact, oldest first."""
        cards = [p.parent for p in self.path.glob(f"*/{CARD}") if not p.parent.name.startswith(".")]
        return sorted((Artifact(p) for p in cards), key=lambda a: a.card.get("created", ""))

    def newest(self, stem: str) -> Artifact | None:
        """Of `stem`, `stem`-1, `stem`-2, … the last one there is."""
        numbers = [
            int(p.parent.name.rpartition("-")[2])
            for p in self.path.glob(f"{stem}-*/{CARD}")
            if p.parent.name.rpartition("-")[2].isdigit()
        ]
        return self.artifact(f"{stem}-{max(numbers)}" if numbers else stem)

    def need(self, name: str) -> Artifact:
        """The finished and undamaged artifact. Raises UserError that says which command makes it, or why it was taken away."""
        self.check_whole()
        found = self.artifact(name)
        if found is None:
            note = self.path / name / STALE
            if note.is_file():
                raise UserError(json.loads(note.read_text(encoding="utf-8"))["why"])
            command = MADE_BY.get(name, "jielong raise")
            raise UserError(f"{self.path} has no {name} yet; make it with `{command} --run {self.path}`.")
        found.verify()
        return found

    # which model talks

    def serving(self) -> str:
        """Name of the artifact to talk with: the last promoted one, else sft, else base. Raises UserError for a damaged
        serving.json."""
        return self._line()[-1]

    def served_before(self) -> str | None:
        """Name of the artifact that talked before the last promotion, where there was one and it is still there."""
        line = self._line()
        return line[-2] if len(line) > 1 and line[-2] != line[-1] and self.artifact(line[-2]) else None

    def promote(self, name: str) -> None:
        """From now on artifact `name` talks."""
        write_atomic(self.path / SERVING, json.dumps({"promoted": [*self.promotions(), name]}))

    def rollback(self) -> str:
        """The model before talks again, at once, also while something else is made; its name. Raises UserError when none was
        promoted, and while a stopped forgetting must be finished first."""
        self.check_whole()
        promoted = self.promotions()
        if not promoted:
            raise UserError(f"{self.path} serves {self.serving()}, and no other model before it.")
        write_atomic(self.path / SERVING, json.dumps({"promoted": promoted[:-1]}))
        return self.serving()

    def withdraw(self, gone: Collection[str]) -> None:
        """The artifacts `gone`, and those that are no longer there, do not talk any more."""
        promoted = self.promotions()
        left = [name for name in promoted if name not in gone and self.artifact(name) is not None]
        if left:
            write_atomic(self.path / SERVING, json.dumps({"promoted": left}))
        else:
            (self.path / SERVING).unlink(missing_ok=True)

    def _line(self) -> list[str]:
        """The artifacts that have talked, one after the other."""
        first = "base" if self.artifact("sft") is None and self.artifact("base") is not None else "sft"
        return [first, *self.promotions()]

    def promotions(self) -> list[str]:
        """The artifacts that were promoted, the last one talks. Raises UserError for a damaged serving.json."""
        path = self.path / SERVING
        try:
            found = json.loads(path.read_text(encoding="utf-8"))["promoted"]
            return [str(name) for name in found]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged; delete it, and sft is served again.") from error

    def create(self) -> None:
        """Make the folder. Raises UserError where that is not allowed."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".probe-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise UserError(
                f"Cannot write into {self.path} ({error.strerror}); choose another --run folder."
            ) from error

    def check_whole(self) -> None:
        """Raises UserError while a forgetting that was stopped has put only some of its parts in place."""
        if (self.path / FORGETTING / COMMIT).is_file():
            raise Unclear(
                "unfinished",
                f"{self.path} is being changed by a forgetting that was stopped; finish it: `jielong forget {self.path}`.",
            )

    @contextmanager
    def lock(self, forgetting: bool = False) -> Iterator[None]:
        """One process at a time. Raises Unclear when another one works on this run ("busy"), or when a forgetting must be finished
        first ("unfinished"), which `forgetting` is going to do. A folder in which nothing was made does not stay."""
        if not forgetting:
            self.check_whole()
        existed = self.path.is_dir()
        self.create()
        lock = FileLock(self.path / ".lock", timeout=0, is_singleton=True)
        try:
            lock.acquire()
        except Timeout:
            raise Unclear(
                "busy",
                f"Another jielong process is working on {self.path}; wait for it or choose another --run folder.",
            ) from None
        try:
            yield
        finally:
            lock.release()
            if not existed and [p.name for p in self.path.iterdir()] == [".lock"]:
                shutil.rmtree(self.path, ignore_errors=True)

    def work(self, name: str) -> Path:
        """A hidden folder for what a stage keeps between interruptions (checkpoints)."""
        return self.path / f".{name}.work"

    @contextmanager
    def build(
        self, name: str, *, kind: str, config: Any, parents: list[Artifact] | tuple[Artifact, ...] = (), seed: int = 0
    ) -> Iterator[Build]:
        """Make artifact `name` whole or not at all; the card is written on leaving without an exception."""
        self.create()
        staging = self.path / f".{name}.partial"
        shutil.rmtree(staging, ignore_errors=True)
        staging.mkdir()
        reset_peak_memory()
        started = time.perf_counter()
        build = Build(staging)
        try:
            yield build
            files = sorted(p for p in staging.rglob("*") if p.is_file())
            card = {
                "kind": kind,
                "name": name,
                "config": plain(config),
                "seed": seed,
                "version": code_version(),
                "parents": {p.name: p.hash for p in parents},
                "files": {
                    p.relative_to(staging).as_posix(): {"sha256": sha256_file(p), "bytes": p.stat().st_size}
                    for p in files
                },
                "metrics": plain(build.metrics),
                "device": f"{build.device} ({platform.processor() or platform.machine()})",
                "threads": build.threads,
                "seconds": round(time.perf_counter() - started, 2),
                "peak_memory_bytes": peak_memory() + build.workers_memory,
                "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                **plain(build.extra),
            }
            write_atomic(staging / CARD, json.dumps(card, ensure_ascii=False, indent=1))
            final, old = self.path / name, self.path / f".{name}.old"
            shutil.rmtree(old, ignore_errors=True)
            if final.exists():
                final.rename(old)
            staging.rename(final)
            shutil.rmtree(old, ignore_errors=True)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise
        build.artifact = Artifact(final)


def code_version() -> str:
    """Version of the installed package."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("jielong")
    except PackageNotFoundError:
        return "unknown"
