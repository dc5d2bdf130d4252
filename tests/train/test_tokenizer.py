"""The tokenizer of the model in the box."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infinitevl.model.processing import IM_END, IM_START, IMAGE, VIDEO, InfiniteVLProcessor
from infinitevl.model.random_model import END_OF_TEXT, SPECIAL
from infinitevl.train.tokenizer import train_tokenizer

VOCABULARY = 500


@pytest.fixture(scope="module")
def processor() -> InfiniteVLProcessor:
    return InfiniteVLProcessor(train_tokenizer(VOCABULARY, conversations=60))


def test_digits_are_single_tokens(processor: InfiniteVLProcessor):
    for text in ("1234567890", "What is 12 + 345?", "a1b22c333", "7"):
        pieces = processor.tokenizer.convert_ids_to_tokens(processor.encode(text))
        assert [piece for piece in pieces if any(c.isdigit() for c in piece)] == [c for c in text if c.isdigit()]


@pytest.fixture(scope="module")
def round_trip(processor: InfiniteVLProcessor):
    def check(text: str) -> None:
        assert processor.tokenizer.decode(processor.encode(text, special=False)) == text

    return check


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back(round_trip, text: str):
    round_trip(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "\n\n",
        " a  b ",
        "don 't , you . know !",
        "\u00e9 e\u0301 \U0001f600 \u0663\u00b2",
        "\x00\x7f",
        f"x{IM_END}y",
        "\u4f60\u597d",
    ],
)
def test_these_texts_come_back(round_trip, text: str):
    round_trip(text)


def test_special_tokens(processor: InfiniteVLProcessor):
    tokenizer = processor.tokenizer
    assert len(tokenizer) == VOCABULARY
    for token in SPECIAL:
        assert processor.encode(token) == [processor.token_id(token)]
        assert len(processor.encode(token, special=False)) > 3
    assert (tokenizer.eos_token, tokenizer.pad_token) == (IM_END, END_OF_TEXT)
    ids = processor.config_ids()
    assert [ids["image_token_id"], ids["video_token_id"]] == [processor.token_id(IMAGE), processor.token_id(VIDEO)]
    assert processor.encode(f"{IM_START}user\n{IM_END}")[0] == processor.token_id(IM_START)


def test_training_is_deterministic(processor: InfiniteVLProcessor):
    again = train_tokenizer(VOCABULARY, conversations=60)
    assert again.get_vocab() == processor.tokenizer.get_vocab()


def test_what_is_said_often_is_short(processor: InfiniteVLProcessor):
    assert len(processor.encode("Which number is on the card?")) <= 8
