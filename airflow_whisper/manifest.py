"""Reading what discovery wrote."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from whisper_spark.contract import Run

if TYPE_CHECKING:
    from whisper_spark.objects import ObjectStorage


def read_run(manifest_uri: str, storage: ObjectStorage) -> Run:
    """The run that a manifest belongs to, from the footer of the file.

    :raises whisper_spark.objects.ObjectNotFound: when there is no such manifest.
    :raises ValueError: when the file is no manifest.
    """
    with open_parquet(manifest_uri, storage) as file:
        try:
            return Run.from_metadata(file.schema_arrow.metadata)
        except ValueError as error:
            raise ValueError(f"{manifest_uri}: {error}") from None


@contextmanager
def open_parquet(uri: str, storage: ObjectStorage) -> Iterator[Any]:
    """A ``pyarrow.parquet.ParquetFile`` to read in batches; the object is fetched once, to disk when large.

    .. code-block:: python

        with open_parquet(run.manifest_uri, storage) as file:
            for batch in file.iter_batches(batch_size=10_000): ...

    :raises ValueError: when the object is no Parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with storage.open(uri) as source:
        try:
            file = pq.ParquetFile(source)
        except pa.ArrowInvalid as error:
            raise ValueError(f"{uri} is no Parquet file: {error}") from None
        with file:
            yield file
