"""Drawing codes from VLAE's autoregressive prior, against the decoder's scan.

    python benchmarks/flow_sampling.py [--model vlae_cifar10] [--batch 64]

The flow is sequential: 4 steps of 64 dimensions, or CIFAR-10's 6 steps of 1,024. `one
pass a dimension` is TFP's way, the whole network for each dimension; ours computes each
unit once, of maps but for a place's own taps. Both give the same codes from the same
noise, which is checked before anything is printed.
"""

import argparse

import numpy as np
import tensorflow as tf
from common import print_machine, print_table, seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--model", default="vlae_mnist_static")
    args = parser.parse_args()

    from vaezoo.distributions.flows import AutoregressiveStep
    from vaezoo.zoo import registry

    entry = registry.describe(args.model)
    model = registry.load(args.model, weights="zoo" if entry.weights else None)
    shape = model.latent_shapes["z"]
    noise = tf.random.stateless_normal([args.batch, *shape], seed=[0, 0])

    def flow(noise):
        return model.prior(args.batch).bijector.forward(noise)

    def one_pass_a_dimension(noise):
        z = noise
        for step in reversed(model.prior(args.batch).bijector.bijectors):
            if not isinstance(step, AutoregressiveStep):
                z = step.forward(z)
                continue
            base, z = z, tf.zeros_like(z)
            for _ in tf.range(noise.shape[1:].num_elements()):
                z += base - step.inverse(z)  # the steps are mean-only
        return z

    ours, naive = tf.function(flow), tf.function(one_pass_a_dimension)
    codes = ours(noise)
    np.testing.assert_allclose(codes, naive(noise), rtol=1e-3, atol=1e-3)

    distribution = model.likelihood({"z": codes})
    uniforms = tf.random.stateless_uniform(
        [args.batch, *distribution.noise_shape], seed=[0, 1]
    )
    scan = tf.function(distribution.draw, jit_compile=True)
    reference = "decoder's scan, XLA"
    times = {
        "flow, one pass a dimension": seconds(naive, noise, repeats=3),
        "flow": seconds(ours, noise),
        "decoder's scan in the graph": seconds(
            tf.function(distribution.draw), uniforms, repeats=3
        ),
        reference: seconds(scan, uniforms),
    }
    print_machine()
    rows = [
        [name, f"{value:.4f}", f"{value / times[reference]:.2f}x"]
        for name, value in times.items()
    ]
    print_table([f"batch of {args.batch}", "seconds", f"against {reference}"], rows)


if __name__ == "__main__":
    main()
