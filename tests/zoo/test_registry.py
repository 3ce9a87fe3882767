import inspect
import math
import re
import shutil

import numpy as np
import pytest
import yaml

import vaezoo
from vaezoo import models
from vaezoo.models.pixelvae import PixelVAE
from vaezoo.zoo import cards, entries, registry, weights
from vaezoo.zoo.install import install

DIGITS = registry.CONFIG_FOLDER / "pixelvae_digits.yaml"
MEASUREMENT = {
    "metric": "log_likelihood",
    "value": -12.5,
    "num_importance_samples": 50,
    "standard_error": 0.1,
    "split": "test",
    "images": 360,
    "seed": 0,
    "command": "vaezoo evaluate pixelvae_digits --num-importance-samples 50",
    "commit": "1234567",
    "date": "2026-11-21",
    "hardware": "2 CPU cores",
}


@pytest.fixture
def configs(tmp_path, monkeypatch):
    """A zoo of copies of the entries, untrained and tiny that of the digits."""
    folder = tmp_path / "zoo_configs"
    shutil.copytree(registry.CONFIG_FOLDER, folder)
    monkeypatch.setattr(registry, "CONFIG_FOLDER", folder)
    monkeypatch.setattr(weights, "PRETRAINED_FOLDER", tmp_path / "pretrained")
    tiny = {"latent_size": 2, "filters": 4, "num_layers": 1}
    arguments = entries.entry_from_file(DIGITS).model.arguments | tiny
    model = {"class": "PixelVAE", "arguments": arguments}
    entry_with(folder / DIGITS.name, model=model)
    return folder


def entry_with(path, **changes):
    """Write an untrained copy of the digits entry with changed keys."""
    content = yaml.safe_load((registry.CONFIG_FOLDER / DIGITS.name).read_text())
    content |= {"name": path.stem, "weights": None, "measured": []}
    content |= {"status": "untrained"} | changes
    content = {key: value for key, value in content.items() if value is not ...}
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


# Entries.


@pytest.mark.parametrize("name", registry.list_models())
def test_every_entry_is_sound(name):
    entry = registry.describe(name)
    endings = (f"_{entry.dataset}", f"_{entry.dataset}_small")
    assert name.endswith(endings)
    signature = inspect.signature(models.get_class(entry.model.class_name))
    assert set(entry.model.arguments) <= set(signature.parameters)
    if entry.weights and entry.weights.file:
        assert weights.fetch(entry.weights).is_file()


def test_list_models_is_in_natural_order(configs):
    for name in ("net10_digits", "net9_digits", "net_digits"):
        entry_with(configs / f"{name}.yaml")
    names = registry.list_models("net*_digits")
    assert names == ["net9_digits", "net10_digits", "net_digits"]


def test_list_models_filters(configs):
    assert registry.list_models(dataset="digits") == ["pixelvae_digits"]
    assert registry.list_models("*_digits", model="PixelVAE") == ["pixelvae_digits"]
    assert registry.list_models(model="Nothing") == []
    trained, untrained = (
        registry.list_models(trained=value) for value in (True, False)
    )
    assert sorted(trained + untrained) == sorted(registry.list_models())
    assert "pixelvae_digits" in untrained


def test_an_unknown_name_suggests_near_ones():
    with pytest.raises(ValueError) as error:
        registry.describe("pixelvae_mnist_statc")
    assert "Did you mean 'pixelvae_mnist_static'" in str(error.value)
    assert "vaezoo list" in str(error.value)
    with pytest.raises(ValueError, match="'xyz'. `vaezoo list`"):
        registry.describe("xyz")


