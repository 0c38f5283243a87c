"""The engine on one GPU, from object storage: speed, word errors, where the time goes, how busy the GPU is.

    .venv/bin/python benchmarks/gpu.py                         writes the tables into RESULTS.md
    .venv/bin/python benchmarks/gpu.py --models base /models/large-v3-turbo --hours 50
    .venv/bin/python benchmarks/gpu.py --device cpu --hours 0 --corpus clips-quick      tries the script out

Each model and corpus is a process of its own. The audio lies in a real S3 server on this machine (SeaweedFS)
and is read from there; ``--local`` reads files instead. A corpus of minutes says nothing about a GPU, so it
is read again and again until there are ``--hours`` of it. The clock runs from the first file that is asked
for to the last transcript; loading the model is reported apart.

``base`` is the packaged whisper-base. Other models are names for the hub, folders or URIs; one that cannot be
had is reported and left out.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from note import NOTE, table, write_block

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests")]

CORPORA = ("clips", "calls", "long")
HOURS = 20.0
SAMPLE_MS = 200
NO_DEVICE = 2
"""Exit status when there is no GPU."""


# --- one process -----------------------------------------------------------------------------------------


class GpuWatch:
    """Samples the load of a GPU with ``nvidia-smi`` for as long as the block runs; nothing without it."""

    def __init__(self, index: int) -> None:
        self._command = [
            "nvidia-smi",
            f"--id={index}",
            "--query-gpu=utilization.gpu,memory.used,power.draw",
            "--format=csv,noheader,nounits",
            f"--loop-ms={SAMPLE_MS}",
        ]
        self._process: subprocess.Popen[str] | None = None
        self._samples: list[list[float]] = []
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> GpuWatch:
        if shutil.which("nvidia-smi"):
            self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._process:
            self._process.terminate()
            self._process.wait()
            self._thread.join()

    def _read(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with contextlib.suppress(ValueError):  # "[N/A]" on some cards
                self._samples.append([float(value) for value in line.split(",")])

    def result(self) -> dict[str, float]:
        """Share of samples' time with a kernel running (percent), peak memory (MiB) and power (W)."""
        if not self._samples:
            return {}
        load, memory, power = zip(*self._samples, strict=True)
        return {"load": statistics.mean(load), "memory": max(memory), "power": statistics.mean(power)}


def visible_index(index: int) -> int:
    """The driver's number of a GPU that this process knows under another one."""
    visible = [entry for entry in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if entry.isdigit()]
    return int(visible[index]) if index < len(visible) else index


def run_one(arguments: argparse.Namespace) -> dict[str, Any]:
    """Transcribe one corpus with one model in this process."""
    from whisper_spark import WhisperOptions
    from whisper_spark.engine import AudioFile, Engine
    from whisper_spark.model import choose_device
    from whisper_spark.objects import ObjectStorage
    from whisper_spark.progress import Progress

    task = json.loads(arguments.one)
    options = WhisperOptions(**{"model": task["model"], "device": arguments.device, **task["options"]})
    device = choose_device(options)
    started = time.monotonic()
    engine = Engine(options)
    loaded = time.monotonic() - started
    progress = Progress()
    texts: dict[str, list[Any]] = {}
    errors: list[str] = []
    processor = time.process_time()
    started = time.monotonic()
    watch = GpuWatch(visible_index(device.index)) if device.kind == "cuda" else contextlib.nullcontext()
    with watch:
        files = (AudioFile(uri) for uri in task["uris"])
        for transcript in engine.transcribe(files, ObjectStorage(task["storage"]), progress):
            if transcript.error_code:
                errors.append(f"{transcript.audio_uri}: {transcript.error_code} {transcript.error_message}")
            words = [[w.start, w.end, w.word] for s in transcript.segments for w in s.words or ()]
            texts[transcript.audio_uri.rsplit("/", 1)[1]] = [
                transcript.text or "",
                transcript.language,
                words,
            ]
        wall = time.monotonic() - started
    end = progress.snapshot()
    return {
        "device": device.name,
        "workers": device.workers,
        "files": end.files,
        "audio_s": end.audio_seconds,
        "wall_s": wall,
        "cpu_s": time.process_time() - processor,
        "load_s": loaded,
        "windows": end.windows,
        "retried": end.retried_windows,
        "stages": dict(end.stages),
        "threads_busy": end.device_busy,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "gpu": watch.result() if isinstance(watch, GpuWatch) else {},
        "texts": texts,
        "errors": errors,
        "engine": engine.version,
    }


