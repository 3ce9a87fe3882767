import pytest

from vaezoo.datasets import tfds_source


@pytest.fixture
def manual(tmp_path, monkeypatch):
    """The manual folder, empty, of a TFDS data folder without a network."""
    tfds = pytest.importorskip("tensorflow_datasets")
    tfds_source.builder("omniglot28")  # registers our builders
    monkeypatch.setattr(
        tfds_source, "builder", lambda name: tfds.builder(name, data_dir=tmp_path)
    )
    monkeypatch.setattr(tfds_source, "_answers", lambda url: False)
    folder = tmp_path / "downloads" / "manual"
    folder.mkdir(parents=True)
    return folder
