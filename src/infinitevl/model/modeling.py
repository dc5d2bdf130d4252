"""The model as Hugging Face users know it: loading and saving, `forward`, `generate`, positions, state."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from infinitevl.model import graphs
from infinitevl.model.configuration import InfiniteVLConfig
from infinitevl.model.decoder import Decoder
from infinitevl.model.generation import StateGenerationMixin
from infinitevl.model.layers import GatedDeltaNet, RMSNorm, ShortConvolution
from infinitevl.model.linear import Linear
from infinitevl.model.pieces import in_pieces
from infinitevl.model.positions import Grid, as_grid, number_prompts
from infinitevl.model.state import State
from infinitevl.model.vision import VisionTower

# Checkpoints written by transformers 4 name the parts without `model.` or without `language_model.`
OLD_NAMES = {
    r"^visual\.": "model.visual.",
    r"^model\.(?=(embed_tokens|layers|norm)\.)": "model.language_model.",
}


@dataclass
class InfiniteVLOutput(ModelOutput):
    """loss: scalar; logits: [B, T or logits_to_keep, vocabulary]; past_key_values: the state, advanced;
    hidden_states: the input of every layer and the final norm's output, each [B, T, hidden]; rope_deltas: [B, 1].
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: State | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    rope_deltas: Tensor | None = None


class InfiniteVLModel(nn.Module):
    """The vision tower and the language model, under the checkpoint's names."""

    def __init__(self, config: InfiniteVLConfig):
        super().__init__()
        self.visual = VisionTower(config.vision_config)
        self.language_model = Decoder(config.text_config)


