"""Subtitles and other files from one transcript row: SRT, WebVTT, plain text and JSON.

.. code-block:: python

    from whisper_spark.subtitles import to_srt

    Path("call.srt").write_text(to_srt(row), encoding="utf-8")

A row is what readers of the table get (a dict, a Spark ``Row``, a pandas ``Series``), or a
:class:`~whisper_spark.contract.Transcript`. Needs only the standard library and ``whisper_spark.contract``.
"""

from __future__ import annotations

from whisper_spark.subtitles.cues import Cue, Layout, cues
from whisper_spark.subtitles.formats import FORMATS, to_json, to_srt, to_txt, to_vtt

__all__ = ["FORMATS", "Cue", "Layout", "cues", "to_json", "to_srt", "to_txt", "to_vtt"]
