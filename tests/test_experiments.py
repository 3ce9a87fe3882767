"""`vaezoo reproduce`: tables and pictures from runs of a stated budget."""

import math

import numpy as np
import pytest
import yaml

import tiny
from vaezoo import experiments, plots
from vaezoo.experiments import comparison, fame
from vaezoo.zoo import entries, registry

BUDGET = {"images": 20, "num_importance_samples": 2, "verbose": 0}


def table(path):
    """The table of an experiment: the header's cells, and label -> a row's cells."""
    lines = [line for line in path.read_text().splitlines() if line.startswith("|")]
    header, _, *rows = [[c.strip() for c in line.split("|")[1:-1]] for line in lines]
    return header, rows


def test_errors_are_of_images_and_of_seeds():
    """Of `seed + image`: the variance of each over its number, added."""
    generator = np.random.default_rng(0)
    of_seeds, of_images = generator.normal(size=3), generator.normal(size=50)
    values = of_seeds[:, None] + of_images
    mean, error = comparison.estimate(values)
    assert mean == pytest.approx(of_seeds.mean() + of_images.mean())
    expected = of_seeds.var(ddof=1) / 3 + of_images.var(ddof=1) / 50
    assert error == pytest.approx(math.sqrt(expected))
    # What all models share is not in a difference; one seed leaves the images.
    assert comparison.estimate(values + 1 - values) == (pytest.approx(1), 0)
    error = comparison.estimate(values[:1])[1]
    assert error == pytest.approx(of_images.std(ddof=1) / math.sqrt(50))


@pytest.fixture
def trained(monkeypatch):
    """The calls of `train`, which gives tiny models by their names instead."""
    calls = []

    def use(names):
        def train(entry, **options):
            calls.append((entry, options))
            return tiny.shared(names[len(calls) - 1])

        monkeypatch.setattr(comparison, "train", train)
        monkeypatch.setattr(fame, "train", train)
        images = tiny.images_for(tiny.shared(names[0]), 20)
        for module in (comparison, fame):
            monkeypatch.setattr(module, "test_images", lambda dataset, num: images)
        return images

    use.calls = calls
    return use


def test_comparison(trained, tmp_path):
    """A row a model; what is printed is the paired difference of these models."""
    names = ["vlae", "vlae", "vlae_unconditional", "vlae_unconditional"]
    images = trained(names)
    path = experiments.reproduce(
        "vlae/unconditional", out=tmp_path, num_seeds=2, seed=4, epochs=1, **BUDGET
    )
    header, (code, without) = table(path)
    assert header[-2:] == ["-L_2 minus that of VLAE", "in the paper"]
    assert "-ELBO, nats" in header and "-L_2, nats" in header
    assert code[-2:] == ["-", "L_4096 78.53"] and without[-1] == "87.55"
    nats = [
        np.float64(
            tiny.shared(name).log_likelihood(images, num_importance_samples=2, seed=4)
        )
        for name in ("vlae", "vlae_unconditional")
    ]
    paired = nats[0] - nats[1]  # of the losses: the second's minus the first's
    error = paired.std(ddof=1) / math.sqrt(20)  # the seeds' models are one model here
    assert without[-2] == f"{paired.mean():+.2f} ± {error:.2f}"
    assert without[header.index("KL, nats")] == "0.00 ± 0.00"
    text = path.read_text()
    for part in ("trained 2 times, with seeds 4 to 5", "Printed by `vaezoo", "paired"):
        assert part in text
    entries_, options = zip(*trained.calls, strict=True)
    assert [entry.model.arguments.get("latent_size") for entry in entries_] == [
        None,
        None,
        0,
        0,
    ]
    assert entries_[0].training.batch_size == 64
    assert [call["seed"] for call in options] == [4, 5, 4, 5]
    assert len({call["out"] for call in options}) == 4
    assert path.with_suffix(".png").stat().st_size > 500


