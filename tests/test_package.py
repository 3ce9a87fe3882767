import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
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


@pytest.mark.parametrize("how", ["environment", "configuration"])
def test_another_backend_of_keras_is_refused_in_one_sentence(how, tmp_path):
    """Whether or not that backend is installed: Keras is not imported."""
    environment = dict(os.environ, KERAS_HOME=str(tmp_path))
    environment.pop("KERAS_BACKEND", None)
    if how == "environment":
        environment["KERAS_BACKEND"] = "jax"
    else:
        (tmp_path / "keras.json").write_text('{"backend": "jax"}')
    script = (
        "import sys, vaezoo\n"
        "for use in (lambda: vaezoo.load('pixelvae_digits', weights=None), "
        "lambda: vaezoo.train('pixelvae_digits', out='run'), "
        "lambda: vaezoo.evaluate(None, None)):\n"
        "    try: use()\n"
        "    except ImportError as error: print(error)\n"
        "print('keras' in sys.modules)"
    )
    *refusals, imported = run(sys.executable, "-c", script, env=environment).split("\n")
    assert len(refusals) == 3
    for refusal in refusals:
        assert (
            "needs Keras's TensorFlow backend. Received: the backend 'jax'" in refusal
        )
    assert imported == "False"


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
def test_the_import_works_from_anywhere(installed):
    """Above the clone too, where Python meets its root, a folder `vaezoo`, first."""
    python, clone, kind = installed
    script = (
        "import vaezoo; vaezoo.load; print(vaezoo.__file__); "
        "print(*vaezoo.list_models(), sep=',')"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    site = python.parents[1] if kind == "wheel" else clone
    folders = {clone.parent: site, clone: clone, python.parent: site}
    for folder, source in folders.items():
        output = run(python, "-c", script, cwd=folder, env=environment)
        file, models = output.splitlines()
        assert source in Path(file).parents
        assert models.split(",") == vaezoo.list_models()
    environment["PYTHONPATH"] = str(clone)
    script = "import vaezoo; print(vaezoo.load.__module__)"
    output = run(sys.executable, "-c", script, cwd=clone.parent, env=environment)
    assert output == "vaezoo.zoo.registry"


@pytest.fixture(scope="module", params=["wheel", "editable"])
def installed(request, clone, tmp_path_factory):
    """An environment with vaezoo: its Python, the clone, and how it is installed."""
    environment = tmp_path_factory.mktemp("environment").resolve()
    run(sys.executable, "-m", "venv", "--without-pip", environment)
    python = environment / "bin" / "python"
    # What vaezoo needs is taken from the environment of the tests, after its own.
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "zz_tests.pth").write_text(sysconfig.get_path("purelib") + "\n")
    source = ["-e", clone] if request.param == "editable" else [wheel_of(clone)]
    run(*PIP, "--python", python, "install", "--quiet", *OFFLINE, *source)
    return python, clone, request.param


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A clone in a folder of the package's name."""
    clone = tmp_path_factory.mktemp("above").resolve() / "vaezoo"
    clone.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone)
    for name in ("vaezoo", "zoo_configs"):
        shutil.copytree(ROOT / name, clone / name)
    return clone


PIP = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
OFFLINE = ["--no-deps", "--no-build-isolation"]


def wheel_of(clone):
    run(*PIP, "wheel", *OFFLINE, "--wheel-dir", clone.parent, clone)
    (wheel,) = clone.parent.glob("vaezoo-*.whl")
    return wheel


@pytest.mark.slow
def test_a_wheel_holds_the_zoo(clone):
    names = zipfile.ZipFile(wheel_of(clone)).namelist()
    for name in (
        "vaezoo/py.typed",
        "vaezoo/cli/__init__.py",
        "vaezoo/models/pixelvae.py",
    ):
        assert name in names
    for folder in ("zoo_configs", "vaezoo/pretrained"):
        for path in (ROOT / folder).glob("*.[hy]*"):
            prefix = "" if folder.startswith("vaezoo") else "vaezoo/"
            assert f"{prefix}{folder}/{path.name}" in names
