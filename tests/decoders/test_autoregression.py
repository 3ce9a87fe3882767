"""No leak, no blind spot, scan equals call: held by every autoregressive decoder."""

import numpy as np
import pytest
import tensorflow as tf

import tiny
from vaezoo.decoders.gated_pixelcnn import GatedPixelCNN, gate
from vaezoo.decoders.pixelcnn import PixelCNN
from vaezoo.decoders.residual_pixelcnn import ResidualPixelCNN
from vaezoo.distributions import heads

NETWORK = {
    "num_colours": 1,
    "num_outputs": 1,
    "filters": 8,
    "head_filters": (8,),
    "kernel_size": 5,
    "first_kernel_size": 7,
}


def influence(outputs_of, images):
    """|d outputs / d pixels| summed over the batch: `[h, w, outputs, h, w, c]`."""
    images = tf.constant(images, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(images)
        outputs = outputs_of(images)
    jacobian = tape.batch_jacobian(outputs, images)
    return tf.reduce_sum(tf.abs(jacobian), 0).numpy()


def scores(head, params_of, images):
    """What the network makes of images, as the log-probability of each channel.

    Through the network alone: what is scored stays `images`.
    """
    values = tf.cast(images, tf.float32)
    return lambda inputs: head.channel_log_probs(params_of(inputs), values)


def raster_matrix(jacobian):
    """Influence between (pixel, colour) pairs in raster order: `[to, from]`."""
    height, width, channels, *_ = jacobian.shape
    return jacobian.reshape(height * width * channels, height * width * channels)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", tiny.AUTOREGRESSIVE)
def test_no_leak(name, training):
    """A (pixel, colour)'s parameters do not depend on itself nor on any later one."""
    model = tiny.shared(name)
    num = 4
    seeds = tf.range(num, dtype=tf.int64)
    values, _ = model.generate(seeds, temperature=tf.ones([num]))
    distribution = model.likelihood(values, seeds=seeds, training=training)
    images = tiny.images_for(model, num)
    matrix = raster_matrix(
        influence(scores(model.head, distribution.params, images), images)
    )
    assert np.all(np.triu(matrix) == 0)
    assert np.any(matrix > 0)


@pytest.mark.parametrize("name", ["gated_pixelvae_noup", "gated_pixelvae_colour"])
def test_no_blind_spot(name):
    """The gated decoders see every earlier (pixel, colour) of a small image."""
    model = tiny.shared(name)
    distribution = tiny.likelihood(model, 4)
    images = tiny.images_for(model, 4)
    matrix = raster_matrix(
        influence(scores(model.head, distribution.params, images), images)
    )
    earlier = np.tril(np.ones_like(matrix), -1)
    # 7x7-A and two 5x5-B layers reach 7 columns to either side: the whole image.
    assert np.all((matrix > 0) == (earlier > 0))


def test_receptive_field_of_gated_network():
    """7x7-A and two 5x5-B: 7 left, 7 right, 8 up, a full half-plane of 127 pixels."""
    network = GatedPixelCNN(num_layers=3, **NETWORK)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 2, (4, 28, 28, 1)).astype(np.float32)
    images = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(images)
        centre = tf.reduce_sum(network(images)[:, 14, 14])
    seen = np.abs(tape.gradient(centre, images).numpy()).sum((0, 3)) > 0
    assert seen.sum() == 127
    assert seen[6:14, 7:22].all() and seen[14, 7:14].all()


def test_plain_network_has_the_blind_spot_of_its_kernels():
    """3x3-A and five 3x3-B: 69 pixels, and none further than one column right a row."""
    options = {**NETWORK, "kernel_size": 3, "first_kernel_size": 3}
    network = PixelCNN(num_layers=6, **options)
    images = tf.constant(
        np.random.default_rng(0).uniform(size=(8, 28, 28, 1)), "float32"
    )
    with tf.GradientTape() as tape:
        tape.watch(images)
        centre = tf.reduce_sum(network(images)[:, 14, 14])
    seen = np.abs(tape.gradient(centre, images).numpy()).sum((0, 3)) > 0
    assert seen.sum() == 69


