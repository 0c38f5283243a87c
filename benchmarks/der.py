"""Diarization error rate by pyannote.metrics: no collar, overlap counted. Runs in an environment of its own.

python der.py < turns.json      {file: [reference, hypothesis]}, each a list of start, end and speaker
"""

from __future__ import annotations

import json
import sys

from pyannote.core import Annotation, Segment
from pyannote.metrics.diarization import DiarizationErrorRate


def annotation(turns: list[tuple[float, float, str]]) -> Annotation:
    found = Annotation()
    for number, (start, end, speaker) in enumerate(turns):
        found[Segment(start, end), number] = speaker
    return found


def main() -> None:
    metric = DiarizationErrorRate(collar=0.0, skip_overlap=False)
    for reference, hypothesis in json.load(sys.stdin).values():
        metric(annotation(reference), annotation(hypothesis))
    total = metric["total"]
    names = {"missed detection": "missed", "false alarm": "false alarm", "confusion": "confusion"}
    rates = {short: metric[name] / total for name, short in names.items()}
    print(json.dumps({"DER": abs(metric), **rates}))


if __name__ == "__main__":
    main()
