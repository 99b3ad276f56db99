"""The command line: each verb parses its flags and calls one function of the library."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from rlstride import verbs as run
from rlstride.config.variants import SCOPES
from rlstride.errors import RlstrideError
from rlstride.extras import naming_the_extra

_MODEL_KEY = "which of several models inside each checkpoint: what precedes its tensors' names, such as model or ema"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb. Returns 0 when done, 1 when the work failed, 2 when the request was wrong."""
    # Verbs report their own progress; the bars of the libraries under them would fill a log.
    os.environ.setdefault("TQDM_DISABLE", "1")
    # TRL would import MLflow, which takes a second, to see whether a run is open there; `rlstride track` writes to it.
    os.environ.setdefault("DISABLE_MLFLOW_INTEGRATION", "TRUE")
    parser = build_parser()
    options = parser.parse_args(arguments)
    try:
        with naming_the_extra():
            options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:  # `rlstride check ... | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the flush at exit would complain
        return 1
    except RlstrideError as error:
        if options.debug:
            raise
        print(f"rlstride {options.verb}: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print(f"rlstride {options.verb}: interrupted", file=sys.stderr)
        return 1
    except Exception as error:
        if options.debug:
            raise
        print(
            f"rlstride {options.verb}: {type(error).__name__}: {' '.join(str(error).split())} (--debug shows where)",
            file=sys.stderr,
        )
        return 1
    return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of all verbs."""
    parser = argparse.ArgumentParser(
        prog="rlstride",
        description="Train language models with RL, keep the trajectory of their weights, "
        "take it apart and predict where it goes.",
    )
    parser.add_argument("--version", action="version", version=f"rlstride {version('rlstride')}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")

    verb = _verb(verbs, "check", run.check, "validate a study; print its cells, and the disk and time it will take")
    verb.add_argument("--study", type=Path, required=True, metavar="FILE")

    verb = _verb(verbs, "pretrain", run.pretrain, "make a base: a tiny one from scratch, a published one by copying it")
    verb.add_argument("--study", type=Path, default=Path("config/config.yaml"), metavar="FILE")
    verb.add_argument("--model", required=True, metavar="NAME", help="one of the study's models")
    _writes(verb, "DIR")

    verb = _verb(verbs, "train", run.train, "run one cell's RL and keep its trajectory; an interrupted run resumes")
    verb.add_argument("--study", type=Path, required=True, metavar="FILE")
    verb.add_argument("--cell", required=True, metavar="MODEL/ALGORITHM/SEED")
    _writes(verb, "DIR", "the trajectory's folder")
    verb.add_argument(
        "--state",
        type=Path,
        metavar="DIR",
        help="optimiser, RNG and data order of an unfinished run (default: DIR/../training)",
    )
    verb.add_argument(
        "--jump", metavar="NAME", help="cut the run short by this one of the study's jumps (default: train every step)"
    )
    verb.add_argument(
        "--processes",
        default="1",
        metavar="N",
        help="share every step among N processes on this machine, each with a GPU of its own on cuda (default: 1)",
    )

    verb = _verb(
        verbs, "ingest", run.ingest, "make a trajectory of a run trained elsewhere; its files stay where they are"
    )
    verb.add_argument(
        "sources",
        nargs="+",
        metavar="SRC",
        help="the run's folder, or its checkpoints: Hugging Face folders, LoRA adapters, FSDP shards of verl or"
        " torch.distributed.checkpoint, DeepSpeed ZeRO shards, hf://org/repo@step_{n}",
    )
    verb.add_argument(
        "--base", required=True, metavar="BASE", help="the model that the run started from: a folder or hf://org/repo"
    )
    verb.add_argument(
        "--steps", type=_integers, metavar="N,N", help="a number for each checkpoint (default: from the names)"
    )
    verb.add_argument("--algorithm", default="unknown", metavar="NAME", help="what trained it, as tables shall say it")
    verb.add_argument("--seed", type=int, default=0, metavar="N", help="likewise (default: 0)")
    verb.add_argument("--model-key", metavar="KEY", help=_MODEL_KEY)
    _writes(verb, "DIR", "where manifest.json is written")

    verb = _verb(verbs, "inspect", run.inspect, "say what a path is, and what is wrong with it; weights are not read")
    verb.add_argument("path", metavar="PATH", help="a trajectory, a run's folder, a checkpoint, hf://org/repo@revision")
    verb.add_argument("--base", metavar="BASE", help="the model that the checkpoints should fit")
    verb.add_argument("--model-key", metavar="KEY", help=_MODEL_KEY)

    verb = _verb(verbs, "spectra", run.spectra, "norms, singular triplets, ranks and sparsity of every kept update")
    verb.add_argument("trajectory", type=Path, metavar="TRAJECTORY")
    _writes(verb, "FILE.parquet")
    verb.add_argument(
        "--rank", default="8", metavar="K|full", help="singular triplets kept for each matrix (default: 8)"
    )
    verb.add_argument(
        "--tolerances", type=_floats, default=None, metavar="T,T", help="tolerances of the sparsity sweep"
    )
    verb.add_argument("--device", choices=("cpu", "cuda"), default="cpu")

    verb = _verb(verbs, "ablate", run.ablate, "write edited models of one kept step")
    verb.add_argument("trajectory", type=Path, metavar="TRAJECTORY")
    verb.add_argument("--step", default="last", metavar="N|last")
    which = verb.add_mutually_exclusive_group(required=True)
    which.add_argument("--rank", type=int, metavar="K", help="one model: the best rank-K update, written to --out")
    which.add_argument(
        "--variants",
        metavar="NAME,NAME|FILE.yaml",
        help="several models, such as rank_1,in_scope_full: one folder each in --out",
    )
    verb.add_argument(
        "--rescale",
        choices=("frobenius", "none"),
        default="frobenius",
        help="with --rank: give the edit the full update's norm",
    )
    verb.add_argument("--scale", type=float, default=1.0, help="with --rank: a further factor on the update")
    verb.add_argument(
        "--scope",
        choices=SCOPES,
        default="linear",
        help="with --rank: which tensors change; linear: every matrix inside the layers, all: every other tensor too"
        " (default: %(default)s)",
    )
    _writes(verb, "DIR")

    verb = _verb(
        verbs, "dynamics", run.dynamics, "how linear the trajectory is, beside its nulls and held-out future steps"
    )
    verb.add_argument("trajectory", type=Path, metavar="TRAJECTORY")
    verb.add_argument(
        "--evaluations",
        type=Path,
        required=True,
        metavar="FILE",
        help="accuracy of the kept steps, from rlstride evaluate",
    )
    verb.add_argument("--decoding", default="t1.0", metavar="NAME")
    _writes(verb, "FILE.parquet")

    verb = _verb(
        verbs, "drift", run.drift, "how far kept steps and edited models are from the base in what they say (KL)"
    )
    verb.add_argument("trajectory", type=Path, metavar="TRAJECTORY")
    verb.add_argument(
        "--study", type=Path, required=True, metavar="FILE", help="names the task and the headline decoding"
    )
    verb.add_argument("--cell", metavar="MODEL/ALGORITHM/SEED", help="labels the rows")
    verb.add_argument("--steps", type=_integers, metavar="N,N", help="these kept steps (default: all)")
    verb.add_argument(
        "--variants", metavar="NAME,NAME|FILE.yaml", help="these edits of the last kept step too, made in memory"
    )
    verb.add_argument("--problems", type=int, metavar="N", help="validation problems (default: the study's)")
    verb.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    _writes(verb, "FILE.parquet")

    verb = _verb(verbs, "extrapolate", run.extrapolate, "predict a later model from a first part of the trajectory")
    verb.add_argument("trajectory", type=Path, metavar="TRAJECTORY")
    verb.add_argument("--method", type=_names, required=True, metavar="NAME[,NAME]")
    verb.add_argument(
        "--window", type=_floats, required=True, metavar="W[,W]", help="share of the steps that may be seen, in (0, 1]"
    )
    target = verb.add_mutually_exclusive_group()
    target.add_argument("--target-accuracy", type=float, default=1.0, metavar="A")
    target.add_argument("--target-step", type=int, metavar="T", help="default: the run's last step")
    verb.add_argument(
        "--evaluations", type=Path, metavar="FILE", help="accuracy of the kept steps, for methods that use it"
    )
    verb.add_argument("--decoding", default="t1.0", metavar="NAME", help="which of the evaluations' decodings is meant")
    verb.add_argument(
        "--study",
        type=Path,
        metavar="FILE",
        help="for methods that choose how far they go: on this study's validation problems, at its headline decoding",
    )
    verb.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="with --study: where models are scored")
    verb.add_argument(
        "--where-applicable", action="store_true", help="a method that is not applicable is no error (default: exit 1)"
    )
    _writes(verb, "DIR", "the model's folder; with several methods or windows, a folder of them")

    verb = _verb(verbs, "evaluate", run.evaluate, "score models with lm-eval, all in one process")
    verb.add_argument(
        "models",
        nargs="+",
        metavar="[NAME[@STEP]=]MODEL_DIR|TRAJECTORY",
        help="a model folder, as variant NAME (default: its own name) at STEP (default: a kept step's own, else -1);"
        " or a trajectory: its base and all kept steps; with --tasks also org/name on the Hugging Face hub",
    )
    verb.add_argument("--study", type=Path, metavar="FILE", help="score on a study's task with its decodings")
    verb.add_argument("--cell", metavar="MODEL/ALGORITHM/SEED", help="labels the rows")
    verb.add_argument("--steps", type=_integers, metavar="N,N", help="of trajectories: these alone; 0 is the base")
    verb.add_argument(
        "--variants",
        metavar="NAME,NAME|FILE.yaml",
        help="of trajectories: these edits of the last step (or of --steps), made in memory, instead of base and steps",
    )
    verb.add_argument(
        "--on-the-way",
        metavar="NAME,NAME|FILE.yaml",
        help="those of the edits that are made of the steps before the last of --steps (default: all)",
    )
    verb.add_argument(
        "--split", choices=("validation", "test"), default="test", help="of --study's problems; with --tasks a label"
    )
    verb.add_argument(
        "--decodings", type=_names, metavar="NAME,NAME", help="some of the study's decodings (default: all)"
    )
    verb.add_argument(
        "--tasks", type=_names, metavar="NAME,NAME", help="without --study: tasks that lm-eval knows, or YAML files"
    )
    verb.add_argument("--limit", type=int, metavar="N", help="with --tasks: the first N problems only")
    verb.add_argument(
        "--apply-chat-template",
        action="store_true",
        help="with --tasks: render prompts with the tokenizer's chat template, for models that were trained to chat",
    )
    verb.add_argument(
        "--system-prompt", metavar="TEXT|FILE", help="with --tasks: before every prompt; a system message in a template"
    )
    verb.add_argument(
        "--fewshot", type=int, metavar="N", help="with --tasks: worked examples in each prompt (default: the task's)"
    )
    verb.add_argument(
        "--fewshot-as-multiturn",
        action=argparse.BooleanOptionalAction,
        help="with --apply-chat-template: worked examples as turns, or all in one message (default: turns)",
    )
    verb.add_argument(
        "--gen-kwargs",
        metavar="K=V,K=V|JSON",
        help="with --tasks: arguments of generation in place of the task's, such as temperature=0.7,max_gen_toks=512",
    )
    verb.add_argument(
        "--batch-size",
        metavar="N|auto",
        help="sequences at once; auto tries how many fit (default: by the model's size)",
    )
    verb.add_argument(
        "--samples", action="store_true", help="write prompts, completions and their scores too: FILE-samples.jsonl"
    )
    verb.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    _writes(verb, "FILE.parquet")

    verb = _verb(verbs, "collect", run.collect, "gather the cells' Parquet files into the study's CSV tables")
    verb.add_argument("results", type=Path, metavar="RESULTS_DIR", help="results/{study}")
    verb.add_argument("--study", type=Path, metavar="FILE", help="only this study's cells (default: every cell found)")
    verb.add_argument("--tables", metavar="NAME[,NAME]", help="only these, such as accuracy,learning (default: all)")

    verb = _verb(verbs, "judge", run.judge, "the verdict on every published claim, from what the cells measured")
    verb.add_argument("results", type=Path, metavar="RESULTS_DIR", help="results/{study}")
    verb.add_argument("--study", type=Path, metavar="FILE", help="default: RESULTS_DIR/study.yaml")

    verb = _verb(verbs, "report", run.report, "claims, figures and one HTML page from the study's tables")
    verb.add_argument("results", type=Path, metavar="RESULTS_DIR", help="results/{study}, after rlstride collect")
    verb.add_argument(
        "--study",
        type=Path,
        metavar="FILE",
        help="where the headline decoding is named (default: RESULTS_DIR/study.yaml)",
    )
    verb.add_argument(
        "--claims", type=Path, metavar="FILE.csv", help="what rlstride judge wrote (default: judge the claims now)"
    )
    _writes(verb, "DIR")

    verb = _verb(verbs, "track", run.track, "write the ledgers, tables and figures to MLflow")
    verb.add_argument("results", type=Path, metavar="RESULTS_DIR", help="results/{study}")
    verb.add_argument("--study", type=Path, metavar="FILE", help="default: RESULTS_DIR/study.yaml")
    verb.add_argument(
        "--tracking-uri", metavar="URI", help="default: the study's, else sqlite:///RESULTS_DIR/../mlflow.db"
    )

    group = verbs.add_parser("cluster", help="what a study needs of a Slurm cluster, and what an ended run left there")
    cluster = group.add_subparsers(dest="cluster_verb", required=True, metavar="VERB")
    verb = _verb(
        cluster, "check", run.cluster_check, "before jobs are sent: could they start, is there room, do nodes see it"
    )
    verb.add_argument("--study", type=Path, default=Path("config/config.yaml"), metavar="FILE")
    verb.add_argument("--profile", type=Path, default=Path("profiles/slurm"), metavar="DIR", help="how jobs are sent")
    verb.add_argument("--results", type=Path, metavar="DIR", help="in place of the study's results folder")
    verb.add_argument("--no-probe", action="store_true", help="send no test job")
    verb = _verb(
        cluster, "orphans", run.cluster_orphans, "list the jobs that a killed Snakemake left, wait for them or end them"
    )
    verb.add_argument("results", type=Path, metavar="RESULTS_DIR", help="results/{study}")
    what = verb.add_mutually_exclusive_group()
    what.add_argument("--wait", action="store_true", help="for those that run; cancel those that are queued")
    what.add_argument("--cancel", action="store_true", help="all, also those of a run that began on another machine")
    return parser


def _verb(
    verbs: "argparse._SubParsersAction[argparse.ArgumentParser]", name: str, run: object, text: str
) -> argparse.ArgumentParser:
    parser = verbs.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    parser.set_defaults(run=run)
    return parser


def _writes(verb: argparse.ArgumentParser, form: str, text: str | None = None) -> None:
    verb.add_argument("--out", type=Path, required=True, metavar=form, help=text)
    verb.add_argument("--force", action="store_true", help="replace what an earlier call wrote there")


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _floats(text: str) -> list[float]:
    try:
        return [float(part) for part in _names(text)]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected numbers separated by commas, not {text!r}") from error


def _integers(text: str) -> list[int]:
    try:
        return [int(part) for part in _names(text)]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected whole numbers separated by commas, not {text!r}") from error


if __name__ == "__main__":
    sys.exit(main())
