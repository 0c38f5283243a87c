"""spark-submit for the packaged job: its binary, environment, package and credentials, and what it says."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.providers.apache.spark.hooks.spark_submit import SparkSubmitHook
from airflow.sdk.exceptions import AirflowException

from airflow_whisper.hooks.failure import Failure
from airflow_whisper.hooks.job_package import job_script, write_archive
from airflow_whisper.hooks.object_storage import InvalidConnectionError
from airflow_whisper.hooks.private_folder import private_folder
from whisper_spark.contract.text import visible
from whisper_spark.storage.credentials import redaction_regex, to_properties

if TYPE_CHECKING:
    from airflow.sdk import Connection

    from airflow_whisper.hooks.process_tree import ProcessTree

DEPLOY_MODES = ("client", "cluster")
"""Where spark-submit starts the driver: on this machine, or on the cluster."""

_HOST_EXAMPLE = "local[2], spark://host:7077, yarn or k8s://https://host"

# What whisper_spark.job prints once it has a session.
_APPLICATION = re.compile(r"whisper: Spark application (?P<id>\S+?)(?:, UI at (?P<ui>https?://\S+))?$")

# What Spark's scheduler says while nobody takes a task.
_NO_RESOURCES = "Initial job has not accepted any resources"


@dataclass(frozen=True, kw_only=True)
class Submission:
    """What one start of the job needs beyond the arguments of the operator.

    :param arguments: of the job, such as ``["--manifest", URI]``.
    :param credentials: obstore configurations by place, see :mod:`whisper_spark.storage.credentials`.
    :param send_package: send ``whisper_spark`` along with ``--py-files``.
    """

    arguments: tuple[str, ...] = ()
    credentials: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
    send_package: bool = True


class WhisperSubmitHook(SparkSubmitHook):
    """``SparkSubmitHook`` that submits the packaged job and can end it with everything that it has started.

    Credentials go into a properties file that only this user can read and that is deleted when
    ``spark-submit`` has ended.

    :param submission: what this start of the job needs.
    :param on_application: called once with the id of the Spark application and the address of its UI, or
        ``None`` where it has none.
    :param kwargs: arguments of ``SparkSubmitHook``.
    :raises InvalidConnectionError: for a Kubernetes master without the Kubernetes provider.
    """

    def __init__(
        self,
        *,
        submission: Submission,
        on_application: Callable[[str, str | None], None] | None = None,
        conf: Mapping[Any, Any] | None = None,
        application_args: list[Any] | None = None,
        **kwargs: Any,
    ) -> None:
        properties = clean_conf(conf)
        if redaction := redaction_regex(properties.get("spark.redaction.regex")):
            properties["spark.redaction.regex"] = redaction
        arguments = [*submission.arguments, *(str(argument) for argument in application_args or ())]
        super().__init__(conf=properties, application_args=arguments, **kwargs)
        connection = self._connection
        self._env_vars = client_environment(connection["master"], connection["deploy_mode"], self._env_vars)
        self._submission = submission
        self._on_application = on_application
        self._application_id: str | None = None
        self._failure = Failure()
        self._processes: ProcessTree | None = None
        self._stopped = False
        self._warned = False
        self._folder: Path | None = None

    def submit(self, application: str = "", **kwargs: Any) -> str | None:
        """Run ``spark-submit`` to its end.

        :param application: another script than the packaged job.
        :raises AirflowException: when it fails. The message begins with the cause and ends with the last
            lines of the output.
        """
        with private_folder() as self._folder:
            try:
                return super().submit(application or str(job_script()), **kwargs)
            except FileNotFoundError as error:
                if error.filename != self._connection["spark_binary"]:
                    raise
                raise AirflowException(
                    f"there is no {error.filename!r} on this worker: install "
                    "airflow-provider-whisper[spark], or name the program with spark_binary"
                ) from error
            except AirflowException as error:
                cause = self._failure.cause(self._submit_sp.returncode if self._submit_sp else None)
                raise AirflowException(f"the Spark job failed: {cause}\n{error}") from error

    def on_kill(self) -> None:
        """End the job. Runs in a signal handler: in client mode it talks neither to Airflow nor to Spark."""
        self._stopped = True
        # With the driver elsewhere, the end of spark-submit would not be the end of the job.
        if self._processes is not None and self._connection["deploy_mode"] != "cluster":
            self.log.info("Ending the Spark job: driver, executors and Python workers")
            killed = self._processes.end()
            self.log.info("The Spark job has ended; %d of its processes had to be killed", killed)
        super().on_kill()

    def _resolve_connection(self) -> dict[str, Any]:
        connection = super()._resolve_connection()
        if "k8s" in connection["master"] and not _has_kubernetes_provider():
            raise InvalidConnectionError(
                f"Spark connection {self._conn_id!r} names a Kubernetes master, for which the Spark provider "
                "needs the package apache-airflow-providers-cncf-kubernetes: install "
                "airflow-provider-whisper[kubernetes] on the Airflow workers"
            )
        connection["spark_binary"] = spark_submit_binary(connection["spark_binary"])
        return connection

    def _build_spark_common_args(self) -> list[str]:
        arguments = super()._build_spark_common_args()
        if self._folder is None:
            return arguments
        if self._submission.send_package:
            archive = str(write_archive(self._folder))
            arguments = _replaced(arguments, "--py-files", ",".join(filter(None, [archive, self._py_files])))
        secrets = to_properties(self._submission.credentials)
        if secrets:
            path = self._folder / "spark.properties"
            write_properties(path, secrets, self._properties_file)
            arguments = _replaced(arguments, "--properties-file", str(path))
            if not self._properties_file:
                # Spark reads spark-defaults.conf only when it is given no file, and this is not the user's.
                arguments.append("--load-spark-defaults")
        return arguments

    def _process_spark_submit_log(self, itr: Iterator[Any]) -> None:
        super()._process_spark_submit_log(self._watched(itr))

    def _watched(self, lines: Iterator[str]) -> Iterator[str]:
        """The output of spark-submit, from which processes, application and failure are learned."""
        from airflow_whisper.hooks.process_tree import ProcessTree

        spark_submit: Any = self._submit_sp
        self._processes = ProcessTree(spark_submit.pid)
        if self._stopped:
            # The task was stopped after the hook was made and before the process was there.
            self._processes.end()
        for raw in lines:
            line = visible(raw.rstrip("\r\n"), keep="\t")
            if self._application_id is None:
                # Processes come up until there is an application.
                self._processes.living()
                self._note_application(line)
            self._failure.add(line)
            self._warn_of_waiting(line)
            yield line

    def _warn_of_waiting(self, line: str) -> None:
        """Say once what Spark says every 15 s without an example."""
        if _NO_RESOURCES in line and not self._warned:
            self._warned = True
            self.log.warning(
                "No executor has started yet. All workers are busy, or none is as large as one executor "
                "has to be: compare executor_cores, executor_memory and GPUs with what one worker offers"
            )

    def _note_application(self, line: str) -> None:
        self._application_id, ui = spark_application(line)
        if self._application_id is not None and self._on_application is not None:
            self._on_application(self._application_id, ui)


def _replaced(arguments: list[str], option: str, value: str) -> list[str]:
    """Arguments in which an option has that value, whether it was given before or not."""
    if option not in arguments:
        return [*arguments, option, value]
    place = arguments.index(option)
    return [*arguments[: place + 1], value, *arguments[place + 2 :]]


def _has_kubernetes_provider() -> bool:
    try:
        return importlib.util.find_spec("airflow.providers.cncf.kubernetes.kube_client") is not None
    except ModuleNotFoundError:
        return False


# --- the connection --------------------------------------------------------------------------------------


def check_deploy_mode(value: object) -> None:
    """Check where the driver is to run; ``None`` leaves it to the connection.

    :raises ValueError: unless it is one of :data:`DEPLOY_MODES`.
    """
    if value not in (None, "", *DEPLOY_MODES):
        raise ValueError(f"deploy_mode must be 'client' or 'cluster', got {value!r}")


def check_spark_connection(conn_id: str, deploy_mode: str | None) -> Connection:
    """The Spark connection, sure to exist and to name a master.

    ``SparkSubmitHook`` submits to YARN when it finds no connection; here that is an error.

    :raises InvalidConnectionError: with the command that makes the connection; also for a deploy mode that
        does not exist, and for a standalone master in cluster mode, which Spark does not offer for Python.
    """
    from airflow.sdk import BaseHook
    from airflow.sdk.exceptions import AirflowNotFoundException

    create = f"airflow connections add {conn_id} --conn-type spark --conn-host 'local[2]'"
    try:
        connection = BaseHook.get_connection(conn_id)
    except AirflowNotFoundException:
        raise InvalidConnectionError(
            f"there is no Spark connection {conn_id!r}. Create one whose host is the master, "
            f"{_HOST_EXAMPLE}: `{create}`, in the UI under Admin > Connections, or in the environment as "
            f'AIRFLOW_CONN_{conn_id.upper()}=\'{{"conn_type": "spark", "host": "local[2]"}}\''
        ) from None
    if not connection.host:
        raise InvalidConnectionError(
            f"Spark connection {conn_id!r} has no host: set it to the master, {_HOST_EXAMPLE}"
        )
    mode = _deploy_mode(connection, deploy_mode)
    try:
        check_deploy_mode(mode)
    except ValueError as error:
        raise InvalidConnectionError(f"Spark connection {conn_id!r}: {error}") from None
    if mode == "cluster" and spark_master(connection).startswith("spark://"):
        raise InvalidConnectionError(
            f"Spark connection {conn_id!r} asks for deploy mode 'cluster' on a standalone master, which "
            "Spark does not offer for Python applications: use 'client'"
        )
    return connection


def spark_master(connection: Connection) -> str:
    """The master that ``SparkSubmitHook`` makes of a connection, with its port."""
    host, port = connection.host or "", connection.port
    is_address = connection.conn_type == "spark" and ("://" in host or not port)
    master = host if is_address else f"{connection.conn_type}://{host}"
    return f"{master}:{port}" if port else master


def _deploy_mode(connection: Connection, deploy_mode: str | None) -> str | None:
    return deploy_mode or connection.extra_dejson.get("deploy-mode")


def runs_on_cluster(conn_id: str, deploy_mode: str | None) -> bool:
    """Whether the driver runs on the cluster: what it prints does not come back through spark-submit."""
    from airflow.sdk import BaseHook

    return _deploy_mode(BaseHook.get_connection(conn_id), deploy_mode) == "cluster"


# --- the command -----------------------------------------------------------------------------------------


def spark_submit_binary(binary: str) -> str:
    """The binary to run: what was asked for, or that of the installed pyspark if it is not on the path.

    A worker that runs from an environment which was not activated has no ``spark-submit`` on its path, and
    the script that pip puts next to the interpreter finds pyspark only through the path, too.
    """
    found = shutil.which(binary)
    if "/" in binary or (found and Path(found).parent != Path(sys.executable).parent):
        return binary
    spec = importlib.util.find_spec("pyspark")
    packaged = Path(spec.origin).parent / "bin" / binary if spec and spec.origin else None
    return str(packaged) if packaged and packaged.is_file() else binary


def client_environment(
    master: str, deploy_mode: str | None, given: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Environment for spark-submit when the driver runs on this machine.

    Variables are the weakest form of each setting: properties of the job and of Spark go before them, and
    so does what is set already, in this process or by ``given``.
    """
    given = dict(given or {})
    if deploy_mode == "cluster" or not master.startswith(("local", "spark://")):
        return given
    defaults = {}
    present = {**os.environ, **given}
    if "PYSPARK_PYTHON" not in present:
        # The interpreter of this process has what the job's driver imports.
        defaults["PYSPARK_DRIVER_PYTHON"] = sys.executable
    if master.startswith("local"):
        defaults["PYSPARK_PYTHON"] = sys.executable
        # The JVM only passes rows of URIs along; compiling it thoroughly takes longer than it works.
        defaults["SPARK_SUBMIT_OPTS"] = "-XX:TieredStopAtLevel=1"
        defaults["SPARK_LOCAL_IP"] = "127.0.0.1"
    return {name: value for name, value in defaults.items() if name not in present} | given


def spark_application(line: str) -> tuple[str | None, str | None]:
    """Id of the Spark application and address of its UI, from the line in which the job tells them."""
    match = _APPLICATION.match(line.strip())
    return (match["id"], match["ui"]) if match else (None, None)


def clean_conf(conf: Mapping[Any, Any] | None) -> dict[str, str]:
    """Spark properties as text, without those that are ``None``."""
    return {
        str(key): str(value).lower() if isinstance(value, bool) else str(value)
        for key, value in (conf or {}).items()
        if value is not None
    }


def write_properties(path: Path, properties: Mapping[str, str], base: str | None) -> None:
    """A file for ``--properties-file`` that nobody else can read.

    :param base: a file of the user's, whose properties come along.
    """
    text = Path(base).read_text(encoding="utf-8") if base else ""
    lines = [text, *(f"{key}={value}" for key, value in sorted(properties.items())), ""]
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write("\n".join(lines))
