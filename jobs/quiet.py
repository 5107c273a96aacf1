"""What is logged to the terminal: by default nothing of what libraries say, TensorFlow's C++ code too."""

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_OURS = ("jobs", "pipeline", "transforms")


def quiet_libraries() -> None:
    """Only our own warnings are shown; what fails is said in one line at the end."""
    warnings.simplefilter("ignore")  # decoders warn about odd files; failures/ has the reasons
    logging.getLogger().setLevel(logging.CRITICAL)
    for name in _OURS:
        logging.getLogger(name).setLevel(logging.WARNING)


def explain() -> None:
    """With --verbose: how choices were made, and the warnings of libraries."""
    logging.basicConfig(format="%(message)s")
    for name in _OURS:
        logging.getLogger(name).setLevel(logging.INFO)


def import_tensorflow() -> None:
    """Import TensorFlow and let it look for devices, which it reports whatever the log level is."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with _native_stderr_hidden():
        import tensorflow

        tensorflow.config.list_physical_devices()


@contextmanager
def _native_stderr_hidden() -> Iterator[None]:
    """Standard error of C++ code goes nowhere; Python's exceptions pass."""
    sys.stderr.flush()
    kept = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
