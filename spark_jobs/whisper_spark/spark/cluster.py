"""What a cluster must offer for executors to start, and why none has started."""

from __future__ import annotations

import json
import logging
import re
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from whisper_spark.spark.conf import local_cores

if TYPE_CHECKING:
    from pyspark import SparkContext

log = logging.getLogger(__name__)

# Seconds without an executor after which the job says why, if the master knows that none can ever start.
_CERTAIN_SECONDS = 10.0
# Seconds after which it says what may be the reason. YARN and Kubernetes need some time to start containers.
_UNCERTAIN_SECONDS = 45.0

_MASTER_TIMEOUT_SECONDS = 3.0
_MASTER_TRIES = 4
_MASTER_PAUSE_SECONDS = 3.0
_DEFAULT_MASTER_UI_PORT = "8080"

# Spark's units of memory, in MiB (JavaUtils.byteStringAs); a number without a unit is in MiB.
_MIB = {"": 1.0, "b": 2.0**-20, "k": 2.0**-10, "m": 1.0, "g": 2.0**10, "t": 2.0**20}

_GPU = "spark.executor.resource.gpu"


# --- GPUs --------------------------------------------------------------------------------------------


def gpu_problem(conf: Mapping[str, str]) -> str | None:
    """Why executors with GPUs cannot start with these properties, and what to do; ``None`` if they can.

    Executors on YARN and Kubernetes end at once without a discovery script, and the driver does not learn
    why.

    :param conf: all properties, with those of :func:`whisper_spark.spark.conf.spark_defaults`.
    """
    master, amount = conf.get("spark.master", ""), conf.get(f"{_GPU}.amount", "0")
    if amount == "0" or not master.startswith(("yarn", "k8s://")):
        return None
    if f"{_GPU}.discoveryScript" not in conf and "spark.resources.discoveryPlugin" not in conf:
        return (
            f"each executor asks for {amount} GPU, but nothing tells it which GPUs it has: set "
            f"{_GPU}.discoveryScript in conf to a script on the executors that prints them, such as Spark's "
            "examples/src/main/scripts/getGpusResources.sh"
        )
    if master.startswith("k8s://") and f"{_GPU}.vendor" not in conf:
        return (
            f"each executor asks for {amount} GPU, but Kubernetes needs the vendor to find one: set "
            f"{_GPU}.vendor=nvidia.com in conf"
        )
    return None


# --- the master --------------------------------------------------------------------------------------


class MasterUnreachableError(RuntimeError):
    """No master answers at the address of a standalone master. The message says what to check."""


def check_master(
    conf: Mapping[str, str], *, tries: int = _MASTER_TRIES, pause: float = _MASTER_PAUSE_SECONDS
) -> None:
    """Check that one of the standalone masters accepts connections; for other clusters, check nothing.

    Spark itself tries for a minute, and then reports a stopped context instead of the reason.

    :param tries: how often to try, because a master that is being replaced comes back.
    :param pause: seconds between two tries.
    :raises MasterUnreachableError: if none does.
    """
    master = conf.get("spark.master", "")
    if not master.startswith("spark://"):
        return
    reasons: list[str] = []
    for number in range(tries):
        if number:
            time.sleep(pause)
        reasons = []
        for address in master.removeprefix("spark://").split(","):
            reason = _unreachable(address)
            if reason is None:
                return
            reasons.append(f"{address}: {reason}")
    raise MasterUnreachableError(
        f"cannot connect to the Spark master {master} ({'; '.join(reasons)}). Does it run, and can this "
        "machine reach it? Otherwise correct host and port in the Spark connection: the page of the master "
        "shows its address"
    )


@contextmanager
def explained_master(conf: Mapping[str, str]) -> Iterator[None]:
    """Use it around the creation of a session: Spark's error names neither the master nor what to do.

    :raises MasterUnreachableError: if Spark gave up on a standalone master that accepts connections.
    """
    try:
        yield
    except Exception as error:
        master = conf.get("spark.master", "")
        if not master.startswith("spark://") or "stopped SparkContext" not in str(error):
            raise
        raise MasterUnreachableError(
            f"{master} accepts connections, but does not answer as a Spark master of this version. The page "
            "of the master, by default on port 8080, shows the address to use, by default with port 7077"
        ) from error


def _unreachable(address: str) -> str | None:
    """Why an address ``host:port`` accepts no connection; ``None`` if it does."""
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_MASTER_TIMEOUT_SECONDS):
            return None
    except ValueError:
        return "it must be written host:port"
    except OSError as error:
        return error.strerror or str(error)


