"""OpenLineage: which audio went into which version of which table, and which checks ran in between.

Airflow's OpenLineage provider requests this from operators when it is installed and enabled; otherwise this
module is not imported. The source, the staging area and the table are three datasets with permanent names,
and facets state which part of each a run used. A dataset per run would fill the catalog with as many datasets
as there are runs.

Facets: https://openlineage.io/docs/spec/facets/. Names: https://openlineage.io/docs/spec/naming/.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow.providers.openlineage.extractors.base import OperatorLineage
from openlineage.client.event_v2 import InputDataset, OutputDataset
from openlineage.client.facet_v2 import (
    base_subset_dataset as subset,
)
from openlineage.client.facet_v2 import (
    data_quality_assertions_dataset,
    dataset_version_dataset,
    execution_parameters_run,
    input_statistics_input_dataset,
    output_statistics_output_dataset,
    schema_dataset,
    storage_dataset,
    symlinks_dataset,
)

from airflow_whisper.discovery.locations import source_root
from whisper_spark.contract import CHANGES, Run, partition_path, transcript_schema
from whisper_spark.storage.objects import normalise_uri

if TYPE_CHECKING:
    import pyarrow as pa

    from airflow_whisper.table.replace import Registered
    from airflow_whisper.validation.report import Report
    from whisper_spark.staging.result import RunResult


# --- lineage of each task --------------------------------------------------------------------------------


def of_discovery(
    source: str, partition: Mapping[str, str], run: Run | None = None
) -> OperatorLineage[Any, Any]:
    """Lineage of discovery: reads audio, writes a manifest. Without a run it has only started."""
    if run is None:
        return OperatorLineage(inputs=[_audio(source, partition)])
    return OperatorLineage(
        inputs=[_audio(run.source, run.partition, files=_listed(run))],
        outputs=[_staged_output(run, run.manifest_uri, rows=_to_transcribe(run), files=1)],
        run_facets=_parameters(run),
    )


def of_transcription(run: Run, result: RunResult | None) -> OperatorLineage[Any, Any]:
    """Lineage of a Spark job: reads audio, writes staged rows. Without a result the job has failed."""
    audio = _audio(run.source, run.partition, files=_to_transcribe(run), size=run.audio_bytes)
    if result is None:
        return OperatorLineage(inputs=[audio], run_facets=_parameters(run))
    staged = _staged_output(
        run,
        run.rows_uri,
        rows=sum(file.rows for file in result.staged),
        files=len(result.staged),
        size=sum(file.bytes for file in result.staged),
    )
    return OperatorLineage(inputs=[audio], outputs=[staged], run_facets=_parameters(run))


def of_validation(run: Run, report: Report) -> OperatorLineage[Any, Any]:
    """Lineage of validation: reads staged rows, with one assertion for each check."""
    assertions = [
        data_quality_assertions_dataset.Assertion(
            assertion=check.check,
            success=check.passed,
            severity="error",
            expected=check.expected,
            actual=check.found,
        )
        for check in report.checks
    ]
    facet = data_quality_assertions_dataset.DataQualityAssertionsDatasetFacet(assertions=assertions)
    staged = _staged_input(run, rows=report.counts["files"], dataQualityAssertions=facet)
    return OperatorLineage(inputs=[staged])


def of_registration(run: Run, registered: Registered) -> OperatorLineage[Any, Any]:
    """Lineage of a commit: reads staged rows, writes a table version in which one partition is new."""
    namespace, name = dataset_name(registered.table_location)
    identifier = symlinks_dataset.Identifier(namespace=namespace, name=run.table, type="TABLE")
    version = dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=str(registered.snapshot_id))
    facets = {
        "version": version,
        "schema": schema_dataset.SchemaDatasetFacet(fields=_fields(transcript_schema(run.partition))),
        "storage": storage_dataset.StorageDatasetFacet(storageLayer="iceberg", fileFormat="parquet"),
        "symlinks": symlinks_dataset.SymlinksDatasetFacet(identifiers=[identifier]),
    }
    output_facets = {
        "outputStatistics": output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
            rowCount=registered.rows
        ),
        "subset": subset.OutputSubsetOutputDatasetFacet(outputCondition=_partition(run.partition)),
    }
    table = OutputDataset(namespace=namespace, name=name, facets=facets, outputFacets=output_facets)
    return OperatorLineage(inputs=[_staged_input(run, rows=registered.rows)], outputs=[table])


# --- datasets --------------------------------------------------------------------------------------------


def dataset_name(uri: str) -> tuple[str, str]:
    """Namespace and name of the dataset at a URI, by OpenLineage's rules for object stores and files."""
    scheme, _, rest = normalise_uri(uri).partition("://")
    if scheme == "file":
        return "file", "/" + rest.strip("/")
    bucket, _, key = rest.partition("/")
    return f"{scheme}://{bucket}", key.strip("/") or "/"


