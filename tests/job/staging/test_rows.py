"""Rows become durable while the task still runs, and staging lists exactly those."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transcripts import make_transcript_rows

from whisper_spark import Segment, Transcript, WhisperOptions, Word
from whisper_spark.contract import Run, earlier_transcript_schema, run_folder, transcript_schema
from whisper_spark.job import main, parser, speed_options
from whisper_spark.spark.conf import local_cores, slots, spark_defaults, task_count
from whisper_spark.staging.result import (
    RunResult,
    StagedFile,
    StagingError,
    complete_result,
    finished_result,
    read_result,
    staged_files,
)
from whisper_spark.staging.rows import StagedRows, read_index, read_rows, task_index, write_table
from whisper_spark.storage.credentials import from_property, redaction_regex, to_properties
from whisper_spark.storage.objects import ObjectStorage, StorageError

PARTITION = {"dt": "2026-11-01", "hour": "13"}
OPTIONS = WhisperOptions(model="base")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(
        table="speech.calls",
        partition=PARTITION,
        source="file:///audio",
        options=OPTIONS,
        run_uri=run_folder(f"file://{tmp_path}", "speech.calls", PARTITION, OPTIONS.fingerprint(), "0" * 32),
        manifest_id="0" * 32,
    )


def transcript(name: str, **fields: Any) -> Transcript:
    words = (Word(0.0, 0.5, "hello", 0.9), Word(0.5, 1.0, " there", 0.8))
    segment = Segment(0, None, 0.0, 1.0, "hello there", "en", -0.2, 1.0, 0.01, words)
    return Transcript(
        audio_uri=f"file:///audio/{name}",
        text="hello there",
        segments=(segment,),
        transcribed_at=datetime(2026, 11, 2, tzinfo=UTC),
        **fields,
    )


class FlakyStorage(ObjectStorage):
    """Local files behind a store that refuses the first few writes."""

    def __init__(self, failures: int) -> None:
        super().__init__()
        self.failures = failures
        self.tries = 0

    def write_bytes(self, uri: str, data: bytes, *, if_absent: bool = False) -> bool:
        self.tries += 1
        if self.failures:
            self.failures -= 1
            raise StorageError(f"cannot access {uri}: the store is out for lunch")
        return super().write_bytes(uri, data, if_absent=if_absent)


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def uris(run: Run) -> list[str]:
    storage = ObjectStorage()
    found: list[str] = []
    for file in staged_files(storage, run.rows_uri):
        for batch in read_index(storage, file.uri):
            found += batch.column("audio_uri").to_pylist()
    return sorted(found)


def test_finished_rows_are_durable_while_the_next_file_is_still_transcribed(run: Run) -> None:
    storage = ObjectStorage()
    staged = StagedRows(storage, run, "part", "j-00000", flush_seconds=0.05)
    staged.add(transcript("a"))
    wait_until(lambda: bool(staged_files(storage, run.rows_uri)))
    assert uris(run) == ["file:///audio/a"]
    staged.add(transcript("b"))
    staged.close()
    assert uris(run) == ["file:///audio/a", "file:///audio/b"]


def test_many_rows_are_written_before_the_time_is_up(run: Run) -> None:
    with StagedRows(ObjectStorage(), run, "part", "j-00000", flush_seconds=3600, flush_bytes=1) as staged:
        staged.add(transcript("a"))
        assert uris(run) == ["file:///audio/a"]


MEMORY = """
import resource, sys
from whisper_spark.contract import Run, Transcript, WhisperOptions
from whisper_spark.staging.rows import StagedRows
from whisper_spark.storage.objects import ObjectStorage

folder, rows = sys.argv[1], int(sys.argv[2])
run = Run(
    table="t.t", partition={"dt": "x"}, source="file:///a", options=WhisperOptions(), run_uri=folder,
    manifest_id="0" * 32,
)
with StagedRows(ObjectStorage(), run, "part", "j", flush_seconds=3600) as staged:
    for number in range(rows):
        staged.add(Transcript(f"file:///a/{number}", status="error", error_code="corrupt"))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
def test_memory_of_waiting_rows_is_what_they_hold(tmp_path: Path) -> None:
    def megabytes(rows: int) -> int:
        command = [sys.executable, "-c", MEMORY, tmp_path.as_uri(), str(rows)]
        return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    # As batches of their own, these rows take 370 MB.
    assert megabytes(8_000) < megabytes(100) + 60


def test_single_rows_are_joined_and_none_is_lost(run: Run) -> None:
    names = [f"{number:04}" for number in range(600)]
    with StagedRows(ObjectStorage(), run, "part", "j-00000", flush_seconds=3600) as staged:
        for name in names:
            staged.add(transcript(name))
    assert uris(run) == [f"file:///audio/{name}" for name in names]
    assert [file.rows for file in staged.written] == [600]


