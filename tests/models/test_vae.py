"""What the base class promises of every model."""

import functools
import json
import math
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

import tiny
from vaezoo import sampling
from vaezoo.models import computations
from vaezoo.models.image_model import precision
from vaezoo.models.pixelvae import PixelVAE
from vaezoo.zoo import recipes


def num_parameters(model):
    return sum(math.prod(variable.shape) for variable in model.trainable_variables)


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ({"upsample": False, "latent_size": 16, "filters": 16}, 441_234),
        ({"upsample": False}, 1_252_674),
        ({"num_layers": 0}, 578_690),
        ({"num_layers": 1}, 706_882),
        ({"num_layers": 2}, 773_890),
        ({"num_layers": 5}, 974_914),
        ({"num_layers": 13}, 1_510_978),
        ({"latent_size": 0}, 817_634),
    ],
)
def test_parameter_counts(arguments, expected):
    """Counted from the layers of the authors' code; the paper prints no counts."""
    assert num_parameters(PixelVAE(**arguments)) == expected


@pytest.mark.parametrize("name", tiny.others_slow(tiny.CONFIGURATIONS))
def test_reconstruction_is_the_likelihood_of_the_encoded_draw(name):
    """`-log p(x | z)` at the z of `encode` with that seed, from z alone."""
    model = tiny.shared(name)
    images = tiny.images_for(model, 20)
    terms = model.elbo_terms(images, seed=3)
    values = model.encode(images, seed=3) if model.latent_shapes else {}
    seeds = tf.constant(sampling.row_seeds(3, 20))
    nats = model.likelihood(values, seeds=seeds).log_prob(images)
    np.testing.assert_allclose(terms["reconstruction"], -nats, rtol=1e-5)
    assert all(value.dtype == tf.float32 for value in terms.values())
    if not model.latent_shapes:
        np.testing.assert_allclose(terms["elbo"], nats, rtol=1e-5)


@pytest.mark.parametrize("name", tiny.others_slow(tiny.WITH_LATENTS))
def test_elbo_is_the_mean_log_weight(name):
    """`E_q[log p(x, z) - log q(z | x)]`, by the densities at the same draws.

    Within five standard errors of the difference, which are less than the KL, so that
    a KL left out or doubled fails.
    """
    model = tiny.build(name)
    for layer in model._flatten_layers():
        if layer.name.endswith("parameters"):  # posteriors start next to the prior
            layer.gain.assign(10.0 * layer.gain)
    images = tiny.images_for(model, 1).repeat(1024, axis=0)
    seeds = sampling.row_seeds(0, 1024)
    weights = model.log_likelihood(images, num_importance_samples=1, seed=seeds)
    terms = model.elbo_terms(images, seed=seeds)
    differences = (terms["elbo"] - weights).numpy()
    error = np.std(differences) / math.sqrt(1024)
    assert abs(np.mean(differences)) < 5 * error + 1e-4
    assert 5 * error < np.mean(terms["kl"])


@pytest.mark.parametrize("name", tiny.others_slow(tiny.CONFIGURATIONS))
def test_fit_improves_the_bound_and_its_loss_adds_up(name):
    model = tiny.build(name, initialized=False)
    images = tiny.images_for(model, 60)  # a ragged last batch
    model.compile(keras.optimizers.Adam(3e-3))
    history = model.fit(images, batch_size=16, epochs=6, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]
    evaluated = model.evaluate(images, batch_size=16, verbose=0, return_dict=True)
    if model.trains_on_bound:
        assert evaluated.keys() == history.keys()
        epochs = zip(*history.values(), strict=True)
        epochs = [dict(zip(history, values, strict=True)) for values in epochs]
    else:  # training has a surrogate of the KL term, and does not call it one
        assert history.keys() == {"loss", "reconstruction"}
        epochs = []
    for logs in [evaluated, *epochs]:
        loss = logs["reconstruction"] + logs["kl"]
        assert loss == pytest.approx(-logs["elbo"], rel=1e-5)
        assert logs["loss"] == pytest.approx(
            loss + logs.get("auxiliary", 0.0), rel=1e-5
        )
        bits = loss / math.log(2) / math.prod(model.image_shape)
        assert logs["bits_per_dim"] == pytest.approx(bits, rel=1e-4)


