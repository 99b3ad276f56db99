"""A run on a hub: huggingface_hub asks a server on this machine that answers as the Hugging Face hub does.

The server alone is the test's own: what is asked of it, downloaded and read is the real thing.
"""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch

from foreign_runs import tiny_model
from rlstride.trajectory.store import Trajectory

REPOSITORY = "org/run"
STEPS = (5, 10)


@dataclass
class Hub:
    """A repository with a branch for each revision.

    Attributes:
        revisions: the folder of each.
        asked: the paths of all requests so far.
    """

    revisions: dict[str, Path]
    asked: list[str] = field(default_factory=list)
    address: str = ""

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of a request."""
        self.asked.append(path)
        api, resolve = f"/api/models/{REPOSITORY}", f"/{REPOSITORY}/resolve/"
        if path == f"{api}/refs":
            found = [{"name": name, "ref": f"refs/heads/{name}", "targetCommit": commit(name)} for name in self.names]
            return 200, {}, json.dumps({"branches": found, "tags": [], "converts": []}).encode()
        name = self._named(path.rpartition("/")[2])
        if path.startswith(f"{api}/revision/") and name:
            files = [{"rfilename": file.name} for file in self._files(name)]
            about = {"id": REPOSITORY, "sha": commit(name), "siblings": files, "private": False, "tags": []}
            return 200, {}, json.dumps(about).encode()
        if path.startswith(f"{api}/tree/") and name:
            sizes = {file.name: file.stat().st_size for file in self._files(name)}
            entries = [
                {"type": "file", "path": file, "size": size, "oid": commit(file)} for file, size in sizes.items()
            ]
            return 200, {}, json.dumps(entries).encode()
        if path.startswith(resolve):
            revision, _, file = path.removeprefix(resolve).partition("/")
            name = self._named(revision)
            if name and (self.revisions[name] / file).is_file():
                content = (self.revisions[name] / file).read_bytes()
                etag = f'"{hashlib.sha256(content).hexdigest()}"'
                return 200, {"ETag": etag, "X-Repo-Commit": commit(name)}, content
            return 404, {"X-Error-Code": "EntryNotFound" if name else "RevisionNotFound"}, b""
        known = path.startswith(api)
        code = "RevisionNotFound" if known else "RepoNotFound"
        return 404, {"X-Error-Code": code, "X-Error-Message": f"{code}: {path}"}, b""

    @property
    def names(self) -> list[str]:
        return list(self.revisions)

    def _files(self, name: str) -> list[Path]:
        return sorted(self.revisions[name].iterdir())

    def _named(self, revision: str) -> str | None:
        return next((name for name in self.names if revision in (name, commit(name))), None)


def commit(name: str) -> str:
    return hashlib.sha1(name.encode()).hexdigest()


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    root = tmp_path_factory.mktemp("repository")
    model = tiny_model("llama")
    for name, step in {"main": 0, **{f"step_{step}": step for step in STEPS}}.items():
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight.add_(0.01 * step)
        model.save_pretrained(root / name)
        (root / name / "modeling_run.py").write_text("raise SystemExit('a repository has run its own code')\n")
        (root / name / "pytorch_model.bin").write_bytes(b"pickled")
    served = Hub({folder.name: folder for folder in sorted(root.iterdir())})

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            status, headers, body = served.answer(self.path.partition("?")[0])
            self.send_response(status)
            for key, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *arguments: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.address = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield served
    server.shutdown()
    server.server_close()


def ingest(hub: Hub, home: Path, source: str) -> subprocess.CompletedProcess[str]:
    """The verb in a process of its own, whose cache is empty: huggingface_hub reads its settings when imported."""
    settings = {"HF_ENDPOINT": hub.address, "HF_HOME": str(home / "huggingface"), "HF_HUB_DISABLE_XET": "1"}
    flags = ["--base", f"hf://{REPOSITORY}@main", "--out", str(home / "trajectory")]
    kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    return subprocess.run(
        [sys.executable, "-m", "rlstride.cli", "ingest", source, *flags],
        env={**kept, **settings},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_branch_for_each_step_is_downloaded_and_becomes_a_trajectory(hub: Hub, tmp_path: Path) -> None:
    done = ingest(hub, tmp_path, f"hf://{REPOSITORY}@step_{{n}}")
    assert done.returncode == 0, done.stderr
    run = Trajectory(tmp_path / "trajectory")
    assert tuple(run.steps) == STEPS
    name = "model.layers.0.mlp.up_proj.weight"
    base, *steps = (run.source(step).tensor(name) for step in (0, *STEPS))
    torch.testing.assert_close(steps[0] - base, torch.full_like(base, 0.05))
    torch.testing.assert_close(steps[1] - base, torch.full_like(base, 0.15))
    fetched = {path.rpartition("/")[2] for path in hub.asked if "/resolve/" in path}
    assert "model.safetensors" in fetched
    assert fetched.isdisjoint({"modeling_run.py", "pytorch_model.bin"}), "neither code nor pickles are even downloaded"


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        (
            f"hf://{REPOSITORY}@step_7",
            "@step_7: cannot be had from the hub or the local cache (there is no such branch",
        ),
        (f"hf://{REPOSITORY}@epoch_{{n}}", "none of the 3 branches and tags is named like this"),
        ("hf://org/nothing@step_5", "(there is no such repository, or it is private: hf auth login)"),
    ],
)
def test_what_the_hub_does_not_have_is_one_sentence(hub: Hub, tmp_path: Path, source: str, sentence: str) -> None:
    done = ingest(hub, tmp_path, source)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert "Traceback" not in done.stderr
