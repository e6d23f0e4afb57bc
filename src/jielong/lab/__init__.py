"""The talk's claims as experiments that anyone can run again.

An experiment is a module with `run(config, run) -> Artifact` that trains at least three seeds, has a control, gives intervals, and
writes a page that says whether the claim held.
"""

EXPERIMENTS = {"size-ladder": "jielong.lab.size_ladder"}
