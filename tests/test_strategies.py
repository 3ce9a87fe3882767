"""Several replicas train as one, in one process and in several; and what goes wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import tiny
from runs import make_entry, rows, run_code
from vaezoo import strategies
from vaezoo.training import checkpoints
from vaezoo.training import run as training

FOLDERS = os.pathsep.join(
    map(str, [Path(__file__).parent, Path(strategies.__file__).parents[1]])
)

# Names, bad texts: what TF_CONFIG may not be.
CLUSTER = {"worker": ["a:1", "b:2"]}
BAD_CLUSTERS = {
    "no TF_CONFIG": "",
    "not JSON": "{'cluster'",
    "without an object `cluster`": "[]",
    "without an object `task`|or an object `task`": {"cluster": CLUSTER},
    "a cluster of \\['ps'\\]": {"cluster": {"ps": ["a:1"]}, "task": {}},
    "not a list of addresses": {"cluster": {"worker": "a:1"}, "task": {}},
    "'b', which is not HOST:PORT": {"cluster": {"worker": ["a:1", "b"]}, "task": {}},
    "'b:0', which is not": {"cluster": {"worker": ["b:0"]}, "task": {}},
    "an address twice": {"cluster": {"worker": ["a:1", "a:1"]}, "task": {}},
    "whose type is none": {"cluster": CLUSTER, "task": {"type": "chief", "index": 0}},
    "an integer in 0..1": {"cluster": CLUSTER, "task": {"type": "worker", "index": 2}},
    "Received: task=.*'0'": {
        "cluster": CLUSTER,
        "task": {"type": "worker", "index": "0"},
    },
}


# Making a strategy.


@pytest.mark.parametrize("message", BAD_CLUSTERS)
def test_a_malformed_cluster_is_refused(message):
    text = BAD_CLUSTERS[message]
    text = text if isinstance(text, str) else json.dumps(text)
    with pytest.raises(ValueError, match=f"TF_CONFIG must hold.*{message}"):
        strategies.check_cluster(text)


@pytest.mark.parametrize("kind", ["worker", "chief"])
def test_a_cluster(kind):
    cluster = CLUSTER | {"chief": ["c:3"]}
    task = {"type": kind, "index": 0}
    strategies.check_cluster(json.dumps({"cluster": cluster, "task": task}))


def test_a_strategy_made_too_late(monkeypatch):
    import tensorflow as tf

    tf.zeros([])  # TensorFlow has begun
    with pytest.raises(RuntimeError, match="before TensorFlow's first operation"):
        strategies.create("mirrored", devices=2)
    config = {"cluster": {"worker": ["127.0.0.1:1"]}}
    config["task"] = {"type": "worker", "index": 0}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    with pytest.raises(RuntimeError, match="before TensorFlow's first operation"):
        strategies.create("multi_worker")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategy": "tpu"}, "none, mirrored, multi_worker"),
        ({"strategy": "mirrored", "devices": 0}, "devices=0"),
        ({"strategy": "multi_worker", "devices": 2}, "goes with"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        strategies.create(**arguments)


def test_without_a_strategy_there_is_one_process():
    strategy = strategies.create(None)
    assert strategies.is_chief(strategy) and not strategies.is_multi_worker(strategy)
    assert strategies.any_worker(strategy, True)
    assert not strategies.any_worker(strategy, False)
    assert strategies.create(strategy) is strategy is strategies.create("none")


# Starting workers on this machine.


def running(pids):
    return [pid for pid in pids if Path(f"/proc/{pid}").exists()]


def test_launched_workers_know_their_cluster(tmp_path):
    code = (
        "import os, pathlib, sys; from vaezoo import strategies\n"
        "strategies.check_cluster(os.environ['TF_CONFIG'])\n"
        f"pathlib.Path({str(tmp_path)!r}, str(os.getpid())).write_text("
        "os.environ['TF_CONFIG'])"
    )
    strategies.launch([sys.executable, "-c", code], 3)
    configs = [json.loads(path.read_text()) for path in tmp_path.iterdir()]
    assert sorted(config["task"]["index"] for config in configs) == [0, 1, 2]
    (addresses,) = {tuple(config["cluster"]["worker"]) for config in configs}
    assert len(set(addresses)) == 3


def test_when_a_worker_dies_the_launcher_says_which_and_leaves_none(
    tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(strategies, "_SECONDS_TO_STOP", 0.5)
    code = (
        "import json, os, pathlib, signal, time\n"
        f"pathlib.Path({str(tmp_path)!r}, str(os.getpid())).touch()\n"
        "if json.loads(os.environ['TF_CONFIG'])['task']['index'] == 1:\n"
        "    print('farewell', flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "time.sleep(600)"
    )
    with pytest.raises(strategies.WorkerLostError, match="worker 1 of 2.*SIGKILL"):
        strategies.launch([sys.executable, "-c", code], 2)
    assert not running(int(path.name) for path in tmp_path.iterdir())
    assert "[worker 1] farewell" in capfd.readouterr().err


@pytest.mark.skipif(sys.platform != "linux", reason="asks for Linux's prctl")
def test_workers_die_with_a_killed_launcher(tmp_path):
    code = (
        "import os, pathlib, time; "
        f"pathlib.Path({str(tmp_path)!r}, str(os.getpid())).touch(); time.sleep(600)"
    )
    launcher = f"""
