"""A person in Airflow's web interface: backfills days, clears a run, backfills again with other options.

Each fixture is one more thing that the person does, in this order:
backfilled -> cleared -> reprocessed
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from airflow_ui import Browser, browser_at
from live_airflow import PATIENCE, wait_for
from live_site import Site
from playwright.sync_api import expect
from speech import Clip

pytestmark = pytest.mark.timeout(3 * PATIENCE)

DAG_ID = "transcribe_daily"
DAYS = [f"2026-11-{day:02}" for day in range(1, 4)]
CLEARED = DAYS[1]
TASKS = ("discover", "transcribe", "validate", "register")
ALL = dict.fromkeys(TASKS, "success")
NONE = dict.fromkeys(TASKS, "skipped")


@dataclass(frozen=True)
class Seen:
    """The state of runs and table after an action of the person."""

    states: dict[str, dict[str, str]]
    """Of the tasks of each day's run."""
    tries: dict[str, int]
    """Of each day's discover task."""
    rows: dict[str, dict[str, Any]]
    """The row of each day."""
    snapshots: list[int]


def run_id(day: str) -> str:
    """Airflow names a run after the moment from which it may start: when its day is over."""
    after = datetime.date.fromisoformat(day) + datetime.timedelta(days=1)
    return f"backfill__{after}T00:00:00+00:00"


def see(site: Site) -> Seen:
    airflow = site.airflow
    tasks = {day: airflow.tasks(DAG_ID, run_id(day)) for day in DAYS}
    tries = {day: next(t["try_number"] for t in tasks[day] if "discover" in t["task_id"]) for day in DAYS}
    rows = [row for row in site.rows() if row["dt"] in DAYS]
    assert len(rows) == len({row["dt"] for row in rows}), "two rows for one file"
    states = {day: airflow.states(DAG_ID, run_id(day)) for day in DAYS}
    return Seen(states, tries, {row["dt"]: row for row in rows}, site.snapshots())


def wait_for_runs(site: Site, tries: int, days: list[str]) -> None:
    """Wait until the run of each day has succeeded, after at least this many tries."""

    def done() -> bool:
        for day in days:
            tasks = airflow.tasks(DAG_ID, run_id(day))
            first = next(task for task in tasks if task["task_id"].endswith("discover"))
            if first["try_number"] < tries or airflow.run(DAG_ID, run_id(day))["state"] != "success":
                return False
        return True

    airflow = site.airflow
    wait_for(f"try {tries} of {days}", done, PATIENCE, every=1)


@pytest.fixture(scope="module")
def browser(site: Site, artifacts: Path) -> Iterator[Browser]:
    with browser_at(site.airflow.url, artifacts / "screenshots") as browser:
        yield browser


@pytest.fixture(scope="module")
def backfilled(site: Site, browser: Browser, librivox: list[Clip]) -> Iterator[Seen]:
    for day, clip in zip(DAYS, librivox, strict=False):
        site.put(f"daily/dt={day}/a.wav", clip.path.read_bytes())
    browser.log_in()
    browser.open_dag(DAG_ID)
    form = browser.fill_in_backfill(DAYS[0], DAYS[-1], max_active_runs=2)
    expect(form).to_contain_text("3 runs will be triggered.")
    expect(form.get_by_role("checkbox", name=f"Unpause {DAG_ID} on trigger")).to_be_checked()
    browser.screenshot("backfill-form")
    browser.run_backfill(form)
    browser.open_runs(DAG_ID)
    for day in DAYS:  # the page brings itself up to date
        expect(browser.run(run_id(day))).to_contain_text("Success", timeout=PATIENCE * 1000)
    browser.screenshot("runs")
    browser.open_dag(DAG_ID)
    expect(browser.page.get_by_text("Backfill in progress")).to_have_count(0)
    browser.screenshot("grid")
    yield see(site)
    site.airflow.pause(DAG_ID)


@pytest.fixture(scope="module")
def cleared(site: Site, browser: Browser, backfilled: Seen) -> Seen:
    browser.open_runs(DAG_ID)
    browser.clear_run(run_id(CLEARED))
    wait_for_runs(site, 2, [CLEARED])
    expect(browser.run(run_id(CLEARED))).to_contain_text("Success")
    browser.open_run(DAG_ID, run_id(CLEARED))
    tasks = browser.page.get_by_role("row").filter(has_text="Operator").filter(has_text="Skipped")
    expect(tasks).to_have_count(len(TASKS))
    browser.screenshot("cleared")
    return see(site)


@pytest.fixture(scope="module")
def reprocessed(site: Site, browser: Browser, cleared: Seen) -> Seen:
    browser.open_dag(DAG_ID)
    form = browser.fill_in_backfill(DAYS[0], DAYS[-1], max_active_runs=2)
    form.get_by_text("All Runs", exact=True).click()
    form.get_by_text("Override parameters on existing runs").click()
    form.get_by_role("button", name="Whisper").click()
    form.locator("[name=element_initial_prompt]").fill("Sense and Sensibility.")
    expect(form).to_contain_text("3 runs will be triggered.")
    browser.screenshot("reprocess-form")
    browser.run_backfill(form)

    def replaced() -> bool:
        made = {row["dt"]: row["fingerprint"] for row in site.rows()}
        return site.airflow.idle(DAG_ID) and all(
            made[day] != cleared.rows[day]["fingerprint"] for day in DAYS
        )

    wait_for("new rows of all days", replaced, PATIENCE, every=2)
    browser.open_runs(DAG_ID)
    for day in DAYS:
        expect(browser.run(run_id(day))).to_contain_text("Success")
    return see(site)


def test_backfill_from_the_form_publishes_every_day(backfilled: Seen) -> None:
    assert backfilled.states == dict.fromkeys(DAYS, ALL)
    assert sorted(backfilled.rows) == DAYS
    assert {row["status"] for row in backfilled.rows.values()} == {"ok"}


def test_cleared_run_converges_without_work(cleared: Seen, backfilled: Seen) -> None:
    assert cleared.tries == {**backfilled.tries, CLEARED: backfilled.tries[CLEARED] + 1}
    assert cleared.states == {**backfilled.states, CLEARED: NONE}
    assert cleared.rows == backfilled.rows
    assert cleared.snapshots == backfilled.snapshots


def test_backfill_with_other_options_replaces_rows(reprocessed: Seen, cleared: Seen) -> None:
    assert reprocessed.states == dict.fromkeys(DAYS, ALL)
    assert sorted(reprocessed.rows) == DAYS
    assert len(reprocessed.snapshots) == len(cleared.snapshots) + len(DAYS)
    fingerprints = {row["fingerprint"] for row in reprocessed.rows.values()}
    assert len(fingerprints) == 1
    for day in DAYS:
        before, after = cleared.rows[day], reprocessed.rows[day]
        assert after["audio_etag"] == before["audio_etag"]
        assert after["fingerprint"] != before["fingerprint"]
        assert after["transcribed_at"] > before["transcribed_at"]
