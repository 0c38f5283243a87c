"""The wheel: what is in it, that it installs, and that it imports where it has to."""

from __future__ import annotations

import dataclasses
import email
import importlib
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import jsonschema
import pytest
from docs_blocks import commands, named_block
from packaging.requirements import Requirement

from airflow_whisper import WhisperOptions
from airflow_whisper.get_provider_info import get_provider_info

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def empty_environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Python of an environment that holds the wheel and nothing else: no Airflow, no Spark, no Whisper."""
    folder = tmp_path_factory.mktemp("empty")
    run(sys.executable, "-m", "uv", "venv", "--quiet", "--python", sys.executable, folder / "venv")
    python = folder / "venv" / "bin" / "python"
    run(sys.executable, "-m", "uv", "pip", "install", "--quiet", "--no-deps", "--python", python, wheel)
    return python


def run(*command: object, cwd: Path | None = None, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=environment,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_wheel_ships_exactly_two_packages(wheel: Path) -> None:
    top_level = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    version = importlib.metadata.version("airflow-provider-whisper")
    assert top_level == {
        "airflow_whisper",
        "whisper_spark",
        f"airflow_provider_whisper-{version}.dist-info",
    }


@pytest.mark.parametrize("package", ["airflow_whisper", "spark_jobs/whisper_spark"])
def test_wheel_has_every_file_of_the_packages(wheel: Path, package: str) -> None:
    folder = ROOT / package
    files = {
        f"{folder.name}/{path.relative_to(folder).as_posix()}"
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert f"{folder.name}/py.typed" in files
    assert files <= set(zipfile.ZipFile(wheel).namelist())


def test_wheel_has_the_example_dags_and_their_recordings(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in (ROOT / "dags").glob("*.py"):
        assert f"airflow_whisper/example_dags/{path.name}" in names
    assert any(name.startswith("airflow_whisper/example_dags/audio/dt=2026-11-01/") for name in names)
    assert not [name for name in names if "__pycache__" in name]


def test_examples_are_copied_from_an_installed_package(empty_environment: Path, tmp_path: Path) -> None:
    command = (empty_environment, "-m", "airflow_whisper.examples")
    listed = run(*command, "list", cwd=tmp_path).splitlines()
    assert [line.split()[0] for line in listed] == sorted(path.stem for path in (ROOT / "dags").glob("*.py"))
    run(*command, "copy", "dags", "transcribe_daily", cwd=tmp_path)
    copy = tmp_path / "dags" / "transcribe_daily.py"
    assert copy.read_text() == (ROOT / "dags" / "transcribe_daily.py").read_text()
    # A user's changes are not overwritten.
    copy.write_text("mine")
    refused = subprocess.run(
        [*map(str, command), "copy", "dags"], capture_output=True, text=True, check=False, cwd=tmp_path
    )
    assert refused.returncode == 1
    assert f"already there: {copy.relative_to(tmp_path)}. To replace them, add --overwrite" in refused.stderr
    assert copy.read_text() == "mine"
    run(*command, "copy", "dags", "--overwrite", cwd=tmp_path)
    assert len([*(tmp_path / "dags").glob("*.py")]) == len(listed)
    # What the examples transcribe without any settings.
    program = "from airflow_whisper.examples import DEMO_AUDIO; print(len([*DEMO_AUDIO.glob('dt=*/*.flac')]))"
    assert int(run(empty_environment, "-c", program, cwd=tmp_path)) == 5


def test_release_has_links_of_the_project_and_readme_leads_out_of_the_archive(tmp_path: Path) -> None:
    command = (sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT)
    url = "https://git.example/speech/whisper"
    run(*command, environment={**os.environ, "PROJECT_URL": url + "/"})
    (built,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = email.message_from_bytes(archive.read(name))
    version = metadata["Version"]
    urls = dict(entry.split(", ") for entry in metadata.get_all("Project-URL", []))
    # Airflow shows the one with this name as the provider's documentation.
    assert urls["Documentation"] == f"{url}/tree/v{version}/docs"
    assert urls["Source"] == url
    assert "maintainers" in metadata["Author"]
    text = metadata.get_payload(decode=True).decode()
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert links
    assert [link for link in links if not link.startswith(("https://", "#"))] == []
    assert "![The Run Backfill form" in text
    assert f"]({url}/raw/v{version}/docs/images/backfill-form.png)" in text


def test_wheel_has_the_clip_of_the_self_test(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert any(name.startswith("whisper_spark/assets/") and not name.endswith(".py") for name in names)


def test_wheel_imports_in_an_empty_environment(empty_environment: Path, tmp_path: Path) -> None:
    program = (
        "import sys, whisper_spark, airflow_whisper\n"
        "options = whisper_spark.WhisperOptions(model='base')\n"
        "assert airflow_whisper.WhisperOptions is whisper_spark.WhisperOptions\n"
        "assert whisper_spark.WhisperOptions.from_json(options.to_json()) == options\n"
        "print(whisper_spark.__file__, len([m for m in sys.modules if m.split('.')[0] == 'airflow']))"
    )
    location, airflow_modules = run(empty_environment, "-c", program, cwd=tmp_path).rsplit(" ", 1)
    assert Path(location).is_relative_to(empty_environment.parents[1])
    assert int(airflow_modules) == 0


def test_airflow_finds_the_provider(empty_environment: Path, tmp_path: Path) -> None:
    program = (
        "import json\n"
        "from importlib.metadata import entry_points\n"
        "(entry,) = entry_points(group='apache_airflow_provider')\n"
        "print(json.dumps(entry.load()()))"
    )
    assert json.loads(run(empty_environment, "-c", program, cwd=tmp_path)) == get_provider_info()


def test_provider_info_is_what_airflow_expects() -> None:
    import airflow

    schema = json.loads(Path(airflow.__file__).with_name("provider_info.schema.json").read_text())
    info = get_provider_info()
    jsonschema.validate(info, schema)
    assert info["package-name"] == "airflow-provider-whisper"


def test_provider_info_names_modules_that_exist() -> None:
    info = get_provider_info()
    modules = [
        module
        for kind in ("operators", "sensors", "triggers", "hooks")
        for entry in info.get(kind, [])
        for module in entry["python-modules"]
    ]
    assert modules
    for module in modules:
        importlib.import_module(module)


def test_pyspark_and_pyspark_client_have_one_version() -> None:
    # Both own the folder pyspark/: with different versions the one installed last wins, file by file.
    assert importlib.metadata.version("pyspark") == importlib.metadata.version("pyspark-client")


def test_airflow_side_installs_without_whisper_and_without_the_spark_runtime() -> None:
    assert "pyspark" not in requirements(None)
    assert "faster-whisper" not in requirements(None)
    assert {"pyspark", "pyspark-client"} <= requirements("spark")
    assert {"faster-whisper", "ctranslate2"} <= requirements("whisper")
    assert requirements("spark") | requirements("whisper") | requirements("amazon") <= requirements("all")


def requirements(extra: str | None) -> set[str]:
    """Names required by this project, without those that come in through Airflow."""
    names: set[str] = set()
    for text in importlib.metadata.requires("airflow-provider-whisper") or []:
        requirement = Requirement(text)
        only_for_extra = requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})
        chosen = extra and requirement.marker and requirement.marker.evaluate({"extra": extra})
        if (extra is None and not only_for_extra) or (only_for_extra and chosen):
            if requirement.name == "airflow-provider-whisper":
                names.update(*(requirements(e) for e in requirement.extras))
            else:
                names.add(requirement.name)
    return names


def test_requirements_without_airflow_are_those_of_the_project(
    empty_environment: Path, tmp_path: Path
) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    of_airflow = {r for r in project["dependencies"] if Requirement(r).name not in {"obstore", "pyarrow"}}
    wanted = {*project["dependencies"], *extras["whisper"]} - of_airflow
    # As on a machine that has nothing but the wheel.
    command = (empty_environment, "-m", "whisper_spark.requirements")
    assert set(run(*command, cwd=tmp_path).splitlines()) == wanted
    # The commands of the page, of which `empty_environment` has run the first.
    first, second, third = commands(named_block("without-airflow"))
    assert first == ["pip", "install", "--no-deps", "airflow-provider-whisper"]
    *printing, arrow, file = second
    assert (printing[:3], arrow) == (["python", "-m", "whisper_spark.requirements"], ">")
    printed = set(run(*command, *printing[3:], cwd=tmp_path).splitlines())
    (pyspark,) = (r for r in extras["spark"] if Requirement(r).name == "pyspark")
    assert printed == {*wanted, pyspark}
    assert third == ["pip", "install", "-r", file]


def test_constraints_pin_every_requirement_and_name_no_index() -> None:
    text = (ROOT / "constraints.txt").read_text()
    assert "://" not in text
    assert "--" not in text
    pinned = {line.split("==")[0] for line in text.splitlines() if "==" in line}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [
        *project["project"]["dependencies"],
        *(r for extra in project["project"]["optional-dependencies"].values() for r in extra),
        *project["dependency-groups"]["dev"],
    ]
    names = {Requirement(text).name for text in wanted} - {"airflow-provider-whisper"}
    assert names <= pinned


def test_version_is_the_same_everywhere() -> None:
    import whisper_spark

    assert importlib.metadata.version("airflow-provider-whisper") == whisper_spark.__version__
    assert f"## {whisper_spark.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_readme_knows_every_option_column_code_and_flag() -> None:
    from whisper_spark.contract import ERROR_CODES, QUALITY_FLAGS, Transcript

    readme = (ROOT / "README.md").read_text()
    names = [field.name for cls in (WhisperOptions, Transcript) for field in dataclasses.fields(cls)]
    missing = [name for name in (*names, *ERROR_CODES, *QUALITY_FLAGS) if f"`{name}`" not in readme]
    assert missing == []
