"""Run the packaged transcription job with spark-submit."""

from __future__ import annotations

import inspect
import json
import uuid
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Literal

from airflow.providers.apache.spark.hooks.spark_submit import SparkSubmitHook
from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator
from airflow.sdk.exceptions import AirflowException

from airflow_whisper.errors import wrong_configuration
from airflow_whisper.hooks.object_storage import object_storage, storage_config
from airflow_whisper.hooks.spark_submit import (
    Submission,
    WhisperSubmitHook,
    check_application_args,
    check_conf,
    check_deploy_mode,
    check_size,
    check_spark_connection,
    is_local_master,
    runs_on_cluster,
    spark_master,
)
from airflow_whisper.links import SparkUILink
from airflow_whisper.operators.run_manifest import check_uri, read_own_manifest
from airflow_whisper.templates import is_final, optional, options_mapping
from whisper_spark.contract import WhisperOptions, partition_path, speed_options
from whisper_spark.contract.text import visible
from whisper_spark.storage.objects import folder_uri

if TYPE_CHECKING:
    from airflow.sdk import Context
    from requests.auth import AuthBase

    from whisper_spark.contract import Run
    from whisper_spark.staging.result import RunResult
    from whisper_spark.storage.objects import ObjectStorage


DEFAULT_NAME = "airflow-whisper"
"""Name of the Spark application where the task does not give one: see :func:`application_name`."""


