"""Every code block of README and docs/ is run, or says why not.

Python is loaded as Airflow loads a DAG file, commands are checked by the programs that they call, SQL runs on
a table of transcripts. A block with ``<!-- run by a test as: NAME -->`` above it has a test of its own, and
one with ``<!-- not run: REASON -->`` has none. Output and drawings are ``text``.
"""

from __future__ import annotations

import ast
import configparser
import importlib
import importlib.util
import inspect
import json
import re
import shutil
import subprocess
import sys
import threading
import time
import tomllib
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import DAG, BaseOperator
from airflow.triggers.base import BaseTrigger
from docs_blocks import PAGES, ROOT, Block, blocks, commands, connection, named_block
from packaging.requirements import Requirement
from servers import S3Server

from airflow_whisper import WhisperOptions, transcribe_partition
from airflow_whisper.get_provider_info import get_provider_info
from airflow_whisper.hooks.catalog import open_catalog
from airflow_whisper.hooks.object_storage import storage_config
from airflow_whisper.hooks.spark_submit import check_spark_connection, spark_master
from airflow_whisper.sensors.audio import NewAudioSensor
from airflow_whisper.triggers.audio import NewAudioTrigger
from airflow_whisper.watch.watcher import SourceWatch

BLOCKS = [block for page in PAGES for block in blocks(page)]
PYTHON, SHELL = "python", "bash"


def of(*languages: str) -> list[Any]:
    """The blocks in these languages that are to be run, as parameters of a test."""
    chosen = [block for block in BLOCKS if block.language in languages and block.reason is None]
    return [pytest.param(block, id=block.place) for block in chosen]


def python_blocks(page: Path) -> list[str]:
    return [block.text for block in blocks(page) if block.language == PYTHON]


def dags_of(text: str, folder: Path) -> list[DAG]:
    from airflow.dag_processing.dagbag import DagBag

    (folder / "example.py").write_text(text)
    bag = DagBag(dag_folder=str(folder / "example.py"))
    assert bag.import_errors == {}
    return [*bag.dags.values()]


def test_every_block_is_run_or_says_why_not() -> None:
    assert len(BLOCKS) > 40
    # `make docs` runs Sphinx's directive.
    known = {PYTHON, SHELL, "json", "ini", "sql", "text", "{toctree}"}
    # Other languages need a test of their own.
    problems = {
        block.place: block.language
        for block in BLOCKS
        if block.language not in known and block.name is None and block.reason is None
    }
    assert problems == {}, "say what it is, or why it is not run: see CONTRIBUTING.md"


def test_every_named_block_has_a_test_of_its_own() -> None:
    names = [block.name for block in BLOCKS if block.name]
    assert len(names) == len(set(names))
    tests = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name in names if f'"{name}"' not in tests] == []


@pytest.mark.parametrize("block", of(PYTHON))
def test_example_is_complete_and_airflow_accepts_it(block: Block, tmp_path: Path, airflow_home: Path) -> None:
    from airflow.serialization.serialized_objects import DagSerialization

    if "DAG(" not in block.text:
        # A block with a name may need what its own test provides.
        code = compile(block.text, block.place, "exec")
        if block.name is None:
            exec(code, {"__name__": "example"})
        return
    dags = dags_of(block.text, tmp_path)
    assert dags
    for dag in dags:
        DagSerialization.to_dict(dag)


@pytest.mark.parametrize("block", of(PYTHON))
def test_example_that_uses_a_table_in_a_lake_names_its_catalog(block: Block) -> None:
    # Without one, the table is in a SQLite file on the worker.
    operators = "DiscoverAudio|RegisterTranscripts|ExportTranscripts|MaintainTable"
    uses = re.findall(rf"(?:transcribe_partition|NewAudioSensor|(?:{operators})Operator)\((?!\.)", block.text)
    if "s3://" in block.text:
        assert block.text.count("catalog_conn_id=") == len(uses)


@pytest.mark.parametrize("block", of(SHELL))
def test_commands_are_ones_that_exist(block: Block) -> None:
    found = commands(block)
    assert found
    for words in found:
        _check_command(block, words)


def _check_command(block: Block, words: list[str]) -> None:
    program = Path(words[0]).name
    if program == "airflow":
        from airflow.cli.cli_parser import get_parser

        arguments = get_parser().parse_args([word.replace("$", "") for word in words[1:]])
        if getattr(arguments, "conn_json", None):
            assert json.loads(arguments.conn_json)["conn_type"]
        # It becomes `generic` where the provider of that type is not installed.
        assert getattr(arguments, "conn_type", None) is None
    elif program == "make":
        targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert [word for word in words[1:] if "=" not in word and word not in targets] == []
    elif program == "pip":
        for word in words[2:]:
            if word.startswith("airflow-provider-whisper"):
                assert Requirement(word).extras <= _extras()
    elif program in ("python", "python3") and words[1] == "-m":
        assert importlib.util.find_spec(words[2])
    else:
        assert block.name, f"{block.place}: nothing checks {words[0]}: see CONTRIBUTING.md"


