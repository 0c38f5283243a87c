"""``whisper_udf``: the engine as an iterator Pandas UDF."""

from __future__ import annotations

import itertools
import pickle
import threading
from collections import deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from whisper_spark.audio.files import AudioFile
from whisper_spark.contract import Transcript, WhisperOptions, transcript_schema
from whisper_spark.engine.engine_process import ENGINE

if TYPE_CHECKING:
    import pandas as pd

MOST_BYTES = 32 * 1024 * 1024
"""Limit in bytes for finished transcripts that wait for an earlier row. Above it no further files are
started."""

_ROWS_A_FRAME = 64


def whisper_udf(
    options: WhisperOptions | None = None,
    *,
    storage: Mapping[str, str] | None = None,
    model_storage: Mapping[str, str] | None = None,
) -> Any:
    """A Pandas UDF that maps a column of audio URIs to a column of transcripts, one STRUCT per file.

    .. code-block:: python

        df.select("uri", whisper_udf(WhisperOptions(model="base"))("uri").alias("transcript"))

    The model is loaded once for each Python worker, and windows of many files share a batch. A bad file
    affects only its own row, even if it crashes the process that decodes it: the ``status`` of the row is
    ``error``, and ``error_code`` names the cause. The fields of the STRUCT are those of
    :func:`whisper_spark.contract.transcript_schema`.

    Give each task a GPU (``spark.task.resource.gpu.amount=1``) and all cores of its executor
    (``spark.task.cpus``). Needs an active Spark session.

    :param storage: obstore configuration for the URIs; ``None``: ambient credentials of the executors.
    :param model_storage: the same for a model in an object store.
    """
    from pyspark.sql.pandas.functions import pandas_udf
    from pyspark.sql.pandas.types import from_arrow_schema

    options = options or WhisperOptions()
    sources, models, engine = dict(storage or {}), dict(model_storage or {}), ENGINE

    def transcribe(batches: Iterator[pd.Series]) -> Iterator[pd.DataFrame]:
        yield from _transcripts(batches, options, sources, models, engine)

    # Spark infers the kind of UDF from its annotations, which are strings in this module.
    import pandas as pd
    import pyarrow as pa

    transcribe.__annotations__ = {"batches": Iterator[pd.Series], "return": Iterator[pd.DataFrame]}
    # Any, because the overloads of pandas_udf do not cover this form.
    make_udf: Any = pandas_udf
    # For Spark all columns from pandas are nullable, and validateSchema compares the schemas.
    struct = from_arrow_schema(pa.schema([column.with_nullable(True) for column in transcript_schema()]))
    return make_udf(transcribe, struct)


def _transcripts(
    batches: Iterator[pd.Series],
    options: WhisperOptions,
    sources: Mapping[str, str],
    models: Mapping[str, str],
    engine: str,
) -> Iterator[pd.DataFrame]:
    """Transcripts in the order of the rows, which a Pandas UDF must preserve; files complete in any order."""
    from whisper_spark.engine.isolated import IsolatedEngine
    from whisper_spark.storage.objects import ObjectStorage

    rows = InputOrder()
    isolated = IsolatedEngine(options, models, engine)
    try:
        for transcript in isolated.transcribe(rows.files(batches), ObjectStorage(sources)):
            rows.add(transcript)
            yield from _frames(rows)
        # Rows without a usable URI, for which the engine returns nothing, may remain.
        yield from _frames(rows)
    finally:
        rows.close()


class InputOrder:
    """Returns transcripts in the order in which their files were requested. For use by two threads.

    Transcripts of later rows wait for a long file before them. When they take more than :data:`MOST_BYTES`,
    no more files are handed out, so that memory stays bounded.
    """

    def __init__(self) -> None:
        self._state = threading.Condition()
        # URIs of files for the engine, and transcripts of rows that do not need it.
        self._rows: deque[str | Transcript] = deque()
        self._finished: dict[str, list[bytes]] = {}
        self._bytes = 0
        self._closed = False

    @property
    def held_bytes(self) -> int:
        """Size of the transcripts that wait, in bytes."""
        return self._bytes

    def files(self, batches: Iterator[pd.Series]) -> Iterator[AudioFile]:
        """The files of the rows. Waits while the finished transcripts exceed :data:`MOST_BYTES`."""
        for uri in itertools.chain.from_iterable(batches):
            row = _row(uri)
            with self._state:
                self._state.wait_for(lambda: self._bytes <= MOST_BYTES or self._closed)
                if self._closed:
                    return
                self._rows.append(row)
            if isinstance(row, str):
                yield AudioFile(row)

    def add(self, transcript: Transcript) -> None:
        """Add the transcript of a finished file."""
        # Pickled, because the words of one hour of audio then take a tenth of the memory, and the size is
        # known.
        data = pickle.dumps(transcript)
        with self._state:
            self._finished.setdefault(transcript.audio_uri, []).append(data)
            self._bytes += len(data)

    def take(self, most: int) -> list[Transcript]:
        """The next rows, up to the first one that is not finished, and at most ``most`` of them."""
        ready: list[Transcript] = []
        with self._state:
            while self._rows and len(ready) < most:
                row = self._rows[0]
                if isinstance(row, Transcript):
                    ready.append(row)
                elif waiting := self._finished.get(row):
                    data = waiting.pop()
                    if not waiting:
                        del self._finished[row]
                    self._bytes -= len(data)
                    ready.append(pickle.loads(data))  # noqa: S301 - our own
                else:
                    break
                self._rows.popleft()
            self._state.notify_all()
        return ready

    def close(self) -> None:
        """Stop handing out files."""
        with self._state:
            self._closed = True
            self._state.notify_all()


def _row(uri: str | None) -> str | Transcript:
    """The normalised URI, or an error row when it is not usable."""
    from whisper_spark.storage.objects import normalise_uri

    # Pandas represents a null as NaN.
    if uri is None or uri != uri:
        return Transcript("", status="error", error_code="not_found", error_message="no URI")
    try:
        return normalise_uri(uri)
    except ValueError as error:
        return Transcript(uri, status="error", error_code="not_found", error_message=str(error)[:500])


def _frames(rows: InputOrder) -> Iterator[pd.DataFrame]:
    import pandas as pd

    while ready := rows.take(_ROWS_A_FRAME):
        yield pd.DataFrame([t.to_row() for t in ready], columns=transcript_schema().names)
