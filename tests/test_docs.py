"""Every example in docs/: Python is loaded as Airflow loads a DAG file, commands are parsed as by Airflow."""

from __future__ import annotations

import re
import shlex
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG
from servers import S3Server

from airflow_whisper.sensors.audio import NewAudioSensor
from airflow_whisper.triggers.audio import NewAudioTrigger
from airflow_whisper.watch.watcher import SourceWatch

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: Path, language: str) -> list[str]:
    return [text for found, text in BLOCK.findall(page.read_text()) if found == language]


def examples() -> Iterator[Any]:
    for page in PAGES:
        for number, text in enumerate(blocks(page, "python")):
            yield pytest.param(text, id=f"{page.stem}-{number}")


def commands() -> Iterator[str]:
    for page in PAGES:
        text = "\n".join(block for language, block in BLOCK.findall(page.read_text()) if language != "python")
        for line in text.replace("\\\n", " ").splitlines():
            if line.startswith("airflow "):
                yield " ".join(line.split())


def dags_of(text: str, folder: Path) -> list[DAG]:
    from airflow.dag_processing.dagbag import DagBag

    (folder / "example.py").write_text(text)
    bag = DagBag(dag_folder=str(folder / "example.py"))
    assert bag.import_errors == {}
    return [*bag.dags.values()]


@pytest.mark.parametrize("text", examples())
def test_example_is_complete_and_airflow_accepts_it(text: str, tmp_path: Path, airflow_home: Path) -> None:
    from airflow.serialization.serialized_objects import DagSerialization

    dags = dags_of(text, tmp_path)
    if "DAG(" not in text:
        exec(compile(text, "example", "exec"), {"__name__": "example"})
        return
    assert dags
    for dag in dags:
        DagSerialization.to_dict(dag)


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_command_is_one_that_airflow_has(command: str) -> None:
    from airflow.cli.cli_parser import get_parser

    get_parser().parse_args(shlex.split(command.replace("$", ""))[1:])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    missing = [
        link
        for link in links
        if "://" not in link
        and not link.startswith("#")
        and not (page.parent / link.partition("#")[0]).exists()
    ]
    assert missing == []


@pytest.mark.parametrize(
    ("run", "day"),
    [
        # Midnight in Berlin, in winter and in summer: the day before in UTC.
        ({"logical_date": "2026-11-04T23:00:00+00:00"}, "2026-11-05"),
        ({"logical_date": "2026-08-04T22:00:00+00:00"}, "2026-08-05"),
        ({"logical_date": None, "run_after": "2026-11-04T23:30:00+00:00"}, "2026-11-05"),
        ({"logical_date": None, "run_after": "2026-11-05T12:00:00+00:00"}, "2026-11-05"),
    ],
)
def test_day_of_a_run_is_local_and_needs_no_logical_date(
    tmp_path: Path, airflow_home: Path, run: dict[str, str | None], day: str
) -> None:
    page = ROOT / "docs" / "partitions-and-assets.md"
    (text,) = [text for text in blocks(page, "python") if "calls_of_the_day" in text]
    (dag,) = dags_of(text, tmp_path)
    discover = dag.get_task("transcribe.discover")
    moments = {name: value and datetime.fromisoformat(value) for name, value in run.items()}
    discover.render_template_fields({"dag": dag, "dag_run": SimpleNamespace(**moments)})
    assert (discover.source, discover.partition) == (f"s3://calls/raw/dt={day}/", {"dt": day})


# --- the examples of triggers and sensors, at work ---------------------------------------------------------

PAGE = ROOT / "docs" / "triggers-and-sensors.md"


@pytest.fixture
def calls(s3: S3Server, catalog_env: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The bucket that the examples speak of, with a client."""
    client = s3.client()
    if "calls" not in [bucket["Name"] for bucket in client.list_buckets()["Buckets"]]:
        client.create_bucket(Bucket="calls")
    monkeypatch.setenv("AIRFLOW_CONN_CALLS_S3", s3.connection)
    return client


def watched(page: Path) -> list[NewAudioTrigger]:
    """The triggers that the examples make."""
    made: list[NewAudioTrigger] = []
    for text in blocks(page, "python"):
        if "NewAudioTrigger(" in text:

            class Noted(NewAudioTrigger):
                def __init__(self, **arguments: Any) -> None:
                    super().__init__(**arguments)
                    made.append(self)

            imported = "from airflow_whisper.triggers.audio import NewAudioTrigger\n"
            assert imported in text
            exec(compile(text.replace(imported, ""), "example", "exec"), {"NewAudioTrigger": Noted})
    return made


def test_triggers_of_the_examples_find_audio(calls: Any) -> None:
    for key in ("raw/dt=2026-11-01/hour=13/a.wav", "raw/dt=2026-11-01/b.mp3", "inbox/c.wav"):
        calls.put_object(Bucket="calls", Key=key, Body=b"x")
    found = []
    for trigger in watched(PAGE):
        watch = SourceWatch(trigger.watched)
        # An hour later: by then one file is enough for the trigger that waits for 500.
        (payload,) = watch.poll(lambda: time.time() + 3600)
        found.append(
            sorted({uri.rpartition("/")[2] for uri in payload["uris"]} & {"a.wav", "b.mp3", "c.wav"})
        )
        watch.close()
    assert found == [["a.wav"], ["a.wav", "b.mp3"], ["c.wav"]]


def test_sensor_of_the_examples_finds_audio(calls: Any, tmp_path: Path, airflow_home: Path) -> None:
    for i in range(10):
        calls.put_object(Bucket="calls", Key=f"raw/dt=2026-10-01/hour=07/{i}.wav", Body=b"x")
    (text,) = [text for text in blocks(PAGE, "python") if "NewAudioSensor(" in text]
    (dag,) = dags_of(text, tmp_path)
    sensor = dag.get_task("arrived")
    assert isinstance(sensor, NewAudioSensor)
    sensor.render_template_fields({"ds": "2026-10-01"})  # type: ignore[typeddict-item]
    sensor.deferrable, sensor.stable_polls = False, 1
    ti = SimpleNamespace(xcom_push=lambda key, value: None)
    found = sensor.execute({"ti": ti})  # type: ignore[typeddict-item]
    assert found == [
        {
            "source": "s3://calls/raw/dt=2026-10-01/hour=07/",
            "partition": {"dt": "2026-10-01", "hour": "07"},
        }
    ]
