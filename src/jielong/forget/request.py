"""What is to be forgotten: ids, names and texts, and which records they match."""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from jielong.config import ForgetConfig
from jielong.errors import Unclear, UserError

SHORTEST = 2  # characters of a name or a text; one letter matches everything


@dataclass(frozen=True)
class Request:
    """`ids` name records; `names` are matched as words and without regard to case, `texts` exactly."""

    ids: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    texts: tuple[str, ...] = ()
    who: str = ""
    why: str = ""

    def __bool__(self) -> bool:
        return bool(self.ids or self.names or self.texts)

    @cached_property
    def _patterns(self) -> list[re.Pattern[str]]:
        names, texts = ([unicodedata.normalize("NFC", text) for text in own] for own in (self.names, self.texts))
        return [as_word(name) for name in names] + [re.compile(re.escape(text)) for text in texts]

    def find(self, text: str) -> tuple[int, int] | None:
        """Where a name or a text stands first in `text`: characters [start, end) of its composed form (Unicode's NFC), so that é is é
        however it was typed."""
        text = unicodedata.normalize("NFC", text)
        spans = [m.span() for pattern in self._patterns if (m := pattern.search(text))]
        return min(spans, default=None)

    def named(self, record: str) -> bool:
        """Is the record one of the ids? A document that the corpus repeats (ID#2) is meant by its id."""
        return record in self.ids or record.partition("#")[0] in self.ids

    def canonical(self) -> str:
        """The request as one text, whatever the order in which it was typed."""
        return json.dumps([sorted(self.ids), sorted(self.names), sorted(self.texts)], ensure_ascii=False)


def as_word(name: str) -> re.Pattern[str]:
    """The name between word borders where it begins or ends with a letter of a script that has borders; any space fits any."""
    borders = [r"(?<![^\W_])" if _spaced(name[0]) else "", r"(?![^\W_])" if _spaced(name[-1]) else ""]
    return re.compile(borders[0] + r"\s+".join(map(re.escape, name.split())) + borders[1], re.IGNORECASE)


def _spaced(char: str) -> bool:
    return char.isalnum() and ord(char) < 0x2E80  # Chinese and Japanese write no spaces between words


def read_request(config: ForgetConfig) -> Request:
    """The options, and what the request file adds. Raises UserError when it asks for nothing or for what would match anything."""
    found: dict[str, Any] = {}
    if config.request is not None:
        try:
            found = json.loads(config.request.read_text(encoding="utf-8-sig"))
            unknown = sorted(found.keys() - {"record", "name", "grep", "who", "why"})
            if unknown:
                raise ValueError(f"it has an unknown field {unknown[0]!r}")
            for field in ("record", "name", "grep"):
                values = found.get(field, [])
                if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
                    raise ValueError(f"{field!r} must be a list of texts")
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            raise UserError(
                f'{config.request} is no request ({error}); it must read like {{"name": ["Ann Lee"]}}.'
            ) from error
    request = Request(
        (*config.record, *found.get("record", [])),
        (*(n.strip() for n in config.name), *(n.strip() for n in found.get("name", []))),
        (*config.grep, *found.get("grep", [])),
        config.who or str(found.get("who", "")),
        config.why or str(found.get("why", "")),
    )
    if not request:
        raise Unclear("empty", "Say what to forget: --record ID, --name NAME, --grep TEXT or --request FILE.")
    for text in (*request.names, *request.texts):
        if len(text.strip()) < SHORTEST:
            raise Unclear(
                "short",
                f"{text!r} is too short to be looked for; give at least {SHORTEST} characters.",
                said=text,
                least=SHORTEST,
            )
    if not 0 < config.most <= 1:
        raise UserError("--most must be above 0 and at most 1.")
    return request
