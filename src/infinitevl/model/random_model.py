"""A small checkpoint of random weights, complete with tokenizer: for trying things out and for tests."""

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from infinitevl.model.configuration import InfiniteVLConfig
from infinitevl.model.linear import join
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration
from infinitevl.model.processing import (
    CHAT_TEMPLATE,
    IM_END,
    IM_START,
    IMAGE,
    VIDEO,
    VISION_END,
    VISION_START,
    InfiniteVLProcessor,
)

END_OF_TEXT = "<|endoftext|>"
SPECIAL = (END_OF_TEXT, IM_START, IM_END, VISION_START, VISION_END, "<|vision_pad|>", IMAGE, VIDEO)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token per byte, and Qwen2.5-VL's special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # pyright: ignore
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=IM_END, pad_token=END_OF_TEXT, chat_template=CHAT_TEMPLATE
    )


def random_config(processor: InfiniteVLProcessor, **text: object) -> InfiniteVLConfig:
    """8 layers of width 128, window 256, about 2 million parameters; `text` overrides fields of the text config."""
    return InfiniteVLConfig(
        text_config={
            "vocab_size": len(processor.tokenizer), "hidden_size": 128, "intermediate_size": 256,
            "num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
            "sliding_window": 256, "rope_parameters": {"mrope_section": [4, 6, 6]}, **text,
        },
        vision_config={
            "depth": 4, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "out_hidden_size": 128,
            "fullatt_block_indexes": [1, 3],
        },
        **processor.config_ids(),
    )  # fmt: skip


def random_weights(
    config: InfiniteVLConfig, processor: InfiniteVLProcessor, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> InfiniteVLForConditionalGeneration:
    """A model of any sizes, made where and as it is wanted."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.device(device):
        torch.manual_seed(seed)
        model = InfiniteVLForConditionalGeneration._from_config(config, dtype=dtype)
    if device.type == "cuda":
        join(model)
    model.processor = processor
    return model.eval()


def random_model(seed: int = 0, **text: object) -> InfiniteVLForConditionalGeneration:
    """A model of random weights in float32 on the CPU, with its processor."""
    processor = InfiniteVLProcessor(byte_tokenizer())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = InfiniteVLForConditionalGeneration(random_config(processor, **text))
    model.processor = processor
    return model.eval()


def write_random_checkpoint(folder: str | Path, seed: int = 0) -> Path:
    """Write such a model as a checkpoint that every command loads."""
    model = random_model(seed)
    model.save_pretrained(folder)
    model.processor.save_pretrained(folder)
    return Path(folder)
