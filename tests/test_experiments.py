"""`vaezoo reproduce`: tables and pictures from runs of a stated budget."""

import pytest
import yaml

from vaezoo import experiments
from vaezoo.experiments import comparison, fame
from vaezoo.zoo import entries, registry


@pytest.fixture
def tiny_entry(monkeypatch):
    """The digits entry, as a tiny VLAE."""
    entry = registry.describe("pixelvae_digits")
    arguments = {
        "image_shape": [8, 8, 1],
        "latent_size": 3,
        "flow_steps": 1,
        "flow_hidden_sizes": [8],
        "filters": 4,
    }
    recipe = entry.training.model_dump() | {"batch_size": 500}
    content = entry.model_dump() | {
        "name": "vlae_digits",
        "model": {"class": "VLAE", "arguments": arguments},
        "training": recipe,
        "weights": None,
        "measured": [],
        "status": "untrained",
    }
    entry = entries.ZooEntry.model_validate(content)
    monkeypatch.setattr(comparison.registry, "describe", lambda name: entry)


@pytest.mark.slow
def test_reproduce(tiny_entry, tmp_path):
    """A row a variant, with its window; a second call repeats no run."""
    options = {
        "out": tmp_path,
        "dataset": "digits",
        "epochs": 1,
        "images": 20,
        "num_importance_samples": 2,
        "verbose": 0,
    }
    path = experiments.reproduce("vlae/unconditional", **options)
    text = path.read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert "-L_2" in lines[0] and "pixels" in lines[2]
    assert "unconditional decoder" in lines[3] and "| 0.00 | 0.00 |" in lines[3]
    assert (
        "Epochs of `digits` each: 1, by" in text
        and "batch_size 64" in text
        and "first 20 test images" in text
    )
    assert (tmp_path / "vlae_unconditional.png").stat().st_size > 500
    runs = sorted(p.name for p in (tmp_path / "runs" / "digits").iterdir())
    assert runs == ["default", "latent_size_0"]
    recorded = yaml.safe_load((tmp_path / "runs/digits/default/entry.yaml").read_text())
    assert recorded["name"] == "vlae_digits_default"
    logs = [
        (tmp_path / "runs/digits" / run / "log.csv").read_text().splitlines()
        for run in runs
    ]
    assert experiments.reproduce("vlae/unconditional", **options).read_text() == text
    again = [
        (tmp_path / "runs/digits" / run / "log.csv").read_text().splitlines()
        for run in runs
    ]
    assert again == logs and all(len(log) == 2 for log in logs)


def test_unknown_experiment(tmp_path):
    with pytest.raises(ValueError, match="Did you mean vlae/priors"):
        experiments.reproduce("vlae/prior", out=tmp_path)


@pytest.fixture
def tiny_fame(monkeypatch):
    """FAME's entries, as a tiny model of the digits."""
    arguments = {
        "image_shape": [8, 8, 1],
        "levels": 2,
        "spatial": False,
        "latent_sizes": [2, 2, 2, 2, 3],
        "filters": 8,
        "pixelcnn_filters": 8,
    }
    describe = registry.describe

    def tiny(name):
        entry = describe(name)
        concatenate = "noconcat" not in entry.name
        content = entry.model_dump() | {
            "model": {
                "class": "FAME",
                "arguments": arguments | {"concatenate": concatenate},
            },
            "dataset": "digits",
            "training": entry.training.model_dump() | {"batch_size": 500},
            "weights": None,
            "measured": [],
            "status": "untrained",
        }
        return entries.ZooEntry.model_validate(content)

    monkeypatch.setattr(fame.registry, "describe", tiny)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["kl", "masking", "generation"])
def test_reproduce_fame(tiny_fame, tmp_path, name):
    options = {"out": tmp_path, "epochs": 1, "images": 20, "verbose": 0}
    path = experiments.reproduce(f"fame/{name}", num_importance_samples=2, **options)
    lines = [line for line in path.read_text().splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    if name == "kl":
        assert [row[0] for row in cells] == ["z5", "z4", "z3", "z2", "z1", "all"]
        kls = [float(row[1]) for row in cells]
        assert sum(kls[:-1]) == pytest.approx(kls[-1], abs=0.01)
    elif name == "masking":
        nats = {row[0]: float(row[1]) for row in cells}
        assert len(set(nats.values())) == 3
        assert nats["both"] < max(nats["z masked"], nats["x masked"])
    else:
        assert [int(row[1]) for row in cells] == [1, 16, 64] * 2
    assert path.with_suffix(".png").stat().st_size > 200
