"""Counts, totals and the worst rows of a run, in bounded memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow_whisper.validation.distributions import Distributions, Throughput
from whisper_spark.contract import QUALITY_FLAGS

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pyarrow as pa

    from whisper_spark.staging.result import RunResult

MAX_WORST = 20
"""Maximum number of transcripts that the report lists for review, and of error rows that it quotes."""

# Limits that keep the report small, whatever the rows contain.
_TEXT = 200
_LONGEST_MESSAGE = 1000
_LONGEST_WORD = 60
_MOST_KINDS = 200


class Summary:
    """Counts, totals and the worst rows, collected batch by batch."""

    def __init__(self, result: RunResult | None = None) -> None:
        self.distributions = Distributions(Throughput.of(result))
        self.files = 0
        self.errors = 0
        self.error_codes: Counter[str] = Counter()
        self.languages: Counter[str] = Counter()
        self.speakers: Counter[int] = Counter()
        self.flags: Counter[str] = Counter()
        self.audio_seconds = 0.0
        self.speech_seconds = 0.0
        self.worst: list[dict[str, Any]] = []
        self.first_errors: list[dict[str, Any]] = []

    def add(self, batch: pa.RecordBatch) -> None:
        """Add rows in the schema of ``contract.transcript_schema``."""
        import pyarrow.compute as pc

        ok = batch.filter(pc.equal(batch.column("status"), "ok"))
        errors = batch.filter(pc.equal(batch.column("status"), "error"))
        self.files += batch.num_rows
        self.errors += errors.num_rows
        self.error_codes.update(_value_counts(errors.column("error_code")))
        self.languages.update(_value_counts(ok.column("language")))
        self.speakers.update(_value_counts(ok.column("speakers")))
        flags = _value_counts(pc.list_flatten(batch.column("quality_flags")))
        self.flags.update({flag: count for flag, count in flags.items() if flag in QUALITY_FLAGS})
        self.audio_seconds += _sum(batch.column("duration_s"))
        self.speech_seconds += _sum(batch.column("speech_s"))
        room = MAX_WORST - len(self.first_errors)
        quoted = errors.select(["audio_uri", "error_code", "error_message"]).slice(0, room)
        for row in quoted.to_pylist():
            row["error_message"] = beginning(row["error_message"] or "", _LONGEST_MESSAGE)
            self.first_errors.append(row)
        logprobs = _average_logprobs(ok)
        self.distributions.add(batch, ok, logprobs)
        self.worst = sorted([*self.worst, *_worst_rows(ok, logprobs)], key=_badness)[:MAX_WORST]

    def counts(self) -> dict[str, Any]:
        """Return the number of rows of this run, in total and by kind."""
        return {
            "files": self.files,
            "ok": self.files - self.errors,
            "errors": self.errors,
            "error_codes": dict(self.error_codes.most_common(_MOST_KINDS)),
            "languages": dict(self.languages.most_common(_MOST_KINDS)),
            "speakers": {str(number): count for number, count in self.speakers.most_common(_MOST_KINDS)},
        }

    def totals(self) -> dict[str, float]:
        """Return the amount of audio and speech of this run."""
        return {
            "audio_seconds": round(self.audio_seconds, 3),
            "speech_seconds": round(self.speech_seconds, 3),
            "audio_hours": round(self.audio_seconds / 3600, 4),
        }


def _average_logprobs(ok: pa.RecordBatch) -> npt.NDArray[np.float64]:
    """Average log probability of each row, with segments weighted by their number of characters.

    NaN for a row without text, minus infinity if the average is not finite.
    """
    import numpy as np
    import pyarrow.compute as pc

    segments = ok.column("segments")
    row = pc.list_parent_indices(segments).to_numpy(zero_copy_only=False)
    segment = pc.list_flatten(segments)
    logprob = pc.fill_null(segment.field("avg_logprob"), 0.0).to_numpy(zero_copy_only=False)
    letters = pc.fill_null(pc.utf8_length(segment.field("text")), 0).to_numpy(zero_copy_only=False)
    weight = np.bincount(row, letters, minlength=ok.num_rows)
    total = np.bincount(row, letters * logprob, minlength=ok.num_rows)
    average: npt.NDArray[np.float64] = np.full(ok.num_rows, math.nan)
    np.divide(total, weight, out=average, where=weight > 0)
    average[(weight > 0) & ~np.isfinite(average)] = -math.inf
    return average


def _worst_rows(ok: pa.RecordBatch, logprobs: npt.NDArray[np.float64]) -> list[dict[str, Any]]:
    """The worst rows of a batch of transcripts. Rows without text count only if they have other flags."""
    columns = ok.select(["audio_uri", "language", "duration_s", "quality_flags", "text"]).to_pylist()
    rows = []
    for values, average in zip(columns, logprobs.tolist(), strict=True):
        flags = values["quality_flags"] or []
        if not math.isnan(average) or set(flags) - {"no_speech"}:
            values["avg_logprob"] = round(average, 4) if math.isfinite(average) else None
            values["quality_flags"] = flags[:MAX_WORST]
            if not math.isfinite(values["duration_s"] or 0.0):
                # JSON cannot represent this number, and a check has already reported the row.
                values["duration_s"] = None
            values["text"] = beginning(values["text"] or "", _TEXT)
            rows.append(values)
    return sorted(rows, key=_badness)[:MAX_WORST]


def beginning(text: str, limit: int) -> str:
    """The beginning of a text, cut between two words. Text without spaces is cut at ``limit`` characters."""
    if len(text) <= limit:
        return text
    # One more character: the limit may be at the end of a word.
    cut = max(text.rfind(space, 0, limit + 1) for space in " \n\t")
    return f"{text[: cut if cut > limit - _LONGEST_WORD else limit].rstrip()} …"


def _badness(row: Mapping[str, Any]) -> tuple[int, float]:
    return -len(row["quality_flags"]), row["avg_logprob"] or 0.0


def _value_counts(array: pa.Array) -> dict[Any, int]:
    counts = array.drop_null().value_counts()
    return dict(zip(counts.field("values").to_pylist(), counts.field("counts").to_pylist(), strict=True))


def _sum(array: pa.Array) -> float:
    import numpy as np

    values = array.drop_null().to_numpy(zero_copy_only=False)
    return float(values[np.isfinite(values)].sum())
