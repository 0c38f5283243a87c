"""A live Airflow, and the object store and table that its DAGs use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from live_airflow import LiveAirflow
from servers import Lake, S3Server

TABLE = "speech.transcripts"


@dataclass(frozen=True)
class Site:
    """An Airflow, and the object store and table that its DAGs use."""

    airflow: LiveAirflow
    s3: S3Server
    lake: Lake
    bucket: str

    def put(self, key: str, body: bytes) -> None:
        self.s3.client().put_object(Bucket=self.bucket, Key=key, Body=body)

    @contextmanager
    def unpaused(self, *dag_ids: str) -> Iterator[None]:
        """Unpause the DAGs in this order, and pause them again at the end."""
        self.airflow.unpause(*dag_ids)
        try:
            yield
        finally:
            for dag_id in dag_ids:
                self.airflow.pause(dag_id)

    def table(self, name: str = TABLE) -> Any:
        from pyiceberg.catalog.rest import RestCatalog

        return RestCatalog("lake", **self.lake.properties).load_table(name)

    def rows(self, name: str = TABLE) -> list[dict[str, Any]]:
        """Return all rows of a table; none if the table does not exist yet."""
        from pyiceberg.exceptions import NoSuchTableError

        try:
            found: list[dict[str, Any]] = self.table(name).scan().to_arrow().to_pylist()
        except NoSuchTableError:
            return []
        return found

    def snapshots(self, name: str = TABLE) -> list[int]:
        return [snapshot.snapshot_id for snapshot in self.table(name).snapshots()]
