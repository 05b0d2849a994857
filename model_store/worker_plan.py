"""How many workers run a version, and how: the content of `model-config.yaml`."""

from dataclasses import dataclass, replace

CONFIG = "model-config.yaml"


@dataclass(frozen=True)
class WorkerPlan:
    """How TorchServe runs a version.

    A small program is run by one worker with one thread: a second one would fill half the batch and take a core from
    the edge. The work of a large one is the program's alone, and two workers share it better than two threads of one,
    which wait for each other at every operation.
    """

    workers: int | None = None
    """None: one for a small program, else two."""
    batch_size: int = 32
    """Requests that one worker answers at once, at most: more keep the edge waiting for a busy worker's answers."""
    queue_size: int = 1000
    """Requests that wait; beyond that clients get 503."""
    response_timeout_seconds: int = 60
    startup_timeout_seconds: int = 120
    retry_window_seconds: int = 300
    """How long a worker that dies is started again."""
    threads: int | None = None
    """Threads of each worker's operations. None: one for a small program, else the CPU quota divided by the workers."""

    def settled(self, *, small: bool) -> "WorkerPlan":
        """The plan with what was left open, for a program that is small or not."""
        threads = 1 if self.threads is None and small else self.threads
        return replace(self, workers=self.workers or (1 if small else 2), threads=threads)

    def to_yaml(self) -> bytes:
        """`model-config.yaml`, complete: TorchServe mixes a partial one with its own files."""
        import yaml  # not in a base install, which shows these defaults in its help

        settings = {
            "minWorkers": self.workers,
            "maxWorkers": self.workers,
            "batchSize": self.batch_size,
            "maxBatchDelay": 1,  # of TorchServe's own queue, which no request passes
            "responseTimeout": self.response_timeout_seconds,
            "startupTimeout": self.startup_timeout_seconds,
            "maxRetryTimeoutInSec": self.retry_window_seconds,
            "jobQueueSize": self.queue_size,
            "deviceType": "cpu",
        }
        return yaml.safe_dump(settings, sort_keys=False).encode()
