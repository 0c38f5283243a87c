"""All checks of one host, in the order in which a job would fail."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

from whisper_spark.contract import WhisperOptions
from whisper_spark.doctor.checks import Check, checked, has_failed
from whisper_spark.doctor.clip import check_clip
from whisper_spark.doctor.gpu import gpu_checks
from whisper_spark.doctor.places import check_disk, check_model, check_source, check_staging
from whisper_spark.doctor.software import check_ffmpeg, check_onnxruntime, check_packages, check_python


@dataclass(frozen=True)
class HostPlan:
    """What to check on a host.

    :param source: URI of the audio; ``None``: not checked.
    :param staging: URI of staging; ``None``: not checked.
    :param credentials: obstore configurations by place, see :mod:`whisper_spark.storage.credentials`.
    :param with_spark: whether the host must have what a Spark executor needs.
    """

    options: WhisperOptions
    source: str | None = None
    staging: str | None = None
    credentials: Mapping[str, Mapping[str, str]] = field(default_factory=dict, repr=False)
    with_spark: bool = True

    def of(self, place: str) -> Mapping[str, str]:
        """The obstore configuration of a place."""
        return self.credentials.get(place, {})


def host_checks(plan: HostPlan) -> Iterator[Check]:
    """Run the checks. The clip is transcribed last, and only if nothing failed that it needs."""
    needed = [check_python(), checked("packages", partial(check_packages, plan.with_spark))]
    yield from needed
    if has_failed(needed):
        return
    needed += [
        checked("FFmpeg", check_ffmpeg),
        checked("ONNX Runtime", check_onnxruntime),
        *gpu_checks(plan.options),
        checked("disk", partial(check_disk, plan.options)),
        checked("model", partial(check_model, plan.options, plan.of("model"))),
    ]
    yield from needed[2:]
    if plan.source:
        yield checked("source", partial(check_source, plan.source, plan.of("source")))
    if plan.staging:
        yield checked("staging", partial(check_staging, plan.staging, plan.of("staging")))
    if not has_failed(needed):
        yield checked("known clip", partial(check_clip, plan.options, plan.of("model")))
