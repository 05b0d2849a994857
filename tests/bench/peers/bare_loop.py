"""The model alone: batches one after the other, with no server, no decoding and nobody who waits.

Reads a number of seconds from each line of its input, loops for so long, and writes the rows and seconds it took as
one line of JSON.
"""

import json
import sys
import time
from pathlib import Path

import torch
from task import Task


def main() -> None:
    package = Path.cwd()
    task = Task(package)
    bodies = [path.read_bytes() for path in sorted((package / "bodies").iterdir())]
    if task.tokenizer is not None:
        bodies.sort(key=lambda body: len(task.collate([body])[0][0]))  # so that a batch holds little padding
    size = task.settings["batch_size"]
    batches = [task.collate(bodies[start : start + size]) for start in range(0, len(bodies) - size + 1, size)]
    with torch.inference_mode():
        for batch in batches:
            task.network(*batch)
        _say("ready")
        for line in sys.stdin:
            rows, start = 0, time.perf_counter()
            # Whole passes: with texts, some batches are longer than others.
            while time.perf_counter() < start + float(line):
                for batch in batches:
                    task.network(*batch)
                    rows += len(batch[0])
            _say(json.dumps({"rows": rows, "seconds": time.perf_counter() - start}))


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
