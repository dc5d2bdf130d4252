"""Low-rank adapters (LoRA, arXiv 2106.09685, by PEFT) in place of what a stage trains."""

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from infinitevl.model.modeling import InfiniteVLForConditionalGeneration


def add_adapters(model: InfiniteVLForConditionalGeneration, names: list[str], rank: int) -> PeftModel:
    """Adapters of this rank, scaled by 2, beside the linear layers among the parameters `names`; only they train.

    The model itself is changed, in place; `merge_and_unload` of what is returned makes it whole again.
    """
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    targets = [name for name in (name.removesuffix(".weight") for name in names) if name in linear]
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets))
