"""How a model may be run: the words that settings, flags and manifests share. Imports nothing."""

from typing import Literal

# `native` is our network without the probe, for those who know that it was passed with these very files.
Engine = Literal["auto", "native", "hub"]
Precision = Literal["float32", "bfloat16", "float16"]
DeviceKind = Literal["auto", "cpu", "gpu"]
Auto = Literal["auto"]

# Where nobody can try it out beforehand: every machine has the memory, every GPU is filled.
DEFAULT_PRECISION: Precision = "float32"
DEFAULT_BATCH_SIZE = 32
