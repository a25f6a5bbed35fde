"""Metrics: what a run is doing, at Ray's own Prometheus endpoint of each node; `configs/grafana.json` shows them.

All are of the driver, which knows every unit that was committed: counters of what is done in this run, gauges of now.
"""

from __future__ import annotations

from collections import Counter

from ray.util import metrics

from pipeline.driver import Progress

PREFIX = "visionbake"


class Metrics:
    """Told of the progress again and again; counters only ever grow by what is new."""

    def __init__(self, output: str) -> None:
        tags = {"output": output}

        def counter(name: str, what: str, *keys: str) -> metrics.Counter:
            made = metrics.Counter(f"{PREFIX}_{name}", description=what, tag_keys=("output", *keys))
            made.set_default_tags(tags)
            return made

        def gauge(name: str, what: str) -> metrics.Gauge:
            made = metrics.Gauge(f"{PREFIX}_{name}", description=what, tag_keys=("output",))
            made.set_default_tags(tags)
            return made

        self._images = counter("images", "images encoded")
        self._tokens = counter("tokens", "vision tokens written")
        self._bytes = counter("embedding_bytes", "bytes of embeddings written")
        self._units = counter("units", "units committed")
        self._rejects = counter("rejects", "samples rejected", "reason")
        self._seconds = counter("stage_seconds", "seconds of work by stage, over all processes", "stage")
        self._retries = counter("retries", "calls that had to be made again")
        self._waiting = gauge("prepared_units_waiting", "units that are prepared and wait for an encoder")
        self._known = gauge("units_known", "units of the parts that are indexed")
        self._busy = gauge("encoder_busy_share", "share of the encoders' time since the last look that they encoded")
        self._told: Counter[str] = Counter()
        self._last = (0.0, 0.0)

    def observe(self, progress: Progress, seconds: float, encoders: int) -> None:
        """Args: seconds since encoding began."""
        totals = progress.totals
        for name, metric, value in (
            ("rows", self._images, totals.rows),
            ("tokens", self._tokens, totals.tokens),
            ("bytes", self._bytes, totals.embedding_bytes),
            ("units", self._units, totals.units),
            ("retries", self._retries, progress.retries),
        ):
            self._add(name, metric, value, {})
        for reason, count in totals.rejects.items():
            self._add(f"reject {reason}", self._rejects, count, {"reason": reason})
        for stage, spent in totals.seconds.items():
            self._add(f"stage {stage}", self._seconds, spent, {"stage": stage})
        self._waiting.set(progress.prepared)
        self._known.set(progress.units_known)
        then, encoded_then = self._last
        encoded = totals.seconds["encode"]
        if encoded > encoded_then and seconds > then:
            self._busy.set(min(1.0, (encoded - encoded_then) / max(1e-9, (seconds - then) * encoders)))
            self._last = (seconds, encoded)

    def _add(self, name: str, metric: metrics.Counter, value: float, tags: dict[str, str]) -> None:
        new = value - self._told[name]
        if new > 0:
            metric.inc(new, tags)
            self._told[name] = value  # type: ignore[assignment]  # of seconds too
