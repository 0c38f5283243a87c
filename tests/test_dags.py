"""Example DAGs and the task group: how they load and what they say before anything runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import pendulum
import pytest
from airflow.sdk import DAG, Asset

from airflow_whisper import WhisperOptions, examples, transcribe_partition

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = sorted((ROOT / "dags").glob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
# The linter forbids these at the top of a module. Here they may not come in through another module either.
HEAVY = set(PROJECT["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-module-level-imports"])
# What Airflow adds by itself where it is installed.
HEAVY |= {"kubernetes"}
PUBLIC = ("operators", "sensors", "triggers")
# What tasks import before they know whether there is anything to do.
INNER = ("airflow_whisper.discovery.manifest", "whisper_spark.storage.parquet")
ARGUMENTS: dict[str, Any] = {
    "source": "s3://calls/raw/dt={{ ds }}/",
    "partition": {"dt": "{{ ds }}"},
    "table": "speech.transcripts",
    "staging": "s3://calls/staging/",
}


def new_dag() -> DAG:
    return DAG("calls", schedule=None, start_date=datetime(2026, 1, 1))


def test_every_example_has_a_test_that_runs_it() -> None:
    folders = (ROOT / "tests" / "e2e", ROOT / "tests" / "standalone")
    tested = "".join(path.read_text() for folder in folders for path in folder.glob("test_*.py"))
    assert EXAMPLES
    for path in EXAMPLES:
        assert f'"{path.stem}"' in tested


# Each program is a child of one process that has imported what the DAG processor has already.
LOADING = """
import importlib, importlib.util, json, os, sys, time
began = time.process_time()  # seconds of this process, whatever else the machine does
import airflow.sdk
print(json.dumps(time.process_time() - began), flush=True)

def load(name):
    if name.endswith(".py"):
        spec = importlib.util.spec_from_file_location("example", name)
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    else:
        importlib.import_module(name)

for names in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        began = time.process_time()
        for name in names:
            load(name)
        print(json.dumps([time.process_time() - began, sorted(sys.modules)]), flush=True)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"{names} cannot be imported")
"""


@dataclass(frozen=True)
class Load:
    """What it takes to import modules and DAG files."""

    share: float
    """Processor time, as a share of what importing ``airflow.sdk`` took before."""
    modules: set[str]
    """All that are loaded in the end."""


def loaded(*groups: list[str]) -> list[Load]:
    """Import each group of modules and DAG files in a process of its own."""
    # Without bytecode each import would compile its modules, which takes longer than all else.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, "-c", LOADING, json.dumps(groups)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    airflow, *lines = done.stdout.splitlines()
    found = [json.loads(line) for line in lines if line.startswith("[")]
    assert len(found) == len(groups)
    return [Load(seconds / float(airflow), set(modules)) for seconds, modules in found]


def public_modules() -> list[str]:
    """What DAG files may import of the Airflow side. All else comes in through these, or not at all."""
    package = ROOT / "airflow_whisper"
    paths = [*package.glob("*.py"), *(p for f in PUBLIC for p in (package / f).glob("*.py"))]
    return sorted(
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths
    )


def test_what_airflow_parses_stays_light(tmp_path: Path) -> None:
    # Copies of the examples, because they have to run wherever they are copied to.
    copies = examples.copy(tmp_path / "dags")
    names = [*map(str, copies), *public_modules(), *INNER]
    everything, plugin = loaded(names, ["airflow_whisper.plugin"])
    assert {module.partition(".")[0] for module in everything.modules} & HEAVY == set()
    # Every component of Airflow loads the plugin; only the API server needs the reports.
    assert "airflow_whisper.report.server" not in plugin.modules


@pytest.mark.slow
def test_what_airflow_parses_imports_faster_than_airflow_itself() -> None:
    def too_slow(names: list[str]) -> list[str]:
        loads = zip(names, loaded(*([name] for name in names)), strict=True)
        return [name for name, load in loads if load.share >= 1]

    # Airflow parses DAG files again and again: 0.4 s on usual machines; on slow ones everything takes longer.
    # A second import finds compiled what the first had to compile, and a busy host has slow moments.
    slow = too_slow([*map(str, EXAMPLES), *public_modules()])
    assert not slow or too_slow(slow) == []


def test_examples_use_no_module_that_the_next_release_may_drop() -> None:
    assert not [path.name for path in EXAMPLES if "airflow_whisper.settings" in path.read_text()]


def test_examples_name_one_asset_for_one_table() -> None:
    # An asset of another name starts nothing.
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    named = {
        name for page in pages for name in re.findall(r"""outlets=\[Asset\("([^"]+)"\)\]""", page.read_text())
    }
    assert named == {"speech.transcripts"}
    assert all(
        "Asset(TABLE)" in path.read_text() for path in EXAMPLES if "transcribe_partition(" in path.read_text()
    )


