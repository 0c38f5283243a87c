"""Drive Airflow's web interface with a browser, as a user would."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from live_airflow import PASSWORD, USER
from playwright.sync_api import Locator, Page, expect, sync_playwright

FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
)
# Timeout for a page. Pages that wait for a run get a longer one.
SECONDS = 60


@dataclass(frozen=True)
class Browser:
    """A browser window that is open at an Airflow."""

    page: Page
    url: str
    screenshots: Path

    def log_in(self) -> None:
        self.page.goto(self.url)
        self.page.get_by_label("Username").fill(USER)
        self.page.locator("input[type=password]").fill(PASSWORD)
        self.page.get_by_role("button", name="Sign in").click()
        expect(self.page.get_by_role("link", name="Dags", exact=True)).to_be_visible()

    def open_dag(self, dag_id: str) -> None:
        """Open a DAG from the list of DAGs."""
        self.page.goto(f"{self.url}/dags")
        self.page.get_by_role("link", name=dag_id, exact=True).first.click()
        expect(self._trigger_button()).to_be_visible()

    def open_run(self, dag_id: str, run_id: str) -> None:
        """Open a run, with the task group expanded in the grid."""
        self.page.goto(f"{self.url}/dags/{dag_id}/runs/{run_id}")
        self.page.get_by_role("button", name="Expand all task groups").click()

    def open_runs(self, dag_id: str) -> None:
        self.page.goto(f"{self.url}/dags/{dag_id}/runs")

    def run(self, run_id: str) -> Locator:
        """The row of a run in the list that :meth:`open_runs` opens."""
        return self.page.get_by_role("row").filter(has=self.page.get_by_role("link", name=run_id))

    def fill_in_backfill(self, first_day: str, last_day: str, *, max_active_runs: int) -> Locator:
        """Fill in the form Run Backfill without sending it. Days have the form 2026-11-01."""
        self._trigger_button().click()
        form = self.page.get_by_role("dialog").first
        form.get_by_text("Run this Dag for a range of dates").click()
        self._pick_date(form, "From", first_day)
        self._pick_date(form, "To", last_day)
        form.get_by_role("spinbutton").fill(str(max_active_runs))
        return form

    def run_backfill(self, form: Locator) -> None:
        form.get_by_role("button", name="Run Backfill").click()
        expect(self.page.get_by_role("dialog")).to_have_count(0)

    def clear_run(self, run_id: str) -> None:
        self.run(run_id).get_by_role("button", name="Clear Dag Run").click()
        dialog = self.page.get_by_role("dialog")
        expect(dialog.get_by_role("cell", name="transcribe.register")).to_be_visible()
        dialog.get_by_role("button", name="Confirm").click()
        expect(self.page.get_by_role("dialog")).to_have_count(0)

    def screenshot(self, name: str) -> None:
        # Bars and dialogs slide in. Without animations the screenshot shows their final position.
        self.page.screenshot(path=self.screenshots / f"{name}.png", animations="disabled")

    def _trigger_button(self) -> Locator:
        # The list of DAGs also has such buttons, but without a text.
        return self.page.get_by_role("button", name="Trigger Dag").filter(has_text="Trigger")

    def _pick_date(self, form: Locator, field: str, day: str) -> None:
        form.get_by_role("group").filter(has_text=field).get_by_role("paragraph").click()
        picker = self.page.get_by_role("dialog").last
        picker.get_by_placeholder("YYYY/MM/DD").fill(day.replace("-", "/"))
        picker.get_by_placeholder("HH:mm").fill("00:00")
        self.page.keyboard.press("Enter")
        self.page.keyboard.press("Escape")
        expect(self.page.get_by_role("dialog")).to_have_count(1)


@contextmanager
def browser_at(url: str, screenshots: Path) -> Iterator[Browser]:
    """Open a window of a fresh browser. A last screenshot shows where a test stopped."""
    executable = shutil.which("chromium")
    if executable is None:
        raise RuntimeError("chromium is missing: run `make chromium`")
    screenshots.mkdir(parents=True, exist_ok=True)
    expect.set_options(timeout=SECONDS * 1000)
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=FLAGS.split())
        page = chromium.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(SECONDS * 1000)
        browser = Browser(page, url, screenshots)
        try:
            yield browser
        finally:
            browser.screenshot("last")
            chromium.close()
