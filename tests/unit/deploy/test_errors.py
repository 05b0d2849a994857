"""The tree of errors."""

from collections.abc import Iterator

from deploy import errors
from deploy.errors import ShipwayError


def drawn(root: type[ShipwayError], indent: str = "") -> Iterator[str]:
    children = [child for child in root.__subclasses__() if child.__module__ == errors.__name__]
    for child in children:
        last = child is children[-1]
        yield f"{indent}{'└── ' if last else '├── '}{child.__name__}"
        yield from drawn(child, indent + ("    " if last else "│   "))


def test_tree_at_the_top_of_the_file_is_the_tree() -> None:
    assert errors.__doc__ is not None
    tree = [line for line in errors.__doc__.splitlines() if "── " in line]
    names = [line[: line.index("── ") + 3] + line.split("── ")[1].split()[0] for line in tree]
    assert names == [f"    {line}" for line in drawn(ShipwayError)]
