"""Explanations: how much each part of an input moves the output away from what a baseline gives.

Integrated gradients (Sundararajan, Taly and Yan 2017, https://arxiv.org/abs/1703.01365), by Captum: gradients are
averaged along the straight way from the baseline to the input. By theory the attributions add up to the difference of
the two outputs; how far they miss it is measured for every answer, against the outputs of the program itself.
"""

import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import torch

from handlers.answer import ROWS
from handlers.base import Array, BaseHandler, Item
from handlers.baselines import Kind, Subject, kind_of
from handlers.differentiable import Differentiable
from handlers.errors import ArchiveUnusable, InvalidRequest, Words, listed

# Captum imports matplotlib, which writes a cache; it is nothing to keep.
os.environ.setdefault("MPLCONFIGDIR", tempfile.gettempdir())
from captum.attr import IntegratedGradients

HEADER = "explain-"
"""Plain bodies have no place for parameters: there they are headers, such as `explain-steps`."""
PARAMETERS = ("output", "target", "steps")
ITSELF = "similarity to itself"

FEWEST_STEPS, STEPS, MOST_STEPS = 8, 32, 1024
MAX_ROWS = 32
"""Rows of one request."""
BUDGET_SECONDS = 10.0
"""No row is begun and no step added beyond this time: a client waits for the answer."""
RELATIVE_TOLERANCE, ABSOLUTE_TOLERANCE = 0.01, 1e-4
"""Of the difference of the two outputs, and of the larger of the two."""
_ELEMENTS_AT_ONCE = 2**20
_MOST_AT_ONCE = 256


@dataclass(frozen=True)
class Question:
    """What a client wants explained, as far as it says."""

    output: str
    target: str | int | None
    steps: int

    @classmethod
    def read(cls, item: Item, outputs: Sequence[str]) -> "Question":
        """Raises InvalidRequest for an output or a number of steps that there is not; `target` needs the output."""
        given: Mapping[str, Any] = item.request.parameters
        if item.call.protocol == ROWS:
            headers = item.call.headers
            given = {name: headers[HEADER + name] for name in PARAMETERS if HEADER + name in headers}
        output = given.get("output", item.request.requested[0] if item.request.requested else outputs[0])
        if output not in outputs:
            raise InvalidRequest("output", "unknown output", found=output, allowed=listed(outputs))
        steps = _integer(given.get("steps", STEPS))
        if steps is None or not FEWEST_STEPS <= steps <= MOST_STEPS:
            raise InvalidRequest(
                "steps", "wrong value", found=given["steps"], allowed=f"{FEWEST_STEPS} to {MOST_STEPS}"
            )
        return cls(output, given.get("target"), steps)


@dataclass(frozen=True, eq=False)
class Target:
    """The one number that is explained: an output's values, flattened, times `weights`."""

    position: int
    """Of the output among the program's."""
    name: str | int | None
    """The class, or the index into the output; None for an output of one value."""
    weights: torch.Tensor

    def of(self, outputs: Sequence[torch.Tensor]) -> torch.Tensor:
        """[rows]."""
        return outputs[self.position].flatten(1) @ self.weights if self.name is not None else outputs[self.position]


