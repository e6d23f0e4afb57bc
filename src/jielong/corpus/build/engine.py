"""Runs the stages one after another by datatrove's executors: processes of this machine, Ray or Slurm.

A task that is finished leaves a mark, and is not done again; that is how every engine continues after a crash. What a
task writes depends on its number alone, so that the engine and the number of workers change nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from copy import deepcopy
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from datatrove.executor.local import LocalPipelineExecutor

from jielong.corpus.build.recipe import Cluster
from jielong.errors import UserError

DEATHS = 5  # of workers, before the run gives up
LIGHT = 8  # light tasks in one job


@dataclass
class Stage:
    """Steps that a number of tasks run, each over its own part; every task must end before the next stage begins."""

    name: str
    steps: list[Any]
    tasks: int
    light: bool = False
    """Tasks of seconds, of which a cluster runs several as one job."""


def run_local(stages: list[Stage], logs: Path, workers: int, tell: Callable[[str], None]) -> None:
    """In `workers` processes, or in this one. A worker that is killed is replaced, and its task begins anew.

    Raises UserError after `DEATHS` of them, and what a step raises.
    """
    pool = _Pool(workers)
    with contextlib.closing(pool):
        for number, stage in enumerate(stages, 1):
            tell(f"{number}/{len(stages)} {stage.name}")
            executor = LocalPipelineExecutor(stage.steps, tasks=stage.tasks, logging_dir=str(logs / stage.name))
            while ranks := executor.get_incomplete_ranks():
                pool.run(executor, ranks)


class _Pool:
    """datatrove's own pool waits for ever when a worker is killed; this one notices."""

    def __init__(self, workers: int):
        self.workers = workers
        self.deaths = 0
        self.pool: ProcessPoolExecutor | None = None

    def run(self, executor: LocalPipelineExecutor, ranks: list[int]) -> None:
        if self.workers == 1:
            for rank in ranks:
                run_task(executor, rank)
            return
        self.pool = self.pool or ProcessPoolExecutor(self.workers, mp_context=get_context("spawn"))
        try:
            tasks = [self.pool.submit(run_task, executor, rank) for rank in ranks]
            done, left = wait(tasks, return_when=FIRST_EXCEPTION)
            for task in left:
                task.cancel()
            for task in done:
                task.result()
        except BrokenProcessPool as error:
            self.close()
            self.deaths += 1
            if self.deaths >= DEATHS:
                raise UserError(
                    f"Workers were killed {DEATHS} times, probably for want of memory; the same command with fewer --workers continues."
                ) from error

    def close(self) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)
            self.pool = None


def run_task(executor: LocalPipelineExecutor, rank: int) -> None:
    """One task in this process; its log goes to its file alone."""
    fresh = deepcopy(executor)  # steps carry counters
    with open(os.devnull, "w") as sink, contextlib.redirect_stderr(sink):
        fresh._run_for_rank(rank, local_rank=1)


def run_ray(stages: list[Stage], logs: Path, workers: int, cluster: Cluster, tell: Callable[[str], None]) -> None:
    """On the Ray cluster that RAY_ADDRESS names, else on one that is started on this machine.

    Raises UserError where Ray is not installed or a task failed.
    """
    try:
        import loguru
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UserError("--engine ray needs Ray; `pip install 'jielong[scale]' ray`.") from error
    from datatrove.executor.ray import RayPipelineExecutor

    loguru.logger.remove()  # the tasks' logs stand in files
    mine = not ray.is_initialized()
    if mine:
        here = {} if os.environ.get("RAY_ADDRESS") else {"num_cpus": workers, "include_dashboard": False}
        ray.init(log_to_driver=False, logging_level=logging.ERROR, **here)
    try:
        for number, stage in enumerate(stages, 1):
            tell(f"{number}/{len(stages)} {stage.name}")
            executor = RayPipelineExecutor(
                stage.steps,
                tasks=stage.tasks,
                workers=workers,
                mem_per_cpu_gb=0.5 if mine and not os.environ.get("RAY_ADDRESS") else cluster.memory,
                tasks_per_job=LIGHT if stage.light else 1,
                logging_dir=str(logs / stage.name),
            )
            executor.run()
            failed = executor.get_incomplete_ranks()
            if failed:
                log = logs / stage.name / "logs" / f"task_{failed[0]:05d}.log"
                raise UserError(
                    f"{len(failed)} tasks of the stage {stage.name} failed; {log} says why, and the same command continues."
                )
    finally:
        if mine:
            ray.shutdown()


def submit_slurm(stages: list[Stage], logs: Path, workers: int, cluster: Cluster) -> str:
    """Give all stages to sbatch, each after the one before; the number of the last job. Raises UserError without sbatch."""
    from datatrove.executor.slurm import SlurmPipelineExecutor

    executor: SlurmPipelineExecutor | None = None
    for stage in stages:
        executor = SlurmPipelineExecutor(
            stage.steps,
            tasks=stage.tasks,
            time=cluster.time,
            partition=cluster.partition,
            qos=cluster.qos,
            mem_per_cpu_gb=max(1, round(cluster.memory)),
            workers=workers or -1,
            job_name=f"jielong-{stage.name}",
            env_command=cluster.setup,
            logging_dir=str(logs / stage.name),
            depends=executor,
            tasks_per_job=LIGHT if stage.light else 1,
        )
    assert executor is not None
    try:
        executor.run()
    except FileNotFoundError as error:
        raise UserError(
            "There is no sbatch here; --engine slurm must be started on a machine of the cluster."
        ) from error
    return str(executor.job_id)