def test_uniform_model_scores_log_two_a_pixel():
    """28x28 fair coins: 784 log 2 = 543.43 nats, 1 bit/dim (T14)."""
    model = PixelVAE(latent_size=0, num_layers=1, filters=4)
    outputs = model.decoder.outputs
    outputs.gain.assign(tf.zeros_like(outputs.gain))
    images = tiny.images_for(model, 3)
    nats = model.log_likelihood(images).numpy()
    np.testing.assert_allclose(nats, -784 * math.log(2), rtol=1e-6)
    model.compile()
    logs = model.evaluate(images, verbose=0, return_dict=True)
    assert logs["bits_per_dim"] == pytest.approx(1.0, rel=1e-6)
    assert logs["loss"] == pytest.approx(543.43, abs=0.01)


@pytest.mark.parametrize("name", tiny.CONFIGURATIONS)
def test_every_parameter_in_use_gets_a_gradient(name):
    model = tiny.shared(name)
    seeds = tf.range(16, dtype=tf.int64)
    with tf.GradientTape() as tape:
        terms, _ = computations.elbo_terms(
            model, tiny.images_for(model, 16), seeds, training=True
        )
        loss = tf.reduce_sum(terms.get("auxiliary", 0.0) - terms["elbo"])
    variables = model.trainable_variables
    gradients = tape.gradient(loss, variables)
    without = {v.path for v, g in zip(variables, gradients, strict=True) if g is None}
    # The papers have them, and nothing is fed by them: the code of the last vertical
    # gate, and what the top of a ladder adds for a level above it.
    decoder = getattr(model, "decoder", None)
    blocks = getattr(decoder, "blocks", None) or [None]
    unused = [f"block_{len(blocks) - 1}/vertical_code/"]
    if hasattr(model, "ladder"):
        unused.append(f"{model.ladder.levels[-1].name}/up_second/")
    assert all(any(part in path for part in unused) for path in without)


@pytest.mark.parametrize("name", ["gated_pixelvae_noup", "vlae", "fame"])
def test_a_replica_without_rows_adds_nothing(name):
    """The last batch of a pass may have fewer rows than there are replicas."""
    model = tiny.shared(name)
    images = tf.TensorSpec([None, *model.image_shape], tf.uint8)

    @tf.function(input_signature=[images, tf.TensorSpec([None], tf.int64)])
    def step(images, seeds):
        with tf.GradientTape() as tape:
            terms, _ = computations.elbo_terms(model, images, seeds)
            loss = tf.reduce_sum(terms["elbo"])
        return terms, tape.gradient(loss, model.trainable_variables)

    none = np.zeros([0, *model.image_shape], np.uint8)
    terms, gradients = step(none, np.zeros([0], np.int64))
    assert {value.shape[0] for value in terms.values()} == {0}
    gradients = [gradient for gradient in gradients if gradient is not None]
    assert gradients and not any(np.any(gradient) for gradient in gradients)


@pytest.mark.parametrize("name", tiny.others_slow(tiny.WITH_LATENTS))
def test_generation_uses_the_prior_only(name):
    """A sample is `decode` of a draw from the prior: it sees no image (T15)."""
    model = tiny.shared(name)
    seeds = sampling.row_seeds(4, 3)
    values, _ = model.generate(tf.constant(seeds), temperature=tf.ones([3]))
    decoded = model.decode(values, seed=seeds).numpy()
    np.testing.assert_array_equal(model.sample(3, seed=4), decoded)