class Explainer:
    """Explains the rows of one version, each by itself."""

    def __init__(self, handler: BaseHandler) -> None:
        """Raises ArchiveUnusable for a model that has no explanation."""
        self._outputs = handler.output_names
        self._model, self._version = handler.model, handler.version
        self._kind = kind_of(handler)
        self._program = Differentiable(handler.directory)

    def answer(self, item: Item, inputs: list[Array]) -> bytes:
        """The answer to one request. Raises InvalidRequest, ArchiveUnusable, and whatever the model raises."""
        if item.rows > MAX_ROWS:
            found = Words(f"{item.rows} rows")
            raise InvalidRequest("rows", "too many to explain at once", found=found, allowed=f"at most {MAX_ROWS}")
        question = Question.read(item, self._outputs)
        rows = list(self._rows(item, inputs, question))
        document: Any = rows[0] if item.single else rows
        if item.call.protocol != ROWS:
            document = {"model_name": self._model, "model_version": self._version, "explanations": rows}
            if item.request.id:
                document["id"] = item.request.id
        return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)

    def _rows(self, item: Item, inputs: list[Array], question: Question) -> Iterator[dict[str, Any]]:
        deadline = time.monotonic() + BUDGET_SECONDS
        for row, subject in enumerate(self._kind.subjects(item, inputs)):
            if row and time.monotonic() > deadline:
                found = Words(f"{row} of {item.rows} rows within {BUDGET_SECONDS:g} s")
                raise InvalidRequest("rows", "too many to explain at once", found=found, allowed="fewer rows or steps")
            yield self._explain(subject, question, deadline)

    def _explain(self, subject: Subject, question: Question, deadline: float) -> dict[str, Any]:
        here, there = [torch.from_numpy(a) for a in subject.inputs], [torch.from_numpy(a) for a in subject.baseline]
        outputs = self._outputs_of(here)
        target = _target(self._outputs.index(question.output), outputs, question.target, self._kind)
        value, baseline_value = float(target.of(outputs)), float(target.of(self._outputs_of(there)))
        tolerance = RELATIVE_TOLERANCE * abs(value - baseline_value)
        tolerance += ABSOLUTE_TOLERANCE * max(abs(value), abs(baseline_value))
        way = Way(self._program, here, there, target)
        for steps in _more_and_more(question.steps, deadline):
            attributions = way.attributions(steps)
            gap = sum(float(each.sum()) for each in attributions) - (value - baseline_value)
            if abs(gap) <= tolerance:
                break
        return {
            "output": question.output,
            **({} if target.name is None else {"target": target.name}),
            "value": np.float32(value),
            "baseline_value": np.float32(baseline_value),
            "attributions": subject.described(attributions),
            "baseline": subject.words,
            "gap": np.float32(gap),
            "tolerance": np.float32(tolerance),
            "within_tolerance": abs(gap) <= tolerance,
            "steps": steps,
            "steps_asked": question.steps,
        }

    @torch.no_grad()
    def _outputs_of(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        """What the program itself gives: exactly its own operations, on its own inputs."""
        return self._program(inputs, self._program.vectors(inputs))


class Way:
    """The straight way from a baseline to an input, both of one row, in numbers and in looked-up vectors."""

    def __init__(
        self, program: Differentiable, here: list[torch.Tensor], there: list[torch.Tensor], target: Target
    ) -> None:
        self._program, self._here, self._there, self._target = program, here, there, target
        self._moving = [at for at, array in enumerate(here) if array.is_floating_point() or array.dtype == torch.uint8]
        self._missing = {at: torch.isnan(here[at].float()) for at in self._moving}
        self._ends = (self._points(here), self._points(there))
        if not self._ends[0]:
            raise ArchiveUnusable("the model takes no numbers and looks nothing up, so that it has no gradients")

    def _points(self, inputs: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        # A missing number stays missing all along; what stands in its place here is not read.
        numbers = [inputs[at].float().masked_fill(self._missing[at], 0.0) for at in self._moving]
        return (*numbers, *self._program.vectors(inputs))

    def _value(self, *points: torch.Tensor) -> torch.Tensor:
        """The explained number at many points at once, [points]."""
        rows = len(points[0])
        inputs = [array.expand(rows, *array.shape[1:]) for array in self._here]
        for at, point in zip(self._moving, points, strict=False):
            filled = point.masked_fill(self._missing[at], torch.nan)
            inputs[at] = filled.to(self._here[at].dtype) if self._here[at].is_floating_point() else filled
        # Copies, because a program may write over what it has looked up.
        outputs = self._program(inputs, [vectors.clone() for vectors in points[len(self._moving) :]])
        # Autograd refuses an input that the output does not depend on; its gradient is this 0.
        return self._target.of(outputs) + sum(0 * point.flatten(1).sum(dim=1) for point in points)

    def attributions(self, steps: int) -> list[Array]:
        """For each of the program's inputs, of its shape."""
        elements = sum(point.numel() for point in self._ends[0])
        at_once = max(1, min(_MOST_AT_ONCE, _ELEMENTS_AT_ONCE // elements))
        found = IntegratedGradients(self._value).attribute(*self._ends, n_steps=steps, internal_batch_size=at_once)
        result = [np.zeros(array.shape, dtype=np.float64) for array in self._here]
        for at, attribution in zip(self._moving, found, strict=False):
            result[at] += attribution.numpy()
        self._share([each.sum(dim=-1) for each in found[len(self._moving) :]], result)
        return result

    def _share(self, looked_up: Sequence[torch.Tensor], result: list[Array]) -> None:
        """Give what the looked-up vectors have earned to the whole numbers that they were looked up by.

        Which belongs to which is found out by changing one number at a time and looking at what is asked for then.
        """
        changed = [
            (at, index)
            for at, (array, other) in enumerate(zip(self._here, self._there, strict=True))
            if at not in self._moving
            for index in zip(*np.nonzero((array != other).numpy()), strict=True)
        ]
        if not changed or not looked_up:
            return
        probes = [array.repeat(len(changed), *[1] * (array.dim() - 1)) for array in self._here]
        for probe, (at, index) in enumerate(changed):
            probes[at][(probe, *index[1:])] = self._there[at][index]
        for asked, now, earned in zip(
            self._program.indices(self._here), self._program.indices(probes), looked_up, strict=True
        ):
            owns = (asked != now).reshape(len(now), -1).double()
            shares = owns / owns.sum(dim=0).clamp(min=1) @ earned.flatten().double()
            for share, (at, index) in zip(shares.tolist(), changed, strict=True):
                result[at][index] += share


def _more_and_more(steps: int, deadline: float) -> Iterator[int]:
    """Twice as many steps each time, as long as the next time is likely to end before the deadline."""
    likely_end = 0.0
    while steps <= MOST_STEPS and likely_end < deadline:
        started = time.monotonic()
        yield steps
        now = time.monotonic()
        steps, likely_end = 2 * steps, now + 2 * (now - started)


def _target(position: int, outputs: Sequence[torch.Tensor], asked: str | int | None, kind: Kind) -> Target:
    output = outputs[position]
    if not output.is_floating_point():
        raise InvalidRequest("output", "whole numbers have no gradient", allowed="an output of floating numbers")
    values = output.flatten(1)[0] if output.dim() > 1 else output
    if output.dim() == 1:
        if asked is not None:
            raise InvalidRequest("target", "this output has one value only", found=asked, allowed="no target")
        return Target(position, None, values)
    if asked is None and kind.of_itself(position):
        return Target(position, ITSELF, values)
    name, index = _chosen(kind.classes(position), values, asked)
    weights = torch.zeros(len(values))
    weights[index] = 1.0
    return Target(position, name, weights)


def _chosen(classes: Sequence[str], values: torch.Tensor, asked: str | int | None) -> tuple[str | int, int]:
    """Name and place of the value to explain: without a wish the likeliest class, or the first value."""
    if classes:
        if asked is not None and str(asked) not in classes:
            raise InvalidRequest("target", "no such class", found=asked, allowed=listed(classes))
        index = int(values.argmax()) if asked is None else classes.index(str(asked))
        return classes[index], index
    index_asked = 0 if asked is None else _integer(asked)
    if index_asked is None or not 0 <= index_asked < len(values):
        raise InvalidRequest("target", "no such value", found=asked, allowed=f"0 to {len(values) - 1}")
    return index_asked, index_asked


def _integer(value: object) -> int | None:
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 10:
        return int(value)
    return value if type(value) is int else None
