"""The engine on one GPU, from object storage: speed, word errors, where the time goes, how busy the GPU is.

    .venv/bin/python benchmarks/gpu.py                         writes the tables into RESULTS.md
    .venv/bin/python benchmarks/gpu.py --models base /models/large-v3-turbo --hours 100 50
    .venv/bin/python benchmarks/gpu.py --device cpu --hours 0 --corpus clips-quick      tries the script out
    .venv/bin/python benchmarks/gpu.py --read results.json     writes the tables of a run on another machine

Ours, and what faster-whisper offers by itself (``gpu_process.py``), each in processes of their own; and in
Spark, on a standalone cluster that has the GPU (``gpu_spark.py``), the packaged job and the article's
method 3. The audio lies in a real S3 server on this machine (SeaweedFS), and ours reads it from there;
``--local`` reads files instead, as the engines in Spark do. A corpus of minutes says nothing about a GPU, so
ours reads it again and again until there are ``--hours`` of it: one number for all models, or one for each,
so that fast ones run as long as slow ones. The clock runs from the first file that is asked for to the last
transcript; loading the model is reported apart. In Spark it runs from ``spark-submit`` to its end, and
another column leaves out what passes before the first task. ``--processes`` share the GPU; in Spark they are
tasks with a fraction of ``spark.task.resource.gpu.amount``.

``base`` is the packaged whisper-base; ``turbo-shape`` and ``large-shape`` cost what large-v3-turbo and
large-v3 cost, and write the texts of whisper-base (``grow.py``). Other models are names for the hub, folders
or URIs; one that cannot be had is reported and left out.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import gpu_process
import gpu_spark
from contenders.common import Spoken
from grow import SHAPES, grown
from note import NOTE, table, write_block

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests" / "support")]

CORPORA = ("clips", "calls", "long")
OURS = ("ours", "spark")
IN_SPARK = ("spark", "spark-method3")
ENGINES = ("ours", "transcribe", "batched", *IN_SPARK)
MODELS = ("base", *SHAPES)
HOURS = {"base": 100.0, "turbo-shape": 40.0}
"""About three minutes of each on an H100, so that start-up hardly counts."""
OTHER_HOURS = 20.0
SAMPLE_MS = 200
NO_DEVICE = 2
"""Exit status when there is no GPU."""


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


def require_device(kind: str) -> tuple[str, int | None]:
    """The name of the device, before anything is made or started for it, and the driver's number of a GPU.

    :raises SystemExit: with :data:`NO_DEVICE` when there is no such device.
    """
    from whisper_spark import WhisperOptions
    from whisper_spark.decoding.device import UnusableDeviceError, choose_device

    try:
        device = choose_device(WhisperOptions(device=kind))
    except UnusableDeviceError as error:
        print(f"no CUDA device: {error}", file=sys.stderr)
        raise SystemExit(NO_DEVICE) from None
    if device.kind != "cuda" or not shutil.which("nvidia-smi"):
        return device.name, None
    index = visible_index(device.index)
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader", f"--id={index}"]
    name = subprocess.run(query, capture_output=True, text=True, check=False).stdout.strip()
    return name or device.name, index


@contextlib.contextmanager
def stored(folders: Sequence[Path], local: bool) -> Iterator[tuple[dict[str, str], dict[Path, str]]]:
    """Configuration of a storage that holds the folders, and the URI of each."""
    if local:
        yield {}, {folder: f"file://{folder}" for folder in folders}
        return
    from servers import s3_server

    from whisper_spark.storage.objects import ObjectStorage

    with tempfile.TemporaryDirectory() as data, s3_server(Path(data)) as server:
        storage, bucket = ObjectStorage(server.config), server.bucket("bench")
        for folder in folders:
            for path in folder.iterdir():
                storage.upload(path, f"s3://{bucket}/{folder.name}/{path.name}")
        yield server.config, {folder: f"s3://{bucket}/{folder.name}" for folder in folders}


def measure(arguments: argparse.Namespace, gpu: int | None) -> list[dict[str, Any]]:
    """Every model on every corpus."""
    from corpus import corpus, references

    results: list[dict[str, Any]] = []
    contenders = [
        (engine, count, weights)
        for engine in arguments.engines
        for count in (arguments.processes if engine in OURS else [1])
        for weights in (arguments.compute_types if engine in OURS else ["auto"])
    ]
    folders = {name: corpus(name) for name in arguments.corpus}
    hours = dict(zip(arguments.models, arguments.hours, strict=True))
    with stored(list(folders.values()), arguments.local) as (storage, uris):
        for model, name, contender in itertools.product(arguments.models, arguments.corpus, contenders):
            engine, count, weights = contender
            if any(result["model"] == model and "failed" in result for result in results):
                continue
            own = references(folders[name])
            once = sum(reference.seconds for reference in own)
            repeats = max(1, round(hours[model] * 3600 / once)) if engine in OURS else 1
            options = {"model": _model(model), "device": arguments.device, **arguments.options}
            if engine in OURS:
                options["compute_type"] = weights
            if engine in IN_SPARK:
                paths = [folders[name] / reference.file for reference in own]
                setting = gpu_spark.Setting(arguments.device, gpu or 0, count)
                found = _in_spark(engine, options, paths, repeats, setting, gpu)
            else:
                audio = [f"{uris[folders[name]]}/{reference.file}" for reference in own] * repeats
                found = _in_processes(engine, count, options, (storage, audio, str(folders[name])), gpu)
            result = {
                "model": model,
                "corpus": name,
                "engine": engine,
                "processes": count,
                "weights": weights,
                "audio_s": once * repeats,
                **found,
            }
            if "failed" not in result:
                result["score"] = _score(own, result.pop("heard"))
            print(_line(result), flush=True)
            results.append(result)
    return results


def _model(name: str) -> str:
    from assemble_model import assemble

    if name == "base":
        return str(assemble())
    return str(grown(name)) if name in SHAPES else name


def _in_spark(
    engine: str,
    options: dict[str, Any],
    files: Sequence[Path],
    repeats: int,
    setting: gpu_spark.Setting,
    gpu: int | None,
) -> dict[str, Any]:
    """What an engine in Spark makes of files."""
    with contextlib.nullcontext() if gpu is None else GpuWatch(gpu) as watch:
        try:
            found = gpu_spark.transcribe(engine, options, files, repeats, setting)
        # A model or a device can fail in any way.
        except Exception as error:
            return {"failed": f"{type(error).__name__}: {error}"[:1000]}
    return {"peak_mib": None, "gpu": watch.result() if watch else {}, **found}


def _in_processes(
    engine: str,
    count: int,
    options: dict[str, Any],
    task: tuple[dict[str, str], list[str], str],
    gpu: int | None,
) -> dict[str, Any]:
    """What processes that share the device make of a task, added up."""
    storage, uris, folder = task
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, context, gpu_process.enter, (context.Barrier(count),)) as pool:
        try:
            loaded = [pool.submit(gpu_process.load, engine, options) for _ in range(count)]
            seconds = [future.result() for future in loaded]
            with contextlib.nullcontext() if gpu is None else GpuWatch(gpu) as watch:
                shares = [uris[number::count] for number in range(count)]
                running = [pool.submit(gpu_process.transcribe, storage, share, folder) for share in shares]
                parts = [future.result() for future in running]
        except Exception as error:  # whatever a model or a device can do
            return {"failed": f"{type(error).__name__}: {error}"[:300]}
    busy = [part["threads_busy"] for part in parts if part["threads_busy"] is not None]
    return {
        **{name: sum(p[name] for p in parts) for name in ("cpu_s", "windows", "retried", "peak_mib")},
        "wall_s": max(part["wall_s"] for part in parts),
        "load_s": max(seconds),
        "stages": {name: sum(part["stages"][name] for part in parts) for name in parts[0]["stages"]},
        "threads_busy": statistics.mean(busy) if busy else None,
        "gpu": watch.result() if watch else {},
        "heard": {file: spoken for part in parts for file, spoken in part["heard"].items()},
        "errors": [error for part in parts for error in part["errors"]],
    }


def _score(own: Sequence[Any], spoken: dict[str, Spoken]) -> dict[str, Any]:
    from scoring import Errors, Heard, times, word_errors

    heard = {
        file: Heard(file, one.text, one.language, tuple(one.words or ())) for file, one in spoken.items()
    }
    total = sum(word_errors(own, heard).values(), start=Errors())
    return {
        "wer": total.rate,
        "errors": [total.substitutions, total.deletions, total.insertions],
        "within": times(own, heard).within,
    }


def _line(result: dict[str, Any]) -> str:
    name = f"{result['model']} on {result['corpus']}, {result['engine']} in {result['processes']}"
    if "failed" in result:
        return f"{name}: failed: {result['failed']}"
    speed = result["audio_s"] / result["wall_s"]
    return f"{name}: {result['audio_s'] / 3600:.2f} h in {result['wall_s']:.1f} s, {speed:,.0f} x real time"


# --- tables ----------------------------------------------------------------------------------------------


def lines(results: Sequence[dict[str, Any]], device: str, local: bool) -> list[str]:
    """The tables as Markdown."""
    from whisper_spark.engine.transcriber import engine_version

    done = [result for result in results if "failed" not in result]
    ours = [result for result in done if result["engine"] in OURS]
    stages = list(ours[0]["stages"]) if ours else []
    seconds = [
        [r["model"], r["corpus"], r["engine"], str(r["processes"]), r["weights"]]
        + [f"{r['stages'][name] / (r['audio_s'] / 3600):.2f}" for name in stages]
        for r in ours
    ]
    source = "local files" if local else "S3 (SeaweedFS) on the same machine"
    return [
        f"- device: {device}; host: {os.cpu_count()} cores, Python {platform.python_version()}",
        f"- measured: {datetime.now(UTC):%Y-%m-%d}, audio from {source}",
        f"- engine: {engine_version()}",
        *(f"- {r['model']} could not be measured: {r['failed']}" for r in results if "failed" in r),
        "",
        *table(list(_COLUMNS), [[show(r) for show in _COLUMNS.values()] for r in done]),
        "",
        "Seconds of threads for each hour of audio, by stage:",
        "",
        *table(["model", "corpus", "engine", "processes", "weights", *stages], seconds),
    ]


def _speed(result: dict[str, Any]) -> str:
    return _times_real_time(result["audio_s"] / result["wall_s"])


def _speed_of_tasks(result: dict[str, Any]) -> str:
    """That in Spark from the first task on, with loading the model."""
    if result["engine"] not in IN_SPARK or result["load_s"] is None:
        return ""
    return _times_real_time(result["audio_s"] / (result["wall_s"] - result["load_s"]))


def _times_real_time(speed: float) -> str:
    return f"{speed:,.0f}" if speed > 100 else f"{speed:.1f}"


_COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "model": lambda r: r["model"],
    "corpus": lambda r: r["corpus"],
    "engine": lambda r: r["engine"],
    "processes": lambda r: str(r["processes"]),
    "weights": lambda r: r["weights"],
    "hours": lambda r: f"{r['audio_s'] / 3600:.2f}",
    "× real time": _speed,
    "from first task": _speed_of_tasks,
    "WER %": lambda r: f"{100 * r['score']['wer']:.2f}",
    "S / D / I": lambda r: " / ".join(map(str, r["score"]["errors"])),
    "GPU busy %": lambda r: f"{r['gpu']['load']:.0f}" if r["gpu"] else "not measured",
    "with windows at hand %": lambda r: f"{100 * r['threads_busy']:.0f}" if r["threads_busy"] else "",
    "GPU MiB": lambda r: f"{r['gpu']['memory']:,.0f}" if r["gpu"] else "",
    "GPU W": lambda r: f"{r['gpu']['power']:.0f}" if r["gpu"] else "",
    "host MiB": lambda r: f"{r['peak_mib']:,.0f}" if r["peak_mib"] else "",
    "CPU s per audio h": lambda r: f"{r['cpu_s'] / (r['audio_s'] / 3600):.1f}",
    "retried %": lambda r: f"{100 * r['retried'] / r['windows']:.1f}" if r["windows"] else "",
    "load s": lambda r: f"{r['load_s']:.1f}" if r["load_s"] is not None else "",
}


def main() -> None:
    arguments = _arguments()
    if arguments.read:
        text = json.loads(arguments.read.read_text(encoding="utf-8"))["lines"]
        write_block("gpu", text)
        print(*text, f"\nwritten to {NOTE.relative_to(ROOT)}", sep="\n")
        return
    device, gpu = require_device(arguments.device)
    results = measure(arguments, gpu)
    text = lines(results, device, arguments.local)
    print("", *text, sep="\n")
    if arguments.save:
        arguments.save.write_text(json.dumps({"lines": text, "results": results}, indent=1), encoding="utf-8")
    elif arguments.device == "cuda":
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
    parser.add_argument("--models", nargs="+", default=[*MODELS], metavar="MODEL")
    parser.add_argument("--corpus", nargs="+", default=[*CORPORA], metavar="NAME")
    parser.add_argument(
        "--hours",
        type=float,
        nargs="+",
        help="of audio, for all models or for each (default: about three minutes of an H100)",
    )
    parser.add_argument(
        "--options", type=json.loads, default={}, help="as JSON, such as '{\"batch_size\": 32}'"
    )
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=[*ENGINES])
    parser.add_argument("--save", type=Path, metavar="FILE", help="write results to a file, not RESULTS.md")
    parser.add_argument("--read", type=Path, metavar="FILE", help="write the tables of such a file")
    parser.add_argument("--local", action="store_true", help="read files instead of an S3 server")
    parser.add_argument(
        "--processes",
        type=int,
        nargs="+",
        default=[1],
        help="or tasks in Spark that share the device (default: 1)",
    )
    parser.add_argument(
        "--compute-types",
        nargs="+",
        default=["auto"],
        metavar="TYPE",
        help="of our weights, such as float16 int8_float16 bfloat16 (default: auto)",
    )
    arguments = parser.parse_args()
    models: list[str] = arguments.models
    hours: list[float] = arguments.hours or [HOURS.get(model, OTHER_HOURS) for model in models]
    if len(hours) not in (1, len(models)):
        parser.error(f"--hours needs one number, or one for each model: {', '.join(models)}")
    arguments.hours = hours * (len(models) if len(hours) == 1 else 1)
    return arguments


if __name__ == "__main__":
    main()
