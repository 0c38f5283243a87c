"""Word error rate and speed of the engine on recorded telephone prompts, language by language.

    .venv/bin/python benchmarks/word_error_rate.py --clips 40

Prompts of at least three words from Debian's ``asterisk-core-sounds-*``, drawn at random with a fixed seed,
one file each, the language detected. Texts are normalised with Whisper's own normalisers.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts")]


def main() -> None:
    import jiwer
    from assemble_model import assemble
    from speech import LANGUAGES, prompts, speech_root
    from whisper_normalizer.basic import BasicTextNormalizer
    from whisper_normalizer.english import EnglishTextNormalizer

    from whisper_spark import WhisperOptions, transcribe_files

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=40, help="prompts of each language")
    parser.add_argument("--model", help="default: the packaged whisper-base")
    arguments = parser.parse_args()
    options = WhisperOptions(model=arguments.model or str(assemble()))
    spoken = [clip for clip in prompts(speech_root()) if "(" not in clip.text]
    list(transcribe_files([spoken[0].path], options))  # loads the model
    print("language  clips  seconds  x real time  WER %  substituted  deleted  inserted")
    for language in LANGUAGES:
        clips = [clip for clip in spoken if clip.language == language]
        clips = random.Random(1).sample(clips, min(arguments.clips, len(clips)))
        started = time.monotonic()
        found = {t.audio_uri: t for t in transcribe_files([clip.path for clip in clips], options)}
        wall = time.monotonic() - started
        normalise = EnglishTextNormalizer() if language == "en" else BasicTextNormalizer()
        references = [normalise(clip.text) for clip in clips]
        texts = [normalise(found[f"file://{clip.path}"].text or "") for clip in clips]
        score = jiwer.process_words(references, texts)
        seconds = sum(clip.seconds for clip in clips)
        print(
            f"{language:8}  {len(clips):5}  {seconds:7.0f}  {seconds / wall:11.1f}  {score.wer:5.1%}  "
            f"{score.substitutions:11}  {score.deletions:7}  {score.insertions:8}",
            flush=True,
        )


if __name__ == "__main__":
    main()
