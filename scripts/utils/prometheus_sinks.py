"""Figures for Prometheus: pushed to a Pushgateway, or written to a file for the node exporter's textfile collector.

Imported only when one of them is set. Both keep what the new figures do not name: a run that fails has no new
last-success, and must not make the old one vanish.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from prometheus_client import CollectorRegistry, Gauge, generate_latest, pushadd_to_gateway
from prometheus_client.exposition import basic_auth_handler, default_handler
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from scripts.utils import private_files
from scripts.utils.metrics_utils import METRICS, Figure

PUSH_SECONDS = 5.0


class PushgatewaySink:
    """Pushes by POST, which replaces metrics of the same name only; PUT would replace the script's whole group.

    Args:
        url: Where the Pushgateway is; may carry user and password.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._handler: Callable[..., Callable[[], None]] = default_handler
        if parts.username:
            user, password = unquote(parts.username), unquote(parts.password or "")
            self._handler = partial(basic_auth_handler, username=user, password=password)
        self._url = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))

    def send(self, script: str, figures: Sequence[Figure]) -> None:
        """Push, or raise within seconds."""
        pushadd_to_gateway(
            self._url, job=script, registry=_registry(figures), timeout=PUSH_SECONDS, handler=self._handler
        )


class TextfileSink:
    """Replaces ``lifecycle_<script>.prom`` as a whole, so that the collector never reads half a file.

    Args:
        folder: What the node exporter's ``--collector.textfile.directory`` names.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def send(self, script: str, figures: Sequence[Figure]) -> None:
        """Write the file, or raise."""
        path = self._folder / f"lifecycle_{script}.prom"
        text = generate_latest(_registry([*figures, *_kept(path, {figure.name for figure in figures})]))
        with (
            private_files.folder(self._folder) as within,
            # The collector is another user: figures are no secret.
            private_files.replacing(within, path.name, mode=0o644, durable=False) as file,
        ):
            file.write(text)


def _registry(figures: Sequence[Figure]) -> Collector:
    registry = CollectorRegistry()
    gauges: dict[str, Gauge] = {}
    for figure in figures:
        if figure.name not in gauges:
            gauges[figure.name] = Gauge(figure.name, METRICS[figure.name], sorted(figure.labels), registry=registry)
        gauge = gauges[figure.name].labels(**figure.labels) if figure.labels else gauges[figure.name]
        # Not left out: an earlier run's count would stay and look like this one's.
        gauge.set(math.nan if figure.value is None else figure.value)
    return registry


def _kept(path: Path, names: set[str]) -> list[Figure]:
    """Return what an earlier file says of metrics that have no new figure."""
    try:
        families = list(text_string_to_metric_families(path.read_text()))
    except (FileNotFoundError, ValueError):  # there was none, or somebody else wrote it
        return []
    return [
        Figure(sample.name, sample.value, dict(sample.labels))
        for family in families
        for sample in family.samples
        if sample.name in METRICS and sample.name not in names
    ]
