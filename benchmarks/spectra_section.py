"""The section on spectra of docs/benchmarks.md, and its figure, from the rows that benchmarks/spectra.py measured."""

from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from document import DOCUMENT, markdown, write_section

FIGURE = "benchmarks/spectra.svg"


def write_document(table: pd.DataFrame) -> None:
    """Writes the section, and the figure beside the document."""
    models = table[table["row"] == "model"]
    power = exponent(models)
    draw(models)
    write_section(
        "spectra",
        f"""
## Spectra

{table["machine"].iloc[0]} Rank {table["rank"].iloc[0]}; times are CPU seconds of one thread, the smallest of
several turns.

{markdown(targets(table))}

What is missed, and why. LAPACK: half of our time are products in bfloat16, 12 rows at a time at 70 % of the speed that
large products reach; values that fall as slowly as these (s8 / s9 = 1.04) take six or seven passes over the matrix, and
on the tall matrices LAPACK, which reduces them by QR first, is three times as fast as on the wide ones. Reading: an
update of which the cast to bfloat16 leaves an eighth is near to noise (its leading values are all but tied), which
takes 15 to 25 passes instead of seven, and on matrices of 576 or 960 rows a pass costs its overhead, not its
arithmetic. The previous step's triplets save passes, but neither the rounding to bfloat16 before them nor the
verification in float32 after them.

Tried on updates and noise of 576 to 4864 rows, each beside the present way in one process, and left: blocks of 16 to 24
rows (as fast at best, three quarters slower at worst); of 10 (14 % slower to 11 % faster, by shape); one Gram-Schmidt
pass (up to 5 % faster, but on noise of 4864 x 896 the basis lost its right angles and LAPACK had to do it); only the
leading eigenvectors at each look (7 % slower to 6 % faster); the first look after five blocks (another 2 %, but up to a
third slower where values fall fast); and on 4864 x 896 products by panels that stay in the cache (1.66 ms at best, for
1.44), matrices packed once, as oneDNN does for the weights of a network (0.5 ms a block of 1.5 saved, but 6.8 ms to
pack both directions), and no more than eight of the previous step's triplets (up to five passes instead of three).
Stopping earlier where gaps are wide would break the promise that every residual is below 4e-3 of its value.

### One layer of Qwen2.5-0.5B, in memory

`update`: s1 / |D|F = 0.19 over a power-law tail; `noise`: Gaussian, where all of the leading values are near-ties.

{markdown(layers(table))}

{markdown(matrices(table))}

The bar for every method: values within 1e-4, |cos| above 0.999 where a value is not tied. `svd_lowrank` is the
fastest of those combinations of q and niter that meet it.

### Whole models on disk

Two bfloat16 checkpoints in the shapes of real models, random weights, an update with entries around 1e-5 of which the
cast leaves about an eighth; from the page cache. `rlstride spectra` is all of it: reading, norms, sparsity, rounding
floor, triplets with residuals, table and factors written. Reading is both files read and subtracted in float32, tensor
by tensor; in panels, the same through a buffer that stays in the cache, the fastest that we could make it.

{markdown(sizes(models))}

{later_runs(models)}
Cost grows with the number of parameters to the power {power:.2f}.

![Cost against size]({FIGURE})

### Along a trajectory

{markdown(steps(table))}

Decompositions alone (4864 x 896, in memory), each step from the one before, and without:

{markdown(warm(table))}
""",
    )


def exponent(models: pd.DataFrame) -> float:
    """Of cost against the number of parameters: the slope of a straight line through the logarithms."""
    if len(models) < 2:
        return np.nan
    return float(np.polyfit(np.log(models["parameters"]), np.log(models["seconds"]), 1)[0])


def targets(table: pd.DataFrame) -> pd.DataFrame:
    layer = table[table["row"] == "layer"].set_index("spectrum")
    models, steps = (table[table["row"] == kind] for kind in ("model", "steps"))
    warm = table[table["row"] == "warm"]["warm_of_cold"]
    a_step = (steps["seconds"] / steps["steps"]).tolist()
    of_noise = layer.loc["noise", "of_lowrank"]
    rows = [
        ("times faster than LAPACK, a layer's updates", "40", f"{layer.loc['update', 'times_faster_than_svd']:.0f}"),
        ("the same, noise", "", f"{layer.loc['noise', 'times_faster_than_svd']:.0f}"),
        ("of svd_lowrank's time, updates", "at most 1", f"{layer.loc['update', 'of_lowrank']:.2f}"),
        ("the same, noise", "at most 1", "it misses the bar" if np.isnan(of_noise) else f"{of_noise:.2f}"),
        ("of reading's time, whole models", "at most 5", _range(models["of_reading"])),
        ("exponent of cost against size", "below 1.1", f"{exponent(models):.2f}"),
        ("seconds a step, most kept steps over fewest", "1", f"{a_step[-1] / a_step[0]:.2f}" if a_step else ""),
        ("from the previous step, of without", "at most 0.6", _range(warm)),
        ("peak RssAnon, MiB", "below 2048", _range(models["peak_anonymous_mib"])),
    ]
    return pd.DataFrame(rows, columns=["", "target", "measured"])