import sys
from vaezoo import strategies
strategies.launch([sys.executable, "-c", {code!r}], 2)
"""
    environment = os.environ | {"PYTHONPATH": FOLDERS}
    process = subprocess.Popen([sys.executable, "-c", launcher], env=environment)
    try:
        wait_until(lambda: len(os.listdir(tmp_path)) == 2)
    finally:
        process.kill()
        process.wait()
    pids = [int(path.name) for path in tmp_path.iterdir()]
    wait_until(lambda: not running(pids))
    assert len(pids) == 2 and not running(pids)


def wait_until(holds, *, seconds=60):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# Exactness.

EXACT = """
import sys

import keras
import numpy as np
import tensorflow as tf

import tiny
from vaezoo import evaluation, strategies
from vaezoo.layers.dropout import Dropout
from vaezoo.models.pixelvae import PixelVAE

class WithDropout(PixelVAE):
    def likelihood(self, values, *, context=None, seeds=None, training=False):
        if not hasattr(self, "dropout"):
            self.dropout = Dropout(0.5, name="dropout")
        if seeds is not None:
            z = self.dropout(values["z"], seeds=seeds, training=training)
            values = values | {"z": z}
        return super().likelihood(values, context=context, seeds=seeds)

tiny.CONFIGURATIONS["dropout"] = (WithDropout, tiny._PIXELVAE)
two_replicas = strategies.create("mirrored", devices=2)

def train(strategy, name, options):
    name, _, mode = name.partition(":")
    with strategy.scope():
        model = tiny.build(name)
        model.begin_phase(mode or "joint")
        model.compile(
            # Without its epsilon Adam takes rounding for a direction.
            keras.optimizers.Adam(1e-3, epsilon=0.1),
            ema_momentum=0.9,
            kl_warmup_steps=8,
            gradient_clip={"by": "global_norm", "limit": 5.0, "unit": "per_image"},
            **(options if model.trains_on_bound else {}),
        )
    before = [v.numpy() for v in model.trainable_variables]
    images = tiny.images_for(model, 13)  # batches of 8 and 5
    data = tf.data.Dataset.from_tensor_slices(images).batch(8)
    logs = model.fit(data, epochs=2, verbose=0).history
    after = [v.numpy() for v in model.trainable_variables]
    moved = max(np.abs(x - y).max() for x, y in zip(after, before))
    scores = model.evaluate(data, verbose=0, return_dict=True)
    if name in ("vlae", "fame"):
        images = images[:4]
        bounds = evaluation.evaluate(model, images, num_importance_samples=3, verbose=0)
        scores |= {f"L/{k}": value for k, (value, _) in bounds.items()}
    state = [*model.weights, *model.training_variables]
    return [v.numpy() for v in state], moved, logs, scores

# Free bits, soft or not, in turn.
options = [{"free_bits_nats": 0.5}, {"soft_free_bits_nats": 4.0}]
for number, name in enumerate(sys.argv[1:]):
    chosen = {} if name == "pixelvaepp" else options[number % 2]  # it has none
    one = train(tf.distribute.get_strategy(), name, chosen)
    two = train(two_replicas, name, chosen)
    assert one[1] > 1e-4, (name, one[1])
    for mine, theirs in zip(one[0], two[0]):
        # Through ten batch normalisations rounding grows to 1.8e-6.
        rounding = 2e-6 if name == "pixelvae2_one_level" else 1e-6
        atol = rounding * max(1, np.abs(mine).max())
        np.testing.assert_allclose(mine.astype(float), theirs, atol=atol, err_msg=name)
    for mine, theirs in zip(one[2:], two[2:]):
        assert mine.keys() == theirs.keys()
        for key in mine:
            message = f"{name} {key}"
            np.testing.assert_allclose(mine[key], theirs[key], 1e-5, err_msg=message)
    print("equal", name, flush=True)
