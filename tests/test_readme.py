"""Every step of the README and of the documents works as pasted."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from prepared import skip_unless_prepared
from vaezoo.zoo import registry

README = Path(__file__).parents[1] / "README.md"
# Of docs/, those with steps in Python, and the dataset they need beside scikit-learn's.
DOCUMENTS = {
    "adding_a_model.md": None,
    "auxiliary_guidance.md": None,
    "ladder_inference.md": "cifar10",
    "lossy_codes.md": None,
    "training.md": None,
    "two_levels.md": None,
}


def blocks(language, path=README):
    text = path.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


@pytest.mark.slow
def test_python_steps(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    steps = [*blocks("python"), "assert images.shape == (16, 28, 28, 1)"]
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    process = subprocess.run(
        [sys.executable, "-c", "\n".join(steps)],
        capture_output=True,
        text=True,
        env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.returncode == 0, process.stderr
    assert process.stderr == ""
    assert (tmp_path / "served/pixelvae_digits/1/saved_model.pb").exists()


@pytest.mark.slow
@pytest.mark.parametrize("document", DOCUMENTS)
def test_steps_of_the_documents(document, tmp_path, monkeypatch):
    if DOCUMENTS[document]:
        skip_unless_prepared(DOCUMENTS[document])
    monkeypatch.chdir(tmp_path)
    path = README.parent / "docs" / document
    names = {}
    steps = blocks("python", path)
    assert steps
    for step in steps:
        exec(compile(step, str(path), "exec"), names)


def has_images(command, name=None, *_):
    """Whether the test images that a command begins from are there."""
    if command not in ("reconstruct", "complete", "interpolate"):
        return True
    try:
        skip_unless_prepared(registry.describe(name).dataset)
    except pytest.skip.Exception:
        return False
    return True


@pytest.mark.slow
def test_shell_steps(tmp_path, monkeypatch):
    from click.testing import CliRunner

    from vaezoo import cli

    monkeypatch.chdir(tmp_path)
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    steps = [part.strip() for line in lines for part in line.split("&&")]
    steps = [shlex.split(step) for step in steps if step.startswith("vaezoo ")]
    assert len(steps) >= 9
    for _, *arguments in steps:
        if not has_images(*arguments):
            continue
        result = CliRunner().invoke(cli.main, arguments)
        assert result.exit_code == 0, (arguments, result.output, result.exception)
        assert "Warning" not in result.stderr
    assert (tmp_path / "samples.png").exists()
    assert (tmp_path / "served/my_digits/1/saved_model.pb").exists()


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["mirrored", "multi_worker"])
def test_shell_steps_under_a_strategy(strategy, tmp_path):
    """In a process of its own, where TensorFlow has not begun."""
    text = "".join(blocks("bash", README.parent / "docs" / "training.md"))
    (step,) = (line for line in text.splitlines() if strategy in line)
    _, *arguments = shlex.split(step)
    subprocess.run(
        [sys.executable, "-m", "vaezoo", *arguments],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        timeout=300,
    )
    (weights,) = tmp_path.rglob("weights.h5")
    assert (weights.parent / "log.csv").exists()


def test_experiments_are_of_the_weights_that_ship():
    stated = {
        match.groups()
        for path in (README.parent / "docs/experiments").glob("*.md")
        for match in re.finditer(
            r"weights of `(\w+)` \(SHA-256 (\w{8})", path.read_text(encoding="utf-8")
        )
    }
    assert stated
    for name, digest in stated:
        weights = registry.describe(name).weights
        assert weights.sha256.startswith(digest), f"run again what shows {name}"
