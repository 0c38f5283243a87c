"""Run the packaged transcription job with spark-submit."""

from __future__ import annotations

import json
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.sdk.exceptions import AirflowException

from airflow_whisper.links import SparkUILink
from whisper_spark.contract import WhisperOptions

if TYPE_CHECKING:
    from airflow.providers.apache.spark.hooks.spark_submit import SparkSubmitHook
    from airflow.sdk import Context

    from airflow_whisper.hooks.process_tree import ProcessTree
    from whisper_spark.contract import Run
    from whisper_spark.staging.result import RunResult
    from whisper_spark.storage.objects import ObjectStorage


def _forwarded(name: str) -> property:
    """A constructor argument that the parent keeps in a private attribute, as a field for templates."""
    private = f"_{name}"
    return property(
        lambda self: getattr(self, private, None), lambda self, value: setattr(self, private, value)
    )


class WhisperTranscribeOperator(SparkSubmitOperator):
    """Transcribe the audio of a manifest on Spark, into staging.

    .. code-block:: python

        WhisperTranscribeOperator(
            task_id="transcribe",
            manifest="{{ ti.xcom_pull(task_ids='discover')['manifest_uri'] }}",
            source_conn_id="calls_s3",
            conn_id="spark_default",
            executor_cores=8,
            executor_memory="24g",
            pool="gpu",
        )

    Returns ``{"manifest_uri", "result_uri", "files", "ok", "errors", "audio_seconds", "transcribed",
    "resumed", "reused", "real_time_factor", "retried_windows", "device_busy"}``. ``RUN/result.json`` in
    staging has more.

    How far the job is appears in the task log every ten seconds: files, hours of audio, speed, how full the
    queue in front of the device is, and the time left, for each running Spark task and for all together.

    Every argument of ``SparkSubmitOperator`` works; those below differ or are new. The job's code travels
    along; what executors need besides Python is pyspark, faster-whisper, pandas, pyarrow and obstore, in an
    image or through ``archives="env.tar.gz#environment"``.

    One Spark task runs one engine with all cores of its executor. So give ``executor_cores``; without it a
    standalone cluster or YARN starts an engine for each core. ``device="cuda"`` in the options asks Spark
    for one GPU for each executor and task; ``device="auto"`` asks for none and takes a GPU where it sees
    one. Values in ``conf``, ``properties_file`` and ``spark-defaults.conf`` go before all of that. On
    Kubernetes and YARN, GPUs also need ``spark.executor.resource.gpu.discoveryScript``.

    What is staged already is not transcribed again: not after a killed job, nor after clearing the task.
    When nothing is left to do, Spark is not started. A task that is stopped, because somebody marks it as
    failed or because of its ``execution_timeout``, ends the driver and with it executors and Python workers.

    Credentials of the connections reach the job in a temporary file that only this user can read. With
    ``deploy_mode="cluster"`` Spark itself carries them on, on Kubernetes in a ConfigMap: use the ambient
    credentials of a service account there.

    :param manifest: URI of the run's manifest, from ``DiscoverAudioOperator``.
    :param options: other values for options that change only speed, for example ``{"batch_size": 32}``,
        as a mapping or as JSON. Everything else is fixed by the manifest.
    :param source_conn_id: Airflow connection for the audio; ``None``: ambient credentials of the executors.
    :param staging_conn_id: Airflow connection for staging; ``None``: the same as ``source_conn_id``.
    :param model_conn_id: Airflow connection for a model in an object store; ``None``: ambient credentials.
    :param conn_id: Airflow connection of type ``spark``; its host is the master, for example ``local[2]``,
        ``spark://host:7077``, ``yarn`` or ``k8s://https://host``.
    :param conf: Spark properties. A value of ``None`` leaves the property out.
    :param application: another script than the packaged job, which gets the same arguments.
    :param application_args: further arguments of the job, for example ``["--tasks", 16]``.
    :param durable: reconnect to a job that was submitted in cluster mode by an earlier try. Off by default,
        because Airflow remembers the job beyond a clear and would then not run it again.
    :param history_server: address of the Spark History Server, for example
        ``https://spark-history.example``: where the task's link *Spark UI* leads once the job has ended.
    :raises ValueError: for options that would change the text, and for connections that do not exist.
    """

    template_fields: Sequence[str] = (
        "manifest",
        "options",
        "source_conn_id",
        "staging_conn_id",
        "model_conn_id",
        *SparkSubmitOperator.template_fields,
        "conn_id",
        "archives",
        "java_class",
        "repositories",
        "total_executor_cores",
        "executor_cores",
        "executor_memory",
        "driver_memory",
        "num_executors",
        "spark_binary",
        "yarn_queue",
        "deploy_mode",
        "history_server",
    )
    template_fields_renderers = {"conf": "json", "options": "json"}  # noqa: RUF012
    operator_extra_links = (SparkUILink(),)
    ui_color = "#fce5cd"

    conn_id = _forwarded("conn_id")
    archives = _forwarded("archives")
    java_class = _forwarded("java_class")
    repositories = _forwarded("repositories")
    total_executor_cores = _forwarded("total_executor_cores")
    executor_cores = _forwarded("executor_cores")
    executor_memory = _forwarded("executor_memory")
    driver_memory = _forwarded("driver_memory")
    num_executors = _forwarded("num_executors")
    spark_binary = _forwarded("spark_binary")
    yarn_queue = _forwarded("yarn_queue")
    deploy_mode = _forwarded("deploy_mode")

    def __init__(
        self,
        *,
        manifest: str,
        options: Mapping[str, Any] | str | None = None,
        source_conn_id: str | None = None,
        staging_conn_id: str | None = None,
        model_conn_id: str | None = None,
        application: str = "",
        name: str = "airflow-whisper",
        durable: bool = False,
        history_server: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(application=application, name=name, durable=durable, **kwargs)
        self.manifest = manifest
        self.options = options
        self.source_conn_id = source_conn_id
        self.staging_conn_id = staging_conn_id
        self.model_conn_id = model_conn_id
        self.history_server = history_server
        self._add_spark_defaults = False
        self._run: Run | None = None
        self._result: RunResult | None = None
        self._stopped = False
        self._processes: ProcessTree | None = None
        self._task_instance: Any = None
        self._application_id: str | None = None
        if isinstance(options, Mapping | str) and "{{" not in str(options):
            _speed_options(WhisperOptions(), options)

    def execute(self, context: Context) -> dict[str, Any]:  # type: ignore[override]  # the parent gives nothing
        """Submit the job unless its work is done, and tell what it did."""
        from airflow_whisper.hooks.object_storage import object_storage
        from airflow_whisper.hooks.spark_submit import check_spark_connection
        from whisper_spark.staging.result import finished_result, nothing_done
        from whisper_spark.storage.parquet import read_manifest

        check_spark_connection(self.conn_id, self.deploy_mode)
        storage = object_storage(self._staging_connection, self.manifest)
        run, metadata = read_manifest(self.manifest, storage)
        self._run = run
        _speed_options(run.options, self.options)
        finished = finished_result(run, storage)
        if finished is not None:
            self.log.info("All %d files are staged already: Spark is not started", finished.files)
            result = nothing_done(finished)
        elif metadata.num_rows == 0:
            self.log.info("The manifest lists no audio, only rows to remove: Spark is not started")
            result = _write_empty_result(run, storage)
        else:
            result = self._submit(context, run, storage)
        self._result = result
        return _summary(run, result)

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """For Airflow's OpenLineage provider, if it is installed: see :mod:`airflow_whisper.openlineage`."""
        from airflow_whisper.openlineage import of_transcription

        return of_transcription(self._run, self._result) if self._run else None

    def on_kill(self) -> None:
        """End the Spark job, its driver and its Python workers. What is staged stays for the next run.

        Runs in a signal handler, so in client mode it talks to nobody, neither to Airflow nor to Spark.
        """
        self._stopped = True
        if self._hook is None:
            return  # nothing is submitted, and `_submit` will not do so any more
        if self._processes is not None and not self._in_cluster_mode(self._hook):
            self.log.info("Ending the Spark job: driver, executors and Python workers")
            killed = self._processes.end()
            self.log.info("The Spark job has ended; %d of its processes had to be killed", killed)
        super().on_kill()

    @staticmethod
    def _in_cluster_mode(hook: SparkSubmitHook) -> bool:
        """Whether the driver runs elsewhere, so that ending spark-submit would not end it."""
        return bool(hook._connection["deploy_mode"] == "cluster")

    def _watched(self, hook: SparkSubmitHook, lines: Iterator[str]) -> Iterator[str]:
        """The output of spark-submit, of which its processes are learned while they come up."""
        from airflow_whisper.hooks.process_tree import ProcessTree
        from airflow_whisper.hooks.spark_submit import spark_application

        spark_submit: Any = hook._submit_sp
        self._processes = ProcessTree(spark_submit.pid)
        if self._stopped:  # between `_submit` and here
            self._processes.end()
        for line in lines:
            if self._application_id is None:
                self._processes.living()
                self._application_id, ui = spark_application(line)
                if ui and self._task_instance is not None:
                    self._task_instance.xcom_push(key=SparkUILink().xcom_key, value=ui)
            yield line

    @property
    def _staging_connection(self) -> str | None:
        return self.staging_conn_id or self.source_conn_id

    def _submit(self, context: Context, run: Run, storage: ObjectStorage) -> RunResult:
        """Run the job.

        :raises AirflowException: when spark-submit fails; the message ends with its last lines.
        :raises StagingError: when it succeeds without leaving a complete result.
        """
        from whisper_spark.staging.result import StagingError, finished_result

        self._task_instance = context.get("ti")
        attempt_id = uuid.uuid4().hex
        with (
            tempfile.TemporaryDirectory(prefix="whisper-") as folder,
            self._prepared(run, Path(folder), attempt_id),
            self._progress(run, storage, attempt_id),
        ):
            if self._stopped:
                raise AirflowException("the task was stopped before Spark was started")
            super().execute(context)
        result = finished_result(run, storage)
        # A job that is still the one of an earlier try carries that try's id.
        if result is None or (result.attempt_id != attempt_id and not self.durable):
            raise StagingError(
                f"the Spark job ended without an error, but {run.result_uri} does not describe what is in "
                f"{run.rows_uri}. Does another job work on the same run, or tidy up staging? Clear this task "
                "to go on from what is staged"
            )
        return result

    def _progress(self, run: Run, storage: ObjectStorage, attempt_id: str) -> AbstractContextManager[Any]:
        """Progress of a driver whose output is not that of spark-submit; any other prints its own."""
        from airflow_whisper.hooks.spark_submit import runs_on_cluster
        from whisper_spark.progress.reports import (
            PROGRESS_SECONDS,
            ProgressLog,
            report_folder,
            reports_folder,
        )

        if not runs_on_cluster(self.conn_id, self.deploy_mode):
            return nullcontext()
        # A job of an earlier try reports under that try's id.
        folder = reports_folder(run.run_uri) if self.durable else report_folder(run.run_uri, attempt_id)
        return ProgressLog(
            storage, folder, lambda line: self.log.info("whisper: %s", line), every=PROGRESS_SECONDS
        )

    @contextmanager
    def _prepared(self, run: Run, folder: Path, attempt_id: str) -> Iterator[None]:
        """The fields that the parent reads, as the job needs them; as they were afterwards."""
        from airflow_whisper.hooks.job_package import job_script, write_archive
        from airflow_whisper.hooks.spark_submit import clean_conf, write_properties
        from whisper_spark.storage.credentials import redaction_regex, to_properties

        arguments = ["--manifest", run.manifest_uri, "--attempt-id", attempt_id]
        if self.options:
            arguments += ["--options", json.dumps(_mapping(self.options))]
        conf = clean_conf(self.conf)
        redaction = redaction_regex(conf.get("spark.redaction.regex"))
        fields: dict[str, Any] = {
            "application": self.application or str(job_script()),
            "application_args": arguments + [str(argument) for argument in self.application_args or ()],
            "py_files": ",".join(filter(None, [str(write_archive(folder)), self.py_files])),
            "conf": conf | ({"spark.redaction.regex": redaction} if redaction else {}),
            "_hook": None,
        }
        secrets = to_properties(self._credentials(run))
        if secrets:
            fields["properties_file"] = str(folder / "spark.properties")
            # Spark reads spark-defaults.conf only when it is given no file, and this one is not the user's.
            fields["_add_spark_defaults"] = not self.properties_file
            write_properties(folder / "spark.properties", secrets, self.properties_file)
        before = {name: getattr(self, name) for name in fields if name != "_hook"}
        try:
            for name, value in fields.items():
                setattr(self, name, value)
            yield
        finally:
            for name, value in before.items():
                setattr(self, name, value)

    def _credentials(self, run: Run) -> dict[str, dict[str, str]]:
        from airflow_whisper.hooks.object_storage import storage_config

        model = run.options.model if "://" in run.options.model else None
        return {
            "source": storage_config(self.source_conn_id, run.source),
            "staging": storage_config(self._staging_connection, run.run_uri),
            "model": storage_config(self.model_conn_id, model) if model else {},
        }

    def _get_hook(self) -> SparkSubmitHook:
        from airflow_whisper.hooks.spark_submit import client_environment, spark_submit_binary

        hook = super()._get_hook()
        connection = hook._connection
        connection["spark_binary"] = spark_submit_binary(connection["spark_binary"])
        hook._env_vars = client_environment(connection["master"], connection["deploy_mode"], hook._env_vars)
        process_log = hook._process_spark_submit_log

        def watch(itr: Iterator[Any]) -> None:
            process_log(self._watched(hook, itr))

        hook._process_spark_submit_log = watch  # type: ignore[method-assign]
        if self._add_spark_defaults:
            common_arguments = hook._build_spark_common_args
            hook._build_spark_common_args = lambda: [*common_arguments(), "--load-spark-defaults"]  # type: ignore[method-assign]
        return hook


def _mapping(options: Mapping[str, Any] | str) -> dict[str, Any]:
    value = json.loads(options) if isinstance(options, str) else dict(options)
    if not isinstance(value, dict):
        raise ValueError(f"options must be a mapping such as {{'batch_size': 32}}, got {options!r}")
    return value


def _speed_options(options: WhisperOptions, changes: Mapping[str, Any] | str | None) -> WhisperOptions:
    from whisper_spark.job import speed_options

    return speed_options(options, _mapping(changes or {}))


def _write_empty_result(run: Run, storage: ObjectStorage) -> RunResult:
    from whisper_spark.staging.result import RunResult

    result = RunResult(
        manifest_uri=run.manifest_uri,
        manifest_id=run.manifest_id,
        fingerprint=run.options.fingerprint(),
        attempt_id=uuid.uuid4().hex,
        finished_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    storage.write_bytes(run.result_uri, result.to_json().encode())
    return result


def _summary(run: Run, result: RunResult) -> dict[str, Any]:
    """What goes to XCom: a URI and a few numbers."""
    return {
        "manifest_uri": run.manifest_uri,
        "result_uri": run.result_uri,
        "files": result.files,
        "ok": result.ok,
        "errors": result.errors,
        "audio_seconds": result.audio_seconds,
        "transcribed": result.transcribed,
        "resumed": result.resumed,
        "reused": result.reused,
        "real_time_factor": result.real_time_factor,
        "retried_windows": result.retried_windows,
        "device_busy": result.device_busy,
    }
