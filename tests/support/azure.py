"""Run Azurite, Microsoft's emulator of Azure Blob Storage. ``make azurite`` installs it."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit

from servers import free_ports, stop

from whisper_spark.storage.objects import ObjectStorage

ACCOUNT = "whispertests"
KEY = base64.b64encode(b"a key that nothing else knows, 64 bytes long, as Azure's own are.").decode()
READY_SECONDS = 60


@dataclass(frozen=True)
class Azure:
    """A running emulator with one account."""

    endpoint: str

    @property
    def config(self) -> dict[str, str]:
        """Configuration for ``ObjectStorage(config)``, with obstore's keys."""
        return {
            "azure_storage_account_name": ACCOUNT,
            "azure_storage_account_key": KEY,
            "azure_storage_endpoint": self.endpoint,
        }

    @property
    def connection(self) -> str:
        """An Airflow connection of type ``wasb`` as JSON, for ``AIRFLOW_CONN_<ID>``."""
        return json.dumps({"conn_type": "wasb", "host": self.endpoint, "login": ACCOUNT, "password": KEY})


def azurite_binary() -> str | None:
    """The emulator that ``make azurite`` has installed, or the one on the path."""
    made = (
        Path(__file__).resolve().parents[2] / ".cache" / "azurite" / "node_modules" / ".bin" / "azurite-blob"
    )
    return str(made) if made.exists() else shutil.which("azurite-blob")


@contextmanager
def azurite(binary: str, folder: Path) -> Iterator[Azure]:
    """Start the emulator with its data in ``folder``, and stop it at the end."""
    (port,) = free_ports(1)
    command = [binary, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--location", str(folder)]
    command += ["--silent", "--disableTelemetry", "--skipApiVersionCheck"]
    environment = {**os.environ, "AZURITE_ACCOUNTS": f"{ACCOUNT}:{KEY}"}
    log = folder / "azurite.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
    try:
        deadline = time.monotonic() + READY_SECONDS
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Azurite did not come up; the end of its log:\n{log.read_text()[-3000:]}")
            time.sleep(0.1)
        yield Azure(f"http://127.0.0.1:{port}/{ACCOUNT}")
    finally:
        stop(process)


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def create_container(azure: Azure, name: str) -> ObjectStorage:
    """Create a container through Azure's REST API, and return a storage that can access it."""
    assert _put(azure, name, b"", {}, "restype=container") == 201
    return ObjectStorage(azure.config)


def put_blob(azure: Azure, container: str, name: str, data: bytes) -> int:
    """Create a blob whose name obstore may refuse. Returns the HTTP status of the answer."""
    return _put(azure, f"{container}/{quote(name)}", data, {"x-ms-blob-type": "BlockBlob"})


def container_sas(container: str) -> str:
    """A signature (SAS) that allows to list and to read the blobs of a container for an hour.

    https://learn.microsoft.com/rest/api/storageservices/create-service-sas#version-2020-12-06-and-later
    """
    version, expiry = "2021-08-06", (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    text = f"rl\n\n{expiry}\n/blob/{ACCOUNT}/{container}\n\n\n\n{version}\nc\n\n\n\n\n\n\n"
    return urlencode({"sp": "rl", "se": expiry, "sv": version, "sr": "c", "sig": _signature(text)})


def _signature(text: str) -> str:
    return base64.b64encode(hmac.digest(base64.b64decode(KEY), text.encode(), hashlib.sha256)).decode()


def _put(azure: Azure, path: str, data: bytes, headers: dict[str, str], query: str = "") -> int:
    """Send a request to a path as it is, signed with the account's key."""
    date = datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
    headers = {**headers, "x-ms-date": date, "x-ms-version": "2021-08-06"}
    signed = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
    resource = f"/{ACCOUNT}/{ACCOUNT}/{path}" + (f"\n{query.replace('=', ':')}" if query else "")
    text = f"PUT\n\n\n{len(data) or ''}\n\n\n\n\n\n\n\n\n{signed}{resource}"
    headers |= {"Authorization": f"SharedKey {ACCOUNT}:{_signature(text)}", "Content-Length": str(len(data))}
    address = urlsplit(azure.endpoint)
    connection = http.client.HTTPConnection(address.netloc, timeout=30)
    try:
        connection.request("PUT", f"{address.path}/{path}" + (f"?{query}" if query else ""), data, headers)
        return connection.getresponse().status
    finally:
        connection.close()
