"""What the engine leaves to do for the kernel's memory management."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from speech import Clip

PROGRAM = """
import json, resource, sys
import numpy as np
from whisper_spark import WhisperOptions
from whisper_spark.malloc import own_process
from whisper_spark.engine.transcriber import AudioFile, get_engine
from whisper_spark.audio.features import FULL_FRAMES
from whisper_spark.audio.windows import Chunk, ChunkMap, Window

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

model, clip = sys.argv[1:]
own_process()
engine = get_engine(WhisperOptions(model=model, num_workers=1))
window = Window(0, 0, ChunkMap((Chunk(0.0, 0.0, 30.0),)), np.zeros((80, FULL_FRAMES), np.float32))
engine._decoder.encode([window], FULL_FRAMES)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
engine._decoder.encode([window], FULL_FRAMES)
faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
kept = resident()
list(engine.transcribe([AudioFile(clip)]))
print(json.dumps({"faulted": faults * resource.getpagesize(), "kept": kept, "left": resident()}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the C library is not glibc")
def test_memory_is_kept_while_the_engine_works_and_given_back_at_the_end(
    model_dir: Path, librivox: list[Clip]
) -> None:
    command = [sys.executable, "-c", PROGRAM, str(model_dir), librivox[0].path.as_uri()]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    memory = json.loads(run.stdout)
    # The scores of one layer's attention, float32: 8 heads, 1,500 x 1,500 positions.
    scores = 8 * 1500 * 1500 * 4
    assert memory["faulted"] < scores
    assert memory["left"] < memory["kept"] - scores