# --- executors that do not start ---------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Size:
    """What an executor needs, or what a worker has.

    :param memory: in MiB.
    """

    cores: int
    memory: int
    gpus: int

    def fits(self, other: Size) -> bool:
        """Whether this one is not larger than the other one in any respect."""
        return self.cores <= other.cores and self.memory <= other.memory and self.gpus <= other.gpus

    def __str__(self) -> str:
        cores, gpus = _plural(self.cores, "core"), _plural(self.gpus, "GPU")
        return f"{cores}, {self.memory:,} MiB of memory and {gpus}"


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker of a standalone cluster."""

    host: str
    total: Size
    free: Size


def executor_size(conf: Mapping[str, str]) -> Size:
    """What an executor needs at least, according to the properties of the job."""
    cores = conf.get("spark.executor.cores") or conf.get("spark.task.cpus") or "1"
    return Size(
        int(cores), _mib(conf.get("spark.executor.memory", "1g")), int(conf.get(f"{_GPU}.amount", "0"))
    )


def _mib(text: str) -> int:
    match = re.fullmatch(r"(\d+)\s*([bkmgt]?)b?", text.strip().lower())
    return int(int(match[1]) * _MIB[match[2]]) if match else 0


def standalone_workers(conf: Mapping[str, str]) -> list[Worker] | None:
    """The workers of a standalone cluster, from the web page of its master.

    :return: ``None`` when there is no standalone master, or its page cannot be read. Its port is
        ``spark.master.ui.port``, by default 8080.
    """
    master = conf.get("spark.master", "")
    if not master.startswith("spark://"):
        return None
    port = conf.get("spark.master.ui.port", _DEFAULT_MASTER_UI_PORT)
    for address in master.removeprefix("spark://").split(","):
        url = f"http://{address.rpartition(':')[0]}:{port}/json/"
        try:
            with urllib.request.urlopen(url, timeout=_MASTER_TIMEOUT_SECONDS) as answer:
                state = json.load(answer)
            if state["status"] == "ALIVE":
                return [_worker(worker) for worker in state["workers"] if worker["state"] == "ALIVE"]
        except (OSError, ValueError, TypeError, KeyError) as error:
            # Something else may listen on this port.
            log.debug("cannot read %s: %s", url, error)
    return None


def _worker(state: Mapping[str, Any]) -> Worker:
    gpus, used = (
        len((state.get(name) or {}).get("gpu", {}).get("addresses", ()))
        for name in ("resources", "resourcesused")
    )
    return Worker(
        state["host"],
        Size(state["cores"], state["memory"], gpus),
        Size(state["coresfree"], state["memoryfree"], gpus - used),
    )


def impossible_executor(conf: Mapping[str, str], workers: Sequence[Worker] | None) -> str | None:
    """Why no executor of this size can ever start on these workers; ``None`` when one can, or unknown."""
    if workers is None:
        return None
    master = conf.get("spark.master")
    if not workers:
        return f"no worker is registered with {master}: start one with sbin/start-worker.sh {master}"
    need = executor_size(conf)
    if any(need.fits(worker.total) for worker in workers):
        return None
    if need.gpus and not any(worker.total.gpus >= need.gpus for worker in workers):
        return (
            f"an executor needs {need.gpus} GPU, and no worker of {master} offers that many: set "
            "spark.worker.resource.gpu.amount and spark.worker.resource.gpu.discoveryScript in "
            "SPARK_WORKER_OPTS of the workers, or use device='auto'"
        )
    largest = max(workers, key=lambda worker: (worker.total.cores, worker.total.memory))
    return (
        f"an executor needs {need}, and no worker is that large; the largest, {largest.host}, has "
        f"{largest.total}: lower executor_cores or executor_memory, or start a larger worker"
    )


def why_no_executor(conf: Mapping[str, str]) -> str:
    """The reason why no executor has started, as far as it can be known."""
    workers = standalone_workers(conf)
    impossible = impossible_executor(conf, workers)
    if impossible:
        return impossible
    need = executor_size(conf)
    if workers is None:
        return (
            f"an executor needs {need}: compare that with what one machine of the cluster offers, and look "
            f"whether other applications use it all{_unread_page(conf)}"
        )
    if any(need.fits(worker.free) for worker in workers):
        return (
            "a worker has room, so executors are probably failing at their start: see their logs on the page "
            "of the master"
        )
    return f"an executor needs {need}, and the workers that are large enough are busy with other applications"


def _unread_page(conf: Mapping[str, str]) -> str:
    """What to do where the page of a standalone master, which knows the workers, cannot be read."""
    if not conf.get("spark.master", "").startswith("spark://"):
        return ""
    port = conf.get("spark.master.ui.port", _DEFAULT_MASTER_UI_PORT)
    return (
        f". The master's page, which shows the workers, is not on port {port}: spark.master.ui.port in conf "
        "names another one"
    )


def executor_count(context: SparkContext) -> int:
    """Number of executors that have started. The driver of a local master counts as one."""
    present: int = context._jsc.sc().getExecutorMemoryStatus().size()
    return present if local_cores(str(context.master)) else present - 1


class ExecutorWatch:
    """Logs why no executor has started, if none does within a minute. Use it around the work of a job."""

    def __init__(self, context: SparkContext) -> None:
        self._context = context
        self._conf = dict(context.getConf().getAll())
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="whisper-executors", daemon=True)

    def __enter__(self) -> ExecutorWatch:
        if not local_cores(self._conf.get("spark.master", "")):
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _watch(self) -> None:
        if self._over.wait(_CERTAIN_SECONDS) or executor_count(self._context):
            return
        reason = impossible_executor(self._conf, standalone_workers(self._conf))
        if reason is None:
            if self._over.wait(_UNCERTAIN_SECONDS - _CERTAIN_SECONDS) or executor_count(self._context):
                return
            reason = why_no_executor(self._conf)
        log.warning("no executor has started yet: %s", reason)
