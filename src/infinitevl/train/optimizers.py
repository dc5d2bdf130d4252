"""What makes the steps of a stage."""

import torch
from torch import nn
from torch.optim import Optimizer

from infinitevl.train.muon import Muon
from infinitevl.train.stages import Stage

BETAS = (0.9, 0.999)
BESIDE_MUON = 0.5  # AdamW's learning rate, of Muon's


def optimizers(stage: Stage, model: nn.Module) -> list[tuple[Optimizer, float]]:
    """The optimizers of what trains, each with the share of the stage's learning rate that it takes.

    "adamw" is AdamW for everything; "muon" takes the matrices but the embeddings, and AdamW the rest.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    matrices = [parameter for name, parameter in named if _is_matrix(name, parameter)]
    rest = [parameter for name, parameter in named if not _is_matrix(name, parameter)]
    if stage.optimizer == "adamw":
        return [(_adamw(matrices + rest, stage), 1.0)]
    found: list[tuple[Optimizer, float]] = []
    if matrices:
        found.append((Muon(matrices, stage.learning_rate, weight_decay=stage.weight_decay), 1.0))
    return [*found, (_adamw(rest, stage), BESIDE_MUON)] if rest else found


def _is_matrix(name: str, parameter: nn.Parameter) -> bool:
    return parameter.dim() == 2 and "embed_tokens" not in name and "lm_head" not in name


def _adamw(parameters: list[nn.Parameter], stage: Stage) -> Optimizer:
    fused = bool(parameters) and parameters[0].is_cuda
    return torch.optim.AdamW(
        parameters, stage.learning_rate, betas=BETAS, weight_decay=stage.weight_decay, fused=fused
    )
