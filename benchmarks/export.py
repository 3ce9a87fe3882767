"""Exports of the zoo's models: sizes, times, and that they are the models.

    python benchmarks/export.py [NAME ...]

Every signature is run for a batch of 1 and of 2 in a process with TensorFlow alone, and
compared with the model's own methods, before a line is printed. Without names, all
models that have weights; a model without is exported untrained.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from common import print_machine, print_table

sys.path.append(str(Path(__file__).parents[1] / "tests"))

import exports  # noqa: E402


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--num-importance-samples", "-k", type=int, default=4)
    args = parser.parse_args()

    from vaezoo.serving import saved_model
    from vaezoo.zoo import registry

    rows = []
    for name in args.names or registry.list_models(trained=True):
        model = registry.load(
            name, weights="zoo" if registry.describe(name).weights else None
        )
        with tempfile.TemporaryDirectory() as directory:
            start = time.perf_counter()
            folder = saved_model.export(
                model,
                Path(directory) / "1",
                num_importance_samples=args.num_importance_samples,
            )
            seconds = time.perf_counter() - start
            exports.check(model, folder, sizes=(1, 2))
            variables, graph = (
                sum(file.stat().st_size for file in folder.glob(pattern)) / 1e6
                for pattern in ("variables/*", "saved_model.pb")
            )
        size = f"{model.count_params():,}"
        rows.append([name, size, f"{variables:.1f}", f"{graph:.1f}", f"{seconds:.0f}"])
        print(*rows[-1], file=sys.stderr, flush=True)
    print_machine()
    header = ["model", "parameters", "variables MB", "graphs MB", "to export s"]
    print_table(header, rows)


if __name__ == "__main__":
    main()
