"""Counts for Prometheus."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from jielong.serve.worker import Worker

TIMES = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)  # seconds


class Engines(Collector):
    """The engines' own counts, read when they are asked for."""

    def __init__(self, worker: Worker):
        self.worker = worker

    def collect(self) -> Iterator[Any]:
        gauges = {
            "running": ("Requests in the batch", lambda e: len(e.slots)),
            "waiting": ("Requests that wait for a place", lambda e: len(e.waiting)),
            "cache_bytes": ("Size of keys and values", lambda e: e.cache.bytes(e.cache.rows, e.cache.positions)),
            "prefix_bytes": ("Size of the prefix cache", lambda e: e.prefixes.size),
        }
        for name, (text, value) in gauges.items():
            family = GaugeMetricFamily(f"jielong_{name}", text, labels=["model"])
            for engine in self.worker.engines:
                family.add_metric([engine.name], value(engine))
            yield family
        counters = {
            "prompt_tokens": lambda e: e.stats["prompt_tokens"],
            "generated_tokens": lambda e: e.stats["generated_tokens"],
            "prefix_hit_tokens": lambda e: e.prefixes.hits,
            "steps": lambda e: e.stats["steps"],
        }
        for name, value in counters.items():
            family = CounterMetricFamily(f"jielong_{name}", f"{name.replace('_', ' ')} so far", labels=["model"])
            for engine in self.worker.engines:
                family.add_metric([engine.name], value(engine))
            yield family


class Metrics:
    """Requests by path and status, their times, and the engines' counts."""

    def __init__(self, worker: Worker, paths: set[str]):
        self.registry = CollectorRegistry()
        self.registry.register(Engines(worker))
        self._paths = paths
        self._requests = Counter("jielong_requests", "Requests", ["path", "status"], registry=self.registry)
        self._seconds = Histogram(
            "jielong_request_seconds", "Time of a request", ["path"], buckets=TIMES, registry=self.registry
        )
        self._first = Histogram(
            "jielong_first_token_seconds", "Time to the first token", buckets=TIMES, registry=self.registry
        )

    def request(self, path: str, status: int, seconds: float) -> None:
        """A request was answered."""
        path = path if path in self._paths else "other"  # a client must not be able to invent labels
        self._requests.labels(path, str(status)).inc()
        self._seconds.labels(path).observe(seconds)

    def first_token(self, seconds: float | None) -> None:
        if seconds is not None:
            self._first.observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self.registry)