def test_task_that_fails_keeps_what_it_finished(run: Run) -> None:
    def task() -> None:
        with StagedRows(ObjectStorage(), run, "part", "j-00000") as staged:
            staged.add(transcript("a"))
            raise RuntimeError("device lost")

    with pytest.raises(RuntimeError, match="device lost"):
        task()
    assert uris(run) == ["file:///audio/a"]


def test_outage_of_staging_loses_no_row(run: Run) -> None:
    storage = FlakyStorage(failures=2)
    with StagedRows(storage, run, "part", "j-00000", flush_seconds=0.05) as staged:
        staged.add(transcript("a"))
        wait_until(lambda: storage.tries >= 2)
        staged.add(transcript("b"))
    assert uris(run) == ["file:///audio/a", "file:///audio/b"]


def test_rows_that_cannot_be_written_fail_the_task(run: Run) -> None:
    staged = StagedRows(FlakyStorage(failures=99), run, "part", "j-00000", flush_seconds=3600)
    staged.add(transcript("a"))
    with pytest.raises(StorageError, match="out for lunch"):
        staged.close()


def test_staged_rows_have_the_schema_of_the_table(run: Run) -> None:
    with StagedRows(ObjectStorage(), run, "part", "j-00000") as staged:
        staged.add(transcript("a", quality_flags=("repetitive",)))
    (file,) = staged_files(ObjectStorage(), run.rows_uri)
    table = pq.read_table(file.uri.removeprefix("file://"), partitioning=None)
    assert table.schema.equals(transcript_schema(PARTITION))
    row = table.to_pylist()[0]
    assert (row["dt"], row["hour"]) == ("2026-11-01", "13")
    assert row["segments"][0]["words"][1] == {
        "start": 0.5,
        "end": 1.0,
        "word": " there",
        "probability": 0.8,
        "speaker": None,
    }


def test_names_tell_row_counts_and_other_files_are_no_rows(run: Run) -> None:
    storage = ObjectStorage()
    with StagedRows(storage, run, "part", "j-00000") as staged:
        staged.add_batch(make_transcript_rows(["a", "b", "c"], partition=PARTITION).to_batches()[0])
    storage.write_bytes(run.manifest_uri, b"no rows")
    storage.write_bytes(f"{run.rows_uri}/notes.txt", b"no rows")
    (file,) = staged_files(storage, run.siblings_uri)
    assert file.rows == 3
    assert file.bytes == storage.info(file.uri).size
    assert staged_files(storage, f"{run.run_uri}/nowhere") == []


def test_rows_are_read_by_position(run: Run) -> None:
    storage = ObjectStorage()
    names = [f"{number:05}" for number in range(3000)]
    with StagedRows(storage, run, "part", "j-00000") as staged:
        staged.add_batch(make_transcript_rows(names, partition=PARTITION).combine_chunks().to_batches()[0])
    (file,) = staged_files(storage, run.rows_uri)
    batches = read_rows(storage, file.uri, [2999, 0, 1023, 1024], PARTITION)
    read = [uri for batch in batches for uri in batch.column("audio_uri").to_pylist()]
    assert read == ["00000", "01023", "01024", "02999"]


def test_rows_of_an_earlier_release_are_reused_with_the_new_columns_empty(run: Run) -> None:
    storage = ObjectStorage()
    rows = make_transcript_rows(["a", "b"], partition=PARTITION)
    earlier = pa.Table.from_pylist(rows.to_pylist(), schema=earlier_transcript_schema(PARTITION))
    uri = f"{run.rows_uri}/part-0-0-2.parquet"
    write_table(storage, uri, earlier)
    (batch,) = read_rows(storage, uri, [1], PARTITION)
    assert batch.schema.equals(transcript_schema(PARTITION))
    assert batch.to_pylist() == rows.to_pylist()[1:]


@pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\xff" * 100 + b"PAR1", None], ids=str)
def test_damaged_file_has_no_rows_that_a_job_could_take_for_done(run: Run, content: bytes | None) -> None:
    storage = ObjectStorage()
    with StagedRows(storage, run, "part", "1") as staged:
        staged.add(transcript("a.wav"))
    (file,) = staged.written
    path = Path(file.uri.removeprefix("file://"))
    if content is None:
        # A flipped byte in the first page: the footer is as it was.
        good = path.read_bytes()
        content = good[:60] + bytes([good[60] ^ 255]) + good[61:]
    assert list(read_index(storage, file.uri))
    path.write_bytes(content)
    assert list(read_index(storage, file.uri)) == []


