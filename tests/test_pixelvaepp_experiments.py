"""`vaezoo reproduce pixelvaepp/...`: what the tables say is what they name."""

import inspect

import numpy as np
import pytest
import tensorflow as tf

import tiny
from test_experiments import table
from vaezoo import experiments, plots, sampling
from vaezoo.experiments import comparison, energy, pixelvaepp
from vaezoo.models.pixelvaepp import PixelVAEPP

_TINY = {"RBM prior": "pixelvaepp", "Gaussian prior": "pixelvaepp_gaussian"}


@pytest.fixture
def images(monkeypatch):
    """Test images; the models are tiny ones, of one family, and little is drawn."""
    model = tiny.shared("pixelvaepp")
    monkeypatch.setattr(
        pixelvaepp, "_model", lambda label, out, **_: (tiny.shared("pixelvaepp"), label)
    )
    images = tiny.images_for(model, 40)
    monkeypatch.setattr(pixelvaepp, "test_images", lambda dataset, num: images[:num])
    return images


def numbers(row):
    return [float(cell.split()[0]) for cell in row]


def test_energy_distances():
    """Of images written out pixel by pixel; what is drawn alike is nearer."""
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (2, 3, 2, 3)).astype(np.uint8)
    rows = generator.integers(0, 256, (2, 4, 3, 2, 3)).astype(np.uint8)

    def distance(a, b):
        a, b = a.reshape(-1, 3).astype(float), b.reshape(-1, 3).astype(float)
        return sum((1e-10 + ((p - q) ** 2).sum()) ** 0.75 for p, q in zip(a, b))  # noqa: B905

    for index in range(2):
        row = rows[index]
        pairs = [distance(row[i], row[j]) for i in range(4) for j in range(i)]
        mutual = np.mean(pairs)
        to_image = np.mean([distance(images[index], other) for other in row])
        assert energy.mutual_distances(rows)[index] == pytest.approx(mutual)
        score = energy.energy_scores(images, rows)[index]
        assert score == pytest.approx(2 * to_image - mutual)
    same = np.repeat(images[:, None], 4, axis=1)
    np.testing.assert_allclose(energy.energy_scores(images, same), 0, atol=1e-5)


def test_images_drawn_with_the_latents_of_one(images, monkeypatch, tmp_path):
    """The table is of rows decoded from the posterior's draws."""
    monkeypatch.setattr(pixelvaepp, "_SAMPLES", 2)
    path = experiments.reproduce(
        "pixelvaepp/conditional", out=tmp_path, images=8, seed=3, verbose=0
    )
    header, (row, again) = table(path)
    assert header[1] == "to the test image" and row[1:] == again[1:]
    model = tiny.shared("pixelvaepp")
    latents = model.encode(images[:8], seed=3)["z"].numpy()
    z = np.repeat(latents, 2, axis=0)
    seeds = sampling.row_seeds(sampling.fold_in(3, 0), len(z))
    rows = model.decode({"z": z}, seed=seeds).numpy()
    rows = rows.reshape(8, 2, *model.image_shape)
    rows = plots.to_bytes(rows, model.levels)
    data = plots.to_bytes(images[:8], model.levels)
    own = energy.energy_scores(data, rows).mean() / 1_000
    other = energy.energy_scores(np.roll(data, 1, axis=0), rows).mean() / 1_000
    within = energy.mutual_distances(rows).mean() / 1_000
    expected = [own, other, other - own, within]
    assert numbers(row[1:5]) == pytest.approx(expected, abs=0.006)
    assert path.with_suffix(".png").stat().st_size > 500


@pytest.mark.parametrize("label", _TINY)
def test_images_drawn_with_one_draw_of_the_prior(label, monkeypatch, tmp_path):
    """After so many updates of the RBM; a Gaussian prior has none."""
    model = tiny.shared(_TINY[label])
    monkeypatch.setattr(pixelvaepp, "_model", lambda *_, **__: (model, label))
    monkeypatch.setattr(pixelvaepp, "_PRIORS", [label])
    monkeypatch.setattr(pixelvaepp, "_PRIOR_UPDATES", 3)
    seen = []

    def rows(model, values, seed, verbose):
        seen.append(values)
        return np.zeros([len(values), 8, *model.image_shape], np.uint8)

    monkeypatch.setattr(pixelvaepp, "_rows", rows)
    experiments.reproduce("pixelvaepp/prior", out=tmp_path, images=5, seed=2, verbose=0)
    seeds = tf.constant(sampling.row_seeds(2, 5))
    if model.is_discrete:
        expected = model.rbm.gibbs(seeds, num_updates=3)
    else:
        expected = sampling.row_normals(seeds, [model.num_latents], "z")
    np.testing.assert_array_equal(seen[0], expected)


