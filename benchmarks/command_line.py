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


def seconds(*command, home, xla_folder=None):
    """Wall-clock time of a process whose cache is the folder `home`.

    XLA keeps what it compiles in `xla_folder`; "" for nowhere, `None` for where the
    command wants it.
    """
    environment = os.environ | {"VAEZOO_HOME": str(home)}
    if xla_folder is not None:
        environment["TF_XLA_FLAGS"] = (
            f"--tf_xla_persistent_cache_directory={xla_folder} "
            "--tf_xla_persistent_cache_device_types=CPU"
        )
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, *command], check=True, capture_output=True, env=environment
    )
    return time.perf_counter() - start


def one_round(name, home):
    """Seconds of each kind of process, by its name in the table."""
    counter = iter(range(100))

    def library():
        return "-c", LIBRARY, name, f"{home}/{next(counter)}.png"

    def sample():
        output = f"{home}/{next(counter)}.png"
        return "-m", "vaezoo", "sample", name, "--output", output

    times = {"--help": seconds("-m", "vaezoo", "--help", home=home)}
    times["as a library"] = seconds(*library(), home=home)
    xla_folder = Path(home) / "xla"
    xla_folder.mkdir()
    for _ in range(2):  # the first fills the folder
        times["as a library, XLA's cache alone"] = seconds(
            *library(), home=home, xla_folder=xla_folder
        )
    times["first time"] = seconds(*sample(), home=home)
    times["again, the kept graph alone"] = seconds(*sample(), home=home, xla_folder="")
    times["again, both"] = seconds(*sample(), home=home)
    pictures = {file.read_bytes() for file in Path(home).glob("*.png")}
    assert len(pictures) == 1, "the pictures differ"
    return times


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--name", default="pixelvae_mnist_static")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()

    rounds = []
    for _ in range(args.rounds):
        with tempfile.TemporaryDirectory() as home:
            rounds.append(one_round(args.name, home))
    best = {kind: min(times[kind] for times in rounds) for kind in rounds[0]}
    goals = {"--help": 0.3, "again, both": 0.5 * best["as a library"]}
    print_machine()
    rows = []
    for kind, time_taken in best.items():
        met = "" if kind not in goals else "met"
        if kind in goals and time_taken > goals[kind]:
            met = "missed"
        ratio = f"{time_taken / best['as a library']:.2f}x"
        rows.append([kind, f"{time_taken:.2f}", ratio, met])
    print_table(["sampling", "seconds", "against the library", "goal"], rows)


if __name__ == "__main__":
    main()