@pytest.mark.parametrize("name", ["gated_pixelvae_colour", "pixelcnn_colour"])
def test_colour_order(name):
    """Within a pixel: R sees no colour, G sees R, B sees R and G (T3)."""
    model = tiny.shared(name)
    distribution = tiny.likelihood(model, 16)
    images = tiny.images_for(model, 16)
    jacobian = influence(scores(model.head, distribution.params, images), images)
    pixels = np.arange(4)
    here = jacobian[pixels[:, None], pixels, :, pixels[:, None], pixels]
    allowed = np.tril(np.ones((3, 3)), -1) > 0
    assert np.all(here[..., ~allowed] == 0)
    # A ReLU may be silent at one pixel; the kernels are the same at all.
    assert np.all(here.sum((0, 1))[allowed] > 0)


@pytest.mark.parametrize("gated", [True, False])
def test_colour_order_at_width_not_divisible_by_three(gated):
    """Gates pair channels of one colour also where the width is 64 (T3)."""
    cls = GatedPixelCNN if gated else PixelCNN
    options = NETWORK | {"num_colours": 3, "num_outputs": 12, "filters": 64}
    network = cls(num_layers=2, **(options | {"head_filters": (64,)}))
    images = np.random.default_rng(0).integers(0, 4, (2, 3, 3, 3))
    head = heads.Categorical(3, levels=4)
    jacobian = influence(scores(head, network, images), images)
    assert np.all(np.triu(raster_matrix(jacobian)) == 0)
    here = jacobian[1, 1][:, 1, 1]
    assert np.all((here > 0) == (np.tril(np.ones((3, 3)), -1) > 0))


def test_colour_order_of_residual_blocks():
    """64 features, 64 maps, blocks of 128: none a multiple of 3 (T3).

    The order of the two is part of the masks: swapped, a pixel would see itself.
    """
    generator = np.random.default_rng(0)
    images = generator.integers(0, 4, (2, 3, 3, 3))
    maps = tf.constant(generator.normal(size=(2, 3, 3, 64)), tf.float32)
    head = heads.Categorical(3, levels=4)
    network = ResidualPixelCNN(
        num_colours=3,
        num_outputs=head.num_outputs,
        features=64,
        filters=128,
        kernel_sizes=(3, 3),
        num_maps=64,
    )

    def outputs_of(inputs):
        return network(inputs, maps=maps)

    def swapped(inputs):
        first, second = network.blocks
        features = tf.concat([maps, network.first(inputs)], axis=-1)
        gated = gate(first.gates(tf.nn.elu(features)))
        return network.outputs(second(features + first.outer(gated)))

    jacobian = influence(scores(head, outputs_of, images), images)
    assert np.all(np.triu(raster_matrix(jacobian)) == 0)
    here = jacobian[1, 1][:, 1, 1]
    assert np.all((here > 0) == (np.tril(np.ones((3, 3)), -1) > 0))
    leaking = raster_matrix(influence(scores(head, swapped, images), images))
    assert np.any(np.triu(leaking) > 0)


@pytest.mark.parametrize("name", ["pixelcnnpp", "pixelcnnpp_unstrided"])
def test_pixelcnnpp_sees_all_pixels_before_and_none_of_its_own(name):
    """Through the whole U, the gradients of all pixels by all.

    One residual block a resolution reaches 6 columns to either side from every row.
    """
    model = tiny.shared(name)
    distribution = tiny.likelihood(model, 4)
    jacobian = influence(distribution.params, tiny.images_for(model, 4))
    height, width, _ = model.image_shape
    seen = jacobian.sum((2, 5)).reshape(height * width, height * width) > 0
    columns = np.arange(height * width) % width
    near = np.abs(columns[:, None] - columns) <= 6
    assert not np.any(np.triu(seen))
    assert np.all(seen[np.tril(near, -1)])


def test_colour_order_through_a_head():
    """Of a mixture: R is scored by itself, G by R, B by R and G."""
    head = heads.LogisticMixture(3, levels=5, num_components=3)
    generator = np.random.default_rng(0)
    params = generator.normal(size=(1, 2, 2, head.num_outputs)).astype(np.float32)
    images = generator.integers(1, 4, (1, 2, 2, 3))
    jacobian = influence(lambda x: head.channel_log_probs(params, x), images)
    matrix = raster_matrix(jacobian)
    own_pixel = np.kron(np.eye(4), np.tril(np.ones((3, 3))))
    assert np.all((matrix > 0) == (own_pixel > 0))


