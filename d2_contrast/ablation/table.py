"""The table of an ablation: scores of each row, paired differences to its baseline, and what a run costs."""

import csv
import io
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..tables import markdown_table
from .progress import counted
from .records import Records
from .spec import Row, Spec
from .statistics import Difference, Summary, paired_difference, summarize

# What text is in LaTeX, outside of mathematics.
LATEX = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%#_{}$"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "Δ": r"$\Delta$",
    }
)


@dataclass(frozen=True)
class Line:
    """A row of the spec on one dataset.

    Attributes:
        row: name of the row.
        baseline: name of the row that it is compared with, or None.
        finished: number of finished runs.
        planned: number of runs.
        scores: {metric: {seed: percent}}.
        differences: {metric: difference to the baseline, or None}.
        seconds: for one iteration, median of the runs, or None.
        process_gb, gpu_gb: largest peak memory of the runs in 10^9 bytes, or None: resident memory of a process, memory
            of its GPU.
    """

    row: str
    baseline: str | None
    finished: int
    planned: int
    scores: Mapping[str, Mapping[int, float]]
    differences: Mapping[str, Difference | None]
    seconds: float | None
    process_gb: float | None
    gpu_gb: float | None

    def summary(self, metric: str) -> Summary | None:
        return summarize(list(self.scores[metric].values()))


@dataclass(frozen=True)
class Table:
    """All rows that are tested on a dataset."""

    dataset: str
    metrics: tuple[str, ...]
    seeds: tuple[int, ...]
    lines: tuple[Line, ...]


def build_tables(spec: Spec, records: Records) -> list[Table]:
    """Compute the tables of a spec, one for each dataset, from the records of its finished runs.

    A dataset that none of its finished runs has results on, as one without labels, has no table.
    """
    tested = {row.name: list(row.datasets) for row in spec.rows}
    for (row, _), record in records.items():
        tested[row] += [dataset for dataset in record["results"] if dataset not in tested[row]]
    datasets = list(dict.fromkeys(dataset for names in tested.values() for dataset in names))
    tables = [
        _table(spec, [row for row in spec.rows if dataset in tested[row.name]], records, dataset)
        for dataset in datasets
    ]
    finished = {row for row, _ in records}
    return [
        table
        for table in tables
        if any(line.finished for line in table.lines) or finished.isdisjoint(line.row for line in table.lines)
    ]


def _table(spec: Spec, rows: Sequence[Row], records: Records, dataset: str) -> Table:
    results = {
        row.name: {
            seed: records[row.name, seed]["results"][dataset]
            for seed in row.seeds
            if dataset in records.get((row.name, seed), {}).get("results", {})
        }
        for row in rows
    }
    if spec.metrics is not None:
        metrics = spec.metrics
    else:
        found = dict.fromkeys(m for runs in results.values() for result in runs.values() for m in result)
        metrics = ("mIoU", *(m for m in found if m.startswith("mIoU-")))
    scores = {
        name: {
            metric: {seed: result[metric] for seed, result in runs.items() if result.get(metric) is not None}
            for metric in metrics
        }
        for name, runs in results.items()
    }
    lines = []
    for row in rows:
        own = [records[row.name, seed] for seed in results[row.name]]
        compared = {} if row.baseline is None else scores.get(row.baseline, {})
        lines.append(
            Line(
                row.name,
                row.baseline,
                len(own),
                len(row.seeds),
                scores[row.name],
                {m: paired_difference(scores[row.name][m], compared.get(m, {})) for m in metrics},
                _reduce(statistics.median, [record["seconds_per_iteration"] for record in own]),
                _reduce(max, [record["peak_memory_mb"]["process"] for record in own], 1e-3),
                _reduce(max, [record["peak_memory_mb"]["gpu"] for record in own], 1e-3),
            )
        )
    return Table(dataset, tuple(metrics), spec.seeds, tuple(lines))


def _reduce(function, values: Sequence[float | None], factor: float = 1.0) -> float | None:
    known = [value for value in values if value is not None]
    return factor * function(known) if known else None


def to_markdown(spec: Spec, tables: Sequence[Table], records: Records, remarks: Sequence[str]) -> str:
    """The tables as a page of Markdown: with the scores of each seed, and what they were obtained with."""
    size = f"{counted(len(spec.rows), 'row')}, {counted(len(spec.seeds), 'seed')}"
    runs = counted(len(spec.distinct_runs), "run")
    finished = len({(record["hash"], record["seed"]) for record in records.values()})
    parts = [
        f"# {spec.name}",
        f"{size}: {finished} of {runs} finished.",
    ]
    for table in tables:
        header, cells = _cells(table)
        parts += [f"## {table.dataset}", markdown_table(cells, header)]
        metric = table.metrics[0]
        by_seed = [
            [line.row, *(f"{line.scores[metric][s]:.2f}" if s in line.scores[metric] else "-" for s in table.seeds)]
            for line in table.lines
        ]
        parts.append(markdown_table(by_seed, [f"{metric} by seed", *map(str, table.seeds)]))
    explanation = "Scores in percent: mean ± standard deviation over n seeds."
    if any(row.baseline for row in spec.rows):
        explanation += (
            " Δ: mean difference to the baseline with the same seeds, with its 95 % interval by the paired t test."
        )
    parts.append(explanation)
    if remarks := [*remarks, *_machines(records)]:
        parts.append("\n".join(f"- {remark}" for remark in remarks))
    return "\n\n".join(parts) + "\n"


