"""Reports on an ablation: the plan before it, the table after it."""

from collections import Counter
from pathlib import Path

from tabulate import tabulate

from ..output import write_text
from ..tables import told_apart
from ..visualize.style import save
from .plot import draw_differences
from .progress import counted
from .records import Store, read_attempt
from .runner import claimed_by
from .spec import Row, Run, Spec
from .table import build_tables, to_csv, to_latex, to_markdown


def describe_plan(spec: Spec, store: Store) -> str:
    """The plan as a table for the terminal: each row with its overrides, iterations and the state of its runs."""
    states = {run: _state(spec, store, run) for run in spec.runs}
    pairs = {row: _pairs(row) for row in spec.rows}
    shown = told_apart(value for of_row in pairs.values() for _, value in of_row)
    shared = set.intersection(*map(set, pairs.values())) if len(spec.rows) > 1 else set()
    lines = []
    for row in spec.rows:
        count = Counter(state for run, state in states.items() if run.row is row)
        overrides = "\n".join(f"{key} {shown[value]}" for key, value in pairs[row] if (key, value) not in shared)
        of_row = ", ".join(f"{number} {state}" for state, number in count.items())
        config = f"{row.config.parent.name}/{row.config.stem}"
        lines.append((row.name, config, overrides, f"{row.iterations:,}", of_row))
    runs = spec.distinct_runs
    iterations = sum(run.row.iterations for run in runs)
    total = ", ".join(f"{number} {state}" for state, number in Counter(states[run] for run in runs).items())
    text = []
    if shared:
        common = [f"{key} {shown[value]}" for key, value in pairs[spec.rows[0]] if (key, value) in shared]
        text.append(f"Overrides of all rows: {', '.join(common)}")
    text += [
        tabulate(lines, ["row", "config", "overrides", "iterations", "runs"], disable_numparse=True),
        f"{counted(len(spec.rows), 'row')}, {counted(len(spec.seeds), 'seed')} ({', '.join(map(str, spec.seeds))}), "
        f"{counted(len(runs), 'run')} of {counted(iterations, 'iteration')} in all: {total}. In {store.output}",
    ]
    for i, row in enumerate(spec.rows):
        for other in spec.rows[:i]:
            if other.hash == row.hash:
                text.append(f"Rows {other.name!r} and {row.name!r} have the same settings and share their runs.")
    return "\n\n".join(text)


def _pairs(row: Row) -> list[tuple[str, str]]:
    """Keys and values of its overrides."""
    options = row.options
    return list(zip(options[::2], options[1::2], strict=True))


def _state(spec: Spec, store: Store, run: Run) -> str:
    folder = store.folder(run)
    if store.record(spec.name, run) is not None:
        return "finished"
    if claimed_by(folder) is not None:
        return "running"
    if read_attempt(folder).get("outcome") == "failed":
        return "failed before"
    return "begun" if (folder / "last_checkpoint").is_file() else "to do"


def write_tables(spec: Spec, store: Store, plot: bool = False) -> tuple[str, list[Path]]:
    """Collect the finished runs and write Markdown, CSV, LaTeX and, with ``plot``, a picture.

    Returns:
        The page of Markdown, and the paths of the files.
    """
    records, remarks = store.collect(spec)
    tables = build_tables(spec, records)
    page = to_markdown(spec, tables, records, remarks)
    paths = {suffix: store.output / f"{spec.name}.{suffix}" for suffix in ("md", "csv", "tex", "png")}
    write_text(paths["md"], page)
    write_text(paths["csv"], to_csv(tables))
    write_text(paths["tex"], to_latex(spec, tables))
    figure = draw_differences(tables) if plot else None
    if figure is None:
        del paths["png"]
    else:
        save(figure, str(paths["png"]))
    return page, list(paths.values())
