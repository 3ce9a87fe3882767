"""What a user of the command line waits for: the help, the first and second image.

    python benchmarks/command_line.py [--name NAME] [--rounds N]

Each line is the wall-clock time of processes that are started in turn, the smallest of
the rounds. "As a library" is what the command did before it kept programs: a process
that loads the model, draws the same images and writes the same picture. Pictures are
compared, byte for byte, before a time is printed.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import print_machine, print_table

LIBRARY = """
import sys
import vaezoo
from vaezoo import plots
model = vaezoo.load(sys.argv[1])
images = model.sample(16, seed=0)
grid = plots.image_grid(images, levels=model.levels)
plots.save_picture(sys.argv[2], grid)
"""


def seconds(*command, home):
    """Wall-clock time of a process whose cache is the folder `home`."""
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, *command],
        check=True,
        capture_output=True,
        env=os.environ | {"VAEZOO_HOME": str(home)},
    )
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", default="pixelvae_mnist_static")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    times = {"help": [], "library": [], "first": [], "second": []}
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as home:
            files = [Path(home) / f"{name}.png" for name in times]
            sample = ["-m", "vaezoo", "sample", args.name, "--output"]
            commands = {
                "help": ["-m", "vaezoo", "--help"],
                "library": ["-c", LIBRARY, args.name, str(files[1])],
                "first": [*sample, str(files[2])],
                "second": [*sample, str(files[3])],
            }
            for name, command in commands.items():
                times[name].append(seconds(*command, home=home))
            pictures = {file.read_bytes() for file in files[1:]}
            assert len(pictures) == 1, "the pictures differ"
    best = {name: min(values) for name, values in times.items()}
    print_machine()
    sampling = f"vaezoo sample {args.name}"
    rows = [
        ["vaezoo --help", f"{best['help']:.2f}", "", best["help"] <= 0.3, "0.3 s"],
        ["the same as a library", f"{best['library']:.2f}", "1.00x", None, ""],
        *(
            [
                f"{sampling}, the {name} time",
                f"{best[name]:.2f}",
                f"{best[name] / best['library']:.2f}x",
                best[name] <= 0.5 * best["library"] if name == "second" else None,
                "0.50x" if name == "second" else "",
            ]
            for name in ("first", "second")
        ),
    ]
    header = ["command", "seconds", "against the library", "goal", ""]
    words = {None: "", True: "met", False: "missed"}
    table = [[*row[:3], row[4], words[row[3]]] for row in rows]
    print_table(header, table)


if __name__ == "__main__":
    main()