# --- all of them -----------------------------------------------------------------------------------------


def require_device(kind: str) -> str:
    """The name of the device, before anything is made or started for it.

    :raises SystemExit: with :data:`NO_DEVICE` when there is no such device.
    """
    from whisper_spark import WhisperOptions
    from whisper_spark.model import UnusableDeviceError, choose_device

    try:
        device = choose_device(WhisperOptions(device=kind))
    except UnusableDeviceError as error:
        print(f"no CUDA device: {error}", file=sys.stderr)
        raise SystemExit(NO_DEVICE) from None
    if device.kind != "cuda" or not shutil.which("nvidia-smi"):
        return device.name
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    query.append(f"--id={visible_index(device.index)}")
    return subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip() or device.name


@contextlib.contextmanager
def stored(folders: Sequence[Path], local: bool) -> Iterator[tuple[dict[str, str], dict[Path, str]]]:
    """Configuration of a storage that holds the folders, and the URI of each."""
    if local:
        yield {}, {folder: f"file://{folder}" for folder in folders}
        return
    from servers import s3_server

    from whisper_spark.objects import ObjectStorage

    with tempfile.TemporaryDirectory() as data, s3_server(Path(data)) as server:
        storage, bucket = ObjectStorage(server.config), server.bucket("bench")
        for folder in folders:
            for path in folder.iterdir():
                storage.upload(path, f"s3://{bucket}/{folder.name}/{path.name}")
        yield server.config, {folder: f"s3://{bucket}/{folder.name}" for folder in folders}


