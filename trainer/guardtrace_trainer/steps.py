"""A step of the pipeline: from files to files, with a manifest, and safe to run again.

A step whose inputs and settings are those of its manifest, and whose outputs are as it left them, is passed over. One
that was interrupted goes on from its journal, to which each row is appended as soon as it is known: nothing is paid
twice. A journal made from other inputs or settings is refused, never mixed in.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Generic, Literal, TypeVar

import msgspec

from guardtrace_trainer.rows import UNREADABLE, Row, write_rows

AnyRow = TypeVar("AnyRow", bound=Row)
VERSIONS_OF = ("guardtrace-proxy", "torch", "transformers", "trl", "peft", "accelerate", "pillow")

ANEW = "give --again, or run's --again-from, to begin anew"


class StepError(Exception):
    """A step can't run, or not go on. The message says what to do."""


class OtherWork(StepError):
    """The folder holds a step's state from other inputs or settings."""


class Manifest(msgspec.Struct, kw_only=True):
    """What a step was made from and what it made. Files are named relative to the manifest, hashes are SHA-256."""

    step: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    outputs: dict[str, str] = {}
    counts: dict[str, Any] = {}
    versions: dict[str, str] = {}
    seconds: float | None = None
    """None while the step isn't finished."""
    again: Literal["begun", "due"] | None = None
    """``begun``: by ``again``, which goes on with it until it is finished. ``due``: it is to be made again, whatever it
    holds; see :func:`mark_due`."""

    def same_work(self, other: Manifest) -> bool:
        """Whether both were made from the same inputs with the same settings."""
        return (self.step, self.settings, self.inputs) == (other.step, other.settings, other.inputs)


class Step:
    """One step in ``folder``: its manifest is ``NAME.manifest.json`` there.

    Use as a context manager; :meth:`finish` is called at its end, by hand, with what was counted.
    ``settings`` must hold all that changes the result, and no secrets. ``unheeded`` are names of files that earlier
    versions wrote into manifests, and that nothing depends on.

    ``again`` begins anew, or goes on where an interrupted ``again`` of the same work stopped; ``extend`` alone always
    begins anew. ``clear`` does away with what else stands of the state before, ere the manifest says that this began.

    Raises:
        OtherWork: the folder holds another state of this step, and neither is given.
        StepError: its manifest or an input can't be read.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        inputs: Sequence[Path] = (),
        settings: Mapping[str, Any] | None = None,
        again: bool = False,
        extend: bool = False,
        unheeded: Collection[str] = (),
        clear: Callable[[], None] = lambda: None,
    ) -> None:
        self.folder = folder
        self.name = name
        folder.mkdir(parents=True, exist_ok=True)
        self.manifest_path = folder / f"{name}.manifest.json"
        plain = msgspec.json.decode(msgspec.json.encode(dict(settings or {})))
        hashes = {_relative(path, folder): file_hash(path) for path in inputs}
        begun: Literal["begun"] | None = "begun" if again else None
        self.manifest = Manifest(step=name, settings=plain, inputs=hashes, versions=versions(), again=begun)
        earlier = self._earlier(unheeded, again=again, extend=extend)
        if earlier is not None and not earlier.same_work(self.manifest):
            raise OtherWork(
                f"{self.manifest_path}: {name} was begun or done with {_difference(earlier, self.manifest)}; "
                f"{ANEW} (what it made will go), or take another folder"
            )
        self.done = earlier is not None and earlier.seconds is not None and self._outputs_stand(earlier)
        """Nothing is left to do: the outputs stand as they were made."""
        self.resumed = earlier is not None and not self.done
        if self.done and earlier is not None:
            self.manifest = earlier
        else:
            if not self.resumed:
                clear()
                for journal in folder.glob(f"{name}.*.journal"):
                    journal.unlink()
            if earlier is None or earlier.seconds is not None:
                # else it stands, and other processes of this step may be reading it
                write_manifest(self.manifest_path, self.manifest)
        self._began = time.monotonic()

    def journal(self, name: str, type: type[AnyRow]) -> Journal[AnyRow]:
        """The rows ``name`` of this step as far as they are known; to be opened by ``with``."""
        return Journal(self.folder / f"{self.name}.{name}.journal", type)

    def finish(self, outputs: Mapping[str, Iterable[msgspec.Struct]], **counts: Any) -> None:
        """Write the outputs (file names relative to the folder), the manifest, and drop the journals."""
        for name, rows in outputs.items():
            write_rows(self.folder / name, rows)
        self.made([self.folder / name for name in outputs], **counts)

    def made(self, outputs: Iterable[Path], **counts: Any) -> None:
        """As :meth:`finish`, for outputs that stand already. Those that are folders are hashed file by file."""
        files = [file for path in outputs for file in _files(path)]
        self.manifest.outputs = {_relative(path, self.folder): file_hash(path) for path in files}
        self.manifest.counts = counts
        self.manifest.seconds = round(time.monotonic() - self._began, 1)
        self.manifest.again = None
        write_manifest(self.manifest_path, self.manifest)
        for journal in self.folder.glob(f"{self.name}.*.journal"):
            journal.unlink()
        self.done = True

    def _earlier(self, unheeded: Collection[str], *, again: bool, extend: bool) -> Manifest | None:
        """What stands and isn't to be begun anew."""
        try:
            found = read_manifest(self.manifest_path)
        except FileNotFoundError:
            return None
        except UNREADABLE as error:
            if again or extend:
                return None
            raise StepError(f"{self.manifest_path} is no manifest ({error}); {ANEW}") from error
        if found.again == "due" or (extend and not again):
            return None
        inputs, outputs = (
            {name: digest for name, digest in files.items() if Path(name).name not in unheeded}
            for files in (found.inputs, found.outputs)
        )
        earlier = msgspec.structs.replace(found, inputs=inputs, outputs=outputs)
        if again and not (earlier.again == "begun" and earlier.same_work(self.manifest)):
            return None
        return earlier

    def _outputs_stand(self, earlier: Manifest) -> bool:
        paths = {self.folder / name: digest for name, digest in earlier.outputs.items()}
        return all(path.is_file() and file_hash(path) == digest for path, digest in paths.items())