@pytest.mark.parametrize(
    "name",
    tiny.others_slow(
        [*tiny.REPRESENTATIVE, "conv_vlae", "iafvae", "pixelvae2", "pixelvaepp"]
    ),
)
def test_seeds_by_latent(name):
    """Each latent and the pixels have noise of their own, which can be held."""
    model = tiny.shared(name)
    names = [*model.latent_shapes, "pixels"]
    plain = model.sample(3, seed=5, jit=False).numpy()
    seed = dict.fromkeys(names, 5)
    np.testing.assert_array_equal(model.sample(3, seed=seed, jit=False), plain)
    temperature = tf.ones([3])
    held, _ = model.generate(
        tf.constant(sampling.row_seeds(5, 3)), temperature=temperature
    )
    for index, changed in enumerate(names):
        seeds = {
            key: tf.constant(sampling.row_seeds(6 if key == changed else 5, 3))
            for key in names
        }
        values, _ = model.generate(seeds, temperature=temperature)
        for above in names[:index]:
            np.testing.assert_array_equal(values[above], held[above])
        if changed != "pixels":
            assert np.any(values[changed] != held[changed])
    assert np.any(model.sample(3, seed=seed | {"pixels": 6}, jit=False) != plain)


@pytest.mark.parametrize(
    ("seed", "received"),
    [
        ({"z": 1}, "must have exactly the keys 'z', 'pixels'"),
        ({"z": 1, "pixels": 0, "z2": 3}, "'z2': 3"),
        ({"z": 1.5, "pixels": 0}, "seed=1.5"),
        ({"z": np.zeros(3, np.int64), "pixels": 0}, r"shape=\(3,\)"),
    ],
)
def test_bad_seeds_by_latent(seed, received):
    with pytest.raises(ValueError, match=received):
        tiny.shared("gated_pixelvae_noup").sample(2, seed=seed)


@pytest.mark.parametrize("name", tiny.others_slow(tiny.WITH_LATENTS))
def test_encode_decode_reconstruct(name):
    model = tiny.shared(name)
    images = tiny.images_for(model, 6)
    latents = model.encode(images, seed=2)
    assert {k: v.shape[1:] for k, v in latents.items()} == model.latent_shapes
    np.testing.assert_array_equal(
        model.decode(latents, seed=2), model.reconstruct(images, seed=2)
    )
    if name == "pixelvaepp":  # z3, in one latent with z1 and z2, depends on their draws
        return
    means = model.encode(images, mode="mean")
    top = next(iter(model.latent_shapes))  # the means below depend on its draw
    np.testing.assert_allclose(
        means[top], model.encode(images, mode="mean", seed=9)[top], rtol=1e-6
    )
    draws = np.stack([model.encode(images, seed=s)[top] for s in range(60)])
    seeds = tf.range(6, dtype=tf.int64)
    posterior = computations.posterior(model, tf.constant(images), seeds)[0][
        top
    ].posterior
    scale = posterior.distribution.stddev()  # before a flow, where there is one
    # The mean of 60 draws, within six standard errors of the posterior's mean.
    assert np.all(np.abs(draws.mean(0) - means[top]) < 6 * scale / 60**0.5)


@pytest.mark.parametrize("name", tiny.others_slow(["gated_pixelvae_noup", "pixelcnn"]))
def test_complete(name):
    """Known pixels come back; nothing to fill returns the input."""
    model = tiny.shared(name)
    images = tiny.images_for(model, 3)
    mask = np.zeros((3, *model.image_shape[:2], 1), np.uint8)
    np.testing.assert_array_equal(model.complete(images, mask), images)
    mask[:, 4:] = 1
    filled = model.complete(images, mask, seed=1, num_rounds=2).numpy()
    np.testing.assert_array_equal(filled[:, :4], images[:, :4])
    # What is under the mask does not matter.
    hidden = images.copy()
    hidden[:, 4:] = 1 - hidden[:, 4:]
    again = model.complete(hidden, mask, seed=1, num_rounds=2)
    np.testing.assert_array_equal(again, filled)
    assert np.any(filled != model.complete(images, mask, seed=2, num_rounds=2))


