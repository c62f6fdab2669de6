"""Print the tables of ``docs/scaling.md``: ``python -m benchmarks.scaling``.

``--gpu benchmarks/results/gpu.json`` takes the rates that ``python benchmarks/gpu.py`` measured in
place of those assumed. ``--write docs/scaling.md`` puts the tables where they stand there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.common import RESULTS
from benchmarks.scaling.memory import read_measured
from benchmarks.scaling.rates import Rates, read_rates
from benchmarks.scaling.tables import tables

END = "<!-- end -->"


def fill(document: str, made: dict[str, str]) -> str:
    """Put tables between ``<!-- NAME -->`` and `END`.

    Raises:
        ValueError: the document has no place for one.
    """
    for name, table in made.items():
        begin = f"<!-- {name} -->\n"
        if document.count(begin) != 1:
            raise ValueError(f"the document has {document.count(begin)} places {begin.strip()}")
        before, after = document.split(begin)
        _, end, rest = after.partition(END)
        if not end:
            raise ValueError(f"the document has no {END} behind {begin.strip()}")
        document = f"{before}{begin}\n{table}\n\n{end}{rest}"
    return document


def main(args: list[str] | None = None) -> None:
    """Parse the command line and print.

    Args:
        args: of the command line; None takes the process's own.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--gpu", type=Path, help="gpu.json, whose measured rates are taken")
    parser.add_argument("--write", type=Path, help="document to put the tables in")
    options = parser.parse_args(args)
    for path in (options.gpu, options.write):
        if path is not None and not path.is_file():
            sys.exit(f"{path} is no file")
    rates = read_rates(options.gpu) if options.gpu else Rates()
    made = tables(read_measured(RESULTS / "update.json"), rates)
    for name, table in made.items():
        print(f"{name}\n\n{table}\n")
    if options.write:
        options.write.write_text(fill(options.write.read_text(), made))


if __name__ == "__main__":
    main()
