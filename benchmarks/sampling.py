"""Sampling: one pass, the naive loop, and the fast scans, in a graph and in XLA.

    python benchmarks/sampling.py [--batch 1 16] [--networks masked rgb fame_cifar10]
    python benchmarks/sampling.py --trained [--batch 1 16]
    python benchmarks/sampling.py --large [pixelvae2_imagenet64 ...]

A network is `masked` (28x28x1, binary), `rgb` (32x32x3, 256-way, R > G > B) or
`pixelcnnpp` (32x32x3, 32 filters, 2 residual blocks a resolution), which the goals are
about, or a model of the zoo. The naive loop is one pass of the network
a (sub-)pixel: with `rgb` at a batch of 16 it takes minutes. In a graph, a plain stack
draws a few images along a wavefront, as exports do. Every column is measured
in the same run on the same noise, and the images of the samplers are compared before
anything is printed.

With `pixelcnnpp`, TensorFlow Probability's `PixelCNN.sample` is measured in the same
run, in a graph, for as many filters, residual blocks, resolutions and components; its
kernels are larger, so that it has more parameters. `--trained` compares only the graph
with XLA, for every model of the zoo that has weights. `--large` is of full-size models,
of which the naive loop would take hours: its time is that of one pass, times the passes
of the pixels (what it would need for latents is left out). The image is checked to be
what one pass makes of the same noise.
"""

import argparse
import functools
import math
import time
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from common import (
    in_new_process,
    masked_network,
    num_parameters,
    print_machine,
    print_table,
    seconds,
)

from vaezoo import sampling

# (network, batch): naive / XLA and naive / graph, at least; XLA / forward and the first
# call's seconds, at most
GOALS = {
    ("masked", 1): (200, 15, 2.5, math.inf),
    ("masked", 16): (300, 80, 2.5, math.inf),
    ("rgb", 1): (200, 0, math.inf, math.inf),
    ("rgb", 16): (200, 0, math.inf, math.inf),
    ("pixelcnnpp", 1): (120, 0, math.inf, 15),
    ("pixelcnnpp", 16): (120, 0, 2.5, 15),
}
LARGE_GOAL = 120  # seconds of an image, at most
PIXELCNNPP = {"filters": 32, "num_resnets": 2, "num_components": 10}


def check_equal(images, expected):
    """Equal but for float ties, where a value is one level off, and what they cause.

    A tie is rare: of a batch, one image may have it in its first hundredth.
    """
    num_early = 0
    for mine, theirs in zip(images, expected, strict=True):
        differing = np.flatnonzero(mine != theirs)
        if len(differing):
            first = differing[0]
            gap = int(mine.flat[first]) - int(theirs.flat[first])
            assert abs(gap) == 1, (first, gap)
            num_early += first <= mine.size // 100
    assert num_early <= (len(images) > 1), num_early


def noise_for(distribution, batch):
    """Uniform noise for a batch of images, the same in every run."""
    noise_shape = [batch, *distribution.noise_shape]
    return tf.random.stateless_uniform(noise_shape, seed=[0, batch])


def graph_and_xla(distribution):
    """The scan as exports run it and as `sample` does: functions of noise."""
    draw = functools.partial(distribution.draw, in_graph=True)
    graph = tf.function(draw, autograph=False)
    return graph, tf.function(distribution.draw, autograph=False, jit_compile=True)


def first_seconds(function, *args):
    """What a first call returns, a numpy array, and its wall-clock time."""
    start = time.perf_counter()
    result = function(*args).numpy()
    return result, time.perf_counter() - start


class Times(NamedTuple):
    """Wall-clock seconds for one batch."""

    forward: float
    naive: float
    graph: float
    xla: float
    first_call: float