@pytest.mark.slow
def test_comparison_of_colour_models(trained, tmp_path):
    """Bounds in bits/dim, and a variant's own recipe."""
    images = trained(["fame", "fame_noconcat"])
    variants = {
        "both": comparison.Variant(),
        "one pass": comparison.Variant(
            {"concatenate": False}, recipe={"batch_size": 7}, paper={"digits": "2.98"}
        ),
    }
    path = comparison.compare(
        "fame_cifar10",
        variants,
        title="Two models",
        out=tmp_path,
        dataset="digits",
        epochs=1,
        num_seeds=1,
        seed=0,
        **BUDGET,
    )
    header, (_, one_pass) = table(path)
    assert path.name == "two_models.md" and one_pass[-1] == "2.98"
    nats = tiny.shared("fame_noconcat").elbo(images, seed=0)
    bits = -np.mean(nats) / (48 * math.log(2))
    cell = one_pass[header.index("-ELBO, bits/dim")]
    assert float(cell.split()[0]) == pytest.approx(bits, abs=0.006)
    assert trained.calls[1][0].training.batch_size == 7
    assert trained.calls[0][0].training.batch_size != 7
    assert "what another training seed would change is not in them" in path.read_text()


def test_windows_of_colour_images(trained, tmp_path):
    """Each window is trained once a seed; a code's KL stands beside what it leaves."""
    names = ["conv_vlae"] * 3 + ["conv_vlae_gray"]
    images = trained(names)
    path = experiments.reproduce(
        "vlae/cifar10-windows", out=tmp_path, num_seeds=1, seed=2, epochs=1, **BUDGET
    )
    header, rows = table(path)
    assert [row[0] for row in rows] == ["7x4", "5x3", "4x2", "7x4, gray"]
    arguments = [entry.model.arguments for entry, _ in trained.calls]
    assert [a["window"] for a in arguments] == ["7x4", "5x3", "4x2", "7x4"]
    assert [a.get("grayscale", False) for a in arguments] == [False] * 3 + [True]
    for name, row in zip(names, rows, strict=True):
        terms = tiny.shared(name).elbo_terms(images, seed=2)
        kl = float(row[header.index("KL, nats")].split()[0])
        assert kl == pytest.approx(np.mean(terms["kl"]), abs=0.006)
        bits = -np.mean(terms["elbo"]) / (images[0].size * math.log(2))
        cell = row[header.index("-ELBO, bits/dim")]
        assert float(cell.split()[0]) == pytest.approx(bits, abs=0.006)


def test_masking(trained, tmp_path):
    """With both inputs it is the ELBO's reconstruction; the image alone knows no z."""
    rows = {}
    for seed in (0, 1):
        images = trained(["fame_gray"] * 2)
        path = experiments.reproduce(
            "fame/masking", out=tmp_path, epochs=1, seed=seed, images=20, verbose=0
        )
        rows[seed] = {row[0]: row[1:] for row in table(path)[1]}
        both = float(rows[seed]["image and z"][0].split()[0])
        terms = tiny.shared("fame_gray").elbo_terms(images, seed=seed)
        assert both == pytest.approx(np.mean(terms["reconstruction"]), abs=0.006)
        for row in rows[seed].values():
            more = 0 if row[1] == "-" else float(row[1].split()[0])
            assert float(row[0].split()[0]) - both == pytest.approx(more, abs=0.011)
    assert rows[0]["image alone"][0] == rows[1]["image alone"][0]
    assert rows[0]["z alone"][0] != rows[1]["z alone"][0]


def test_kl_of_the_ladder(trained, tmp_path):
    """The levels' KL of each model, which add up, beside the paper's."""
    images = trained(["fame_gray", "fame_gray"])
    path = experiments.reproduce("fame/kl", out=tmp_path, epochs=1, verbose=0)
    rows = table(path)[1]
    assert [row[1] for row in rows] == ["z5", "z4", "z3", "z2", "z1", "all"] * 2
    terms = tiny.shared("fame_gray").elbo_terms(images, seed=0)
    for row in rows[:5]:
        expected = np.mean(terms[f"kl/{row[1]}"])
        assert float(row[2].split()[0]) == pytest.approx(expected, abs=6e-4)
    assert (rows[0][-1], rows[5][-1], rows[11][-1]) == ("5.04", "10.85", "12.29")


