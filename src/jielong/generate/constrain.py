"""Answers that must be JSON: a grammar (llguidance) says which tokens may come next."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from jielong.errors import UserError
from jielong.tokens.tokenizer import Tokenizer


class JsonProcessor:
    """A logits processor for one request: forbids every token that cannot continue valid JSON.

    schema: a JSON schema; {"type": "object"} is any object. Raises UserError for a schema that the grammar does not know.
    """

    def __init__(self, tokenizer: Tokenizer, schema: dict[str, Any]):
        from llguidance import LLMatcher

        try:
            compact = {
                "whitespace_flexible": False,
                **schema.get("x-guidance", {}),
            }  # else it could write spaces forever
            grammar = LLMatcher.grammar_from_json_schema(json.dumps({**schema, "x-guidance": compact}))
        except Exception as error:
            raise UserError(f"The JSON schema cannot be used: {error}") from error
        self._matcher = LLMatcher(_vocabulary(tokenizer), grammar)
        if self._matcher.get_error():
            raise UserError(f"The JSON schema cannot be used: {self._matcher.get_error()}")
        self._ends = sorted(tokenizer.ends)
        self._read = 0

    def __call__(self, answer: Sequence[int], logits: Tensor) -> Tensor:
        for token in answer[self._read :]:
            self._matcher.consume_token(token)
        self._read = len(answer)
        if self._matcher.get_error():
            raise UserError(f"The grammar failed: {self._matcher.get_error()}")
        allowed = torch.zeros(len(logits), dtype=torch.bool)
        if not self._matcher.is_stopped():
            mask = (
                torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8)[: len(logits)] != 0
            )
            allowed[: len(mask)] = mask
        allowed[self._ends] = self._matcher.is_accepting() or self._matcher.is_stopped() or not bool(allowed.any())
        return logits.masked_fill(~allowed, float("-inf"))


@lru_cache(maxsize=4)
def _vocabulary(tokenizer: Tokenizer) -> Any:
    try:
        from llguidance import LLTokenizer
    except ImportError as error:
        raise UserError("JSON answers need a package: `pip install llguidance`.") from error
    return LLTokenizer(tokenizer.rust.to_str())
