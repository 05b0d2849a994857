"""Tables in a README that are made, each between its marks: `<!-- NAME -->` and `<!-- end -->`."""


def updated(text: str, name: str, table: str) -> str:
    """The text with this table between its marks.

    Raises:
        ValueError: a mark is missing.
    """
    start, end = f"<!-- {name} -->\n", "\n<!-- end -->"
    before, found_start, rest = text.partition(start)
    _, found_end, after = rest.partition(end)
    if not (found_start and found_end):
        raise ValueError(f"no place for the table: expected <!-- {name} --> and, later, <!-- end -->")
    return f"{before}{start}{table}{end}{after}"
