"""What ``import rlstride`` gives, and what it costs."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import rlstride
from rlstride.errors import RequestError
from rlstride.extras import ExtraError, naming_the_extra, packages_of, require

EXTRAS = ("train", "evaluate", "gym", "track", "report", "workflow")


def python(code: str, cwd: Path | None = None) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_package_loads_neither_torch_nor_transformers_nor_pandas() -> None:
    assert python("import rlstride, sys; print({'torch', 'transformers', 'numpy', 'pandas'} & sys.modules.keys())") == (
        "set()"
    )


def test_reading_a_study_from_the_public_face_does_not_load_torch(default_study_file: str) -> None:
    code = (
        f"from rlstride import load_study; import sys; load_study(__import__('pathlib').Path({default_study_file!r}))"
    )
    assert python(f"{code}; print('torch' in sys.modules)") == "False"


def test_tables_claims_and_the_report_are_made_without_torch() -> None:
    """A study has a job for each table: what they import is paid some twenty times."""
    code = """
import sys
from importlib import import_module
from pkgutil import iter_modules
for package in ("tables", "claims", "report", "report.figures"):
    for module in iter_modules(import_module(f"rlstride.{package}").__path__):
        if not module.ispkg:
            import_module(f"rlstride.{package}.{module.name}")
print({"torch", "transformers", "sklearn", "scipy.stats"} & sys.modules.keys())
"""
    assert python(code) == "set()"


@pytest.mark.parametrize("name", sorted(set(rlstride.__all__) - {"__version__"}))
def test_a_public_name_is_the_object_of_that_name_where_it_is_written(name: str) -> None:
    found = getattr(rlstride, name)
    assert found.__name__ == name
    assert found is getattr(sys.modules[found.__module__], name)
    assert found.__module__.startswith("rlstride.")


def test_every_public_name_is_listed_before_any_is_loaded() -> None:
    assert python("import rlstride; print(set(rlstride.__all__) <= set(dir(rlstride)))") == "True"


def test_the_version_is_that_of_the_installed_package() -> None:
    assert rlstride.__version__ == version("rlstride")


def test_a_name_that_is_not_there_is_an_attribute_error_as_of_any_module() -> None:
    with pytest.raises(AttributeError, match=r"module 'rlstride' has no attribute 'Trajectry'"):
        rlstride.Trajectry  # type: ignore[attr-defined]  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Trajectry' from 'rlstride'"):
        exec("from rlstride import Trajectry")


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_installed_versions_are_inside_the_ranges(extra: str) -> None:
    assert packages_of(extra)
    require(extra)


def test_an_import_of_a_package_that_no_extra_holds_stays_what_it_is() -> None:
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_package'") as raised, naming_the_extra():
        import no_such_package  # type: ignore[import-not-found]  # noqa: F401
    assert not isinstance(raised.value, ExtraError)


@pytest.fixture
def other_trl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A TRL of a version far below the range is what the interpreter finds first."""
    folder = tmp_path / "trl-0.9.6.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: trl\nVersion: 0.9.6\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return str(packages_of("train")["trl"].specifier)


def test_another_version_of_a_package_is_named_with_its_range_and_with_what_mends_it(other_trl: str) -> None:
    with pytest.raises(RequestError) as raised:
        require("train")
    assert str(raised.value) == f"needs trl{other_trl} in place of 0.9.6: pip install 'rlstride[train]'"


def test_a_trainer_of_another_trl_is_refused_before_a_jump_is_judged_by_it(other_trl: str) -> None:
    with pytest.raises(ExtraError, match=r"needs trl.* in place of 0\.9\.6"):
        rlstride.NextBatch(object())  # type: ignore[arg-type]  # it never gets as far as the trainer


def test_former_names_that_scripts_use_are_those_of_now() -> None:
    from rlstride.config import study_file, variants
    from rlstride.evaluation.lm import Bench
    from rlstride.study import config as former_config
    from rlstride.study import variants as former_variants

    assert former_config.Decoding is study_file.Decoding
    assert former_variants.read_variants is variants.read_variants
    assert Bench.seat is Bench.load