def _audio(
    source: str, partition: Mapping[str, str], *, files: int | None = None, size: int | None = None
) -> InputDataset:
    namespace, name = dataset_name(source_root(source, partition))
    facets: dict[str, Any] = {
        "subset": subset.InputSubsetInputDatasetFacet(inputCondition=_part(partition, source)),
    }
    if files is not None:
        facets["inputStatistics"] = input_statistics_input_dataset.InputStatisticsInputDatasetFacet(
            fileCount=files, size=size
        )
    return InputDataset(namespace=namespace, name=name, inputFacets=facets)


def _staged_input(run: Run, *, rows: int, **facets: Any) -> InputDataset:
    namespace, name = dataset_name(_staging(run))
    statistics = input_statistics_input_dataset.InputStatisticsInputDatasetFacet(rowCount=rows)
    condition = _part(run.partition, run.rows_uri)
    return InputDataset(
        namespace=namespace,
        name=name,
        inputFacets={
            "inputStatistics": statistics,
            "subset": subset.InputSubsetInputDatasetFacet(inputCondition=condition),
            **facets,
        },
    )


def _staged_output(
    run: Run, location: str, *, rows: int, files: int, size: int | None = None
) -> OutputDataset:
    namespace, name = dataset_name(_staging(run))
    statistics = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(
        rowCount=rows, fileCount=files, size=size
    )
    condition = _part(run.partition, location)
    return OutputDataset(
        namespace=namespace,
        name=name,
        facets={"storage": storage_dataset.StorageDatasetFacet(storageLayer="files", fileFormat="parquet")},
        outputFacets={
            "outputStatistics": statistics,
            "subset": subset.OutputSubsetOutputDatasetFacet(outputCondition=condition),
        },
    )


def _staging(run: Run) -> str:
    """The folder that all runs of a table share: ``STAGING/TABLE`` of ``contract.run_folder``."""
    return run.run_uri.partition(f"/{partition_path(run.partition)}/")[0]


def _part(partition: Mapping[str, str], location: str) -> Any:
    return subset.BinarySubsetCondition(
        left=_partition(partition),
        right=subset.LocationSubsetCondition(locations=[normalise_uri(location)]),
        operator="AND",
    )


def _partition(partition: Mapping[str, str]) -> Any:
    part = subset.Partition(dimensions=dict(partition), identifier=partition_path(partition))
    return subset.PartitionSubsetCondition(partitions=[part])


def _fields(schema: pa.Schema) -> list[Any]:
    return [
        schema_dataset.SchemaDatasetFacetFields(name=field.name, type=str(field.type)) for field in schema
    ]


def _parameters(run: Run) -> dict[str, Any]:
    """The options that affect the text, as parameters of the run."""
    options = json.loads(run.options.to_json())
    values = {**options, "fingerprint": run.options.fingerprint(), "manifest_id": run.manifest_id}
    parameters = [
        execution_parameters_run.ExecutionParameter(key=key, value=str(value))
        for key, value in values.items()
        if value is not None
    ]
    return {
        "executionParameters": execution_parameters_run.ExecutionParametersRunFacet(parameters=parameters)
    }


def _to_transcribe(run: Run) -> int:
    return sum(run.counts.get(change, 0) for change in CHANGES)


def _listed(run: Run) -> int:
    """Number of files at the source: those to transcribe and those whose rows stay unchanged."""
    return _to_transcribe(run) + run.counts.get("unchanged", 0) + run.counts.get("kept_stale", 0)
