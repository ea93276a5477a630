"""What failed launches come to: every exception becomes one that says where and at which stage.

What this module does not know: how workers are launched (``launching.py``).
"""

from __future__ import annotations

from hybriddist.errors import LaunchError, LaunchTimeout, ProcessExitedException, with_advice


def as_exception(error: BaseException) -> Exception:
    """Managers are users' code: even a `sys.exit` in one is a failure, not the end of a thread that somebody awaits."""
    return error if isinstance(error, Exception) else raised(error)


def words(error: BaseException) -> str:
    """What an exception says; it may be a user's, and fail at that."""
    try:
        return with_advice(error)
    except Exception:
        return type(error).__name__


def raised(error: BaseException) -> LaunchError:
    """What the launch says of anything that a manager raises."""
    made = LaunchError(f"the cluster manager raised {error!r}")
    made.__cause__ = error
    return made


def launch_error(error: Exception, host: str, stage: str) -> LaunchError:
    """What the launch says of a worker that did not come up: where, at which stage, with its last lines."""
    if isinstance(error, LaunchError):
        return error
    tail = error.stderr_tail if isinstance(error, ProcessExitedException) else ""
    kind = LaunchTimeout if isinstance(error, TimeoutError) else LaunchError
    made = kind(
        f"the worker was started but could not be used: {words(error)}", host=host, stage=stage, stderr_tail=tail
    )
    made.__cause__ = error
    return made
