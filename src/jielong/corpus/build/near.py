"""Near duplicates over all tasks: our MinHash signatures, datatrove's merge of the sorted bands, and a check of each pair.

datatrove's own signatures need a word tokenizer per language (spaCy's for English and Chinese); its band files do not
care what was hashed. Its clustering takes every pair that shares a band for duplicates, which at Jaccard 0.6 happens to one
pair in four; so the pairs are compared here by their whole signatures, as the small stage does.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
from datatrove.data import Document
from datatrove.io import get_datafolder
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupBuckets
from datatrove.utils.hashing import HashConfig

from jielong.corpus.build.repeats import PAIR
from jielong.corpus.dedup import BANDS, PERMUTATIONS, THRESHOLD, permutations, signature

WIDTH = PERMUTATIONS // BANDS
ROW = np.dtype([(f"h{k}", "<u4") for k in range(WIDTH)] + [("doc", "<u4")])
Place = tuple[int, int]
"""(task, number of the document in it): their order is the order of all documents."""


class Signatures(PipelineStep):
    """Documents pass; signatures/bucket_BAND/RANK.minhash.sig holds a band of each, sorted, in datatrove's format."""

    type = "jielong"
    name = "signatures"

    def __init__(self, folder: str):
        super().__init__()
        self.folder = get_datafolder(folder)

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        a, b = permutations()
        found = []
        for document in data:
            found.append(signature(document.text, a, b))
            yield document
        table = np.stack(found) if found else np.zeros((0, PERMUTATIONS), dtype=np.uint32)  # (documents, 128)
        for band in range(BANDS):
            rows = np.zeros(len(table), dtype=ROW)
            for k in range(WIDTH):
                rows[f"h{k}"] = table[:, band * WIDTH + k]
            rows["doc"] = np.arange(len(table))
            rows.sort(order=ROW.names)
            with self.folder.open(f"signatures/bucket_{band:03d}/{rank:05d}.minhash.sig", "wb") as f:
                f.write(rows.tobytes())


def bands(folder: str) -> PipelineStep:
    """datatrove's step that merges the sorted bands: one task per band, pairs/BAND_00.dups holds neighbours."""
    config = MinhashConfig(
        num_buckets=BANDS, hashes_per_bucket=WIDTH, hash_config=HashConfig(precision=32, hash_fc="sha1")
    )
    return MinhashDedupBuckets(f"{folder}/signatures", f"{folder}/pairs", config=config)


class Compare(PipelineStep):
    """One task: marks/near/RANK/00 holds the documents that nearly repeat an earlier one that is kept.

    Holds about a kilobyte for each document that shares a band with another one, and nothing of the others.
    """

    type = "jielong"
    name = "compare"

    def __init__(self, folder: str):
        super().__init__()
        self.folder = get_datafolder(folder)

    def run(self, data: Any = None, rank: int = 0, world_size: int = 1) -> Iterator[Document]:
        groups = [g for name in sorted(self.folder.list_files("pairs")) for g in self._groups(name)]
        places = sorted({place for group in groups for place in group})
        dropped = near_repeats(groups, self._signatures(places))
        for task in {place[0] for place in places}:
            rows = np.array([(0, doc) for t, doc in dropped if t == task], dtype=PAIR)
            with self.folder.open(f"marks/near/{task:05d}/00", "wb") as f:
                f.write(rows.tobytes())
        yield from ()

    def _groups(self, name: str) -> list[list[Place]]:
        """Documents of one band with equal hashes: datatrove writes each with the one before it."""
        with self.folder.open(name, "rb") as f:
            pairs = list(struct.iter_unpack("<4I", f.read()))
        found: list[list[Place]] = []
        for t1, d1, t2, d2 in pairs:
            if found and found[-1][-1] == (t1, d1):
                found[-1].append((t2, d2))
            else:
                found.append([(t1, d1), (t2, d2)])
        return found

    def _signatures(self, places: list[Place]) -> dict[Place, np.ndarray]:
        """The whole signature (128,) uint32 of each place, put together from its bands."""
        wanted: dict[int, list[int]] = defaultdict(list)
        for task, doc in places:
            wanted[task].append(doc)
        found = {}
        for task, docs in wanted.items():
            rows = np.zeros((len(docs), PERMUTATIONS), dtype=np.uint32)
            for band in range(BANDS):
                with self.folder.open(f"signatures/bucket_{band:03d}/{task:05d}.minhash.sig", "rb") as f:
                    table = np.frombuffer(f.read(), dtype=ROW)
                table = table[np.argsort(table["doc"], kind="stable")][docs]
                for k in range(WIDTH):
                    rows[:, band * WIDTH + k] = table[f"h{k}"]
            found |= {(task, doc): row for doc, row in zip(docs, rows, strict=True)}
        return found


def near_repeats(groups: list[list[Place]], signatures: dict[Place, np.ndarray]) -> list[Place]:
    """Documents that share a band with an earlier kept one and whose signatures agree in at least 0.8 of the places."""
    groups_of: dict[Place, list[int]] = defaultdict(list)
    for number, group in enumerate(groups):
        for place in group:
            groups_of[place].append(number)
    kept: dict[int, list[Place]] = defaultdict(list)
    dropped = []
    for place in sorted(groups_of):
        rivals = {rival for number in groups_of[place] for rival in kept[number]}
        if rivals:
            others = np.stack([signatures[r] for r in sorted(rivals)])
            if float((others == signatures[place]).mean(axis=1).max()) >= THRESHOLD:
                dropped.append(place)
                continue
        for number in groups_of[place]:
            kept[number].append(place)
    return dropped
