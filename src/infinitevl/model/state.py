"""The state of a batch of streams: everything the model remembers, of constant size, changed in place.

| part | per | shape | dtype |
| GDN memory | linear_attention layer | [B, heads, K, V] | float32 (float64 for a float64 model) |
| convolution tail | linear_attention layer | [B, 3, heads (2 K + V)] | model's |
| ring of keys, of values | sliding_attention layer | [B, kv heads, sinks + window, head dim] | model's |
| position, run, base, count | stream | [B] | int64 |

A full_attention layer keeps every token instead of a ring, so its part grows, by doubling.
"""

import copy
import json
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, wraps
from itertools import count as numbers
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from infinitevl import ops
from infinitevl.errors import InfiniteVLError
from infinitevl.model.configuration import InfiniteVLTextConfig

FORMAT, VERSION = "infinitevl-state", 1
FIRST_CAPACITY = 256  # tokens that a full_attention layer has room for at first
CPU = torch.device("cpu")
Given = ParamSpec("Given")
Result = TypeVar("Result")
_places = numbers()
_moving = threading.RLock()  # held while a state gets other tensors (`adopt`), and by all that must not see that
SIGNATURE = (
    "layer_types", "hidden_size", "num_attention_heads", "num_key_value_heads", "head_dim", "num_linear_heads",
    "linear_head_dim", "expand_v", "conv_size", "sliding_window", "attention_sinks", "rope_parameters",
)  # fmt: skip


def _in_one_piece(method: Callable[Given, Result]) -> Callable[Given, Result]:
    """Meanwhile no other thread has the state move."""

    @wraps(method)
    def held(*args: Given.args, **kwargs: Given.kwargs) -> Result:
        with _moving:
            return method(*args, **kwargs)

    return held


@dataclass
class AttentionState:
    """keys, values: [B, kv heads, slots, head dim], as ops.write_ring fills them. `grows`: a slot per token."""

    keys: Tensor
    values: Tensor
    grows: bool = False


@dataclass
class DeltaState:
    """memory: [B, heads, K, V]; tail: [B, conv_size - 1, heads (2 K + V)], the last inputs of q, k and v.

    arrived: what `ops.delta_mixer` counts in, zeros between its calls, so no part of what is saved or copied.
    """

    memory: Tensor
    tail: Tensor

    @cached_property
    def arrived(self) -> Tensor:
        return torch.zeros(self.memory.shape[:2], dtype=torch.int32, device=self.memory.device)


PARTS = {kind: [x.name for x in fields(kind) if x.type is Tensor] for kind in (AttentionState, DeltaState)}


