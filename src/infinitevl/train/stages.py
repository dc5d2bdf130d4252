"""The stages of the paper: what trains, on which loss, and one step of it."""

import math
import re
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from infinitevl.data.encode import IGNORED
from infinitevl.data.files import FilePart
from infinitevl.data.packing import Batch
from infinitevl.data.worlds import Part
from infinitevl.model.decoder import Decoder
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration
from infinitevl.train.losses import cross_entropy, distillation, layer_distance
from infinitevl.train.parallel import joined

Loss = Literal["cross_entropy", "layerwise", "distillation"]
Trains = Literal["all", "delta", "language"]
Method = Literal["adamw", "muon"]


@dataclass(frozen=True)
class Stage:
    """One stage. The learning rate warms up linearly, then follows a cosine to 0.

    trains: "delta" (the mixers of the linear_attention layers), "language" (the language model but its embeddings,
    which the head shares), or "all"; lora: 0, or the rank of the adapters that train in their place and are merged at
    the end. optimizer: see `optimizers`. data: a mixture of StreamWorld episodes, or of files. rows, tokens: size of
    a batch, of all processes together; accumulate: batches whose gradients make one step. checkpointing: compute
    the student's layers again for the backward pass, which saves memory and changes no result. max_pixels, of an
    image or a frame, max_frames and fps, of a video, which is sampled more sparsely where it is longer: for data in
    files.
    """

    name: str
    loss: Loss
    trains: Trains
    data: tuple[Part, ...] | tuple[FilePart, ...]
    steps: int
    rows: int
    tokens: int
    learning_rate: float
    optimizer: Method = "adamw"
    temperature: float = 2.0
    warmup: float = 0.05
    weight_decay: float = 0.01
    clip: float = 1.0
    accumulate: int = 1
    lora: int = 0
    checkpointing: bool = False
    max_pixels: int = 512 * 512
    max_frames: int = 224
    fps: float = 2.0

    @property
    def needs_teacher(self) -> bool:
        return self.loss != "cross_entropy"


def select(model: InfiniteVLForConditionalGeneration, trains: Trains) -> list[str]:
    """Let only these parameters train; returns their names."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(_trains(model, name, trains))
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def _trains(model: InfiniteVLForConditionalGeneration, name: str, trains: Trains) -> bool:
    if trains == "all":
        return True
    parts = name.split(".")
    if parts[1] != "language_model" or parts[2] == "embed_tokens":
        return False
    if trains == "language":
        return True
    kinds = model.config.text_config.layer_types
    return parts[2] == "layers" and parts[4] == "self_attn" and kinds[int(parts[3])] == "linear_attention"


def summary(model: nn.Module, names: list[str]) -> str:
    """What trains, in a few lines: how many parameters of which parts, and of which layers where there are many."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    counts: dict[str, int] = {}
    layers: dict[str, set[int]] = {}
    for name in names:
        match = re.fullmatch(r"model\.(.*?)\.(\d+)\.(\w+)\..*", name)
        part = f"{match[1]}.N.{match[3]}" if match else name.removeprefix("model.").rsplit(".", 1)[0]
        counts[part] = counts.get(part, 0) + sizes[name]
        layers.setdefault(part, set()).update([int(match[2])] if match else [])
    lines = [
        f"  {count:>13,} {part}" + (f", N = {' '.join(map(str, sorted(layers[part])))}" if layers[part] else "")
        for part, count in counts.items()
    ]
    return "\n".join([*lines, f"  {sum(counts.values()):>13,} of {sum(sizes.values()):,} parameters train"])


@dataclass
class Inputs:
    """A batch as the decoder takes it. real: [B, T] bool, no padding."""

    embeds: Tensor
    positions: Tensor
    vision: Tensor
    lengths: Tensor
    seq_idx: Tensor

    @property
    def real(self) -> Tensor:
        return torch.arange(self.vision.shape[1], device=self.vision.device) < self.lengths[:, None]

    def decode(self, decoder: Decoder, hidden: list[Tensor] | None = None) -> Tensor:
        return decoder(self.embeds, self.positions, self.vision, self.lengths, self.seq_idx, hidden=hidden)


