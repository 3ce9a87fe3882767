"""What the benchmarks share: timing, processes, tables, and the goals' network.

It imports TensorFlow where it is used, so that a process without it can be measured.
"""

import concurrent.futures
import importlib.metadata
import multiprocessing
import os
import platform
import resource
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np


def seconds(function, *args, repeats=5):
    """Smallest wall-clock time of `function(*args)`, a tensor, after a first call."""
    np.asarray(function(*args))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        np.asarray(function(*args))
        times.append(time.perf_counter() - start)
    return min(times)


def in_new_process(function, *args):
    """`function(*args)`, computed in a process of its own.

    Args:
        function: at the top level of the script, which that process imports.
        *args: what can be pickled.
    """
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(function, *args).result()


def alternate(*jobs, rounds):
    """Run jobs in turn, `rounds` times, each time in a process of its own.

    Args:
        *jobs: tuples of the arguments of `in_new_process`.
        rounds: int.

    Returns:
        For each job, the tuple of the rounds' results.
    """
    by_round = [[in_new_process(*job) for job in jobs] for _ in range(rounds)]
    return list(zip(*by_round, strict=True))


def peak_memory():
    """Largest resident memory of this process so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def num_parameters(variables):
    """How many numbers trainable variables hold."""
    return sum(int(np.prod(variable.shape)) for variable in variables)


def print_machine(packages=("tensorflow",)):
    """The line that every table needs above it."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    print(
        f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, "
        f"{', '.join(versions)}, load {os.getloadavg()[0]:.2f}\n"
    )


def print_table(header, rows):
    """Print a Markdown table."""
    cells = [list(map(str, row)) for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    cells.insert(1, ["-" * width for width in widths])
    for row in cells:
        padded = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("| " + " | ".join(padded) + " |")
    print(flush=True)


def masked_network(num_colours=1, num_outputs=1):
    """The masked PixelCNN of the goals: 8 masked 3x3 layers of 64 filters."""
    import tensorflow as tf

    from vaezoo.decoders.pixelcnn import PixelCNN

    network = PixelCNN(
        num_colours=num_colours,
        num_outputs=num_outputs,
        filters=64,
        num_layers=8,
        kernel_size=3,
        first_kernel_size=3,
        head_filters=(),
    )
    network(tf.zeros([1, 28, 28, num_colours]))
    return network


def masked_model():
    """The masked PixelCNN of the goals as a model without latents, to be trained."""
    import tensorflow as tf

    from vaezoo.distributions import heads
    from vaezoo.distributions import images as image_distributions
    from vaezoo.models.vae import VAE

    class Masked(VAE):
        def __init__(self):
            super().__init__(image_shape=(28, 28, 1), levels=2)
            self.network = masked_network()
            self.finish_build()

        def features(self, images, *, training=False):
            return {}

        def infer(self, features, *, seeds, training=False):
            return {}, None

        def likelihood(self, values, *, context=None, seeds=None, training=False):
            return image_distributions.AutoregressiveImage(
                self.network,
                heads.Bernoulli(1),
                image_shape=self.image_shape,
                batch_size=tf.shape(seeds)[0],
            )

    return Masked()
