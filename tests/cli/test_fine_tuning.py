"""A shipped model, fine-tuned on a folder of the user's pictures, from end to end."""

import json

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import vaezoo
from vaezoo import cli
from vaezoo.zoo import registry, weights


def run(*arguments, exit_code=0):
    result = CliRunner().invoke(cli.main, [str(argument) for argument in arguments])
    assert result.exit_code == exit_code, result.output
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


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("pixelcnnpp_cifar10_small", "30x30x3", "divisible by 4. Received: 30x30. Pad"),
        (
            None,
            "8x8x2",
            "must be None, 1 or 3. Received: channels=2. Files are",
        ),
        (None, "8x8x1", "holds none for the split 'train'. Put images there"),
    ],
)
def test_what_cannot_be_trained_on(name, shape, message, run_folder, tmp_path):
    """A size that the model cannot take, a kind of image, and an empty folder."""
    (tmp_path / "pictures").mkdir()
    options = ("--dataset", f"image_folder:{tmp_path / 'pictures'}")
    options += ("--image-shape", shape, "--out", tmp_path / "run")
    result = run("train", name or run_folder, *options, exit_code=1)
    assert message in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


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