@pytest.mark.slow
def test_fit_takes_arrays_tuples_and_dicts():
    model = tiny.build("gated_pixelvae_noup")
    weights = model.get_weights()
    images = tiny.images_for(model, 32)
    labels = np.zeros(32)
    model.compile("adam")
    results = []
    for data in (
        tf.data.Dataset.from_tensor_slices((images, labels)).batch(16),
        tf.data.Dataset.from_tensor_slices({"image": images}).batch(16),
        images,
    ):
        logs = model.evaluate(data, batch_size=16, verbose=0, return_dict=True)
        results.append(logs["loss"])
        assert np.isfinite(model.fit(data, epochs=1, verbose=0).history["loss"][0])
        model.set_weights(weights)
    np.testing.assert_allclose(results, results[0], rtol=1e-5)


def test_fit_initialises_on_its_first_batch():
    model = tiny.build("gated_pixelvae_noup", initialized=False)
    images = tiny.images_for(model, 32)
    model.compile("adam")
    with pytest.raises(RuntimeError, match="initialised on data before its first"):
        model.train_step(images)
    model.fit(images, verbose=0)
    assert model.data_initialized


@pytest.mark.parametrize("unit", ["per_image", "per_dim"])
@pytest.mark.parametrize("by", ["value", "global_norm"])
def test_gradient_clip(by, unit):
    """With plain SGD a step is the clipped gradient times the rate."""
    model = tiny.build("gated_pixelvae_noup")
    images = tiny.images_for(model, 8)
    limit = 1e-3
    model.compile(
        keras.optimizers.SGD(1.0),
        gradient_clip={"by": by, "limit": limit, "unit": unit},
    )
    before = [v.numpy() for v in model.trainable_variables]
    model.fit(images, verbose=0)
    after = [v.numpy() for v in model.trainable_variables]
    steps = np.concatenate(
        [(b - a).ravel() for a, b in zip(after, before, strict=True)]
    )
    scale = 64 if unit == "per_dim" else 1
    size = np.abs(steps).max() if by == "value" else np.linalg.norm(steps)
    assert size == pytest.approx(limit * scale, rel=1e-2)


@pytest.mark.slow
def test_noise_is_keyed_by_step_and_seed():
    """Equal seeds train alike; another seed does not."""

    def train(seed):
        model = tiny.build("gated_pixelvae_noup")
        model.compile(keras.optimizers.SGD(0.01), seed=seed)
        model.fit(tiny.images_for(model, 24), batch_size=8, shuffle=False, verbose=0)
        return np.concatenate([v.numpy().ravel() for v in model.trainable_variables])

    np.testing.assert_array_equal(train(0), train(0))
    assert np.any(train(0) != train(1))


@pytest.mark.parametrize(
    "name", tiny.others_slow(["pixelcnn_colour", "gated_pixelvae", "vlae_iaf"])
)
def test_keras_round_trip(name, tmp_path):
    """`model.save` keeps configuration, weights, compilation and optimizer state."""
    model = tiny.build(name)
    images = tiny.images_for(model, 16)
    model.compile(
        keras.optimizers.Adam(1e-3),
        kl_warmup_steps=5,
        soft_free_bits_nats=9.0,
        gradient_clip={"by": "global_norm", "limit": 1.0, "unit": "per_image"},
        seed=3,
    )
    model.fit(images, verbose=0)
    path = tmp_path / "tiny.keras"
    model.save(path)
    loaded = keras.models.load_model(path)
    assert type(loaded) is type(model)
    assert loaded.get_config() == model.get_config()
    assert loaded.get_compile_config() == model.get_compile_config()
    np.testing.assert_array_equal(loaded.elbo(images), model.elbo(images))
    model.fit(images, verbose=0, shuffle=False)
    loaded.fit(images, verbose=0, shuffle=False)
    np.testing.assert_allclose(loaded.elbo(images), model.elbo(images), rtol=1e-5)


