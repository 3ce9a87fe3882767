"""The RBM prior's costs: its negative phase in training, annealing, sampling.

    python benchmarks/rbm.py [--step]

`--step` times a training step of PixelCNN++ with the filters of the binary sets (64, 3
resnets, batch 128) as well, which the negative phase is set against; it takes minutes.
Weights are normal, of standard deviation 0.1: the cost does not depend on them.
"""

import argparse

import numpy as np
import tensorflow as tf
from common import print_machine, print_table, seconds

from vaezoo import sampling
from vaezoo.distributions import annealing
from vaezoo.distributions.rbm import RBM

SIZES = {"binary sets": (200, 200, 5_000), "CIFAR-10": (640, 1_152, 500)}
NUM_SWEEPS = 50


def rbm_of(num_left, num_right):
    weights = 0.1 * tf.random.stateless_normal([num_left, num_right], seed=[0, 0])
    return RBM(weights, tf.zeros(num_left), tf.zeros(num_right))


def negative_phase(rbm, num_chains):
    """Seconds of the sweeps of a step, and what they consist of."""
    size = rbm.num_left + rbm.num_right
    chains = rbm.first_chains(tf.constant(sampling.row_seeds(0, num_chains)))
    uniforms = tf.random.stateless_uniform([num_chains, size], seed=[0, 0])

    def repeated(function, value):
        """`function(index, value)` as often as there are sweeps."""

        def again(index, value):
            return index + 1, function(index, value)

        def run():
            return tf.while_loop(lambda i, _: i < NUM_SWEEPS, again, (0, value))[1]

        return seconds(tf.function(run, autograph=False), repeats=3)

    update = tf.function(
        lambda seed: rbm.update_chains(chains, seed, num_sweeps=NUM_SWEEPS)
    )
    return {
        "all": seconds(update, tf.constant(1, tf.int64), repeats=3),
        "matrix products": repeated(
            lambda _, left: rbm.left_logits(rbm.right_logits(left)), 0.0 * chains
        ),
        "uniforms": repeated(
            lambda index, _: tf.random.stateless_uniform(uniforms.shape, [0, index]),
            uniforms,
        ),
        "the rest": repeated(
            lambda _, value: tf.cast(uniforms < tf.sigmoid(value), tf.float32), uniforms
        ),
    }


def training_step():
    """Seconds of a step of the decoder of the binary sets, batch 128."""
    from vaezoo.models.pixelcnnpp import PixelCNNPP

    model = PixelCNNPP(image_shape=(28, 28, 1), levels=2, filters=64, num_resnets=3)
    model.compile(optimizer="adam")
    images = np.random.default_rng(0).integers(0, 2, (128, 28, 28, 1)).astype(np.uint8)
    data = tf.data.Dataset.from_tensors(images).repeat(4)
    model.fit(data.take(1), verbose=0)
    iterator = iter(data.repeat())
    function = model.make_train_function() or model.train_function
    return seconds(lambda: function(iterator)["loss"], repeats=3)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--step", action="store_true")
    args = parser.parse_args()
    print_machine()

    rows = []
    for name, (num_left, num_right, num_chains) in SIZES.items():
        times = negative_phase(rbm_of(num_left, num_right), num_chains)
        label = f"{name}: {num_left} + {num_right}, {num_chains:,} chains"
        rows.append([label, *(f"{value:.3f}" for value in times.values())])
    print_table([f"{NUM_SWEEPS} sweeps, seconds", *times], rows)

    rows = []
    for num_left, num_right, _ in SIZES.values():
        rbm = rbm_of(num_left, num_right)
        keys = tf.constant(sampling.row_seeds(0, 16))
        draw = tf.function(lambda keys, rbm=rbm: rbm.gibbs(keys, num_updates=2_000))

        def anneal(rbm=rbm):
            return annealing.forward_log_z(rbm, num_temperatures=100).value

        rows.append(
            [
                f"{num_left} + {num_right}",
                f"{seconds(draw, keys, repeats=2):.2f}",
                f"{10 * seconds(anneal, repeats=1):.1f}",
            ]
        )
    header = ["seconds", "2,000 updates of 16 rows", "annealing, 1,000 x 1,000"]
    print_table(header, rows)

    if args.step:
        print(f"training step of the decoder, batch 128: {training_step():.2f} s")


if __name__ == "__main__":
    main()