def test_options_that_an_experiment_has_not(tmp_path):
    with pytest.raises(ValueError, match="'fame/kl' has no `num_seeds`"):
        experiments.reproduce("fame/kl", out=tmp_path, num_seeds=2)
    with pytest.raises(ValueError, match="`num_seeds` must be a positive integer"):
        experiments.reproduce("vlae/priors", out=tmp_path, num_seeds=0)


def test_pictures_have_labels():
    """Text in a margin of its own; bars start at the axis, the longest of full length.

    The grid beside the margin is the grid without labels.
    """
    images = tiny.images_for(tiny.shared("vlae"), 6)
    plain = plots.image_grid(images, columns=3, levels=2)
    labelled = plots.image_grid(images, columns=3, levels=2, labels=["one", "two"])
    width = labelled.shape[1] - plain.shape[1]
    np.testing.assert_array_equal(labelled[:, width:], plain)
    margin = labelled[:, :width]
    half = len(margin) // 2
    assert set(np.unique(margin)) == {0, 255}
    assert np.any(margin[:half] != margin[-half:])  # "one", "two"
    with pytest.raises(ValueError, match="one a row of the grid, 2"):
        plots.image_grid(images, columns=3, labels=["one"])
    picture = plots.bars([1.0, 4.0, 0.0], labels=["a", "b", "c"], axis="nats")
    assert [np.max(np.sum(row == 96, axis=1)) for row in np.split(picture, 4)] == [
        0,
        80,
        320,
        0,
    ]
    with pytest.raises(ValueError, match="a label each"):
        plots.bars([1.0, -1.0], labels=["a", "b"], axis="nats")
    picture = plots.bars([[1.0, 3.0], [0.0, 2.0]], labels=["a", "b"], axis="nats")
    rows = np.split(picture, 3)[1:]
    for grey, sizes in ((96, [80, 0]), (160, [240, 160])):
        assert [np.max(np.sum(row == grey, axis=1)) for row in rows] == sizes


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
    """Runs are trained and recorded; a second call repeats none of them."""
    options = BUDGET | {"out": tmp_path, "dataset": "digits", "epochs": 1}
    path = experiments.reproduce("vlae/unconditional", num_seeds=2, **options)
    header, rows = table(path)
    # 6 layers on 8x8 pixels, from row 7 and column 4: 4 to the left, and k rows up 4 to
    # the left and at most k or 3 to the right.
    seen = 4 + sum(4 + 1 + min(k, 3) for k in range(1, 7))
    assert rows[0][header.index("receptive field")] == f"{seen} pixels"
    folder = tmp_path / "runs" / "digits"
    runs = sorted(p.relative_to(folder).as_posix() for p in folder.glob("*/*"))
    assert runs == [
        "vlae_digits_default/seed_0",
        "vlae_digits_default/seed_1",
        "vlae_digits_latent_size_0/seed_0",
        "vlae_digits_latent_size_0/seed_1",
    ]
    recorded = yaml.safe_load((folder / runs[1] / "entry.yaml").read_text())
    assert recorded["name"] == "vlae_digits_default"
    assert recorded["training"]["seed"] == 1
    logs = [(folder / run / "log.csv").read_text() for run in runs]
    assert all(len(log.splitlines()) == 2 for log in logs)
    text = path.read_text()
    again = experiments.reproduce("vlae/unconditional", num_seeds=2, **options)
    assert again.read_text() == text
    assert [(folder / run / "log.csv").read_text() for run in runs] == logs


def test_unknown_experiment(tmp_path):
    with pytest.raises(ValueError, match="Did you mean vlae/priors"):
        experiments.reproduce("vlae/prior", out=tmp_path)


@pytest.mark.slow
def test_generation(trained, tmp_path):
    trained(["fame_gray", "fame_gray"])
    path = experiments.reproduce("fame/generation", out=tmp_path, epochs=1, verbose=0)
    rows = table(path)[1]
    assert [int(row[1]) for row in rows] == [1, 16, 64] * 2
    for row in rows:
        low, high = map(float, row[3].split(" to "))
        assert 0 < low <= float(row[2]) <= high
