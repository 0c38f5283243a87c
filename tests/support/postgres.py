"""A PostgreSQL server for Airflow's metadata database, as in production."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from servers import free_ports

USER = "airflow"
SETTINGS = (
    # The data of a test need not survive a power failure.
    "fsync=off",
    "synchronous_commit=off",
    # Each thread of Airflow may hold several connections.
    "max_connections=300",
    "listen_addresses=127.0.0.1",
    # The workers of a killed scheduler keep running and keep its connection open. If it was killed while it
    # held the lock on the pools, no task would ever be queued again.
    "idle_in_transaction_session_timeout=60s",
)


@contextmanager
def postgres_server() -> Iterator[str]:
    """Run a server with an empty database, and delete both at the end.

    :return: SQLAlchemy's URL of the database.
    """
    # Do not use pytest's folders: if root runs pytest, only root can read them, but the server refuses to run
    # as root.
    with tempfile.TemporaryDirectory(prefix="postgres-") as name:
        folder, (port,) = Path(name), free_ports(1)
        settings = (*SETTINGS, f"port={port}", f"unix_socket_directories={folder}")
        data, log = f"--pgdata={folder / 'data'}", f"--log={folder / 'log'}"
        options = "--options=" + " ".join(f"-c {setting}" for setting in settings)
        _run("initdb", data, f"--username={USER}", "--auth=trust", "--no-sync", cwd=folder)
        _run("pg_ctl", "start", "--wait", data, log, options, cwd=folder)
        try:
            yield f"postgresql+psycopg2://{USER}@127.0.0.1:{port}/postgres"
        finally:
            _run("pg_ctl", "stop", "--mode=immediate", data, cwd=folder)


def _run(program: str, *arguments: str, cwd: Path) -> None:
    user = None
    if os.geteuid() == 0:
        # Debian's package creates this user.
        user = "postgres"
        shutil.chown(cwd, user)
    command = [str(_folder() / program), *arguments]
    # Do not capture the output through a pipe: the server that pg_ctl starts would keep it open.
    with (cwd / "programs.log").open("ab") as out:
        done = subprocess.run(command, stdout=out, stderr=out, cwd=cwd, user=user, check=False)
    if done.returncode:
        raise RuntimeError(f"{program} failed:\n{(cwd / 'programs.log').read_text()[-2000:]}")


def _folder() -> Path:
    """Folder of the server's programs, which Debian does not put on the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), key=lambda path: float(path.parts[4]))
    on_path = shutil.which("pg_ctl")
    if not found and not on_path:
        raise RuntimeError("PostgreSQL is missing: run `make postgres`")
    return found[-1].parent if found else Path(str(on_path)).resolve().parent
