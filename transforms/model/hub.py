"""The graph of a TF1 Hub module, a TF2 module or a SavedModel, as its files have it.

Features and logits come from one pass wherever the module allows it: in TF1 by pruning its graph to
both, in TF2 from a signature or a call that returns both.
"""

import logging
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any

import tensorflow as tf

from transforms.errors import UserError
from transforms.model.network import Network, NetworkInfo, Outputs
from transforms.model.signatures import Module, OutputKeys, Signature, pick_outputs, read_module, spatial_size
from transforms.model.source import ModelFiles, named
from transforms.storage import first_line

_log = logging.getLogger(__name__)

Forward = Callable[[Any], Outputs]

# How to ask a TF2 module for all it can give. `return_endpoints` is known to the modules of
# google/imagenet, though no page says so; they refuse a call whose keywords they do not have.
_CALLS: tuple[dict[str, bool], ...] = (
    {"training": False, "return_endpoints": True},
    {"return_endpoints": True},
    {"training": False},
    {},
)


def describe_module(files: ModelFiles) -> NetworkInfo:
    """The sizes of a module from what its files declare; it is loaded only if they do not say.

    Raises `UserError` for files that are damaged or that give no logits or no features.
    """
    with named(files):
        module = read_module(files)
        if not module.is_tf2 and not module.sources():
            raise module.missing_outputs()
        return module.declared() or load_module(files).info


@lru_cache(maxsize=1)  # what had to be loaded to be described is not loaded again to be used
def load_module(files: ModelFiles) -> Network:
    """The module's graph; raises `UserError` as `describe_module` does, and for damaged weights."""
    with named(files):
        module = read_module(files)
        loaded = _load(module)
        forward = _called(module, loaded) if module.is_tf2 else _pruned(module, loaded)
        return Network(module.declared() or _probe(module, loaded, forward), forward)


def _load(module: Module) -> Any:
    try:
        return tf.saved_model.load(module.files.folder, tags=module.tags)
    except (tf.errors.OpError, OSError, ValueError) as error:
        raise UserError(f"cannot be loaded: {first_line(error)}") from error


def _pruned(module: Module, loaded: Any) -> Forward:
    """A TF1 graph cut down to what features and logits need, so that the body runs once for both."""
    sources = module.sources()
    if sources is None:
        raise module.missing_outputs()
    logits, features = sources
    tensor = loaded.graph.get_tensor_by_name
    feeds = [tensor(name) for name in dict.fromkeys(source.image_tensor for source in sources)]
    fetches = tensor(features.tensor(features.keys.features)), tensor(logits.tensor(logits.keys.logits))
    pruned = loaded.prune(feeds, fetches)
    pruned.module = loaded  # its variables live as long as the module does
    return lambda images: _outputs(*pruned(*[images] * len(feeds)))


def _called(module: Module, loaded: Any) -> Forward:
    """A TF2 module: a signature with both, else a call with both, else two signatures in turn."""
    sources = module.sources()
    if sources is not None and sources[0] is sources[1]:
        return _by_signatures(loaded, *sources)
    forward = _by_call(module, loaded)
    if forward is not None:
        return forward
    if sources is None:
        raise module.missing_outputs()
    _log.warning("%s gives features and logits only one by one: two passes a batch", module.files.handle)
    return _by_signatures(loaded, *sources)


def _by_signatures(loaded: Any, logits: Signature, features: Signature) -> Forward:
    def forward(images: Any) -> Outputs:
        results = {
            source.name: loaded.signatures[source.name](**{source.image_key: images})
            for source in {logits.name: logits, features.name: features}.values()
        }
        return _outputs(
            results[features.name][features.keys.features], results[logits.name][logits.keys.logits]
        )

    return forward


def _by_call(module: Module, loaded: Any) -> Forward | None:
    """The module called as a function, if that gives a mapping with both."""
    if not callable(loaded):
        return None
    images = tf.TensorSpec((None, *(_image_size(module, loaded) or (None, None)), 3), tf.float32)
    for keywords in _CALLS:
        call = tf.function(partial(loaded, **keywords))
        try:
            results = call.get_concrete_function(images).structured_outputs
        except (TypeError, ValueError):  # how a loaded function refuses keywords or shapes
            continue
        if isinstance(results, Mapping):
            keys = pick_outputs({key: tensor.shape for key, tensor in results.items()})
            if all(keys):
                return partial(_call, call, keys)
    return None


def _call(call: Any, keys: OutputKeys, images: Any) -> Outputs:
    results = call(images)
    return _outputs(results[keys.features], results[keys.logits])


def _outputs(features: Any, logits: Any) -> Outputs:
    """Features as (N, D), of modules that give (N, 1, 1, D) too."""
    if features.shape.rank != 2:
        features = tf.reshape(features, (tf.shape(features)[0], -1))
    return Outputs(tf.cast(features, tf.float32), tf.cast(logits, tf.float32))


def _probe(module: Module, loaded: Any, forward: Forward) -> NetworkInfo:
    """The sizes of what comes out for one black image."""
    size = _image_size(module, loaded)
    if size is None:
        raise UserError("does not say which size of image it takes")
    outputs = forward(tf.zeros((1, *size, 3)))
    class_count = int(outputs.logits.shape[-1])
    return NetworkInfo(*size, class_count, int(outputs.features.shape[-1]), module.labels(class_count))


def _image_size(module: Module, loaded: Any) -> tuple[int, int] | None:
    """As the module declares it, else as its function was traced."""
    declared = module.image_size()
    if declared or not callable(loaded):
        return declared
    traces = getattr(loaded.__call__, "concrete_functions", ())
    inputs = [trace.structured_input_signature[0][0] for trace in traces]
    return next((size for size in map(spatial_size, (each.shape for each in inputs)) if size), None)
