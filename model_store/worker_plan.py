"""How many workers run a version, and how: the content of `model-config.yaml`."""

from dataclasses import dataclass

CONFIG = "model-config.yaml"


@dataclass(frozen=True)
class WorkerPlan:
    """How TorchServe runs a version.

    One worker is the default because it is the fastest on two cores, by a quarter: two of them fill half the batch
    each and take the cores from each other. A second one answers while the first is started again after a crash.
    """

    workers: int = 1
    batch_size: int = 64
    """Requests that one worker answers at once, at most."""
    batch_delay_ms: int = 1
    """How long a batch waits for more requests; a lone request waits it out."""
    queue_size: int = 1000
    """Requests that wait; beyond that clients get 503."""
    response_timeout_seconds: int = 60
    startup_timeout_seconds: int = 120
    retry_window_seconds: int = 300
    """How long a worker that dies is started again."""
    threads: int | None = None
    """Threads of each worker's operations. None: one for a small program, else the CPU quota divided by the workers."""

    def to_yaml(self) -> bytes:
        """`model-config.yaml`, complete: TorchServe mixes a partial one with its own files."""
        import yaml  # not in a base install, which shows these defaults in its help

        settings = {
            "minWorkers": self.workers,
            "maxWorkers": self.workers,
            "batchSize": self.batch_size,
            "maxBatchDelay": self.batch_delay_ms,
            "responseTimeout": self.response_timeout_seconds,
            "startupTimeout": self.startup_timeout_seconds,
            "maxRetryTimeoutInSec": self.retry_window_seconds,
            "jobQueueSize": self.queue_size,
            "deviceType": "cpu",
        }
        return yaml.safe_dump(settings, sort_keys=False).encode()
