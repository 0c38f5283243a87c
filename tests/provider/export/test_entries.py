"""What runs that overlap leave in the index."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from airflow_whisper.export.entries import Entry, Outcome, new_run

OURS, OTHER = new_run(), new_run()
VERSION = ("e1", "f1", 1)
DONE = Outcome(VERSION, "s1", {"a.srt": "1"})


def test_run_that_was_alone_settles_a_row_for_good() -> None:
    begun = Entry(VERSION, "s0", ("a.vtt",)).begun({"a.srt"}, OURS)
    assert (begun.settings, begun.files, begun.runs) == (None, ("a.srt", "a.vtt"), (OURS,))
    assert begun.settled(DONE, OURS) == Entry(VERSION, "s1", ("a.srt",))
    assert begun.settled(Outcome.deleted(), OURS).is_empty


def test_files_of_a_run_that_was_not_alone_are_checked() -> None:
    begun = Entry().begun({"a.srt", "a.vtt"}, OTHER).begun({"a.srt"}, OURS)
    settled = begun.settled(DONE, OURS)
    assert (settled.files, settled.hashes, settled.runs) == (("a.srt", "a.vtt"), ("1", None), (OTHER,))
    there = {"a.srt": "1"}
    assert settled.checked(there.get) == settled
    for changed in ({"a.srt": "2"}, {}, {"a.srt": "1", "a.vtt": "3"}):
        assert settled.checked(changed.get).settings is None
    # What the other run may have written is deleted with the rest.
    assert begun.settled(Outcome.deleted(), OURS).files == ("a.srt", "a.vtt")


@pytest.mark.parametrize(
    "now",
    [Entry().begun(set(), OURS).begun(set(), OTHER).settled(DONE, OTHER), Entry(VERSION, "s1"), Entry()],
    ids=["settled by another", "forgotten", "deleted"],
)
def test_run_with_which_another_interfered_does_the_row_again(now: Entry) -> None:
    again = now.settled(DONE, OURS)
    assert (again.settings, again.runs) == (None, (OURS,))
    assert "a.srt" in again.files
    assert again.begun({"a.srt"}, OURS).settled(DONE, OURS) == Entry(VERSION, "s1", ("a.srt",))


def test_run_that_fails_stays_entered_beside_another() -> None:
    alone = Entry().begun({"a.srt"}, OURS)
    assert alone.abandoned(OURS) == Entry(files=("a.srt",))
    both = alone.begun({"a.srt"}, OTHER)
    assert both.abandoned(OURS) == both
    # The other has settled, but this run may have written after it.
    assert both.settled(DONE, OTHER).abandoned(OURS) == Entry(files=("a.srt",))
    assert Entry(VERSION, "s1", ("a.srt",)).abandoned(OURS) == Entry(VERSION, "s1", ("a.srt",))


def test_run_of_six_hours_ago_is_not_at_work_any_more() -> None:
    old = new_run(datetime.now(UTC) - timedelta(hours=6, minutes=1))
    settled = Entry().begun({"a.srt"}, old).begun({"a.srt"}, OURS).settled(DONE, OURS)
    assert settled.runs == (old,)
    assert settled.checked({"a.srt": "1"}.get) == Entry(VERSION, "s1", ("a.srt",))
    # It may have worked until a moment ago.
    assert settled.checked({"a.srt": "2"}.get) == Entry(files=("a.srt",))
