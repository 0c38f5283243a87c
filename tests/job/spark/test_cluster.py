"""Why executors do not start: what a standalone master says, and what GPUs need on other clusters."""

from __future__ import annotations

import json
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from whisper_spark.spark import cluster
from whisper_spark.spark.cluster import (
    ExecutorWatch,
    MasterUnreachableError,
    check_master,
    executor_size,
    explained_master,
    gpu_problem,
    why_no_executor,
)


def worker(cores: int, memory: int, gpus: int = 0, used: int = 0, state: str = "ALIVE") -> dict[str, Any]:
    """A worker as the page of Spark 4.2's master shows it. ``used``: its cores that are used."""
    return {
        "host": f"node-{cores}",
        "cores": cores,
        "coresfree": cores - used,
        "memory": memory,
        "memoryfree": memory,
        "resources": {"gpu": {"name": "gpu", "addresses": [*map(str, range(gpus))]}} if gpus else {},
        "resourcesused": {"gpu": {"name": "gpu", "addresses": []}} if gpus else {},
        "state": state,
    }


@contextmanager
def master(content: bytes | list[dict[str, Any]]) -> Iterator[dict[str, str]]:
    """Serves the page of a master. Yields the properties of a job for it."""
    if isinstance(content, list):
        content = json.dumps({"status": "ALIVE", "workers": content}).encode()

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        port = str(server.server_port)
        yield {"spark.master": "spark://127.0.0.1:7077", "spark.master.ui.port": port}
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


BIG = {"spark.executor.cores": "16", "spark.executor.memory": "24g"}


@pytest.mark.parametrize(
    ("workers", "conf", "words"),
    [
        (
            [worker(4, 8192), worker(8, 16384)],
            BIG,
            (
                "an executor needs 16 cores, 24,576 MiB of memory and 0 GPUs, and no worker is that large; "
                "the largest, node-8, has 8 cores, 16,384 MiB of memory and 0 GPUs: lower executor_cores"
            ),
        ),
        ([worker(16, 1024)], {"spark.executor.memory": "2g"}, "no worker is that large"),
        (
            [worker(16, 65536)],
            {"spark.executor.resource.gpu.amount": "1"},
            "needs 1 GPU, and no worker of spark://127.0.0.1:7077 offers that many: set spark.worker",
        ),
        ([], {}, "no worker is registered with spark://127.0.0.1:7077: start one"),
        ([worker(16, 65536, state="DEAD")], {}, "no worker is registered"),
        ([worker(16, 65536, used=10)], BIG, "are busy with other applications"),
        ([worker(16, 65536, gpus=1)], BIG, "executors are probably failing at their start: see their logs"),
    ],
    ids=["cores", "memory", "gpu", "none", "dead", "busy", "room"],
)
def test_master_knows_why_no_executor_starts(
    workers: list[dict[str, Any]], conf: dict[str, str], words: str
) -> None:
    with master(workers) as place:
        assert words in why_no_executor({**conf, **place})


@pytest.mark.parametrize("content", [b"<html>Airflow</html>", b"[]", b'{"status": "STANDBY"}'])
def test_page_of_something_else_says_nothing(content: bytes) -> None:
    with master(content) as place:
        reason = why_no_executor(place)
    assert "compare that with what one machine of the cluster offers" in reason
    port = place["spark.master.ui.port"]
    assert f"is not on port {port}: spark.master.ui.port in conf names another one" in reason


def test_other_clusters_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.urllib.request, "urlopen", lambda *_, **__: pytest.fail("asked"))
    reason = why_no_executor({"spark.master": "yarn"})
    assert "an executor needs 1 core, 1,024 MiB" in reason
    assert "ui.port" not in reason


@pytest.mark.parametrize(
    ("memory", "mib"),
    [("2g", 2048), ("512m", 512), ("512", 512), ("1t", 2**20), ("1048576k", 1024), ("4GB", 4096)],
)
def test_memory_is_read_as_spark_reads_it(memory: str, mib: int) -> None:
    assert executor_size({"spark.executor.memory": memory}).memory == mib


# --- GPUs ---

ASKED = {"spark.executor.resource.gpu.amount": "1"}
SCRIPT = {"spark.executor.resource.gpu.discoveryScript": "/opt/getGpusResources.sh"}


@pytest.mark.parametrize(
    ("conf", "words"),
    [
        ({"spark.master": "yarn"}, "spark.executor.resource.gpu.discoveryScript"),
        ({"spark.master": "k8s://https://h"}, "spark.executor.resource.gpu.discoveryScript"),
        ({"spark.master": "k8s://https://h", **SCRIPT}, "spark.executor.resource.gpu.vendor=nvidia.com"),
    ],
)
def test_gpus_that_executors_could_not_find_are_told_before_the_job(conf: dict[str, str], words: str) -> None:
    assert words in str(gpu_problem({**ASKED, **conf}))


