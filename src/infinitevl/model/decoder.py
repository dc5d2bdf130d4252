"""The language model: embeddings, layers, final norm."""

import torch
from torch import Tensor, nn

from infinitevl.model.configuration import InfiniteVLTextConfig
from infinitevl.model.layers import Chunk, DecoderLayer, Normed, RMSNorm, bare, following
from infinitevl.model.rope import rotary_table
from infinitevl.model.state import State


class Decoder(nn.Module):
    """Interleaved attention and Gated DeltaNet layers. An offline pass is a stream that starts now."""

    def __init__(self, config: InfiniteVLTextConfig):
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList([DecoderLayer(config, kind) for kind in config.layer_types or []])
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x: Tensor,
        positions: Tensor,
        vision: Tensor,
        lengths: Tensor | None = None,
        seq_idx: Tensor | None = None,
        state: State | None = None,
        hidden: list[Tensor] | None = None,
    ) -> Tensor:
        """Run a chunk of tokens and, where there is a state, advance it in place.

        x: [B, T, hidden] embeddings; positions: [3, B, T] int64; vision: [B, T] bool, True at image and video
        tokens; lengths, seq_idx: as in `ops`; hidden: a list that receives the input of every layer and the
        last layer's output.
        Returns [B, T, hidden] after the final norm.
        """
        if state is not None:
            self.check_state(x, state, seq_idx)
            state.reserve(x.shape[1])
        chunk, carried = self.chunk(x, positions, lengths, seq_idx, state), x
        norms = [*(layer.input_layernorm for layer in self.layers), self.norm][1:]
        for i, (layer, norm) in enumerate(zip(self.layers, norms, strict=True)):
            if hidden is not None:
                hidden.append(bare(carried))
            carried = layer(carried, chunk, None if state is None else state.layers[i], following(norm))
        if hidden is not None:
            hidden.append(bare(carried))
        if state is not None:
            state.advance(positions, vision, lengths)
        return Normed.of(carried, self.norm).y

    def check_state(self, x: Tensor, state: State, seq_idx: Tensor | None) -> None:
        """Raises ValueError where `state` cannot be continued with x."""
        if state.batch_size != x.shape[0]:
            raise ValueError(f"the state has {state.batch_size} rows, the input {x.shape[0]}")
        if seq_idx is not None:
            raise ValueError("packed sequences (seq_idx) cannot continue a state: pass one or the other")
        if self.training and any(getattr(layer, "gradient_checkpointing", False) for layer in self.layers):
            raise ValueError("gradient checkpointing would write the state twice: turn it off, or pass no state")

    def chunk(
        self,
        x: Tensor,
        positions: Tensor,
        lengths: Tensor | None,
        seq_idx: Tensor | None,
        state: State | None,
    ) -> Chunk:
        """What the layers share about these tokens; see `forward`."""
        rope = self.config.rope_parameters or {}
        wide = torch.float64 if x.dtype == torch.float64 else torch.float32
        cos, sin = rotary_table(positions, self.config.head_dim or 0, rope["rope_theta"], rope["mrope_section"], wide)
        return Chunk(
            cos, sin, lengths, seq_idx, *((None, None) if state is None else (state.of("count"), state.slots))
        )
