"""The moving average of a model's weights, which is what is validated and shipped."""

import contextlib

import keras
import numpy as np
import tensorflow as tf


class WeightAverages(keras.callbacks.Callback):
    """Exponential moving averages of variables, and which of both the model holds.

    The averages start at the weights with which a `fit` starts, and the momentum rises
    with the number t of steps since, `min(momentum, (1 + t) / (10 + t))`: the average
    has neither the bias nor the lag of one of constant momentum, which after a few
    steps still is the old model.

    While a step is done the model holds its raw weights; from a validation, or the
    end of an epoch, to the next epoch's begin it holds the averages. So what
    validation scores is what other callbacks see, save and restore at the end of an
    epoch, for which this callback must be the first. Weights that are set from outside
    while the averages are in the model are the new start.

    Args:
        variables: list of `keras.Variable`, floating-point.
        momentum: float in (0, 1), the highest.
    """

    def __init__(self, variables, momentum):
        super().__init__()
        self._variables = variables
        self._momentum = momentum
        # The replicas compute the same values.
        same = {"trainable": False, "aggregation": "only_first_replica"}
        self._steps = keras.Variable(0, dtype="int64", name="average_steps", **same)
        self._averages = [
            keras.Variable(
                tf.zeros(variable.shape, variable.dtype),
                dtype=variable.dtype,
                name="average",
                **same,
            )
            for variable in variables
        ]
        self._raw = None  # the weights, while the averages are in the model
        self._is_fitting = False
        self._goes_on = False

    @property
    def state(self):
        """The variables that a checkpoint holds."""
        return [self._steps, *self._averages]

    def update(self):
        """Move the averages; part of a training step's graph, after the weights."""

        def on_all(strategy, steps, averages, variables):
            def move(average, variable, steps):
                count = tf.cast(steps, tf.float32)
                momentum = tf.minimum(self._momentum, (1.0 + count) / (10.0 + count))
                rate = tf.cast(1.0 - momentum, average.dtype)
                average.assign_sub(rate * (average - tf.convert_to_tensor(variable)))

            for average, variable in zip(averages, variables, strict=True):
                strategy.extended.update(average, move, args=(variable, steps))
            strategy.extended.update(steps, lambda x: x.assign_add(1))

        tf.distribute.get_replica_context().merge_call(
            on_all,
            args=(
                self._steps.value,
                [average.value for average in self._averages],
                [variable.value for variable in self._variables],
            ),
        )

    def start(self):
        """Start anew at the weights that are in the model."""
        self._steps.assign(0)
        for average, variable in zip(self._averages, self._variables, strict=True):
            average.assign(_value(variable))

    def go_on(self):
        """Have the next `fit` go on with the averages as they are: a run resumed."""
        self._goes_on = True

    def raw_values(self):
        """The raw weights, a list of arrays, wherever they are."""
        return self._raw or [_value(variable) for variable in self._variables]

    def show(self):
        """Put the averages into the model, within a `fit`."""
        if self._is_fitting and self._raw is None:
            self._raw = [_value(variable) for variable in self._variables]
            for average, variable in zip(self._averages, self._variables, strict=True):
                variable.assign(_value(average))

    def hide(self):
        """Put the raw weights back, or start anew at what was set from outside."""
        if self._raw is None:
            return
        raw, self._raw = self._raw, None
        for average, variable in zip(self._averages, self._variables, strict=True):
            if not np.array_equal(_value(variable), _value(average), equal_nan=True):
                self.start()
                return
        for variable, value in zip(self._variables, raw, strict=True):
            variable.assign(value)

    @contextlib.contextmanager
    def shown(self):
        """The averages in the model for a while, wherever a `fit` is."""
        is_hidden = self._is_fitting and self._raw is None
        if is_hidden:
            self.show()
        try:
            yield
        finally:
            if is_hidden:
                self.hide()

    def leave(self):
        """At the end of a `fit`, however it ends: the model holds the averages."""
        self.show()
        self._is_fitting, self._raw = False, None

    def on_train_begin(self, logs=None):
        if not self._goes_on:
            self.start()
        self._is_fitting, self._goes_on = True, False

    def on_epoch_begin(self, epoch, logs=None):
        self.hide()

    def on_test_begin(self, logs=None):
        self.show()

    def on_epoch_end(self, epoch, logs=None):
        self.show()


def _value(variable):
    return tf.convert_to_tensor(variable.value).numpy()
