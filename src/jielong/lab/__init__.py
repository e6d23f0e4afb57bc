"""The talk's claims as experiments that anyone can run again.

An experiment is a module with `run(config, run) -> Artifact` that repeats everything with at least three seeds, has a control, gives intervals,
and writes a page that says whether the claim held: by `claims.RULE`, from conditions that stand in the module.
"""

EXPERIMENTS = {
    "two-languages": "jielong.lab.two_languages",
    "cutoff": "jielong.lab.cutoff",
    "prompting": "jielong.lab.prompting",
    "thumbs": "jielong.lab.thumbs",
    "size-ladder": "jielong.lab.size_ladder",
    "code": "jielong.lab.code",
}
"""In the order of the talk."""
