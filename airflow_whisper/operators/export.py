"""Write transcripts as subtitles and text files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from airflow_whisper.discovery.locations import check_locations
from airflow_whisper.errors import wrong_configuration
from airflow_whisper.templates import TextTemplates, is_final, optional, text
from whisper_spark.contract import check_partition, partition_path

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_whisper.export.run import ExportSettings


class ExportTranscriptsOperator(TextTemplates, BaseOperator):
    """Write the transcripts of a partition as files: subtitles, plain text and JSON.

    .. code-block:: python

        ExportTranscriptsOperator(
            task_id="export",
            table="speech.transcripts",
            partition={"dt": "{{ ds }}"},
            uri_template="s3://calls/subtitles/{partition}/{name}.{format}",
            formats=["srt", "vtt"],
            export_conn_id="calls_s3",
        )

    Afterwards the files are those of the partition's current rows: files of new and changed rows are written,
    those of rows that were removed, or replaced by an error, are deleted, and all others are left alone. What
    was exported is recorded beside the files, in ``_exports/TABLE/PARTITION.parquet`` below the folder that
    the template begins with. So the next run catches up on one that failed or never took place, and running
    the task again does nothing. Delete that file to write everything again. Give each export of a table a
    folder of its own.

    Runs of the same export may overlap: they notice each other through that file, which is replaced only if
    nobody else has replaced it, and the last one leaves the files of the current rows. For six hours, each
    further run looks at the files that a killed run may have written. A store without conditional writes,
    such as OpenStack Swift, and a file system without locks cannot decide between two runs that finish in the
    same instant: there run one export of a partition at a time.

    Returns ``{"table", "partition", "snapshot_id", "written", "removed", "index_uri"}``, the counts in rows.

    :param table: ``namespace.table``. Without such a table nothing is done.
    :param partition: the partition, for example ``{"dt": "{{ ds }}"}``.
    :param uri_template: URI of a file, with fields in braces. ``{format}`` and one of ``{name}`` and ``{id}``
        are required, so that no two recordings share a file. The fields are:

        - ``{partition}``: ``dt=2026-11-01/hour=13``, and each of the partition's keys, such as ``{dt}``;
        - ``{name}``: the audio's file name without its extension, a hyphen, and ``{id}``;
        - ``{id}``: 16 hex digits, different for every recording of every partition and table;
        - ``{stem}``: the audio's file name without its extension;
        - ``{table}``: ``speech.transcripts``;
        - ``{format}``: ``srt``, ``vtt``, ``txt`` or ``json``.
    :param formats: the files to write for each row.
    :param export_conn_id: Airflow connection for the files; ``None``: ambient credentials.
    :param catalog_conn_id: Airflow connection of type ``iceberg``; ``None``: the embedded SQLite catalog.
    :param max_line_width: columns of a line of subtitles, where East Asian wide characters take two.
        ``None``: as is usual in the language, 42 in most.
    :param max_line_count: lines of a subtitle.
    :param max_line_duration: longest time that a subtitle is shown, in seconds.
    :param speakers: whether subtitles and text name the speakers. A mapping gives them other names, for
        example ``{"SPEAKER_00": "Agent"}``.
    :raises ValueError: if an argument is wrong. Templated arguments are checked when the task starts.
    """

    template_fields: Sequence[str] = (
        "table",
        "partition",
        "uri_template",
        "export_conn_id",
        "catalog_conn_id",
    )
    text_fields = frozenset(template_fields)
    template_fields_renderers = {"partition": "json"}  # noqa: RUF012

    def __init__(
        self,
        *,
        table: str,
        partition: Mapping[str, str],
        uri_template: str,
        formats: Sequence[str] = ("srt", "vtt", "txt", "json"),
        export_conn_id: str | None = None,
        catalog_conn_id: str | None = None,
        max_line_width: int | None = None,
        max_line_count: int = 2,
        max_line_duration: float = 7.0,
        speakers: bool | Mapping[str, str] = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.table = table
        self.partition = partition
        self.uri_template = uri_template
        self.formats = formats
        self.export_conn_id = export_conn_id
        self.catalog_conn_id = catalog_conn_id
        self.max_line_width = max_line_width
        self.max_line_count = max_line_count
        self.max_line_duration = max_line_duration
        self.speakers = speakers
        self._check_arguments()

    def _check_arguments(self) -> None:
        """Check the arguments that are not templates, or already rendered."""
        from airflow_whisper.export.names import ExportNames
        from airflow_whisper.table.schema import check_table_name

        self._settings()
        if is_final(self.table):
            check_table_name(self.table)
        # An object with `resolve` is the output of a task that has not run yet.
        if hasattr(self.partition, "resolve"):
            return
        if not isinstance(self.partition, Mapping):
            raise ValueError(
                f"partition must be a dict such as {{'dt': '{{{{ ds }}}}'}}, got {self.partition!r}"
            )
        check_partition({key: v if is_final(v) else "template" for key, v in self.partition.items()})
        if is_final(self.uri_template):
            check_locations({"uri_template": self.uri_template})
            ExportNames(self.uri_template, self.partition)

    def _settings(self) -> ExportSettings:
        from airflow_whisper.export.run import ExportSettings
        from whisper_spark.subtitles import FORMATS, Layout

        formats = (self.formats,) if isinstance(self.formats, str) else tuple(self.formats or ())
        unknown = [name for name in formats if name not in FORMATS]
        if unknown or not formats:
            raise ValueError(f"formats must be some of {', '.join(FORMATS)}, got {self.formats!r}")
        layout = Layout(
            max_line_width=self.max_line_width,
            max_line_count=self.max_line_count,
            max_line_duration=self.max_line_duration,
            speakers=self.speakers,
        )
        # In one order and once each, so that the same choice gives the same files.
        chosen = tuple(name for name in FORMATS if name in formats)
        return ExportSettings(template=self.uri_template, formats=chosen, layout=layout)

    def execute(self, context: Context) -> dict[str, Any]:
        """Write and delete files, and log how many."""
        from airflow_whisper.export.run import export_partition
        from airflow_whisper.hooks.catalog import open_catalog
        from airflow_whisper.hooks.object_storage import object_storage

        if isinstance(self.partition, Mapping):
            self.partition = {key: text(value) for key, value in self.partition.items()}
        with wrong_configuration():
            self._check_arguments()
        exported = export_partition(
            open_catalog(optional(self.catalog_conn_id)),
            self.table,
            self.partition,
            self._settings(),
            object_storage(optional(self.export_conn_id), self.uri_template),
        )
        name = f"{partition_path(self.partition)} of {self.table}"
        if exported.snapshot_id is None:
            self.log.info("There is nothing to export: the table %s does not exist or is empty", self.table)
        elif not exported.written and not exported.removed:
            self.log.info("The files of %s are up to date", name)
        else:
            self.log.info(
                "Wrote the files of %d rows and deleted those of %d: %s. They are listed in %s",
                exported.written,
                exported.removed,
                name,
                exported.index_uri,
            )
        return {
            "table": self.table,
            "partition": partition_path(self.partition),
            "snapshot_id": exported.snapshot_id,
            "written": exported.written,
            "removed": exported.removed,
            "index_uri": exported.index_uri,
        }
