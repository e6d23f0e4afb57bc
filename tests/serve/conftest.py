from __future__ import annotations

import contextlib

# the machine may be busy with other tests, and a model answers between two looks at the page
with contextlib.suppress(ImportError):
    from playwright.sync_api import expect

    expect.set_options(timeout=30_000)