"""
_OTHERS = sorted(tiny.CONFIGURATIONS.keys() - {*tiny.REPRESENTATIVE, "pixelvaepp"})


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(
            ["vlae", "gated_pixelvae_noup", "dropout"], marks=pytest.mark.slow
        ),
        pytest.param(["fame", "vae", "pixelcnn_colour"], marks=pytest.mark.slow),
        pytest.param(["pixelvaepp"], marks=pytest.mark.slow),  # with chains
        pytest.param(["agave:auxiliary"], marks=pytest.mark.slow),  # by feature map
        pytest.param(["agave:decoder"], marks=pytest.mark.soak),
        *(pytest.param([name], marks=pytest.mark.soak) for name in _OTHERS),
    ],
    ids=" ".join,
)
def test_two_replicas_equal_one(names):
    """Weights to 1e-6, of one model 2e-6; logs, scores and L_K.

    Ragged batches, clipping, free bits.
    """
    result = run_code(EXACT, *names, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    assert result.stdout.split() == [word for name in names for word in ("equal", name)]


PHASES = """
import pathlib
import sys

import numpy as np

from runs import make_entry, rows
from vaezoo import strategies
from vaezoo.training import run as training

two_replicas = strategies.create("mirrored", devices=2)
steady = {"epsilon": 0.1, "batch_size": 300}  # the fifth batch has 237 rows
entry = make_entry(
    {"name": "first", "epochs": 2, "max_steps": 7} | steady,
    {"name": "second", "epochs": 1, "learning_rate": 0.01} | steady,
)
out = pathlib.Path(sys.argv[1])
one = training.train(entry, out=out / "one", verbose=0)
two = training.train(entry, out=out / "two", strategy=two_replicas, verbose=0)
for mine, theirs in zip(one.weights, two.weights, strict=True):
    mine = mine.numpy()
    atol = 1e-6 * max(1, np.abs(mine).max())
    np.testing.assert_allclose(mine.astype(float), theirs.numpy(), atol=atol)
for mine, theirs in zip(rows(out / "one"), rows(out / "two"), strict=True):
    for key in mine:
        np.testing.assert_allclose(float(mine[key]), float(theirs[key]), 1e-5)
print("equal")
"""


@pytest.mark.slow
def test_two_replicas_equal_one_over_phases(tmp_path):
    """Weights to 1e-6, logs to 1e-5; ragged batches, a part of an epoch."""
    result = run_code(PHASES, str(tmp_path))
    assert result.stdout.split() == ["equal"], result.stderr[-3000:]


# Several workers, and what happens to them.

ENTRY = """make_entry(
    {"name": "first", "epochs": 2, "learning_rate": 0.003},
    {"name": "second", "epochs": 2, "learning_rate": 0.001},
)"""

WORKER = """
import json
import os
import signal
import time

from vaezoo import strategies

strategy = strategies.create("multi_worker")
import numpy as np
from runs import make_entry
from vaezoo import evaluation
from vaezoo.training import checkpoints, run as training

end = checkpoints.CheckpointCallback.on_train_batch_end
index = json.loads(os.environ["TF_CONFIG"])["task"]["index"]

def end_or_not(self, batch, logs=None):
    if (index, self._progress.position) == (1, {at!r}):
        {action}
    end(self, batch, logs)

checkpoints.CheckpointCallback.on_train_batch_end = end_or_not
model = training.train(
    {entry},
    out={out!r} if index == 0 else "/nowhere",
    strategy=strategy,
    resume=True,
    checkpoint_steps=2,
    verbose=0,
)
print("ended", checkpoints.num_steps(model), index, flush=True)
"""
LAUNCHER = """
import sys
from vaezoo import strategies
strategies.launch([sys.executable, "-c", {worker!r}], 2)
"""


def cluster(out, *, at=None, action="pass"):
    """Train on two workers into `out`; `action` is worker 1's before step `at`."""
    worker = WORKER.format(out=str(out), at=at, action=action, entry=ENTRY)
    result = run_code(LAUNCHER.format(worker=worker), TF_NUM_INTRAOP_THREADS="1")
    assert "ended 12 0" in result.stdout or at is not None, result.stderr[-3000:]
    return result


