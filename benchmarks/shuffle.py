"""Whether a transcript depends on the files that happen to share a batch with its file.

    .venv/bin/python benchmarks/shuffle.py

The same files in two orders: the share of files with equal texts, and every difference. Which windows meet in
a batch also depends on which thread is faster, so the order as given is run twice, too.
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path

from corpus import ROOT, corpus, references
from report import store_measurement

sys.path[:0] = [str(ROOT / "scripts")]


def main() -> None:
    from assemble_model import assemble
    from speech import LANGUAGES, prompts, speech_root

    from whisper_spark import WhisperOptions, transcribe_files

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=80, help="of each language, besides the calls")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    chance = random.Random(arguments.seed)
    spoken = prompts(speech_root())
    files: list[Path] = [corpus("calls") / reference.file for reference in references(corpus("calls"))]
    for language in LANGUAGES:
        own = [clip.path for clip in spoken if clip.language == language]
        files += chance.sample(own, min(arguments.prompts, len(own)))
    options = WhisperOptions(model=str(assemble()))

    def texts(order: list[Path]) -> dict[str, str]:
        return {t.audio_uri: t.text or "" for t in transcribe_files(order, options)}

    given = texts(files)
    lines = []
    for title, order in (("the same order again", files), ("shuffled", chance.sample(files, len(files)))):
        again = texts(order)
        different = sorted(uri for uri, text in given.items() if again[uri] != text)
        equal = len(files) - len(different)
        lines.append(f"- {title}: {equal} of {len(files)} files equal ({equal / len(files):.2%})")
        for uri in different:
            name = "/".join(uri.rsplit("/", 2)[1:])
            lines.append(f"  - `{name}`: “{given[uri]}”, then “{again[uri]}”")
        print(*lines, sep="\n", flush=True)
    store_measurement("shuffle", {"lines": lines})


if __name__ == "__main__":
    main()
