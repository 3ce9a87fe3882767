"""Sampling: one forward pass, the naive loop, the row cache, and the row cache in XLA.

    python benchmarks/sampling.py [--batch 1 16] [--model pixelvae_mnist_static]

Every column is measured in the same run on the same noise, and the images of the
samplers are compared before anything is printed.
"""

import argparse
import time

import numpy as np
import tensorflow as tf
from common import masked_network, print_machine, print_table, seconds

GOALS = {1: (200, 15), 16: (300, 80)}  # naive / XLA and naive / graph, at least
FORWARD_GOAL = 2.5  # XLA / forward pass, at most


def measure(name, distribution_of, batch):
    distribution = distribution_of(batch)
    noise_shape = [batch, *distribution.noise_shape]
    uniforms = tf.random.stateless_uniform(noise_shape, seed=[0, batch])
    images = tf.cast(uniforms < 0.2, tf.uint8)

    forward = seconds(tf.function(distribution.log_prob), images)
    compiled = tf.function(distribution.draw, jit_compile=True)
    start = time.perf_counter()
    xla_images = compiled(uniforms).numpy()
    first_call = time.perf_counter() - start
    graph = tf.function(distribution.draw)
    naive = tf.function(distribution.draw_naively)
    naive_images = naive(uniforms).numpy()  # also warms up
    np.testing.assert_array_equal(graph(uniforms), naive_images)
    ties = np.mean(xla_images != naive_images)
    assert ties < 1e-3, f"{ties:.1%} of the values differ under XLA"

    xla = seconds(compiled, uniforms)
    graph = seconds(graph, uniforms, repeats=3)
    naive = seconds(naive, uniforms, repeats=1, warm_up=False)
    xla_goal, graph_goal = GOALS.get(batch, (0, 0))
    met = (
        naive / xla >= xla_goal
        and naive / graph >= graph_goal
        and xla / forward <= FORWARD_GOAL
    )
    return [
        name,
        batch,
        f"{forward:.4f}",
        f"{naive:.2f}",
        f"{graph:.3f}",
        f"{xla:.4f}",
        f"{first_call:.1f}",
        f"{naive / graph:.0f}x",
        f"{naive / xla:.0f}x",
        f"{xla / forward:.2f}x",
        ("met" if met else "missed") if name == "masked" and xla_goal else "",
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--model", default="pixelvae_mnist_static")
    args = parser.parse_args()

    from vaezoo import zoo
    from vaezoo.distributions import images

    network = masked_network()
    head = images.Bernoulli(1)
    entry = zoo.describe(args.model)
    model = zoo.load(args.model, weights="zoo" if entry.weights else None)

    def masked(batch):
        return images.AutoregressiveImage(
            network, head, image_shape=(28, 28, 1), batch_size=batch
        )

    def shipped(batch):
        seeds = tf.range(batch, dtype=tf.int64)
        values, context = model.generate(seeds, temperature=tf.ones([batch]))
        return model.likelihood(values, context=context, seeds=seeds)

    print_machine()
    rows = []
    for name, distribution_of in (("masked", masked), (args.model, shipped)):
        for batch in args.batch:
            rows.append(measure(name, distribution_of, batch))
    print_table(
        [
            "network",
            "batch",
            "forward s",
            "naive s",
            "graph s",
            "XLA s",
            "first call s",
            "naive/graph",
            "naive/XLA",
            "XLA/forward",
            "goal",
        ],
        rows,
    )


if __name__ == "__main__":
    main()
