"""Windows -> text: the loaded model, languages, prompts, the quality gate, and segments.

Knows batches of windows, but not which file a window belongs to.
"""
