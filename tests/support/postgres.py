"""A PostgreSQL server for the metadata database of an Airflow, as production has one."""

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
    # What a test writes need not survive a power failure.
    "fsync=off",
    "synchronous_commit=off",
    # Each thread of Airflow may hold connections.
    "max_connections=300",
    "listen_addresses=127.0.0.1",
    # The workers of a killed scheduler live on and keep its connection open. If it was killed while it held
    # the lock on the pools, nothing would ever be queued again.
    "idle_in_transaction_session_timeout=60s",
)


@contextmanager
def postgres_server() -> Iterator[str]:
    """A server with an empty database, which is gone at the end.

    :return: SQLAlchemy's URL of the database.
    """
    # Not below pytest's folders: where root runs it they are root's alone, and the server refuses to be root.
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
        user = "postgres"  # Debian's package creates it
        shutil.chown(cwd, user)
    command = [str(_folder() / program), *arguments]
    # Not captured through a pipe: the server that pg_ctl leaves behind would hold it open.
    with (cwd / "programs.log").open("ab") as out:
        done = subprocess.run(command, stdout=out, stderr=out, cwd=cwd, user=user, check=False)
    if done.returncode:
        raise RuntimeError(f"{program} failed:\n{(cwd / 'programs.log').read_text()[-2000:]}")


def _folder() -> Path:
    """Where the server's programs are. Debian does not put them on the path."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pg_ctl"), key=lambda path: float(path.parts[4]))
    on_path = shutil.which("pg_ctl")
    if not found and not on_path:
        raise RuntimeError("PostgreSQL is missing: run `make postgres`")
    return found[-1].parent if found else Path(str(on_path)).resolve().parent
