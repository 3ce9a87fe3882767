"""Recipes of several phases: in order, exactly resumed, and what is refused."""

import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf

import tiny
import vaezoo
from runs import STEPS, make_entry, rows, run_code
from vaezoo import datasets, sampling
from vaezoo.models.fame import FAME
from vaezoo.training import checkpoints, phases
from vaezoo.training import run as training
from vaezoo.training.progress import Progress
from vaezoo.training.start import new_record
from vaezoo.zoo import entries, recipes, registry, weights

FIRST = {"name": "first", "epochs": 2, "max_steps": STEPS + 3}
SECOND = {"name": "second", "epochs": 1, "learning_rate": 0.001}
# A PixelCNN of one layer, which is quick to trace.
SMALL = {"latent_size": 0, "num_layers": 1}


def values(model):
    return [v.numpy() for v in [*model.weights, *model.optimizer.variables]]


def weights_by_name(model):
    return {v.path.partition("/")[2]: v.numpy() for v in model.trainable_variables}


def assert_same(first, second):
    for a, b in zip(first, second, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """An undisturbed run of two phases, and the model that it returned."""
    out = tmp_path_factory.mktemp("runs") / "run"
    entry = make_entry(FIRST, SECOND, arguments=SMALL)
    return out, training.train(entry, out=out, checkpoint_steps=1, verbose=0)


# A run of phases.


def test_a_run_records_its_phases(run):
    out, model = run
    entry = vaezoo.describe(out)
    assert [recipe.name for recipe in entry.phases] == ["first", "second"]
    (record,) = entry.history
    first, second = record.phases
    assert (first.name, first.steps, first.images) == ("first", 9, 1437 + 3 * 256)
    assert (second.name, second.steps, second.epochs) == ("second", STEPS, 1.0)
    assert record.init is None and first.seconds > 0
    assert [row["epoch"] for row in rows(out)] == ["0", "1", "2"]
    names = [path.name for path in checkpoints.list_checkpoints(out / "checkpoints")]
    assert names == ["step-000000014", "step-000000015"]
    assert checkpoints.num_steps(model) == STEPS  # an optimizer of its own
    np.testing.assert_allclose(model.optimizer.learning_rate, 1e-4, rtol=1e-5)


def test_each_phase_has_noise_and_order_of_its_own():
    recipe = make_entry().training
    seeds = [phases.with_seed_of_phase(recipe, index).seed for index in range(3)]
    assert seeds[0] == recipe.seed
    assert seeds[1:] == [int(sampling.fold_in(recipe.seed, index)) for index in (1, 2)]


def test_a_run_of_one_phase_is_what_it_was(tmp_path):
    """One mapping is read and written as one, without a history where there is none."""
    entry = make_entry()
    entries.write_entry(entry, tmp_path / "entry.yaml")
    text = (tmp_path / "entry.yaml").read_text()
    assert "\ntraining:\n  name: joint\n" in text and "\nhistory:" not in text
    assert vaezoo.describe(tmp_path).model_dump() == entry.model_dump()
    assert vaezoo.describe(tmp_path).path == tmp_path / "entry.yaml"
    assert entry.phases == (entry.training,)


@pytest.mark.slow
def test_killed_in_either_phase_and_resumed_ends_where_an_undisturbed_run_ends(
    run, tmp_path
):
    out, undisturbed = run
    for killed_at in (5, 8, 12):  # in the first epoch; in the part of one; in phase two
        code = f"""
import os, signal
from runs import make_entry
from vaezoo.training import checkpoints, run as training

end = checkpoints.CheckpointCallback.on_train_batch_end

def end_or_die(self, batch, logs=None):
    if self._progress.position == {killed_at}:
        os.kill(os.getpid(), signal.SIGKILL)
    end(self, batch, logs)

checkpoints.CheckpointCallback.on_train_batch_end = end_or_die
entry = make_entry({FIRST!r}, {SECOND!r}, arguments={SMALL!r})
training.train(
    entry, out={str(tmp_path)!r}, checkpoint_steps=1, resume=True, verbose=0
)
"""
        result = run_code(code)
        assert result.returncode == -9, result.stderr
        newest = checkpoints.list_checkpoints(tmp_path / "checkpoints")[-1]
        assert newest.name == f"step-{killed_at - 1:09d}"
    entry = make_entry(FIRST, SECOND, arguments=SMALL)
    resumed = training.train(entry, out=tmp_path, resume=True, verbose=0)
    assert_same(values(resumed), values(undisturbed))
    assert [row["epoch"] for row in rows(tmp_path)] == ["0", "1", "2"]
    assert rows(tmp_path)[-1]["epoch"] == rows(out)[-1]["epoch"]
    steps = [phase.steps for phase in resumed.zoo_entry.history[0].phases]
    assert steps == [9, STEPS]


@pytest.mark.slow
def test_a_run_that_has_ended_goes_on(run, tmp_path):
    out, model = run
    copy = shutil.copytree(out, tmp_path / "copy")
    entry = make_entry(FIRST, SECOND, arguments=SMALL)
    again = training.train(entry, out=copy, resume=True, verbose=0)
    assert_same(values(again), values(model))

    options = {"out": copy, "resume": True, "verbose": 0}
    changes = {"training.more.learning_rate": 0.0005}
    more = training.train(entry, more_epochs=1, changes=changes, **options)
    names = [recipe.name for recipe in more.zoo_entry.phases]
    assert names == ["first", "second", "more"]
    last = more.zoo_entry.phases[-1]
    assert (last.learning_rate, last.kl_warmup_steps) == (0.0005, 0)
    before, after = more.zoo_entry.history
    assert [phase.name for phase in before.phases] == ["first", "second"]
    assert [(phase.name, phase.steps) for phase in after.phases] == [("more", STEPS)]
    assert after.init.sha256 == model.zoo_entry.weights.sha256
    assert [row["epoch"] for row in rows(copy)] == ["0", "1", "2", "3"]

    resumed = training.train(entry, **options)  # it knows what was appended
    assert_same(values(resumed), values(more))


def test_a_run_that_has_not_ended_does_not_go_on(run):
    out, _ = run
    saved = checkpoints.newest(out / "checkpoints")
    longer = [*saved.entry.phases[:1], saved.entry.phases[1]]
    longer[1] = longer[1].model_copy(update={"epochs": 2})
    model = registry.build(make_entry(arguments=SMALL))
    options = {"changes": None, "data": phases.Data("digits", model)}
    with pytest.raises(ValueError, match="more_epochs=3.*phase 'second'"):
        phases.with_more(longer, saved, more_epochs=3, **options)
    ended = list(saved.entry.phases)
    appended, is_new = phases.with_more(ended, saved, more_epochs=3, **options)
    assert is_new and appended[-1].epochs == 3 and appended[:2] == ended


@pytest.mark.parametrize(
    ("index", "change", "is_refused"),
    [
        (0, {"learning_rate": 0.1}, True),
        (1, {"learning_rate": 0.1}, False),  # it has not begun
        (0, {"epochs": 1}, True),  # the learning rate falls until its end
    ],
)
def test_only_the_phases_begun_must_be_the_same(run, index, change, is_refused):
    saved = checkpoints.newest(run[0] / "checkpoints")
    state = saved.state | {"progress": np.array([0, 3])}
    saved = checkpoints.Checkpoint(saved.path, saved.entry, state)
    changed = [FIRST, SECOND]
    changed[index] = changed[index] | change
    if not is_refused:
        checkpoints.check_same_run(saved, make_entry(*changed, arguments=SMALL))
        return
    (key,) = change
    with pytest.raises(ValueError, match=f"training.{index}.{key}: .* there"):
        checkpoints.check_same_run(saved, make_entry(*changed, arguments=SMALL))


# The decoder first.


def fame_entry(*phases):
    entry = make_entry(*phases)
    arguments = tiny.CONFIGURATIONS["fame_gray"][1] | {"image_shape": [8, 8, 1]}
    arguments = {k: list(v) if k == "latent_sizes" else v for k, v in arguments.items()}
    content = entry.model_dump() | {"model": {"class": "FAME", "arguments": arguments}}
    return entries.ZooEntry.model_validate(content)


@pytest.mark.slow
def test_joint_training_starts_at_the_likelihood_of_the_decoder(tmp_path, monkeypatch):
    """Trained on crops; at the images' size to 1e-5 of the nats."""
    decoder = {"name": "decoder", "mode": "decoder", "crop_size": 4, "epochs": 1}
    joint = {"name": "joint", "epochs": 1, "max_steps": 1}
    images = next(iter(datasets.load_dataset("digits", "test", batch_size=20)))
    seen = []
    begin = Progress.begin_phase

    def begin_and_look(self, phase, recipe, **options):
        model = look["model"]
        seeds = tf.constant(sampling.row_seeds(0, 20))
        alone = -model.likelihood({}, seeds=seeds).log_prob(images)
        seen.append((alone, model.elbo_terms(images)["reconstruction"]))
        begin(self, phase, recipe, **options)

    look, build = {}, registry.build
    monkeypatch.setattr(
        registry, "build", lambda *a, **k: look.setdefault("model", build(*a, **k))
    )
    monkeypatch.setattr(Progress, "begin_phase", begin_and_look)
    entry = fame_entry(decoder, joint)
    training.train(entry, out=tmp_path / "run", verbose=0)
    (before, _), (alone, in_joint) = seen
    np.testing.assert_allclose(in_joint, alone, rtol=1e-5)
    assert np.mean(alone) < np.mean(before) - 0.1  # and it has learned


@pytest.mark.slow
def test_latents_start_anew_under_a_decoder_that_is_kept(tmp_path):
    """`init_part="decoder"`: its weights, but those of what it saw of the latents."""
    entry = fame_entry({"name": "joint", "epochs": 1, "max_steps": 1})
    first = training.train(entry, out=tmp_path / "first", verbose=0)
    anew = training.train(
        entry,
        out=tmp_path / "anew",
        init=tmp_path / "first",
        init_part="decoder",
        seed=1,
        max_steps=1,
        changes={"training.learning_rate": 1e-9},
        verbose=0,
    )
    of_maps = np.index_exp[:, :, anew.pixelcnn.first.num_inputs :]
    kept = {variable.path for variable in anew.pixelcnn.trainable_variables}
    for one, other in zip(
        first.trainable_variables, anew.trainable_variables, strict=True
    ):
        expected = one.numpy()
        if other is anew.pixelcnn.first.direction:
            assert np.any(expected[of_maps])
            expected[of_maps] = 0
        same = np.allclose(other, expected, atol=1e-6)
        is_drawn = "kernel" in other.path  # at random, from another seed
        assert same if other.path in kept else not (same and is_drawn), other.path
    record = vaezoo.describe(tmp_path / "anew").history[-1]
    assert record.init.sha256 == first.zoo_entry.weights.sha256


@pytest.mark.slow
def test_latents_and_a_decoder_that_were_trained_apart_are_joined(tmp_path):
    """`init_decoder`: its weights, but those of what `init` saw of the latents."""
    entry = fame_entry({"name": "joint", "epochs": 1, "max_steps": 1})
    options = {"max_steps": 1, "verbose": 0}
    training.train(entry, out=tmp_path / "first", **options)
    options["init"] = tmp_path / "first"
    latents = training.train(entry, out=tmp_path / "latents", seed=1, **options)
    decoder = training.train(entry, out=tmp_path / "decoder", seed=2, **options)
    joined = training.train(
        entry,
        out=tmp_path / "joined",
        init_decoder=tmp_path / "decoder",
        changes={"training.learning_rate": 1e-9},
        **options | {"init": tmp_path / "latents"},
    )
    of_image = np.index_exp[:, :, : joined.pixelcnn.first.num_inputs]
    of_decoder = {variable.path for variable in joined.pixelcnn.trainable_variables}
    for one, other, both in zip(
        latents.trainable_variables,
        decoder.trainable_variables,
        joined.trainable_variables,
        strict=True,
    ):
        expected = (other if both.path in of_decoder else one).numpy()
        if both is joined.pixelcnn.first.direction:
            expected = one.numpy()
            expected[of_image] = other.numpy()[of_image]
            assert not np.allclose(expected, one, atol=1e-5)
            assert not np.allclose(expected, other, atol=1e-5)
        np.testing.assert_allclose(both, expected, atol=1e-6, err_msg=both.path)
    *before, record = vaezoo.describe(tmp_path / "joined").history
    runs = [vaezoo.describe(tmp_path / name) for name in ("latents", "decoder")]
    assert before == [*runs[0].history, runs[1].history[-1]]  # the first run once
    assert [record.init.sha256, record.init_decoder.sha256] == [
        run.weights.sha256 for run in runs
    ]


@pytest.mark.parametrize("option", [{"init_part": "decoder"}, {"init_decoder": "zoo"}])
def test_only_a_decoder_that_stands_alone_is_taken_alone(run, tmp_path, option):
    with pytest.raises(ValueError, match='mode "decoder"'):
        training.train(run[0], out=tmp_path / "run", init="zoo", verbose=0, **option)
    assert not (tmp_path / "run").exists()


def test_a_decoder_is_read_of_a_model_of_images_of_another_size(tmp_path):
    """Only the ladder around the top code depends on the size; and it is not read."""
    arguments = tiny.CONFIGURATIONS["fame_gray"][1]
    height, width, channels = arguments["image_shape"]
    other = FAME(**arguments | {"image_shape": (2 * height, width, channels)})
    narrow = FAME(**arguments | {"pixelcnn_filters": 1})
    model = tiny.shared("fame_gray")
    path = weights.write_weights(model, tmp_path / "w.h5")
    before = {name: v.numpy() for name, v in weights.variables_by_name(other).items()}
    registry.read_decoder_weights(other, path)
    of_maps = np.index_exp[:, :, model.pixelcnn.first.num_inputs :]
    source = weights.variables_by_name(model)
    for name, variable in weights.variables_by_name(other).items():
        is_kept = name.startswith("pixelcnn/")
        expected = source[name].numpy() if is_kept else before[name]
        if variable is other.pixelcnn.first.direction:
            assert np.any(expected[of_maps])
            expected[of_maps] = 0
        np.testing.assert_array_equal(variable, expected, err_msg=name)
    with pytest.raises(ValueError, match="all of the decoder's weights.*pixelcnn/"):
        registry.read_decoder_weights(narrow, path)


def test_crops_and_modes_that_a_model_has_not_are_refused():
    model = registry.build(make_entry())
    data = phases.Data("digits", model)
    for change, message in (
        ({"mode": "decoder"}, "training.mode must be .* joint. Received: mode='dec"),
        ({"crop_size": 4}, "training.crop_size goes with a mode .*crop_size=4"),
        ({"selection": "validation"}, "training.selection=.*'digits'.*no validation"),
    ):
        with pytest.raises(ValueError, match=message):
            phases.check([make_entry(**change).training], model, data)
    large = fame_entry({"name": "decoder", "mode": "decoder", "crop_size": 9})
    model = registry.build(large)
    with pytest.raises(ValueError, match="at most the images' size.*crop_size=9"):
        phases.check(large.phases, model, data)
    # Of a later phase too, before the first has begun.
    hidden = {"name": "decoder", "mode": "decoder", "historyless_share": 0.5}
    several = fame_entry({"name": "whole"}, hidden)
    with pytest.raises(ValueError, match="training.decoder.historyless_share goes wi"):
        phases.check(several.phases, model, data)
    assert model.mode == "joint"


# Choice by validation.


class Weights:
    """What `Progress` asks of a model."""

    def __init__(self):
        self.weights = [tf.Variable([0.0])]


def test_the_weights_of_the_best_validation_bound_are_chosen():
    entry = make_entry(selection="validation")
    progress = Progress([new_record(None)])
    progress.begin_phase(0, entry.training, steps_before=0, num_images=1437)
    model = Weights()
    progress.set_model(model)

    def epoch(value, elbo):
        progress.step += STEPS
        model.weights[0].assign([value])
        progress.on_epoch_end(0, {"val_elbo": elbo})

    epoch(1.0, -30.0)
    epoch(2.0, -20.0)
    history, state = progress.history, progress.state()
    epoch(3.0, -25.0)
    progress.choose_weights(model)
    assert model.weights[0] == 2.0
    points = progress.history[0].phases[0].validation
    assert [(p.steps, p.elbo) for p in points] == [(6, -30), (12, -20), (18, -25)]

    resumed = Progress([new_record(None)])
    resumed.restore(history, state)
    resumed.begin_phase(0, entry.training, steps_before=0, num_images=1437)
    resumed.set_model(model)
    assert resumed.step == 2 * STEPS and resumed.history == history
    model.weights[0].assign([9.0])
    resumed.on_epoch_end(2, {"val_elbo": -25.0})
    resumed.choose_weights(model)
    assert model.weights[0] == 2.0


# Recipes.


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"learning_rate_warmup_steps": 4}, {0: 0.25, 1: 0.5, 9: 1.0}),
        (
            {"schedule": "exponential", "decay_rate": 0.5, "decay_steps": 10},
            {0: 1.0, 5: 0.5**0.5, 10: 0.5, 20: 0.25},
        ),
        (
            {"schedule": "staircase", "decay_rate": 0.5, "decay_steps": 10},
            {0: 1.0, 9: 1.0, 10: 0.5, 29: 0.25},
        ),
        # The last step of the phase is its tenth, of four epochs of six.
        ({"schedule": "linear", "max_steps": 10}, {0: 1.0, 5: 0.5, 10: 0.0}),
    ],
)
def test_schedules(changes, expected):
    own = ("learning_rate_warmup_steps", "max_steps")
    decay = {key: value for key, value in changes.items() if key not in own}
    options = {key: value for key, value in changes.items() if key in own}
    recipe = make_entry(learning_rate=0.01, learning_rate_decay=decay, **options)
    arguments = recipes.compile_arguments(recipe.training, steps_per_epoch=STEPS)
    optimizer = arguments["optimizer"]
    copy = keras.optimizers.deserialize(keras.optimizers.serialize(optimizer))
    for step, factor in expected.items():
        for each in (optimizer, copy):
            each.iterations.assign(step)
            np.testing.assert_allclose(
                each.learning_rate, 0.01 * factor, rtol=1e-5, atol=1e-9
            )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate_decay": {"schedule": "staircase"}}, "need both"),
        ({"learning_rate_decay": {"decay_rate": 0.5}}, "exponential and staircase"),
        (
            {"selection": "validation", "split": "train+validation"},
            "which holds the validation images out",
        ),
        ({"epsilon": 0}, "epsilon.*greater than 0"),
        ({"crop_size": 0}, "crop_size.*greater than 0"),
    ],
)
def test_recipes_that_contradict_themselves(changes, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        make_entry(**changes)


def test_phases_have_names_and_one_precision():
    with pytest.raises(ValueError, match="other names, not .*'joint', 'joint'"):
        make_entry({}, {})
    with pytest.raises(ValueError, match="one `precision`"):
        make_entry(FIRST, SECOND | {"precision": "mixed_bfloat16"})
    with pytest.raises(ValueError, match=r"training.1.batch_size: .*greater than 0"):
        try:
            make_entry(FIRST, SECOND | {"batch_size": 0})
        except ValueError as error:
            raise ValueError(recipes.explain(error, "An entry")) from None


def test_load_compiles_the_last_phase(tmp_path):
    entries.write_entry(
        make_entry(FIRST, SECOND, arguments=SMALL), tmp_path / "entry.yaml"
    )
    model = vaezoo.load(tmp_path, weights=None)
    np.testing.assert_allclose(model.optimizer.learning_rate, 0.001)


# Changes of a recipe, and of where to start.


def test_changes():
    one, two = make_entry().phases, make_entry(FIRST, SECOND, arguments=SMALL).phases
    (changed,) = recipes.changed(
        one,
        {
            "training.learning_rate": 0.5,
            "training.learning_rate_decay.schedule": "linear",
            "training.gradient_clip": None,
        },
    )
    assert (changed.learning_rate, changed.gradient_clip) == (0.5, None)
    assert changed.learning_rate_decay.final_learning_rate == 1e-4
    changed = recipes.changed(two, {"training.second.epochs": 7, "training.0.seed": 3})
    assert [(r.epochs, r.seed) for r in changed] == [(2, 3), (7, 0)]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("training.learning_rates", 1, "training.learning_rates: Extra inputs"),
        ("training.batch_size", "many", "training.batch_size: .*'many'"),
        ("learning_rate", 1, "such as training.learning_rate. Received: 'learning_"),
        ("model.filters", 1, "Received: 'model.filters'"),
    ],
)
def test_changes_that_are_refused(key, value, message):
    with pytest.raises(ValueError, match=message):
        recipes.changed(make_entry().phases, {key: value})


