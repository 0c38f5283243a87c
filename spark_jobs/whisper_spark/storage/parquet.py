"""Reads the Parquet files of a run: its manifest and its staged rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from whisper_spark.contract import Run

if TYPE_CHECKING:
    import pyarrow.parquet as pq

    from whisper_spark.storage.objects import ObjectStorage


@contextmanager
def open_parquet(uri: str, storage: ObjectStorage) -> Iterator[pq.ParquetFile]:
    """Open a Parquet file. Only the parts that are read are fetched: the footer, some columns, a row group.

    .. code-block:: python

        with open_parquet(run.manifest_uri, storage) as file:
            for batch in file.iter_batches(batch_size=10_000): ...

    :raises ValueError: when the object is not a Parquet file.
    :raises whisper_spark.storage.objects.StorageError: when it cannot be read.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with storage.open_ranges(uri) as source:
        try:
            file = pq.ParquetFile(source, page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            # pyarrow also raises OSError for damaged metadata.
            raise ValueError(f"{uri} is no Parquet file: {error}") from None
        with file:
            yield file


def read_manifest(uri: str, storage: ObjectStorage) -> tuple[Run, pq.FileMetaData]:
    """The run that a manifest describes, and the Parquet metadata of the manifest. Reads only the footer.

    :raises whisper_spark.storage.objects.ObjectNotFound: when the manifest does not exist.
    :raises ValueError: when the file is not a manifest.
    """
    with open_parquet(uri, storage) as file:
        try:
            return Run.from_metadata(file.schema_arrow.metadata), file.metadata
        except ValueError as error:
            raise ValueError(f"{uri}: {error}") from None


def read_run(uri: str, storage: ObjectStorage) -> Run:
    """The run that a manifest describes. Raises the same exceptions as :func:`read_manifest`."""
    return read_manifest(uri, storage)[0]
