"""``airflow whisper estimate``: what a backfill would cost, without creating a single run.

It renders the arguments of each ``discover`` task for each run that the backfill would create, as
``airflow tasks render`` does, and lets the operator compare and estimate in a dry run.
"""

from __future__ import annotations

import json
import logging
import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from airflow_whisper.discovery.estimate import Estimate, total
from airflow_whisper.operators.discover import DiscoverAudioOperator
from airflow_whisper.outcome import OUTCOME_KEY

if TYPE_CHECKING:
    from argparse import Namespace

    from airflow.sdk import DAG
    from airflow.timetables.base import DagRunInfo


@dataclass(frozen=True)
class RunEstimate:
    """The estimate of one ``discover`` task in one run.

    :param run: logical date of the run, or its partition key.
    :param task_id: id of the task.
    :param estimate: without files if there is nothing to do; ``None`` if it failed.
    :param outcome: what the task would say.
    """

    run: str
    task_id: str
    estimate: Estimate | None
    outcome: str


class _Collected:
    """Stands for the task instance, and keeps its XComs."""

    def __init__(self) -> None:
        self.xcoms: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.xcoms[key] = value


def estimate_command(args: Namespace) -> None:
    """Print one line for each run and the total.

    :raises SystemExit: if the arguments do not fit the Dag, or a run could not be estimated.
    """
    from airflow.cli.simple_table import AirflowConsole
    from airflow.utils.cli import get_bagged_dag
    from airflow.utils.providers_configuration_loader import providers_configuration_loaded

    # Connections are read from Airflow's database, too, as by other commands.
    os.environ.setdefault("_AIRFLOW_PROCESS_CONTEXT", "server")
    logging.getLogger("airflow.task").setLevel(logging.WARNING)

    @providers_configuration_loaded
    def find() -> list[RunEstimate]:
        conf = json.loads(args.dag_run_conf) if args.dag_run_conf else {}
        dag = get_bagged_dag(args.bundle_name, args.dag_id)
        return [*backfill_estimates(dag, args.from_date, args.to_date, conf)]

    try:
        found = find()
    except ValueError as error:
        raise SystemExit(str(error)) from error
    lines = [_line(one) for one in found]
    lines.append(_line(RunEstimate("total", "", total([e.estimate for e in found if e.estimate]), "")))
    AirflowConsole(width=200).print_as(lines, args.output)
    failed = [one for one in found if one.estimate is None]
    if failed:
        raise SystemExit(f"{len(failed)} of {len(found)} could not be estimated, and are not in the total")


def _line(one: RunEstimate) -> dict[str, str]:
    found = one.estimate
    if found is None:
        unknown = dict.fromkeys(("files", "audio_hours", "job_hours", "gpu_hours"), "?")
        return {"run": one.run, "task": one.task_id, **unknown, "from": one.outcome}
    nothing = None if found.files else 0.0
    return {
        "run": one.run,
        "task": one.task_id,
        "files": str(found.files),
        "audio_hours": _range(found),
        "job_hours": _hours(found.job_hours, nothing),
        "gpu_hours": _hours(found.gpu_hours, nothing),
        "from": one.outcome or ", ".join(filter(None, [found.based_on, found.runs])),
    }


def _range(found: Estimate) -> str:
    low, high = found.audio_hours_range
    spread = f" ({low:.3g} to {high:.3g})" if high > 1.05 * low else ""
    return f"{found.audio_hours:.4g}{spread}"


def _hours(value: float | None, nothing: float | None) -> str:
    value = nothing if value is None else value
    return "?" if value is None else f"{value:.3g}"


