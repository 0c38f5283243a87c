"""Run spark-submit for the packaged job: binary, environment, package, credentials and output."""

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

from airflow_whisper.errors import ConfigurationError
from airflow_whisper.hooks.connection_extra import extra_problem
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

# The line that whisper_spark.job prints once it has a session.
_APPLICATION = re.compile(r"whisper: Spark application (?P<id>\S+?)(?:, UI at (?P<ui>https?://\S+))?$")

# Part of the message that Spark's scheduler logs while no executor accepts tasks.
_NO_RESOURCES = "Initial job has not accepted any resources"

# The beginning of the line in which the job says why (``whisper_spark.spark.cluster``).
_NO_EXECUTOR = "whisper: no executor has started yet"


@dataclass(frozen=True, kw_only=True)
class Submission:
    """Parameters of one submission that are not arguments of the operator.

    :param arguments: arguments of the job, such as ``["--manifest", URI]``.
    :param credentials: obstore configurations by location, see :mod:`whisper_spark.storage.credentials`.
    :param send_package: whether to send ``whisper_spark`` with ``--py-files``.
    """

    arguments: tuple[str, ...] = ()
    credentials: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
    send_package: bool = True


class WhisperSubmitHook(SparkSubmitHook):
    """``SparkSubmitHook`` that submits the packaged job and can end it with all its processes.

    It passes credentials in a properties file that only this user can read and that is deleted when
    ``spark-submit`` has ended.

    :param submission: parameters of this submission.
    :param on_application: called once with the id of the Spark application and the URL of its UI, which is
        ``None`` if it has no UI.
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
        """Run ``spark-submit`` and wait until it ends.

        :param application: script to run instead of the packaged job.
        :raises AirflowException: if it fails. The message starts with the cause and ends with the last lines
            of the output.
        :raises ConfigurationError: if it fails for a reason that a retry cannot remove.
        """
        with private_folder() as self._folder:
            try:
                return super().submit(application or str(job_script()), **kwargs)
            except FileNotFoundError as error:
                if error.filename != self._connection["spark_binary"]:
                    raise
                raise ConfigurationError(
                    f"there is no {error.filename!r} on this worker: install "
                    "airflow-provider-whisper[spark], or name the program with spark_binary"
                ) from error
            except AirflowException as error:
                status = self._submit_sp.returncode if self._submit_sp else None
                message = f"the Spark job failed: {self._failure.cause(status)}\n{error}"
                if self._failure.is_permanent(status):
                    raise ConfigurationError(message) from error
                raise AirflowException(message) from error

    def on_kill(self) -> None:
        """End the job. Runs in a signal handler; in client mode it calls neither Airflow nor Spark."""
        self._stopped = True
        # In cluster mode the driver runs elsewhere, so ending spark-submit would not end the job.
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
                # Given a properties file, Spark does not read spark-defaults.conf, but the user gave no file.
                arguments.append("--load-spark-defaults")
        return arguments

    def _process_spark_submit_log(self, itr: Iterator[Any]) -> None:
        super()._process_spark_submit_log(self._watched(itr))

    def _watched(self, lines: Iterator[str]) -> Iterator[str]:
        """Yield the lines of spark-submit's output, and record processes, application and failure."""
        from airflow_whisper.hooks.process_tree import ProcessTree

        spark_submit: Any = self._submit_sp
        self._processes = ProcessTree(spark_submit.pid)
        if self._stopped:
            # The task was stopped after the hook was created and before the process was started.
            self._processes.end()
        for raw in lines:
            line = visible(raw.rstrip("\r\n"), keep="\t")
            if self._application_id is None:
                # Until the application exists, spark-submit starts new processes; record them.
                self._processes.living()
                self._note_application(line)
            self._failure.add(line)
            self._warn_of_waiting(line)
            yield line

    def _warn_of_waiting(self, line: str) -> None:
        """Explain Spark's warning about missing resources once, unless the job has. Spark repeats it."""
        self._warned = self._warned or line.startswith(_NO_EXECUTOR)
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
    """Return the arguments with an option set to a value, replacing an earlier value."""
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
    """Check the deploy mode; ``None`` means that of the connection.

    :raises ValueError: unless it is one of :data:`DEPLOY_MODES`.
    """
    if value not in (None, "", *DEPLOY_MODES):
        raise ValueError(f"deploy_mode must be 'client' or 'cluster', got {value!r}")


def check_size(argument: str, value: object) -> None:
    """Check the cores or the memory of executors or the driver, which Spark refuses only when it starts.

    :param argument: name of the operator's argument: it ends with ``cores`` or ``memory``.
    :param value: ``None`` and an empty text mean Spark's default.
    :raises ValueError: if Spark could not read it.
    """
    if value is None or value == "":
        return
    if argument.endswith("cores"):
        if not re.fullmatch(r"[1-9]\d*", str(value)):
            raise ValueError(f"{argument} must be a number of cores such as 8, got {value!r}")
    # As in Spark's JavaUtils.byteStringAs. A number without a unit is in MiB.
    elif not re.fullmatch(r"\d+([bkmgtp]|[kmgtp]b)?", str(value).strip(), re.IGNORECASE):
        raise ValueError(f"{argument} must be a size with a unit such as '16g' or '900m', got {value!r}")