def test_a_recipes_optimizer_is_loaded_where_no_recipe_was(tmp_path):
    """In another process, where only the model's class has been imported."""
    model = tiny.build("gated_pixelvae")
    recipe = recipes.Recipe(
        optimizer="muon",
        learning_rate=1e-3,
        learning_rate_warmup_steps=3,
        batch_size=16,
        epochs=1,
    )
    model.compile(**recipes.compile_arguments(recipe))
    model.fit(tiny.images_for(model, 16), verbose=0)
    model.save(tmp_path / "model.keras")
    code = (
        "import json, keras, sys, vaezoo.models.pixelvae\n"
        "model = keras.models.load_model(sys.argv[1])\n"
        "assert int(model.optimizer.iterations) == 1\n"
        "print(json.dumps(keras.optimizers.serialize(model.optimizer)))"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "model.keras")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    expected = keras.optimizers.serialize(model.optimizer)
    assert json.loads(done.stdout.splitlines()[-1]) == expected


@pytest.mark.parametrize(
    "name", tiny.others_slow(["fame", "gated_pixelvae", "vlae_iaf"])
)
def test_mixed_bfloat16(name):
    """Nats are float32 and close to float32's.

    A bfloat16 has 8 bits of mantissa, so an operation rounds by up to 0.4 %: an image's
    bound may move by 3 % through the twenty layers, the mean of eight by 1 %.
    """
    reference = tiny.build(name)
    images = tiny.images_for(reference, 8)
    with precision("mixed_bfloat16"):
        model = tiny.build(name)
    for mine, theirs in zip(model.weights, reference.weights, strict=True):
        mine.assign(theirs)
    nats = model.elbo(images)
    assert nats.dtype == tf.float32
    exact = reference.elbo(images)
    np.testing.assert_allclose(nats, exact, rtol=3e-2)
    np.testing.assert_allclose(np.mean(nats), np.mean(exact), rtol=1e-2)
    model.compile("adam")
    assert np.isfinite(model.fit(images, verbose=0).history["loss"][0])