def read_manifest(path: Path) -> Manifest:
    """Raises OSError and those of ``UNREADABLE``."""
    return msgspec.json.decode(path.read_bytes(), type=Manifest)


def write_manifest(path: Path, manifest: Manifest) -> None:
    """All of it, or what was there before."""
    part = path.with_name(path.name + ".new")
    part.write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1) + b"\n")
    part.replace(path)


def is_begun(path: Path) -> bool:
    """Whether the step of this manifest was begun, and isn't to be made again from the beginning."""
    try:
        return read_manifest(path).again != "due"
    except FileNotFoundError:
        return False
    except UNREADABLE:
        return True  # which the step itself complains of


def mark_due(path: Path) -> None:
    """The step of this manifest begins anew when it is run the next time. One that can't be read goes."""
    try:
        manifest = read_manifest(path)
    except UNREADABLE:
        path.unlink()
        return
    write_manifest(path, msgspec.structs.replace(manifest, again="due"))


class Journal(Generic[AnyRow]):
    """An append-only file of rows, by id or another ``key``: of several with one key the last counts. A last line that
    a crash tore is dropped. One process at a time has it open."""

    def __init__(self, path: Path, type: type[AnyRow], key: Callable[[AnyRow], str] = lambda row: row.id) -> None:
        self.path = path
        self._key = key
        self.rows: dict[str, AnyRow] = {}
        self._decoder = msgspec.json.Decoder(type)
        self._file: BinaryIO | None = None

    def __enter__(self) -> Journal[AnyRow]:
        self._file = self.path.open("a+b")
        try:
            self._open(self._file)
        except BaseException:
            self._file.close()
            raise
        return self

    def _open(self, file: BinaryIO) -> None:
        _lock(file, self.path)
        file.seek(0)
        content = file.read()
        whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:whole].split(b"\n")[:-1], 1):
            try:
                row = self._decoder.decode(line)
            except UNREADABLE as error:
                raise StepError(f"{self.path}, line {number}: {error}; {ANEW}") from error
            self.rows[self._key(row)] = row
        file.truncate(whole)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def __contains__(self, key: str) -> bool:
        return key in self.rows

    def add(self, row: AnyRow) -> None:
        """Keep a row; it outlives a crash of this process."""
        assert self._file is not None
        self._file.write(msgspec.json.encode(row) + b"\n")
        self._file.flush()
        self.rows[self._key(row)] = row


def forget(path: Path) -> None:
    """Empty a journal.

    Raises:
        StepError: another process has it open.
    """
    with path.open("a+b") as file:
        _lock(file, path)
        file.truncate(0)


def _lock(file: BinaryIO, path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise StepError(f"{path} is in use: another process is at this step; wait for it") from error


def file_hash(path: Path) -> str:
    """SHA-256 of a file.

    Raises:
        StepError: it can't be read.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.sha256()
            while block := file.read(1 << 20):
                digest.update(block)
            return digest.hexdigest()
    except OSError as error:
        raise StepError(f"{path}: can't be read ({error.strerror}); which step should have made it?") from error


def versions() -> dict[str, str]:
    """Of Python and of the packages that matter here, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in VERSIONS_OF:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _files(path: Path) -> list[Path]:
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def _relative(path: Path, folder: Path) -> str:
    """From wherever the command is run, the same name."""
    return Path(os.path.relpath(path.resolve(), folder.resolve())).as_posix()


def _difference(earlier: Manifest, now: Manifest) -> str:
    if earlier.settings != now.settings:
        return f"other settings ({', '.join(_unequal(earlier.settings, now.settings))})"
    return f"other inputs ({', '.join(_unequal(earlier.inputs, now.inputs))})"


def _unequal(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    return sorted(key for key in {*one, *other} if one.get(key) != other.get(key))
