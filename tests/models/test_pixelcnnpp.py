"""PixelCNN++: its size, its code vector, and what it refuses."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from vaezoo.decoders.feature_stream import FeatureStream
from vaezoo.decoders.pixelcnnpp import PixelCNNPPNetwork as Network
from vaezoo.distributions import heads
from vaezoo.distributions import images as image_distributions
from vaezoo.models.pixelcnnpp import PixelCNNPP


@pytest.mark.parametrize(
    "filters, num_resnets, num_outputs, shape, expected",
    [
        (160, 5, 100, (32, 32, 3), 53_659_080),  # the paper's: "54 M"
        (128, 5, 100, (32, 32, 3), 34_358_472),
        (64, 3, 1, (28, 28, 1), 5_445_314),
        (32, 3, 1, (28, 28, 1), 1_366_882),
    ],
)
def test_parameter_counts(filters, num_resnets, num_outputs, shape, expected):
    network = Network(filters=filters, num_resnets=num_resnets, num_outputs=num_outputs)
    network.build((None, *shape))
    assert network.count_params() == expected


@pytest.mark.parametrize("strided", [True, False])
def test_conditioning_reaches_every_pixel_of_pass_and_scan(strided):
    """What PixelVAE++ and AGAVE condition on; the scan has it before it starts."""
    head = heads.LogisticMixture(3, 4, num_components=2)
    network = Network(
        num_outputs=head.num_outputs, filters=5, num_resnets=1, strided=strided
    )
    sides = [8 // 2**level if strided else 8 for level in range(3) for _ in range(2)]

    def noise(*shape):
        return tf.random.stateless_normal([3, *shape], seed=[0, len(shape)])

    conditioning = {
        "code": noise(2),
        "maps": noise(8, 8, 2),
        "skips": [noise(side, side, 3) for side in sides],
        "injections": FeatureStream(4, network.block_counts, strided=strided)(
            noise(8, 8, 3)
        ),
    }
    assert network.num_nodes == len(sides)
    network(tf.zeros([3, 8, 8, 3]), **conditioning)
    generator = np.random.default_rng(0)
    for variable in network.weights:
        variable.assign(variable + 0.3 * generator.normal(size=variable.shape))

    def distribution(changed=(), **call_options):
        return image_distributions.AutoregressiveImage(
            network,
            head,
            image_shape=(8, 8, 3),
            batch_size=3,
            conditioning={
                name: tf.nest.map_structure(tf.negative, value)
                if name in changed
                else value
                for name, value in conditioning.items()
            },
            call_options=call_options,
        )

    uniforms = generator.uniform(size=(3, *distribution().noise_shape))
    uniforms = tf.constant(uniforms, tf.float32)
    drawn = tf.function(distribution().draw)(uniforms)
    naive = tf.function(distribution().draw_naively)(uniforms)
    np.testing.assert_array_equal(drawn, naive)
    in_graph = tf.function(lambda x: distribution().draw(x, in_graph=True))
    np.testing.assert_array_equal(in_graph(uniforms), naive)

    params = distribution().params(drawn)
    values = head.normalize(tf.cast(drawn, tf.float32))
    up = {name: conditioning[name] for name in ("maps", "code", "injections")}
    nodes = network.up(values, **up)
    np.testing.assert_array_equal(distribution(nodes=nodes).params(drawn), params)
    for name in conditioning:
        change = np.abs(distribution([name]).params(drawn) - params).max((0, 3))
        if name == "maps":  # concatenated to the image: the first pixel sees none
            change[0, 0] = 1
        assert np.all(change > 0), name
    network.forget_conditioning()
    same = distribution().params(drawn), distribution(conditioning).params(drawn)
    np.testing.assert_array_equal(*same)
    np.testing.assert_array_equal(same[0], network(values))


def test_alone_it_takes_any_size_that_the_strides_divide():
    model = PixelCNNPP(image_shape=(8, 8, 3), filters=4, num_resnets=1, dropout=0.0)
    model.mode = "decoder"
    model.compile("adam")
    images = np.random.default_rng(0).integers(0, 256, (4, 12, 4, 3)).astype(np.uint8)
    assert np.isfinite(model.evaluate(images, verbose=0, return_dict=True)["loss"])
    with pytest.raises(ValueError, match=r"divisible by 4. Received: .*10.*8"):
        model.evaluate(images[:, :10].repeat(2, axis=2), verbose=0)


def test_bad_arguments():
    with pytest.raises(ValueError, match="divisible by 4. Received: 30x32"):
        PixelCNNPP(image_shape=(30, 32, 3), filters=4, num_resnets=1)
    with pytest.raises(ValueError, match="binary images has one channel"):
        PixelCNNPP(image_shape=(8, 8, 3), levels=2)
    with pytest.raises(ValueError, match="`dropout` must be"):
        PixelCNNPP(image_shape=(8, 8, 3), dropout=1.0)
    for name in ("filters", "num_resnets", "num_components"):
        with pytest.raises(ValueError, match=f"`{name}` must be a positive integer"):
            PixelCNNPP(image_shape=(8, 8, 3), **{name: 0})
    model = PixelCNNPP(image_shape=(8, 8, 1), levels=9, filters=4, num_resnets=1)
    with pytest.raises(ValueError, match=r"values in 0\.\.8"):
        model.log_likelihood(np.full((1, 8, 8, 1), 9, np.uint8))


def test_a_saved_model_is_loaded_again(tmp_path):
    model = PixelCNNPP(image_shape=(8, 8, 3), filters=4, num_resnets=1)
    images = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3)).astype(np.uint8)
    model.initialize(images)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(
        loaded.log_likelihood(images), model.log_likelihood(images)
    )
