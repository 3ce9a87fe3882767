"""Peak memory of the importance-weighted bound at K = 1,000 and K = 5,000.

    python benchmarks/importance_sampling.py [--model pixelvae_mnist_static]

Each K runs in a process of its own, whose peak resident memory is read at its end;
the goal is a ratio of at most 1.1.
"""

import argparse
import time

from common import in_new_process, peak_memory, print_machine, print_table

GOAL = 1.1


def score(model, num_importance_samples, images):
    """Peak memory in MiB and seconds of the bound of a few images."""
    import numpy as np

    from vaezoo.zoo import registry

    entry = registry.describe(model)
    model = registry.load(model, weights="zoo" if entry.weights else None)
    generator = np.random.default_rng(0)
    batch = (generator.uniform(size=(images, *model.image_shape)) < 0.2).astype("uint8")
    start = time.perf_counter()
    model.log_likelihood(batch, num_importance_samples=num_importance_samples)
    return peak_memory(), time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pixelvae_mnist_static")
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--samples", type=int, nargs="+", default=[1000, 5000])
    args = parser.parse_args()
    print_machine()
    rows, peaks = [], []
    for count in args.samples:
        peak, elapsed = in_new_process(score, args.model, count, args.images)
        peaks.append(peak)
        ratio = peaks[-1] / peaks[0]
        verdict = "met" if ratio <= GOAL else "missed"
        rows.append(
            [count, f"{peak:.0f} MB", f"{elapsed:.1f} s", f"{ratio:.2f}x", verdict]
        )
    print_table(["K", "peak memory", "time", "against the first", "goal"], rows)


if __name__ == "__main__":
    main()
