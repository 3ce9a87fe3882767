"""The RBM prior's costs: its negative phase in training, annealing, sampling.

    python benchmarks/rbm.py [--step]

`--step` times a training step of the model of the binary sets (64 filters, 3 resnets,
batch 128) as well, with the negative phase and without; it takes minutes.
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


def training_step(num_chains):
    """Seconds of a step of the binary sets' model, batch 128; without chains at 0."""
    from vaezoo.models.pixelvaepp import PixelVAEPP

    class WithoutNegativePhase(PixelVAEPP):
        def begin_training(self):
            pass

        def after_step(self, seed):
            pass

    sizes = {"z1_size": 400, "z2_size": 0, "z3_size": 0, "num_sweeps": NUM_SWEEPS}
    model = (PixelVAEPP if num_chains else WithoutNegativePhase)(
        image_shape=(28, 28, 1),
        levels=2,
        filters=64,
        num_resnets=3,
        num_chains=max(num_chains, 1),
        **sizes,
    )
    model.compile(optimizer="adam")
    images = np.random.default_rng(0).integers(0, 2, (128, 28, 28, 1)).astype(np.uint8)
    data = tf.data.Dataset.from_tensors(images).repeat()
    model.fit(data.take(1), verbose=0)
    iterator = iter(data)
    function = model.make_train_function() or model.train_function
    return seconds(lambda: function(iterator)["loss"], repeats=5)


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
        *_, num_chains = SIZES["binary sets"]
        without, whole = training_step(0), training_step(num_chains)
        header = ["training step, batch 128", "seconds", "ratio"]
        rows = [
            ["without the negative phase", f"{without:.2f}", "1"],
            [f"with {num_chains:,} chains", f"{whole:.2f}", f"{whole / without:.2f}"],
        ]
        print_table(header, rows)


if __name__ == "__main__":
    main()