def test_airflow_finds_no_errors_in_the_examples(airflow_home: Path) -> None:
    from airflow.dag_processing.dagbag import DagBag

    bag = DagBag(dag_folder=str(ROOT / "dags"))
    assert bag.import_errors == {}
    assert {Path(dag.fileloc) for dag in bag.dags.values()} == set(EXAMPLES)
    assert {path.stem for path in EXAMPLES} <= set(bag.dags)


@pytest.fixture
def daily(airflow_home: Path, monkeypatch: pytest.MonkeyPatch) -> DAG:
    from airflow.dag_processing.dagbag import DagBag

    monkeypatch.setenv("AIRFLOW_WHISPER_POOL", "gpu")
    return DagBag(dag_folder=str(ROOT / "dags" / "transcribe_daily.py")).dags["transcribe_daily"]


def test_daily_dag_can_be_backfilled_day_by_day(daily: DAG) -> None:
    from airflow.serialization.encoders import coerce_to_core_timetable

    timetable = coerce_to_core_timetable(daily.timetable)
    assert timetable.periodic  # or Airflow refuses to backfill
    midday = pendulum.datetime(2026, 11, 1, 12)
    assert timetable.infer_manual_data_interval(run_after=midday).start == pendulum.datetime(2026, 10, 31)
    assert daily.catchup is False
    assert daily.max_active_runs > 1


def test_daily_dag_retries_and_queues_for_the_gpu(daily: DAG) -> None:
    tasks = {task.task_id.rpartition(".")[2]: task for task in daily.tasks}
    assert {task.retries for task in tasks.values()} == {3}
    assert all(task.retry_exponential_backoff for task in tasks.values())
    assert {name: task.pool for name, task in tasks.items() if name != "transcribe"} == dict.fromkeys(
        ["discover", "validate", "register"], "default_pool"
    )
    assert tasks["transcribe"].pool == "gpu"
    assert [outlet.name for outlet in tasks["register"].outlets] == ["speech.transcripts"]


@pytest.mark.parametrize(
    ("params", "logical_date", "dt"),
    [
        ({"dt": None}, datetime(2026, 11, 1), "2026-11-01"),
        ({"dt": "2026-10-31"}, datetime(2026, 11, 1), "2026-10-31"),
        ({"dt": None}, None, "2026-11-22"),
    ],
    ids=["scheduled or backfilled", "chosen in the trigger form", "triggered without a logical date"],
)
def test_daily_dag_knows_its_day(daily: DAG, params: dict[str, Any], logical_date: Any, dt: str) -> None:
    discover = next(task for task in daily.tasks if task.task_id.endswith("discover"))
    run = {"logical_date": logical_date, "run_after": datetime(2026, 11, 22, 9)}
    context = {"params": {"source": "s3://calls/dt={dt}/", **params}, "dag_run": run}
    environment = jinja2.Environment()
    assert environment.from_string(discover.partition["dt"]).render(context) == dt
    assert environment.from_string(discover.source).render(context) == f"s3://calls/dt={dt}/"


@pytest.mark.parametrize(
    ("logical_date", "dt"),
    [("2026-10-31T23:00:00+00:00", "2026-11-01"), ("2026-07-31T22:00:00+00:00", "2026-08-01")],
)
def test_daily_dag_knows_its_day_in_another_time_zone(
    airflow_home: Path, monkeypatch: pytest.MonkeyPatch, logical_date: str, dt: str
) -> None:
    from airflow.dag_processing.dagbag import DagBag
    from airflow.serialization.encoders import coerce_to_core_timetable

    monkeypatch.setenv("AIRFLOW_WHISPER_TIMEZONE", "Europe/Berlin")
    dag = DagBag(dag_folder=str(ROOT / "dags" / "transcribe_daily.py")).dags["transcribe_daily"]
    start = datetime.fromisoformat(logical_date)
    interval = coerce_to_core_timetable(dag.timetable).infer_manual_data_interval(
        run_after=pendulum.instance(start).add(hours=30)
    )
    assert interval.start == start
    discover = next(task for task in dag.tasks if task.task_id.endswith("discover"))
    context = {"params": {"source": "s3://c/{dt}/", "dt": None}, "dag": dag}
    for run in ({"logical_date": start}, {"logical_date": None, "run_after": start}):
        rendered = dag.get_template_env().from_string(discover.partition["dt"]).render(**context, dag_run=run)
        assert rendered == dt


def test_daily_dag_makes_options_of_its_params(daily: DAG) -> None:
    discover = next(task for task in daily.tasks if task.task_id.endswith("discover"))
    params = {
        **daily.params.dump(),
        "language": "fr",
        "initial_prompt": 'Il dit: "1 < 2"',
        "channels": "split",
    }
    rendered = daily.get_template_env().from_string(discover.options).render(params=params)
    assert WhisperOptions.from_json(rendered) == WhisperOptions(
        language="fr", initial_prompt='Il dit: "1 < 2"', channels="split"
    )


