"""Turns windows into text: the loaded model, language detection, prompts, the quality gate, and segments.

Change here how a batch of windows is decoded, and what makes a text reliable. This package knows batches of
windows, but neither files nor Spark; each change of the text must be measured with ``benchmarks/``.
"""
