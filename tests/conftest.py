"""What all tests share."""

import os
import signal
from collections import Counter

import pytest
from hypothesis import settings

# What the helpers assert is told as fully as what the tests do.
pytest.register_assert_rewrite("tests.bench", "tests.crash", "tests.guests", "tests.hosts")

# CI tries the same examples every time, so that a change is judged by what it changed; everywhere else they are new.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("here", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "here")

# A shell without job control has what it starts in the background ignore Ctrl-C, which some tests send to themselves.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What each folder of tests takes, set-up and all, when more than one was run."""
    taken = Counter[str]()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                taken["/".join(report.nodeid.split("/")[:2])] += report.duration
    if len(taken) > 1:
        terminalreporter.section("seconds by folder")
        for folder, seconds in taken.most_common():
            terminalreporter.write_line(f"{seconds:8.1f} {folder}")
