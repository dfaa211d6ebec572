"""Checkpoints in parts: every rank writes what it holds of each tensor, and reads what it is to hold of it.

By torch.distributed.checkpoint, under Ergon's own format: the file of each rank lies in the folder of that rank, and
the one that tells what lies where in that of rank 0.
"""

import io
import pickle
import warnings
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.checkpoint.storage import WriteResult

PLAN = "parts"
"""The file that tells what lies where."""

TOLD = {
    "torch": {"Size"},
    "torch.serialization": {"_get_layout"},
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.distributed.checkpoint.metadata": {
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    },
}
"""Of which kinds what stands in it is, by module."""

Nested = dict[str, Any]
"""Tensors by name, or such dicts of them."""


def write(state: Nested, folder: Path, group: dist.ProcessGroup | None = None) -> None:
    """Write what this rank holds of these tensors to its folder of a checkpoint. All ranks must call it together, and
    meet in `group`, by default that of the gang.

    Of what several ranks hold as a whole, one writes it. Raises CheckpointException, on all, when a disk takes no more.
    """
    save(flattened(state), storage_writer=_Writer(folder), process_group=group)


def found(path: Path) -> Nested:
    """The tensors that `write` put into the folders of a checkpoint, none of them read yet."""
    reader = _Reader(path / "rank-0")
    nested: Nested = {}
    for key, kind in reader.read_metadata().state_dict_metadata.items():
        *outer, name = key.split("/")
        at = nested
        for each in outer:
            at = at.setdefault(each, {})
        at[name] = Stored(reader, key, cast(TensorStorageMetadata, kind))
    return nested


class Stored:
    """A tensor of a checkpoint in parts."""

    def __init__(self, reader: "_Reader", key: str, kind: TensorStorageMetadata) -> None:
        self._reader, self._key, self._dtype, self.shape = reader, key, kind.properties.dtype, kind.size

    def read(self, like: torch.Tensor | None = None) -> torch.Tensor:
        """It, or those parts of it that `like` has, on the device of that. Other ranks need not take part."""
        like = torch.empty(self.shape, dtype=self._dtype) if like is None else torch.empty_like(like)
        values = {self._key: like}
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # it is told that it is alone
            load(values, storage_reader=self._reader, no_dist=True)
        return values[self._key]


def flattened(state: Nested, above: str = "") -> dict[str, torch.Tensor]:
    """The tensors alone, by their names and those of the dicts around them."""
    flat: dict[str, torch.Tensor] = {}
    for name, value in state.items():
        flat |= flattened(value, f"{above}{name}/") if isinstance(value, dict) else {above + name: value}
    return flat


class _Writer(FileSystemWriter):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder, sync_files=False)  # who seals the folder makes it durable

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        for rank, written in enumerate(results):
            for result in written:
                result.storage_data.relative_path = f"../rank-{rank}/{result.storage_data.relative_path}"
        super().finish(metadata, results)

    def storage_meta(self) -> StorageMeta:
        return StorageMeta()

    def _get_metadata_path(self, rank: int | None = None) -> Path:
        return Path(self.path) / PLAN


class _Reader(FileSystemReader):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._metadata = _Plan(io.BytesIO((folder / PLAN).read_bytes())).load()

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self._metadata


class _Plan(pickle.Unpickler):
    """Takes nothing but what tells of tensors: a checkpoint must not run what others wrote into it."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        known = global_name in TOLD.get(module_name, ()) or (
            module_name == "torch" and isinstance(getattr(torch, global_name, None), torch.dtype)
        )
        if not known:
            raise pickle.UnpicklingError(f"{module_name}.{global_name} has no place in a checkpoint")
        return super().find_class(module_name, global_name)
