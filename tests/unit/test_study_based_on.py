"""Studies that are based on others, sets of edited models, and what other packages add."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlstride.cli import main
from rlstride.config import plugins
from rlstride.config.methods import METHODS, MethodSpec
from rlstride.config.plugins import with_plugins
from rlstride.errors import RequestError
from rlstride.study.load import load_study

CONFIG = Path(__file__).parents[2] / "config"


@pytest.fixture
def studies(tmp_path: Path) -> Callable[..., Path]:
    """Writes studies into a folder with the project's catalogues."""
    for file in CONFIG.glob("*.yaml"):
        (tmp_path / file.name).write_text(file.read_text())

    def write(file_name: str, /, **keys: Any) -> Path:
        file = tmp_path / file_name
        file.write_text(yaml.safe_dump(keys))
        return file

    return write


def test_a_study_is_laid_over_the_one_that_it_is_based_on(studies: Callable[..., Path]) -> None:
    file = studies("mine.yaml", based_on="config.yaml", name="mine", seeds=[1, 2], training={"keep_every": 5})
    mine, base = load_study(file).spec, load_study(CONFIG / "config.yaml").spec
    assert (mine.name, mine.seeds, mine.training.keep_every) == ("mine", [1, 2], 5)
    assert mine.training.steps == base.training.steps
    assert mine.models == base.models


def test_what_is_no_mapping_replaces_what_was_there(studies: Callable[..., Path]) -> None:
    studies("lower.yaml", based_on="config.yaml", name="lower", algorithms=["grpo"])
    upper = load_study(studies("upper.yaml", based_on="lower.yaml", name="upper")).spec
    assert upper.algorithms == ["grpo"]


def test_a_study_based_on_itself_or_on_nothing_is_refused(studies: Callable[..., Path], capsys: Any) -> None:
    one = studies("one.yaml", based_on="two.yaml")
    studies("two.yaml", based_on="one.yaml")
    assert main(["check", "--study", str(one)]) == 2
    assert "is based on itself" in capsys.readouterr().err
    assert main(["check", "--study", str(studies("three.yaml", based_on="none.yaml"))]) == 2
    assert "none.yaml: there is no such file" in capsys.readouterr().err


def test_a_set_of_variants_stands_for_its_members_in_their_order(studies: Callable[..., Path]) -> None:
    asked = {"variants": ["in_scope_full", "ranks", "single_2"], "on_the_way": ["ranks"]}
    ablation = load_study(studies("sets.yaml", based_on="config.yaml", name="sets", ablation=asked)).spec.ablation
    assert ablation.variants == ["in_scope_full", "rank_1", "rank_2", "rank_4", "rank_8", "single_2"]
    assert ablation.on_the_way == ["rank_1", "rank_2", "rank_4", "rank_8"]


def test_a_variant_of_two_sets_is_made_once(studies: Callable[..., Path]) -> None:
    asked = {"variants": ["ranks", "rounding", "shrinkage", "factors"]}
    found = load_study(studies("sets.yaml", based_on="config.yaml", name="sets", ablation=asked)).spec.ablation.variants
    assert found[:5] == ["rank_1", "rank_2", "rank_4", "rank_8", "in_scope_full"]
    assert len(found) == len(set(found))
    factors = ("0.1", "0.25", "0.5", "0.75", "1.25", "1.5")
    curves = [*(f"full_x{f}_in_all" for f in factors), *(f"rank_{k}_x{f}" for k in (1, 4, 8) for f in factors)]
    assert set(curves) < set(found)
    assert {"base_bf16", "full_bf16_in_all", "rounding_noise", "in_scope_full_as_rank_8"} < set(found)


def test_a_name_that_is_neither_a_variant_nor_a_set_is_refused(studies: Callable[..., Path], capsys: Any) -> None:
    file = studies("odd.yaml", based_on="config.yaml", name="odd", ablation={"variants": ["ranky"]})
    assert main(["check", "--study", str(file)]) == 2
    assert "ablation: 'ranky' is not a variant: use" in capsys.readouterr().err


@dataclass(frozen=True)
class Entry:
    """An installed package's entry, loaded or not."""

    found: Any
    name: str = "other"

    def load(self) -> Any:
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


def test_another_package_adds_a_method_by_an_entry_point(tmp_path: Path) -> None:
    installed = tmp_path / "other-1.0.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1.0\n")
    (installed / "entry_points.txt").write_text("[rlstride.methods]\nother = other_methods:OTHER\n")
    (tmp_path / "other_methods.py").write_text(
        "from rlstride.config.methods import MethodSpec\n"
        'OTHER = MethodSpec("other", "Another package\'s.", "controls", "rlstride.extrapolation.linear:LINEAR")\n'
    )
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "rlstride.cli", "list", "methods", "--json"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [method["method"] for method in json.loads(done.stdout)] == [*METHODS, "other"]


class Installed(list[Entry]):
    """The entry points of one group."""

    def select(self, group: str) -> "Installed":
        return self


@pytest.mark.parametrize(
    ("found", "why"),
    [
        (ImportError("no module"), "cannot be loaded: no module"),
        ("a string", "is no MethodSpec"),
        (METHODS["linear"], "there is a 'linear' already"),
    ],
)
def test_an_entry_point_that_cannot_be_used_is_named(monkeypatch: pytest.MonkeyPatch, found: Any, why: str) -> None:
    monkeypatch.setattr(plugins, "_installed", lambda: Installed([Entry(found)]))
    with pytest.raises(RequestError, match=why):
        with_plugins("rlstride.methods", MethodSpec, METHODS.values())
