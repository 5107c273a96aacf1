"""Processors: found, described, and several of them at once."""

import subprocess
import sys

from transforms.model.devices import find_devices

SEVERAL = """
import threading
import numpy as np
import tensorflow as tf

parts = [tf.config.LogicalDeviceConfiguration() for _ in range(3)]
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], parts)

from transforms.model.devices import Device
from transforms.model.embedder import Embedder, EmbedderSettings, Placed, load_embedder
from transforms.model.engine import load_network
from transforms.model.source import identify_model, locate_model

files = locate_model("small")
placed = []
for number in range(3):
    device = Device(f"/CPU:{number}", "a third")
    with tf.device(device.name):
        placed.append(Placed(load_network(files, "native"), device))
embedder = Embedder(placed, EmbedderSettings("small", identify_model(files), batch_size=4))
assert embedder.capacity == 3
pictures = np.random.default_rng(0).integers(0, 256, (24, 96, 96, 3), np.uint8)
outcomes = [embedder.submit(list(pictures[first : first + 4])) for first in range(0, 24, 4)]
vectors = np.concatenate([outcome.result().batch.vectors for outcome in outcomes])
alone = load_embedder(EmbedderSettings("small", identify_model(files), batch_size=4, device="cpu"))
np.testing.assert_allclose(vectors, alone.embed(list(pictures)).batch.vectors, rtol=1e-4, atol=1e-4)
networks = [one.network.forward.__closure__[0].cell_contents for one in placed]
homes = [{weight.value.device[-1] for weight in network.weights} for network in networks]
assert homes == [{"0"}, {"1"}, {"2"}], homes
"""


def test_the_cpu_is_one_device_that_is_named() -> None:
    [device] = find_devices("cpu")
    assert (device.name, device.is_gpu) == ("/CPU:0", False)
    assert "core" in device.description
    assert device.precisions[0] == "float32"


def test_each_device_has_a_copy_and_gives_the_same_vectors() -> None:
    """In a process of its own, whose CPU is cut into three logical devices."""
    done = subprocess.run([sys.executable, "-c", SEVERAL], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
