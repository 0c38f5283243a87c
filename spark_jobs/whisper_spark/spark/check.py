"""``job.py --check``: runs the checks of :mod:`whisper_spark.doctor` on every executor of a cluster."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pyspark import TaskContext
from pyspark.accumulators import AccumulatorParam

from whisper_spark.doctor.checks import Check, ok, summary, table
from whisper_spark.doctor.host import HostPlan, host_checks
from whisper_spark.spark.cluster import executor_size, why_no_executor
from whisper_spark.spark.conf import asked_executors, local_cores, slots
from whisper_spark.spark.failures import CheckFailedError, cause_of

if TYPE_CHECKING:
    from pyspark import SparkContext
    from pyspark.accumulators import Accumulator
    from pyspark.sql import SparkSession

log = logging.getLogger(__name__)

# Seconds to wait for executors. A cluster with free workers starts them sooner.
_START_SECONDS = 60.0
# When the number of executors is not known, it counts as complete after so many seconds without a new one.
_SETTLED_SECONDS = 5.0
_POLL_SECONDS = 0.5

_GROUP = "whisper-check"
_MOST_TASKS = 100_000

_ONE_ATTEMPT = {
    # An executor on which a check crashes is not tried again: the others answer for themselves.
    "spark.excludeOnFailure.enabled": "true",
    "spark.excludeOnFailure.task.maxTaskAttemptsPerExecutor": "1",
    # All executors have to start for the check, not only as many as its few tasks need.
    "spark.dynamicAllocation.enabled": "false",
}


@dataclass(frozen=True, slots=True)
class Executor:
    """An executor that has started."""

    id: str
    host: str


@dataclass(frozen=True, slots=True)
class Answer:
    """The checks of one Spark task.

    :param task: its task attempt id.
    :param gpus: addresses of the GPUs that Spark gave to it.
    """

    task: int
    gpus: tuple[str, ...]
    checks: tuple[Check, ...]


@dataclass(frozen=True, slots=True)
class TaskEnd:
    """Where a task ran, and the error with which it failed, if it did."""

    task: int
    executor: str
    host: str
    error: str | None


def check_conf(conf: Mapping[str, str]) -> dict[str, str]:
    """Properties to set for a check, in addition to those of a job."""
    settings = dict(_ONE_ATTEMPT)
    if conf.get("spark.dynamicAllocation.enabled") == "true":
        most = conf.get("spark.dynamicAllocation.maxExecutors", "")
        if most.isdigit():
            settings["spark.executor.instances"] = most
    return settings


def check_cluster(spark: SparkSession, plan: HostPlan) -> None:
    """Run the checks on every executor, and log one table for the cluster and one for each host.

    :raises CheckFailedError: when a check failed.
    """
    context = spark.sparkContext
    conf = dict(context.getConf().getAll())
    present = wait_for_executors(context, conf)
    cluster = [cluster_check(conf, present), gpu_check(conf, plan)]
    hosts: dict[str, dict[str, list[Check]]] = {}
    if present:
        hosts = _by_host(present, *_run(context, plan, slots(conf, context.defaultParallelism)))
    _log_tables(str(context.master), cluster, hosts)
    found = [("the cluster", check) for check in cluster]
    found += [
        (f"host {host}", check)
        for host, each in hosts.items()
        for checks in each.values()
        for check in checks
    ]
    told = summary(check for _, check in found)
    failed = [(place, check) for place, check in found if check.status == "failed"]
    if failed:
        place, first = failed[0]
        raise CheckFailedError(f"{told}. The first, {first.name} on {place}: {first.found}. Fix: {first.fix}")
    log.info(told)


def _log_tables(
    master: str, cluster: Sequence[Check], hosts: Mapping[str, Mapping[str, Sequence[Check]]]
) -> None:
    for line in table(f"cluster {master}", {"": cluster}):
        log.info(line)
    for host, results in hosts.items():
        for line in table(f"host {host}: {', '.join(results)}", results):
            log.info(line)


# --- the cluster -------------------------------------------------------------------------------------


def wait_for_executors(context: SparkContext, conf: Mapping[str, str]) -> list[Executor]:
    """Wait until all executors have started, or no more of them do. Returns those that have."""
    asked, started = asked_executors(conf), time.monotonic()
    present, since = _executors(context), started
    while time.monotonic() - started < _START_SECONDS and not local_cores(str(context.master)):
        found = _executors(context)
        if len(found) != len(present):
            present, since = found, time.monotonic()
        if asked and len(present) >= asked:
            break
        if not asked and present and time.monotonic() - since >= _SETTLED_SECONDS:
            break
        time.sleep(_POLL_SECONDS)
    return present


def _executors(context: SparkContext) -> list[Executor]:
    found = [
        Executor(executor.id(), executor.hostPort().rpartition(":")[0])
        for executor in _scala(context._jsc.sc().statusStore().executorList(True))
    ]
    # The driver is in the list; it runs tasks only with a local master.
    return found if local_cores(str(context.master)) else [e for e in found if e.id != "driver"]


def cluster_check(conf: Mapping[str, str], present: list[Executor]) -> Check:
    """How many executors have started."""
    if not present:
        return Check(
            "executors", "failed", f"none has started within {_START_SECONDS:.0f} s", why_no_executor(conf)
        )
    hosts = len({executor.host for executor in present})
    found = f"{len(present)} on {hosts} hosts, each with {executor_size(conf)}"
    if local_cores(conf.get("spark.master", "")):
        found = "tasks run in the driver (local master)"
    asked = asked_executors(conf) or 0
    if len(present) < asked:
        fix = f"wait until the cluster is free, or ask for fewer executors: {why_no_executor(conf)}"
        return Check("executors", "warning", f"{found}, of {asked} asked for", fix)
    return ok("executors", found)


def gpu_check(conf: Mapping[str, str], plan: HostPlan) -> Check:
    """Whether Spark gives GPUs to the tasks."""
    amount = conf.get("spark.task.resource.gpu.amount")
    if amount:
        return ok("GPU resource", f"{amount} for each task")
    found = f"Spark manages no GPUs (device={plan.options.device!r})"
    return ok(
        "GPU resource", f"{found}: a task uses a GPU that it sees" if plan.options.device != "cpu" else found
    )


# --- the executors -----------------------------------------------------------------------------------


class _Lists(AccumulatorParam[list[Answer]]):
    """An accumulator of lists. Unlike the result of a job, it has the answers of a job that failed."""

    def zero(self, value: list[Answer]) -> list[Answer]:
        return []

    def addInPlace(self, value1: list[Answer], value2: list[Answer]) -> list[Answer]:  # noqa: N802
        return value1 + value2


def _run(context: SparkContext, plan: HostPlan, tasks: int) -> tuple[list[Answer], list[TaskEnd]]:
    """Run one task for each slot. Spark starts them all at once, so that each slot gets one."""
    answers: Accumulator[list[Answer]] = context.accumulator([], _Lists())
    context.setJobGroup(_GROUP, "check the executors")
    try:
        context.parallelize(range(tasks), tasks).foreachPartition(lambda _: answers.add([_answer(plan)]))
    except Exception as error:
        # Which tasks failed and why is in the list of their ends.
        log.debug("the job of the check failed: %s", cause_of(error))
    return answers.value, list(_task_ends(context))


def _answer(plan: HostPlan) -> Answer:
    """Runs on an executor."""
    context: Any = TaskContext.get()
    gpu = context.resources().get("gpu")
    addresses = tuple(map(str, gpu.addresses)) if gpu is not None else ()
    return Answer(context.taskAttemptId(), addresses, tuple(host_checks(plan)))


def _task_ends(context: SparkContext) -> Iterator[TaskEnd]:
    spark: Any = context._jsc.sc()
    # The status store is filled by a listener, which may be behind.
    spark.listenerBus().waitUntilEmpty()
    tracker = context.statusTracker()
    for job in tracker.getJobIdsForGroup(_GROUP):
        info = tracker.getJobInfo(job)
        for stage in info.stageIds if info else ():
            for task in _scala(spark.statusStore().taskList(stage, 0, _MOST_TASKS)):
                error = task.errorMessage()
                text = error.get() if error.isDefined() else None
                yield TaskEnd(task.taskId(), task.executorId(), task.host(), text)


def _scala(sequence: Any) -> Iterator[Any]:
    return (sequence.apply(index) for index in range(sequence.size()))


def _by_host(
    present: Iterable[Executor], answers: Iterable[Answer], ends: Iterable[TaskEnd]
) -> dict[str, dict[str, list[Check]]]:
    """The checks of each executor, by host. Executors without an answer get a failed check."""
    place = {end.task: end for end in ends}
    hosts: dict[str, dict[str, list[Check]]] = {}
    heard: set[str] = set()
    for answer in sorted(answers, key=lambda answer: _place_of(place[answer.task])):
        end = place[answer.task]
        heard.add(end.executor)
        gpus = f" (GPU {', '.join(answer.gpus)})" if answer.gpus else ""
        # The tasks of an executor without a GPU of their own find the same.
        hosts.setdefault(end.host, {}).setdefault(f"executor {end.executor}{gpus}", list(answer.checks))
    failures = {end.executor: end for end in place.values() if end.error}
    silent = {executor.id: executor.host for executor in present} | {
        end.executor: end.host for end in failures.values()
    }
    for executor, host in silent.items():
        if executor not in heard:
            hosts.setdefault(host, {})[f"executor {executor}"] = [_silent(failures.get(executor))]
    return hosts


def _place_of(end: TaskEnd) -> tuple[str, int, str]:
    # Executors are numbered; that of a local master is called "driver".
    return end.host, int(end.executor) if end.executor.isdigit() else 0, end.executor


def _silent(failure: TaskEnd | None) -> Check:
    if failure is None or failure.error is None:
        fix = "run the check again while the cluster is idle"
        return Check("executor", "warning", "it ran no task of the check", fix)
    fix = (
        "spark.pyspark.python must name a Python 3.11 or newer on the executors that has pyspark, and "
        "--py-files must hold whisper_spark unless it is installed there"
    )
    return Check("executor", "failed", cause_of(RuntimeError(failure.error)), fix)