class State:
    """What a batch of B streams remembers. Allocate with `model.allocate_state(B)`.

    layers: an AttentionState or a DeltaState per layer.
    count: [B] tokens so far. position: [B] position of the next text token. run: [B] text tokens since the last
    image or video. base: [B] position at which the open video began (kept for a stream of frames).
    place: a number of these tensors, which no others ever have, even where they lie at the same addresses later.
    """

    COUNTERS = ("count", "position", "run", "base")
    slots: Tensor | None = None  # [B] int64: of these places alone, in this order; a row with a negative one rests
    is_compileable = False  # asked by `generate`

    def __init__(
        self, config: InfiniteVLTextConfig, batch_size: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.config, self.place = config, next(_places)
        self.bound = 0  # no row holds more tokens than this; on the host, so that growing needs no device
        with torch.inference_mode(False), torch.no_grad():
            self.layers = [_allocate(config, kind, batch_size, device, dtype) for kind in config.layer_types or []]
            self.count, self.position, self.run, self.base = (
                torch.zeros(batch_size, dtype=torch.int64, device=device) for _ in self.COUNTERS
            )

    @property
    def batch_size(self) -> int:
        return len(self.count if self.slots is None else self.slots)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def get_seq_length(self) -> int:
        """Tokens of the longest row (the cache interface that `generate` asks for)."""
        return int(self.count.max())

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, in a fixed order."""
        named = {name: getattr(self, name) for name in self.COUNTERS}
        for i, layer in enumerate(self.layers):
            named |= {f"layers.{i}.{name}": tensor for name, tensor in _layer_tensors(layer)}
        return named

    def reserve(self, tokens: int) -> None:
        """Make room for `tokens` more tokens a row. Only full_attention layers ever need it."""
        self.bound += tokens
        for layer in self.layers:
            if isinstance(layer, AttentionState) and layer.grows:
                layer.keys, layer.values = _grown(layer.keys, self.bound), _grown(layer.values, self.bound)

    def advance(self, positions: Tensor, vision: Tensor, lengths: Tensor | None) -> None:
        """Count a chunk in. positions: [3, B, T]; vision: [B, T] True at image and video tokens; lengths: [B]."""
        counters = self.run, self.position, self.count
        ops.advance(*counters, positions, vision, lengths=lengths, slots=self.slots)

    @_in_one_piece
    def open_video(self, mask: Tensor | None = None) -> None:
        """Begin a video here: `base` becomes the position of its first frame. mask: [B] bool, the rows (None: all)."""
        more = self.of("position") + self.of("run") - self.of("base")
        more = more if mask is None else torch.where(mask, more, 0)
        if self.slots is None:
            self.base.add_(more)
        else:  # resting rows share a place with others
            self.base.index_add_(0, self.slots.clamp(min=0), torch.where(self.slots < 0, 0, more))

    def at(self, slots: Tensor) -> "State":
        """Some rows of this state, as they are and where they are. slots: [B] int64 on the device, see `slots`.

        For `advance` and what reads and writes through `ops`; to copy them, `take` them.
        """
        rows = self.view()
        rows.slots = slots
        return rows

    def of(self, counter: str) -> Tensor:
        """[B] a counter of every row."""
        every = getattr(self, counter)
        return every if self.slots is None else every[self.slots.clamp(min=0)]

    def fork(self) -> "State":
        """An independent copy."""
        made = self._changed(torch.empty_like)
        _copy(made.tensors().values(), self.tensors().values())
        return made

    def view(self) -> "State":
        """Another one of the same tensors."""
        return copy.copy(self)

    @_in_one_piece
    def adopt(self, other: "State") -> None:
        """Have the tensors of `other` in the place of one's own."""
        self.layers, self.place = list(other.layers), other.place
        for name in self.COUNTERS:
            setattr(self, name, getattr(other, name))

    def take(self, rows: Sequence[int]) -> "State":
        """Copies of some rows, a row as often as it is named."""
        index = torch.tensor(rows, dtype=torch.int64, device=self.count.device)
        return self._changed(lambda tensor: tensor.index_select(0, index))

    @_in_one_piece
    def put(self, rows: Sequence[int], other: "State") -> None:
        """Copy the rows of `other` into these rows, in place."""
        index = torch.tensor(rows, dtype=torch.int64, device=self.count.device)
        self.bound = max(self.bound, other.bound)
        self.reserve(0)
        for mine, theirs in zip(self.tensors().values(), other.tensors().values(), strict=True):
            if mine.shape[1:] == theirs.shape[1:]:
                mine.index_copy_(0, index, theirs.to(mine.device))
            else:  # slots of a layer that grows
                mine[index, :, : theirs.shape[2]] = theirs[:, :, : mine.shape[2]].to(mine.device)

    def to(self, device: torch.device) -> "State":
        """A copy on `device`."""
        return self._changed(lambda tensor: tensor.to(device, copy=True))

    @_in_one_piece
    def memory_norm(self) -> Tensor:
        """[layers, B] norm of the memory of each Gated DeltaNet layer, mean over its heads."""
        memories = [layer.memory for layer in self.layers if isinstance(layer, DeltaState)]
        norms = [memory.flatten(2).norm(dim=-1).mean(-1) for memory in memories]
        return torch.stack(norms) if norms else self.count.new_zeros(0, self.batch_size, dtype=torch.float32)

    @_in_one_piece
    def _changed(self, change: Callable[[Tensor], Tensor]) -> "State":
        """The same with every tensor changed."""
        made = State.__new__(State)
        made.config, made.bound, made.place = self.config, self.bound, next(_places)
        with torch.inference_mode(False), torch.no_grad():
            made.layers = [
                replace(layer, **{name: change(tensor) for name, tensor in _layer_tensors(layer)})
                for layer in self.layers
            ]
            for name in self.COUNTERS:
                setattr(made, name, change(getattr(self, name)))
        return made

    @_in_one_piece
    def copy_(self, other: "State") -> "State":
        """Become a copy of `other`, in place. Raises ValueError where shapes differ."""
        mine, theirs = self.tensors(), other.tensors()
        for name in {**mine, **theirs}:
            if name not in mine or name not in theirs or not _fits(mine[name], theirs[name], name, self.layers):
                raise ValueError(f"states differ in {name}: they belong to different models or batch sizes")
        self._take(theirs, other.bound)
        return self

    @_in_one_piece
    def _take(self, theirs: dict[str, Tensor], bound: int) -> None:
        """Copy tensors that fit, in place. Slots that hold no token may be more or fewer than here."""
        self.bound = bound
        self.reserve(0)
        mine = self.tensors()
        same = [name for name in mine if mine[name].shape == theirs[name].shape]
        _copy([mine[name] for name in same], [theirs[name] for name in same])
        for name in mine.keys() - same:
            slots = min(mine[name].shape[2], theirs[name].shape[2])
            mine[name][:, :, :slots].copy_(theirs[name][:, :, :slots])

    @_in_one_piece
    def reset(self, mask: Tensor | None = None) -> "State":
        """Forget everything, in place. mask: [B] bool, the rows to reset (None: all)."""
        for tensor in self.tensors().values():
            if mask is None:
                tensor.zero_()
            else:
                tensor.masked_fill_(mask.view(-1, *[1] * (tensor.dim() - 1)), 0)
        self.bound = 0 if mask is None else self.bound
        return self

    @_in_one_piece
    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row b becomes row beam_idx[b], in place (the cache interface that beam search asks for)."""
        for tensor in self.tensors().values():
            tensor.copy_(tensor.index_select(0, beam_idx))

    def save(self, path: str | os.PathLike, extra: dict[str, str] | None = None) -> None:
        """Write a safetensors file, atomically. `extra` comes back from `load`."""
        signature = json.dumps({name: getattr(self.config, name) for name in SIGNATURE})
        metadata = {
            **(extra or {}), "format": FORMAT, "version": str(VERSION), "model": signature, "bound": str(self.bound)
        }  # fmt: skip
        still = self.to(CPU) if self.count.is_cuda else self
        tensors = {name: tensor.contiguous() for name, tensor in still.tensors().items()}
        partial = Path(f"{path}.{os.getpid()}.partial")
        try:
            save_file(tensors, partial, metadata)
            os.replace(partial, path)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            raise InfiniteVLError(f"cannot write {path}: {reason}") from None
        finally:
            partial.unlink(missing_ok=True)

    def load(self, path: str | os.PathLike) -> dict[str, str]:
        """Become what `save` wrote, in place, and return its `extra`.

        Raises InfiniteVLError, one line, for a file that is missing, damaged, of another version, another model
        or another batch size or dtype. The state is unchanged then.
        """
        metadata, tensors = _read(path, self.count.device)
        bound = _check_model(path, metadata, self.config)
        for name, tensor in self.tensors().items():
            found = tensors.get(name)
            if found is None or found.dtype != tensor.dtype or not _fits(tensor, found, name, self.layers):
                raise InfiniteVLError(_mismatch(path, name, tensor, found))
        self._take(tensors, bound)
        return {key: value for key, value in metadata.items() if key not in ("format", "version", "model", "bound")}


def _allocate(
    config: Any, kind: str, batch: int, device: torch.device, dtype: torch.dtype
) -> AttentionState | DeltaState:
    if kind == "linear_attention":
        heads, key, value = config.num_linear_heads, config.linear_head_dim, config.linear_value_dim
        memory_dtype = torch.float64 if dtype == torch.float64 else torch.float32
        return DeltaState(
            memory=torch.zeros(batch, heads, key, value, dtype=memory_dtype, device=device),
            tail=torch.zeros(batch, config.conv_size - 1, heads * (2 * key + value), dtype=dtype, device=device),
        )
    grows = kind == "full_attention"
    slots = FIRST_CAPACITY if grows else config.attention_sinks + config.sliding_window
    shape = (batch, config.num_key_value_heads, slots, config.head_dim)
    keys, values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
    return AttentionState(keys, values, grows)


@torch.no_grad()
def _copy(targets: Iterable[Tensor], sources: Iterable[Tensor]) -> None:
    """All of a dtype at once: on a GPU in a few launches."""
    pairs: dict[tuple, list[tuple[Tensor, Tensor]]] = {}
    for target, source in zip(targets, sources, strict=True):
        pairs.setdefault((target.dtype, source.dtype, source.device), []).append((target, source))
    for some in pairs.values():
        torch._foreach_copy_([target for target, _ in some], [source for _, source in some])


def _layer_tensors(layer: AttentionState | DeltaState) -> list[tuple[str, Tensor]]:
    return [(name, getattr(layer, name)) for name in PARTS[type(layer)]]


def _grown(x: Tensor, slots: int) -> Tensor:
    """Room for at least `slots` along dim 2, doubling."""
    room = x.shape[2]
    while room < slots:
        room *= 2
    if room == x.shape[2]:
        return x
    with torch.inference_mode(False), torch.no_grad():
        wider = x.new_zeros(*x.shape[:2], room, x.shape[3])
        wider[:, :, : x.shape[2]] = x
    return wider


def _fits(mine: Tensor, theirs: Tensor, name: str, layers: list) -> bool:
    """Equal shapes; of a layer that grows, the slots may differ."""
    if mine.shape == theirs.shape:
        return True
    layer = layers[int(name.split(".")[1])] if name.startswith("layers.") else None
    same = mine.dim() == theirs.dim() and all(
        m == t for i, (m, t) in enumerate(zip(mine.shape, theirs.shape, strict=True)) if i != 2
    )
    return isinstance(layer, AttentionState) and layer.grows and same


def _read(path: str | os.PathLike, device: torch.device) -> tuple[dict[str, str], dict[str, Tensor]]:
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            metadata = file.metadata() or {}
            return metadata, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except FileNotFoundError:
        raise InfiniteVLError(f"no such state file: {path}") from None
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InfiniteVLError(f"{path} is not a state file, or is damaged: {reason}") from None


def _check_model(path: str | os.PathLike, metadata: dict[str, str], config: InfiniteVLTextConfig) -> int:
    """The file's `bound`, where it is a state of this model."""
    if metadata.get("format") != FORMAT:
        raise InfiniteVLError(f"{path} is a safetensors file, but not a saved state")
    if metadata.get("version") != str(VERSION):
        raise InfiniteVLError(f"{path} is a state of version {metadata.get('version')}; this is version {VERSION}")
    try:
        saved, bound = dict(json.loads(metadata["model"])), int(metadata["bound"])
    except (KeyError, TypeError, ValueError):
        raise InfiniteVLError(f"{path} is not a state file, or is damaged: its metadata cannot be read") from None
    for name in SIGNATURE:
        if saved.get(name) != getattr(config, name):
            raise InfiniteVLError(
                f"{path} belongs to another model: its {name} is {saved.get(name)}, here {getattr(config, name)}"
            )
    return bound


def _mismatch(path: str | os.PathLike, name: str, mine: Tensor, found: Tensor | None) -> str:
    if found is None:
        return f"{path} lacks {name}"
    if found.dtype != mine.dtype:
        return f"{path} holds {name} as {found.dtype}, the model here needs {mine.dtype}"
    return f"{path} holds {name} of shape {list(found.shape)}, the state here has {list(mine.shape)}"
