"""The small tokenizer of the model in the box: byte-level BPE over what StreamWorld says, Qwen's special tokens."""

import re
from collections.abc import Iterator

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from infinitevl.data.streamworld.vocabulary import WORDS
from infinitevl.data.worlds import VISUAL, Part, world_sample
from infinitevl.model.processing import CHAT_TEMPLATE, IM_END
from infinitevl.model.random_model import END_OF_TEXT, SPECIAL


def train_tokenizer(vocabulary: int = 1024, conversations: int = 400, seed: int = 0) -> PreTrainedTokenizerFast:
    """Digits stay single tokens, as in Qwen's tokenizer. Any text can be encoded, byte by byte if need be."""
    tokenizer = Tokenizer(models.BPE())
    steps = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.ByteLevel()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary - len(SPECIAL), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(_texts(conversations, seed), trainer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=IM_END, pad_token=END_OF_TEXT, chat_template=CHAT_TEMPLATE
    )


WORD = re.compile(rf"\b({'|'.join(WORDS)})\b")  # what signs say is spelt letter by letter, as it is read


def _texts(conversations: int, seed: int) -> Iterator[str]:
    rng = np.random.default_rng(seed)
    parts = (
        Part(1, frames=(8, 24), questions=8, groups=(*VISUAL, "describe", "recall", "order")),
        Part(1, "text", questions=8),
    )
    for i in range(conversations):
        for message in world_sample(parts[i % 2], rng, 112).messages:
            yield f"{message['role']}\n"
            yield WORD.sub("", message["content"].replace("<video>", ""))
