"""Packaging of vaezoo; the tools' settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "([^"]+)"',
    (ROOT / "vaezoo" / "__init__.py").read_text(encoding="utf-8"),
    re.MULTILINE,
).group(1)
README = ROOT / "README.md"


class BuildWithZoo(build_py):
    """Puts zoo_configs/ into the package.

    As a package of `setup` it would make the layout too rich for a plain .pth, and an
    editable install would be a finder, which Python asks after the folders of the
    path: where the clone is a folder `vaezoo` of the current one, too late.
    """

    def finalize_options(self):
        super().finalize_options()
        self.packages = [*self.packages, "vaezoo.zoo_configs"]
        self.package_dir["vaezoo.zoo_configs"] = "zoo_configs"


setup(
    name="vaezoo",
    version=VERSION,
    description="A zoo of variational autoencoders with autoregressive decoders",
    long_description=README.read_text(encoding="utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11,<3.14",
    cmdclass={"build_py": BuildWithZoo},
    packages=find_packages(include=["vaezoo", "vaezoo.*"]),
    package_dir={"": "."},  # said, so that setuptools may add the folder to the path
    package_data={
        "": ["*.bib", "*.md", "*.tsv", "*.txt"],
        "vaezoo": ["py.typed", "pretrained/*.h5"],
        "vaezoo.zoo_configs": ["*.yaml"],
    },
    install_requires=[
        "tensorflow>=2.21,<2.22",
        "keras>=3.15,<3.16",
        "tensorflow-probability==0.25.0",
        "tf-keras>=2.21,<2.22",  # TFP imports it; its minor must be TensorFlow's
        "tensorflow-datasets==4.9.10",
        "importlib_resources",  # TFDS imports it and does not declare it
        "click>=8.1",
        "filelock>=3.12",
        "h5py>=3.11",
        "numpy>=1.26",
        "pillow>=10.3",  # image folders
        "pydantic>=2.7,<3",
        "pyyaml>=6.0",
        "scikit-learn>=1.4",
        "scipy>=1.12",
        "tensorboard>=2.20",  # the training logs; TensorFlow no longer requires it
    ],
    extras_require={
        "lsun": ["lmdb>=1.4"],
        "plots": ["matplotlib>=3.8"],
        "serving": ["tensorflow-serving-api==2.21.0"],
        "test": [
            "lmdb>=1.4",
            "pyright[nodejs]==1.1.414",
            "pytest>=8",
            "pytest-xdist>=3.6",
            "ruff==0.17.5",
            "setuptools>=68",
            "tensorflow-serving-api==2.21.0",
            "wheel",
        ],
        "benchmark": ["torch==2.13.0"],
        "docs": ["mkdocs>=1.6", "mkdocstrings[python]>=0.26"],
    },
    entry_points={"console_scripts": ["vaezoo = vaezoo.cli:main"]},
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