def _extras() -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return set(project["optional-dependencies"])


@pytest.mark.parametrize("block", of("json"))
def test_json_can_be_read(block: Block) -> None:
    json.loads(block.text)


@pytest.mark.parametrize("block", of("ini"))
def test_settings_can_be_read(block: Block) -> None:
    settings = configparser.ConfigParser(interpolation=None)
    settings.read_string(block.text)
    assert settings.sections()


@pytest.mark.parametrize("block", [block for block in of("sql") if block.values[0].name is None])
def test_query_runs_on_a_table_of_transcripts(block: Block) -> None:
    import duckdb
    from transcripts import make_transcript_rows

    rows = make_transcript_rows(["s3://calls/a.wav"])
    with duckdb.connect() as database:
        database.execute("CREATE SCHEMA speech")
        database.register("rows", rows)
        database.execute("CREATE TABLE speech.transcripts AS SELECT * FROM rows")
        assert database.execute(block.text).fetchall()


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub names them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    links = [link for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()) if "://" not in link]
    for link in links:
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_reference_has_every_class_that_the_provider_names() -> None:
    reference = (ROOT / "docs" / "reference" / "index.rst").read_text()
    info: dict[str, Any] = get_provider_info()
    modules = [
        module
        for kind in ("operators", "sensors", "triggers")
        for entry in info[kind]
        for module in entry["python-modules"]
    ]
    classes = {
        f"{module}.{name}"
        for module in modules
        for name, value in vars(importlib.import_module(module)).items()
        if isinstance(value, type)
        and value.__module__ == module
        and issubclass(value, BaseOperator | BaseTrigger)
    }
    assert len(classes) > 8
    assert [name for name in sorted(classes) if f"   {name}\n" not in reference] == []


@pytest.mark.slow
def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    # A copy, because the pages of the reference are generated beside the sources.
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("_build", "generated"))
    (tmp_path / "README.md").symlink_to(ROOT / "README.md")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "docs", "site"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    page = "airflow_whisper.operators.transcribe.WhisperTranscribeOperator.html"
    html = (tmp_path / "site" / "reference" / "generated" / page).read_text()
    # From the docstring, and from the signature.
    assert "executor_cores" in html
    assert "Transcribe the audio of a manifest on Spark" in html


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
    (text,) = [text for text in python_blocks(page) if "calls_of_the_day" in text]
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
    database = {"type": "sql", "uri": f"sqlite:///{catalog_env.warehouse.parent}/lake.db"}
    monkeypatch.setenv("AIRFLOW_CONN_LAKE", json.dumps({"conn_type": "iceberg", "extra": database}))
    return client


def watched(page: Path) -> list[NewAudioTrigger]:
    """The triggers that the examples make."""
    made: list[NewAudioTrigger] = []
    for text in python_blocks(page):
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
    (text,) = [text for text in python_blocks(PAGE) if "NewAudioSensor(" in text]
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


# --- upgrading ----------------------------------------------------------------------------------------------


def test_upgrade_page_and_changelog_say_what_the_release_makes_stale() -> None:
    import whisper_spark

    page = named_block("upgrade-fingerprint").page.read_text()
    releases = re.findall(r"^\| (\d+\.\d+\.\d+) \| `([0-9a-f]{16})` \|", page, re.MULTILINE)
    (version, fingerprint), (before, fingerprint_before), *_ = releases
    assert (version, fingerprint) == (whisper_spark.__version__, WhisperOptions().fingerprint())
    changes = (ROOT / "CHANGELOG.md").read_text()
    release = changes.partition(f"## {version}\n")[2].partition(f"## {before}\n")[0]
    breaking = release.partition("### Breaking changes\n")[2].partition("###")[0]
    assert ("**Transcripts become stale**" in breaking) == (fingerprint != fingerprint_before)
    # The example keeps the rows of the release before.
    keywords = ast.parse(named_block("upgrade-accept").text).body[0].value.keywords  # type: ignore[attr-defined]
    (accepted,) = [ast.literal_eval(k.value) for k in keywords if k.arg == "accepted_fingerprints"]
    assert accepted == [fingerprint_before]
    assert "accepted_fingerprints" in inspect.signature(transcribe_partition).parameters


def test_command_of_the_upgrade_page_prints_a_fingerprint() -> None:
    ((_, *arguments),) = commands(named_block("upgrade-fingerprint"))
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == WhisperOptions(model="large-v3-turbo").fingerprint()


