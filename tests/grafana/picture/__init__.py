"""Draws what the dashboards show, for the documentation. It is no Grafana: it fails at what it does not know.

    svg.py      shapes on a sheet
    words.py    values in units, names of series, colours
    axes.py     scales and their ticks
    plots.py    panels over time
    figures.py  panels of last values

`python -m tests.grafana.picture` makes docs/pauses.svg and docs/host.svg of what take.py took.
"""