def measure(distribution, batch):
    """The `Times` of the samplers, which draw the same images."""
    uniforms = noise_for(distribution, batch)
    shape = [batch, *distribution.event_shape]
    images = tf.random.stateless_uniform(shape, seed=[0, batch])
    images = tf.cast(images < 0.2, tf.uint8)

    forward = seconds(tf.function(distribution.log_prob), images)
    graph, compiled = graph_and_xla(distribution)
    xla_images, first_call = first_seconds(compiled, uniforms)
    naive = tf.function(distribution.draw_naively).get_concrete_function(uniforms)
    naive_images, naive_seconds = first_seconds(naive, uniforms)
    check_equal(graph(uniforms).numpy(), naive_images)
    check_equal(xla_images, naive_images)
    return Times(
        forward,
        naive_seconds,
        seconds(graph, uniforms, repeats=3),
        seconds(compiled, uniforms),
        first_call,
    )


def row_of(name, batch, times):
    """A row of the table, with a verdict where there is a goal."""
    forward, naive, graph, xla, first_call = times
    verdict = ""
    if (name, batch) in GOALS:
        xla_goal, graph_goal, forward_goal, call_goal = GOALS[name, batch]
        met = naive / xla >= xla_goal and naive / graph >= graph_goal
        met = met and xla / forward <= forward_goal and first_call <= call_goal
        verdict = "met" if met else "missed"
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
        verdict,
    ]


def compare_with_tfp(measured):
    """Print TensorFlow Probability's sampler beside the `pixelcnnpp` network's.

    Args:
        measured: dict of batch to the `Times` of that network.
    """
    import tensorflow_probability as tfp

    theirs = tfp.distributions.PixelCNN(
        image_shape=(32, 32, 3),
        num_filters=PIXELCNNPP["filters"],
        num_resnet=PIXELCNNPP["num_resnets"],
        num_logistic_mix=PIXELCNNPP["num_components"],
        dropout_p=0.0,
    )
    noise = tf.random.stateless_uniform([4, 32, 32, 3], seed=[0, 0])
    theirs.log_prob(tf.round(255.0 * noise))  # its data-dependent initialisation
    their_size = num_parameters(theirs.network.trainable_variables)
    size = num_parameters(pixelcnnpp_model().trainable_variables)
    rows = []
    for batch, times in measured.items():
        sample = tf.function(lambda batch=batch: theirs.sample(batch))
        _, their_seconds = first_seconds(sample.get_concrete_function())
        samplers = {
            "TFP, in a graph": (their_size, their_seconds),
            "naive loop": (size, times.naive),
            "scan in a graph": (size, times.graph),
            "scan, XLA": (size, times.xla),
        }
        for name, (parameters, taken) in samplers.items():
            image = f"{taken / batch:.4f}"
            ratio = f"{their_seconds / taken:.1f}x"
            rows.append([name, f"{parameters:,}", batch, image, ratio])
    print_table(["sampler", "parameters", "batch", "s an image", "TFP/this"], rows)


def compare_trained(batches):
    """Print the graph's scan against XLA's, for every model that has weights."""
    from vaezoo.zoo import registry

    rows = []
    for name in registry.list_models(trained=True):
        distribution_of = distribution_for(name)
        for batch in batches:
            distribution = distribution_of(batch)
            uniforms = noise_for(distribution, batch)
            graph, compiled = graph_and_xla(distribution)
            check_equal(graph(uniforms).numpy(), compiled(uniforms).numpy())
            times = [seconds(function, uniforms) for function in (graph, compiled)]
            cells = [f"{taken:.4f}" for taken in times]
            rows.append([name, batch, *cells, f"{times[0] / times[1]:.2f}x"])
    print_table(["model", "batch", "graph s", "XLA s", "graph/XLA"], rows)


def check_is_of_its_noise(distribution, image, uniforms):
    """Each sub-pixel is the draw given those before it, in one pass; but for ties."""
    head = distribution.parameters["head"]
    params = tf.reshape(distribution.params(image), [-1, head.num_outputs])
    values = tf.reshape(tf.cast(image, tf.float32), [-1, head.num_channels])
    noise = tf.reshape(uniforms, [-1, head.num_uniforms])
    ones, drawn = tf.ones_like(noise[:, :1]), values
    for step in range(head.steps_per_pixel):
        drawn += (
            head.draw(params, noise, values=values, step=step, temperature=ones)
            - values
        )
    different = np.mean(drawn != values)
    assert different < 1e-3, different


