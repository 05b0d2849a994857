"""The fastest way to run a version on this hardware: every candidate is made, compared and measured on the golden set.

Nodes must get the same bytes whoever packages, so the choice and the compiled program are kept in the registry, by
version, hardware and what was asked for, and used again.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import orjson
import torch
import yaml
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from handlers.base import Array, BaseHandler
from handlers.errors import ArchiveUnusable
from handlers.hardware import cpu_model, worker_threads
from handlers.program import TORCH_VERSION
from handlers.runtime import device_target
from handlers.runtime_plan import COMPILED, RUNTIME, Dtype, Runtime, RuntimePlan
from model_store.agreement import Agreement, Outputs, Tolerance, compare, tolerance_of
from model_store.compiling import Call, Compiler
from model_store.describing import opened
from model_store.errors import NotCompiled, NotServable
from model_store.golden import ABSOLUTE_TOLERANCE, GOLDEN, inputs_of, request
from model_store.registry import DESCRIPTION, Registry, ResolvedVersion
from model_store.worker_plan import CONFIG, WorkerPlan

CHOICE = "choice.json"

Members = Mapping[str, bytes]

_MIN_GAIN = 1.05
"""A candidate that gains less than this is not worth being another program than the exported one."""
_ROUNDS = 7
_SAMPLE_SECONDS = 0.02
"""A shorter call is repeated: the clock and the system's own work are too coarse for it."""
_ALONE = 8
"""Rows that are also asked one at a time."""


@dataclass(frozen=True)
class Candidate:
    """One way to run a program."""

    runtime: Runtime
    dtype: Dtype

    def __str__(self) -> str:
        return f"{self.runtime} {self.dtype}"


PLAIN = Candidate("exported", "float32")
CANDIDATES = (
    PLAIN,
    Candidate("exported", "bfloat16"),
    Candidate("aot_inductor", "float32"),
    Candidate("aot_inductor", "bfloat16"),
    Candidate("aot_inductor", "int8"),
)


@dataclass
class Result:
    """What was found of a candidate."""

    candidate: Candidate
    unavailable: str = ""
    """Why it could not be measured."""
    agreement: Agreement | None = None
    within: bool = False
    one_ms: float = float("nan")
    """For one row by itself."""
    row_ms: float = float("nan")
    """For each row of a batch."""
    size_bytes: int = 0
    """Of the compiled program."""

    @property
    def cost_ms(self) -> float:
        """The geometric mean of both: what helps full batches and slows a lone request down as much is no gain."""
        return math.sqrt(self.one_ms * self.row_ms)


@dataclass(frozen=True, eq=False)
class Optimized:
    """The members that the choice changes, and what it was made from."""

    members: dict[str, bytes]
    choice: dict[str, Any]


@dataclass(frozen=True)
class _Bench:
    """What all candidates are measured with."""

    members: Members
    tolerance: Tolerance
    threads: int
    batch: int
    calls: list[Call] = field(default_factory=list)
    """The program's inputs as the handler gives them for the golden set."""


def optimized(
    registry: Registry,
    version: ResolvedVersion,
    members: Members,
    plan: WorkerPlan,
    *,
    max_difference: float | None = None,
    console: Console | None = None,
) -> dict[str, bytes]:
    """`members` with the fastest way to run the version that stays within the tolerance on its golden set.

    The table of what was measured goes to the console and to the registry, where the choice is kept: the next
    packaging on such hardware takes it from there. Raises NotCompiled for a version that runs a network of the user's.
    """
    console = console or Console(quiet=True)
    if RuntimePlan(**json.loads(members[RUNTIME])).runtime == "eager":
        raise NotCompiled(
            "--optimize is for exported programs; this handler brings its own network, which is run as is"
        )
    bench = _bench(members, plan, max_difference)
    folder = f"{DESCRIPTION}/optimized-{_key(bench)}"
    kept = registry.read_files(version.model_id, folder)
    if CHOICE in kept:
        console.print(f"Measured before: {version.uri} on this hardware; the choice is kept in {folder} of its model")
        found = _kept(bench, kept)
    else:
        found = _measured(bench, console)
        compiled = {name: content for name, content in found.members.items() if name == COMPILED}
        if compiled:
            registry.log_files(version.model_id, compiled, folder)
        # Last: where it is, all of the choice is.
        registry.log_files(version.model_id, {CHOICE: _json(found.choice)}, folder)
        registry.tag(version, {f"shipway.optimized.{_isa(found.choice)}": _headline(found.choice)})
    console.print(table(found.choice))
    return {**members, **found.members}