@pytest.mark.parametrize("name", tiny.AUTOREGRESSIVE)
def test_cached_scan_equals_naive_scan(name):
    """From the same noise, the same images; each draw conditions the next."""
    model = tiny.shared(name)
    distribution = tiny.likelihood(model, 5)
    uniforms = np.random.default_rng(1).uniform(size=(5, *distribution.noise_shape))
    uniforms = tf.constant(uniforms, tf.float32)
    temperature = tf.constant([1.0, 1.0, 0.5, 2.0, 1.0])
    cached = tf.function(distribution.draw)(uniforms, temperature=temperature)
    naive = tf.function(distribution.draw_naively)(uniforms, temperature=temperature)
    np.testing.assert_array_equal(cached, naive)
    assert 0 < np.mean(cached) < model.levels - 1


@pytest.mark.parametrize(
    "name",
    [
        "pixelvae_free_maps",
        "pixelcnn_colour",
        "vlae",
        "fame",
        "gated_pixelvae_colour",
        "pixelcnnpp",
        "conv_vlae",
    ],
)
def test_a_graph_draws_what_the_scan_draws(name):
    """Along a wavefront: with and without maps, in colour, with a first kernel of 3
    and of 7; and with the tensors held in a list, where there is no wavefront."""
    model = tiny.shared(name)
    distribution = tiny.likelihood(model, 3)
    images = tiny.images_for(model, 3)
    generator = np.random.default_rng(2)
    mask = generator.integers(0, 2, (*images.shape[:3], 1)).astype(np.uint8)
    uniforms = generator.uniform(size=(3, *distribution.noise_shape))
    uniforms = tf.constant(uniforms, tf.float32)
    temperature = tf.constant([1.0, 0.5, 2.0])

    def draw(uniforms, in_graph):
        return distribution.draw(
            uniforms,
            temperature=temperature,
            known=(images, mask),
            in_graph=in_graph,
        )

    rows, along = (tf.function(draw)(uniforms, choice) for choice in (False, True))
    np.testing.assert_array_equal(along, rows)
    # Where the batch is not known.
    spec = tf.TensorSpec([None, *distribution.noise_shape], tf.float32)
    free = tf.function(
        lambda uniforms: distribution.draw(uniforms, in_graph=True),
        input_signature=[spec],
    )
    np.testing.assert_array_equal(free(uniforms), distribution.draw(uniforms))


@pytest.mark.parametrize(
    "name", ["gated_pixelvae", "pixelvae", "gated_pixelvae_colour"]
)
def test_scan_forces_known_pixels(name):
    """Known pixels come back, and condition the missing ones as in the naive scan."""
    model = tiny.shared(name)
    distribution = tiny.likelihood(model, 3)
    images = tiny.images_for(model, 3)
    generator = np.random.default_rng(2)
    mask = generator.integers(0, 2, (*images.shape[:3], 1)).astype(np.uint8)
    uniforms = generator.uniform(size=(3, *distribution.noise_shape))
    uniforms = tf.constant(uniforms, tf.float32)
    cached = tf.function(distribution.draw)(uniforms, known=(images, mask)).numpy()
    naive = tf.function(distribution.draw_naively)(uniforms, known=(images, mask))
    np.testing.assert_array_equal(cached, naive)
    np.testing.assert_array_equal(cached * (1 - mask), images * (1 - mask))
    free = tf.function(distribution.draw)(uniforms).numpy()
    assert np.any(free != cached)


@pytest.mark.parametrize("name", ["gated_pixelvae_noup", "pixelcnn"])
def test_xla_scan_equals_graph_scan(name):
    """On binary images a float tie needs a uniform within rounding of p: none here."""
    model = tiny.shared(name)
    compiled = model.sample(5, seed=3).numpy()
    graph = model.sample(5, seed=3, jit=False).numpy()
    np.testing.assert_array_equal(compiled, graph)


def test_no_batch_normalization_in_a_decoder():
    """Statistics over positions would show a pixel the future (T4)."""
    for name in tiny.AUTOREGRESSIVE:
        network = tiny.likelihood(tiny.shared(name), 2)._network
        layers = network._flatten_layers()
        assert not any("BatchNorm" in type(layer).__name__ for layer in layers)