_SIZES = ("executor_cores", "executor_memory", "total_executor_cores", "driver_memory")


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
    "resumed", "reused", "real_time_factor", "transcribed_audio_seconds", "transcribe_seconds",
    "task_seconds", "gpu_seconds", "retried_windows", "device_busy"}``. ``RUN/result.json`` in staging has
    more details.

    Every ten seconds the task log shows the job's progress: files, hours of audio, speed, the fill level of
    the device's queue, and the time left, for each running Spark task and in total.

    Accepts every argument of ``BaseOperator`` and of ``SparkSubmitOperator``; the documentation of the latter
    describes those that are not listed below. The operator sends the job's code along. Executors need the
    packages that ``python -m whisper_spark.requirements`` prints, in an image or through
    ``archives="env.tar.gz#environment"``.

    One Spark task runs one engine with all cores of its executor. Set ``executor_cores``; without it a
    standalone cluster or YARN starts an engine for each core. ``device="cuda"`` in the options requests one
    GPU per executor and task from Spark; ``device="auto"`` requests none and uses a GPU where one is visible.
    Values in ``conf``, ``properties_file`` and ``spark-defaults.conf`` take precedence over these defaults.
    On Kubernetes and YARN, GPUs also need ``spark.executor.resource.gpu.discoveryScript``.

    Files that are already staged are not transcribed again, neither after a killed job nor after clearing
    the task. If no files are left, Spark is not started. Stopping the task, by marking it as failed or by its
    ``execution_timeout``, stops the driver and with it executors and Python workers.

    The operator passes credentials of the connections to the job in a temporary file that only the submitting
    user can read. With ``deploy_mode="cluster"`` Spark distributes this file, on Kubernetes in a ConfigMap:
    use the ambient credentials of a service account there.

    :param manifest: URI of the run's manifest, from ``DiscoverAudioOperator``.
    :param options: overrides of options that affect only speed, for example ``{"batch_size": 32}``, as a
        mapping or as JSON. The manifest determines all other options.
    :param source_conn_id: Airflow connection for the audio; ``None``: ambient credentials of the executors.
    :param staging_conn_id: Airflow connection for staging; ``None``: the same as ``source_conn_id``.
    :param model_conn_id: Airflow connection for models in an object store; ``None``: ambient credentials.
    :param conn_id: Airflow connection of type ``spark``; its host is the master, for example ``local[2]``,
        ``spark://host:7077``, ``yarn`` or ``k8s://https://host``.
    :param conf: Spark properties. A value of ``None`` omits the property.
    :param deploy_mode: ``"client"`` or ``"cluster"``; ``None``: the deploy mode of the connection.
    :param name: name of the Spark application. By default it names DAG, task and partition, for example
        ``calls.transcribe.transcribe dt=2026-11-01``.
    :param application: script to run instead of the packaged job; it gets the same arguments.
    :param send_package: send ``whisper_spark`` to the executors with ``--py-files``. Set to ``False`` for an
        image in which the same release is installed; ``application="local:///.../whisper_spark/job.py"`` then
        names the script in the image.
    :param application_args: additional arguments of the job, for example ``["--tasks", 16]``.
    :param durable: reconnect to a job that an earlier try submitted in cluster mode. Off by default, because
        Airflow keeps the job's id even after the task is cleared and would then not run the job again.
    :param history_server: address of the Spark History Server, for example
        ``https://spark-history.example``: the target of the task's link *Spark UI* after the job has ended.
    :raises ValueError: if options would change the text, or a connection does not exist.
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

    def __init__(
        self,
        *,
        manifest: str,
        options: Mapping[str, Any] | str | None = None,
        source_conn_id: str | None = None,
        staging_conn_id: str | None = None,
        model_conn_id: str | None = None,
        conn_id: str = "spark_default",
        conf: dict[str, Any] | None = None,
        deploy_mode: Literal["client", "cluster"] | str | None = None,
        num_executors: int | None = None,
        executor_cores: int | None = None,
        executor_memory: str | None = None,
        total_executor_cores: int | None = None,
        driver_memory: str | None = None,
        application: str = "",
        application_args: list[Any] | None = None,
        send_package: bool = True,
        archives: str | None = None,
        files: str | None = None,
        py_files: str | None = None,
        jars: str | None = None,
        packages: str | None = None,
        exclude_packages: str | None = None,
        repositories: str | None = None,
        java_class: str | None = None,
        driver_class_path: str | None = None,
        properties_file: str | None = None,
        env_vars: dict[str, Any] | None = None,
        spark_binary: str | None = None,
        verbose: bool = False,
        yarn_queue: str | None = None,
        keytab: str | None = None,
        principal: str | None = None,
        proxy_user: str | None = None,
        use_krb5ccache: bool = False,
        post_submit_commands: list[str] | None = None,
        status_poll_interval: int = 1,
        track_driver_via_k8s_api: bool = False,
        yarn_track_via_rm_api: bool = False,
        yarn_rm_auth: AuthBase | None = None,
        name: str = DEFAULT_NAME,
        durable: bool = False,
        history_server: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            application=application,
            application_args=application_args,
            conf=conf,
            files=files,
            py_files=py_files,
            jars=jars,
            packages=packages,
            exclude_packages=exclude_packages,
            driver_class_path=driver_class_path,
            properties_file=properties_file,
            env_vars=env_vars,
            verbose=verbose,
            keytab=keytab,
            principal=principal,
            proxy_user=proxy_user,
            use_krb5ccache=use_krb5ccache,
            post_submit_commands=post_submit_commands,
            status_poll_interval=status_poll_interval,
            track_driver_via_k8s_api=track_driver_via_k8s_api,
            yarn_track_via_rm_api=yarn_track_via_rm_api,
            yarn_rm_auth=yarn_rm_auth,
            name=name,
            durable=durable,
            **kwargs,
        )
        self.manifest = manifest
        self.options = options
        self.source_conn_id = source_conn_id
        self.staging_conn_id = staging_conn_id
        self.model_conn_id = model_conn_id
        self.send_package = send_package
        self.history_server = history_server
        # The parent stores these in private attributes, which cannot be template fields.
        self.conn_id = conn_id
        self.archives = archives
        self.java_class = java_class
        self.repositories = repositories
        self.total_executor_cores = total_executor_cores
        self.executor_cores = executor_cores
        self.executor_memory = executor_memory
        self.driver_memory = driver_memory
        self.num_executors = num_executors
        self.spark_binary = spark_binary
        self.yarn_queue = yarn_queue
        self.deploy_mode = deploy_mode
        self._run: Run | None = None
        self._result: RunResult | None = None
        self._stopped = False
        self._submission: Submission | None = None
        self._task_instance: Any = None
        self._application_id: str | None = None
        # The names of properties are not templates, even if their values are.
        if is_final(conf) or isinstance(conf, Mapping):
            check_conf(conf)
        if is_final(application_args):
            check_application_args(application_args)
        if is_final(deploy_mode):
            check_deploy_mode(deploy_mode)
        for argument in _SIZES:
            if is_final(getattr(self, argument)):
                check_size(argument, getattr(self, argument))
        if isinstance(options, Mapping | str) and is_final(options):
            _speed_options(WhisperOptions(), options)

    # The parent returns None.
    def execute(self, context: Context) -> dict[str, Any]:  # type: ignore[override]
        """Submit the job unless everything is already staged, and return a summary of its result."""
        from whisper_spark.staging.result import finished_result, nothing_done, spent_tries

        connection = check_spark_connection(self.conn_id, self.deploy_mode)
        with wrong_configuration():
            check_uri("manifest", self.manifest)
            storage = object_storage(self._staging_connection, self.manifest)
        run, metadata = read_own_manifest(self.manifest, storage)
        self._run = run
        with wrong_configuration():
            _speed_options(run.options, self.options)
        self._warn_of_local_staging(run, spark_master(connection))
        finished = finished_result(run, storage)
        if finished is not None:
            more = spent_tries(finished)
            self.log.info("All %d files are staged already: Spark is not started%s", finished.files, more)
            result = nothing_done(finished)
        elif metadata.num_rows == 0:
            self.log.info("The manifest lists no audio, only rows to remove: Spark is not started")
            result = _write_empty_result(run, storage)
        else:
            result = self._submit(context, run, storage)
        self._result = result
        return _summary(run, result)

    def _warn_of_local_staging(self, run: Run, master: str) -> None:
        if run.run_uri.startswith("file://") and not is_local_master(master):
            self.log.warning(
                "Staging is %s, a folder, but the executors of %s run on other machines. Unless all of them, "
                "the driver and the Airflow workers share that disk, name an object store as staging",
                run.run_uri,
                master,
            )

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """For Airflow's OpenLineage provider, if it is installed: see :mod:`airflow_whisper.openlineage`."""
        from airflow_whisper.openlineage import of_transcription

        return of_transcription(self._run, self._result) if self._run else None

    def on_kill(self) -> None:
        """Stop the Spark job, its driver and its Python workers. Staged rows remain for the next run.

        Runs in a signal handler.
        """
        self._stopped = True
        # Without a hook nothing has been submitted, and `_stopped` prevents `_submit` from doing so.
        if self._hook is not None:
            super().on_kill()

    @property
    def _staging_connection(self) -> str | None:
        # A template that renders to an empty value means no connection.
        return optional(self.staging_conn_id) or optional(self.source_conn_id)

    def _submit(self, context: Context, run: Run, storage: ObjectStorage) -> RunResult:
        """Run the job with spark-submit and return its result.

        :raises AirflowException: if spark-submit fails; the message ends with its last lines of output.
        :raises StagingError: if it succeeds without writing a complete result.
        """
        from whisper_spark.staging.result import StagingError, complete_result

        self._task_instance = context.get("ti")
        if self.name == DEFAULT_NAME and self._task_instance is not None:
            self.name = application_name(self._task_instance, run)
        job_run_id = uuid.uuid4().hex
        arguments = ["--manifest", run.manifest_uri, "--attempt-id", job_run_id]
        if self.options:
            arguments += ["--options", json.dumps(options_mapping(self.options))]
        self._submission = Submission(
            arguments=tuple(arguments), credentials=self._credentials(run), send_package=self.send_package
        )
        self._hook = None
        with self._progress(run, storage, job_run_id):
            if self._stopped:
                raise AirflowException("the task was stopped before Spark was started")
            super().execute(context)
        result = complete_result(run, storage)
        # With `durable` the job may be that of an earlier try and then has that try's id.
        if result is None or (result.attempt_id != job_run_id and not self.durable):
            raise StagingError(
                f"the Spark job ended without an error, but {run.result_uri} does not describe what is in "
                f"{run.rows_uri}. Does another job work on the same run, or tidy up staging? Clear this task "
                "to go on from what is staged"
            )
        return result

    def _progress(self, run: Run, storage: ObjectStorage, job_run_id: str) -> AbstractContextManager[Any]:
        """Log the progress of a driver that runs on the cluster; a local driver prints it itself."""
        from whisper_spark.progress.reports import (
            PROGRESS_SECONDS,
            ProgressLog,
            report_folder,
            reports_folder,
        )

        if not runs_on_cluster(self.conn_id, self.deploy_mode):
            return nullcontext()
        # With `durable` the job may be that of an earlier try and reports under that try's id.
        folder = reports_folder(run.run_uri) if self.durable else report_folder(run.run_uri, job_run_id)
        return ProgressLog(
            storage, folder, lambda line: self.log.info("whisper: %s", visible(line)), every=PROGRESS_SECONDS
        )

    def _credentials(self, run: Run) -> dict[str, dict[str, str]]:
        return {
            "source": storage_config(optional(self.source_conn_id), run.source),
            "staging": storage_config(self._staging_connection, run.run_uri),
            "model": self._model_credentials(run.options),
        }

    def _model_credentials(self, options: WhisperOptions) -> dict[str, str]:
        """For the models that are in an object store; empty if none is."""
        found: dict[str, str] = {}
        for location in (options.model, options.speaker_model if options.diarize else None):
            if location and "://" in location:
                with wrong_configuration():
                    uri = folder_uri(location)
                found |= storage_config(optional(self.model_conn_id), uri)
        return found

    def _get_hook(self) -> WhisperSubmitHook:
        """Return the hook that submits the job. The parent's ``execute`` calls this method."""
        # Collect arguments by name, so that arguments added by later Spark provider releases are included.
        names = [name for name in inspect.signature(SparkSubmitHook.__init__).parameters if name != "self"]
        arguments = {
            name: getattr(self, name) if hasattr(self, name) else getattr(self, f"_{name}") for name in names
        }
        # The provider joins them to a command line, and check_size accepts numbers.
        arguments |= {name: str(arguments[name]) for name in _SIZES if arguments[name] is not None}
        return WhisperSubmitHook(
            submission=self._submission or Submission(), on_application=self._tell_application, **arguments
        )

    def _tell_application(self, application_id: str, ui: str | None) -> None:
        self._application_id = application_id
        if ui and self._task_instance is not None:
            self._task_instance.xcom_push(key=SparkUILink().xcom_key, value=ui)


def application_name(task_instance: Any, run: Run) -> str:
    """Return the name of a run's Spark application, for people who look for it among others on a cluster."""
    return f"{task_instance.dag_id}.{task_instance.task_id} {partition_path(run.partition)}"


def _speed_options(options: WhisperOptions, changes: Mapping[str, Any] | str | None) -> WhisperOptions:
    return speed_options(options, options_mapping(changes or {}))


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
    """The returned XCom: two URIs and a few numbers."""
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
        "transcribed_audio_seconds": result.transcribed_audio_seconds,
        "transcribe_seconds": result.transcribe_seconds,
        "task_seconds": result.task_seconds,
        "gpu_seconds": result.gpu_seconds,
        "retried_windows": result.retried_windows,
        "device_busy": result.device_busy,
    }
