"""Check a Spark cluster before paying for a backfill."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.providers.apache.spark.operators.spark_submit import SparkSubmitOperator

from airflow_whisper.discovery.locations import check_locations
from airflow_whisper.errors import wrong_configuration
from airflow_whisper.hooks.object_storage import storage_config
from airflow_whisper.hooks.spark_submit import Submission, check_spark_connection
from airflow_whisper.operators.transcribe import WhisperTranscribeOperator
from airflow_whisper.templates import is_final, optional, whisper_options
from whisper_spark.contract import WhisperOptions

if TYPE_CHECKING:
    from airflow.sdk import Context


class CheckClusterOperator(WhisperTranscribeOperator):
    """Check every executor of a Spark cluster, and let each transcribe a known clip.

    .. code-block:: python

        CheckClusterOperator(
            task_id="check",
            options=WhisperOptions(model="large-v3-turbo", device="cuda"),
            source="s3://calls/raw/",
            staging="s3://calls/staging/",
            source_conn_id="calls_s3",
            executor_cores=8,
            num_executors=4,
        )

    The task log shows a table for the cluster and one for each host: Python packages, FFmpeg, NVIDIA driver,
    CUDA libraries, GPU memory, disk, model, access to source and staging, and the text of the clip. The task
    fails when a check failed, with what to do about it. It writes nothing but a small object in staging,
    which it deletes.

    Pass the same Spark arguments as to :class:`WhisperTranscribeOperator`, of which all but ``manifest`` are
    accepted. With ``deploy_mode="cluster"`` the tables are in the log of the driver.

    :param options: transcription options: :class:`WhisperOptions`, a dict of its fields, or JSON.
    :param source: URI of audio to list; ``None``: not checked.
    :param staging: URI to write to; ``None``: not checked.
    :raises ValueError: if an argument is wrong. Templated arguments are checked when the task starts.
    """

    template_fields: Sequence[str] = (*WhisperTranscribeOperator.template_fields, "source", "staging")
    template_fields_renderers = {"conf": "json", "options": "py"}  # noqa: RUF012

    def __init__(
        self,
        *,
        options: WhisperOptions | Mapping[str, Any] | str = WhisperOptions(),  # noqa: B008
        source: str | None = None,
        staging: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(manifest="", **{"name": "airflow-whisper-check", **kwargs})
        # The parent accepts only options that change speed.
        self.options: Any = options
        self.source = source
        self.staging = staging
        self._check_arguments()

    def _check_arguments(self) -> None:
        for argument, uri in (("source", self.source), ("staging", self.staging)):
            if optional(uri) and is_final(uri):
                check_locations({argument: str(uri)})
        if is_final(self.options):
            whisper_options(self.options)

    # The parent returns a summary.
    def execute(self, context: Context) -> None:  # type: ignore[override]
        """Run the check with spark-submit."""
        check_spark_connection(self.conn_id, self.deploy_mode)
        with wrong_configuration():
            self._check_arguments()
            self._submission = self._check_submission(whisper_options(self.options))
        self._task_instance = context.get("ti")
        self._hook = None
        SparkSubmitOperator.execute(self, context)

    def _check_submission(self, options: WhisperOptions) -> Submission:
        source, staging = optional(self.source), optional(self.staging)
        arguments = ["--check", "--options", options.to_json()]
        arguments += ["--source", source] if source else []
        arguments += ["--staging", staging] if staging else []
        places = {
            "source": (self.source_conn_id, source),
            "staging": (self._staging_connection, staging),
        }
        credentials = {p: storage_config(optional(conn), uri) for p, (conn, uri) in places.items() if uri}
        if model := self._model_credentials(options):
            credentials["model"] = model
        return Submission(
            arguments=tuple(arguments),
            credentials=credentials,
            send_package=self.send_package,
        )
