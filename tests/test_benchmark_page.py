"""docs/performance.md says what the kept runs say, and every claim can be measured."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return runpy.run_path(str(BENCHMARKS / "page.py"))


def test_the_page_is_that_of_the_kept_runs(script: dict[str, Any]) -> None:
    assert script["PAGE"].read_text("utf-8") == script["page"]()


def test_every_claim_names_a_run_and_every_run_a_script(script: dict[str, Any]) -> None:
    assert {claim.run for claim in script["CLAIMS"]} == set(script["RUNS"])
    for command in script["RUNS"].values():
        assert (BENCHMARKS / command.split()[0]).is_file(), command


def test_a_missed_target_says_so(script: dict[str, Any]) -> None:
    claims = {claim.what: claim for claim in script["CLAIMS"]}
    least = claims["the same step through PEFT / ours"]
    most = claims["`learn` as a whole / its bare steps, 160 JPEG files of 640 × 480, 3 epochs"]
    found = {"fp32": {"peft_step_over_ours": 0.9, "peft_step_over_ours_range": [0.8, 1.2]}}
    assert least.shown(found) == "0.900 (0.800–1.200), **missed**"
    assert most.shown({"160": {"learn_over_bare_steps": 1.05}}) == "1.050"
    assert most.shown({"160": {"learn_over_bare_steps": 1.2}}) == "1.200, **missed**"
