"""The alert rules by promtool: each fires when it should, tells of whom it should, and is silent otherwise."""

import json
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.bench.paths import PROJECT
from tests.grafana.alert_cases import CASES, HOST, Case
from tests.metrics.promtool import PROMTOOL

RULES = PROJECT / "grafana/alerts.yml"
RUNBOOK = PROJECT / "docs/runbook.md"
HOURS = 180  # minutes; what takes longer is not evaluated every minute

Expected = dict[str, dict[str, str]]


def promtool(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROMTOOL, *words], capture_output=True, text=True, check=False)


def rules() -> dict[str, str]:
    """Each alert with the text of its rule."""
    parts = RULES.read_text().split("- alert: ")[1:]
    return {part.split("\n", 1)[0]: part for part in parts}


def test_the_rules_are_whole() -> None:
    said = promtool("check", "rules", "--lint=all", "--lint-fatal", str(RULES))
    assert said.returncode == 0, said.stdout + said.stderr
    assert "9 rules found" in said.stdout


def test_they_fire_when_they_should(tmp_path: Path) -> None:
    silent = tmp_path / "silent.yml"  # promtool compares alerts whole; this is about their labels alone
    silent.write_text(re.sub(r"^ +annotations:\n(?: {10}.*\n)+", "", RULES.read_text(), flags=re.MULTILINE))
    judge(silent, [(case, [{"exp_labels": labels(case, who)} for who in case.who]) for case in CASES], tmp_path)


def test_they_say_in_words_what_it_is(tmp_path: Path) -> None:
    judge(RULES, [(case, [whole(case)]) for case in CASES if case.says], tmp_path)


def whole(case: Case) -> Expected:
    assert case.says
    summary, description = case.says
    words = {"summary": summary, "description": description, "runbook_url": f"docs/runbook.md#{case.alert.lower()}"}
    (who,) = case.who
    return {"exp_labels": labels(case, who), "exp_annotations": words}


def labels(case: Case, who: dict[str, str]) -> dict[str, str]:
    (severity,) = re.findall(r"severity: (\w+)", rules()[case.alert])
    return {name: value for name, value in ({"severity": severity} | HOST | who).items() if value}


def judge(alerts: Path, cases: Sequence[tuple[Case, list[Expected]]], folder: Path) -> None:
    tests = [
        {
            "name": f"{case.alert}: {case.what}",
            "interval": "1m",
            "input_series": [{"series": name, "values": values} for name, values in case.series.items()],
            "alert_rule_test": [{"eval_time": f"{case.minute}m", "alertname": case.alert, "exp_alerts": expected}],
        }
        for case, expected in cases
    ]
    for every, chosen in (("1m", lambda minute: minute <= HOURS), ("10m", lambda minute: minute > HOURS)):
        some = [test for test, (case, _) in zip(tests, cases, strict=True) if chosen(case.minute)]
        path = folder / f"test-{every}.yml"
        path.write_text(json.dumps({"rule_files": [str(alerts)], "evaluation_interval": every, "tests": some}))
        said = promtool("test", "rules", str(path))
        assert said.returncode == 0, said.stdout + said.stderr


def test_every_alert_fires_and_is_silent_in_some_case() -> None:
    assert {case.alert for case in CASES if case.who} == {case.alert for case in CASES if not case.who} == set(rules())
    assert [case.alert for case in CASES if case.says] == list(rules())


@pytest.mark.parametrize("alert", rules())
def test_it_has_a_section_in_the_runbook(alert: str) -> None:
    (link,) = re.findall(r"runbook_url: (\S+)", rules()[alert])
    assert link == f"docs/runbook.md#{alert.lower()}"
    section = RUNBOOK.read_text().partition(f"\n### {alert}\n")[2].partition("\n#")[0]
    assert all(word in section for word in ("**It means**", "**Look**", "**Do**"))
