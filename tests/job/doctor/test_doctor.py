"""What the doctor finds on this host, which has no GPU."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import ctranslate2
import pytest
from docs_blocks import named_block

from whisper_spark import WhisperOptions
from whisper_spark.doctor.__main__ import main
from whisper_spark.doctor.checks import Check, checked, ok, table
from whisper_spark.doctor.places import check_disk, check_model, check_source, check_staging
from whisper_spark.engine.packages import PACKAGES, is_wanted

ROOT = Path(__file__).resolve().parents[3]


def doctor(capsys: pytest.CaptureFixture[str], options: str, *arguments: str) -> tuple[int, str]:
    status = main(["--options", options, *arguments])
    return status, capsys.readouterr().out


# --- on this host ----------------------------------------------------------------------------------------


@pytest.mark.skipif(ctranslate2.get_cuda_device_count() > 0, reason="there is a GPU")
def test_host_with_a_cpu_and_a_model_transcribes_the_clip(
    model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    places = ["--spark", "--source", str(ROOT / "demo" / "audio"), "--staging", str(tmp_path / "staging")]
    status, shown = doctor(capsys, f'{{"model": "{model_dir}"}}', *places)
    assert status == 0, shown
    assert "10 checks: 0 failed, 0 with a warning" in shown
    for words in (
        rf"ok +Python +{sys.version_info.major}\.{sys.version_info.minor}\.\d+, {sys.executable}",
        r"ok +packages +pyspark 4\.2\.0, .*ctranslate2 4",
        r"ok +FFmpeg +PyAV \d+.*libavcodec",
        r"ok +ONNX Runtime .*CPUExecutionProvider",
        r"ok +NVIDIA driver +none: the CPU is used",
        r"ok +disk +models in /.* GB free",
        r"ok +model .*0\.15 GB",
        r"ok +known clip +'He was not an ill-disposed young man\.' on CPU \(\d+ x 1 threads\)",
    ):
        assert re.search(words, shown), words
    # The object that was written to staging is gone.
    assert [path for path in (tmp_path / "staging").rglob("*") if path.is_file()] == []


def test_missing_model_and_missing_gpu_fail_with_host_and_fix(capsys: pytest.CaptureFixture[str]) -> None:
    if ctranslate2.get_cuda_device_count():
        pytest.skip("there is a GPU")
    status, shown = doctor(capsys, '{"model": "/no/such/model", "device": "cuda"}')
    assert status == 1
    assert re.search(r"failed +NVIDIA driver .*libcuda\.so\.1.*\n +fix: install the NVIDIA driver", shown)
    assert re.search(rf"there is no folder /no/such/model on host {os.uname().nodename}", shown)
    # Nothing is transcribed with a device or a model that failed.
    assert "known clip" not in shown


def test_both_models_are_checked_if_speakers_are_told_apart(model_dir: Path, tmp_path: Path) -> None:
    options = WhisperOptions(model=str(model_dir), diarize=True, speaker_model=str(tmp_path))
    missing = check_model(options, {})
    assert (missing.status, "must hold one .onnx file" in missing.found) == ("failed", True)
    (tmp_path / "voices.onnx").write_bytes(b"x")
    found = check_model(options, {})
    assert found.status == "ok"
    assert re.search(rf"{model_dir}.*; {tmp_path}, .* GB in {tmp_path}", found.found)
    (tmp_path / "voices.onnx").unlink()
    assert check_model(replace(options, diarize=False), {}).status == "ok"


def test_wrong_options_are_told_before_anything_is_checked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--options", '{"device": "gpu"}']) == 2
    said = capsys.readouterr()
    assert "device" in said.err
    assert said.out == ""


def test_host_without_any_package_gets_one_command_for_all() -> None:
    # -S: this interpreter without the packages that are installed for it.
    command = [sys.executable, "-S", "-m", "whisper_spark.doctor", "--spark"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "spark_jobs")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1, done.stderr
    names = "pyspark, pandas, pyarrow, obstore, numpy, faster-whisper, ctranslate2"
    assert f"missing: {names}" in done.stdout
    assert f"fix: {sys.executable} -m pip install 'pyspark==4.2.0' 'pandas>=2.2,<3'" in done.stdout


def test_packages_are_those_that_the_project_declares() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    declared = {*project["dependencies"], *extras["spark"], *extras["whisper"]}
    for package in PACKAGES:
        if package.wanted:
            assert f"{package.name}{package.wanted}" in declared
    needed = {re.split(r"[<>=\[]", requirement)[0] for requirement in extras["whisper"]}
    assert needed <= {package.name for package in PACKAGES}


@pytest.mark.parametrize(
    ("version", "wanted", "answer"),
    [
        ("2.3.3", ">=2.2,<3", True),
        ("3.0.6", ">=2.2,<3", False),
        ("2.10", ">=2.2,<3", True),
        ("4.2.0", "==4.2.0", True),
        ("4.1.0", "==4.2.0", False),
        ("4.2.0.dev1", "==4.2.0", True),
        ("?", ">=2.2,<3", True),
        ("1.0", "", True),
    ],
)
def test_versions_are_compared_as_numbers(version: str, wanted: str, answer: bool) -> None:
    assert is_wanted(version, wanted) is answer


# --- places ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "gigabytes", "status"),
    [
        ("large-v3", 9, "ok"),
        ("large-v3", 7, "warning"),
        ("s3://models/large-v3", 7, "warning"),
        ("/models/large-v3", 7, "ok"),
        ("file:///models/large-v3", 7, "ok"),
        ("/models/large-v3", 0.5, "warning"),
    ],
)
def test_disk_must_have_room_for_a_model_that_is_fetched(
    monkeypatch: pytest.MonkeyPatch, model: str, gigabytes: float, status: str
) -> None:
    usage = shutil.disk_usage("/")._replace(free=int(gigabytes * 1e9))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    assert check_disk(WhisperOptions(model=model)).status == status


def test_staging_that_cannot_be_written_says_who_needs_which_right(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check = check_staging(f"{tmp_path}/file/below", {})
    assert check.status == "failed"
    assert "write, read and delete" in check.fix


def test_empty_source_is_a_warning_that_names_it(tmp_path: Path) -> None:
    check = check_source(f"file://{tmp_path}/none", {})
    assert (check.status, check.found) == ("warning", f"there is nothing under file://{tmp_path}/none")


def test_store_without_the_right_key_is_told(s3: Any) -> None:
    bucket = s3.bucket("calls")
    source, staging = f"s3://{bucket}/raw/", f"s3://{bucket}/staging/"
    wrong = {**s3.config, "aws_secret_access_key": "wrong"}
    for check in (check_source(source, wrong), check_staging(staging, wrong)):
        assert check.status == "failed"
        assert "no permission" in check.found
        assert "wrong" not in check.found
    assert check_staging(staging, s3.config).status == "ok"


# --- the table ---


def test_table_says_once_what_all_executors_found_and_names_them_where_they_differ() -> None:
    bad = Check("disk", "warning", "1 GB free", "free some space")
    lines = list(
        table("host a", {"executor 0": [ok("Python", "3.11"), ok("disk", "9 GB")], "executor 1": [
            ok("Python", "3.11"), bad]})
    )  # fmt: skip
    assert [" ".join(line.split()) for line in lines] == [
        "host a",
        "ok Python 3.11",
        "ok disk executor 0: 9 GB",
        "warning disk executor 1: 1 GB free",
        "fix: free some space",
    ]


def test_check_that_breaks_does_not_stop_the_others() -> None:
    def broken() -> Check:
        raise OSError("unexpected")

    check = checked("disk", broken)
    assert (check.status, check.found) == ("failed", "OSError: unexpected")


# --- docs/gpus.md ---


def test_check_of_the_docs_packs_the_job_and_has_arguments_that_it_takes(tmp_path: Path) -> None:
    from whisper_spark.job import parser

    block = named_block("check of a cluster")
    # In place of Spark.
    (tmp_path / "spark-submit").write_text(
        '#!/bin/sh\nprintf "%s\\n" "$PWD" "$@" > "$(dirname "$0")/words"\n'
    )
    (tmp_path / "spark-submit").chmod(0o755)
    path = os.pathsep.join([str(tmp_path), str(Path(sys.executable).parent), os.environ["PATH"]])
    script = block.text.replace("/tmp/", f"{tmp_path}/")
    subprocess.run(["bash", "-e", "-c", script], check=True, env={**os.environ, "PATH": path})
    folder, *words = (tmp_path / "words").read_text().splitlines()
    job = words.index("whisper_spark/job.py")
    assert Path(folder, words[job]).is_file()
    archive = words[words.index("--py-files") + 1]
    packed = "import whisper_spark as w; print(w.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", packed],
        env={"PYTHONPATH": archive},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(archive)
    arguments = parser().parse_args(words[job + 1 :])
    assert arguments.check
    assert WhisperOptions(**json.loads(arguments.options)).device == "cuda"


def test_discovery_script_of_the_docs_prints_what_spark_reads(tmp_path: Path) -> None:
    script = tmp_path / "gpus.sh"
    script.write_text(named_block("discovery script").text)
    # A stand-in for nvidia-smi on a host with two GPUs.
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\nprintf '0\\n1\\n'\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(["bash", str(script)], capture_output=True, text=True, env=environment, check=True)
    assert json.loads(done.stdout) == {"name": "gpu", "addresses": ["0", "1"]}
