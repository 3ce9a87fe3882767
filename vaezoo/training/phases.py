"""The phases of a run: its recipes, in order, on one model."""

from vaezoo import datasets, sampling
from vaezoo.zoo.recipes import changed, compile_arguments

_MORE = "more"  # how the names of appended phases begin
_NO_WARMUP = {
    "kl_warmup_steps": 0,
    "latent_kl_warmup_steps": {},
    "learning_rate_warmup_steps": 0,
}


def of_run(recipes, *, epochs, max_steps, changes, seed, precision):
    """The recipes that a run trains by: an entry's, with the run's own choices.

    Args:
        recipes: a list of `Recipe`.
        epochs, max_steps, changes, seed, precision: as of `vaezoo.training.run.train`.

    Returns:
        A list of `Recipe`.

    Raises:
        ValueError: one of them breaks its rule, or goes with a single phase.
    """
    own = {"epochs": epochs, "max_steps": max_steps}
    own = {key: value for key, value in own.items() if value is not None}
    if own and len(recipes) > 1:
        names = ", ".join(recipe.name for recipe in recipes)
        raise ValueError(
            "`epochs` and `max_steps` are of a recipe of one phase. Received: "
            f"{', '.join(f'{k}={v}' for k, v in own.items())}, for the phases {names}. "
            f"Change the phase that you mean: training.{recipes[0].name}."
            f"{next(iter(own))}, with `changes` (--set)."
        )
    own |= {"seed": seed, "precision": precision}
    own = {key: value for key, value in own.items() if value is not None}
    of_all = {
        f"training.{index}.{key}": value
        for index in range(len(recipes))
        for key, value in own.items()
    }
    return changed(recipes, _split(changes)[0] | of_all)


def with_more(recipes, saved, *, more_epochs, changes, data):
    """A run's recipes, with the phases that were appended to it when it had ended.

    Args:
        recipes: a list of `Recipe`, as of `of_run`.
        saved: the run's newest `Checkpoint`, or `None`.
        more_epochs: int, of one phase more; `None` for none.
        changes: as of `vaezoo.training.run.train`; those of appended phases.
        data: the run's `Data`.

    Returns:
        recipes: a list of `Recipe`.
        is_new: whether the last of them is appended now.

    Raises:
        ValueError: the run has not ended.
    """
    recipes, is_new = list(recipes), False
    if saved is not None:
        appended = saved.entry.phases[len(recipes) :]
        recipes += [recipe for recipe in appended if recipe.name.startswith(_MORE)]
    if more_epochs is not None:
        last = recipes[-1]
        ended = saved is not None and (
            (saved.phase, saved.step) >= (len(recipes) - 1, data.num_steps(last))
        )
        if ended:
            number = sum(recipe.name.startswith(_MORE) for recipe in recipes) + 1
            name = _MORE if number == 1 else f"{_MORE}_{number}"
            length = {"epochs": more_epochs, "max_steps": None}
            recipes.append(
                last.model_copy(update={"name": name, **length, **_NO_WARMUP})
            )
            is_new = True
        elif not last.name.startswith(_MORE) or last.epochs != more_epochs:
            raise ValueError(
                "`more_epochs` is of a run that has ended. Received: more_epochs="
                f"{more_epochs}, for a run in its phase {last.name!r}. Let it end "
                "first, with resume=True (--resume) alone."
            )
    return changed(recipes, _split(changes)[1]), is_new


def _split(changes):
    """Changes of the phases of an entry, and of those that are appended."""
    changes = changes or {}
    of_more = {
        key: value
        for key, value in changes.items()
        if (key.split(".") + [""])[1].startswith(_MORE)
    }
    return {k: v for k, v in changes.items() if k not in of_more}, of_more


