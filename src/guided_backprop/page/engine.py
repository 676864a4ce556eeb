"""The engine inside the page: ONNX Runtime for browsers, from npm, of one version, known by its checksums."""

import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Final, Self

from guided_backprop.errors import MissingExtraError, OptionError
from guided_backprop.export import cache

#: The package, its version, and its licence.
PACKAGE, VERSION, LICENCE = "onnxruntime-web", "1.30.0", "MIT"
_FILES: Final = {
    "script": ("ort.wasm.min.js", "faece07e84faa9001f5104bbe4e5c70861d06cb2376a0dea1fa0ad33a67adc81"),
    "module": ("ort-wasm-simd-threaded.mjs", "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b"),
    "binary": ("ort-wasm-simd-threaded.wasm", "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2"),
}


@dataclass(frozen=True)
class Engine:
    """The engine's files, as bytes.

    Attributes:
        script: what a page includes; it makes the global ``ort``.
        module: what that imports.
        binary: what is compiled, WebAssembly.
    """

    script: bytes
    module: bytes
    binary: bytes

    @classmethod
    def found(cls, folder: Path | None = None) -> Self:
        """Return the engine of a folder, or that of this user's cache, into which npm brings it the first time.

        Args:
            folder: where its package is, or the folder ``dist`` of that; None for the cache.

        Raises:
            OptionError: the folder has other files, or another version of them.
            MissingExtraError: it isn't in the cache, and npm isn't there, or can't fetch it.
        """
        if folder is not None:
            inner = folder / "dist"
            return cls._read(inner if inner.is_dir() else folder)
        cached = cache.home() / f"{PACKAGE}-{VERSION}"
        if not cached.is_dir():
            _fetch(cached)
        return cls._read(cached)

    @classmethod
    def _read(cls, folder: Path) -> Self:
        files = {}
        for part, (name, checksum) in _FILES.items():
            path = folder / name
            if not path.is_file():
                raise _not_it(folder, f"which has no {name}")
            files[part] = path.read_bytes()
            if sha256(files[part]).hexdigest() != checksum:
                raise _not_it(folder, f"whose {name} is another")
        return cls(**files)


def _not_it(folder: Path, why: str) -> OptionError:
    return OptionError(
        f"engine must be the folder of {PACKAGE} {VERSION}; received engine={str(folder)!r}, {why}. "
        f"Run: npm install {PACKAGE}@{VERSION}, and pass node_modules/{PACKAGE}."
    )


def _fetch(cached: Path) -> None:
    """Let npm bring the package, and keep what of it is used: all of that, or nothing."""
    npm = shutil.which("npm")
    if npm is None:
        raise _missing("no npm to fetch it")
    cached.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cached.parent, prefix=".engine-") as name:
        folder = Path(name)
        done = subprocess.run(
            [npm, "pack", f"{PACKAGE}@{VERSION}", "--silent", "--pack-destination", name],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        archives = list(folder.glob("*.tgz"))
        if done.returncode or not archives:
            raise _missing(f"npm, which failed ({' '.join(done.stderr.split())[-200:] or done.returncode})")
        draft = folder / "engine"
        draft.mkdir()
        with tarfile.open(archives[0]) as archive:
            for file, _ in _FILES.values():
                member = archive.extractfile(f"package/dist/{file}")
                if member is not None:
                    (draft / file).write_bytes(member.read())
        try:
            draft.rename(cached)
        except OSError:
            # Another process was faster.
            if not cached.is_dir():
                raise


def _missing(received: str) -> MissingExtraError:
    return MissingExtraError(
        f"a page needs {PACKAGE} {VERSION}; received {received}. Pass the folder of that package: "
        f"npm install {PACKAGE}@{VERSION}, then --engine node_modules/{PACKAGE}."
    )
