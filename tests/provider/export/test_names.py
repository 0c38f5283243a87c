"""Names of exported files differ for all recordings, and what cannot be different is refused."""

from __future__ import annotations

import pytest

from airflow_whisper.export.names import ExportNames

DAY = {"dt": "2026-11-01"}
TEMPLATE = "s3://bucket/subtitles/{partition}/{name}.{format}"


def uri(audio: str, template: str = TEMPLATE, *, table: str = "speech.calls", dt: str = "2026-11-01") -> str:
    return ExportNames(template, DAY).uri(table, {"dt": dt}, audio, "srt")


def test_file_is_named_after_its_recording() -> None:
    name = uri("s3://calls/raw/a.mp3")
    assert name.startswith("s3://bucket/subtitles/dt=2026-11-01/a-")
    assert len(name) == len("s3://bucket/subtitles/dt=2026-11-01/a-.srt") + 16
    assert uri("s3://calls/raw/a.mp3") == name


@pytest.mark.parametrize("template", [TEMPLATE, "/exports/{id}.{format}", "gs://b/{format}/{name}"])
def test_recordings_of_the_same_name_get_different_files(template: str) -> None:
    recordings = [
        {"audio": "s3://one/a.mp3"},
        {"audio": "s3://two/a.mp3"},
        {"audio": "gs://one/a.mp3"},
        {"audio": "s3://one/a.wav"},
        {"audio": "s3://one/a.mp3", "table": "speech.others"},
        {"audio": "s3://one/a.mp3", "dt": "2026-11-02"},
    ]
    assert len({uri(template=template, **recording) for recording in recordings}) == len(recordings)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("s3://bucket/{partition}/{stem}.{format}", "gives two recordings the same file"),
        ("s3://bucket/{name}.srt", r"needs \{format\}"),
        ("s3://bucket/{nmae}-{id}.{format}", r"unknown field \{nmae\}: it may have .*\{dt\}"),
        ("s3://bucket/{name!r}.{format}", "takes no format"),
        ("s3://bucket/{name:>8}.{format}", "takes no format"),
        ("s3://bucket/{name}.{format", "uri_template"),
        ("s3://bucket/{}/{name}.{format}", "unknown field"),
        ("s3://{dt}/{name}.{format}", "must begin with a folder"),
        ("{partition}/{name}.{format}", "must begin with a folder"),
        ("ftp://host/{name}.{format}", "must begin with a folder"),
        ("", "same file"),
        ("s3://bucket/{name}/../{format}", "'..' folder"),
        ("s3://bucket/{name}//{format}", "empty, '.' or '..' folder"),
        ("s3://bucket/{name}.{format}/", "a slash at its end"),
        ("s3://bucket/{name}.{format}\n", "control character"),
    ],
)
def test_template_that_cannot_work_is_refused(template: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ExportNames(template, DAY)


def test_values_cannot_leave_their_folder() -> None:
    assert uri("s3://calls/..", "s3://b/{dt}/{stem}/{id}.{format}", dt="../../x").startswith(
        "s3://b/..%2F..%2Fx/_"
    )
    assert "/\x07" not in uri("s3://calls/\x07bell.wav")


def test_long_names_fit_on_any_disk() -> None:
    name = uri("s3://calls/" + "天" * 200 + ".wav").rpartition("/")[2]
    assert name.startswith("天" * 40 + "-")
    assert len(name.encode()) < 255