def test_a_folder_without_an_entry(tmp_path):
    with pytest.raises(ValueError, match="must hold entry.yaml"):
        registry.describe(tmp_path)
    with pytest.raises(ValueError, match="must hold entry.yaml"):
        registry.load(str(tmp_path / "none"))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"surprise": 1}, r"surprise: Extra inputs .* Received: 1"),
        ({"training": ...}, "training: Field required"),
        ({"training": {"optimizer": "sgd"}}, r"training.optimizer: .*'sgd'"),
        ({"fine_tune": {"batch_size": 0}}, r"fine_tune.batch_size: .*greater than 0"),
        ({"notes": "one"}, "notes: Input should be a valid list"),
        ({"name": "Upper"}, "name: "),
        ({"name": "other"}, "named after its file. Received: name='other'"),
        ({"status": "partial"}, "`status` must be 'untrained'"),
        ({"measured": [MEASUREMENT]}, "`measured` must be empty"),
        (
            {
                "weights": {"bytes": 1, "sha256": "0" * 64},
                "status": "partial",
            },
            "weights: .*`file` or `urls`",
        ),
        (
            {
                "weights": {"file": "../w.h5", "bytes": 1, "sha256": "0" * 64},
                "status": "partial",
            },
            r"weights.file: .*'../w.h5'",
        ),
    ],
)
def test_a_malformed_entry_names_file_and_key(tmp_path, changes, message):
    path = entry_with(tmp_path / "net_digits.yaml", **changes)
    with pytest.raises(ValueError, match=message) as error:
        entries.entry_from_file(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
    "text, message",
    [
        ("name: a\nmodel: [1, 2\nstatus: b\n", "line 3"),
        ("name: a\nname: b\n", "line 2: the key 'name' is given twice"),
        ("model:\n  class: A\n  class: B\n", "line 3: the key 'class'"),
        ("- name: a\n", "a list"),
        ("", "a NoneType"),
        ("name: !!python/object:os.system a\n", "line 1"),
        ("? [a]\n: b\n", "line 1"),
    ],
)
def test_malformed_yaml_names_file_and_line(tmp_path, text, message):
    path = tmp_path / "net.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        entries.entry_from_file(path)
    assert str(path) in str(error.value)


def test_a_fine_tune_recipe_has_no_warm_up(tmp_path):
    entry = entries.entry_from_file(DIGITS)
    recipe = entry.fine_tune.model_dump() | {"kl_warmup_steps": 5}
    path = entry_with(tmp_path / "net_digits.yaml", fine_tune=recipe)
    with pytest.raises(ValueError, match="kl_warmup_steps"):
        entries.entry_from_file(path)


def test_an_entry_written_reads_back(tmp_path):
    for name in registry.list_models():
        entry = registry.describe(name)
        path = tmp_path / f"{name}.yaml"
        entries.write_entry(entry, path)
        assert entries.entry_from_file(path).model_dump() == entry.model_dump()


