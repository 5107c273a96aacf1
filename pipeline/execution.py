"""A pipeline to its end, on whatever engine; what goes wrong there becomes one named error."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager

import apache_beam as beam
from apache_beam.metrics.metric import MetricsFilter
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.runner import PipelineResult, PipelineState

from pipeline.progress import Counts, since_now
from pipeline.runners import is_local
from transforms.count import NAMESPACE, live_counts
from transforms.errors import UserError

Watch = Callable[[Counts], AbstractContextManager[None]]


class JobFailed(Exception):
    """The engine gave up; the message is its reason."""


def execute(pipeline: beam.Pipeline, options: PipelineOptions, watch: Watch) -> None:
    """Run it while `watch` shows its counts; raises `UserError` or `JobFailed`."""
    try:
        if is_local(options):
            with watch(since_now(live_counts)):
                _wait(pipeline.run())
        else:
            result = pipeline.run()
            with watch(lambda: _remote_counts(result)):
                _wait(result)
    except JobFailed:
        raise
    except UserError as error:
        raise UserError(str(error).partition(" [while running")[0]) from error
    except Exception as error:  # the in-memory runner passes on whatever a stage raised
        if _is_interrupt(error):
            raise KeyboardInterrupt from error
        raise JobFailed(_reason(error)) from error


def _wait(result: PipelineResult) -> None:
    state = result.wait_until_finish()
    if state != PipelineState.DONE:
        raise JobFailed(f"the job ended in state {state}")


def _remote_counts(result: PipelineResult) -> Mapping[str, int]:
    """The counters of a job that runs elsewhere."""
    found = result.metrics().query(MetricsFilter().with_namespace(NAMESPACE))
    return {metric.key.metric.name: metric.attempted or 0 for metric in found["counters"]}


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether Ctrl-C is behind it: runners wrap that too."""
    while error is not None:
        if isinstance(error, KeyboardInterrupt) or str(error).startswith("KeyboardInterrupt"):
            return True
        error = error.__cause__ or error.__context__
    return False


def _reason(error: Exception) -> str:
    """The last line of a worker's traceback is what went wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
