"""`graphopt cascade`: deployed models one behind the other, each for the samples that the one before is not sure of."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphopt.cli.reporting import reporting
from graphopt.utils.errors import InputError, first_line

if TYPE_CHECKING:
    import numpy as np

LABELS = ("labels", "y")  # what classes are called in a file of samples
SEED = 0  # of the two halves of the samples


def cascade(
    stages: Annotated[list[Path], typer.Argument(help="Folders of deployed models, the fastest first.")],
    samples: Annotated[
        Path, typer.Option(help="An .npz file: inputs by name, or one array, and classes as 'labels' or 'y'.")
    ],
    out: Annotated[Path, typer.Option(help="The folder to write.")],
    max_drop: Annotated[
        float | None, typer.Option(min=0, help="Percentage points of accuracy that may be lost beside the last model.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="Expected milliseconds of a sample, in place of --max-drop.")
    ] = None,
    confidence: Annotated[str, typer.Option(help="softmax, entropy, margin, agreement or learned.")] = "softmax",
    report: Annotated[Path | None, typer.Option(help="File for what was measured: .html, .json or .txt.")] = None,
) -> None:
    """Put deployed models one behind the other: a sample goes on until one is sure.

    One half of the samples chooses thresholds, on the other half the result is measured.
    """
    with reporting():
        import graphopt
        from graphopt.utils import files, printed

        files.check_replaceable(out)
        if report is not None:
            printed.check_place(report)
        inputs, labels = _read(samples)
        fitted, judged = _halves(inputs, labels)
        made = graphopt.Cascade([graphopt.load(path) for path in stages], confidence=confidence)
        made.fit(*fitted, max_drop=max_drop, budget=budget)
        found = made.evaluate(*judged)
        found.print()
        if report is not None:
            found.save(report)
        print(f"written to {made.save(out)}")


def _read(path: Path) -> tuple[dict[str, Any] | Any, Any]:
    """Inputs, one array or several by name, and classes; None where there are none."""
    import numpy as np

    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read samples from {path}: {first_line(error)}; give an .npz file") from error
    labels = next((found.pop(name) for name in LABELS if name in found), None)
    if not found:
        raise InputError(f"{path} holds no inputs beside the classes")
    return found if len(found) > 1 else next(iter(found.values())), labels


def _halves(inputs: Any, labels: Any) -> list[tuple[Any, Any]]:
    """Samples in an order of chance, in two parts of the same size."""
    import numpy as np

    count = len(next(iter(inputs.values())) if isinstance(inputs, dict) else inputs)
    if count < 2:
        raise InputError(
            f"{count} sample: give two at least, for thresholds are chosen on one half and judged on the other"
        )
    order = np.random.default_rng(SEED).permutation(count)

    def part(rows: np.ndarray[Any, Any]) -> tuple[Any, Any]:
        chosen = {name: a[rows] for name, a in inputs.items()} if isinstance(inputs, dict) else inputs[rows]
        return chosen, None if labels is None else labels[rows]

    return [part(rows) for rows in np.array_split(order, 2)]
