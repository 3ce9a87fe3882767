"""`vaezoo reproduce pixelvae/...`: what the tables say is what they name."""

import numpy as np
import pytest

import tiny
from test_experiments import BUDGET, table
from vaezoo import experiments, plots, sampling
from vaezoo.experiments import comparison, pixelvae
from vaezoo.zoo import registry


def tiny_name(arguments):
    """Of the tiny model that stands for one with these arguments."""
    if arguments.get("latent_size") == 0:
        return "gated_pixelcnn"
    return "gated_pixelvae" if arguments["num_layers"] else "vae"


@pytest.fixture
def calls(monkeypatch):
    """The calls of `train`, which gives tiny models instead."""
    made = []

    def train(entry, **options):
        made.append((entry, options))
        return tiny.shared(tiny_name(entry.model.arguments))

    monkeypatch.setattr(comparison, "train", train)
    return made


@pytest.fixture
def images(monkeypatch):
    images = tiny.images_for(tiny.shared("vae"), 20)
    for module in (comparison, pixelvae):
        monkeypatch.setattr(module, "test_images", lambda dataset, num: images[:num])
    return images


def number(cell):
    return float(cell.split()[0])


def test_layers(calls, images, monkeypatch, tmp_path):
    """A row a number of layers; KL and reconstruction add up, differences are paired.

    Without layers there is no PixelCNN; the picture has a bar of two parts a model.
    """
    monkeypatch.setattr(pixelvae, "_LAYERS", (0, 1, 8))
    drawn = []
    bars = plots.bars
    monkeypatch.setattr(
        plots, "bars", lambda values, **how: drawn.append(values) or bars(values, **how)
    )
    path = experiments.reproduce(
        "pixelvae/layers", out=tmp_path, seed=3, epochs=2, **BUDGET
    )
    header, rows = table(path)
    assert path.name == "pixelvae_layers.md"
    assert [row[0] for row in rows] == ["0", "1", "8"]
    names = ["-ELBO, nats", "KL, nats", "reconstruction, nats", "-L_2, nats"]
    names += ["-log p of PixelCNN, nats", "-L_2 minus -log p"]
    bounds = {
        name: np.float64(
            tiny.shared(name).log_likelihood(images, num_importance_samples=2, seed=3)
        ).mean()
        for name in ("vae", "gated_pixelvae", "gated_pixelcnn")
    }
    for row, name in zip(rows, ["vae", *["gated_pixelvae"] * 2], strict=True):
        cells = [row[header.index(column)] for column in names]
        terms = tiny.shared(name).elbo_terms(images, seed=3)
        elbo, kl = np.mean(terms["elbo"]), np.mean(terms["kl"])
        expected = [-elbo, kl, -elbo - kl, -bounds[name]]
        assert [number(cell) for cell in cells[:4]] == pytest.approx(expected, abs=0.01)
        if row[0] == "0":
            assert cells[4:] == ["-", "-"]
            continue
        alone = -bounds["gated_pixelcnn"]
        assert number(cells[4]) == pytest.approx(alone, abs=0.01)
        difference = -bounds[name] - alone
        assert number(cells[5]) == pytest.approx(difference, abs=0.01)
    assert np.shape(drawn[0]) == (5, 2) and path.with_suffix(".png").exists()
    differing = [entry.model.arguments for entry, _ in calls]
    assert [a["num_layers"] for a in differing] == [0, 1, 1, 8, 8]
    assert [a["latent_size"] for a in differing] == [64, 64, 0, 64, 0]
    assert {(a["filters"], a["first_kernel_size"]) for a in differing} == {(16, 5)}
    assert len({options["out"] for _, options in calls}) == 5
    recipe = calls[0][0].training
    assert recipe.kl_warmup_start == 0
    assert recipe.kl_warmup_steps == int(0.9 * 2 * -(-50_000 // 32))


def test_decoders(calls, images, monkeypatch, tmp_path):
    """Samples of all three under the test images, and runs shared with `layers`."""
    shown = []
    grid = plots.image_grid
    monkeypatch.setattr(
        plots, "image_grid", lambda x, **how: shown.append((x, how)) or grid(x, **how)
    )
    path = experiments.reproduce(
        "pixelvae/decoders", out=tmp_path, epochs=2, seed=3, **BUDGET
    )
    header, rows = table(path)
    assert [row[0] for row in rows] == ["PixelCNN", "VAE", "PixelVAE"]
    assert [row[-1].split()[-1] for row in rows] == ["80.1", "87.4", "80.08"]
    drawn = [
        tiny.shared(name).sample(10, seed=3, jit=False).numpy()
        for name in ("gated_pixelcnn", "vae", "gated_pixelvae")
    ]
    ((pictures, how),) = shown
    np.testing.assert_array_equal(pictures, np.concatenate([images[:10], *drawn]))
    assert how["labels"] == ["test images", "PixelCNN", "VAE", "PixelVAE"]
    assert "samples of seed 3" in path.read_text()
    runs = {options["out"] for _, options in calls}
    experiments.reproduce("pixelvae/layers", out=tmp_path, epochs=2, seed=3, **BUDGET)
    others = {options["out"] for _, options in calls[3:]}
    assert len(runs & others) == 2


@pytest.mark.slow
def test_what_is_compared_is_of_comparable_size(calls, images, monkeypatch, tmp_path):
    experiments.reproduce("pixelvae/decoders", out=tmp_path, **BUDGET)
    counts = [
        sum(np.prod(v.shape) for v in registry.build(entry).trainable_variables)
        for entry, _ in calls
    ]
    assert max(counts) < 1.5 * min(counts)


@pytest.mark.slow
def test_runs_of_digits(monkeypatch, tmp_path):
    """Trained and measured; a second call repeats no run."""
    monkeypatch.setattr(pixelvae, "_ENTRY", "pixelvae_digits")
    size = {"filters": 4, "first_kernel_size": 5, "upsample": True}
    monkeypatch.setattr(pixelvae, "_SIZE", size)
    monkeypatch.setattr(pixelvae, "_LAYERS", (0, 2))
    options = BUDGET | {"out": tmp_path, "dataset": "digits", "epochs": 1}
    path = experiments.reproduce("pixelvae/layers", **options)
    text = path.read_text()
    header, rows = table(path)
    # 8x8 pixels, from the bottom row and column 4: two layers of 5x5 see 4 pixels to
    # the left and at most 3 to the right, up to 4 rows above.
    seen = [number(row[1]) for row in rows]
    assert seen[0] == 0 and 4 < seen[1] <= 4 + 4 * 8
    logs = sorted(tmp_path.rglob("log.csv"))
    assert len(logs) == 3
    before = [log.read_text() for log in logs]
    assert experiments.reproduce("pixelvae/layers", **options).read_text() == text
    assert [log.read_text() for log in logs] == before


@pytest.mark.slow
def test_noise_of_one_level_is_drawn_anew(monkeypatch, tmp_path):
    """A row of the table is of images that differ in one level's noise."""
    model = tiny.shared("pixelvae2")
    monkeypatch.setattr(pixelvae, "_hierarchical", lambda out, **_: (model, "Tiny."))
    monkeypatch.setattr(pixelvae, "_RESAMPLED", 2)
    path = experiments.reproduce(
        "pixelvae/resampling", out=tmp_path, images=3, seed=5, verbose=0
    )
    _, rows = table(path)
    assert [row[0] for row in rows] == ["z2", "z1", "pixels"]
    held, moved = sampling.row_seeds(5, 3), sampling.row_seeds(6, 6)
    seeds = {name: np.repeat(held, 2) for name in ("z2", "z1", "pixels")}
    drawn = model.sample(6, seed=seeds | {"z1": moved}).numpy().astype(float)
    distances = np.sqrt(((drawn[1::2] - drawn[::2]) ** 2).mean(axis=(1, 2, 3)))
    assert number(rows[1][1]) == pytest.approx(distances.mean(), abs=0.006)
    assert path.with_suffix(".png").stat().st_size > 500


def test_ablations_differ_in_what_they_say(calls, monkeypatch, tmp_path):
    model = tiny.shared("pixelvae2")
    monkeypatch.setattr(
        comparison, "train", lambda entry, **_: calls.append(entry) or model
    )
    images = tiny.images_for(model, 4)
    monkeypatch.setattr(comparison, "test_images", lambda dataset, num: images)
    path = experiments.reproduce("pixelvae/ablations", out=tmp_path, verbose=0)
    _, rows = table(path)
    assert [row[0] for row in rows][0] == "two levels" and len(rows) == 4
    arguments = [entry.model.arguments for entry in calls]
    assert [a["z1_channels"] for a in arguments] == [8, 0, 8, 8]
    assert arguments[2]["higher_level_pixelcnn"] is False
    assert arguments[3]["pixel_level_pixelcnn"] is False
    assert calls[0].training.kl_warmup_steps > 0
