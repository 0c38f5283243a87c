"""``python -m whisper_spark.doctor``: check this host and transcribe a known clip."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence

from whisper_spark.contract import WhisperOptions
from whisper_spark.doctor.checks import has_failed, summary, table
from whisper_spark.doctor.host import HostPlan, host_checks


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table of checks. Returns 1 when a check failed, 2 for wrong arguments."""
    arguments = parser().parse_args(argv)
    try:
        plan = HostPlan(
            WhisperOptions.from_dict(json.loads(arguments.options)),
            arguments.source,
            arguments.staging,
            with_spark=arguments.spark,
        )
    except (TypeError, ValueError) as error:
        print(f"--options: {error}", file=sys.stderr)
        return 2
    checks = list(host_checks(plan))
    for line in table(f"host {platform.node()}", {"": checks}):
        print(line)
    print(summary(checks))
    return int(has_failed(checks))


def parser() -> argparse.ArgumentParser:
    """The argument parser of the command line."""
    result = argparse.ArgumentParser(
        prog="python -m whisper_spark.doctor",
        description="Check whether this host can transcribe: packages, FFmpeg, GPU, disk, model, source and "
        "staging. Transcribes a known clip last. `spark-submit job.py --check` does so on a whole cluster.",
    )
    result.add_argument(
        "--options",
        default="{}",
        metavar="JSON",
        help="""options of the transcription, such as '{"model": "base", "device": "cuda"}'""",
    )
    result.add_argument("--source", metavar="URI", help="folder with audio, to be listed")
    result.add_argument("--staging", metavar="URI", help="folder to write a small file to, which is deleted")
    result.add_argument("--spark", action="store_true", help="also check what a Spark executor needs")
    return result


if __name__ == "__main__":
    sys.exit(main())
