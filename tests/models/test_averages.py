"""The moving average: what is validated is what is saved, restored and left."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import tiny
from vaezoo.models.averages import WeightAverages

MOMENTUM = 0.8


@pytest.fixture(scope="module")
def shared():
    """A model, its first weights, and images; a test starts from those weights."""
    model = tiny.build("pixelcnn")
    return model, model.get_weights(), tiny.images_for(model, 32)


@pytest.fixture
def case(shared):
    model, weights, images = shared
    model.set_weights(weights)
    model.compile(keras.optimizers.Adam(0.02), ema_momentum=MOMENTUM)
    return model, images


class Recorded(keras.callbacks.Callback):
    """The weights after each step, and at the end of each epoch."""

    def __init__(self):
        super().__init__()
        self.steps, self.epochs = [], []

    def on_train_batch_end(self, batch, logs=None):
        self.steps.append(self.model.get_weights())

    def on_epoch_end(self, epoch, logs=None):
        self.epochs.append(self.model.get_weights())


def fit(model, images, *, epochs=1, callbacks=(), **options):
    return model.fit(
        images,
        batch_size=8,
        shuffle=False,
        epochs=epochs,
        verbose=0,
        callbacks=list(callbacks),
        **options,
    )


def assert_equal(first, second):
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, other)


def differ(first, second):
    return any(np.any(a != b) for a, b in zip(first, second, strict=True))


def averaged(start, steps):
    """The moving average of lists of weights, written out."""
    average = [np.float64(x) for x in start]
    for t, weights in enumerate(steps):
        momentum = min(MOMENTUM, (1 + t) / (10 + t))
        average = [
            momentum * a + (1 - momentum) * np.float64(w)
            for a, w in zip(average, weights, strict=True)
        ]
    return average


def test_the_average_starts_at_the_weights_and_its_momentum_rises(case):
    model, images = case
    start, recorded = model.get_weights(), Recorded()
    fit(model, images, epochs=2, callbacks=[recorded])
    expected = averaged(start, recorded.steps)
    for value, average in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(value, average, rtol=1e-4, atol=1e-6)
    assert_equal(recorded.epochs[-1], model.get_weights())
    assert differ(recorded.steps[-1], model.get_weights())


def test_training_does_not_see_the_average(shared, case):
    """Raw weights after every step are those of a fit without an average."""
    model, images = case
    with_average, without = Recorded(), Recorded()
    fit(model, images, epochs=2, callbacks=[with_average], validation_data=(images,))
    model.set_weights(shared[1])
    model.compile(keras.optimizers.Adam(0.02))
    fit(model, images, epochs=2, callbacks=[without], validation_data=(images,))
    for one, other in zip(with_average.steps, without.steps, strict=True):
        assert_equal(one, other)


def test_what_is_validated_is_saved_and_left(case, tmp_path):
    model, images = case
    path = str(tmp_path / "best.weights.h5")
    best = keras.callbacks.ModelCheckpoint(
        path, save_best_only=True, save_weights_only=True
    )
    history = fit(
        model, images, epochs=3, callbacks=[best], validation_data=(images,)
    ).history
    left = model.evaluate(images, verbose=0, return_dict=True)["loss"]
    assert left == pytest.approx(history["val_loss"][-1], rel=1e-6)
    model.load_weights(path)
    saved = model.evaluate(images, verbose=0, return_dict=True)["loss"]
    assert saved == pytest.approx(best.best, rel=1e-6)


def test_early_stopping_restores_what_it_scored(case):
    model, images = case
    model.optimizer.learning_rate = 0.5  # the first epochs are the best
    stopping = keras.callbacks.EarlyStopping(
        patience=1, restore_best_weights=True, start_from_epoch=0
    )
    history = fit(
        model, images, epochs=4, callbacks=[stopping], validation_data=(images,)
    ).history
    assert len(history["val_loss"]) < 4, "it did not stop, so nothing was restored"
    left = model.evaluate(images, verbose=0, return_dict=True)["loss"]
    assert left == pytest.approx(min(history["val_loss"]), rel=1e-6)


def test_a_failed_first_step_changes_nothing(case):
    model, images = case
    before = model.get_weights()
    for bad in (images * 255, images.astype("float32")):
        with pytest.raises((ValueError, tf.errors.InvalidArgumentError)):
            fit(model, bad)
        assert_equal(model.get_weights(), before)
    fit(model, images)  # and an earlier fit's average is not left instead
    after = model.get_weights()
    model.set_weights(before)
    with pytest.raises(ValueError, match="`images` must be uint8"):
        fit(model, images.astype("float32"))
    assert_equal(model.get_weights(), before)
    assert differ(after, before)


def test_weights_set_from_outside_are_the_new_start(case):
    model, images = case
    before = model.get_weights()
    fit(model, images, epochs=3)
    model.set_weights(before)
    model.optimizer.learning_rate = 1e-9
    fit(model, images)
    for value, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_allclose(value, old, atol=1e-6)


def test_weights_set_between_epochs_are_the_new_start(case):
    model, images = case
    before = model.get_weights()

    class Reset(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            if epoch == 1:
                self.model.set_weights(before)
                self.model.optimizer.learning_rate = 1e-9

    fit(model, images, epochs=3, callbacks=[Reset()])
    for value, old in zip(model.get_weights(), before, strict=True):
        np.testing.assert_allclose(value, old, atol=1e-6)


def test_saving_within_an_epoch_saves_the_average(case, tmp_path):
    model, images = case
    path, recorded = tmp_path / "step.weights.h5", Recorded()

    class Save(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 1:
                self.model.save_weights(path)

    start = model.get_weights()
    fit(model, images, callbacks=[Save(), recorded])
    model.load_weights(path)
    expected = averaged(start, recorded.steps[:2])
    for value, average in zip(model.get_weights(), expected, strict=True):
        np.testing.assert_allclose(value, average, rtol=1e-4, atol=1e-6)


def test_a_fit_goes_on_from_a_training_state(case):
    """In the middle of an epoch too: the state of a callback, then the rest."""
    model, images = case
    states = []

    class Keep(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            states.append(self.model.training_state())

        def on_epoch_end(self, epoch, logs=None):
            states.append(self.model.training_state())

    fit(model, images, epochs=2, callbacks=[Keep()])
    expected = model.get_weights()
    model.set_training_state(states[6])  # 4 steps, an epoch's end, 2 more steps
    fit(model, images[16:])
    assert_equal(model.get_weights(), expected)
    for key, value in states[3].items():  # the averages in the model change nothing
        np.testing.assert_array_equal(value, states[4][key], key)


def test_an_average_of_the_optimizers_is_refused(case):
    model, images = case
    for momentum in (0.0, 1.0, -1.0):
        with pytest.raises(ValueError, match="ema_momentum="):
            model.compile("adam", ema_momentum=momentum)
    with pytest.raises(ValueError, match="Give `compile` ema_momentum=0.9"):
        model.compile(keras.optimizers.Adam(use_ema=True, ema_momentum=0.9))
    model.compile(keras.optimizers.Adam(), ema_momentum=MOMENTUM)
    with pytest.raises(ValueError, match="use_ema=True"):
        swap = keras.callbacks.SwapEMAWeights()
        fit(model, images, callbacks=[swap], validation_data=(images,))


def test_an_average_alone():
    """One variable, no model: constant weights stay, however many steps are done."""
    variable = keras.Variable([1.0, 2.0])
    averages = WeightAverages([variable], 0.99)
    averages.on_train_begin()
    step = tf.function(averages.update)
    for _ in range(3):
        step()
    averages.leave()
    np.testing.assert_array_equal(variable, [1.0, 2.0])