def to_latex(spec: Spec, tables: Sequence[Table]) -> str:
    """The tables in LaTeX, for the package booktabs."""
    parts = [f"% {spec.name}; needs \\usepackage{{booktabs}}"]
    for table in tables:
        header, cells = _cells(table)
        rows = [" & ".join(map(_escape, row)) + r" \\" for row in (header, *cells)]
        columns = "l" + "r" * (len(header) - 1)
        parts.append(
            "\n".join(
                [
                    f"% {table.dataset}",
                    rf"\begin{{tabular}}{{{columns}}}",
                    r"\toprule",
                    rows[0],
                    r"\midrule",
                    *rows[1:],
                    r"\bottomrule",
                    r"\end{tabular}",
                ]
            )
        )
    return "\n\n".join(parts) + "\n"


def _escape(text: str) -> str:
    """Text for LaTeX; the mathematics in it, between dollars, stays. A dollar that closes nothing is text."""
    parts = [text] if text.count("$") % 2 else re.split(r"(\$[^$]+\$)", text)
    return "".join(part if i % 2 else part.translate(LATEX) for i, part in enumerate(parts))


def _cells(table: Table) -> tuple[list[str], list[list[str]]]:
    """Header and lines of a table as text."""
    baselines = {line.baseline for line in table.lines} - {None}
    memory = "GPU memory (GB)" if any(line.gpu_gb is not None for line in table.lines) else "memory (GB)"
    header = ["row", *(["baseline"] if len(baselines) > 1 else []), "n"]
    for metric in table.metrics:
        header += [metric, *([f"Δ {metric}"] if baselines else [])]
    header += ["s/iteration", memory]
    rows = []
    for line in table.lines:
        row = [line.row, *([line.baseline or "-"] if len(baselines) > 1 else [])]
        row.append(f"{line.finished}" if line.finished == line.planned else f"{line.finished} of {line.planned}")
        for metric in table.metrics:
            summary = line.summary(metric)
            row.append(_score(summary) + _own_number(summary, line))
            if baselines:
                is_baseline = line.row in baselines and line.baseline is None
                difference = line.differences[metric]
                row.append("baseline" if is_baseline else _difference(difference) + _own_number(difference, line))
        gigabytes = line.gpu_gb if memory.startswith("GPU") else line.process_gb
        row += [_number(line.seconds, 3), _number(gigabytes, 2)]
        rows.append(row)
    return header, rows


def _score(summary: Summary | None) -> str:
    if summary is None:
        return "-"
    return f"{summary.mean:.2f}" + ("" if summary.std is None else f" ± {summary.std:.2f}")


def _difference(difference: Difference | None) -> str:
    if difference is None:
        return "-"
    text = f"{difference.mean:+.2f}"
    if difference.low is not None:
        text += f" [{difference.low:+.2f}, {difference.high:+.2f}]"
    return text


def _own_number(figure: Summary | Difference | None, line: Line) -> str:
    """The n of a figure that is not of all finished runs, as where the baseline or a class lacks some seeds."""
    return "" if figure is None or figure.n == line.finished else f" (n = {figure.n})"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _machines(records: Records) -> list[str]:
    """What the runs were trained with, a line for each combination."""
    lines = []
    for record in records.values():
        machine = record.get("machine", {})
        gpu = f"{machine['gpu']}, " if machine.get("gpu") else ""
        text = f"{gpu}{machine.get('cpu')}, threads {machine.get('threads')}, torch {machine.get('torch')}"
        lines.append(f"Trained on {text}, commit {machine.get('commit')}.")
    return list(dict.fromkeys(lines))


CSV_HEADER = (
    "dataset", "row", "baseline", "metric", "n", "planned", "mean", "std",
    "pairs", "difference", "low", "high", "seconds_per_iteration", "process_gb", "gpu_gb", "by_seed",
)  # fmt: skip


def to_csv(tables: Sequence[Table]) -> str:
    """The tables for programs: a line for each dataset, row and metric; ``by_seed`` is "seed=score seed=score ..."."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for table in tables:
        for line in table.lines:
            for metric in table.metrics:
                summary, difference = line.summary(metric), line.differences[metric]
                writer.writerow(
                    [
                        table.dataset, line.row, line.baseline, metric,
                        summary.n if summary else 0, line.planned,
                        *((summary.mean, summary.std) if summary else (None, None)),
                        difference.n if difference else 0,
                        *((difference.mean, difference.low, difference.high) if difference else (None,) * 3),
                        line.seconds, line.process_gb, line.gpu_gb,
                        " ".join(f"{seed}={score}" for seed, score in line.scores[metric].items()),
                    ]
                )  # fmt: skip
    return text.getvalue()
