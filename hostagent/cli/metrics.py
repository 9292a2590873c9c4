"""hostagent metrics: everything that Prometheus may want to know."""

from __future__ import annotations

from hostagent.cli.common import begin
from hostagent.cli.verbs import Asked, verb
from hostagent.errors import ExitCode
from hostagent.exposition import exposition


@verb("metrics", example="hostagent metrics > /var/lib/prometheus/node-exporter/hostagent.prom")
def metrics(asked: Asked) -> int:
    """Print all metrics in Prometheus' text format, folded from the journal; with --json, inside one document."""
    call = begin(asked)
    text = exposition(call.updates())
    if call.out.as_json:
        call.out.show({"exposition": text})
    else:
        call.out.raw(text)
    return ExitCode.DONE
