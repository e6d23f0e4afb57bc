"""Large corpora: one recipe file, run on a laptop, on Ray or on Slurm by datatrove's executors.

Read top-down: `recipe` (what the user wants) → `inputs` (which files) → `stage` (the order of all steps) → `read`,
`warc` → `screens` (what each step keeps) → `repeats`, `near` (duplicates) → `mix`, `collect` (the artifact) → `funnel`,
`page` (the report). `engine` runs the steps.
"""

from __future__ import annotations

from jielong.config import CorpusBuildConfig
from jielong.errors import UserError
from jielong.run import Artifact, Run


def run(config: CorpusBuildConfig, run: Run) -> Artifact | None:
    """See `stage.run`. Raises UserError where datatrove or what it needs is not installed."""
    try:
        import datatrove  # noqa: F401
        import fsspec  # noqa: F401
        import orjson  # noqa: F401
        import warcio  # noqa: F401
    except ImportError as error:
        raise UserError(f"`jielong corpus build` needs {error.name}; `pip install 'jielong[scale]'`.") from error
    from jielong.corpus.build import stage

    return stage.run(config, run)
