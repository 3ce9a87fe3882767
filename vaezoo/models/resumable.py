"""The state of training, from which a `fit` goes on exactly."""

import contextlib

import tensorflow as tf

from vaezoo.models.averages import WeightAverages
from vaezoo.models.image_model import ImageModel


class ResumableModel(ImageModel):
    """A model whose training can be taken up again, at any step.

    Subclasses have `trained_variables`, a list, and `_objective`, whose `ema_momentum`
    says whether there are moving averages.
    """

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        # State of training, as the optimizer's: not among the model's weights.
        object.__setattr__(self, "_soft_free_bits_weight", None)
        object.__setattr__(self, "_averages", None)
        object.__setattr__(self, "_goes_on", False)

    @property
    def training_variables(self):
        """State of training that the model has: variables that checkpoints hold.

        They are not among the model's weights, which ship. Replicas compute the same
        values (`aggregation="only_first_replica"`).
        """
        return []

    @property
    def averages(self):
        """The moving averages of the trained weights; `None` without `ema_momentum`."""
        momentum = self._objective.ema_momentum
        if self._averages is None and momentum is not None:
            with self.distribute_strategy.scope():
                averages = WeightAverages(self.trained_variables, momentum)
            object.__setattr__(self, "_averages", averages)
        return self._averages

    def _state_variables(self):
        """The variables of the model and its training, by role and position."""
        soft = self._soft_free_bits_weight
        groups = {
            "model": self.weights,
            "optimizer": self.optimizer.variables,
            "average": [] if self.averages is None else self.averages.state,
            "training": [*([] if soft is None else [soft]), *self.training_variables],
        }
        return {
            f"{group}-{i:05d}": variable
            for group, variables in groups.items()
            for i, variable in enumerate(variables)
        }

    def training_state(self):
        """All that training needs to go on exactly, at any time of a `fit`.

        Returns:
            dict of str, a role and a position, to numpy array: the raw weights
            (whatever is in the model), the optimizer, the moving averages.
        """
        state = {
            key: tf.convert_to_tensor(variable).numpy()
            for key, variable in self._state_variables().items()
        }
        if self.averages is not None:
            keys = {id(v): f"model-{i:05d}" for i, v in enumerate(self.weights)}
            raw = self.averages.raw_values()
            for variable, value in zip(self.trained_variables, raw, strict=True):
                state[keys[id(variable)]] = value
        return state

    def set_training_state(self, state):
        """Set what `training_state` returned; the next `fit` goes on from it.

        Args:
            state: dict as of `training_state`, of a model of the same architecture,
                compiled alike, in the same mode.
        """
        for key, variable in self._state_variables().items():
            variable.assign(state[key])
        if self.averages is not None:
            self.averages.go_on()
        object.__setattr__(self, "_goes_on", True)

    def takes_up_training(self):
        """Whether the `fit` that begins goes on from a state that was set."""
        goes_on = self._goes_on
        object.__setattr__(self, "_goes_on", False)
        return goes_on

    def save(self, filepath, *args, **kwargs):
        """Keras's `save`; within a `fit`, of the moving averages of the weights."""
        with self._averages_shown():
            return super().save(filepath, *args, **kwargs)

    def save_weights(self, filepath, *args, **kwargs):
        """Keras's `save_weights`; within a `fit`, of the moving averages."""
        with self._averages_shown():
            return super().save_weights(filepath, *args, **kwargs)

    def _averages_shown(self):
        return (
            contextlib.nullcontext()
            if self._averages is None
            else self._averages.shown()
        )
