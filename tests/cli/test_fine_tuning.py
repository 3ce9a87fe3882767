"""A shipped model, fine-tuned on a folder of the user's pictures, from end to end."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import vaezoo
from vaezoo import cli
from vaezoo.zoo import registry, weights


def run(*arguments):
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result


def write_pictures(folder, num):
    """Slopes in colours, of many sizes and kinds: RGB, grey, and both with alpha."""
    folder.mkdir(parents=True)
    generator = np.random.default_rng(num)
    for index in range(num):
        height, width = generator.integers(33, 60, 2)
        slope = np.linspace(0, 200, width)[None, :, None] * [1, 0.6, 0.2]
        levels = slope + generator.normal(30, 4, (height, width, 3))
        picture = Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))
        picture = picture.convert(("RGB", "L", "RGBA", "LA")[index % 4])
        picture.save(folder / f"{index}.png")


@pytest.mark.slow
def test_a_shipped_model_on_a_folder_of_pictures(tmp_path):
    folder, out = tmp_path / "pictures", tmp_path / "run"
    write_pictures(folder / "train", 16)
    write_pictures(folder / "val", 8)
    dataset = f"image_folder:{folder}"

    def bound(name, *options):
        result = run("evaluate", name, "--json", "--batch-size", 8, *options)
        return json.loads(result.stdout)

    of_shipped = ("--dataset", dataset, "--split", "validation")
    before = bound("fame_cifar10", *of_shipped)["results"]["elbo"]["value"]
    options = ("--dataset", dataset, "--max-steps", 6)
    options += ("--set", "training.batch_size=8")
    result = run("train", "fame_cifar10", "--init", "zoo", "--out", out, *options)
    assert "anew" not in result.stderr  # every weight fits
    measured = bound(out)
    assert measured["dataset"] == dataset and measured["split"] == "validation"
    after = measured["results"]["elbo"]["value"]
    assert after > before + 50  # of some 6,000 nats
    entry = vaezoo.describe(out)
    shipped = registry.find_weights("fame_cifar10")
    assert entry.history[-1].init.sha256 == weights.sha256(shipped)
    assert entry.training.learning_rate == entry.fine_tune.learning_rate
    images = vaezoo.load(out).sample(2, seed=0, jit=False).numpy()
    assert images.shape == (2, 32, 32, 3) and images.dtype == np.uint8
