"""The verb ``check``."""

from rlstride.cli.app import show, verb
from rlstride.cli.options import Json, StudyFile


@verb
def check(study: StudyFile, json: Json = False) -> None:
    """Validate a study; print its cells, and the disk and time it will take.

    Example: rlstride check --study config/config.yaml
    """
    from rlstride.budget.estimates import describe
    from rlstride.config.models import PublishedModel
    from rlstride.study.load import load_study

    found = load_study(study)
    said = describe(found).splitlines()
    if any(isinstance(model, PublishedModel) for model in found.models.values()):
        from rlstride.zoo.characters import check_tokenizers  # takes a second, which tiny models need not wait

        said += check_tokenizers(found)
    if json:
        cells = {"cells": list(map(str, found.cells)), "controls": list(map(str, found.control_cells))}
        show([{"study": found.spec.name, **cells, "plan": said}], "", as_json=True)
        return
    print("\n".join(said))
