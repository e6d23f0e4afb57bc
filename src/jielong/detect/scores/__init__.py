"""Statistics by name, one file each: numbers that are higher for generated text. To add one, write a file with a `@score`
and name it here."""

from jielong.detect.scores.registry import SCORES, Score, find, score

__all__ = ["SCORES", "Score", "find", "score"]

from jielong.detect.scores import binoculars, fast_detect, likelihood, likelihood_ratio, log_rank, lrr, tilt  # noqa: F401  # they register themselves