class InfiniteVLForConditionalGeneration(PreTrainedModel, StateGenerationMixin):
    """InfiniteVL (arXiv 2512.08829): a vision-language model whose memory of an endless stream has constant size."""

    config: InfiniteVLConfig
    config_class = InfiniteVLConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities: ClassVar = ["image", "video", "text"]
    supports_gradient_checkpointing = True
    _is_stateful = True
    _no_split_modules: ClassVar = ["DecoderLayer", "VisionBlock"]
    _skip_keys_device_placement: ClassVar = ["past_key_values"]
    _tied_weights_keys: ClassVar = {"lm_head.weight": "model.language_model.embed_tokens.weight"}
    _supports_sdpa = True

    def __init__(self, config: InfiniteVLConfig):
        super().__init__(config)
        text = config.text_config
        self.model = InfiniteVLModel(config)
        self.lm_head = Linear(text.hidden_size, text.vocab_size, bias=False)
        self.processor: Any = None
        self.graphs: Any = None  # those of `model.graphs`, once there are some
        self.post_init()

    @classmethod
    def from_pretrained(cls, name: Any, *args: Any, **kwargs: Any) -> "InfiniteVLForConditionalGeneration":
        """As in transformers. Safetensors only; older prefixes of the tensor names are accepted. The model is for one
        device: a `device_map` of "auto" is the first GPU, or the CPU; ValueError for one that names several. Frames
        are fastest after `requires_grad_(False)`, as `infinitevl.load` gives the model: weights lie side by side."""
        kwargs = {"key_mapping": OLD_NAMES, **kwargs, "use_safetensors": True}
        if kwargs.get("device_map") is not None:
            kwargs["device_map"] = _on_one_device(kwargs["device_map"])
        return super().from_pretrained(name, *args, **kwargs)

    @property
    def device(self) -> torch.device:
        """That of the head: to ask for the first of all parameters takes longer than some launches."""
        return self.lm_head.weight.device

    def get_input_embeddings(self) -> nn.Module:
        return self.model.language_model.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.model.language_model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, RMSNorm):
            nn.init.ones_(module.weight)
        elif isinstance(module, ShortConvolution):
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5))
        elif isinstance(module, GatedDeltaNet):
            init_decay(module.A_log, module.dt_bias)

    def allocate_state(self, batch_size: int = 1) -> State:
        """An empty state for `batch_size` streams, on the model's device."""
        return State(self.config.text_config, batch_size, self.device, self.dtype)

    def stream(self, **options: Any):
        """A `Stream` of this model: see there for the options."""
        from infinitevl import Stream

        return Stream(self, **options)

    def end_tokens(self) -> set[int]:
        """The tokens that end an answer: those of the generation config and the end mark of a message."""
        ends = self.generation_config.eos_token_id if self.generation_config is not None else None
        listed = ends if isinstance(ends, list) else [ends, self.config.eos_token_id]
        return {token for token in listed if isinstance(token, int)}

    def encode(self, patches: Tensor, grid: Grid) -> Tensor:
        """Tokens of images and videos: patches [patches, 1176], grid in patches -> [patches / 4, hidden]."""
        visual, needed = self.model.visual, sum(t * h * w for t, h, w in grid)
        if patches.shape[0] != needed:
            raise ValueError(f"{patches.shape[0]} patches for grids of {needed}")
        return visual(patches.to(self.device), visual.plan(grid, self.device))

    def get_image_features(self, pixel_values: Tensor, image_grid_thw: Tensor) -> Tensor:
        return self.encode(pixel_values, as_grid(image_grid_thw))

    def get_video_features(self, pixel_values_videos: Tensor, video_grid_thw: Tensor) -> Tensor:
        return self.encode(pixel_values_videos, as_grid(video_grid_thw))

    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        position_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: State | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        seq_idx: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        second_per_grid_ts: Tensor | Sequence[float] | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        **_: Any,
    ) -> InfiniteVLOutput:
        """Run a chunk of tokens: a whole prompt, a part of a stream, or one token.

        input_ids: [B, T] (or inputs_embeds [B, T, hidden]); pixel_values, pixel_values_videos: [patches, 1176] with
        image_grid_thw, video_grid_thw: [images, 3]; position_ids: [B, T] or [3, B, T], computed when not given
        (`get_rope_index`; text goes on where the state is); attention_mask: [B, T] or [B, past + T], 0 at padding,
        anywhere in a row; past_key_values: the state, advanced in place (allocated when use_cache is set);
        labels: [B, T], -100 where there is no loss; logits_to_keep: the last n tokens (0: all), or their indices;
        seq_idx: [B, T] packed sequences, without a state; mm_token_type_ids: [B, T], 0 at text, needed only with
        inputs_embeds. On a GPU, without gradients, a state and its tokens replay CUDA graphs: hooks of layers run only
        when one is captured, and adapters are those of then, unless hidden states are asked for.
        """
        embeds = self._embed(
            input_ids, inputs_embeds, pixel_values, image_grid_thw, pixel_values_videos, video_grid_thw
        )
        batch, time = embeds.shape[:2]
        if use_cache and past_key_values is None:
            past_key_values = self.allocate_state(batch)
        if past_key_values is not None:
            self.model.language_model.check_state(embeds, past_key_values, seq_idx)
        mask = None if attention_mask is None else attention_mask[:, -time:].to(embeds.device)
        vision = self._vision_mask(embeds, input_ids, mm_token_type_ids, image_grid_thw, video_grid_thw)
        deltas = None
        if position_ids is None:
            grids = (image_grid_thw, video_grid_thw, second_per_grid_ts)
            position_ids, deltas = self._positions(input_ids, vision, mask, past_key_values, seq_idx, *grids)
        positions = position_ids.to(embeds.device).expand(3, batch, time)
        wanted = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        hidden: list[Tensor] | None = [] if wanted else None
        x = self._decode(embeds, positions, vision, mask, seq_idx, past_key_values, hidden)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(x[:, keep])
        return InfiniteVLOutput(
            loss=None if labels is None else _next_token_loss(logits, labels[:, keep]),
            logits=logits,
            past_key_values=past_key_values,
            hidden_states=None if hidden is None else (*hidden[:-1], x),
            rope_deltas=deltas,
        )

    def _embed(
        self,
        input_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        pixel_values: Tensor | None,
        image_grid_thw: Tensor | None,
        pixel_values_videos: Tensor | None,
        video_grid_thw: Tensor | None,
    ) -> Tensor:
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass either input_ids or inputs_embeds")
        embeds = self.get_input_embeddings()(input_ids) if inputs_embeds is None else inputs_embeds
        for pixels, grid, token, kind in (
            (pixel_values, image_grid_thw, self.config.image_token_id, "image"),
            (pixel_values_videos, video_grid_thw, self.config.video_token_id, "video"),
        ):
            if pixels is not None:
                if grid is None or input_ids is None:
                    raise ValueError(f"{kind} pixels need input_ids and {kind}_grid_thw")
                embeds = _insert(embeds, input_ids == token, self.encode(pixels, as_grid(grid)), kind)
        return embeds

    def _vision_mask(
        self,
        embeds: Tensor,
        input_ids: Tensor | None,
        token_types: Tensor | None,
        image_grid_thw: Tensor | None,
        video_grid_thw: Tensor | None,
    ) -> Tensor:
        """[B, T] bool, True at image and video tokens. Such a token without a grid is text that the model wrote."""
        if input_ids is None and token_types is not None:
            return token_types != 0
        vision = torch.zeros(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
        if input_ids is None:
            return vision
        if image_grid_thw is not None:
            vision = vision | (input_ids == self.config.image_token_id)
        if video_grid_thw is not None:
            vision = vision | (input_ids == self.config.video_token_id)
        return vision

    def _decode(
        self,
        embeds: Tensor,
        positions: Tensor,
        vision: Tensor,
        mask: Tensor | None,
        seq_idx: Tensor | None,
        state: State | None,
        hidden: list[Tensor] | None,
    ) -> Tensor:
        """The decoder wants a row's padding behind its tokens: move it there, and the results back."""
        if mask is None or embeds.shape[1] == 1:
            lengths = None if mask is None else (mask != 0).sum(1)
            return self._decode_in_order(embeds, positions, vision, lengths, seq_idx, state, hidden)
        order = torch.argsort(mask == 0, dim=1, stable=True)
        back = torch.argsort(order, dim=1)
        positions = torch.stack([p.gather(1, order) for p in positions])
        seq_idx = None if seq_idx is None else seq_idx.gather(1, order)
        lengths = (mask != 0).sum(1)
        vision, embeds = vision.gather(1, order), _rows(embeds, order)
        x = self._decode_in_order(embeds, positions, vision, lengths, seq_idx, state, hidden)
        if hidden is not None:
            hidden[:] = [_rows(h, back) for h in hidden]
        return _rows(x, back)

    def _decode_in_order(
        self,
        embeds: Tensor,
        positions: Tensor,
        vision: Tensor,
        lengths: Tensor | None,
        seq_idx: Tensor | None,
        state: State | None,
        hidden: list[Tensor] | None,
    ) -> Tensor:
        """The decoder; into a state, without gradients and hidden states, in pieces that graphs replay on a GPU."""
        decoder = self.model.language_model
        if state is None or hidden is not None or torch.is_grad_enabled() or not graphs.replays(self, state):
            return decoder(embeds, positions, vision, lengths, seq_idx, state, hidden)

        def put(state: State, embeds: Tensor, positions: Tensor, vision: Tensor, *lengths: Tensor) -> Tensor:
            return decoder(embeds, positions.permute(2, 0, 1), vision, *lengths, state=state)

        batch, time = embeds.shape[:2]
        real = torch.full((batch,), time) if lengths is None else lengths
        inputs = embeds, positions.permute(1, 2, 0), vision
        pieces = [found for _, found in in_pieces(self, state, "decode", put, inputs, real)]
        return torch.cat(pieces, dim=1)[:, :time]

    def _positions(
        self,
        input_ids: Tensor | None,
        vision: Tensor,
        mask: Tensor | None,
        state: State | None,
        seq_idx: Tensor | None,
        image_grid_thw: Tensor | None,
        video_grid_thw: Tensor | None,
        seconds: Tensor | Sequence[float] | None,
    ) -> tuple[Tensor, Tensor]:
        """Positions [3, B, T] by the authors' rule, going on from the state, and the rope deltas [B, 1]."""
        if image_grid_thw is None and video_grid_thw is None and seq_idx is None:
            real = torch.ones_like(vision) if mask is None else mask != 0
            positions = (real.cumsum(1) - 1).clamp(min=0).expand(3, -1, -1)
            deltas = positions.new_zeros(vision.shape[0], 1)
        elif input_ids is None:
            raise ValueError("image, video or packed positions need input_ids, or pass position_ids")
        else:
            positions, deltas = self.get_rope_index(input_ids, image_grid_thw, video_grid_thw, seconds, mask, seq_idx)
            if state is not None:  # what the state calls `run` is text before the first image here, too
                positions = positions + torch.where(vision.cumsum(1) > 0, state.of("run")[:, None], 0)
        return positions if state is None else positions + state.of("position")[:, None], deltas

    def get_rope_index(
        self,
        input_ids: Tensor,
        image_grid_thw: Tensor | None = None,
        video_grid_thw: Tensor | None = None,
        second_per_grid_ts: Tensor | Sequence[float] | None = None,
        attention_mask: Tensor | None = None,
        seq_idx: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Positions [3, B, T] of prompts (`PositionRule`) and the rope deltas [B, 1], largest + 1 - length.

        second_per_grid_ts: seconds between the steps of each video (1.0 by default). Raises ValueError where the
        image and video tokens do not match the grids.
        """
        grids = (as_grid(image_grid_thw), as_grid(video_grid_thw))
        return number_prompts(self.config, input_ids, *grids, second_per_grid_ts, attention_mask, seq_idx)


@torch.no_grad()
def init_decay(a_log: Tensor, dt_bias: Tensor) -> None:
    """Decay and step of Gated DeltaNet, in place: A uniform in (0, 16), softplus(dt_bias) log-uniform, 1e-3..1e-1."""
    a_log.copy_(torch.empty_like(a_log, dtype=torch.float32).uniform_(1e-3, 16).log())
    low, high = math.log(1e-3), math.log(1e-1)
    dt = torch.empty_like(dt_bias, dtype=torch.float32).uniform_(low, high).exp()
    dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))


def _on_one_device(device_map: Any) -> Any:
    """A state lies on one device, and so does the model."""
    if device_map in ("auto", "balanced", "balanced_low_0", "sequential"):
        return {"": "cuda:0" if torch.cuda.is_available() else "cpu"}
    named = device_map.values() if isinstance(device_map, dict) else ()
    devices = {f"cuda:{name}" if isinstance(name, int) else str(name) for name in named}
    devices = {"cuda:0" if name == "cuda" else name for name in devices}
    if len(devices) > 1:
        raise ValueError(f"device_map names {len(devices)} devices: the model is for one")
    return device_map


def _rows(x: Tensor, order: Tensor) -> Tensor:
    """x[b, order[b]] for x [B, T, D]."""
    return x.gather(1, order[..., None].expand(-1, -1, x.shape[-1]))


def _insert(embeds: Tensor, where: Tensor, features: Tensor, kind: str) -> Tensor:
    tokens = int(where.sum())
    if tokens != features.shape[0]:
        raise ValueError(f"the prompt has {tokens} {kind} tokens, the {kind}s make {features.shape[0]}")
    return embeds.masked_scatter(where[..., None], features.to(embeds.dtype))


def _next_token_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy of predicting labels[t + 1] from logits[t], in float32, over labels that are not -100."""
    return F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten(), ignore_index=-100)
