"""Fail on likely mistakes: a filter that matches nothing, and a partition that loses too many rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_whisper.discovery.errors import DiscoveryError
from airflow_whisper.discovery.locations import anything_under
from whisper_spark.contract import partition_path

if TYPE_CHECKING:
    from airflow_whisper.discovery.audio_filter import AudioFilter
    from airflow_whisper.discovery.comparison import Comparison, Counts, Rules
    from airflow_whisper.discovery.manifest import Target
    from whisper_spark.storage.objects import ObjectStorage


def check_some_match(comparison: Comparison, source: str, audio_filter: AudioFilter) -> None:
    """Check that the filter is not the only reason why a source has no audio.

    Hidden objects are ignored, because tools leave them in empty folders. If the source holds audio of other
    partitions, by modification time, the filter does match and the check passes.

    :raises DiscoveryError: if there are objects, but the filter selects none of them.
    """
    left_out = comparison.left_out()
    unmatched, sidecars = left_out.get("unmatched", 0), left_out.get("sidecar", 0)
    if not unmatched + sidecars or left_out.get("other_time"):
        return
    example = comparison.example_left_out("unmatched") or comparison.example_left_out("sidecar")
    raise DiscoveryError(
        f"there are {unmatched + sidecars:,} objects under {source}, for example {example}, and none of them "
        f"is audio: {unmatched:,} do not match {audio_filter}, {sidecars:,} are sidecar files such as .json. "
        'Check `pattern` and `extensions`; if a partition may be without audio, set on_missing_source="skip"'
    )


def check_removals(
    comparison: Comparison,
    counts: Counts,
    rules: Rules,
    target: Target,
    rows: int,
    storage: ObjectStorage,
    root: str,
) -> None:
    """Check that a run removes rows because their audio is gone, and not because its source is wrong.

    :param rows: current number of rows in the partition.
    :param storage: storage of the source.
    :param root: the part of the source that all partitions share.
    :raises DiscoveryError: if the source does not exist, or more rows would be removed than
        ``max_removed_rate`` allows.
    """
    if not (counts.audio or comparison.left_out() or anything_under(storage, root)):
        raise DiscoveryError(
            f"source {target.source} does not exist: there is nothing under {root}. So no row of "
            f"partition {partition_path(target.partition)} of {target.table} is removed. Check the "
            "argument `source`; if all audio was deleted on purpose, put any object there"
        )
    check_removed_rate(comparison, counts, rules, target, rows)


def check_removed_rate(
    comparison: Comparison, counts: Counts, rules: Rules, target: Target, rows: int
) -> None:
    """Check that a run does not remove too many rows.

    :param rows: current number of rows in the partition.
    :raises DiscoveryError: if it would remove more than ``max_removed_rate`` allows.
    """
    removed = counts.files["removed"]
    if removed > rules.max_removed_rate * rows:
        example = next(comparison.removed())[0][0]
        raise DiscoveryError(
            f'on_removed="delete" would remove {removed:,} of the {rows:,} rows of partition '
            f"{partition_path(target.partition)} of {target.table} ({removed / rows:.0%}), for example of "
            f"{example}; max_removed_rate={rules.max_removed_rate:g} allows less. If this audio was deleted "
            "on purpose, run once with a higher max_removed_rate (1 allows all); otherwise check `source`, "
            "and what became of the audio"
        )
