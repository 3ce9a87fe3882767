"""`vaezoo reproduce agave/...`: what the tables say is what they name."""

import numpy as np
import pytest

import tiny
from test_experiments import table
from vaezoo import experiments
from vaezoo.experiments import agave, comparison


@pytest.fixture
def model(monkeypatch):
    """A tiny AGAVE in place of every run, and random test images."""
    model = tiny.shared("agave")
    monkeypatch.setattr(comparison, "train_variant", lambda *args, **options: model)
    monkeypatch.setattr(agave, "_model", lambda out, **options: (model, "A tiny one."))
    images = tiny.images_for(model, 40)
    monkeypatch.setattr(agave, "test_images", lambda dataset, num: images[:num])
    monkeypatch.setattr(agave, "_SHOWN", 4)
    return model


def numbers(row):
    return [float(cell.split()[0]) for cell in row]


def test_the_table_of_a_sweep(model, tmp_path):
    """KL, and both decoders' bits/dim without it and with it, each of its image."""
    path = experiments.reproduce(
        "agave/auxiliary", out=tmp_path, images=6, num_seeds=2, seed=3, verbose=0
    )
    header, rows = table(path)
    assert header[0] == "auxiliary image" and len(rows) == 4
    terms = model.elbo_terms(tiny.images_for(model, 40)[:6], seed=3)
    means = {name: float(np.mean(value)) for name, value in terms.items()}
    of_y = model.num_auxiliary_dims * np.log(2)
    of_x = model.num_dims * np.log(2)
    expected = [
        means["kl"],
        means["auxiliary"] / of_y,
        (means["auxiliary"] + means["kl"]) / of_y,
        means["reconstruction"] / of_x,
        -means["elbo"] / of_x,
    ]
    for row in rows:
        assert numbers(row[1:6]) == pytest.approx(expected, rel=1e-3, abs=2e-2)
    assert [row[0] for row in rows] == ["32x32", "16x16", "8x8", "gray, 4 bits"]
    assert path.with_suffix(".png").stat().st_size > 500


def test_a_kl_that_does_not_fall_with_lambda_is_an_error(model, tmp_path):
    with pytest.raises(RuntimeError, match="must fall with lambda. Measured: "):
        experiments.reproduce(
            "agave/lambda", out=tmp_path, images=4, num_seeds=1, verbose=0
        )
    (path,) = tmp_path.glob("*.md")
    assert len(table(path)[1]) == 5


def test_variants_are_trained_by_what_differs(monkeypatch, tmp_path):
    """And what is alike in two sweeps is one run, in one folder."""
    asked = []

    def train(entry, out, **options):
        asked.append((entry.model.arguments, entry.training, out))
        return tiny.shared("agave")

    monkeypatch.setattr(comparison, "train", train)
    images = tiny.images_for(tiny.shared("agave"), 4)
    monkeypatch.setattr(agave, "test_images", lambda dataset, num: images)
    monkeypatch.setattr(agave, "_reconstructions_and_samples", lambda *_: [images] * 4)
    with pytest.raises(RuntimeError):
        experiments.reproduce("agave/lambda", out=tmp_path, num_seeds=1, verbose=0)
    assert [recipe.kl_weight for _, recipe, _ in asked] == [1, 2, 4, 8, 12]
    experiments.reproduce("agave/colours", out=tmp_path, num_seeds=1, verbose=0)
    levels = [arguments.get("auxiliary_levels") for arguments, _, _ in asked[5:]]
    assert levels == [None, 32, 8]
    assert asked[5] == asked[3]
    assert len({out for _, _, out in asked}) == 7
    recipe = asked[-1][1]
    assert (recipe.kl_weight, recipe.mode) == (8.0, "joint")
    assert recipe.kl_warmup_steps == 2344  # half of three epochs of 50,000 by 32


@pytest.mark.slow
def test_samples_of_three_models(model, monkeypatch, tmp_path):
    """Each row is of its model; the VAE alone is trained on its bound."""
    names = {"IAF VAE": "iafvae", "PixelCNN++": "pixelcnnpp", "AGAVE": "agave"}
    recipes = []

    def train(entry, **options):
        recipes.append(entry.training)
        return tiny.shared("iafvae")

    monkeypatch.setattr(comparison, "train", train)
    alone = (tiny.shared("pixelcnnpp"), "Another.")
    images = tiny.images_for(alone[0], 6)
    monkeypatch.setattr(agave, "test_images", lambda dataset, num: images)
    monkeypatch.setattr(agave, "of_the_zoo", lambda entry: alone)
    path = experiments.reproduce(
        "agave/samples", out=tmp_path, images=6, seed=3, verbose=0
    )
    assert [(r.kl_weight, r.free_bits_nats) for r in recipes] == [(1, 0)]
    assert "kl_weight 1.0, free_bits_nats 0.0" in path.read_text()
    rows = table(path)[1]
    assert [row[0] for row in rows] == list(names)
    for label, parameters, bits, _ in rows:
        each = tiny.shared(names[label])
        nats = np.mean(each.elbo(images, seed=3))
        expected = -nats / (each.num_dims * np.log(2))
        assert float(bits.split()[0]) == pytest.approx(expected, abs=0.006)
        assert parameters == comparison.num_parameters(each)


@pytest.mark.slow
def test_pictures_of_what_latents_say(model, tmp_path):
    path = experiments.reproduce(
        "agave/conditional", out=tmp_path, images=3, seed=1, verbose=0
    )
    header, (row,) = table(path)
    own, other, difference = numbers(row)
    assert difference == pytest.approx(other - own, abs=0.011)
    path = experiments.reproduce(
        "agave/interpolation", out=tmp_path, images=2, seed=1, verbose=0
    )
    header, rows = table(path)
    assert [row[0] for row in rows] == ["0.00", "0.33", "0.67", "1.00"]
    images = tiny.images_for(model, 40)
    means = model.encode(images[:4], seed=1, mode="mean")
    shown = agave._shown(model, means).astype(float)
    drawn = model.decode(means, seed=[0, 1, 2, 3]).numpy()
    assert shown.shape == drawn.shape == (4, 8, 8, 3)


@pytest.mark.slow
def test_training_without_the_auxiliary_image(model, monkeypatch, tmp_path):
    images = tiny.images_for(model, 32)
    trained = tiny.build("agave")
    monkeypatch.setattr(agave, "_model", lambda out, **_: (trained, "A tiny one."))
    monkeypatch.setattr(agave, "_COLLAPSE_STEPS", 4)
    monkeypatch.setattr(agave, "_COLLAPSE_PART", 2)
    import tensorflow as tf

    data = tf.data.Dataset.from_tensor_slices(images).batch(16)
    monkeypatch.setattr(agave.datasets, "load_dataset", lambda *_, **options: data)
    path = experiments.reproduce(
        "agave/collapse", out=tmp_path, images=8, seed=1, verbose=0
    )
    _, rows = table(path)
    assert [row[0] for row in rows] == ["0", "2", "4"]
    assert trained.optimizer.iterations.numpy() == 4
    before = numbers(rows[0])[1]
    first = tiny.images_for(model, 40)[:8]
    exact = float(np.mean(tiny.build("agave").elbo_terms(first, seed=1)["kl"]))
    assert before == pytest.approx(exact, abs=0.01)
    assert trained.get_compile_config()["auxiliary_weight"] == 0
