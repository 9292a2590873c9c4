"""Debian's Prometheus on loopback: it scrapes, has the alert rules, and is asked as Grafana asks it."""

from __future__ import annotations

import json
import math
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.bench.paths import PROJECT
from tests.metrics.promtool import PROMETHEUS

ADDRESS = "127.0.0.1:9090"
JOB = "hosts"
EVERY = 0.5
"""Seconds from scrape to scrape, and from one evaluation of the rules to the next."""
LIMIT = 120.0
"""Seconds after which something that must happen is taken for something that never does."""


@dataclass(frozen=True)
class Series:
    """Labels, and pairs of Unix time and value; not those that are no number."""

    labels: dict[str, str]
    points: tuple[tuple[float, float], ...]


class Prometheus:
    """`with Prometheus(folder, {"host1": "127.0.0.1:9177"}) as prometheus:` scrapes these instances."""

    def __init__(self, folder: Path, targets: dict[str, str]) -> None:
        self._folder = folder
        self._targets = targets

    def __enter__(self) -> Self:
        every = f"{EVERY * 1000:.0f}ms"
        config = {
            "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
            "rule_files": [str(PROJECT / "grafana/alerts.yml")],
            "scrape_configs": [
                {
                    "job_name": JOB,
                    "static_configs": [
                        {"targets": [address], "labels": {"instance": name}} for name, address in self._targets.items()
                    ],
                }
            ],
        }
        path = self._folder / "prometheus.yml"
        path.write_text(json.dumps(config))
        self._process = subprocess.Popen(
            [
                PROMETHEUS,
                f"--config.file={path}",
                f"--storage.tsdb.path={self._folder / 'data'}",
                f"--web.listen-address={ADDRESS}",
                "--log.level=warn",
            ],
            stdin=subprocess.DEVNULL,
        )
        wait_for(self._is_ready, "Prometheus to be ready")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()

    def now(self, expr: str, at: float | None = None) -> tuple[Series, ...]:
        """An expression's value at one moment."""
        when = {} if at is None else {"time": str(at)}
        return _series(self._ask("query", query=expr, **when))

    def over_time(self, expr: str, begin: float, end: float, step: float) -> tuple[Series, ...]:
        """Its values from one moment to another."""
        return _series(self._ask("query_range", query=expr, start=str(begin), end=str(end), step=str(step)))

    def rules(self) -> list[dict]:
        """Every alert rule with how its last evaluation went."""
        return [rule for group in self._ask("rules")["groups"] for rule in group["rules"]]

    def wait_until(self, expr: str) -> None:
        """Until the expression gives something."""
        wait_for(lambda: bool(self.now(expr)), f"{expr} to give something")

    def wait_for_scrape(self) -> float:
        """Until what is so now has been scraped, and the rules have judged it; the time at which they have."""
        begun = time.time()
        self.wait_until(f"timestamp(up{{job='{JOB}'}} == 1) > {begun + EVERY}")
        scraped = time.time()
        wait_for(lambda: self._judged_since(scraped), "the rules to be evaluated")
        return time.time()

    def _judged_since(self, when: float) -> bool:
        """Whether each rule was evaluated later than that, so that what was scraped then counts."""
        return all(datetime.fromisoformat(rule["lastEvaluation"]).timestamp() > when for rule in self.rules())

    def _ask(self, what: str, **parameters: str) -> dict:
        query = urllib.parse.urlencode(parameters)
        with urllib.request.urlopen(f"http://{ADDRESS}/api/v1/{what}?{query}", timeout=LIMIT) as answer:
            return json.load(answer)["data"]

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, "Prometheus has ended"
        try:
            with urllib.request.urlopen(f"http://{ADDRESS}/-/ready", timeout=LIMIT) as answer:
                return answer.status == 200
        except OSError:
            return False


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Looks again and again; AssertionError when it does not become true."""
    ends = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < ends, f"expected {what} within {LIMIT:g} s"
        time.sleep(0.05)


def _series(data: dict) -> tuple[Series, ...]:
    found = []
    for one in data["result"]:
        pairs: Sequence[tuple[float, str]] = one.get("values") or [one["value"]]
        points = tuple((at, float(value)) for at, value in pairs if math.isfinite(float(value)))
        if points:
            found.append(Series(one["metric"], points))
    return tuple(found)
