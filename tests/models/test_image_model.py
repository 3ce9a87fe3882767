"""What Keras's methods take: one rule for images, whichever way they come in."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tiny
import vaezoo
from vaezoo.models.image_model import precision
from vaezoo.models.pixelvae import PixelVAE
from vaezoo.models.vlae import VLAE

NAME = "gated_pixelvae_noup"
OUT_OF_RANGE = r"`images` must have values in 0\.\.1\. Received: values up to 255"


@pytest.fixture(scope="module")
def model():
    model = tiny.build(NAME)
    model.compile("adam")
    return model


@pytest.fixture(scope="module")
def images(model):
    return tiny.images_for(model, 8)


def dataset(images):
    return tf.data.Dataset.from_tensor_slices(images).batch(4)


DOORS = {
    "fit": lambda model, x: model.fit(x, verbose=0),
    "validation": lambda model, x: model.fit(x // 255, validation_data=(x,), verbose=0),
    "evaluate": lambda model, x: model.evaluate(x, verbose=0),
    "predict": lambda model, x: model.predict(x, verbose=0),
    "call": lambda model, x: model(x),
    "test_step": lambda model, x: model.test_step(x),
    "train_on_batch": lambda model, x: model.train_on_batch(x),
    "test_on_batch": lambda model, x: model.test_on_batch(x),
    "predict_on_batch": lambda model, x: model.predict_on_batch(x),
    "fit of batches": lambda model, x: model.fit(dataset(x), verbose=0),
    "evaluate of batches": lambda model, x: model.evaluate(dataset(x), verbose=0),
    "predict of batches": lambda model, x: model.predict(dataset(x), verbose=0),
}


@pytest.mark.parametrize("door", DOORS)
def test_values_out_of_range_are_refused_at_every_door(model, images, door):
    before = model.get_weights()
    with pytest.raises(ValueError, match=OUT_OF_RANGE):
        DOORS[door](model, 255 * images)
    for value, now in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(value, now)


@pytest.mark.parametrize("door", ["evaluate", "predict", "call", "predict of batches"])
def test_floats_and_other_sizes_are_refused(model, images, door):
    with pytest.raises(ValueError, match="must be uint8 .* dtype=float32"):
        DOORS[door](model, images.astype("float32"))
    with pytest.raises(ValueError, match=r"must be uint8 .* shape=.*6,? 6,? 1"):
        DOORS[door](model, images[:, :6, :6])


def test_a_predicted_image_is_a_called_one(model, images):
    predicted = model.predict(images, verbose=0)
    np.testing.assert_allclose(predicted["elbo"], model(images)["elbo"], rtol=1e-6)


@pytest.mark.parametrize("shape", [None, [None] * 4], ids=["no rank", "no size"])
def test_the_size_of_decoded_images_is_the_models(model, images, shape):
    """As of `tf.io.decode_png`, whose images have no static shape."""

    def unknown(batch):
        return tf.ensure_shape(
            tf.py_function(lambda x: x, [batch], tf.uint8),
            None if shape is None else tf.TensorShape(shape),
        )

    known = model.evaluate(images, return_dict=True, verbose=0)
    batches = dataset(images).map(unknown)
    received = model.evaluate(batches, return_dict=True, verbose=0)
    assert received == pytest.approx(known, rel=1e-6)
    model.fit(batches, verbose=0)
    for wrong in (images[:, :6], images[..., 0])[: 1 if shape else 2]:
        with pytest.raises(ValueError, match=r"`images` must be uint8 .*shape=\["):
            model.evaluate(dataset(wrong).map(unknown), verbose=0)


def test_weights_of_images_are_refused(model, images):
    weights = np.ones(8)
    labelled = tf.data.Dataset.from_tensor_slices((images, weights, weights)).batch(4)
    for call in (
        lambda: model.fit(images, sample_weight=weights),
        lambda: model.fit(images, np.zeros(8), class_weight={0: 0.5}),
        lambda: model.fit(images, validation_data=(images, None, weights)),
        lambda: model.fit(labelled),
        lambda: model.evaluate(images, sample_weight=weights),
        lambda: model.evaluate(labelled),
        lambda: model.train_on_batch(images, sample_weight=weights),
    ):
        with pytest.raises(ValueError, match="Every image counts alike"):
            call()


class Loader:
    """Batches of anything that can be read again and again."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        return iter(self.batches)


class Sequence(keras.utils.PyDataset):
    def __init__(self, images):
        super().__init__()
        self.images = images

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return (self.images[4 * index : 4 * index + 4],)


def batches_of(images):
    return [(images[:4],), (images[4:],)]


KINDS = {
    "array": lambda images: images,
    "tuple": lambda images: (images, np.zeros(8)),
    "dict": lambda images: {"image": images},
    "dataset": dataset,
    "generator": lambda images: (batch for batch in batches_of(images)),
    "sequence": Sequence,
}


