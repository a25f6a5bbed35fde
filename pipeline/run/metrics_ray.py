"""Metrics: what a run is doing, at Ray's own Prometheus endpoint of the driver's node, for `configs/grafana.json`.

All are of the driver, which knows every unit that was committed, and counts none twice.
"""

from __future__ import annotations

from ray.util import metrics

from .progress import Progress

PREFIX = "visionbake"


class Metrics:
    """Told of the progress again and again.

    Gauges all: Ray's counters travel as differences, and one whose receipt is not confirmed in time is sent, and added,
    again. A gauge says what the driver has counted, however often it is sent; `rate()` takes it as well.
    """

    def __init__(self, output: str) -> None:
        tags = {"output": output}

        def gauge(name: str, what: str, *keys: str) -> metrics.Gauge:
            made = metrics.Gauge(f"{PREFIX}_{name}", description=what, tag_keys=("output", *keys))
            made.set_default_tags(tags)
            return made

        self._images = gauge("images", "images encoded by this run")
        self._tokens = gauge("tokens", "vision tokens written by this run")
        self._bytes = gauge("embedding_bytes", "bytes of embeddings written by this run")
        self._units = gauge("units", "units committed by this run")
        self._rejects = gauge("rejects", "samples rejected by this run", "reason")
        self._seconds = gauge("stage_seconds", "seconds of work by stage, over all processes of this run", "stage")
        self._retries = gauge("retries", "calls that had to be made again")
        self._waiting = gauge("prepared_units_waiting", "units that are prepared and wait for an encoder")
        self._to_do = gauge("units_to_do", "units of this run, committed ones included, in the parts cut so far")
        self._parts_cut = gauge("parts_cut", "parts that were indexed and cut into units")
        self._parts = gauge("parts", "parts of the source")
        self._busy = gauge("encoder_busy_share", "share of the encoders' time between commits that they encoded")
        self._last = (0.0, 0.0)
        self._share = 0.0

    def observe(self, progress: Progress, seconds: float, encoders: int) -> None:
        """Args: seconds since encoding began."""
        totals = progress.totals
        for gauge, value in (
            (self._images, totals.rows),
            (self._tokens, totals.tokens),
            (self._bytes, totals.embedding_bytes),
            (self._units, totals.units),
            (self._retries, progress.retries),
            (self._waiting, progress.prepared),
            (self._to_do, progress.units_known - progress.units_before),
            (self._parts_cut, progress.parts_cut),
            (self._parts, progress.parts),
        ):
            gauge.set(value)
        for reason, count in totals.rejects.items():
            self._rejects.set(count, {"reason": reason})
        for stage, spent in totals.seconds.items():
            self._seconds.set(spent, {"stage": stage})
        then, encoded_then = self._last
        encoded = totals.seconds["encode"]
        if encoded > encoded_then and seconds > then:
            self._share = min(1.0, (encoded - encoded_then) / max(1e-9, (seconds - then) * encoders))
            self._last = (seconds, encoded)
        self._busy.set(self._share)  # one that is not said again soon is forgotten