def test_with_several_phases_a_change_names_one():
    two = make_entry(FIRST, SECOND, arguments=SMALL).phases
    with pytest.raises(ValueError, match="training.first.learning_rate, where .* 1 or"):
        recipes.changed(two, {"training.learning_rate": 1})
    with pytest.raises(ValueError, match="training.second.epoch: Extra inputs"):
        recipes.changed(two, {"training.second.epoch": 1})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 3}, "epochs=3, for the phases first, second.*training.first.epoch"),
        ({"max_steps": 3}, "max_steps=3, for the phases first, second"),
        ({"more_epochs": 3}, "more_epochs=3, resume=False"),
        ({"changes": {"training.lr": 3}}, "Received: 'training.lr'"),
        ({"init": "somewhere/else"}, "init='somewhere/else', which is not there"),
    ],
)
def test_wrong_arguments(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        training.train(
            make_entry(FIRST, SECOND, arguments=SMALL),
            out=tmp_path / "run",
            **arguments,
        )
    assert not (tmp_path / "run" / "entry.yaml").exists()


@pytest.mark.slow
def test_a_run_starts_from_another_or_from_a_file(run, tmp_path):
    out, model = run
    options = {"epochs": 1, "max_steps": 1, "verbose": 0}
    options["changes"] = {"training.learning_rate": 1e-9, "training.ema_momentum": None}
    for start in (out, out / "weights.h5"):
        new = training.train(
            make_entry(arguments=SMALL),
            out=tmp_path / start.name,
            init=start,
            **options,
        )
        for name, value in weights_by_name(new).items():
            np.testing.assert_allclose(value, weights_by_name(model)[name], atol=1e-6)
        record = new.zoo_entry.history[-1]
        assert record.init.sha256 == weights.sha256(out / "weights.h5")
        assert len(new.zoo_entry.history) == (2 if start == out else 1)
