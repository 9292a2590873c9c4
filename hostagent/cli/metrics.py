"""hostagent metrics: everything that Prometheus may want to know."""

from __future__ import annotations

from pathlib import Path

import click

from hostagent import wiring
from hostagent.cli.common import Call, begin
from hostagent.cli.output import sentence
from hostagent.cli.verbs import Asked, verb
from hostagent.errors import ExitCode, HostagentError
from hostagent.metrics.exposition import exposition, names_of
from hostagent.metrics.textfile import require_textfile, write_textfile
from hostagent.observed import Observed


@verb("metrics", example="hostagent metrics --textfile /var/lib/prometheus/node-exporter/hostagent.prom")
@click.option(
    "--textfile",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Replace this file, for node_exporter's textfile collector; its folder must be there.",
)
def metrics(asked: Asked, textfile: Path | None) -> int:
    """Print all metrics in Prometheus' text format, from the journal and a look at the host.

    Without libvirt those are absent that only a look shows. With --json, inside one document.
    """
    call = begin(asked)
    if textfile is not None:
        require_textfile(textfile)
    text = exposition(call.updates(), _look(call), names_of(call.config))
    if textfile is not None:
        write_textfile(textfile, text)
        call.out.show({"textfile": str(textfile.absolute())}, sentence(f"Written: {textfile}"))
    elif call.out.as_json:
        call.out.show({"exposition": text})
    else:
        call.out.raw(text)
    return ExitCode.DONE


def _look(call: Call) -> Observed | None:
    try:
        return wiring.observed_of(call.config)
    except HostagentError as error:
        call.out.note(f"without what only a look at the host shows (guests, components, blockers): {error}")
        return None
