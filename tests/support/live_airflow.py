"""Run a complete Airflow with ``airflow standalone``, and access its API."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
from postgres import postgres_server
from servers import free_ports

USER, PASSWORD = "admin", "a-password-for-tests"
READY_SECONDS = 180
# Maximum number of items per request: [api] maximum_page_limit.
MOST_LISTED = 100
# Seconds to wait for runs that take one or two minutes on an idle machine.
PATIENCE = 600
COMPONENTS = ("scheduler", "triggerer", "dag-processor", "api-server")
T = TypeVar("T")


def wait_for(what: str, look: Callable[[], T], seconds: float, *, every: float = 0.5) -> T:
    """Call ``look`` repeatedly until its result is true, and return the result."""
    deadline = time.monotonic() + seconds
    while True:
        answer = look()
        if answer:
            return answer
        if time.monotonic() > deadline:
            raise AssertionError(f"after {seconds:.0f} s still waiting for {what}; last seen: {answer!r}")
        time.sleep(every)


@dataclass
class LiveAirflow:
    """Scheduler, triggerer, DAG processor and API server, with PostgreSQL and the LocalExecutor."""

    home: Path
    url: str
    environment: dict[str, str] = field(repr=False)
    logs: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list, repr=False)
    _client: httpx.Client | None = field(default=None, repr=False)

    def start(self, command: str) -> None:
        """Start ``airflow COMMAND`` with its output in a log of that name."""
        with (self.logs / f"{command}.log").open("ab") as out:
            arguments = [sys.executable, "-m", "airflow", command]
            process = subprocess.Popen(
                arguments, env=self.environment, stdout=out, stderr=out, cwd=self.home, start_new_session=True
            )
        self.processes.append(process)

    def kill(self, component: str) -> None:
        """Kill a component with SIGKILL, as the kernel does when memory runs out."""
        found = [p for p in self._own_processes() if _component(p) == component]
        assert found, f"no {component} is running"
        for process in found:
            process.send_signal(signal.SIGKILL)
        psutil.wait_procs(found, timeout=10)

    def stop(self) -> None:
        """Stop all started processes and their descendants."""
        for process in self.processes:
            process.send_signal(signal.SIGINT)
        _, left = psutil.wait_procs(self._own_processes(), timeout=5)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for started in self.processes:
            started.wait()

    def _own_processes(self) -> list[psutil.Process]:
        # Find processes by session instead of by parent: children of a killed scheduler have another parent.
        sessions = {process.pid for process in self.processes}
        own = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, ProcessLookupError):
                if os.getsid(process.pid) in sessions:
                    own.append(process)
        return own

    # --- the API -----------------------------------------------------------------------------------------

    @property
    def client(self) -> httpx.Client:
        if self._client is None:
            token = httpx.post(f"{self.url}/auth/token", json={"username": USER, "password": PASSWORD})
            token.raise_for_status()
            headers = {"Authorization": f"Bearer {token.json()['access_token']}"}
            self._client = httpx.Client(base_url=f"{self.url}/api/v2/", headers=headers, timeout=60)
        return self._client

    def get(self, path: str, **params: Any) -> dict[str, Any]:
        answer = self.client.get(path, params=params)
        answer.raise_for_status()
        return dict(answer.json())

    def send(self, method: str, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        answer = self.client.request(method, path, json=dict(body))
        assert answer.is_success, f"{method} {path}: {answer.status_code} {answer.text}"
        return dict(answer.json())

    def wait_until_ready(self, dag_ids: list[str]) -> None:
        """Wait until every component has a heartbeat and the DAGs are parsed."""

        def ready() -> bool:
            assert self.processes[0].poll() is None, f"airflow standalone ended; see {self.logs}"
            with suppress(httpx.HTTPError):
                health = self.get("monitor/health")
                parts = ("scheduler", "triggerer", "dag_processor", "metadatabase")
                found = {dag["dag_id"] for dag in self.get("dags")["dags"]}
                return all(health[part]["status"] == "healthy" for part in parts) and found >= set(dag_ids)
            return False

        wait_for(f"Airflow with {dag_ids} at {self.url}", ready, READY_SECONDS)

    def pause(self, dag_id: str, paused: bool = True) -> None:
        self.send("PATCH", f"dags/{dag_id}", {"is_paused": paused})
        # Airflow starts and stops the watchers of a DAG when it parses its file, which it does soon after a
        # change.
        Path(self.environment["AIRFLOW__CORE__DAGS_FOLDER"], f"{dag_id}.py").touch()

    def unpause(self, *dag_ids: str) -> None:
        for dag_id in dag_ids:
            self.pause(dag_id, False)

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None, **body: Any) -> dict[str, Any]:
        return self.send(
            "POST", f"dags/{dag_id}/dagRuns", {"logical_date": None, "conf": dict(conf or {}), **body}
        )

    def runs(self, dag_id: str, **params: Any) -> list[dict[str, Any]]:
        """Return the runs of a DAG, newest first."""
        found = self.get(f"dags/{dag_id}/dagRuns", order_by="-run_after", limit=MOST_LISTED, **params)
        return list(found["dag_runs"])

    def run(self, dag_id: str, run_id: str) -> dict[str, Any]:
        return self.get(f"dags/{dag_id}/dagRuns/{run_id}")

    def tasks(self, dag_id: str, run_id: str) -> list[dict[str, Any]]:
        return list(
            self.get(f"dags/{dag_id}/dagRuns/{run_id}/taskInstances", limit=MOST_LISTED)["task_instances"]
        )

    def states(self, dag_id: str, run_id: str) -> dict[str, str]:
        """Return the state of each task: ``{"discover": "success", "register[1]": "skipped"}``."""
        return {
            task["task_id"].rpartition(".")[2]
            + (f"[{task['map_index']}]" if task["map_index"] >= 0 else ""): task["state"]
            for task in self.tasks(dag_id, run_id)
        }

    def finished(self, dag_id: str, run_id: str, seconds: float = PATIENCE) -> dict[str, Any]:
        """Wait until a run has finished, and return it."""

        def look() -> dict[str, Any] | None:
            run = self.run(dag_id, run_id)
            return run if run["state"] in ("success", "failed") else None

        return wait_for(f"run {run_id} of {dag_id}", look, seconds)

    def succeeded(self, dag_id: str, count: int) -> list[dict[str, Any]]:
        """Return a DAG's runs, newest first, once ``count`` of them have succeeded; empty until then.

        :raises AssertionError: if a run has failed.
        """
        runs = self.runs(dag_id)
        assert all(run["state"] != "failed" for run in runs), f"a run of {dag_id} failed; see {self.logs}"
        return runs if [run["state"] for run in runs].count("success") >= count else []

    def idle(self, *dag_ids: str) -> bool:
        """Whether none of the DAGs has a queued or running run."""
        return not any(
            run["state"] in ("queued", "running") for dag_id in dag_ids for run in self.runs(dag_id)
        )

    def events(self, **params: Any) -> list[dict[str, Any]]:
        """Asset events, newest first."""
        return list(
            self.get("assets/events", order_by="-timestamp", limit=MOST_LISTED, **params)["asset_events"]
        )

    def returned(self, dag_id: str, run_id: str, task_id: str) -> Any:
        """Return the return value of a task."""
        task = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}"
        return self.get(f"{task}/xcomEntries/return_value")["value"]

    def log(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> str:
        """Return the complete log of a task's last try."""
        path = f"dags/{dag_id}/dagRuns/{run_id}/taskInstances/{task_id}"
        task = self.get(f"{path}/{map_index}" if map_index >= 0 else path)
        lines = self.get(f"{path}/logs/{task['try_number']}", map_index=map_index, full_content=True)[
            "content"
        ]
        return "\n".join(str(line["event"]) if isinstance(line, dict) else str(line) for line in lines)