BAD_IMAGES = {
    "float": (np.zeros((2, 8, 8, 1), np.float32), "dtype=float32"),
    "rank": (np.zeros((2, 8, 8), np.uint8), r"shape=\(2, 8, 8\)"),
    "size": (np.zeros((2, 28, 28, 1), np.uint8), r"shape=\(2, 28, 28, 1\)"),
    "channels": (np.zeros((2, 8, 8, 3), np.uint8), r"shape=\(2, 8, 8, 3\)"),
    "grey": (np.full((2, 8, 8, 1), 255, np.uint8), "values up to 255"),
    "strings": (["a"], "Received"),
    "none": (np.zeros((0, 8, 8, 1), np.uint8), "at least one"),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
@pytest.mark.parametrize("method", ["elbo", "log_likelihood", "encode", "reconstruct"])
def test_bad_images(kind, method):
    images, received = BAD_IMAGES[kind]
    model = tiny.shared("gated_pixelvae_noup")
    with pytest.raises(ValueError, match=received):
        getattr(model, method)(images)


def test_bad_images_in_fit():
    model = tiny.build("gated_pixelvae_noup")
    model.compile("adam")
    for kind in ("float", "size", "channels"):
        with pytest.raises(ValueError, match="`images` must be uint8"):
            model.fit(BAD_IMAGES[kind][0], verbose=0)
    with pytest.raises(ValueError, match="values in 0..1"):
        model.fit(BAD_IMAGES["grey"][0], verbose=0)
    with pytest.raises(ValueError, match="must have the key 'image'"):
        model.fit({"picture": BAD_IMAGES["float"][0]}, verbose=0)


def test_bad_arguments():
    model = tiny.shared("gated_pixelvae_noup")
    images = tiny.images_for(model, 2)
    mask = np.zeros((2, 8, 8, 1), np.uint8)
    for count in (0, -1, 1.5):
        with pytest.raises(ValueError, match="`num_importance_samples`"):
            model.log_likelihood(images, num_importance_samples=count)
    with pytest.raises(ValueError, match="`mode` must be 'sample' or 'mean'"):
        model.encode(images, mode="mode")
    with pytest.raises(ValueError, match="`mask` must be uint8"):
        model.complete(images, mask[:, :4])
    with pytest.raises(ValueError, match="`mask` .* values up to 2"):
        model.complete(images, mask + 2)
    with pytest.raises(ValueError, match="for 2 images"):
        model.complete(images, mask[:1])
    with pytest.raises(ValueError, match="`num_rounds`"):
        model.complete(images, mask, num_rounds=-1)
    with pytest.raises(ValueError, match="`latents` must hold exactly"):
        model.decode({"z": np.zeros((2, 4), np.float32)})
    with pytest.raises(ValueError, match="`latents` must hold exactly"):
        model.decode({"y": np.zeros((2, 3), np.float32)})
    with pytest.raises(ValueError, match="has no latents"):
        tiny.shared("pixelcnn").decode({})


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"image_shape": (28, 28)}, "image_shape"),
        ({"image_shape": (28, 0, 1)}, "image_shape"),
        ({"num_layers": 17}, "num_layers"),
        ({"latent_size": -1}, "latent_size"),
        ({"num_layers": 0, "upsample": False}, "needs the maps of z"),
        ({"num_layers": 0, "latent_size": 0}, "needs the maps of z"),
        ({"gated": False, "upsample": False}, "needs `gated=True`"),
    ],
)
def test_bad_constructor_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        PixelVAE(**arguments)


@pytest.mark.parametrize(
    "options",
    [
        {"gradient_clip": {"by": "value"}},
        {"gradient_clip": {"by": "norm", "limit": 1.0, "unit": "per_dim"}},
        {"gradient_clip": {"by": "value", "limit": 0, "unit": "per_dim"}},
        {"kl_warmup_steps": -1},
        {"free_bits_nats": -1.0},
        {"soft_free_bits_nats": -1.0},
        {"soft_free_bits_weight": 0.0},
        {"kl_warmup_start": 1.5},
        {"historyless_share": 1.5},
    ],
)
def test_bad_compile_arguments(options):
    model = tiny.build("pixelcnn", initialized=False)
    with pytest.raises(ValueError, match="Received"):
        model.compile("adam", **options)


# Gradient accumulation.


def train_in_parts(name, parts, num_images=21, **options):
    model = tiny.build(name)
    model.compile(
        keras.optimizers.SGD(1e-3, momentum=0.9),
        gradient_clip={"by": "global_norm", "limit": 5.0, "unit": "per_image"},
        gradient_accumulation_steps=parts,
        kl_warmup_steps=4,
        **options,
    )
    data = tf.data.Dataset.from_tensor_slices(tiny.images_for(model, num_images))
    logs = model.fit(data.batch(8), epochs=2, verbose=0).history
    return [variable.numpy() for variable in model.trainable_variables], logs


@pytest.mark.parametrize(
    "options",
    [
        {"free_bits_nats": 0.5, "historyless_share": 0.5},
        pytest.param({"soft_free_bits_nats": 4.0}, marks=pytest.mark.slow),
    ],
)
def test_accumulated_gradients_are_those_of_the_batch(options):
    """Parts of 3, 3 and 2 rows of 8, and of 2, 2 and 1 of the last 5, against one.

    Of a VLAE, for its ELUs: a ReLU whose input is within rounding of 0 has one gradient
    in the batch and another in its parts, as a PixelVAE showed without oneDNN.
    """
    whole, logs = train_in_parts("vlae", 1, **options)
    parts, logs_of_parts = train_in_parts("vlae", 3, **options)
    for one, other in zip(whole, parts, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)
    for key, values in logs.items():
        np.testing.assert_allclose(logs_of_parts[key], values, rtol=1e-5)


