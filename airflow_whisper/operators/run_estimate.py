"""Put together what the estimate of a run needs: the comparison, the table's history, headers of audio."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from airflow_whisper.discovery.estimate import Estimate, estimate, header_rates
from airflow_whisper.table.history import byte_rates, past_runs

if TYPE_CHECKING:
    from pyiceberg.table import Table

    from airflow_whisper.discovery.comparison import Comparison
    from airflow_whisper.discovery.manifest import Target
    from whisper_spark.storage.objects import ObjectStorage

log = logging.getLogger(__name__)


def run_estimate(
    comparison: Comparison, target: Target, root: str, table: Table | None, storage: ObjectStorage
) -> Estimate | None:
    """Estimate the cost of a run, from what is cheapest to read.

    :param root: the part of the source that all partitions share.
    :param table: the table; ``None`` if it does not exist.
    :param storage: storage of the source.
    :return: ``None`` if the estimate failed. The log says why, and the run goes on without one.
    """
    try:
        return _estimate(comparison, target, root, table, storage)
    except Exception:
        # Nothing depends on the estimate, so no error in it may stop a run.
        log.warning("The cost of this run could not be estimated", exc_info=True)
        return None


def _estimate(
    comparison: Comparison, target: Target, root: str, table: Table | None, storage: ObjectStorage
) -> Estimate:
    work = comparison.work()
    rates = [("bytes per second of this partition's other files", comparison.byte_rates())]

    def without() -> list[str]:
        """Extensions of which nothing tells yet how large a second is."""
        known = set().union(*(found for _, found in rates))
        return [part.extension for part in work if part.unknown_bytes and part.extension not in known]

    if table is not None and without():
        found = byte_rates(table, root)
        rates.append(("bytes per second in the table's latest rows", found))
    if missing := without():
        parts = [part for part in work if part.extension in missing]
        rates.append(("the headers of a few files", header_rates(parts, comparison.sample, storage)))
    past = past_runs(table, target.options.fingerprint(), target.options.model) if table else None
    return estimate(work, rates, past)
