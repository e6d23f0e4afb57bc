"""Whatever a client sends to these routes, the answer is no mistake of the server's, and nothing is forgotten."""

from __future__ import annotations

import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
)
from test_forget_api import files

from jielong.changes.ledger import Ledger
from jielong.config import ServeConfig
from jielong.run import FORGETTING
from jielong.serve.app import make_app
from jielong.serve.forget import Forgetter
from jielong.serve.stage import load_models

CHECKS = [not_a_server_error, content_type_conformance, response_schema_conformance, negative_data_rejection]
QUICK = settings(
    max_examples=8, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)


def test_requests_made_from_the_schema(small):
    forgetter = Forgetter(small)
    app = make_app(load_models(ServeConfig(run=small.path, precision="fp32", rows=1), small), forgetter=forgetter)
    schema = schemathesis.openapi.from_asgi("/openapi.json", app).include(path_regex="^/v1/(forg|audit)")
    before, asked = files(small), set()
    for result in schema.get_all_operations():
        operation = result.ok()
        asked.add(f"{operation.method.upper()} {operation.path}")
        modes = [GenerationMode.POSITIVE, GenerationMode.NEGATIVE] if operation.body else [GenerationMode.POSITIVE]
        for mode in modes:

            @QUICK
            @given(case=operation.as_strategy(generation_mode=mode))
            def try_it(case):
                case.call_and_validate(checks=CHECKS)

            try_it()
    assert len(asked) == 9 and "POST /v1/forget" in asked
    assert files(small) == before and not Ledger(small).entries() and not (small.path / FORGETTING).exists()
    assert forgetter._child is None
