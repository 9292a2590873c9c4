"""Dashboards for Grafana, written as Python and committed as the JSON that Grafana imports; alert rules beside them.

    panels.py    the kinds of panels there are, each with the options that are wanted here
    board.py     a dashboard of rows of panels: places, ids, variables, annotations
    pauses.py    what the dashboard of pauses shows
    host.py      what the dashboard of hosts shows

`python -m grafana` writes pauses.json and host.json anew. alerts.yml is for Prometheus, and written by hand.
"""
