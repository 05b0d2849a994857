"""What a candidate's schema changes for clients of the champion: what would break them, and what would not.

A change breaks clients if a request that was answered is refused, or if an answer has another form. Whether the answers
are as good is another question, which the gate and `shipway plan` ask.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.rollout.record import Release
from handlers.errors import ArchiveUnusable, listed
from handlers.kinds import FREE, ImageSchema, Schema, SequenceSchema, TextSchema, read_schema
from handlers.schema import CategoryColumn, NumberColumn, TableSchema
from model_store.archive import archive_name, file_digest, read_member
from model_store.errors import ArchiveMissing, ArchiveRefused

Entry = Mapping[str, Any]
"""A tensor in the words of the Open Inference Protocol: name, datatype, shape."""


@dataclass(frozen=True)
class Changes:
    """Each in words; both empty where requests and answers have the same form."""

    breaking: tuple[str, ...] = ()
    compatible: tuple[str, ...] = ()

    def __add__(self, other: "Changes") -> "Changes":
        return Changes(self.breaking + other.breaking, self.compatible + other.compatible)


def breaking_changes(archives_dir: Path, model: str, champion: Release, candidate: Release) -> tuple[str, ...]:
    """What would break the champion's clients, in words. Raises ArchiveMissing, ArchiveRefused."""
    old, new = (read_release_schema(archives_dir, model, release) for release in (champion, candidate))
    return compare_schemas(old, new).breaking


def read_release_schema(archives_dir: Path, model: str, release: Release) -> Schema:
    """The `schema.json` in the archive of a release. Raises ArchiveMissing, ArchiveRefused."""
    archive = archives_dir / archive_name(model, release.version, release.digest)
    if not archive.is_file():
        raise ArchiveMissing(archive)
    if (found := file_digest(archive)) != release.digest:
        raise ArchiveRefused(archive, "its content was altered or is incomplete", release.digest, found)
    try:
        return read_schema(read_member(archive, "schema.json"))
    except (ArchiveUnusable, KeyError) as error:
        raise ArchiveRefused(archive, "its schema cannot be read", "a schema.json", str(error)) from error


def compare_schemas(old: Schema, new: Schema) -> Changes:
    """From `old` to `new`."""
    old_inputs, old_outputs = old.metadata()
    new_inputs, new_outputs = new.metadata()
    found = _kind(old, new) + _inputs(old_inputs, new_inputs) + _outputs(old_outputs, new_outputs)
    if isinstance(old, TableSchema) and isinstance(new, TableSchema):
        found += _columns(old, new)
    if isinstance(old, SequenceSchema) and isinstance(new, SequenceSchema):
        found += _sequences(old, new)
    if isinstance(old, TextSchema) and isinstance(new, TextSchema):
        found += _cut(old.max_tokens, new.max_tokens)
    return found + _classes(old, new)


def _kind(old: Schema, new: Schema) -> Changes:
    kinds = [_kind_of(schema) for schema in (old, new)]
    if kinds[0] == kinds[1]:
        return Changes()
    return Changes((f"the kind of model changes from {kinds[0]} to {kinds[1]}, which reads requests otherwise",))


def _kind_of(schema: Schema) -> str:
    return "table" if isinstance(schema, TableSchema) else schema.kind


def _inputs(old: Sequence[Entry], new: Sequence[Entry]) -> Changes:
    """Every input must be given, and no other may be: so one more breaks clients as one less does."""
    found = Changes(
        (
            *(f"input {name} is removed: requests with it are refused" for name in _only(old, new)),
            *(f"input {name} is added: requests without it are refused" for name in _only(new, old)),
        )
    )
    return found + _tensors("input", old, new, _accepts)


def _outputs(old: Sequence[Entry], new: Sequence[Entry]) -> Changes:
    added = tuple(f"output {name} is added" for name in _only(new, old))
    found = Changes(tuple(f"output {name} is removed" for name in _only(old, new)), added)
    names = [entry["name"] for entry in old]
    kept = [entry["name"] for entry in new if entry["name"] in names]
    before = [name for name in names if name in kept]
    if kept != before:
        found += Changes((f"the order of the outputs changes from {listed(before)} to {listed(kept)}",))
    elif added and [entry["name"] for entry in new][: len(names)] != names:
        found += Changes((f"a new output stands before {listed(names)}: clients that count outputs get another",))
    return found + _tensors("output", old, new, _is_same)


