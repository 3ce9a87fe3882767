import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import vaezoo

ROOT = Path(__file__).parents[1]
HEAVY = ("tensorflow", "keras", "tensorflow_probability", "pydantic", "h5py", "yaml")


def run(*command, **kwargs):
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=300, **kwargs
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout.strip()


def test_importing_vaezoo_is_light():
    script = f"import sys, vaezoo; print([m for m in {HEAVY} if m in sys.modules])"
    assert run(sys.executable, "-c", script) == "[]"


def test_the_zoo_is_listed_without_tensorflow():
    script = (
        "import sys, vaezoo;"
        "vaezoo.describe(vaezoo.list_models(trained=False)[0]);"
        "print([m for m in ('tensorflow', 'keras', 'h5py') if m in sys.modules])"
    )
    assert run(sys.executable, "-c", script) == "[]"


def test_public_names():
    assert set(vaezoo.__all__) <= set(dir(vaezoo))
    assert set(vaezoo.__all__) == set(vaezoo._MODULES)
    for name in vaezoo.__all__:
        assert callable(getattr(vaezoo, name))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        vaezoo.nonsense  # noqa: B018


def test_version():
    assert re.fullmatch(r"\d+\.\d+\.\d+", vaezoo.__version__)
    try:
        installed = importlib.metadata.version("vaezoo")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("vaezoo is not installed here")
    assert installed == vaezoo.__version__


@pytest.mark.slow
def test_a_wheel_holds_the_zoo(tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path]
    source = tmp_path / "source"
    source.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("vaezoo", "zoo_configs"):
        shutil.copytree(ROOT / name, source / name)
    run(*pip, "wheel", *options, source)
    (wheel,) = tmp_path.glob("vaezoo-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("vaezoo/py.typed", "vaezoo/cli.py", "vaezoo/models/pixelvae.py"):
        assert name in names
    for folder in ("zoo_configs", "vaezoo/pretrained"):
        for path in (ROOT / folder).glob("*.[hy]*"):
            prefix = "" if folder.startswith("vaezoo") else "vaezoo/"
            assert f"{prefix}{folder}/{path.name}" in names

    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    script = "import vaezoo; print(vaezoo.__file__); print(*vaezoo.list_models())"
    output = run(
        sys.executable,
        "-c",
        script,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site)},
    )
    file, models = output.splitlines()
    assert site in Path(file).parents
    assert models.split() == vaezoo.list_models()