# --- the connections of "Your bucket, your catalog, your cluster" ------------------------------------------


def connected(monkeypatch: pytest.MonkeyPatch, name: str, values: dict[str, str] | None = None) -> str:
    """Make the connection of a block, with other values, and return its id."""
    text = json.dumps(connection(name))
    for old, new in (values or {}).items():
        assert old in text
        text = text.replace(old, new)
    monkeypatch.setenv("AIRFLOW_CONN_DOCUMENTED", text)
    return "documented"


def test_buckets_of_the_page_become_settings_of_their_stores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    key = tmp_path / "key.json"
    key.write_text('{"private_key": "x"}')
    google = {"/etc/airflow/calls-key.json": str(key)}
    aws = {"aws_access_key_id", "aws_secret_access_key", "aws_region"}
    for name, values, uri, settings in (
        ("bucket-s3-compatible", {}, "s3://calls/", aws | {"aws_endpoint"}),
        ("bucket-aws", {}, "s3://calls/", aws),
        (
            "bucket-google",
            google,
            "gs://calls/",
            {"google_service_account_key"},
        ),
        ("bucket-azure", {}, "az://calls/", {"azure_storage_account_name", "azure_storage_account_key"}),
    ):
        assert set(storage_config(connected(monkeypatch, name, values), uri)) == settings


def test_role_of_the_page_is_asked_of_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def get_credentials(self: Any) -> Any:
        asked.append(self.conn_config.role_arn)
        return SimpleNamespace(access_key="k", secret_key="s", token="t")

    monkeypatch.setattr(
        "airflow.providers.amazon.aws.hooks.base_aws.AwsGenericHook.get_credentials", get_credentials
    )
    config = storage_config(connected(monkeypatch, "bucket-aws-role"), "s3://calls/")
    assert config["aws_session_token"] == "t"
    assert asked == ["arn:aws:iam::123456789012:role/calls"]


def test_rest_catalog_of_the_page_signs_its_requests(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    lake = s3.lake()
    values = {
        "https://s3tables.eu-central-1.amazonaws.com/iceberg": lake.properties["uri"],
        "arn:aws:s3tables:eu-central-1:123456789012:bucket/lake": lake.properties["warehouse"],
        "eu-central-1": lake.properties["s3.region"],
        "ACCESS_KEY": s3.access_key,
        "SECRET_KEY": s3.secret_key,
        # Of S3 itself there is no other endpoint to name.
        '"s3.region"': f'"s3.endpoint": "{s3.endpoint}", "s3.region"',
    }
    catalog = open_catalog(connected(monkeypatch, "catalog-rest-sigv4", values))
    catalog.create_namespace("speech")
    assert catalog.list_namespaces() == [("speech",)]


def test_rest_catalog_of_the_page_gets_a_token_for_its_client(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    class Catalog(BaseHTTPRequestHandler):
        def _answer(self, value: Any) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(value).encode())

        def do_POST(self) -> None:
            asked.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self._answer({"access_token": "tok", "token_type": "bearer", "expires_in": 3600})

        def do_GET(self) -> None:
            asked.append(f"{self.headers['Authorization']} {self.path}")
            self._answer({"defaults": {}, "overrides": {}})

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Catalog) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            here = f"http://127.0.0.1:{server.server_port}/api/catalog"
            values = {"https://catalog.example.com/api/catalog": here}
            open_catalog(connected(monkeypatch, "catalog-rest", values))
        finally:
            server.shutdown()
    sign_in, config, *_ = asked
    assert {"client_id=CLIENT_ID", "client_secret=CLIENT_SECRET"} <= set(sign_in.split("&"))
    assert "scope=PRINCIPAL_ROLE%3AALL" in sign_in
    assert config == "Bearer tok /api/catalog/v1/config?warehouse=speech"


def test_glue_of_the_page_is_opened_in_its_region(monkeypatch: pytest.MonkeyPatch) -> None:
    catalog = open_catalog(connected(monkeypatch, "catalog-glue"))
    assert type(catalog).__name__ == "GlueCatalog"
    assert catalog.properties["warehouse"] == "s3://lake/warehouse"
    assert catalog.glue.meta.region_name == "eu-central-1"  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("name", "master", "mode"),
    [
        ("spark-standalone", "spark://spark-master.example.com:7077", None),
        ("spark-yarn", "yarn", "client"),
        ("spark-kubernetes", "k8s://https://kubernetes.example.com:6443", "cluster"),
    ],
)
def test_clusters_of_the_page_are_those_that_spark_submit_is_told(
    name: str, master: str, mode: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    spark = check_spark_connection(connected(monkeypatch, name), None)
    assert spark_master(spark) == master
    assert spark.extra_dejson.get("deploy-mode") == mode
