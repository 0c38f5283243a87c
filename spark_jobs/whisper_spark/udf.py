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
"""Transcripts that wait for a row before them, in bytes. Beyond, no further files are started."""

_ROWS_A_FRAME = 64


def whisper_udf(
    options: WhisperOptions | None = None,
    *,
    storage: Mapping[str, str] | None = None,
    model_storage: Mapping[str, str] | None = None,
) -> Any:
    """A Pandas UDF: a column of audio URIs becomes a column of transcripts, one STRUCT a file.

    .. code-block:: python

        df.select("uri", whisper_udf(WhisperOptions(model="base"))("uri").alias("transcript"))

    The model is loaded once for each Python worker, windows of many files share a batch, and a bad file
    harms only its own row, even one that kills the process which decodes it: its ``status`` is ``error``, and
    ``error_code`` says why. The fields of the STRUCT are those of
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

    # Annotations are strings in this module; Spark reads them to learn which kind of UDF this is.
    import pandas as pd
    import pyarrow as pa

    transcribe.__annotations__ = {"batches": Iterator[pd.Series], "return": Iterator[pd.DataFrame]}
    make_udf: Any = pandas_udf  # its overloads do not know this form
    # What comes from pandas is nullable to Spark, and with validateSchema on it insists on that.
    struct = from_arrow_schema(pa.schema([column.with_nullable(True) for column in transcript_schema()]))
    return make_udf(transcribe, struct)


def _transcripts(
    batches: Iterator[pd.Series],
    options: WhisperOptions,
    sources: Mapping[str, str],
    models: Mapping[str, str],
    engine: str,
) -> Iterator[pd.DataFrame]:
    """Transcripts in the order of the rows, which a Pandas UDF must keep; files complete in any order."""
    from whisper_spark.engine.isolated import IsolatedEngine
    from whisper_spark.storage.objects import ObjectStorage

    rows = InputOrder()
    isolated = IsolatedEngine(options, models, engine)
    try:
        for transcript in isolated.transcribe(rows.files(batches), ObjectStorage(sources)):
            rows.add(transcript)
            yield from _frames(rows)
        # Rows without a usable URI may be left.
        yield from _frames(rows)
    finally:
        rows.close()


class InputOrder:
    """Puts transcripts into the order in which their files were asked for. For two threads.

    Transcripts of later rows wait for a long file before them. Beyond :data:`MOST_BYTES` of them no more
    files are given out, so that they do not fill the memory.
    """

    def __init__(self) -> None:
        self._state = threading.Condition()
        # URIs, or rows that need no engine.
        self._rows: deque[str | Transcript] = deque()
        self._finished: dict[str, list[bytes]] = {}
        self._bytes = 0
        self._closed = False

    @property
    def held_bytes(self) -> int:
        """Bytes of transcripts that wait."""
        return self._bytes

    def files(self, batches: Iterator[pd.Series]) -> Iterator[AudioFile]:
        """The files of the rows, as long as there is room for their transcripts."""
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
        """A file is finished."""
        # Pickled, because the words of an hour take a tenth of the memory then, and it is known how much.
        data = pickle.dumps(transcript)
        with self._state:
            self._finished.setdefault(transcript.audio_uri, []).append(data)
            self._bytes += len(data)

    def take(self, most: int) -> list[Transcript]:
        """The next rows, up to the first one that is not finished; at most so many."""
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
        """No more files are wanted."""
        with self._state:
            self._closed = True
            self._state.notify_all()


def _row(uri: str | None) -> str | Transcript:
    """The URI in its usual spelling, or why there is no transcript for it."""
    from whisper_spark.storage.objects import normalise_uri

    # Pandas has NaN for a null.
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