def state(out):
    newest = checkpoints.list_checkpoints(out / "checkpoints")[-1]
    assert newest.name == "step-000000024"
    with np.load(newest / "state.npz") as file:
        return {key: file[key] for key in file.files}


@pytest.mark.slow
def test_workers_take_the_steps_of_one_device(tmp_path):
    """Three, before a rounding has become more; see docs/training.md."""
    entry, out = "make_entry(max_steps=3)", tmp_path / "workers"
    worker = WORKER.format(out=str(out), at=None, action="pass", entry=entry)
    result = run_code(LAUNCHER.format(worker=worker), TF_NUM_INTRAOP_THREADS="1")
    assert "ended 3 0" in result.stdout, result.stderr[-3000:]
    training.train(eval(entry), out=tmp_path / "alone", verbose=0)
    states = [
        checkpoints.newest(folder / "checkpoints").state
        for folder in (out, tmp_path / "alone")
    ]
    keys = [key for key in states[0] if key.startswith("model")]
    here, there = (
        np.concatenate([state[key].ravel() for key in keys]) for state in states
    )
    assert np.linalg.norm(here - there) <= 1e-6 * np.linalg.norm(there)


@pytest.mark.slow
def test_workers_killed_stopped_and_resumed_end_where_undisturbed_ones_do(tmp_path):
    """SIGKILL in mid-epoch, then SIGTERM to the launcher: bit for bit the same end."""
    undisturbed, out = tmp_path / "undisturbed", tmp_path / "out"
    cluster(undisturbed)
    assert (undisturbed / "weights.h5").exists()

    killed = cluster(out, at=15, action="os.kill(os.getpid(), signal.SIGKILL)")
    assert killed.returncode == 1
    assert "WorkerLostError: All workers must train together" in killed.stderr
    assert "worker 1 of 2 ended with signal SIGKILL" in killed.stderr
    assert "step-000000014" in os.listdir(out / "checkpoints")
    assert not (out / "weights.h5").exists()

    # It sleeps until the launcher, which has no processor to itself, has passed it on.
    stop = "os.kill(os.getppid(), signal.SIGTERM); time.sleep(5)"
    stopped = cluster(out, at=19, action=stop)
    assert stopped.returncode == 0, stopped.stderr[-3000:]
    assert "ended" not in stopped.stdout
    assert not (out / "weights.h5").exists()

    cluster(out)
    expected = state(undisturbed)
    for key, array in state(out).items():
        np.testing.assert_array_equal(array, expected[key], err_msg=key)

    training.train(eval(ENTRY), out=tmp_path / "alone", verbose=0)
    for here, there in zip(rows(tmp_path / "alone"), rows(undisturbed), strict=True):
        for key in ("loss", "elbo", "kl"):  # Adam divides rounding by rounding
            assert float(here[key]) == pytest.approx(float(there[key]), rel=1e-3)


# One process, and what happens to it.


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_checkpoint(tmp_path):
    """A limit on the size of files stands for the disk."""
    code = f"""
import resource
from runs import make_entry
from vaezoo.training import checkpoints, run as training

write = checkpoints.CheckpointCallback._write

def write_or_fill(self):
    if self._progress.position == 9:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, resource.RLIM_INFINITY))
    write(self)

checkpoints.CheckpointCallback._write = write_or_fill
training.train(make_entry(), out={str(tmp_path)!r}, checkpoint_steps=3, verbose=0)
"""
    result = run_code(code)
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert "OSError: A checkpoint must be written whole" in last
    assert "after step 9" in last and "--resume" in last
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-000000003", "step-000000006"]
    model = training.train(make_entry(), out=tmp_path, resume=True, verbose=0)
    assert checkpoints.num_steps(model) == 24


def test_terminated_while_it_waits(tmp_path):
    """A worker whose cluster is not whole yet ends when the launcher is told to."""
    code = (
        "import pathlib, time; "
        f"pathlib.Path({str(tmp_path / 'here')!r}).touch(); time.sleep(600)"
    )
    launcher = (
        "import sys; from vaezoo import strategies\n"
        f"strategies.launch([sys.executable, '-c', {code!r}], 2)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", launcher],
        env=os.environ | {"PYTHONPATH": FOLDERS},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until((tmp_path / "here").exists)
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1
    assert "ended with signal SIGTERM" in error