@pytest.mark.parametrize("kind", ["generator", "sequence", "dataset"])
def test_a_fresh_model_is_trained_from(kind):
    """All batches count, the one that it is initialised on too."""
    model = tiny.build(NAME, initialized=False)
    images = tiny.images_for(model, 8)
    model.compile("adam")
    model.fit(KINDS[kind](images), shuffle=False, verbose=0)
    assert model.data_initialized
    other = tiny.build(NAME, initialized=False)
    other.compile("adam")
    other.fit(images, batch_size=4, shuffle=False, verbose=0)
    for value, expected in zip(model.weights, other.weights, strict=True):
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-6)


def test_a_fit_of_nothing_is_refused(model):
    for method in (model.fit, model.evaluate):
        with pytest.raises(ValueError, match="takes images. Received: none"):
            method()
    fresh = tiny.build(NAME, initialized=False)
    fresh.compile("adam")
    with pytest.raises(ValueError, match="at least one batch. Received: none"):
        fresh.fit(batch for batch in ())


@pytest.mark.parametrize("kind", [*KINDS, "loader"])
def test_evaluate_takes(model, images, kind):
    kinds = KINDS | {"loader": lambda images: Loader(batches_of(images))}
    expected = vaezoo.evaluate(model, images)
    received = vaezoo.evaluate(model, kinds[kind](images))
    assert received["elbo"] == pytest.approx(expected["elbo"], rel=1e-6)


def test_evaluate_of_nothing_is_refused(model):
    with pytest.raises(ValueError, match="at least one image. Received: none"):
        vaezoo.evaluate(model, (batch for batch in ()))


def test_compile_says_what_it_does_not_take(model):
    for name, value in {"loss": "mse", "metrics": ["mae"], "jit_compile": True}.items():
        with pytest.raises(ValueError, match=f"`{name}` is not an argument"):
            model.compile("adam", **{name: value})
    with pytest.raises(TypeError, match="'los'"):
        model.compile("adam", los="mse")
    model.compile("adam", loss=None, metrics=None, jit_compile="auto")
    with pytest.raises(ValueError, match="Losses are not scaled"):
        model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam()))


def test_steps_per_execution_do_not_change_training():
    weights = []
    for steps in (1, 2):
        model = tiny.build(NAME)
        model.compile("adam", ema_momentum=0.9, steps_per_execution=steps)
        assert model.get_compile_config()["steps_per_execution"] == steps
        images = tiny.images_for(model, 16)
        model.fit(images, batch_size=4, shuffle=False, verbose=0)
        weights.append(model.get_weights())
    for one, two in zip(*weights, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-6)


def test_save_and_export_point_to_what_works(model, tmp_path):
    for file in ("folder", "model.h5", "model.weights.h5"):
        with pytest.raises(ValueError, match="ends in .keras"):
            model.save(tmp_path / file)
    with pytest.raises(ValueError, match=r"vaezoo\.export\(model, "):
        model.export(tmp_path / "served")
    assert not list(tmp_path.iterdir())


def test_a_keras_file_keeps_the_precision(tmp_path):
    with precision("mixed_bfloat16"):
        model = tiny.build(NAME)
    images = tiny.images_for(model, 4)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert keras.config.dtype_policy().name == "float32"
    assert loaded.compute_dtype == "bfloat16"
    np.testing.assert_array_equal(loaded.elbo(images), model.elbo(images))


def test_other_precisions_are_refused():
    for policy in ("mixed_float16", "float16", "float64"):
        with (
            precision(policy),
            pytest.raises(ValueError, match="float32 and mixed_bfloat16"),
        ):
            tiny.build(NAME, initialized=False)
    with pytest.raises(ValueError, match="under 'float32'"):
        VLAE(dtype="mixed_bfloat16")


def test_summary_has_output_shapes(capsys):
    for name in ("gated_pixelvae", "vlae_iaf", "fame"):
        tiny.shared(name).summary(line_length=200)
        assert "?" not in capsys.readouterr().out


@pytest.mark.parametrize("name", tiny.others_slow(["gated_pixelvae_noup", "fame"]))
def test_checks_for_infinities_find_none(name):
    """As users ask TensorFlow for, who look for where their own come from."""
    model = tiny.build(name)
    model.compile("adam")
    images = tiny.images_for(model, 4)
    tf.debugging.enable_check_numerics()
    try:
        model.fit(images, verbose=0)
        model.log_likelihood(images, num_importance_samples=3)
    finally:
        tf.debugging.disable_check_numerics()


def test_a_symbolic_image_is_taken():
    """A model stands in a Keras model of the user's."""
    model = tiny.build(NAME)
    inputs = keras.Input((8, 8, 1), dtype="uint8")
    outer = keras.Model(inputs, model(inputs)["elbo"])
    images = tiny.images_for(model, 4)
    np.testing.assert_allclose(
        outer.predict(images, verbose=0), model(images)["elbo"], rtol=1e-6
    )
    with pytest.raises(ValueError, match="must be uint8"):
        model(keras.Input((8, 8, 1)))


def test_a_model_has_one_line_for_a_missing_batch_axis(model, images):
    with pytest.raises(ValueError, match=r"Received: shape=\(8, 8, 1\)"):
        model.evaluate(images[0], verbose=0)
    assert PixelVAE is type(model)
