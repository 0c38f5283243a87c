"""A task group that transcribes one partition, from discovery to registration."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Literal

from airflow.sdk import BaseOperator, TaskGroup, XComArg
from airflow.sdk.exceptions import AirflowSkipException

from airflow_whisper.operators.discover import DiscoverAudioOperator
from airflow_whisper.operators.export import ExportTranscriptsOperator
from airflow_whisper.operators.maintain import MaintainTableOperator
from airflow_whisper.operators.register import RegisterTranscriptsOperator
from airflow_whisper.operators.transcribe import WhisperTranscribeOperator
from airflow_whisper.operators.validate import ValidateTranscriptsOperator
from airflow_whisper.templates import boolean, is_final
from whisper_spark.contract import WhisperOptions

# What the web interface shows instead of ids, which all begin with the id of the group. It has no other means
# to tell tasks apart at first sight: it knows neither colours nor icons of operators.
_DISPLAY_NAMES = {
    "discover": "discover audio",
    "transcribe": "transcribe on Spark",
    "validate": "validate transcripts",
    "register": "register in table",
    "export": "export files",
    "maintain": "maintain table",
}
_TOOLTIP = "Brings one partition of transcripts up to date with its audio"


def transcribe_partition(
    *,
    source: str,
    partition: Mapping[str, str],
    table: str,
    staging: str,
    options: WhisperOptions | dict[str, Any] | str | None = None,
    source_conn_id: str | None = None,
    staging_conn_id: str | None = None,
    catalog_conn_id: str | None = None,
    model_conn_id: str | None = None,
    spark_conn_id: str = "spark_default",
    group_id: str = "transcribe",
    pattern: str | None = None,
    extensions: Sequence[str] | str | None = None,
    partition_from_modified: Mapping[str, str] | None = None,
    on_removed: Literal["keep", "delete"] | str = "keep",
    on_stale: Literal["retranscribe", "keep"] | str = "retranscribe",
    accepted_fingerprints: Sequence[str] | str = (),
    on_missing_source: Literal["fail", "skip"] | str = "fail",
    max_attempts: int = 3,
    max_removed_rate: float | str = 0.5,
    max_error_rate: float | str = 0.05,
    block_on: Sequence[str] | Mapping[str, float] | str = (),
    pool: str | None = None,
    outlets: Sequence[Any] | None = None,
    table_url: str | None = None,
    export: str | Mapping[str, Any] | None = None,
    maintain: bool | Mapping[str, Any] = False,
    dry_run: bool | str = False,
    spark: Mapping[str, Any] | None = None,
    default_args: Mapping[str, Any] | None = None,
) -> TaskGroup:
    """Bring one partition of a table up to date with the audio below a URI, in four tasks.

    .. code-block:: python

        with DAG("calls", schedule="@daily", start_date=datetime(2026, 1, 1)):
            transcribe_partition(
                source="s3://calls/raw/dt={{ ds }}/",
                partition={"dt": "{{ ds }}"},
                table="speech.transcripts",
                staging="s3://calls/staging/",
                options=WhisperOptions(model="large-v3-turbo"),
            )

    The tasks are ``discover``, ``transcribe``, ``validate`` and ``register``. If the table is already up to
    date with the audio and the options, ``discover`` skips, and with it the other three tasks and everything
    downstream of them.

    Strings may be Jinja templates. ``source``, ``partition``, ``table``, ``staging``, ``options`` and
    ``pattern`` may also come from an upstream task or from the mapping of a surrounding ``@task_group``.
    Values that are only known then are checked when the task runs.

    :param source: URI prefix of the partition's audio: ``s3://``, ``gs://``, ``az://`` or ``file://``.
    :param partition: the partition that the audio belongs to, for example ``{"dt": "{{ ds }}"}``.
    :param table: ``namespace.table``; created when it does not exist.
    :param staging: URI prefix for manifests, finished rows and reports. Executors write to it.
    :param options: transcription options as :class:`WhisperOptions`, as a mapping, or as JSON.
        ``None``: the defaults of :class:`WhisperOptions`. With Params, write JSON: numbers stay numbers in
        ``'{"model": "{{ params.model }}", "beam_size": {{ params.beam_size }}}'``. A Param that is an object
        may be all of them: ``"{{ params.options }}"``.
    :param source_conn_id: Airflow connection for ``source``; ``None``: ambient credentials.
    :param staging_conn_id: Airflow connection for ``staging``; ``None``: the same as ``source_conn_id``.
    :param catalog_conn_id: Airflow connection of type ``iceberg``; ``None``: an embedded SQLite catalog
        with a local warehouse, in ``AIRFLOW_WHISPER_WAREHOUSE`` or else below ``AIRFLOW_HOME``.
    :param model_conn_id: Airflow connection for a model in an object store; ``None``: ambient credentials.
    :param spark_conn_id: Airflow connection of type ``spark``.
    :param group_id: id of the task group, unique in its DAG.
    :param pattern: glob on the key below ``source``; ``None``: any.
    :param extensions: file name extensions, case-insensitive: ``["wav", "mp3"]``; ``None``: any except those
        of sidecar files, such as ``.json``.
    :param partition_from_modified: ``strftime`` formats of partition keys, which select files of the source
        by modification time; see :class:`DiscoverAudioOperator`. ``None`` selects all files.
    :param on_removed: what to do with the row of a file that no longer exists in ``source``: ``"keep"`` or
        ``"delete"``.
    :param on_stale: what to do with rows made with other options: ``"retranscribe"`` or ``"keep"``.
    :param accepted_fingerprints: values of the column ``fingerprint`` whose rows are kept although they were
        made with other options, for example with the defaults of an earlier release. A template may render
        to JSON or to values separated by commas.
    :param on_missing_source: ``"fail"`` or ``"skip"`` if the source does not exist, or has objects of which
        ``pattern`` and ``extensions`` select none; see :class:`DiscoverAudioOperator`. An empty partition of
        an existing source is skipped in either case.
    :param max_attempts: how often to try a file that fails with a transient error, over all runs.
    :param max_removed_rate: largest fraction of the partition's rows that one run may remove, 0 to 1.
    :param max_error_rate: fraction of error rows, 0 to 1, above which nothing is published.
    :param block_on: quality flags that prevent publication of the partition. A mapping gives the fraction of
        rows that may have each flag. A template may render to JSON or to names separated by commas.
    :param pool: Airflow pool of the ``transcribe`` task: one slot for each Spark job that may run at a time.
    :param outlets: assets that ``register`` updates.
    :param table_url: page of the table in your catalog, for the link *Table* on ``register``.
    :param export: URI template of subtitles and text files, which a task ``export`` then keeps equal to the
        partition's rows, for example ``"s3://calls/subtitles/{partition}/{name}.{format}"``. A mapping gives
        arguments of :class:`ExportTranscriptsOperator`, such as ``uri_template`` or ``formats``, which
        replace those of the group. The task
        also runs when ``discover`` skips, to catch up on an export that failed. It uses the connection of
        staging unless the mapping has ``export_conn_id``.
    :param maintain: whether a further task, ``maintain``, compacts this partition and expires old snapshots
        after each run that published something. A mapping gives arguments of
        :class:`MaintainTableOperator`, which replace those of the group. The alternative is a daily task for
        the whole table.
    :param dry_run: only estimate what a run would cost: ``discover`` logs it and pushes it as XCom
        ``estimate``, and all tasks are skipped, ``export`` as well. The command ``airflow whisper estimate``
        adds up a whole backfill, without any run.
    :param spark: arguments of :class:`WhisperTranscribeOperator`, such as ``conf``, ``num_executors``,
        ``archives``, ``execution_timeout`` or ``history_server``, which replace those of the group.
    :param default_args: arguments for all four tasks, such as ``retries``.
    :raises ValueError: if an argument is wrong. Templated arguments are checked when the task runs.
    """
    staging_conn_id = _first_conn_id(staging_conn_id, source_conn_id)
    common: dict[str, Any] = {"staging_conn_id": staging_conn_id}
    # The operator declares only the literals. Here any string is possible, because it may be a template; the
    # literals are for editors.
    choices: dict[str, Any] = {
        "on_removed": on_removed,
        "on_stale": on_stale,
        "on_missing_source": on_missing_source,
    }
    arguments_of_all: Any = dict(default_args or {})
    with TaskGroup(group_id, default_args=arguments_of_all, tooltip=_TOOLTIP) as group:
        discover = DiscoverAudioOperator(
            task_id="discover",
            task_display_name=_DISPLAY_NAMES["discover"],
            source=source,
            partition=partition,
            table=table,
            staging=staging,
            options=WhisperOptions() if options is None else options,
            source_conn_id=source_conn_id,
            catalog_conn_id=catalog_conn_id,
            pattern=pattern,
            extensions=extensions,
            partition_from_modified=partition_from_modified,
            accepted_fingerprints=accepted_fingerprints,
            max_attempts=max_attempts,
            max_removed_rate=max_removed_rate,
            dry_run=dry_run,
            **choices,
            **common,
        )
        common["manifest"] = XComArg(discover, key="manifest_uri")
        transcribe_args: dict[str, Any] = {
            "task_id": "transcribe",
            "task_display_name": _DISPLAY_NAMES["transcribe"],
            "source_conn_id": source_conn_id,
            "model_conn_id": model_conn_id,
            "conn_id": spark_conn_id,
            **common,
        }
        if pool is not None:
            transcribe_args["pool"] = pool
        transcribe = WhisperTranscribeOperator(**{**transcribe_args, **(spark or {})})
        validate = ValidateTranscriptsOperator(
            task_id="validate",
            task_display_name=_DISPLAY_NAMES["validate"],
            max_error_rate=max_error_rate,
            block_on=block_on,
            **common,
        )
        report: Any = XComArg(validate, key="report_uri")
        register = RegisterTranscriptsOperator(
            task_id="register",
            task_display_name=_DISPLAY_NAMES["register"],
            table=table,
            report=report,
            catalog_conn_id=catalog_conn_id,
            outlets=_asset_list(outlets),
            table_url=table_url,
            **common,
        )
        discover >> transcribe >> validate >> register
        if export is not None:
            export_task = ExportTranscriptsOperator(
                **{
                    "task_id": "export",
                    "table": table,
                    "partition": partition,
                    "export_conn_id": staging_conn_id,
                    "catalog_conn_id": catalog_conn_id,
                    # Not skipped with the others: an earlier export may have failed.
                    "trigger_rule": "none_failed",
                    "task_display_name": _DISPLAY_NAMES["export"],
                    **({"uri_template": export} if isinstance(export, str) else export),
                }
            )
            _skip_in_dry_run(export_task, dry_run)
            register >> export_task
        if maintain is not False:
            maintain_task = MaintainTableOperator(
                **{
                    "task_id": "maintain",
                    "task_display_name": _DISPLAY_NAMES["maintain"],
                    "table": table,
                    "partition": partition,
                    "catalog_conn_id": catalog_conn_id,
                    **(maintain if isinstance(maintain, Mapping) else {}),
                }
            )
            _skip_in_dry_run(maintain_task, dry_run)
            register >> maintain_task
    return group


def _asset_list(outlets: Any) -> list[Any]:
    """:raises ValueError: for a single value, and for names in place of assets."""
    if outlets is None:
        return []
    if not isinstance(outlets, list | tuple) or any(isinstance(outlet, str) for outlet in outlets):
        raise ValueError(
            f"outlets must be a list of assets such as [Asset('speech.transcripts')], got {outlets!r}"
        )
    return list(outlets)


def _first_conn_id(first: str | None, second: str | None) -> str | None:
    """The first connection id, or the second if the first is missing or renders to an empty value."""
    if first is None or second is None or is_final(first) or not isinstance(first, str):
        return second if first is None else first
    return (
        f"{{% set first %}}{first}{{% endset %}}{{% set second %}}{second}{{% endset %}}"
        "{{ second if first in ('', 'None') else first }}"
    )


def _skip_in_dry_run(task: BaseOperator, dry_run: bool | str) -> None:
    """Skip a task in a dry run that would run even though ``discover`` is skipped.

    That happens before a hook of the user, which may come from ``default_args`` as well.
    """
    if dry_run is not False:
        task._pre_execute_hook = _unless_dry_run(dry_run, task._pre_execute_hook)


def _unless_dry_run(dry_run: bool | str, hook: Callable[[Any], Any] | None) -> Callable[[Any], Any]:
    def skip(context: Any) -> Any:
        if boolean("dry_run", context["task"].render_template(dry_run, context)):
            raise AirflowSkipException("this is a dry run")
        return None if hook is None else hook(context)

    def skip_or_yield(context: Any) -> Generator[Any, None, Any]:
        return (yield from skip(context))

    # Airflow takes the metadata of assets from a hook that is a generator function.
    return skip_or_yield if inspect.isgeneratorfunction(hook) else skip