def _only(entries: Sequence[Entry], others: Sequence[Entry]) -> list[str]:
    """Names that the others have not."""
    known = {entry["name"] for entry in others}
    return [entry["name"] for entry in entries if entry["name"] not in known]


Accepts = Callable[[Sequence[int], Sequence[int]], bool]


def _tensors(what: str, old: Sequence[Entry], new: Sequence[Entry], accepts: Accepts) -> Changes:
    """Datatypes and shapes of the tensors that both have."""
    before = {entry["name"]: entry for entry in old}
    found = Changes()
    for entry in new:
        name = entry["name"]
        if name not in before:
            continue
        one, other = before[name], entry
        if one["datatype"] != other["datatype"]:
            found += Changes((f"{what} {name} changes its datatype from {one['datatype']} to {other['datatype']}",))
        if one["shape"] != other["shape"]:
            words = f"{what} {name} changes its shape from {list(one['shape'])} to {list(other['shape'])}"
            fits = accepts(one["shape"], other["shape"])
            found += Changes(compatible=(words,)) if fits else Changes((words,))
    return found


def _accepts(old: Sequence[int], new: Sequence[int]) -> bool:
    """Whether an input of the new shape takes all of the old one's."""
    return len(old) == len(new) and all(size in (FREE, before) for before, size in zip(old, new, strict=True))


def _is_same(old: Sequence[int], new: Sequence[int]) -> bool:
    return list(old) == list(new)


def _columns(old: TableSchema, new: TableSchema) -> Changes:
    numbers = {column.name: column for column in new.numbers}
    categories = {column.name: column for column in new.categories}
    found = Changes()
    for number in old.numbers:
        if number.name in numbers:
            found += _number(number, numbers[number.name])
    for category in old.categories:
        if category.name in categories:
            found += _category(category, categories[category.name])
    return found


def _number(old: NumberColumn, new: NumberColumn) -> Changes:
    if old.nullable and not new.nullable:
        return Changes((f"column {old.name} may no longer be missing: requests with null are refused",))
    if new.nullable and not old.nullable:
        return Changes(compatible=(f"column {old.name} may be missing now",))
    return Changes()


def _category(old: CategoryColumn, new: CategoryColumn) -> Changes:
    """A category that the new version does not know is answered where unknown ones are trained, else refused."""
    gone = [name for name in old.vocabulary if name not in new.codes]
    more = [name for name in new.vocabulary if name not in old.codes]
    found = Changes(compatible=(f"column {old.name} knows more categories: {listed(more)}",) if more else ())
    if gone and new.other:
        found += Changes(compatible=(f"column {old.name} takes as unknown from now on: {listed(gone)}",))
    elif gone:
        found += Changes((f"column {old.name} refuses from now on: {listed(gone)}",))
    if old.other and not new.other:
        found += Changes((f"column {old.name} takes no unknown categories any more",))
    return found


def _sequences(old: SequenceSchema, new: SequenceSchema) -> Changes:
    found = Changes()
    if old.features != new.features:
        words = f"the features of a step change from {listed(old.features)} to {listed(new.features)}"
        found += Changes((words,))
    if (old.min_steps, old.max_steps) != (new.min_steps, new.max_steps):
        words = (
            f"sequences may have {new.min_steps} to {new.max_steps} steps; they may have had "
            f"{old.min_steps} to {old.max_steps}"
        )
        wider = new.min_steps <= old.min_steps and old.max_steps <= new.max_steps
        found += Changes(compatible=(words,)) if wider else Changes((words,))
    return found


def _cut(old: int, new: int) -> Changes:
    return Changes(compatible=(f"texts are cut at {new} tokens; they were cut at {old}",)) if old != new else Changes()


def _classes(old: Schema, new: Schema) -> Changes:
    """Clients know classes by their place as well as by name."""
    before, after = _classes_of(old), _classes_of(new)
    found = Changes()
    for output in before.keys() & after.keys():
        if before[output] != after[output]:
            was, now = (listed(classes) or "none" for classes in (before[output], after[output]))
            found += Changes((f"the classes of output {output} change from {was} to {now}",))
    return found


def _classes_of(schema: Schema) -> dict[str, tuple[str, ...]]:
    """By the output whose values are their probabilities."""
    if isinstance(schema, TableSchema):
        return {output.name: output.classes for output in schema.outputs}
    classes = (schema.classes or ()) if isinstance(schema, ImageSchema | TextSchema) else ()
    return {schema.output_names[0]: classes}
