"""What a run folder says, and the commands that runs record."""

import pytest

from runs import make_entry
from vaezoo import strategies
from vaezoo.zoo import entries, provenance, runs


def record(command):
    return entries.TrainingRecord(
        command=command,
        commit=None,
        date="2026-01-01",
        hardware="a machine",
        init=None,
        phases=[],
    )


@pytest.mark.parametrize(
    ("command", "how"),
    [
        ("vaezoo train a --out b", "vaezoo train a --out b --resume"),
        ("vaezoo train a --out b --resume", "vaezoo train a --out b --resume"),
        ("vaezoo reproduce fame/kl --out b", "vaezoo reproduce fame/kl --out b"),
        (
            "vaezoo mine.py",
            "call vaezoo.train with the same arguments and resume=True.",
        ),
    ],
)
def test_how_to_continue(command, how):
    assert runs.how_to_continue([record(command)]) == f"Continue it: {how}"


def test_the_command_of_workers_is_what_started_them(monkeypatch):
    monkeypatch.setenv(strategies.LAUNCHER, "train a --out 'b c' --local-workers 2")
    assert provenance.command() == "vaezoo train a --out 'b c' --local-workers 2"


def test_a_folder_with_an_entry_alone_is_no_run(tmp_path):
    entry = make_entry()
    entries.write_entry(entry, tmp_path / "entry.yaml")
    read = entries.entry_from_file(tmp_path / "entry.yaml")
    assert runs.of_entry(read) is None
    assert runs.of_entry(entry) is None


def test_a_run_that_saved_nothing(tmp_path):
    entry = make_entry().model_copy(update={"history": [record("vaezoo train a")]})
    entries.write_entry(entry, tmp_path / "entry.yaml")
    (tmp_path / "log.csv").write_text("epoch,elbo\n0,-3.5\n1,")
    run = runs.of_entry(entries.entry_from_file(tmp_path / "entry.yaml"))
    assert (run.steps, run.has_ended, run.holder) == (0, False, None)
    assert run.last_epoch == {"epoch": "1"}
    assert run.unfinished == (
        "The run has not ended (0 steps saved). Continue it: vaezoo train a --resume"
    )
