"""A table for transactions that hold for one snapshot or not at all.

The only module here that imports PyIceberg at its top, to derive from its ``Table``: import it inside
functions. ``tests/provider/table/test_pyiceberg.py`` says what it relies on.
"""

from __future__ import annotations

from collections.abc import Mapping

from pyiceberg.exceptions import CommitFailedException  # noqa: TID253
from pyiceberg.table import Table  # noqa: TID253


class PinnedTable(Table):
    """A table with the newest snapshot of another as all its history, for one transaction.

    **Pinned**: PyIceberg reacts to a failed commit by refreshing the table, asking whether the commit has
    landed all the same (its answer may have been lost), and else making it again on top of what others did.
    This keeps the question, because to take a landed commit for a failed one would delete manifests that
    the table needs, and cuts off the rest: what the commit replaces was chosen for one snapshot.

    **Light**: a transaction copies all of the table's metadata more than ten times, which for a history of
    5,000 snapshots takes six seconds. It needs nothing of that history but the newest snapshot.

    :param properties: of the table, as the transaction is to see them.
    """

    def __init__(self, table: Table, *, properties: Mapping[str, str] | None = None) -> None:
        head = table.current_snapshot()
        properties = {
            **{k: v for k, v in table.properties.items() if not k.startswith("commit.retry.")},
            **(properties or {}),
        }
        # Known to PyIceberg in lower case, and to other writers in any.
        if codec := properties.get("write.avro.compression-codec"):
            properties["write.avro.compression-codec"] = codec.lower().replace("uncompressed", "null")
        metadata = table.metadata.model_copy(
            update={
                "snapshots": [head] if head else [],
                "snapshot_log": [],
                "statistics": [],
                "partition_statistics": [],
                # Only in memory: a commit sends changes, and there is none here. One retry, at once, so that
                # PyIceberg refreshes and asks.
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
        """The snapshot that the transaction makes; set it before committing."""

    def refresh(self) -> Table:
        """The newest state, if it holds the expected snapshot.

        :raises CommitFailedException: otherwise.
        """
        super().refresh()
        if self.expected_snapshot_id is None or self.snapshot_by_id(self.expected_snapshot_id) is None:
            raise CommitFailedException("another writer committed first")
        return self
