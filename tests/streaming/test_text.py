"""Tokens to text, piece by piece, and the choice of the next one."""

from collections.abc import Sequence

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from infinitevl.errors import InfiniteVLError
from infinitevl.model.random_model import byte_tokenizer
from infinitevl.streaming.text import Sampling, TextPieces, Writer, choose, decode

TOKENIZER = byte_tokenizer()
IDS = {byte: TOKENIZER.convert_tokens_to_ids(char) for byte, char in enumerate(
    # the byte-level alphabet in the order of the bytes
    [*map(chr, range(256, 289)), *map(chr, range(33, 127)), *map(chr, range(289, 323)), *map(chr, range(161, 173)),
     chr(323), *map(chr, range(174, 256))]
)}  # fmt: skip
TEXTS = st.text(st.sampled_from("ab é€😀\u0301\n\ufffd"), max_size=12)


def ids(data: bytes) -> list[int]:
    return [IDS[byte] for byte in data]


def pushed(tokens: Sequence[int], stop: Sequence[str] = ()) -> list[str]:
    """All pieces, the held-back rest last; stops where a stop string came."""
    pieces, found = TextPieces(TOKENIZER, stop), []
    for token in tokens:
        found.append(pieces.push(token))
        if pieces.stopped:
            break
    return [*found, pieces.flush()]


def test_the_alphabet():
    assert TOKENIZER.decode(ids("aé€😀".encode())) == "aé€😀"
    assert ids("aé€😀".encode()) == TOKENIZER.encode("aé€😀")


@settings(deadline=None)
@given(TEXTS)
@example("e\u0301 é € 😀 👩‍👩‍👧")
def test_pieces_never_split_a_character(text: str):
    found = pushed(ids(text.encode()))
    assert "".join(found) == text
    if "\ufffd" not in text:
        assert all("\ufffd" not in piece for piece in found)


CUT = st.builds(lambda char, n: char.encode()[n:] + char.encode()[:n], st.sampled_from("aé€😀"), st.integers(0, 4))


@settings(deadline=None)
@given(st.one_of(st.binary(max_size=40), st.lists(CUT, max_size=12).map(b"".join)))
@example("€".encode()[:2])
@example(b"\x98\xe2\x82\xac\xe2\x82\xff\xf0\x9f")
def test_pieces_are_the_whole_whatever_the_bytes(data: bytes):
    assert "".join(pushed(ids(data))) == TOKENIZER.decode(ids(data))


@settings(deadline=None)
@given(TEXTS, st.lists(st.sampled_from(["<|im_end|>", "<|image_pad|>"]), max_size=2))
def test_special_tokens_are_not_shown(text: str, marks: list[str]):
    tokens = ids(text.encode())
    for i, mark in enumerate(marks):
        tokens.insert(i * 3, TOKENIZER.convert_tokens_to_ids(mark))
    assert "".join(pushed(tokens)) == TOKENIZER.decode(tokens, skip_special_tokens=True)


@settings(deadline=None)
@given(st.text(st.sampled_from("abé"), max_size=16), st.lists(st.text(st.sampled_from("abé"), max_size=4), max_size=3))
def test_the_answer_ends_before_the_stop_string_that_is_whole_first(text: str, stop: list[str]):
    ends = (end for end in range(len(text)) if any(s and s in text[: end + 1] for s in stop))
    written = text[: next(ends, len(text)) + 1]
    places = [place for s in stop if s and (place := written.find(s)) >= 0]
    assert "".join(pushed(ids(text.encode()), stop)) == written[: min(places, default=len(text))]


def test_only_the_possible_beginning_of_a_stop_string_is_held_back():
    assert pushed(ids(b"one END."), ["ENDS"]) == ["o", "n", "e", " ", "", "", "", "END.", ""]
    assert pushed(ids(b"a\n"), ["\n\n"]) == ["a", "", "\n"]
    assert pushed(ids(b"a\n\nb"), ["\n\n"]) == ["a", "", "", ""]


