"""A table for transactions that succeed only on top of one specific snapshot.

This module derives from PyIceberg's ``Table`` and therefore imports PyIceberg at module level: import it only
inside functions. ``tests/provider/table/test_pyiceberg.py`` tests the internals that it relies on.
"""

from __future__ import annotations

from collections.abc import Mapping

from pyiceberg.exceptions import CommitFailedException  # noqa: TID253
from pyiceberg.table import Table  # noqa: TID253


class PinnedTable(Table):
    """A copy of a table for one transaction, whose history is only the newest snapshot.

    **Pinned**: after a failed commit PyIceberg refreshes the table, checks whether the commit has succeeded
    after all (the response may have been lost), and otherwise repeats it on top of the newest snapshot. This
    class keeps the check, because mistaking a successful commit for a failed one would delete manifests that
    the table needs. It prevents the repetition, because the files to replace were chosen for one snapshot.

    **Light**: a transaction copies the table's metadata more than ten times, which takes six seconds with a
    history of 5,000 snapshots. The transaction needs only the newest snapshot.

    :param properties: table properties to override in the transaction.
    """

    def __init__(self, table: Table, *, properties: Mapping[str, str] | None = None) -> None:
        head = table.current_snapshot()
        properties = {
            **{k: v for k, v in table.properties.items() if not k.startswith("commit.retry.")},
            **(properties or {}),
        }
        # PyIceberg accepts codec names only in lower case, other writers in any case.
        if codec := properties.get("write.avro.compression-codec"):
            properties["write.avro.compression-codec"] = codec.lower().replace("uncompressed", "null")
        metadata = table.metadata.model_copy(
            update={
                "snapshots": [head] if head else [],
                "snapshot_log": [],
                "statistics": [],
                "partition_statistics": [],
                # These properties stay in memory, because a commit sends only changes. One immediate retry
                # makes PyIceberg refresh the table and check whether the commit has succeeded.
                "properties": {
                    **properties,
                    "commit.retry.num-retries": "1",
                    "commit.retry.min-wait-ms": "0",
                },
            }
        )
        super().__init__(
            table.name(), metadata, table.metadata_location, table.io, table.catalog, table.config
        )
        self.expected_snapshot_id: int | None = None
        """Id of the snapshot that the transaction creates. Set it before committing."""

    def refresh(self) -> Table:
        """Refresh to the newest state if it contains the expected snapshot.

        :raises CommitFailedException: otherwise.
        """
        super().refresh()
        if self.expected_snapshot_id is None or self.snapshot_by_id(self.expected_snapshot_id) is None:
            raise CommitFailedException("another writer committed first")
        return self
