"""A prior whose log Z is estimated, and binary latents: what becomes of them."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tiny
from vaezoo import evaluation, sampling
from vaezoo.models import computations
from vaezoo.models.pixelvaepp import PixelVAEPP
from vaezoo.zoo import cards, entries, provenance, registry, weights

ARGUMENTS = {
    "image_shape": (8, 8, 1),
    "levels": 2,
    "filters": 4,
    "num_resnets": 1,
    "dropout": 0.0,
    "strided": False,
    "z1_size": 4,
    "z2_size": 0,
    "z3_size": 0,
    "num_chains": 20,
    "num_sweeps": 2,
}
EXACT = {"log_z", "log_z_error", "log_z_reverse"}
NEVER_IN_TRAINING = {"elbo", "kl", "kl/z", "bits_per_dim"}


class Quick(PixelVAEPP):
    """With little annealing, which is tested elsewhere."""

    def estimate_log_z(self, **options):
        few = {"num_chains": 50, "num_temperatures": 20, "num_updates": 20}
        return super().estimate_log_z(**few | options)


class Kept(keras.callbacks.Callback):
    """The state of training after each step."""

    def __init__(self):
        super().__init__()
        self.states = []

    def on_train_batch_end(self, batch, logs=None):
        self.states.append(self.model.training_state())


def build():
    keras.utils.set_random_seed(0)
    model = Quick(**ARGUMENTS)
    for variable in model.trainable_variables:
        if variable.name.startswith("rbm"):
            shape = variable.shape
            variable.assign(tf.random.stateless_normal(shape, [0, len(shape)]))
    model.estimate_log_z()
    model.initialize(tiny.images_for(model, 32))
    model.compile(keras.optimizers.Adam(0.01), ema_momentum=0.8)
    return model


def fit(model, images, **options):
    options = {"batch_size": 8, "shuffle": False, "verbose": 0} | options
    return model.fit(images, **options)


@pytest.fixture(scope="module")
def shared():
    model = build()
    return model, model.get_weights(), tiny.images_for(model, 32)


@pytest.fixture
def case(shared):
    model, values, images = shared
    model.set_weights(values)
    return model, images


@pytest.mark.slow
def test_an_image_that_is_drawn_gets_nothing_of_the_encoded_one():
    model = tiny.shared("pixelvaepp")
    images, seeds = tiny.images_for(model, 2), tf.constant([1, 2], tf.int64)
    _, whole = model.infer(model.features(images), seeds=seeds)
    _, context = computations.posterior(model, images, seeds)
    assert whole.keys() == {"maps", "image"} and context.keys() == {"maps"}


def test_training_reports_no_bound_and_validation_does(case):
    model, images = case
    logs = fit(model, images, validation_data=(images,)).history
    trained = {name for name in logs if not name.startswith("val_")}
    assert trained == {"loss", "reconstruction"}
    assert {f"val_{name}" for name in trained | NEVER_IN_TRAINING} <= logs.keys()
    assert logs["val_loss"][0] == pytest.approx(-logs["val_elbo"][0], rel=1e-5)
    # Validation was of the averages, which `fit` has left, and of their log Z.
    scored = np.mean(model.elbo_terms(images)["kl"])
    assert logs["val_kl"][0] == pytest.approx(scored, rel=0.2)


@pytest.mark.slow
def test_annealed_relaxation():
    """The temperature moves linearly with the steps; the first has the first one."""

    def trained(num_steps, **arguments):
        keras.utils.set_random_seed(0)
        model = Quick(**ARGUMENTS, **arguments)
        images = tiny.images_for(model, 8 * num_steps)
        model.initialize(tiny.images_for(model, 32))
        model.compile(keras.optimizers.SGD(0.01))
        fit(model, images)
        return model

    annealed = {"final_relaxation_temperature": 0.5, "relaxation_steps": 4}
    for num_steps in (1, 3):
        model = trained(num_steps, **annealed)
        expected = 0.25 + num_steps / 4 * 0.25
        assert float(model.relaxation_temperature) == pytest.approx(expected)
        constant = trained(num_steps)
        assert constant.relaxation_temperature == 0.25
        is_same = np.array_equal(
            model.encoder.get_weights()[-1], constant.encoder.get_weights()[-1]
        )
        assert is_same == (num_steps == 1)
    fit(model, tiny.images_for(model, 32))
    assert float(model.relaxation_temperature) == 0.5


def test_free_bits_of_a_surrogate_are_refused():
    model = build()
    for name in ("free_bits_nats", "soft_free_bits_nats"):
        with pytest.raises(ValueError, match=f"{name}=1.0"):
            model.compile(**{name: 1.0})


def test_chains_are_neither_weights_nor_lost_by_a_resume(case, monkeypatch):
    """Bit for bit, from the state after the second of four steps."""
    model, images = case
    begun = []
    monkeypatch.setattr(Quick, "begin_training", lambda self: begun.append(1))
    (chains,) = model.training_variables
    assert not any(variable is chains for variable in model.weights)
    assert "chains" not in {name for name in weights.variables_by_name(model)}
    kept = Kept()
    fit(model, images, callbacks=[kept])
    end = kept.states[-1]
    assert np.any(end["training-00000"] != kept.states[1]["training-00000"])
    chains.assign(tf.zeros_like(chains))
    model.set_training_state(kept.states[1])
    resumed = Kept()
    fit(model, images[16:], callbacks=[resumed])
    assert end.keys() == resumed.states[-1].keys()
    for name, array in end.items():
        np.testing.assert_array_equal(resumed.states[-1][name], array, name)
    assert len(begun) == 1
    fit(model, images[:8])  # one that does not go on
    assert len(begun) == 2


def test_chains_are_equilibrated_where_the_weights_are_not_0(case):
    """Of weights of 0 fair bits are draws: only then they stay as they are."""
    model, _ = case
    (chains,) = model.training_variables
    seeds = tf.constant(sampling.row_seeds(0, ARGUMENTS["num_chains"]))
    fair = model.rbm.first_chains(seeds).numpy()
    model.begin_training()
    assert np.any(chains.numpy() != fair)
    for variable in model.trainable_variables:
        if variable.name.startswith("rbm"):
            variable.assign(tf.zeros_like(variable))
    model.begin_training()
    np.testing.assert_array_equal(chains.numpy(), fair)


def test_a_trained_model_scores_once_log_z_is_estimated(case):
    model, images = case
    fit(model, images)
    for score in (
        model.elbo,
        model.log_likelihood,
        lambda x: model.predict(x, verbose=0),
        model,
    ):
        with pytest.raises(ValueError, match="log_z|log Z"):
            score(images)
    model.sample(1, seed=0, jit=False, num_gibbs_updates=3)  # needs no log Z
    model.estimate_log_z()
    assert np.all(np.isfinite(model.elbo(images)))


@pytest.mark.parametrize("of_keras", [True, False])
def test_evaluate_estimates_what_it_needs(case, of_keras):
    model, images = case
    weights.variables_by_name(model)["log_z_known"].assign(False)
    if of_keras:
        logs = model.evaluate(images, verbose=0, return_dict=True)
        assert logs["loss"] == pytest.approx(-logs["elbo"], rel=1e-5)
    else:
        evaluation.evaluate(model, images)
    model.check_scorable()


def test_log_z_is_exact_in_a_file_of_float16(case, tmp_path):
    model, _ = case
    values = {"log_z": 1234.5678, "log_z_error": 0.0123456, "log_z_reverse": 1235.4321}
    variables = weights.variables_by_name(model)
    for name, value in values.items():
        variables[name].assign(value)
    path = weights.write_weights(model, tmp_path / "weights.h5", dtype="float16")
    arrays = weights.read_arrays(path)
    for name, value in values.items():
        assert arrays[name] == np.float32(value)
    floats = {k for k, v in arrays.items() if v.dtype == np.float32}
    assert floats == EXACT and arrays["rbm_weights"].dtype == np.float16
    assert arrays["log_z_known"].dtype == bool


def test_bad_sampling_options(case):
    model, _ = case
    for value in (0, -1, 1.5, True):
        with pytest.raises(ValueError, match="`num_gibbs_updates` must be a positive"):
            model.sample(1, num_gibbs_updates=value)
    with pytest.raises(ValueError, match=r"num_gibbs_updates.*Received: num_steps=3"):
        model.sample(1, num_steps=3)
    with pytest.raises(ValueError, match="none.*Received: num_gibbs_updates=3"):
        tiny.shared("gated_pixelvae_noup").sample(1, num_gibbs_updates=3)


def test_relaxed_values_are_not_decoded(case):
    model, images = case
    codes = model.encode(images[:2])
    assert model.decode(codes, jit=False).shape == (2, 8, 8, 1)
    for value in (0.5, -1.0, 2.0):
        relaxed = np.array(codes["z"])
        relaxed[1, 2] = value
        with pytest.raises(ValueError, match=f"`z` must be exactly 0 or 1.*{value}"):
            model.decode({"z": relaxed})


def test_log_z_stands_with_the_figures_and_on_the_card(case):
    model, images = case
    results = evaluation.evaluate(model, images)
    value, error = results["log_z"]
    assert value == float(model.estimates()["log_z"][0]) and error > 0
    assert np.isnan(results["log_z_reverse"][1])
    table = evaluation.table(model, results, None)
    assert "log_z_reverse" in table and not table.endswith("nan")
    records = provenance.measurements(
        model, results, num_importance_samples=None, split="test", images=32, seed=0
    )
    entry = registry.describe("pixelvaepp_mnist_static")
    measured = [entries.Measurement(**record) for record in records]
    card = cards.card(entry.model_copy(update={"measured": measured}))
    reverse = results["log_z_reverse"][0]
    assert f"between {value:.2f} ± {error:.2g} (forward annealing" in card
    assert f"and {reverse:.2f} (reverse) nats" in card and "| log_z" not in card