def test_mixing(images, monkeypatch, tmp_path):
    """Both ends are the free energy under the RBM, enumerated, within 4 errors."""
    monkeypatch.setattr(pixelvaepp, "_MIXING_UPDATES", (1, 100, 2_000))
    many = np.tile(images, [25, 1, 1, 1])
    monkeypatch.setattr(pixelvaepp, "test_images", lambda dataset, num: many[:num])
    path = experiments.reproduce("pixelvaepp/mixing", out=tmp_path, verbose=0)
    header, rows = table(path)
    rbm = tiny.shared("pixelvaepp").rbm
    bits = np.arange(2**rbm.num_left)[:, None] >> np.arange(rbm.num_left) & 1
    log_marginals = np.float64(rbm.left_log_marginal(bits))
    weights = np.exp(log_marginals - log_marginals.max())
    expected = -np.sum(log_marginals * weights) / weights.sum()
    assert [row[0] for row in rows] == ["0", "1", "100", "2,000"]
    for cell in rows[-1][1:3]:
        value, error = map(float, cell.split(" ± "))
        assert abs(value - expected) < 4 * error + 0.01
    assert rows[0][4] == "1.00" and abs(float(rows[-1][4])) < 4 / np.sqrt(400)
    fair, from_images = numbers(rows[0][1:3])
    assert float(rows[0][3].split()[0]) == pytest.approx(fair - from_images, abs=0.011)


def test_runs_are_of_one_small_size(monkeypatch, tmp_path):
    """What is compared differs by what the row says, and experiments share runs."""
    calls = []

    def train(entry, **options):
        calls.append((entry, options))
        return tiny.shared(
            "pixelvaepp_gaussian" if "gauss" in entry.name else _TINY["RBM prior"]
        )

    monkeypatch.setattr(comparison, "train", train)
    images = tiny.images_for(tiny.shared("pixelvaepp"), 20)
    monkeypatch.setattr(comparison, "test_images", lambda dataset, num: images)
    path = experiments.reproduce(
        "pixelvaepp/temperatures",
        out=tmp_path,
        epochs=2,
        images=20,
        num_importance_samples=2,
        verbose=0,
    )
    header, rows = table(path)
    assert [row[0] for row in rows] == [".25", ".1", ".5", ".5 to .25", ".1 to .25"]
    assert "log Z, nats" in header and "LL 78.65" in rows[0][-1]
    arguments = [entry.model.arguments for entry, _ in calls]
    steps = 2 * -(-50_000 // 32)
    assert arguments[3]["relaxation_steps"] == steps
    assert arguments[3]["final_relaxation_temperature"] == 0.25
    assert {a["filters"] for a in arguments} == {16}
    assert calls[0][0].training.kl_warmup_steps == steps // 2
    temperatures = {options["out"] for _, options in calls}
    assert len(temperatures) == 5
    del calls[:]
    pixelvaepp._model(
        "Gaussian prior",
        tmp_path,
        dataset="omniglot",
        epochs=None,
        seed=0,
        verbose=0,
    )
    pixelvaepp._model(
        "RBM prior", tmp_path, dataset="mnist_static", epochs=2, seed=0, verbose=0
    )
    assert calls[0][0].model.arguments["prior"] == "gaussian"
    assert calls[1][1]["out"] in temperatures


@pytest.mark.parametrize(
    ("name", "differing"),
    [
        ("priors", [{}, {"prior": "gaussian"}]),
        ("groups", [{}, {"z2_size": 64}, {"z2_size": 64, "z3_size": 16}]),
    ],
)
def test_variants(name, differing, monkeypatch, tmp_path):
    """What is compared, three seeds each, with the paper's figures of the dataset."""
    seen = {}

    def compare(entry_name, variants, **options):
        seen.update(options, entry_name=entry_name, variants=variants)

    monkeypatch.setattr(pixelvaepp, "compare", compare)
    experiments.reproduce(f"pixelvaepp/{name}", out=tmp_path, dataset="omniglot")
    variants = list(seen["variants"].values())
    assert seen["entry_name"] == "pixelvaepp_omniglot" and seen["num_seeds"] == 3
    assert [variant.arguments for variant in variants] == differing
    taken = inspect.signature(PixelVAEPP).parameters
    assert {*seen["arguments"], *(k for d in differing for k in d)} <= set(taken)
    assert all(variant.paper["omniglot"] for variant in variants)


def test_datasets_without_entries(tmp_path):
    with pytest.raises(
        ValueError, match="'mnist_static', .*Received: dataset='digits'"
    ):
        experiments.reproduce("pixelvaepp/prior", out=tmp_path, dataset="digits")
