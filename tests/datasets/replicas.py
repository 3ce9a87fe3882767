"""What the replicas of several workers read of a training stream."""

import numpy as np
import pytest
import tensorflow as tf

from vaezoo import datasets


def check_replicas(name, batches, *, batch_size, seed):
    """Assert that four replicas, of two workers, read a batch's rows in their order.

    Args:
        name: of the dataset.
        batches: what one replica reads, a list of arrays.
        batch_size, seed: of the stream.
    """
    strategy = tf.distribute.MirroredStrategy(
        ["CPU:0"], cross_device_ops=tf.distribute.ReductionToOneDevice()
    )
    context = tf.distribute.InputContext

    def parts(worker, num_workers, replicas):
        """What the replicas of one worker read, step by step."""
        made = []
        with pytest.MonkeyPatch.context() as patch, strategy.scope():
            patch.setattr(type(strategy), "num_replicas_in_sync", replicas)
            patch.setattr(
                type(strategy),
                "distribute_datasets_from_function",
                lambda self, make: made.append(
                    make(context(num_workers, worker, replicas))
                ),
            )
            datasets.training_stream(
                name, batch_size=batch_size, seed=seed, position=lambda: 0
            )
        num_parts = len(batches) * replicas // num_workers
        return [part.numpy() for part in made[0].take(num_parts)]

    four = [parts(worker, 2, 4) for worker in range(2)]
    for step, batch in enumerate(batches):
        rows = [part for worker in four for part in worker[2 * step : 2 * step + 2]]
        np.testing.assert_array_equal(np.concatenate(rows), batch)
        sizes = [len(part) for part in rows]
        assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)
