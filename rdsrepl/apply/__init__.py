"""Layer 5: apply a plan, step by step. Entry point: ``run``. Only this package runs plans."""

from rdsrepl.apply.failures import RUN_AGAIN
from rdsrepl.apply.results import Blocker, Cancelled, OnDone, OnWaiting, RetryTiming, StepRecorder, StepResult
from rdsrepl.apply.runner import run

__all__ = [
    "RUN_AGAIN",
    "Blocker",
    "Cancelled",
    "OnDone",
    "OnWaiting",
    "RetryTiming",
    "StepRecorder",
    "StepResult",
    "run",
]