def _range(values: "pd.Series[float]") -> str:
    low, high = (f"{value:.3g}" for value in (values.min(), values.max()))
    return low if low == high else f"{low} to {high}"


def layers(table: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame([_triplets(row) for _, row in table[table["row"] == "layer"].iterrows()])


def matrices(table: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "matrix": f"{row['rows']:.0f} x {row['cols']:.0f}",
            **_triplets(row),
            "value error": f"{row['value_error']:.0e}",
            "least |cos|": "all tied" if np.isnan(row["least_cosine"]) else f"{row['least_cosine']:.5f}",
            "near-ties": f"{row['near_ties']:.0f} (LAPACK: {row['near_ties_of_svd']:.0f})",
        }
        for _, row in table[table["row"] == "matrix"].iterrows()
    )


def _triplets(row: "pd.Series[Any]") -> dict[str, str]:
    missed = np.isnan(row["lowrank_seconds"])
    return {
        "spectrum": row["spectrum"],
        "rlstride, ms": f"{1e3 * row['seconds']:.1f}",
        "LAPACK, ms": f"{1e3 * row['svd_seconds']:.0f}",
        "times faster": f"{row['times_faster_than_svd']:.1f}",
        "svd_lowrank, ms": "misses the bar" if missed else f"{1e3 * row['lowrank_seconds']:.1f}",
        "of svd_lowrank": "" if missed else f"{row['of_lowrank']:.2f}",
    }


def sizes(models: pd.DataFrame) -> pd.DataFrame:
    columns = {
        "shapes of": "{model}",
        "parameters, 1e9": "{billions:.2f}",
        "rlstride spectra, s": "{seconds:.2f}",
        "reading, s": "{read_seconds:.2f}",
        "of reading": "{of_reading:.1f}",
        "in panels, s": "{panel_seconds:.2f}",
        "of panels": "{of_panels:.1f}",
        "peak RssAnon, MiB": "{peak_anonymous_mib:.0f}",
    }
    return _written(models.assign(billions=models["parameters"] / 1e9), columns)


def later_runs(models: pd.DataFrame) -> str:
    """A sentence on the rows that were measured by themselves; their file is joined to the table by hand."""
    later = models[models["machine"] != models["machine"].iloc[0]]
    return "".join(
        f"{row['model']} is from a run of its own ({row['machine'].split('; ')[-1].rstrip('.')}), beside other work; "
        "its files are larger than the machine's memory, so that they were read from disk, which CPU seconds "
        "do not show.\n"
        for row in later.to_dict("records")
    )


def steps(table: pd.DataFrame) -> pd.DataFrame:
    columns = {
        "shapes of": "{model}",
        "kept steps": "{steps:.0f}",
        "rlstride spectra, s": "{seconds:.2f}",
        "s a step": "{a_step:.3f}",
        "reading, s": "{read_seconds:.2f}",
    }
    rows = table[table["row"] == "steps"]
    return _written(rows.assign(a_step=rows["seconds"] / rows["steps"]), columns)


def warm(table: pd.DataFrame) -> pd.DataFrame:
    columns = {
        "kept steps": "{steps:.0f}",
        "from the one before, ms a step": "{ms:.1f}",
        "without, ms a step": "{cold_ms:.1f}",
        "ratio": "{warm_of_cold:.2f}",
    }
    rows = table[table["row"] == "warm"]
    return _written(rows.assign(ms=1e3 * rows["seconds"], cold_ms=1e3 * rows["cold_seconds"]), columns)


def _written(rows: pd.DataFrame, columns: dict[str, str]) -> pd.DataFrame:
    """Each column's format, filled with a row's values."""
    return pd.DataFrame(
        {header: text.format_map(row) for header, text in columns.items()} for row in rows.to_dict("records")
    )


def draw(models: pd.DataFrame) -> None:
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    billions = models["parameters"] / 1e9
    curves = {
        "rlstride spectra": ("seconds", "o-"),
        "reading": ("read_seconds", "s--"),
        "in panels": ("panel_seconds", "^:"),
    }
    for label, (column, style) in curves.items():
        axes.loglog(billions, models[column], style, label=label)
    axes.set(xlabel="parameters, 1e9", ylabel="CPU seconds, one thread", title="Two bfloat16 checkpoints")
    axes.legend()
    axes.grid(visible=True, which="both", alpha=0.3)
    target = DOCUMENT.parent / FIGURE
    target.parent.mkdir(exist_ok=True)
    figure.savefig(target)