def check_conf(conf: object) -> None:
    """Check Spark properties: spark-submit ignores those that are none of Spark's.

    :raises ValueError: if ``conf`` is no mapping, or holds the name of such a property.
    """
    if conf is None:
        return
    if not isinstance(conf, Mapping):
        raise ValueError(f"conf must be a dict such as {{'spark.executor.cores': 8}}, got {conf!r:.100}")
    ignored = [name for name in conf if not str(name).startswith("spark.")]
    if ignored:
        raise ValueError(
            f"conf: spark-submit ignores {ignored[0]!r}, because it does not begin with 'spark.'"
        )


def check_application_args(arguments: object) -> None:
    """:raises ValueError: for a single text, of which each letter would become an argument of the job."""
    if arguments is not None and not isinstance(arguments, list | tuple):
        raise ValueError(f"application_args must be a list such as ['--tasks', 16], got {arguments!r:.100}")


def check_spark_connection(conn_id: str, deploy_mode: str | None) -> Connection:
    """Return the Spark connection after checking that it exists and names a master.

    ``SparkSubmitHook`` submits to YARN if it finds no connection; here this is an error.

    :raises InvalidConnectionError: if the connection is missing or has no host, with the command that creates
        it; if the deploy mode is unknown; or for cluster mode on a standalone master, which Spark does not
        support for Python.
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
    if problem := extra_problem(connection):
        raise InvalidConnectionError(problem)
    if not connection.host:
        raise InvalidConnectionError(
            f"Spark connection {conn_id!r} has no host: set it to the master, {_HOST_EXAMPLE}"
        )
    mode = _deploy_mode(connection, deploy_mode)
    try:
        check_deploy_mode(mode)
    except ValueError as error:
        raise InvalidConnectionError(f"Spark connection {conn_id!r}: {error}") from None
    master = spark_master(connection)
    if not re.match(r"local|yarn|spark://|k8s://", master):
        raise InvalidConnectionError(
            f"Spark connection {conn_id!r} names the master {master!r}: set its host to {_HOST_EXAMPLE}"
        )
    if mode == "cluster" and master.startswith("spark://"):
        raise InvalidConnectionError(
            f"Spark connection {conn_id!r} asks for deploy mode 'cluster' on a standalone master, which "
            "Spark does not offer for Python applications: use 'client'"
        )
    return connection


def spark_master(connection: Connection) -> str:
    """The master URL that ``SparkSubmitHook`` derives from a connection, including the port."""
    host, port = connection.host or "", connection.port
    is_address = connection.conn_type == "spark" and ("://" in host or not port)
    master = host if is_address else f"{connection.conn_type}://{host}"
    return f"{master}:{port}" if port else master


def _deploy_mode(connection: Connection, deploy_mode: str | None) -> str | None:
    return deploy_mode or connection.extra_dejson.get("deploy-mode")


def runs_on_cluster(conn_id: str, deploy_mode: str | None) -> bool:
    """Whether the driver runs on the cluster, so that spark-submit does not show its output."""
    from airflow.sdk import BaseHook

    return _deploy_mode(BaseHook.get_connection(conn_id), deploy_mode) == "cluster"


# --- the command -----------------------------------------------------------------------------------------


def spark_submit_binary(binary: str) -> str:
    """Return the binary to run: the given one, or that of the installed pyspark if it is not on the path.

    A worker that runs from a virtual environment that is not activated has no ``spark-submit`` on its path.
    The script that pip installs next to the interpreter does not help, because it also finds pyspark through
    the path.
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
    """Return the environment of spark-submit, with defaults for a driver on this machine.

    Environment variables have the lowest precedence: properties of the job and of Spark override them, as do
    variables that are already set in this process or in ``given``.
    """
    given = dict(given or {})
    if deploy_mode == "cluster" or not master.startswith(("local", "spark://")):
        return given
    defaults = {}
    present = {**os.environ, **given}
    if "PYSPARK_PYTHON" not in present:
        # The interpreter of this process can import everything that the job's driver needs.
        defaults["PYSPARK_DRIVER_PYTHON"] = sys.executable
    if master.startswith("local"):
        defaults["PYSPARK_PYTHON"] = sys.executable
        # The JVM only passes rows of URIs on; full JIT compilation would take longer than it saves.
        defaults["SPARK_SUBMIT_OPTS"] = "-XX:TieredStopAtLevel=1"
        defaults["SPARK_LOCAL_IP"] = "127.0.0.1"
    return {name: value for name, value in defaults.items() if name not in present} | given


def is_local_master(master: str) -> bool:
    """Whether tasks run on the machine of the driver."""
    return master.startswith("local")


def spark_application(line: str) -> tuple[str | None, str | None]:
    """Parse the id of the Spark application and the URL of its UI from the line that the job prints."""
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
    """Write a file for ``--properties-file`` that only this user can read.

    :param base: properties file of the user, whose properties are included.
    """
    text = Path(base).read_text(encoding="utf-8") if base else ""
    lines = [text, *(f"{key}={value}" for key, value in sorted(properties.items())), ""]
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write("\n".join(lines))