def _component(process: psutil.Process) -> str | None:
    """The Airflow component that a process runs: ``python .../airflow scheduler``, but not its forks."""
    with suppress(psutil.Error):
        arguments = process.cmdline()
        if len(arguments) >= 2 and arguments[-1] in COMPONENTS and "airflow" in arguments[-2]:
            return arguments[-1]
    return None


@contextmanager
def airflow_standalone(
    home: Path, logs: Path, dags: Path, settings: Mapping[str, str]
) -> Iterator[LiveAirflow]:
    """Run ``airflow standalone`` with its own database, ports and password, and stop it at the end.

    :param logs: folder for the logs of the components and of the tasks.
    :param settings: additional environment variables.
    """
    home.mkdir(parents=True)
    logs.mkdir(parents=True, exist_ok=True)
    passwords = home / "passwords.json"
    passwords.write_text(json.dumps({USER: PASSWORD}))
    port, trigger_logs, worker_logs = free_ports(3)
    url = f"http://127.0.0.1:{port}"
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("AIRFLOW_", "AWS_"))}
    environment = {
        **inherited,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYSPARK_PYTHON": sys.executable,
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(dags),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__FERNET_KEY": base64.urlsafe_b64encode(os.urandom(32)).decode(),
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": f"{USER}:admin",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API__SECRET_KEY": os.urandom(16).hex(),
        "AIRFLOW__API_AUTH__JWT_SECRET": os.urandom(32).hex(),
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(logs / "tasks"),
        "AIRFLOW__LOGGING__TRIGGER_LOG_SERVER_PORT": str(trigger_logs),
        "AIRFLOW__LOGGING__WORKER_LOG_SERVER_PORT": str(worker_logs),
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        # By default a restarted scheduler looks for the tasks of a killed one only every five minutes, and
        # considers a component dead after 30 seconds.
        "AIRFLOW__SCHEDULER__ORPHANED_TASKS_CHECK_INTERVAL": "10",
        "AIRFLOW__SCHEDULER__SCHEDULER_HEALTH_CHECK_THRESHOLD": "20",
        "AIRFLOW__TRIGGERER__TRIGGERER_HEALTH_CHECK_THRESHOLD": "20",
        # Parsing takes seconds of CPU time, and DAG files change only when they are paused or unpaused.
        "AIRFLOW__DAG_PROCESSOR__MIN_FILE_PROCESS_INTERVAL": "300",
        **settings,
    }
    # Use PostgreSQL instead of SQLite, Airflow's default, in which concurrent writes of two components fail.
    with postgres_server() as database:
        environment["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"] = database
        airflow = LiveAirflow(home, url, environment, logs)
        airflow.start("standalone")
        try:
            yield airflow
        finally:
            airflow.stop()