class Script:
    """Goes on with the next token of a script, whatever it is fed."""

    def __init__(self, script: list[int]) -> None:
        self.script, self.fed = script, []
        self.first = torch.tensor(script[:1])

    def go_on(self, token: torch.Tensor) -> torch.Tensor:
        self.fed += token.tolist()
        return torch.tensor(self.script[len(self.fed) :][:1])


def test_it_stops_at_once():
    script, pieces = Script(ids(b"yes. No")), TextPieces(TOKENIZER, ["."])
    assert "".join(decode(script.first, script.go_on, Writer(Sampling(), pieces, 50, ()))) == "yes"
    assert script.fed == ids(b"yes.")


@pytest.mark.parametrize("read", [1, 2, 3])
def test_what_was_chosen_has_been_fed(read: int):
    """Read to the end or closed early; the end mark is not fed."""
    end = TOKENIZER.convert_tokens_to_ids("<|im_end|>")
    script = Script([*ids(b"ab"), end, 0])
    written = decode(script.first, script.go_on, Writer(Sampling(), TextPieces(TOKENIZER), 9, {end}))
    for _ in zip(range(read), written, strict=False):
        pass
    written.close()  # type: ignore[attr-defined]
    assert script.fed == ids(b"ab")[:read]


def test_greedy_is_the_largest():
    for _ in range(20):
        logits = torch.randn(50)
        assert Sampling().choose(logits) == int(logits.argmax())
    assert Sampling().choose(torch.tensor([1.0, 3.0, 3.0])) == 1


def test_a_seed_is_a_sequence():
    logits = torch.randn(1000)

    def drawn(seed: int | None) -> list[int]:
        sampling = Sampling(1.0, seed=seed)
        return [sampling.choose(logits) for _ in range(20)]

    assert drawn(1) == drawn(1) != drawn(2)
    assert drawn(None) != drawn(None)
    state = torch.get_rng_state()
    drawn(1)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is not ours"


@pytest.mark.parametrize(
    ("top_p", "kept"), [(0.05, {2}), (0.5, {2}), (0.51, {2, 0}), (0.8, {2, 0}), (0.81, {2, 0, 3}), (1.0, {0, 1, 2, 3})]
)
def test_top_p_keeps_the_head(top_p: float, kept: set[int]):
    logits = torch.tensor([0.3, 0.05, 0.5, 0.15]).log()
    sampling = Sampling(1.0, top_p, seed=0)
    assert {sampling.choose(logits) for _ in range(400)} == kept


def test_rows_choose_as_each_would_alone():
    """Greedy rows beside others; without top_p what torch.multinomial draws of the same seed."""
    logits = torch.randn(4, 60)
    options = [(0.0, 1.0, 1), (0.7, 1.0, 2), (1.3, 0.8, 3), (1.0, 0.3, 4)]
    together, alone = [Sampling(*option) for option in options], [Sampling(*option) for option in options]
    drawn = torch.Generator().manual_seed(2)
    for _ in range(20):
        found = choose(logits, together).tolist()
        assert found == [sampling.choose(row) for sampling, row in zip(alone, logits, strict=True)]
        assert found[0] == int(logits[0].argmax())
        assert found[1] == int(torch.multinomial((logits[1] / 0.7).softmax(-1), 1, generator=drawn))


def test_temperature_flattens_and_sharpens():
    logits = torch.tensor([0.6, 0.4]).log()

    def share(temperature: float) -> float:
        sampling = Sampling(temperature, seed=0)
        return sum(sampling.choose(logits) for _ in range(2000)) / 2000

    assert share(1.0) == pytest.approx(0.4, abs=0.05)
    assert share(0.5) == pytest.approx(0.16 / 0.52, abs=0.05)
    assert share(100.0) == pytest.approx(0.5, abs=0.05)
    assert share(1e-30) == share(1e-3) == 0.0


@pytest.mark.parametrize(
    "options",
    [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.01}, {"top_p": float("nan")}],
)
def test_bad_options(options: dict):
    with pytest.raises(InfiniteVLError, match=r"must be"):
        Sampling(**options)