def test_file_that_another_job_has_deleted_since_it_was_listed_has_no_rows(run: Run) -> None:
    storage = ObjectStorage()
    with StagedRows(storage, run, "part", "1") as staged:
        staged.add(transcript("a.wav"))
    (listed,) = staged_files(storage, run.rows_uri)
    storage.delete([listed.uri])
    assert list(read_index(storage, listed.uri)) == []


def test_task_finds_only_its_own_rows(run: Run) -> None:
    storage = ObjectStorage()
    for name, audio in (("j-00000", "a"), ("j-00001", "b"), ("other-00000", "c")):
        with StagedRows(storage, run, "part", name) as staged:
            staged.add(transcript(audio, duration_s=3.5))
    index = task_index(storage, run.rows_uri, "j-00000")
    assert list(index) == ["file:///audio/a"]
    assert index["file:///audio/a"]["duration_s"] == 3.5


def result_of(run: Run, **fields: Any) -> RunResult:
    files = tuple(staged_files(ObjectStorage(), run.rows_uri))
    common = {"manifest_uri": run.manifest_uri, "manifest_id": run.manifest_id, "fingerprint": "f"}
    return RunResult(attempt_id="1", staged=files, **{**common, **fields})


def test_result_survives_json_and_ignores_fields_of_later_releases() -> None:
    staged = (StagedFile("s3://b/rows/x.parquet", 3, 99),)
    result = RunResult(
        manifest_uri="m", manifest_id="i", fingerprint="f", attempt_id="a", staged=staged, languages={"en": 3}
    )
    assert RunResult.from_json(result.to_json()) == result
    later = result.to_json().replace('"files"', '"invented_later": 1, "files"', 1)
    assert RunResult.from_json(later) == result


@pytest.mark.parametrize("text", [b"{", b"[]", b'"text"', b"{}", b'{"staged": 3}'])
def test_garbled_result_says_what_to_do(run: Run, text: bytes) -> None:
    ObjectStorage().write_bytes(run.result_uri, text)
    with pytest.raises(StagingError, match=r"result\.json.*Delete it"):
        read_result(run, ObjectStorage())


def test_result_of_another_manifest_is_refused(run: Run) -> None:
    storage = ObjectStorage()
    storage.write_bytes(run.result_uri, result_of(run, manifest_id="f" * 32).to_json().encode())
    with pytest.raises(StagingError, match="belongs to manifest ffff"):
        read_result(run, storage)


def test_run_is_finished_only_while_its_files_are_there(run: Run) -> None:
    storage = ObjectStorage()
    assert finished_result(run, storage) is None
    with StagedRows(storage, run, "part", "j-00000") as staged:
        staged.add(transcript("a"))
    assert finished_result(run, storage) is None
    result = result_of(run)
    storage.write_bytes(run.result_uri, result.to_json().encode())
    assert finished_result(run, storage) == result
    storage.delete([result.staged[0].uri])
    assert finished_result(run, storage) is None


def test_files_that_another_job_adds_do_not_unfinish_a_run(run: Run) -> None:
    storage = ObjectStorage()
    with StagedRows(storage, run, "part", "j-00000") as staged:
        staged.add(transcript("a"))
    result = result_of(run)
    storage.write_bytes(run.result_uri, result.to_json().encode())
    with StagedRows(storage, run, "part", "k-00000") as staged:
        staged.add(transcript("a"))
    assert finished_result(run, storage) == result


def test_errors_that_may_be_tried_again_leave_a_run_unfinished(run: Run) -> None:
    storage = ObjectStorage()
    result = result_of(run, errors=1, error_codes={"forbidden": 1}, retryable=1)
    storage.write_bytes(run.result_uri, result.to_json().encode())
    assert finished_result(run, storage) is None
    assert complete_result(run, storage) == result


# --- credentials ---------------------------------------------------------------------------------------


def test_credentials_survive_the_way_through_a_spark_property() -> None:
    config = {"aws_access_key_id": "k", "aws_secret_access_key": 's"=\n#é'}
    properties = to_properties({"source": config, "staging": {}})
    assert list(properties) == ["spark.whisper.secret.source"]
    assert from_property("source", properties["spark.whisper.secret.source"]) == config
    assert from_property("staging", None) == {}


@pytest.mark.parametrize("value", ["hunter2!", "aHVudGVyMg==", "WzFd"])
def test_unusable_credentials_are_not_repeated_in_the_message(value: str) -> None:
    with pytest.raises(ValueError, match=r"spark\.whisper\.secret\.model") as caught:
        from_property("model", value)
    assert value not in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_redaction_of_the_user_is_extended() -> None:
    assert redaction_regex(None) is None
    extended = redaction_regex("(?i)internal")
    assert extended is not None
    assert extended.startswith("(?i)internal|")
    assert redaction_regex(extended) == extended