def repeated(names: Sequence[str], seconds: float, hours: float) -> list[str]:
    """The names, again and again until there are so many hours; once at least."""
    return [*names] * max(1, round(hours * 3600 / seconds))


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Every model on every corpus."""
    from corpus import corpus, references

    results = []
    folders = {name: corpus(name) for name in arguments.corpus}
    with stored(list(folders.values()), arguments.local) as (storage, uris):
        for model in arguments.models:
            for name, folder in folders.items():
                own = references(folder)
                once = sum(reference.seconds for reference in own)
                names = repeated([reference.file for reference in own], once, arguments.hours)
                task = {
                    "model": _model(model),
                    "options": arguments.options,
                    "storage": storage,
                    "uris": [f"{uris[folder]}/{file}" for file in names],
                }
                result = _in_a_process(arguments, task)
                results.append({"model": model, "corpus": name, **result})
                print(_line(results[-1]), flush=True)
                if "failed" in result:
                    break  # the model, not the corpus
                results[-1]["score"] = _score(own, result.pop("texts"))
    return results


def _model(name: str) -> str:
    from assemble_model import assemble

    return str(assemble()) if name == "base" else name


def _in_a_process(arguments: argparse.Namespace, task: dict[str, Any]) -> dict[str, Any]:
    # The task holds credentials of the test server only, and may be longer than an argument can be.
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file, tempfile.NamedTemporaryFile() as output:
        json.dump(task, file)
        file.flush()
        command = [sys.executable, __file__, "--device", arguments.device, "--one", file.name]
        done = subprocess.run(
            [*command, "--output", output.name], stderr=subprocess.PIPE, text=True, check=False
        )
        if done.returncode:
            return {"failed": (done.stderr.strip().splitlines() or ["?"])[-1][:300]}
        result: dict[str, Any] = json.loads(Path(output.name).read_bytes())
        return result


def _score(own: Sequence[Any], texts: dict[str, list[Any]]) -> dict[str, Any]:
    from scoring import Errors, Heard, times, word_errors

    heard = {
        file: Heard(file, text, language, tuple((s, e, w) for s, e, w in words))
        for file, (text, language, words) in texts.items()
    }
    total = sum(word_errors(own, heard).values(), start=Errors())
    return {
        "wer": total.rate,
        "errors": [total.substitutions, total.deletions, total.insertions],
        "within": times(own, heard).within,
    }


def _line(result: dict[str, Any]) -> str:
    name = f"{result['model']} on {result['corpus']}"
    if "failed" in result:
        return f"{name}: failed: {result['failed']}"
    speed = result["audio_s"] / result["wall_s"]
    return f"{name}: {result['audio_s'] / 3600:.2f} h in {result['wall_s']:.1f} s, {speed:,.0f} x real time"


# --- tables ----------------------------------------------------------------------------------------------


def lines(results: Sequence[dict[str, Any]], device: str, local: bool) -> list[str]:
    """The tables as Markdown."""
    done = [result for result in results if "failed" not in result]
    head = [
        "model",
        "corpus",
        "hours",
        "× real time",
        "WER %",
        "S / D / I",
        "GPU busy %",
        "with windows at hand %",
    ]
    head += ["GPU MiB", "GPU W", "host MiB", "CPU s per audio h", "retried %", "load s"]
    rows = []
    for r in done:
        gpu, score, hours = r["gpu"], r["score"], r["audio_s"] / 3600
        rows.append(
            [
                r["model"],
                r["corpus"],
                f"{hours:.2f}",
                f"{r['audio_s'] / r['wall_s']:,.0f}" if hours > 1 else f"{r['audio_s'] / r['wall_s']:.1f}",
                f"{100 * score['wer']:.2f}",
                " / ".join(map(str, score["errors"])),
                f"{gpu['load']:.0f}" if gpu else "not measured",
                f"{100 * (r['threads_busy'] or 0):.0f}",
                f"{gpu['memory']:,.0f}" if gpu else "",
                f"{gpu['power']:.0f}" if gpu else "",
                f"{r['peak_mib']:,.0f}",
                f"{r['cpu_s'] / hours:.1f}",
                f"{100 * r['retried'] / max(r['windows'], 1):.1f}",
                f"{r['load_s']:.1f}",
            ]
        )
    stages = list(done[0]["stages"]) if done else []
    seconds = [
        [r["model"], r["corpus"], *(f"{r['stages'][name] / (r['audio_s'] / 3600):.2f}" for name in stages)]
        for r in done
    ]
    source = "local files" if local else "S3 (SeaweedFS) on the same machine"
    return [
        f"- device: {device}; host: {os.cpu_count()} cores, Python {platform.python_version()}",
        f"- measured: {datetime.now(UTC):%Y-%m-%d}, audio from {source}",
        *([f"- engine: {done[0]['engine']}"] if done else []),
        *(f"- {r['model']} could not be measured: {r['failed']}" for r in results if "failed" in r),
        "",
        *table(head, rows),
        "",
        "Seconds of threads for each hour of audio, by stage:",
        "",
        *table(["model", "corpus", *stages], seconds),
    ]


def main() -> None:
    arguments = _arguments()
    if arguments.one:
        arguments.one = Path(arguments.one).read_text()
        Path(arguments.output).write_text(json.dumps(run_one(arguments)))
        return
    device = require_device(arguments.device)
    results = measure(arguments)
    text = lines(results, device, arguments.local)
    print("", *text, sep="\n")
    if arguments.device == "cuda":
        write_block("gpu", text)
        print(f"\nwritten to {NOTE.relative_to(ROOT)}")
    failed = [error for result in results for error in result.get("errors", [])]
    print(*failed[:5], sep="\n", file=sys.stderr)
    sys.exit(bool(failed) or all("failed" in result for result in results))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--models", nargs="+", default=["base", "small"], metavar="MODEL")
    parser.add_argument("--corpus", nargs="+", default=[*CORPORA], metavar="NAME")
    parser.add_argument(
        "--hours", type=float, default=HOURS, help="of audio, for each (default: %(default)g)"
    )
    parser.add_argument(
        "--options", type=json.loads, default={}, help="as JSON, such as '{\"batch_size\": 96}'"
    )
    parser.add_argument("--local", action="store_true", help="read files instead of an S3 server")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--output", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