def test_every_part_must_have_a_row():
    with pytest.raises(tf.errors.InvalidArgumentError, match="steps=4 rows of every"):
        train_in_parts("vae", 4, num_images=11)  # the last batch has 3


def test_free_bits_of_a_model_without_latents_are_none():
    model = tiny.build("pixelcnn")
    model.compile("adam", free_bits_nats=1.0)
    logs = model.fit(tiny.images_for(model, 8), verbose=0).history
    assert logs["loss"] == logs["reconstruction"]


# Images hidden from the decoder.


def test_hidden_images_are_explained_by_latents_alone():
    """Each row has one of two terms: the decoder's own, or those of no image."""
    model = tiny.build("gated_pixelvae")
    images = tiny.images_for(model, 32)
    seeds = tf.range(32, dtype=tf.int64)

    def reconstruction(images, share):
        terms, latents = computations.elbo_terms(
            model, images, seeds, historyless_share=share
        )
        return terms["reconstruction"].numpy(), latents

    seen, latents = reconstruction(images, 0.0)
    none_seen, _ = reconstruction(images, 1.0)
    some_seen, _ = reconstruction(images, 0.5)
    hidden = some_seen != seen
    assert 8 < hidden.sum() < 24  # of 32 rows; seeded
    np.testing.assert_array_equal(some_seen, np.where(hidden, none_seen, seen))
    # What the decoder says of a hidden image, it says of any.
    likelihood = model.likelihood(computations.draws(latents), seeds=seeds)
    params = likelihood.params(images, hidden=tf.fill([32], True))
    np.testing.assert_array_equal(params, likelihood.params(tf.zeros_like(images)))
    log_probs = likelihood.log_prob(images, hidden=tf.fill([32], True))
    np.testing.assert_array_equal(-log_probs, none_seen)


def test_training_hides_images_and_validation_does_not():
    losses = {}
    for share in (0.0, 1.0):
        model = tiny.build("gated_pixelvae")
        model.compile(keras.optimizers.SGD(1e-9), historyless_share=share)
        images = tiny.images_for(model, 16)
        logs = model.fit(images, batch_size=16, validation_data=images, verbose=0)
        losses[share] = [logs.history[key][0] for key in ("loss", "val_loss")]
    (trained, validated), (trained_hidden, validated_hidden) = losses.values()
    assert abs(trained_hidden - trained) > 1e-3
    assert validated_hidden == pytest.approx(validated, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "mode", "received"),
    [
        ("pixelcnn", "joint", "without latents"),
        ("fame", "decoder", "without latents"),
        ("vae", "joint", "sees no image"),
        ("agave", "auxiliary", "without the decoder"),
    ],
)
def test_images_are_hidden_from_decoders_of_latents(name, mode, received):
    model = tiny.build(name)
    model.mode = mode
    model.compile("adam", historyless_share=0.5)
    with pytest.raises(ValueError, match=received):
        model.fit(tiny.images_for(model, 8), verbose=0)


def test_signatures_share_one_graph_of_the_scan():
    """`sample` and `decode` call the same function of a graph, not a copy each."""
    model = tiny.build("gated_pixelvae_noup")
    seeds = tf.TensorSpec([None], tf.int64)
    values = {"z": tf.TensorSpec([None, 3])}
    scans = []
    for computation, specs in (
        (computations.sample, (seeds, tf.TensorSpec([None]))),
        (computations.decode, (values, seeds)),
    ):
        function = tf.function(functools.partial(computation, model), autograph=False)
        graph = function.get_concrete_function(*specs).graph
        calls = [op for op in graph.get_operations() if "PartitionedCall" in op.type]
        scans.append([op.get_attr("f").name for op in calls])
    assert len(scans[0]) == 1 and scans[0] == scans[1]
