"""``whisper_udf``: the engine as an iterator Pandas UDF."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from whisper_spark.contract import Transcript, WhisperOptions, transcript_schema

if TYPE_CHECKING:
    import pandas as pd


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
    harms only its own row: its ``status`` is ``error``, and ``error_code`` says why. The fields of the STRUCT
    are those of :func:`whisper_spark.contract.transcript_schema`.

    Give each task a GPU (``spark.task.resource.gpu.amount=1``) and all cores of its executor
    (``spark.task.cpus``). Needs an active Spark session.

    :param storage: obstore configuration for the URIs; ``None``: ambient credentials of the executors.
    :param model_storage: the same for a model in an object store.
    """
    from pyspark.sql.pandas.functions import pandas_udf
    from pyspark.sql.pandas.types import from_arrow_schema

    options = options or WhisperOptions()
    sources, models = dict(storage or {}), dict(model_storage or {})

    def transcribe(batches: Iterator[pd.Series]) -> Iterator[pd.DataFrame]:
        yield from _transcripts(batches, options, sources, models)

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
) -> Iterator[pd.DataFrame]:
    """Transcripts in the order of the rows, which a Pandas UDF must keep; files complete in any order."""
    from whisper_spark.engine.transcriber import AudioFile, get_engine
    from whisper_spark.storage.objects import ObjectStorage, normalise_uri

    rows: list[str | None] = []  # input order; None is a null in the column

    def read_ahead() -> Iterator[AudioFile]:
        for series in batches:
            for uri in series:
                rows.append(None if uri is None or uri != uri else normalise_uri(uri))
                if rows[-1] is not None:
                    yield AudioFile(rows[-1])

    finished: dict[str, list[Transcript]] = {}
    emitted = 0
    engine = get_engine(options, models)
    # None: nothing more will come, but rows without a URI may be left.
    for transcript in itertools.chain(engine.transcribe(read_ahead(), ObjectStorage(sources)), [None]):
        if transcript is not None:
            finished.setdefault(transcript.audio_uri, []).append(transcript)
        ready = _take_in_order(rows, emitted, finished)
        emitted += len(ready)
        if ready:
            yield _frame(ready)


def _take_in_order(
    rows: list[str | None], position: int, finished: dict[str, list[Transcript]]
) -> list[Transcript]:
    """The transcripts of the rows from ``position`` on, up to the first that is not finished."""
    ready: list[Transcript] = []
    for number in range(position, len(rows)):
        uri = rows[number]
        if uri is None:
            ready.append(
                Transcript(audio_uri="", status="error", error_code="not_found", error_message="no URI")
            )
        elif finished.get(uri):
            ready.append(finished[uri].pop())
        else:
            break
        rows[number] = ""  # its transcript is on its way: free the memory
    return ready


def _frame(transcripts: list[Transcript]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame([t.to_row() for t in transcripts], columns=transcript_schema().names)
