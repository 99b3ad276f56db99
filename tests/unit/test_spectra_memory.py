"""The memory that `rlstride spectra` has of its own, over checkpoints with the matrices of a 7 B model."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import torch

HIDDEN, INTERMEDIATE, VOCABULARY = 3584, 18944, 152064  # Qwen2.5-7B
GATE, EMBEDDING = "model.layers.0.mlp.gate_proj.weight", "model.embed_tokens.weight"


def write_checkpoint(folder: Path, gate: torch.Tensor | None) -> None:
    """bfloat16 zeros but for ``gate``: a hole in a file takes no room on the disk, but is read like other data."""
    folder.mkdir()
    # No model of transformers', which would have more tensors than these two.
    (folder / "config.json").write_text(json.dumps({"model_type": "one_matrix", "hidden_size": HIDDEN}))
    header, end = {}, 0
    for name, rows in ((GATE, INTERMEDIATE), (EMBEDDING, VOCABULARY)):
        size = 2 * rows * HIDDEN
        header[name] = {"dtype": "BF16", "shape": [rows, HIDDEN], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        if gate is not None:
            file.write(gate.view(torch.int16).numpy().tobytes())
        file.truncate(8 + len(text) + end)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="RssAnon is Linux's")
def test_matrices_of_a_7b_model_take_less_than_2_gib(tmp_path: Path) -> None:
    noise = torch.randn(INTERMEDIATE, HIDDEN, generator=torch.Generator().manual_seed(0)).mul_(1e-5).bfloat16()
    write_checkpoint(tmp_path / "base", None)
    write_checkpoint(tmp_path / "step_1", noise)  # the worst case: no direction stands out
    run, out = [sys.executable, "-m", "rlstride.cli"], tmp_path / "spectra.parquet"
    ingest = ["ingest", str(tmp_path / "step_1"), "--base", str(tmp_path / "base"), "--out", str(tmp_path / "run")]
    subprocess.run([*run, *ingest], check=True)
    process = subprocess.Popen([*run, "spectra", str(tmp_path / "run"), "--out", str(out)])
    peak = 0
    while process.poll() is None:
        lines = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8").splitlines()
        peak = max([peak, *(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))])
        time.sleep(0.01)
    assert process.returncode == 0
    assert 300 << 10 < peak < 2 << 20  # KiB; the update alone takes 260 MiB
    table = pd.read_parquet(out).set_index("module")
    gate = table.loc[GATE.removesuffix(".weight")]
    assert gate["frobenius"] == pytest.approx(float(noise.double().norm()), rel=1e-6)
    assert gate["sigma_1"] == pytest.approx(1e-5 * (HIDDEN**0.5 + INTERMEDIATE**0.5), rel=0.01)
    assert table.loc[EMBEDDING.removesuffix(".weight"), "sparsity_0"] == 1
