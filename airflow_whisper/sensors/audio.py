"""Wait until a source holds audio that a table does not contain yet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator, PokeReturnValue
from airflow.sdk.configuration import conf

from airflow_whisper.discovery.audio_filter import extension_tuple
from airflow_whisper.errors import wrong_configuration
from airflow_whisper.events import check_map_length
from airflow_whisper.table.schema import check_table_name
from airflow_whisper.templates import TextTemplates, is_final, optional, text
from airflow_whisper.triggers.polling import EXPECTED_ERRORS
from airflow_whisper.triggers.sensor import FINAL_ERRORS, AudioToTranscribeTrigger, TableFiles
from airflow_whisper.watch.pending import BatchRules
from airflow_whisper.watch.source import WatchedSource
from airflow_whisper.watch.watcher import SourceWatch

if TYPE_CHECKING:
    from airflow.sdk import Context

_STATE_KEY = "new_audio"
# Largest number of characters of state to store between two rescheduled pokes. Airflow warns above 64 KiB.
_MOST_STATE = 60_000


class NewAudioSensor(TextTemplates, BaseSensorOperator):
    """Wait until a source holds audio that is new to a table or changed, and return its partitions.

    .. code-block:: python

        arrived = NewAudioSensor(
            task_id="arrived",
            source="s3://calls/raw/dt={{ ds }}/hour={hour}/",
            partition={"dt": "{{ ds }}"},
            table="speech.transcripts",
            source_conn_id="calls_s3",
            catalog_conn_id="lake",
            deferrable=True,
            timeout=6 * 3600,
            soft_fail=True,
        )

        @task_group
        def one_hour(source, partition):
            transcribe_partition(source=source, partition=partition, table="speech.transcripts", ...)

        one_hour.expand_kwargs(arrived.output)

    A file is new if no row of the table has its URI, and changed if the row has another etag. Stale rows and
    transient errors do not end the wait; use a schedule to process these.

    Returns ``[{"source": ..., "partition": ...}, ...]``, the arguments of a mapped task group. The XCom
    ``arrivals`` has the same with ``files`` and ``bytes``.

    With ``deferrable=True`` the triggerer waits and no worker slot is occupied. ``timeout``, ``soft_fail``,
    ``mode`` and ``poke_interval`` work as in every sensor. If a store or a catalog does not respond, the
    sensor tries again until the timeout.

    :param source: folder to watch, recursively: ``s3://``, ``gs://``, ``az://``, ``abfss://``, ``file://``
        or a path. Placeholders name partition keys: ``s3://calls/raw/dt={dt}/hour={hour}/``.
    :param table: ``namespace.table``. It need not exist yet.
    :param partition: partition keys that are the same for all audio, for example ``{"dt": "{{ ds }}"}``.
    :param partition_from_modified: see :class:`NewAudioTrigger`.
    :param source_conn_id: Airflow connection for the source; ``None``: ambient credentials.
    :param catalog_conn_id: Airflow connection of type ``iceberg``; ``None``: the embedded catalog.
    :param pattern: case-insensitive glob on the path below the partition's folder.
    :param extensions: see :class:`NewAudioTrigger`.
    :param stable_polls: see :class:`NewAudioTrigger`, as for ``min_age``, ``min_files`` and ``since``.
    :param max_file_wait: seconds after a file's modification at which the wait ends even with fewer than
        ``min_files``. (``max_wait`` is the longest interval between pokes, as in every sensor.)
    :param deferrable: whether to wait in the triggerer. Default: ``[operators] default_deferrable``.
    :raises ValueError: if an argument is wrong. Templated arguments are checked when the task runs.
    """

    template_fields: Sequence[str] = (
        "source",
        "partition",
        "table",
        "source_conn_id",
        "catalog_conn_id",
        "pattern",
        "since",
    )
    text_fields = template_fields
    template_fields_renderers = {"partition": "json"}  # noqa: RUF012

    def __init__(
        self,
        *,
        source: str,
        table: str,
        partition: Mapping[str, str] | None = None,
        partition_from_modified: Mapping[str, str] | None = None,
        source_conn_id: str | None = None,
        catalog_conn_id: str | None = None,
        pattern: str | None = None,
        extensions: Sequence[str] | None = None,
        stable_polls: int = 2,
        min_age: float = 60,
        min_files: int = 1,
        max_file_wait: float = 300,
        since: str | None = None,
        deferrable: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.source = source
        self.table = table
        self.partition = partition
        self.partition_from_modified = partition_from_modified
        self.source_conn_id = source_conn_id
        self.catalog_conn_id = catalog_conn_id
        self.pattern = pattern
        self.extensions = extensions
        self.stable_polls = stable_polls
        self.min_age = min_age
        self.min_files = min_files
        self.max_file_wait = max_file_wait
        self.since = since
        if deferrable is None:
            deferrable = conf.getboolean("operators", "default_deferrable", fallback=False)
        self.deferrable = deferrable
        self._watch: SourceWatch | None = None
        self._rules()
        if is_final([self.source, self.partition, self.since]):
            self._watched()
        if is_final(self.table):
            check_table_name(self.table)

    def _rules(self) -> BatchRules:
        return BatchRules(
            stable_polls=self.stable_polls,
            min_age=self.min_age,
            min_files=self.min_files,
            max_wait=self.max_file_wait,
            # The rules refuse a minimum that is no number.
            max_files=max(self.min_files, BatchRules.max_files) if isinstance(self.min_files, int) else 1,
        )

    def _watched(self) -> WatchedSource:
        return WatchedSource(
            source=self.source,
            rules=self._rules(),
            partition={key: text(value) for key, value in (self.partition or {}).items()},
            partition_from_modified=self.partition_from_modified,
            pattern=optional(self.pattern),
            extensions=extension_tuple(self.extensions),
            since=optional(self.since),
            source_conn_id=optional(self.source_conn_id),
        )

    def execute(self, context: Context) -> Any:
        """Poke until there is audio, or defer to the triggerer if the first poke finds none."""
        with wrong_configuration():
            check_table_name(self.table)
            watched = self._watched()
        self._watch = SourceWatch(watched, self.log, TableFiles(optional(self.catalog_conn_id), self.table))
        try:
            if not self.deferrable:
                return super().execute(context)
            found = self.poke(context)
        finally:
            self._watch.close()
        if found:
            return found.xcom_value
        self.defer(
            timeout=timedelta(seconds=self.timeout),
            trigger=AudioToTranscribeTrigger(
                watched=watched,
                table=self.table,
                catalog_conn_id=optional(self.catalog_conn_id),
                poll_interval=max(self.poke_interval, 1),
            ),
            method_name="execute_complete",
        )

    def poke(self, context: Context) -> PokeReturnValue:
        """List the source once and return the partitions that are ready."""
        watch = self._watch
        if watch is None:
            raise RuntimeError("poke is called by execute")
        state = context.get("task_state_store") if self.reschedule and not self.deferrable else None
        if state is not None:
            _restore(watch, state.get(_STATE_KEY))
        try:
            found = watch.find()
        except FINAL_ERRORS:
            raise
        except Exception as error:
            self.log.warning(
                "%s; the next try is the next poke.",
                str(error) or type(error).__name__,
                exc_info=not isinstance(error, EXPECTED_ERRORS),
            )
            return PokeReturnValue(False)
        if found:
            return PokeReturnValue(True, self._result(context, found))
        if state is not None:
            state.set(_STATE_KEY, _pending_state(watch))
        self.log.info(
            "%s files under %s are not in %s; not enough are ready yet.",
            f"{watch.pending.count():,}",
            self.source,
            self.table,
        )
        return PokeReturnValue(False)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> list[dict[str, Any]]:
        """Resume after the trigger has fired, with audio or with an error that retrying cannot fix."""
        if "error" in event:
            raise RuntimeError(event["error"])
        return self._result(context, event["partitions"])

    def _result(self, context: Context, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        partitions = [{"source": entry["source"], "partition": entry["partition"]} for entry in found]
        check_map_length(partitions)
        context["ti"].xcom_push(key="arrivals", value=found)
        self.log.info(
            "%s files, %.1f MB, in %s partitions are not in %s: %s",
            f"{sum(entry['files'] for entry in found):,}",
            sum(entry["bytes"] for entry in found) / 1e6,
            len(found),
            self.table,
            ", ".join(entry["source"] for entry in found[:10]) + (", ..." if len(found) > 10 else ""),
        )
        return partitions


def _pending_state(watch: SourceWatch) -> Any:
    """Return the pending files, from which the next poke determines whether they are stable."""
    files: list[Any] = []
    room = _MOST_STATE
    for file in watch.pending.pending():
        room -= len(json.dumps(file))
        if room < 0:
            # Without this state only `min_age` decides whether a file is complete.
            return []
        files.append(list(file))
    return files


def _restore(watch: SourceWatch, state: Any) -> None:
    # Ignore the state of another version: then only `min_age` decides whether a file is complete.
    with suppress(TypeError, ValueError):
        watch.pending.add_pending([_pending_file(*file) for file in state or ()])


def _pending_file(
    uri: str, etag: str | None, size: int, modified: int, partition: str, polls: int
) -> tuple[str, str | None, int, int, str, int]:
    return uri, etag, size, modified, partition, polls
