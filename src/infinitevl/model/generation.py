"""How transformers' `generate` meets a model whose cache is a State."""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin


class StateGenerationMixin(GenerationMixin):
    """`generate` with greedy search, sampling and beams; the state takes the place of a cache."""

    config: Any

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """False: `forward` allocates the state."""
        return False

    def _prepare_position_ids_for_generation(self, *_: Any) -> None:
        """None: `forward` numbers the prompt, the state goes on from there."""

    def _expand_inputs_for_generation(
        self,
        expand_size: int = 1,
        is_encoder_decoder: bool = False,
        input_ids: Tensor | None = None,
        **inputs: Any,
    ) -> tuple[Any, dict[str, Any]]:
        """Repeat the rows for beams and samples, and the images and videos of each row with it."""
        merge, expanded = self.config.vision_config.spatial_merge_size, {}
        seconds = inputs.pop("second_per_grid_ts", None)
        for pixels, grid, token in (
            ("pixel_values", "image_grid_thw", self.config.image_token_id),
            ("pixel_values_videos", "video_grid_thw", self.config.video_token_id),
        ):
            if inputs.get(grid) is not None and input_ids is not None:
                values, sizes = inputs.pop(pixels), inputs.pop(grid)
                order = _picture_order((input_ids == token).sum(1), sizes.prod(1) // merge**2, expand_size)
                pieces = values.split(sizes.prod(1).tolist())
                expanded |= {pixels: torch.cat([pieces[i] for i in order]), grid: sizes[order]}
                if seconds is not None and pixels == "pixel_values_videos":
                    seconds = [float(seconds[i]) for i in order]
        input_ids, inputs = super()._expand_inputs_for_generation(  # pyright: ignore
            expand_size, is_encoder_decoder, input_ids, **inputs
        )
        return input_ids, {**inputs, **expanded, "second_per_grid_ts": seconds}

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:
        inputs = super().prepare_inputs_for_generation(input_ids, **kwargs)  # pyright: ignore
        if inputs.get("input_ids") is not None and inputs["input_ids"].shape[1] == 0:
            raise ValueError("no new tokens: with a state, pass the new tokens and a mask that covers the old ones")
        if not kwargs.get("is_first_iteration") and kwargs.get("use_cache", True):
            inputs |= dict.fromkeys(("image_grid_thw", "video_grid_thw", "position_ids"))
        return inputs


def _picture_order(tokens: Tensor, sizes: Tensor, repeats: int) -> list[int]:
    """Pictures in the order of the rows, each row `repeats` times. tokens: [B] of each row; sizes: of each picture."""
    stops = torch.searchsorted(sizes.cumsum(0), tokens.cumsum(0), right=True).tolist()
    rows = zip([0, *stops], stops, strict=False)
    return [i for start, stop in rows for _ in range(repeats) for i in range(start, stop)]