@pytest.mark.parametrize(
    ("staging", "source", "expected"),
    [
        (None, "a", "a"),
        ("b", "a", "b"),
        ("{{ v }}", "a", "a"),
        ("{{ none }}", "{{ 'a' }}", "a"),
        ("{{ 'b' }}", "{{ 'a' }}", "b"),
        ("{{ v }}", None, ""),
    ],
)
def test_staging_has_the_connection_of_the_source_unless_it_has_its_own(
    staging: str | None, source: str | None, expected: str
) -> None:
    with new_dag() as dag:
        transcribe_partition(**ARGUMENTS, source_conn_id=source, staging_conn_id=staging)
    for task in dag.tasks:
        rendered = task.render_template(task.staging_conn_id, {"v": ""}, task.get_template_env())
        assert rendered == expected


def test_task_group_runs_its_four_tasks_in_order() -> None:
    with new_dag() as dag:
        transcribe_partition(**ARGUMENTS)
    assert [task.task_id for task in dag.topological_sort()] == [
        "transcribe.discover",
        "transcribe.transcribe",
        "transcribe.validate",
        "transcribe.register",
    ]


@pytest.mark.parametrize("maintain", [True, {"min_files": 9}], ids=str)
def test_task_group_can_care_for_the_table(maintain: Any) -> None:
    with new_dag() as dag:
        transcribe_partition(**ARGUMENTS, catalog_conn_id="lake", maintain=maintain)
    task = dag.get_task("transcribe.maintain")
    assert task.upstream_task_ids == {"transcribe.register"}
    assert (task.table, task.catalog_conn_id) == (ARGUMENTS["table"], "lake")
    assert task.partition == ARGUMENTS["partition"]
    assert task.min_files == (5 if maintain is True else 9)


def test_task_group_gives_every_task_what_it_needs() -> None:
    asset = Asset("calls", uri="s3://lake/calls")
    with new_dag() as dag:
        transcribe_partition(
            **ARGUMENTS,
            group_id="calls",
            source_conn_id="audio",
            catalog_conn_id="lake",
            model_conn_id="models",
            spark_conn_id="cluster",
            pool="gpu",
            max_error_rate=0.01,
            block_on=["repetitive"],
            outlets=[asset],
            spark={"conf": {"spark.executor.memory": "8g"}},
            default_args={"retries": 7},
        )
    tasks = {task.task_id.removeprefix("calls."): task for task in dag.tasks}
    assert {task.staging_conn_id for task in tasks.values()} == {"audio"}
    assert {task.retries for task in tasks.values()} == {7}
    assert tasks["discover"].catalog_conn_id == tasks["register"].catalog_conn_id == "lake"
    assert tasks["transcribe"].source_conn_id == "audio"
    assert tasks["transcribe"].model_conn_id == "models"
    assert tasks["transcribe"].pool == "gpu"
    assert tasks["validate"].max_error_rate == 0.01
    assert tasks["register"].outlets == [asset]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"table": "transcripts"}, "namespace"),
        ({"partition": {}}, "at least one key"),
        ({"on_removed": "drop"}, "on_removed"),
        ({"options": {"model": "large-v9"}}, "unknown model"),
        ({"max_error_rate": 5}, "max_error_rate"),
        # Of a text, each letter would become an asset, and names in a list would be ignored.
        ({"outlets": ["speech.transcripts"]}, "outlets must be a list of assets"),
        ({"outlets": "speech.transcripts"}, r"outlets must be a list of assets such as \[Asset"),
        ({"outlets": Asset("speech.transcripts")}, "outlets must be a list of assets"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_wrong_arguments_fail_while_the_dag_file_is_parsed(wrong: dict[str, Any], message: str) -> None:
    with new_dag(), pytest.raises(ValueError, match=message):
        transcribe_partition(**{**ARGUMENTS, **wrong})


def test_form_of_the_daily_example_opens_with_what_people_change_and_says_what_it_means() -> None:
    from airflow.dag_processing.dagbag import DagBag

    (path,) = [path for path in EXAMPLES if path.stem == "transcribe_daily"]
    dag = DagBag(dag_folder=str(path)).dags["transcribe_daily"]
    params = {name: dag.params.get_param(name).schema for name in dag.params}
    assert [name for name, schema in params.items() if not schema.get("title")] == []
    # The form opens only the section of Params without one, and shows it first.
    opened = [name for name, schema in params.items() if "section" not in schema]
    assert opened == [*params][: len(opened)] == ["dt", "model", "language", "dry_run"]
    assert params["language"]["values_display"] == {"null": "detected for each file"}


def test_tasks_of_the_group_have_names_that_do_not_begin_alike() -> None:
    with new_dag() as dag:
        transcribe_partition(**ARGUMENTS, maintain=True, export="s3://calls/subtitles/{name}.{format}")
    names = [task.task_display_name for task in dag.tasks]
    assert len({name.split()[0] for name in names}) == len(names) == 6
    assert not [name for name in names if name.startswith("transcribe.")]
