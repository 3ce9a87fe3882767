"""Recipes of several phases: in order, exactly resumed, and what is refused."""

import numpy as np
import pytest

import vaezoo
from runs import STEPS, make_entry, rows
from vaezoo.training import checkpoints
from vaezoo.training import run as training


def schedule(name, **options):
    return {"learning_rate_decay": {"schedule": name, **options}}


FIRST = {"name": "first", "epochs": 2, "max_steps": STEPS + 3}
SECOND = {"name": "second", "epochs": 1, "learning_rate": 0.001, "kl_warmup_steps": 0}


def values(model):
    return [v.numpy() for v in [*model.weights, *model.optimizer.variables]]


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An undisturbed run of two phases, and the model that it returned."""
    out = tmp_path_factory.mktemp("runs") / "run"
    entry = make_entry(FIRST, SECOND)
    return out, training.train(entry, out=out, checkpoint_steps=1, verbose=0)


# A run of phases.


def test_a_run_records_its_phases(run):
    out, model = run
    entry = vaezoo.describe(out)
    assert [recipe.name for recipe in entry.phases] == ["first", "second"]
    (record,) = entry.history
    first, second = record.phases
    assert (first.name, first.steps, first.images) == ("first", 9, 1437 + 3 * 256)
    assert (second.name, second.steps, second.epochs) == ("second", STEPS, 1.0)
    assert record.init is None and first.seconds > 0
    assert [row["epoch"] for row in rows(out)] == ["0", "1", "2"]
    names = [path.name for path in checkpoints.list_checkpoints(out / "checkpoints")]
    assert names == ["step-000000014", "step-000000015"]
    assert checkpoints.num_steps(model) == STEPS  # an optimizer of its own
    np.testing.assert_allclose(model.optimizer.learning_rate, 1e-4, rtol=1e-5)
