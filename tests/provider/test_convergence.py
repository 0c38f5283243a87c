"""Random histories of a partition: whatever happened, the table equals the function of what is there.

A hundred histories of ten steps by default; more with ``--histories 5000``. Every history that once failed
is an explicit example below.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Iterator
from pathlib import Path

import preloaded_daemon
import pytest
from histories import Expire, Fail, Options, Pass, Put, Race, Remove, Repeat, Resume, Run, Step, World
from history_engine import BROKEN
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from pyspark.sql import SparkSession
from spark_session import local_session

PARTS = 10
"""Tests that share the histories, so that none of them takes minutes."""

_numbers = itertools.count()


@pytest.fixture(scope="module")
def spark() -> Iterator[SparkSession]:
    """Spark for many small jobs: one slot, one partition without shuffles, no compilation of queries."""
    conf = {
        "spark.master": "local[1,1]",
        "spark.default.parallelism": "1",
        "spark.sql.shuffle.partitions": "1",
        "spark.sql.adaptive.enabled": "false",
        "spark.sql.codegen.wholeStage": "false",
        "spark.sql.codegen.factoryMode": "NO_CODEGEN",
        # One partition is joined as it is, but a broadcast is a job of its own.
        "spark.sql.autoBroadcastJoinThreshold": "-1",
        # Otherwise each expression asks the JVM where it stands in the Python code, for error messages.
        "spark.python.sql.dataFrameDebugging.enabled": "false",
        "spark.python.daemon.module": preloaded_daemon.__name__,
        # Not in the environment of this process: a JVM of earlier tests would not see it.
        "spark.executorEnv.PYTHONPATH": str(Path(preloaded_daemon.__file__).parent),
    }
    with local_session(conf, "history_engine", "standin_engine") as session:
        # Failures are part of a history.
        session.sparkContext.setLogLevel("OFF")
        yield session


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The embedded catalog, with a table for each history."""
    folder = tmp_path_factory.mktemp("histories")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AIRFLOW_WHISPER_WAREHOUSE", str(folder / "warehouse"))
        yield folder


_names = st.sampled_from(["a.wav", "b.wav", "c.mp3"])
_sources = st.sampled_from(["calls", "calls", "calls", "more"])
_runs = st.builds(
    Run,
    source=st.sampled_from(["calls", "calls", "calls", "more", "mistyped"]),
    on_removed=st.sampled_from(["keep", "keep", "delete"]),
    until=st.sampled_from(["register", "register", "register", "discover", "transcribe", "validate"]),
    stop_after=st.sampled_from([None, None, None, 0, 1]),
    pattern=st.sampled_from([None, None, None, "*.mp3"]),
)
_steps = st.one_of(
    st.builds(Put, _names, st.sampled_from(["yes", "no", "hello there", BROKEN]), _sources),
    st.builds(Put, _names, st.sampled_from(["yes", "no"]), _sources),
    st.builds(Remove, _names, _sources),
    st.builds(Fail, _names, _sources),
    st.builds(Pass, _names, _sources),
    st.builds(Options, st.sampled_from([0, 1])),
    _runs,
    _runs,
    st.just(Resume()),
    st.just(Repeat()),
    st.builds(Race, _sources),
    st.builds(Expire, st.sampled_from(["staging", "snapshots"])),
)


def play(spark: SparkSession, folder: Path, history: list[Step]) -> None:
    number = next(_numbers)
    with tempfile.TemporaryDirectory(dir=folder, prefix=f"{number}-") as own:
        world = World(spark, Path(own), f"speech.history_{number}")
        for step in history:
            world.play(step)
        world.converge()


@pytest.mark.parametrize(
    "history",
    [
        pytest.param(
            [Put("a.wav", "yes"), Fail("a.wav"), Run(), Pass("a.wav"), Run()],
            id="an error that passes does not stay",
        ),
        pytest.param(
            [Put("a.wav", "yes"), Fail("a.wav"), Run(until="transcribe"), Pass("a.wav"), Resume()],
            id="a retry of the same run tries again what may pass",
        ),
        pytest.param(
            [
                *(Put("a.wav", "yes"), Put("b.mp3", "no"), Run()),
                *(Put("b.mp3", "yes"), Run(on_removed="delete", pattern="*.mp3")),
            ],
            id="a pattern removes no rows",
        ),
        pytest.param(
            [Put("a.wav", "yes"), Run(), Put("b.wav", "no", "more"), Run("more", on_removed="delete")],
            id="two sources of a partition leave each other's rows alone",
        ),
        pytest.param(
            [Put("a.wav", "yes"), Run(), Run("mistyped", on_removed="delete")],
            id="a source that does not exist removes no rows",
        ),
        pytest.param(
            [Put("a.wav", "yes"), Run(), Remove("a.wav"), Run(on_removed="delete")],
            id="an empty source removes no more than max_removed_rate allows",
        ),
        pytest.param(
            [Put("a.wav", "yes"), Put("b.wav", "no"), Run(stop_after=1), Race()],
            id="two jobs with one manifest leave each other's files alone",
        ),
        pytest.param(
            [Put("a.wav", "yes"), Run(), Put("a.wav", "no"), Run(), Expire("snapshots"), Repeat()],
            id="registering again after its snapshot has expired changes nothing",
        ),
        pytest.param(
            [
                *(Put("a.wav", "yes"), Put("b.wav", "no"), Run(), Options(1), Run(until="discover")),
                *(Remove("a.wav"), Resume(), Put("a.wav", "yes"), Run()),
            ],
            id="a transcript stays if its audio expires before it is made again",
        ),
        pytest.param(
            [
                *(Put("a.wav", "yes"), Put("b.wav", "no"), Run(), Options(1), Run(until="discover")),
                *(Put("a.wav", "no"), Resume()),
            ],
            id="a transcript stays if its audio is replaced before it is made again",
        ),
        pytest.param(
            [Put("a.wav", "yes"), Run(until="transcribe"), Expire("staging"), Resume(), Run()],
            id="a run whose staging has expired starts over",
        ),
    ],
)
def test_history_that_once_failed(spark: SparkSession, warehouse: Path, history: list[Step]) -> None:
    play(spark, warehouse, history)


@pytest.mark.parametrize("number", range(PARTS))
def test_after_any_history_the_table_is_the_function_of_what_is_there(
    spark: SparkSession, warehouse: Path, pytestconfig: pytest.Config, number: int
) -> None:
    @seed(number)
    @settings(
        max_examples=max(pytestconfig.getoption("--histories") // PARTS, 1),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        # A failing history is printed as it was played: to shorten it would take many times as long.
        phases=(Phase.generate,),
    )
    @given(st.lists(_steps, min_size=10, max_size=10))
    def histories(history: list[Step]) -> None:
        play(spark, warehouse, history)

    histories()