def embed(model: InfiniteVLForConditionalGeneration, batch: Batch) -> Inputs:
    """Token embeddings with those of the frames in their places, every frame a picture of its own, as in a stream."""
    config = model.config
    vision = (batch.ids == config.image_token_id) | (batch.ids == config.video_token_id)
    embeds = model.get_input_embeddings()(batch.ids)
    if batch.frames:
        cut, side = model.processor.frame_patches, model.processor.settings.patch_size
        patches = torch.cat([cut(frames) for frames in batch.frames])
        features = model.encode(patches, tuple((len(x), x.shape[1] // side, x.shape[2] // side) for x in batch.frames))
        embeds = embeds.masked_scatter(vision[..., None], features.to(embeds.dtype))
    return Inputs(embeds, batch.positions, vision, batch.lengths, batch.seq_idx)


class Objective(nn.Module):
    """The loss of a stage as one module, which accelerate can spread over processes, but for the teacher: that is no
    part of the module, and whole in every process."""

    def __init__(
        self,
        stage: Stage,
        student: InfiniteVLForConditionalGeneration,
        teacher: InfiniteVLForConditionalGeneration | None,
    ) -> None:
        """ValueError where the stage needs a teacher and there is none."""
        super().__init__()
        if stage.needs_teacher and teacher is None:
            raise ValueError(f"stage {stage.name} needs a teacher")
        self.stage, self.student = stage, student
        self._unregistered = (None if teacher is None else teacher.eval().requires_grad_(False),)

    @property
    def teacher(self) -> InfiniteVLForConditionalGeneration | None:
        return self._unregistered[0]

    def forward(self, batch: Batch) -> Tensor:
        """The mean loss over the tokens that count, see `count`."""
        if self.teacher is None:
            hidden = embed(self.student, batch).decode(self.student.model.language_model)
            return cross_entropy(hidden, self.student.lm_head.weight, batch.targets)
        if self.stage.loss == "layerwise":
            return _layerwise(self.student, self.teacher, batch)
        return _distillation(self.stage.temperature, self.student, self.teacher, batch)

    def count(self, batch: Batch) -> int:
        """The tokens that the loss is the mean of: those to be learnt, or all, or for distillation all text."""
        if self.teacher is None:
            return int((batch.targets != IGNORED).sum())
        if self.stage.loss == "layerwise":
            return batch.tokens
        config = self.student.config
        vision = (batch.ids == config.image_token_id) | (batch.ids == config.video_token_id)
        return batch.tokens - int(vision.sum())


def _layerwise(
    student: InfiniteVLForConditionalGeneration,
    teacher: InfiniteVLForConditionalGeneration,
    batch: Batch,
) -> Tensor:
    """Each replaced layer on the teacher's input of that layer. No two graphs of layers exist at a time: each is
    made again for its backward pass."""
    hidden: list[Tensor] = []
    with torch.no_grad():
        inputs = embed(teacher, batch)
        inputs.decode(teacher.model.language_model, hidden)
    decoder = student.model.language_model
    chunk = decoder.chunk(inputs.embeds, inputs.positions, inputs.lengths, inputs.seq_idx, None)
    replaced = [i for i, kind in enumerate(decoder.config.layer_types or []) if kind == "linear_attention"]

    def distance(i: int) -> Tensor:
        return layer_distance(decoder.layers[i](hidden[i], chunk), hidden[i + 1], inputs.real)

    return torch.stack([checkpoint(distance, i, use_reentrant=False) for i in replaced]).mean()


def _distillation(
    temperature: float,
    student: InfiniteVLForConditionalGeneration,
    teacher: InfiniteVLForConditionalGeneration,
    batch: Batch,
) -> Tensor:
    """KL of the logits over real text tokens: what follows a patch of a frame is never asked of either model."""
    with torch.no_grad():
        inputs = embed(teacher, batch)
        wanted = inputs.decode(teacher.model.language_model)
    own = embed(student, batch)
    found = own.decode(student.model.language_model)
    return distillation(
        found, wanted, student.lm_head.weight, teacher.lm_head.weight, own.real & ~own.vision, temperature
    )


def gradient_norms(model: nn.Module) -> dict[str, float]:
    """Gradient norm of every layer and part that has one, for telling where a training broke."""
    squares: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            part = _part(name)
            squares[part] = squares.get(part, 0.0) + float(joined(parameter.grad.float().square().sum()))
    return {part: square**0.5 for part, square in squares.items()}


def not_numbers(model: nn.Module) -> list[str]:
    """The layers and parts with a weight that is no number, or infinite."""
    sums = {name: float(joined(p.detach().float().sum())) for name, p in model.named_parameters()}
    return list(dict.fromkeys(_part(name) for name, total in sums.items() if not math.isfinite(total)))


def _part(name: str) -> str:
    """Such as language_model.layers.2, of the name of a parameter."""
    return ".".join(name.split(".")[1:4])