def backfill_estimates(
    dag: DAG, from_date: datetime, to_date: datetime, conf: Mapping[str, Any]
) -> Iterator[RunEstimate]:
    """Yield the estimate of each ``discover`` task in each run that a backfill of all runs would create.

    :param dag: as parsed from its file.
    :param from_date, to_date: first and last logical date, both included.
    :param conf: Params that the backfill overrides.
    :raises ValueError: if the DAG has no such task, or its schedule does not support backfills.
    """
    tasks = [task for task in dag.tasks if isinstance(task, DiscoverAudioOperator)]
    if not tasks:
        raise ValueError(f"Dag {dag.dag_id!r} has no discover task, or only mapped ones")
    for info in _runs(dag, from_date, to_date):
        for task in tasks:
            yield _run_estimate(task, info, conf)


def _runs(dag: DAG, from_date: datetime, to_date: datetime) -> list[DagRunInfo]:
    """The runs that ``airflow backfill create`` would create."""
    from airflow.serialization.serialized_objects import DagSerialization

    scheduled = DagSerialization.from_dict(DagSerialization.to_dict(dag))
    if not scheduled.timetable.periodic:
        raise ValueError(f"Dag {dag.dag_id!r} has no periodic schedule, so it cannot be backfilled")
    runs = scheduled.iter_dagrun_infos_between(from_date, to_date)
    if scheduled.timetable.partitioned:
        return list(runs)
    now = datetime.now(UTC)
    return [info for info in runs if info.data_interval and info.data_interval.end < now]


def _run_estimate(task: DiscoverAudioOperator, info: DagRunInfo, conf: Mapping[str, Any]) -> RunEstimate:
    from airflow.sdk.bases.operator import ExecutorSafeguard
    from airflow.sdk.exceptions import AirflowSkipException

    date = (info.logical_date or info.run_after).isoformat()
    run = info.partition_key or date.removesuffix("T00:00:00+00:00")
    task = task.prepare_for_execution()
    collected = _Collected()
    try:
        context = _context(task, info, conf)
        task.render_template_fields(context)
        task.is_dry_run = True
        context["ti"] = context["task_instance"] = collected
        ExecutorSafeguard.tracker.set(task)
        task.execute(context)
    except AirflowSkipException:
        values = collected.xcoms.get("estimate")
        found = Estimate.from_dict(values) if values else Estimate()
        outcome = "" if values else str(collected.xcoms.get(OUTCOME_KEY, ""))
        return RunEstimate(run, task.task_id, found, outcome)
    except Exception as error:
        # One day without audio or permission does not hide the others.
        return RunEstimate(run, task.task_id, None, f"{type(error).__name__}: {error}")
    raise RuntimeError("a dry run always ends by skipping")


def _context(task: DiscoverAudioOperator, info: DagRunInfo, conf: Mapping[str, Any]) -> Any:
    """The template context of a task in a run that does not exist."""
    from airflow.api_fastapi.execution_api.datamodels.taskinstance import DagRun, TIRunContext
    from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
    from airflow.utils.state import DagRunState
    from airflow.utils.types import DagRunType

    interval = info.data_interval
    run_id = f"estimate__{info.run_after.isoformat()}"
    dag_run = DagRun(
        dag_id=task.dag_id,
        run_id=run_id,
        logical_date=info.logical_date if interval else None,
        data_interval_start=interval.start if interval else None,
        data_interval_end=interval.end if interval else None,
        run_after=info.run_after,
        start_date=datetime.now(UTC),
        end_date=None,
        run_type=DagRunType.BACKFILL_JOB,
        state=DagRunState.RUNNING,
        conf=dict(conf),
        consumed_asset_events=[],
        partition_key=info.partition_key,
        partition_date=info.partition_date,
    )
    instance = RuntimeTaskInstance.model_construct(
        id=uuid.uuid4(),
        task_id=task.task_id,
        dag_id=task.dag_id,
        run_id=run_id,
        try_number=1,
        map_index=-1,
        task=task,
        max_tries=0,
        start_date=datetime.now(UTC),
        _ti_context_from_server=TIRunContext(
            dag_run=dag_run, max_tries=0, variables=[], connections=[], xcom_keys_to_clear=[]
        ),
    )
    return instance.get_template_context()