class Data:
    """The images of a run: streams for its recipes.

    Args:
        name: of the dataset.
        model: the model that is trained; it says what an image folder is read as.

    Raises:
        ValueError: no such dataset, or one that does not fit the model.
    """

    def __init__(self, name, model):
        self._options = {}
        if name.startswith("image_folder:"):
            *size, channels = model.image_shape
            self._options = {"size": size, "channels": channels, "levels": model.levels}
        self._name = name
        self.info = info = datasets.info(name, **self._options)
        if (info.image_shape, info.levels) != (model.image_shape, model.levels):
            raise ValueError(
                f"The dataset must have the model's image_shape={model.image_shape} "
                f"and levels={model.levels}. Received: {name!r} with image_shape="
                f"{info.image_shape}, levels={info.levels}. Give another dataset, or "
                "train a model of such images; `vaezoo list --dataset` finds those of "
                "a dataset."
            )

    def num_images(self, recipe):
        """Images of an epoch, an int."""
        splits = recipe.split.split("+")
        missing = [split for split in splits if split not in self.info.splits]
        if missing:
            raise ValueError(
                f"The dataset must have the splits of the recipe. Received: split="
                f"{recipe.split!r}, for {self._name!r}, which has no such split: "
                f"{missing[0]!r}."
            )
        return sum(self.info.splits[split] for split in splits)

    def steps_per_epoch(self, recipe):
        """Steps of an epoch, an int."""
        return -(-self.num_images(recipe) // recipe.batch_size)

    def num_steps(self, recipe):
        """Steps of a recipe, an int."""
        return recipe.num_steps(self.steps_per_epoch(recipe))

    def num_epochs(self, recipe):
        """Epochs of a recipe, of which the last may be a part: an int."""
        return -(-self.num_steps(recipe) // self.steps_per_epoch(recipe))

    def first_batch(self, recipe):
        """The first batch of a recipe, of all replicas, without crops: a tensor."""
        dataset = datasets.load_dataset(
            self._name,
            recipe.split,
            batch_size=recipe.batch_size,
            shuffle=True,
            seed=recipe.seed,
            **self._options,
        )
        return next(iter(dataset))

    def stream(self, recipe, *, position):
        """The training images; see `vaezoo.datasets.training_stream`."""
        return datasets.training_stream(
            self._name,
            split=recipe.split,
            seed=recipe.seed,
            position=position,
            batch_size=recipe.batch_size,
            crop_size=recipe.crop_size,
            **self._options,
        )[0]

    def validation(self, recipe):
        """The validation images, or `None` where there are none held out."""
        if "validation" not in self.info.splits or recipe.split != "train":
            return None
        return datasets.load_dataset(
            self._name, "validation", batch_size=recipe.batch_size, **self._options
        )


def check(recipes, model, data):
    """Refuse phases that the model or the data cannot do, before any has begun.

    Raises:
        ValueError: there is one; the key is named.
    """
    for recipe in recipes:
        where = f"training.{recipe.name}." if len(recipes) > 1 else "training."
        data.num_images(recipe)
        if recipe.mode not in model.modes:
            raise ValueError(
                f"{where}mode must be one of the model's, {', '.join(model.modes)}. "
                f"Received: mode={recipe.mode!r}, for a {type(model).__name__}."
            )
        if recipe.selection == "validation" and data.validation(recipe) is None:
            raise ValueError(
                f'{where}selection="validation" needs images that are held out. '
                f"Received: the dataset {data.info.name!r}, which has no validation "
                'split. Use selection="last".'
            )
        if recipe.historyless_share and recipe.mode != "joint":
            raise ValueError(
                f"{where}historyless_share goes with the mode joint, in which latents "
                "tell the decoder of images that it does not see. Received: "
                f"historyless_share={recipe.historyless_share}, mode={recipe.mode!r}. "
                "Leave it at 0."
            )
        if recipe.crop_size is not None:
            _check_crop(recipe, model, where)


def _check_crop(recipe, model, where):
    before, model.mode = model.mode, recipe.mode
    takes_any_size, model.mode = model.takes_any_size, before
    if not takes_any_size:
        raise ValueError(
            f"{where}crop_size goes with a mode that takes images of any size. "
            f"Received: crop_size={recipe.crop_size}, mode={recipe.mode!r}, for a "
            f"{type(model).__name__}. Leave the crops out."
        )
    if recipe.crop_size > min(model.image_shape[:2]):
        raise ValueError(
            f"{where}crop_size must be at most the images' size. Received: crop_size="
            f"{recipe.crop_size}, image_shape={model.image_shape}."
        )


def train_phases(
    model,
    recipes,
    data,
    progress,
    *,
    restore,
    callbacks,
    verbose,
    gradient_accumulation_steps,
    record_of_more=None,
):
    """Train a model by its recipes in turn, from the place where `progress` is.

    Each phase has an optimizer of its own, and starts from the weights that the one
    before has left.

    Args:
        model: a `VAE`, its data-dependent initialisation done.
        recipes: a list of `Recipe`.
        data: a `Data`.
        progress: a `Progress`, first of the callbacks.
        restore: called without arguments; sets the model's training state to that of
            the newest checkpoint.
        callbacks: list of Keras callbacks.
        verbose: as in Keras.
        gradient_accumulation_steps: as of `VAE.compile`.
        record_of_more: a `TrainingRecord` that begins with the last phase, or `None`.
    """
    steps_before = epochs_before = 0
    for index, recipe in enumerate(recipes):
        steps = data.num_steps(recipe)
        if index >= progress.phase:
            is_begun = index == progress.phase and progress.step > 0
            recipe = with_seed_of_phase(recipe, index)
            with model.distribute_strategy.scope():
                if is_begun:
                    model.mode = recipe.mode
                else:
                    model.begin_phase(recipe.mode)
                model.compile(
                    **compile_arguments(
                        recipe, steps_per_epoch=data.steps_per_epoch(recipe)
                    ),
                    gradient_accumulation_steps=gradient_accumulation_steps,
                )
                model.optimizer.build(model.trained_variables)
            if record_of_more is not None and index == len(recipes) - 1:
                progress.begin_record(record_of_more)
            progress.begin_phase(
                index,
                recipe,
                steps_before=steps_before,
                num_images=data.num_images(recipe),
            )
            if is_begun:
                restore()
            _fit(
                model,
                recipe,
                data,
                progress,
                restore=restore,
                epochs_before=epochs_before,
                callbacks=[*callbacks],
                verbose=verbose,
            )
            progress.choose_weights(model)
            steps = progress.step
        steps_before += steps
        epochs_before += data.num_epochs(recipe)


def with_seed_of_phase(recipe, index):
    """A recipe with the index of its phase in the seed of its noise and data order."""
    if index == 0:
        return recipe
    seed = int(sampling.row_seeds(recipe.seed, index + 1)[index])
    return recipe.model_copy(update={"seed": seed})


def _fit(model, recipe, data, progress, *, restore, epochs_before, callbacks, verbose):
    stream = data.stream(recipe, position=lambda: progress.step)
    validation = data.validation(recipe)
    steps, per_epoch = data.num_steps(recipe), data.steps_per_epoch(recipe)
    while True:
        epoch, done = divmod(progress.step, per_epoch)
        left = max(0, steps - progress.step)
        num, epochs = per_epoch, left // per_epoch
        if left and (done or not epochs):  # a part of an epoch is a `fit` of its own
            num, epochs = min(per_epoch - done, left), 1
        model.fit(
            stream,
            initial_epoch=epochs_before + epoch,
            epochs=epochs_before + epoch + epochs,
            steps_per_epoch=num,
            validation_data=validation,
            verbose=verbose,
            callbacks=callbacks,
        )
        if progress.step >= steps:
            return
        restore()  # as `fit` has put the averages into the model


def num_epochs_done(recipes, data, progress):
    """Epochs in a run's log: whole ones, and the last part of a phase: an int."""
    before = sum(data.num_epochs(recipe) for recipe in recipes[: progress.phase])
    recipe = recipes[progress.phase]
    if progress.step >= data.num_steps(recipe):
        return before + data.num_epochs(recipe)
    return before + progress.step // data.steps_per_epoch(recipe)
