"""Marks in our own sampler that only the key can see. Schemes by name, one file each: to add one, write a file with a
`@scheme` and name it here."""

from jielong.detect.watermark.key import Key, load_key, make_key
from jielong.detect.watermark.scheme import SCHEMES, examine, marked

__all__ = ["SCHEMES", "Key", "examine", "load_key", "make_key", "marked"]

from jielong.detect.watermark import greenlist, gumbel  # noqa: F401  # they register themselves