@pytest.mark.parametrize(
    "conf",
    [
        {"spark.master": "yarn", **ASKED, **SCRIPT},
        {"spark.master": "yarn", **ASKED, "spark.resources.discoveryPlugin": "org.example.Plugin"},
        {"spark.master": "yarn"},
        {"spark.master": "spark://h:7077", **ASKED},
        {"spark.master": "k8s://h", **ASKED, **SCRIPT, "spark.executor.resource.gpu.vendor": "nvidia.com"},
    ],
)
def test_gpus_that_can_be_found_are_no_problem(conf: dict[str, str]) -> None:
    assert gpu_problem(conf) is None


# --- while a job waits ---


class WaitingContext:
    """A Spark context whose executors are so many from the n-th look on."""

    def __init__(self, conf: dict[str, str], executors: int = 0) -> None:
        self.master = conf["spark.master"]
        self._conf, self._executors = conf, executors

    def getConf(self) -> Any:  # noqa: N802
        return SimpleNamespace(getAll=self._conf.items)

    @property
    def _jsc(self) -> Any:
        # The driver counts as well.
        statuses = SimpleNamespace(size=lambda: self._executors + 1)
        return SimpleNamespace(sc=lambda: SimpleNamespace(getExecutorMemoryStatus=lambda: statuses))


@pytest.mark.parametrize(
    ("workers", "words"),
    [([worker(4, 8192)], "no worker is that large"), ([worker(16, 65536, used=10)], "are busy")],
)
def test_waiting_job_says_why_within_a_minute(
    workers: list[dict[str, Any]],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert cluster._UNCERTAIN_SECONDS < 60
    monkeypatch.setattr(cluster, "_CERTAIN_SECONDS", 0.0)
    monkeypatch.setattr(cluster, "_UNCERTAIN_SECONDS", 0.0)
    caplog.set_level(logging.WARNING, "whisper_spark")
    with master(workers) as place:
        context: Any = WaitingContext({**BIG, **place})
        with ExecutorWatch(context) as watch:
            watch._thread.join(30)
    [told] = [record.getMessage() for record in caplog.records]
    assert told.startswith("no executor has started yet: ")
    assert words in told


def test_job_with_an_executor_or_a_local_master_says_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cluster, "_CERTAIN_SECONDS", 0.0)
    monkeypatch.setattr(cluster, "_UNCERTAIN_SECONDS", 0.0)
    running: Any = WaitingContext({"spark.master": "spark://127.0.0.1:1"}, executors=1)
    with ExecutorWatch(running) as watch:
        watch._thread.join(30)
    local: Any = WaitingContext({"spark.master": "local[2]"})
    with ExecutorWatch(local) as watch:
        assert watch._thread.ident is None
    assert caplog.records == []


# --- the master ---------------------------------------------------------------------------------------------


def test_master_that_answers_is_found_among_several() -> None:
    with master([]) as page, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        down, up = closed.getsockname()[1], page["spark.master.ui.port"]
        check_master({"spark.master": f"spark://127.0.0.1:{down},127.0.0.1:{up}"}, tries=1)


# What Spark says about the port of the master's page, after a minute.
GAVE_UP = """An error occurred while calling None.org.apache.spark.sql.classic.SparkSession.
: java.lang.IllegalStateException: Cannot call methods on a stopped SparkContext.
This stopped SparkContext was created at:"""


def test_master_that_spark_gives_up_on_is_named_with_its_usual_port() -> None:
    told = r"^spark://h:8080 accepts connections, but does not answer as a Spark master.*7077"
    with (
        pytest.raises(MasterUnreachableError, match=told),
        explained_master({"spark.master": "spark://h:8080"}),
    ):
        raise RuntimeError(GAVE_UP)


@pytest.mark.parametrize(("master", "message"), [("yarn", GAVE_UP), ("spark://h:7077", "no such class")])
def test_other_errors_of_a_session_are_told_as_they_are(master: str, message: str) -> None:
    with pytest.raises(RuntimeError) as caught, explained_master({"spark.master": master}):
        raise RuntimeError(message)
    assert str(caught.value) == message


def test_master_that_does_not_answer_is_named_with_the_reason() -> None:
    # Bound, but not listening: nothing else can take the port meanwhile.
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(MasterUnreachableError) as failed:
            check_master({"spark.master": f"spark://{address}"}, tries=2, pause=0.01)
    assert f"cannot connect to the Spark master spark://{address}" in str(failed.value)
    assert "Connection refused" in str(failed.value)
    assert "Spark connection" in str(failed.value)
    with pytest.raises(MasterUnreachableError, match="host:port"):
        check_master({"spark.master": "spark://master"}, tries=1)


def test_masters_of_other_clusters_are_not_asked() -> None:
    for name in ("local[2]", "yarn", "k8s://https://no-such-host.example:6443"):
        check_master({"spark.master": name}, tries=1)