def _isa(choice: Mapping[str, Any]) -> str:
    target: Mapping[str, str] = choice["hardware"]["target"]
    return target.get("isa") or target.get("arch", "")


def _headline(choice: Mapping[str, Any]) -> str:
    return f"{choice['runtime']} {choice['dtype']}, {choice['speedup']:.2f} times {PLAIN}"


def _bench(members: Members, plan: WorkerPlan, max_difference: float | None) -> _Bench:
    workers = int(yaml.safe_load(members[CONFIG])["minWorkers"])
    threads = RuntimePlan(**json.loads(members[RUNTIME])).threads or worker_threads(workers)
    return _Bench(members, tolerance_of(members["schema.json"], max_difference), threads, plan.batch_size)


def _hardware(bench: _Bench) -> dict[str, Any]:
    return {"cpu": cpu_model(), "threads": bench.threads, "target": device_target("cpu")}


def _key(bench: _Bench) -> str:
    """Names a choice: the same for the same hardware, libraries, golden set and wishes."""
    facts = {
        "hardware": _hardware(bench),
        "torch": TORCH_VERSION,
        "batch": bench.batch,
        "tolerance": bench.tolerance.words(),
        "members": {
            name: hashlib.sha256(content).hexdigest()
            for name, content in bench.members.items()
            if name in ("program.json", "weights.safetensors", GOLDEN, "handler.py", RUNTIME)
        },
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def _kept(bench: _Bench, kept: Mapping[str, bytes]) -> Optimized:
    choice = orjson.loads(kept[CHOICE])
    candidate = Candidate(choice["runtime"], choice["dtype"])
    return Optimized(_members(bench, candidate, kept.get(COMPILED, b""), choice["difference"]), choice)


def _members(bench: _Bench, candidate: Candidate, compiled: bytes, difference: float) -> dict[str, bytes]:
    """The members that a choice changes."""
    plan = RuntimePlan(**json.loads(bench.members[RUNTIME]))
    target = device_target("cpu") if candidate.runtime == "aot_inductor" else None
    chosen = replace(plan, runtime=candidate.runtime, dtype=candidate.dtype, target=target)
    changed = {RUNTIME: chosen.to_json(), GOLDEN: _widened(bench.members[GOLDEN], difference)}
    return changed | ({COMPILED: compiled} if compiled else {})


def _widened(golden: bytes, difference: float) -> bytes:
    """A golden set whose outputs are still those of the exported program in float32: it is what the version is.

    Twice the difference that the choice had here is allowed: its rounding differs between batches and processors.
    """
    document = orjson.loads(golden)
    document["atol"] = max(document["atol"], ABSOLUTE_TOLERANCE, 2 * difference)
    return orjson.dumps(document)


def _measured(bench: _Bench, console: Console) -> Optimized:
    bar = Progress(
        SpinnerColumn(), TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )
    with bar, ExitStack() as stack:
        task = bar.add_task("Optimizing", total=len(CANDIDATES) + _ROUNDS)

        def show(words: str, advance: int = 0) -> None:
            bar.update(task, description=words, advance=advance)

        results, handlers, compiled = _made(bench, stack, show)
        show("Measuring")
        _time(bench, handlers, results, lambda: show("Measuring", 1))
    best = choose(results)
    members = _members(bench, best.candidate, compiled.get(best.candidate, b""), _difference(best))
    return Optimized(members, _choice(bench, results, best))


def _made(
    bench: _Bench, stack: ExitStack, show: Callable[[str, int], None]
) -> tuple[list[Result], dict[Candidate, BaseHandler], dict[Candidate, bytes]]:
    """Every candidate that can be made here, opened as a worker opens it, and compared with the plain one."""
    results: list[Result] = []
    handlers: dict[Candidate, BaseHandler] = {}
    compiled: dict[Candidate, bytes] = {}
    expected: list[Outputs] = []
    compiler = Compiler(bench.threads)
    for candidate in CANDIDATES:
        show(f"Compiling {candidate}" if candidate.runtime == "aot_inductor" else f"Loading {candidate}", 0)
        result = Result(candidate)
        results.append(result)
        try:
            if candidate.runtime == "aot_inductor":
                compiled[candidate] = compiler(handlers[PLAIN].directory, candidate.dtype, bench.calls)
                result.size_bytes = len(compiled[candidate])
            changed = _members(bench, candidate, compiled.get(candidate, b""), 0.0)
            handler = stack.enter_context(opened({**bench.members, **changed}))
            torch.set_num_threads(bench.threads)
            if candidate == PLAIN:
                _record(handler, bench)
            outputs = _answers(handler, bench)
        except (NotCompiled, NotServable, ArchiveUnusable) as error:
            result.unavailable = str(error)
        except RuntimeError as error:  # a program that was compiled, and fails on its golden set
            result.unavailable = f"it fails on the golden set: {error}"
        else:
            expected = expected or outputs
            result.agreement = _agreement(outputs, expected, bench.tolerance)
            result.within = result.agreement.within(bench.tolerance)
            handlers[candidate] = handler
        show(str(candidate), 1)
    return results, handlers, compiled


def _record(handler: BaseHandler, bench: _Bench) -> None:
    """Keep what the handler gives the program for the golden set: what its compilation is an example of."""
    program = handler.program

    def recorded(*inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        bench.calls.append(inputs)
        return program(*inputs)

    handler.program = recorded
    handler.run(_golden_inputs(handler, bench))
    handler.program = program


def _golden_inputs(handler: BaseHandler, bench: _Bench) -> list[Array]:
    return handler.prepare(request(inputs_of(bench.members[GOLDEN])))


def _answers(handler: BaseHandler, bench: _Bench) -> list[Outputs]:
    """Outputs for the whole golden set at once, and for some of its rows one at a time."""
    inputs = _golden_inputs(handler, bench)
    together = _numbers(handler.run(inputs))
    alone = [_numbers(handler.run(one)) for one in _rows(inputs)]
    return [together, [np.concatenate(parts) for parts in zip(*alone, strict=True)]]


def _agreement(found: Sequence[Outputs], expected: Sequence[Outputs], tolerance: Tolerance) -> Agreement:
    """The worse of the whole golden set and of its rows by themselves."""
    both = [compare(one, other, tolerance) for one, other in zip(found, expected, strict=True)]
    return Agreement(
        difference=max(one.difference for one in both),
        excess=max(one.excess for one in both),
        top1=min(one.top1 for one in both),
        cosine=min(one.cosine for one in both),
    )


def _numbers(outputs: Sequence[Array]) -> Outputs:
    return [output.reshape(len(output), -1).astype(np.float64) for output in outputs]


def _rows(inputs: Sequence[Array]) -> Iterator[list[Array]]:
    for row in range(min(_ALONE, len(inputs[0]))):
        yield [array[row : row + 1] for array in inputs]


def _time(
    bench: _Bench, handlers: Mapping[Candidate, BaseHandler], results: Sequence[Result], done: Callable[[], None]
) -> None:
    """The best of rounds in which every candidate has its turn: what slows a round down is not the candidate."""
    batches: dict[Candidate, list[float]] = {candidate: [] for candidate in handlers}
    singles: dict[Candidate, list[float]] = {candidate: [] for candidate in handlers}
    for _ in range(_ROUNDS):
        for candidate, handler in handlers.items():
            inputs = _golden_inputs(handler, bench)
            rows = min(bench.batch, handler.max_rows)
            chosen = np.arange(rows) % len(inputs[0])
            batch = [array[chosen] for array in inputs]
            batches[candidate].append(_seconds(lambda: handler.run(batch)) / rows)  # noqa: B023 - called at once
            alone = list(_rows(inputs))
            singles[candidate].append(_seconds(lambda: [handler.run(one) for one in alone]) / len(alone))  # noqa: B023
        done()
    for result in results:
        if result.candidate in handlers:
            result.row_ms = 1e3 * min(batches[result.candidate])
            result.one_ms = 1e3 * min(singles[result.candidate])


def _seconds(work: Callable[[], object]) -> float:
    """Of one call of `work`, repeated until the clock can tell."""
    started, calls = time.perf_counter(), 0
    while True:
        work()
        calls += 1
        elapsed = time.perf_counter() - started
        if elapsed >= _SAMPLE_SECONDS:
            return elapsed / calls


def choose(results: Sequence[Result]) -> Result:
    """The fastest of those within the tolerance; the plain one where nothing is clearly faster."""
    plain = next(result for result in results if result.candidate == PLAIN)
    right = [result for result in results if result.within and result.cost_ms * _MIN_GAIN <= plain.cost_ms]
    return min(right, key=lambda result: result.cost_ms, default=plain)


def _difference(result: Result) -> float:
    return result.agreement.difference if result.agreement else 0.0


def _choice(bench: _Bench, results: Sequence[Result], best: Result) -> dict[str, Any]:
    """The content of `choice.json`: what was chosen, and everything that was measured."""
    plain = results[0]
    return {
        "runtime": best.candidate.runtime,
        "dtype": best.candidate.dtype,
        "difference": _difference(best),
        "speedup": plain.cost_ms / best.cost_ms,
        "tolerance": bench.tolerance.words(),
        "hardware": _hardware(bench),
        "torch": TORCH_VERSION,
        "batch": bench.batch,
        "golden_rows": sum(len(call[0]) for call in bench.calls),
        "candidates": [
            {
                **vars(result.candidate),
                "unavailable": result.unavailable,
                "one_row_ms": result.one_ms,
                "batch_row_ms": result.row_ms,
                "speedup": plain.cost_ms / result.cost_ms,
                "within": result.within,
                "size_bytes": result.size_bytes,
                **(result.agreement.as_dict() if result.agreement else {}),
            }
            for result in results
        ],
    }


def _json(choice: Mapping[str, Any]) -> bytes:
    return orjson.dumps(choice, option=orjson.OPT_INDENT_2)


def table(choice: Mapping[str, Any]) -> Table:
    """What was measured, for the console."""
    hardware = choice["hardware"]
    shown = Table(
        title=f"{hardware['cpu']}, threads: {hardware['threads']}. Allowed: {choice['tolerance']}",
        caption=f"Chosen: {_headline(choice)}",
    )
    batch = f"ms/row of {choice['batch']}"
    for name in ("candidate", "ms/row alone", batch, "speed-up", "difference", "top-1", "cosine", "allowed", "MB"):
        shown.add_column(name, justify="left" if name == "candidate" else "right")
    for one in choice["candidates"]:
        name = f"{one['runtime']} {one['dtype']}"
        if one["unavailable"]:
            shown.add_row(name, f"not available: {one['unavailable']}")
            continue
        shown.add_row(
            name,
            f"{one['one_row_ms']:.3f}",
            f"{one['batch_row_ms']:.3f}",
            f"{one['speedup']:.2f}",
            "infinite" if one["difference"] is None else f"{one['difference']:.2g}",
            f"{one['top1']:.1%}",
            f"{one['cosine']:.5f}",
            "yes" if one["within"] else "no",
            f"{one['size_bytes'] / 1e6:.1f}" if one["size_bytes"] else "",
        )
    return shown