def measure_large(name):
    """Seconds of a model's parts, and of drawing one image; its weights are random."""
    from vaezoo.zoo import registry

    model = registry.load(name, weights=None)
    seeds = sampling.row_seeds(0, 1)
    values, context = model.generate(tf.constant(seeds), temperature=tf.ones([1]))
    distribution = model.likelihood(values, context=context, seeds=seeds)

    def sample():
        return model.sample(1, seed=seeds)

    image, first_call = first_seconds(sample)
    uniforms = sampling.row_uniforms(seeds, distribution.noise_shape, "pixels")
    check_is_of_its_noise(distribution, image, uniforms)
    one_pass = seconds(tf.function(distribution.params), image, repeats=3)
    height, width, _ = model.image_shape
    num_passes = height * width * model.head.steps_per_pixel
    return one_pass, num_passes, first_call, seconds(sample, repeats=1)


def compare_large(names):
    """Print the time of an image against the naive loop's, extrapolated."""
    rows = []
    for name in names:
        one_pass, num_passes, first_call, taken = in_new_process(measure_large, name)
        naive = one_pass * num_passes
        verdict = "met" if taken < LARGE_GOAL else "missed"
        cells = [f"{naive / 3600:.1f}", f"{first_call:.1f}", f"{taken:.2f}"]
        rows.append(
            [name, f"{one_pass:.3f}", num_passes, *cells, f"{naive / taken:.0f}x"]
            + [verdict]
        )
    header = ["model", "a pass, s", "passes", "naive h", "first call s", "sample s"]
    print_table([*header, "naive/sample", f"goal {LARGE_GOAL} s"], rows)


def pixelcnnpp_model():
    """The PixelCNN++ of the goals, untrained."""
    from vaezoo.models.pixelcnnpp import PixelCNNPP

    return PixelCNNPP(**PIXELCNNPP)


def distribution_for(name):
    """A function from a batch size to the distribution over images."""
    from vaezoo.distributions import heads, images
    from vaezoo.zoo import registry

    if name in ("masked", "rgb"):
        shape = (28, 28, 1) if name == "masked" else (32, 32, 3)
        head = heads.Bernoulli(1) if name == "masked" else heads.Categorical(3)
        network = masked_network(head.num_channels, head.num_outputs)
        return lambda batch: images.AutoregressiveImage(
            network, head, image_shape=shape, batch_size=batch
        )
    if name == "pixelcnnpp":
        model = pixelcnnpp_model()
        return lambda batch: model.likelihood({}, seeds=tf.zeros([batch], tf.int64))
    entry = registry.describe(name)
    model = registry.load(name, weights="zoo" if entry.weights else None)

    def prior_draws(batch):
        seeds = tf.range(batch, dtype=tf.int64)
        values, context = model.generate(seeds, temperature=tf.ones([batch]))
        return model.likelihood(values, context=context, seeds=seeds)

    return prior_draws


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument(
        "--networks", nargs="+", default=["masked", "rgb", "pixelvae_mnist_static"]
    )
    parser.add_argument(
        "--trained", action="store_true", help="the graph against XLA, for the zoo"
    )
    parser.add_argument(
        "--large", nargs="+", help="full-size models, the naive loop extrapolated"
    )
    args = parser.parse_args()
    if args.large:
        print_machine()
        compare_large(args.large)
        return
    if args.trained:
        print_machine()
        compare_trained(args.batch)
        return
    print_machine(("tensorflow", "tensorflow-probability"))
    measured = {
        (name, batch): measure(distribution_of(batch), batch)
        for name in args.networks
        for distribution_of in [distribution_for(name)]
        for batch in args.batch
    }
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
        [row_of(*key, times) for key, times in measured.items()],
    )
    of_pixelcnnpp = {
        batch: times
        for (name, batch), times in measured.items()
        if name == "pixelcnnpp"
    }
    if of_pixelcnnpp:
        compare_with_tfp(of_pixelcnnpp)


if __name__ == "__main__":
    main()
