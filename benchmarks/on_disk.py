"""What is timed on checkpoints on disk: reading them, and `rlstride spectra` over them."""

import contextlib
import io
import shutil
import subprocess
import sys
import time
from pathlib import Path

import torch
from model_files import Run
from safetensors import safe_open

from rlstride.spectra.table import write_spectra
from rlstride.trajectory.ingest import ingest

_PANEL_ENTRIES = 1 << 18


def read_plainly(run: Run, device: str) -> None:
    """Both checkpoints' tensors, subtracted in float32 one after the other, as anybody would write it."""
    for step in run.steps.values():
        for file in sorted(step.glob("*.safetensors")):
            with safe_open(file, "pt") as after, safe_open(run.base / file.name, "pt") as before:
                for name in after.keys():  # noqa: SIM118
                    after.get_tensor(name).to(device).float() - before.get_tensor(name).to(device).float()


def read_in_panels(run: Run) -> None:
    """The same in panels of 1 MiB through one buffer, which stays in the cache: as fast as reading can be made here."""
    buffer = torch.empty(_PANEL_ENTRIES)
    for step in run.steps.values():
        for file in sorted(step.glob("*.safetensors")):
            with safe_open(file, "pt") as after, safe_open(run.base / file.name, "pt") as before:
                for name in after.keys():  # noqa: SIM118
                    panels = (source.get_tensor(name).flatten().split(_PANEL_ENTRIES) for source in (after, before))
                    for a, b in zip(*panels, strict=True):
                        buffer[: len(a)].copy_(a).sub_(b)


def spectra_of(run: Run, folder: Path, rank: int, device: str) -> None:
    """All that `rlstride spectra` does once the trajectory is there."""
    out = folder / "spectra"
    shutil.rmtree(out, ignore_errors=True)
    with contextlib.redirect_stderr(io.StringIO()):
        write_spectra(_trajectory(run, folder), out / "spectra.parquet", rank=rank, device=device)


def peak_anonymous_mib(run: Run, folder: Path, rank: int, device: str) -> float:
    """The most memory of its own (RssAnon) that the command had; pages mapped from the files do not count."""
    out = folder / "peak"
    command = [sys.executable, "-m", "rlstride.cli", "spectra", str(_trajectory(run, folder))]
    command += ["--rank", str(rank), "--device", device, "--out", str(out / "spectra.parquet")]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        with contextlib.suppress(OSError, StopIteration):
            status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines()
            line = next(line for line in status if line.startswith("RssAnon"))
            peak = max(peak, int(line.split()[1]))
        time.sleep(0.01)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with status {process.returncode}")
    shutil.rmtree(out)
    return peak / 1024


def _trajectory(run: Run, folder: Path) -> Path:
    trajectory = folder / "trajectory"
    if not trajectory.is_dir():
        with contextlib.redirect_stderr(io.StringIO()):
            ingest([str(step) for step in run.steps.values()], str(run.base), trajectory)
    return trajectory
