# Needs: nothing.
# Makes: the values of a study that a rule depends on, as its params have them; no rule.
import json


def leaf_values(**values):
    """Resolved values as one line of JSON: a param that changes when, and only when, one of them does."""
    return json.dumps(values, sort_keys=True)


def training_values(wildcards):
    algorithm = STUDY.algorithm(cell_of(wildcards)).model_dump(mode="json")
    return leaf_values(algorithm=algorithm, training=STUDY.spec.training.decides_weights())


def jump_values(wildcards):
    """What an early stop depends on: its cell's values, its jump, and what its method is told on the way."""
    spec = STUDY.spec
    values = {"jump": JUMPS[wildcards.jump].jump.model_dump(mode="json")}
    told = evaluation_values([spec.evaluation.headline], spec.evaluation.validation_problems)
    return leaf_values(cell=training_values(wildcards), told=told, target=spec.extrapolation.target_accuracy, **values)


def evaluation_values(decodings, problems):
    specs = {name: STUDY.spec.evaluation.decodings[name].model_dump(mode="json") for name in decodings}
    return leaf_values(decodings=specs, problems=problems)


def null_values():
    """What the scores of an untrained base depend on: problems and decodings of both splits, and how it is asked."""
    evaluation = STUDY.spec.evaluation
    looks = evaluation_values([evaluation.headline], evaluation.validation_problems)
    tests = evaluation_values(evaluation.decodings, evaluation.test_problems)
    return leaf_values(looks=looks, tests=tests, nulls=STUDY.spec.nulls.model_dump(mode="json"))


def drift_values():
    """The decoding that drift is measured at."""
    headline = STUDY.spec.evaluation.headline
    return leaf_values(headline=headline, temperature=STUDY.spec.evaluation.decodings[headline].temperature)