# --- how Spark is asked to run it -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("conf", "cpus"),
    [
        ({"spark.master": "local[2]"}, "2"),
        ({"spark.master": "local"}, "1"),
        ({"spark.master": "local[3,2]"}, "3"),
        ({"spark.master": "spark://h:7077", "spark.executor.cores": "8"}, "8"),
        ({"spark.master": "spark://h:7077"}, None),
        ({"spark.master": "yarn", "spark.executor.cores": "8", "spark.task.cpus": "4"}, None),
        ({"spark.master": "local[2]", "spark.task.cpus": "8"}, "2"),
    ],
)
def test_one_engine_gets_the_cores_of_an_executor(conf: dict[str, str], cpus: str | None) -> None:
    assert spark_defaults(conf, OPTIONS).get("spark.task.cpus") == cpus


def test_local_master_without_a_number_is_one_core_and_a_cluster_is_not_local() -> None:
    assert local_cores("local") == 1
    assert (local_cores("local[*]") or 0) >= 1
    assert local_cores("local-cluster[2,1,1024]") is None
    assert local_cores("spark://local:7077") is None


def test_cuda_asks_for_one_gpu_unless_the_user_decided_otherwise() -> None:
    gpu = {"spark.executor.resource.gpu.amount": "1", "spark.task.resource.gpu.amount": "1"}
    cluster = {"spark.master": "spark://h:7077"}
    cuda = dataclasses.replace(OPTIONS, device="cuda")
    assert gpu.items() <= spark_defaults(cluster, cuda).items()
    assert not gpu.keys() & spark_defaults(cluster, OPTIONS).keys()
    assert not gpu.keys() & spark_defaults({"spark.master": "local[2]"}, cuda).keys()
    own = spark_defaults({**cluster, "spark.task.resource.gpu.amount": "0.5"}, cuda)
    assert "spark.task.resource.gpu.amount" not in own


def test_properties_of_the_user_are_left_alone() -> None:
    defaults = spark_defaults({"spark.speculation": "true", "spark.log.level": "INFO"}, OPTIONS)
    assert not {"spark.speculation", "spark.log.level"} & defaults.keys()


def test_slots_count_executors_that_are_still_on_their_way() -> None:
    conf = {"spark.task.cpus": "8", "spark.executor.cores": "8", "spark.executor.instances": "5"}
    assert slots(conf, parallelism=2) == 5
    assert slots({"spark.task.cpus": "4"}, parallelism=32) == 8
    assert slots({"spark.task.cpus": "2", "spark.cores.max": "12"}, parallelism=2) == 6
    dynamic = {"spark.dynamicAllocation.enabled": "true", "spark.dynamicAllocation.maxExecutors": "9"}
    assert slots({**conf, **dynamic}, parallelism=2) == 9
    assert slots({"spark.task.cpus": "16"}, parallelism=2) == 1


@pytest.mark.parametrize(("files", "tasks"), [(1, 1), (5, 5), (9, 8), (1600, 8), (1601, 32)])
def test_tasks_are_few_and_never_empty(files: int, tasks: int) -> None:
    assert task_count(files, slots=8) == tasks


@pytest.mark.parametrize(("files", "tasks"), [(1, 1), (1601, 8), (16_000, 8), (16_001, 32)])
def test_tasks_are_fewer_on_gpus_which_are_done_with_them_sooner(files: int, tasks: int) -> None:
    assert task_count(files, slots=8, gpu=True) == tasks


# --- command line ------------------------------------------------------------------------------------------


def test_options_that_only_change_speed_can_be_overridden() -> None:
    assert speed_options(OPTIONS, {"batch_size": 96, "device": "cpu"}) == dataclasses.replace(
        OPTIONS, batch_size=96, device="cpu"
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"language": "en"}, r"language cannot be changed here.*batch_size"),
        ({"batchsize": 3}, "batch_size"),
        ({"batch_size": "many"}, "batch_size must be int"),
    ],
)
def test_options_that_change_the_text_are_refused(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        speed_options(OPTIONS, overrides)


def test_help_shows_a_command_to_copy(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parser().parse_args(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "spark-submit --py-files whisper_spark.zip job.py --manifest" in shown
    assert "spark.whisper.secret.source" in shown
    assert "--engine" not in shown


@pytest.mark.parametrize(
    "arguments", [[], ["--manifest", "m", "--tasks", "0"], ["--manifest", "m", "--tasks", "x"]]
)
def test_wrong_arguments_end_with_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: spark-submit job.py" in capsys.readouterr().err
