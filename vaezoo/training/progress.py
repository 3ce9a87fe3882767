"""Where a run is, and the record of what it did."""

import time

import keras
import numpy as np
import tensorflow as tf

from vaezoo.zoo.entries import PhaseRecord, ValidationPoint

_BEST = "best"  # keys of the weights that validation chose so far


class Progress(keras.callbacks.Callback):
    """The place of a run, (phase, step), and its history.

    The only thing that is not of the model in what a run needs to go on. It stands
    before the callbacks that save.

    Args:
        history: list of `TrainingRecord`; the last is of this run.

    Attributes:
        history: the same, up to date.
        phase: int, index of the phase in the run's recipes.
        step: int, number of steps done in the phase. Unlike `optimizer.iterations` it
            stands still during a step, in which Keras draws the next batch.
        position: int, number of steps done in all phases.
    """

    def __init__(self, history):
        super().__init__()
        self._earlier, self._record = list(history[:-1]), history[-1]
        self.phase, self.step, self._steps_before = 0, 0, 0
        self._recipe = self._epoch = None
        self._seconds, self._since = 0.0, None
        self._validation, self._best = [], None

    @property
    def position(self):
        """Number of steps done in all phases."""
        return self._steps_before + self.step

    @property
    def history(self):
        """Records of the runs that made the weights, as of now."""
        phases = self._record.phases
        if self._recipe is not None:
            phases = [*phases, self._phase_record()]
        return [*self._earlier, self._record.model_copy(update={"phases": phases})]

    def begin_record(self, record):
        """Close the record of the run, and go on in another `TrainingRecord`."""
        self._earlier, self._record, self._recipe = self.history, record, None

    def begin_phase(self, phase, recipe, *, steps_before, num_images):
        """Start or continue to count in a phase.

        Args:
            phase: int, its index.
            recipe: its `Recipe`.
            steps_before: int, of the phases before it.
            num_images: int, of an epoch.
        """
        if self._recipe is not None:
            done = [*self._record.phases, self._phase_record()]
            self._record = self._record.model_copy(update={"phases": done})
        self._recipe, self._num_images = recipe, num_images
        self._steps_before = steps_before
        if phase == self.phase and self.step:
            return  # restored
        self.phase, self.step = phase, 0
        self._seconds, self._validation, self._best = 0.0, [], None

    def _phase_record(self):
        recipe, size = self._recipe, self._recipe.batch_size
        epochs, steps = divmod(self.step, -(-self._num_images // size))
        images = epochs * self._num_images + min(steps * size, self._num_images)
        seconds = self._seconds
        if self._since is not None:
            seconds += time.monotonic() - self._since
        return PhaseRecord(
            name=recipe.name,
            mode=recipe.mode,
            steps=self.step,
            epochs=round(images / self._num_images, 4),
            images=images,
            crop_size=recipe.crop_size,
            seconds=round(seconds, 1),
            validation=self._validation,
        )

    # What a checkpoint holds of it.

    def state(self):
        """Arrays by name: the place, and the weights that validation chose so far."""
        state = {"progress": np.array([self.phase, self.step], np.int64)}
        for i, array in enumerate(self._best or []):
            state[f"{_BEST}-{i:05d}"] = array
        return state

    def restore(self, history, state):
        """Set what `history` and `state` returned, of another process it may be."""
        *earlier, record = history
        *done, phase = record.phases
        self._earlier = earlier
        self._record = record.model_copy(update={"phases": done})
        self.phase, self.step = map(int, state["progress"])
        self._seconds, self._validation = phase.seconds, list(phase.validation)
        best = [state[key] for key in sorted(state) if key.startswith(f"{_BEST}-")]
        self._best = best or None

    # While training.

    def on_train_begin(self, logs=None):
        self._since = time.monotonic()

    def on_train_end(self, logs=None):
        self._seconds += time.monotonic() - self._since
        self._since = None

    def on_train_batch_end(self, batch, logs=None):
        self.step += 1

    def on_epoch_end(self, epoch, logs=None):
        elbo = (logs or {}).get("val_elbo")
        if elbo is None:
            return
        best = max((point.elbo for point in self._validation), default=-np.inf)
        point = ValidationPoint(steps=self.step, elbo=round(float(elbo), 4))
        self._validation = [*self._validation, point]
        if self._recipe.selection == "validation" and point.elbo > best:
            # At the end of an epoch the averages are in the model.
            weights = self.model.weights
            self._best = [tf.convert_to_tensor(v).numpy() for v in weights]

    def choose_weights(self, model):
        """Give the model the weights that the recipe selects, after the phase."""
        if self._best is not None:
            for variable, array in zip(model.weights, self._best, strict=True):
                variable.assign(array)