def test_a_malformed_entry_is_not_written(tmp_path):
    entry = entries.entry_from_file(DIGITS).model_copy(update={"status": "great"})
    with pytest.raises(ValueError, match="status"):
        entries.write_entry(entry, tmp_path / DIGITS.name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", registry.list_models())
def test_every_entry_builds_and_its_weights_come_back(name, tmp_path):
    model = vaezoo.load(name, weights=None)
    path = weights.write_weights(model, tmp_path / "w.h5")
    assert_same_weights(vaezoo.load(name, weights=path), model)


SHIPPED = [name for name in registry.list_models() if registry.describe(name).weights]


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_bounds_in_bfloat16_are_those_of_float32(name):
    """Trained weights, on their own samples: the mean differs by at most 1 %."""
    import keras

    model = vaezoo.load(name)
    images = model.sample(32 if model.levels == 2 else 4, seed=0)  # bfloat16 is slow
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        low = vaezoo.load(name)
    finally:
        keras.config.set_dtype_policy("float32")
    assert low.compute_dtype == "bfloat16"
    options = {"num_importance_samples": 4, "seed": 0}
    expected = model.log_likelihood(images, **options).numpy()
    received = low.log_likelihood(images, **options).numpy()
    assert np.mean(received) == pytest.approx(np.mean(expected), rel=0.01)
    np.testing.assert_allclose(received, expected, rtol=0.05)


# Models.


def test_load_builds_and_compiles_by_the_recipe(configs):
    model = vaezoo.load("pixelvae_digits", weights=None)
    entry = registry.describe("pixelvae_digits")
    assert model.built and model.compiled
    assert model.zoo_entry == entry
    assert model.image_shape == (8, 8, 1)
    assert not model.data_initialized
    options = model.get_compile_config()
    assert options["kl_warmup_steps"] == entry.training.kl_warmup_steps


def test_load_without_trained_weights_says_how_to_get_them(configs):
    with pytest.raises(ValueError, match="vaezoo train pixelvae_digits.*weights=None"):
        vaezoo.load("pixelvae_digits")


def initialized_model():
    model = vaezoo.load("pixelvae_digits", weights=None)
    model.initialize(np.random.randint(2, size=[8, 8, 8, 1]).astype("uint8"))
    return model


def assert_same_weights(model, other, *, tolerance=0.0):
    for ours, theirs in zip(model.weights, other.weights, strict=True):
        np.testing.assert_allclose(
            ours.numpy(), theirs.numpy(), rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize("file", ["w.h5", "w.weights.h5", "w.keras"])
def test_load_takes_a_file_of_weights(configs, tmp_path, file):
    model = initialized_model()
    if file == "w.h5":
        weights.write_weights(model, tmp_path / file)
    else:
        (model.save if file == "w.keras" else model.save_weights)(tmp_path / file)
    loaded = vaezoo.load("pixelvae_digits", weights=tmp_path / file)
    assert_same_weights(loaded, model)
    assert loaded.data_initialized
    assert loaded.get_compile_config()["kl_warmup_steps"] == 0
    with pytest.raises(FileNotFoundError):
        vaezoo.load("pixelvae_digits", weights=str(tmp_path / "none.h5"))


def test_load_takes_a_run_folder(configs, tmp_path):
    model = initialized_model()
    run = tmp_path / "run"
    run.mkdir()
    path = weights.write_weights(model, run / "weights.h5")
    info = {
        "file": "weights.h5",
        "bytes": path.stat().st_size,
        "sha256": weights.sha256(path),
    }
    entry_with(run / "entry.yaml", name="my_run", weights=info, status="partial")
    for folder in (run, str(run)):
        assert vaezoo.describe(folder).name == "my_run"
        assert_same_weights(vaezoo.load(folder), model)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="bytes where"):
        vaezoo.load(run)


def test_load_keeps_the_weights_that_fit_another_image_shape(configs, tmp_path):
    model = initialized_model()
    path = weights.write_weights(model, tmp_path / "w.h5")
    with pytest.warns(UserWarning, match="initialised anew") as caught:
        other = vaezoo.load("pixelvae_digits", weights=path, image_shape=(16, 16, 1))
    assert other.image_shape == (16, 16, 1)
    message = str(caught[0].message)
    assert message.startswith("1 of ")
    for variable, old in zip(other.weights, model.weights, strict=True):
        if variable.shape == old.shape:
            np.testing.assert_array_equal(variable.numpy(), old.numpy())
        else:
            assert variable.path.split("/", 1)[1] in message


@pytest.mark.parametrize("image_shape", [(8, 8), (0, 8, 1), "8x8"])
def test_a_bad_image_shape(image_shape):
    with pytest.raises(ValueError, match="image_shape"):
        vaezoo.load("pixelvae_digits", weights=None, image_shape=image_shape)


def test_an_entry_whose_model_cannot_be_built_is_named(configs):
    entry = registry.describe("pixelvae_digits")
    arguments = entry.model.arguments | {"num_layers": 99}
    model = {"class": "PixelVAE", "arguments": arguments}
    path = entry_with(configs / "net_digits.yaml", model=model)
    with pytest.raises(ValueError, match="num_layers=99") as error:
        vaezoo.load("net_digits", weights=None)
    assert str(path) in error.value.__notes__[0]


HISTORY = [
    {
        "command": "vaezoo train pixelvae_digits --out runs/digits",
        "commit": "1234567",
        "date": "2026-11-25",
        "hardware": "2 CPU cores",
        "init": None,
        "phases": [
            {
                "name": "joint",
                "mode": "joint",
                "steps": 58,
                "epochs": 2.0,
                "images": 2874,
                "crop_size": None,
                "seconds": 90.0,
                "validation": [{"steps": n, "elbo": -30.0 + n} for n in (1, 9, 3)],
            }
        ],
    }
]


@pytest.fixture
def run_of(configs, tmp_path):
    """A function from a model to the folder of a run that has ended with it."""

    def write(model, *, recipe=None, **changes):
        out = tmp_path / "run"
        out.mkdir(exist_ok=True)
        path = weights.write_weights(model, out / "weights.h5")
        info = entries.WeightsInfo(
            file=path.name, bytes=path.stat().st_size, sha256=weights.sha256(path)
        )
        entry = registry.describe("pixelvae_digits")
        training = entry.training.model_copy(update=recipe or {})
        update = {
            "weights": info.model_dump(),
            "status": "partial",
            "training": training.model_dump(),
        }
        update |= {"measured": [], "history": HISTORY} | changes
        content = entry.model_dump() | update
        entries.write_entry(
            entries.ZooEntry.model_validate(content), out / entries.ENTRY_FILE
        )
        return out

    return write


def test_installed_weights_load_and_the_old_ones_go(configs, run_of):
    model = initialized_model()
    path = configs / DIGITS.name
    text = path.read_text()
    text = text.replace("dataset:", "# A comment.\ndataset:  # another\n ")
    path.write_text(text.replace("weights: null", "weights: null  # none yet"))

    first = install(run_of(model, recipe={"learning_rate": 0.125}))
    assert re.fullmatch(r"pixelvae_digits-[0-9a-f]{8}\.h5", first.name)
    entry = registry.describe("pixelvae_digits")
    assert entry.weights.file == first.name and entry.status == "partial"
    assert entry.training.learning_rate == 0.125
    assert entry.model_dump(mode="json")["history"] == HISTORY
    assert registry.list_models(trained=True, dataset="digits") == ["pixelvae_digits"]
    for comment in ("# A comment.\ndataset:  # another", "# none yet"):
        assert comment in path.read_text()
    assert_same_weights(vaezoo.load("pixelvae_digits"), model, tolerance=1e-3)
    content = first.read_bytes()
    assert install(run_of(model)).read_bytes() == content  # byte for byte

    entries.append_measured(path, MEASUREMENT)
    variable = model.trainable_variables[0]
    variable.assign(variable + 1.0)
    install(run_of(model), status="begun")
    install(run_of(model))
    assert registry.describe("pixelvae_digits").status == "begun"  # until it is said
    second = install(run_of(model), status="reproduced")
    assert list(first.parent.iterdir()) == [second]
    assert registry.describe("pixelvae_digits").measured == []

    variable.assign(variable + 1.0)
    with pytest.raises(ValueError, match="status: .*'great'"):
        install(run_of(model), status="great")
    assert list(first.parent.iterdir()) == [second]
    assert registry.describe("pixelvae_digits").weights.file == second.name


def test_what_is_estimated_of_weights_is_of_those_that_ship(
    configs, run_of, monkeypatch
):
    def estimate(model):
        """Keep a figure of the weights with them, in a weight that it is not of."""
        *others, kept = model.trainable_variables
        total = sum(float(np.abs(v.numpy()).sum(dtype=np.float64)) for v in others)
        kept.assign(np.full(kept.shape, total))

    monkeypatch.setattr(PixelVAE, "before_shipping", estimate)
    monkeypatch.setattr(
        PixelVAE, "exact_variables", property(lambda m: m.trainable_variables[-1:])
    )
    install(run_of(initialized_model()))
    shipped = vaezoo.load("pixelvae_digits")
    kept = shipped.trainable_variables[-1].numpy()
    estimate(shipped)
    np.testing.assert_array_equal(shipped.trainable_variables[-1].numpy(), kept)


def test_a_run_from_other_weights_leaves_the_recipe_of_the_entry(configs, run_of):
    start = {"name": "pixelvae_digits", "sha256": "0" * 64}
    history = [*HISTORY, HISTORY[0] | {"init": start}]
    run = run_of(initialized_model(), recipe={"learning_rate": 0.125}, history=history)
    before = registry.describe("pixelvae_digits").training
    install(run)
    entry = registry.describe("pixelvae_digits")
    assert entry.training == before and len(entry.history) == 2
    text = cards.card(entry)
    assert "run 2: commit 1234567, 2026-11-25, 2 CPU cores, from pixelvae_" in text


def test_what_cannot_be_installed(configs, run_of, tmp_path):
    model = initialized_model()
    with pytest.raises(ValueError, match="folder of a run that has ended"):
        install(run_of(model, weights=None, status="untrained", history=[]))
    with pytest.raises(ValueError, match="folder of a run that has ended"):
        install("pixelvae_mnist_static")
    with pytest.raises(ValueError, match="must be of the entry's dataset"):
        install(run_of(model, dataset="mnist_static"))
    with pytest.raises(ValueError, match="must be of the entry's model"):
        install(run_of(model), name="vlae_mnist_static")
    assert not (tmp_path / "pretrained").exists()


def test_a_card_says_how_its_weights_are_made_again(configs, run_of):
    install(run_of(initialized_model()))
    text = cards.card(registry.describe("pixelvae_digits"))
    commands = text.index(HISTORY[0]["command"])
    assert text.index("vaezoo install runs/digits") > commands
    assert "| 1 | joint | joint | 58 | 2 | 2,874 | - | 1.5 min |" in text
    assert "29.00 → 27.00 (best 21.00)" in text
    entry = registry.describe("vlae_mnist_static").model_copy(update={"history": []})
    assert "Recipe not recorded" in cards.card(entry)


def test_a_card_says_where_the_weights_of_its_first_run_are_from():
    entry = registry.describe("gated_pixelvae_mnist_static")
    other = registry.describe("pixelcnn_mnist_static")

    def card_of_start(**start):
        first = entry.history[0].model_copy(update={"init": entries.Start(**start)})
        return cards.card(entry.model_copy(update={"history": [first]}))

    shipped = {"name": other.name, "sha256": other.weights.sha256}
    link = "[pixelcnn_mnist_static](pixelcnn_mnist_static.md)"
    assert f"{link} says how" in card_of_start(**shipped)
    later = registry.describe("plain_pixelvae_mnist_static")
    start = later.history[1].init
    assert f"({later.name}.md) says how" in card_of_start(**start.model_dump())
    assert f"other weights of {link}" in card_of_start(**shipped | {"sha256": "0" * 64})
    for unknown in (entry.name, "weights.h5"):
        assert "is not recorded" in card_of_start(**shipped | {"name": unknown})


@pytest.mark.parametrize("name", registry.list_models(trained=True))
def test_reproduced_are_those_within_their_error_of_the_papers_nats(name):
    entry = registry.describe(name)
    results = entry.paper.results if entry.paper else []
    if not results or any(result.metric == "bits_per_dim" for result in results):
        pytest.skip("the paper has no number in nats")

    def reached(result):
        comparable = [
            record
            for record in entry.measured
            if record.metric == result.metric
            and record.num_importance_samples == result.num_importance_samples
        ]
        ours = max(comparable, key=lambda record: record.images, default=None)
        return ours is not None and ours.value + ours.standard_error >= result.value

    assert (entry.status == "reproduced") == all(map(reached, results))


def test_a_measurement_is_added_and_the_rest_of_the_file_stays(configs, run_of):
    install(run_of(initialized_model()))
    path = configs / DIGITS.name
    before = path.read_text()
    entries.append_measured(path, MEASUREMENT)
    entries.append_measured(path, MEASUREMENT | {"metric": "elbo", "value": -13.0})
    entries.append_measured(path, MEASUREMENT | {"value": -12.0})
    entry = entries.entry_from_file(path)
    assert [(m.metric, m.value) for m in entry.measured] == [
        ("elbo", -13.0),
        ("log_likelihood", -12.0),
    ]
    after = path.read_text()
    start, end = after.index("measured:"), after.index("\nstatus:")
    assert after[:start] + "measured: []" + after[end:] == before


def test_a_malformed_measurement_changes_nothing(configs):
    path = configs / DIGITS.name
    before = path.read_text()
    with pytest.raises(ValueError, match="seed: Field required"):
        record = {k: v for k, v in MEASUREMENT.items() if k != "seed"}
        entries.append_measured(path, record)
    with pytest.raises(ValueError, match="`measured` must be empty"):
        entries.append_measured(path, MEASUREMENT)
    assert path.read_text() == before
    assert {p.name for p in configs.iterdir()} == {
        f"{name}.yaml" for name in registry.list_models()
    }


# Cards.


@pytest.mark.skipif(
    not (cards.ROOT / "README.md").is_file(), reason="not in a checkout"
)
def test_the_readme_and_the_cards_are_fresh():
    entries = [registry.describe(name) for name in registry.list_models()]
    readme = (cards.ROOT / "README.md").read_text(encoding="utf-8")
    advice = "run `python -m vaezoo.zoo.cards`"
    assert cards.readme_with_table(readme, entries) == readme, advice
    folder = cards.ROOT / "docs" / "cards"
    assert {path.stem for path in folder.glob("*.md")} == set(registry.list_models()), (
        advice
    )
    for entry in entries:
        written = (folder / f"{entry.name}.md").read_text(encoding="utf-8")
        assert written == cards.card(entry), advice


def test_ours_stands_beside_the_papers():
    entry = registry.describe("pixelvae_mnist_static")
    record = entries.Measurement(**MEASUREMENT | {"value": -81.234})
    entry = entry.model_copy(update={"measured": [record]})
    for text in (cards.markdown_table([entry]), cards.card(entry)):
        assert "≤ 81.23 ± 0.1 nats (L_50, 360 images)" in text
        assert "≤ 79.77 nats (ELBO)" in text
        assert "≤ 79.17 nats (L_50)" in text


def test_ours_is_in_the_papers_unit():
    """8 bits for each of the 3,072 values of an image of 32x32x3."""
    entry = registry.describe("fame_cifar10")
    nats = -8 * 3072 * math.log(2)
    record = entries.Measurement(
        **MEASUREMENT | {"value": nats, "standard_error": 21.3}
    )
    entry = entry.model_copy(update={"measured": [record]})
    for text in (cards.markdown_table([entry]), cards.card(entry)):
        assert "≤ 8.000 ± 0.01 bits/dim (L_50, 360 images)" in text
        assert "≤ 2.750 bits/dim (L_1000)" in text


def test_a_bound_on_a_subset_stands_with_the_elbo_there():
    """The whole split first; a subset's ELBO is no figure of its own."""
    entry = registry.describe("pixelvae_mnist_static")

    def record(metric, value, images, k=None):
        fields = {"metric": metric, "value": value, "images": images}
        fields |= {"num_importance_samples": k}
        return entries.Measurement(**MEASUREMENT | fields)

    subset = [record("log_likelihood", -79.5, 300, 50), record("elbo", -80.04, 300)]
    whole = [record("elbo", -81.06, 10_000), record("kl", 3.7, 10_000)]
    entry = entry.model_copy(update={"measured": subset + whole})
    expected = (
        "≤ 81.06 ± 0.1 nats (ELBO, 10,000 images)<br>"
        "≤ 79.50 ± 0.1 nats (L_50, 300 images; ELBO there 80.04)"
    )
    assert cards.bounds(entry) == expected
    assert expected in cards.card(entry)
    assert "| -elbo |  | 81.06 ± 0.1 nats | 10,000 (test) |" in cards.card(entry)
    everything = [record("log_likelihood", -79.5, 10_000, 50), *whole]
    entry = entry.model_copy(update={"measured": everything})
    assert "ELBO there" not in cards.bounds(entry)


def test_the_readme_needs_its_markers():
    with pytest.raises(ValueError, match="Received: 0 and 0"):
        cards.readme_with_table("# vaezoo\n", [])
