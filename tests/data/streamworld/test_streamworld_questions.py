"""Questions: all kinds come, and their answers follow from what was shown, found out by other means."""

import re
from collections import Counter
from functools import cache

import numpy as np
import pytest

from infinitevl.data.streamworld import (
    GROUPS,
    KINDS,
    Episode,
    Question,
    World,
    clip,
    sample,
    stream,
    text_questions,
)
from infinitevl.data.streamworld.cards import listed
from infinitevl.data.streamworld.phrases import PHRASES
from infinitevl.data.streamworld.vocabulary import (
    COLOURS,
    HELD_OUT_PAIRS,
    POSITIONS,
    SHAPES,
    WORDS,
    pairs,
    word_held_out,
)
from infinitevl.errors import InfiniteVLError

Asked = list[tuple[Episode, Question]]


@cache
def asked(split: str = "test", episodes: int = 220) -> Asked:
    made = [sample(seed, split, questions=14) for seed in range(episodes)]
    return [(episode, question) for episode in made for question in episode.questions]


def of(*kinds: str) -> Asked:
    found = [pair for pair in asked() if pair[1].kind in kinds]
    assert len(found) >= 10
    return found


def test_every_kind_comes_in_several_phrasings() -> None:
    times = Counter((question.group, question.kind) for _, question in asked())
    assert set(times) == {(group, kind) for group in GROUPS for kind in KINDS[group]}
    assert min(times.values()) >= 10
    assert set(PHRASES) == {kind for kinds in KINDS.values() for kind in kinds}
    assert all(len(set(phrases)) >= 2 for phrases in PHRASES.values())
    groups = Counter(group for group, _ in times.elements())
    assert max(groups.values()) < 2 * min(groups.values())


def test_questions_are_in_order_and_complete() -> None:
    for episode, question in asked():
        assert 0 <= question.frame < len(episode.frames) and question.time == question.frame / episode.fps
        assert 0 <= question.age <= question.frame and question.age_tokens == 16 * question.age
        assert "{" not in question.question and question.answer == question.answer.lower()
        assert question.answer and 0 < question.chance <= 0.5
        assert question.facts <= len(episode.cards) + len({m.scene.number for m in episode.moments})
    episode = sample(3, "train", questions=12)
    assert [q.frame for q in episode.questions] == sorted(q.frame for q in episode.questions)


def test_the_same_seed_asks_the_same() -> None:
    one, two = sample(9, "train"), sample(9, "train")
    assert one.questions == two.questions and np.array_equal(one.frames, two.frames)
    assert sample(9, "validation").questions != one.questions
    large = sample(9, "train", size=224)
    assert large.frames.shape == (64, 224, 224, 3)
    assert [q.question for q in large.questions] == [q.question for q in one.questions]
    assert all(q.age_tokens == 64 * q.age for q in large.questions)


def test_only_the_groups_asked_for() -> None:
    episode = sample(2, "train", questions=20, groups=("see", "text"))
    assert {question.group for question in episode.questions} == {"see", "text"}
    with pytest.raises(InfiniteVLError, match="smell"):
        sample(2, "train", groups=("smell",))


def test_nothing_held_out_is_asked_in_training() -> None:
    names = [f"{colour} {shape}" for shape, colour in HELD_OUT_PAIRS]
    for _, question in asked("train", 60):
        assert not question.held_out
        assert not any(name in question.question or name in question.answer for name in names)
    kinds = {question.kind for _, question in asked() if question.held_out}
    assert {"colour", "shape", "card", "sign_word", "sign_place"} <= kinds
    share = np.mean([question.held_out for _, question in asked() if question.kind == "card"])
    assert 0.02 < share < 0.4


# Answers again, from the moments of the episode alone.


def test_read() -> None:
    for episode, question in of("sign_word", "sign_number", "card_value", "card_icon"):
        moment = episode.moments[question.frame]
        truth = {
            "sign_word": moment.scene.sign and moment.scene.sign.word,
            "sign_number": moment.scene.sign and moment.scene.sign.number,
            "card_value": moment.card and moment.card.value,
            "card_icon": moment.card and " ".join(moment.card.key[::-1]),
        }
        assert question.answer == truth[question.kind]
        if question.kind == "sign_word":
            assert question.held_out == word_held_out(question.answer, moment.scene.sign.position)


def test_see() -> None:
    for episode, question in of("colour", "shape", "place", "beside", "count", "extreme", "sign_place"):
        moment, text = episode.moments[question.frame], question.question
        here = [s for s in moment.sights if s.visible > 0]
        shape = next((shape for shape in SHAPES if shape in text), "")
        match question.kind:
            case "colour":
                assert [s.thing.colour for s in here if s.thing.shape == shape] == [question.answer]
            case "shape":
                colour = next(colour for colour in COLOURS if colour in text)
                assert [s.thing.shape for s in here if s.thing.colour == colour] == [question.answer]
            case "place":
                (sight,) = [s for s in here if s.thing.shape == shape]
                assert question.answer == POSITIONS[2 * (sight.y > 56) + (sight.x > 56)]
            case "beside":
                (anchor,) = [s for s in here if s.thing.shape == shape]
                axis = "x" if "left" in text or "right" in text else "y"
                sign = 1 if "right" in text or "below" in text else -1
                there = [s for s in here if sign * (getattr(s, axis) - getattr(anchor, axis)) > 0]
                assert [s.thing.shape for s in there] == [question.answer]
            case "count":
                assert question.answer == str(len(here))
            case "extreme":
                size = (max if "largest" in text else min)(s.thing.size for s in here)
                assert [s.thing.shape for s in here if s.thing.size == size] == [question.answer]
            case "sign_place":
                assert moment.scene.sign and question.answer == moment.scene.sign.position


def test_what_is_asked_about_can_be_seen_in_the_pixels() -> None:
    """The colour asked about has many pixels in the frame, where the thing is."""
    for episode, question in of("colour", "shape", "place"):
        frame, moment = episode.frames[question.frame].astype(int), episode.moments[question.frame]
        words = f"{question.question} {question.answer}"
        trait = "colour" if question.kind == "shape" else "shape"
        (sight,) = [s for s in moment.sights if not s.outside and getattr(s.thing, trait) in words]
        near = np.abs(frame - COLOURS[sight.thing.colour]).max(axis=-1) <= 24
        y, x = (max(0, round(c) - sight.thing.diameter // 2) for c in (sight.y, sight.x))
        part = near[y : y + sight.thing.diameter, x : x + sight.thing.diameter]
        assert np.count_nonzero(part) >= 0.08 * sight.thing.diameter**2
        assert sight.visible >= 0.8


def test_move() -> None:
    for episode, question in of("direction", "moving", "left", "entered"):
        moments = episode.moments[question.frame - 4 : question.frame + 1]
        assert len({moment.scene.number for moment in moments}) == 1
        assert not any(moment.card for moment in moments)
        shape = next((shape for shape in SHAPES if shape in question.question), "")
        now = moments[-1].sights
        if question.kind in ("direction", "moving"):
            sights = [[s for s in m.sights if s.thing.shape == shape and not s.outside] for m in moments]
            path = [(sight.x, sight.y) for (sight,) in sights]
            dx, dy = (path[-1][axis] - path[0][axis] for axis in (0, 1))
            assert question.answer == way(dx, dy, question.kind)
        else:
            (sight,) = [s for s in now if f"{s.thing.colour} {s.thing.shape}" == question.answer]
            assert sight.outside == (question.kind == "left")
            start = max(moments[-1].scene.start, question.frame - 24)
            states = [
                next(s for s in m.sights if s.thing is sight.thing)
                for m in episode.moments[start : question.frame + 1]
            ]
            assert {s.outside for s in states} == {True, False}
            assert max(s.visible for s in states) >= 0.8
            assert states[-1 - question.age].visible > 0


def test_all_ways() -> None:
    for episode, question in of("all_ways"):
        moments = episode.moments[question.frame - 4 : question.frame + 1]
        assert not any(moment.card for moment in moments)
        before, now = ({s.thing: s for s in moment.sights} for moment in (moments[0], moments[-1]))
        told = []
        for sight in sorted((s for s in now.values() if not s.outside), key=lambda s: s.x):
            dx, dy = sight.x - before[sight.thing].x, sight.y - before[sight.thing].y
            still = way(dx, dy, "moving") == "still"
            where = "still" if still else way(dx, dy, "direction")
            told.append(f"{sight.thing.colour} {sight.thing.shape} {where}")
        assert question.answer == ", ".join(told)


def test_all_spots() -> None:
    """A letter is a sixteenth of the frame, 7 of 112 units."""
    for episode, question in of("all_spots"):
        told = re.findall(r"(\w+) (\w+) ([a-p]) ([a-p])", question.answer)
        seen = sorted((s for s in episode.moments[question.frame].sights if not s.outside), key=lambda s: s.x)
        assert [(s.thing.colour, s.thing.shape) for s in seen] == [pair[:2] for pair in told]
        for sight, (_, _, column, row) in zip(seen, told, strict=True):
            for place, letter in ((sight.x, column), (sight.y, row)):
                low = 7 * "abcdefghijklmnop".index(letter)
                assert low <= min(max(place, 0), 111) < low + 7


def test_clips_end_where_something_can_be_asked() -> None:
    made = [clip(seed, "train", frames=(5, 16)) for seed in range(120)]
    kinds = Counter(question.kind for episode in made for question in episode.questions)
    assert set(kinds) == set(KINDS["move"])
    assert min(kinds.values()) >= 8  # what leaves is rare in clips that end at random
    assert sum(bool(episode.questions) for episode in made) > 90
    for episode in made:
        assert 5 <= len(episode.frames) == len(episode.moments) <= 16 and not episode.cards
        assert all(question.frame == len(episode.frames) - 1 for question in episode.questions)
        assert len({(q.kind, q.question) for q in episode.questions}) == len(episode.questions) <= 8
    assert np.array_equal(made[3].frames[-1], World(3, "train", cards=listed(())).frame(len(made[3].frames) - 1))
    assert clip(3, "train", frames=(5, 16)).questions == made[3].questions


def way(dx: float, dy: float, kind: str) -> str:
    if kind == "moving":
        return "moving" if abs(dx) + abs(dy) >= 4 else "still"
    if abs(dx) > abs(dy):
        return "right" if dx >= 4 else "left"
    return "down" if dy >= 4 else "up"


def test_recall() -> None:
    for episode, question in of("card", "updated", "card_key", "first_card", "last_card"):
        past = [c for c in episode.cards if c.start <= question.frame]
        named = [c for c in past if " ".join(c.key[::-1]) in question.question]
        match question.kind:
            case "card":
                (card,) = named
            case "updated":
                assert len(named) > 1
                card = named[-1]
            case "card_key":
                (card,) = [c for c in past if re.search(rf"\b{c.value}\b", question.question)]
                assert question.answer == " ".join(card.key[::-1])
            case _:
                card = past[0] if question.kind == "first_card" else past[-1]
        if question.kind != "card_key":
            assert question.answer == card.value
        assert question.age == question.frame - (card.stop - 1) > 0
        assert question.facts == len(past) - 1 - past.index(card)
        assert question.held_out == (card.key in HELD_OUT_PAIRS)


def test_recall_of_signs() -> None:
    for episode, question in of("first_sign", "previous_sign"):
        scenes = {m.scene.number: m.scene for m in episode.moments[: question.frame + 1]}
        signs = [scene for scene in scenes.values() if scene.sign]
        scene = signs[0] if question.kind == "first_sign" else scenes[max(scenes) - 1]
        assert question.answer == (scene.sign.number if "number" in question.question else scene.sign.word)
        assert question.age == question.frame - (scene.stop - 1) > 0
        assert question.facts == len(signs) - 1 - signs.index(scene)


def test_order() -> None:
    yes = []
    for episode, question in of("first", "later", "scenes", "cards", "appeared"):
        past = [c for c in episode.cards if c.start <= question.frame]
        named = [" ".join(c.key[::-1]) for c in past if " ".join(c.key[::-1]) in question.question]
        match question.kind:
            case "first":
                assert len(named) == 2 and question.answer == named[0]
            case "later":
                assert len(set(named)) == 2 and question.answer == named[-1]
            case "scenes":
                assert question.answer == str(episode.moments[question.frame].scene.number + 1)
            case "cards":
                assert question.answer == str(len(past))
            case "appeared":
                moments = episode.moments[: question.frame + 1]
                seen = [s.thing for m in moments for s in m.sights if s.visible >= 0.8]
                things = {f"{thing.colour} {thing.shape}" for thing in seen}
                there = bool(named) or any(re.search(rf"\b{name}\b", question.question) for name in things)
                assert question.answer == ("yes" if there else "no")
                yes.append(there)
    assert 0.35 < np.mean(yes) < 0.65


def test_text() -> None:
    for question in text_questions(0, "train", 300):
        text, numbers = question.question, [int(n) for n in re.findall(r"\d+", question.question)]
        words = [word for word in re.findall(r"[a-z]+", text) if word in WORDS and word != "list"]
        assert question.group == "text" and question.age == 0 and question.frame == -1
        match question.kind:
            case "total":
                assert question.answer == str(sum(numbers))
            case "larger":
                assert question.answer == str(max(numbers))
            case "sort":
                assert question.answer == " ".join(map(str, sorted(numbers)))
            case "copy":
                assert question.answer in text
            case "repeat":
                assert question.answer.split() == [words[-1] if words else "list"] * numbers[0]
            case "backwards":
                assert set(question.answer.split()) <= set(re.findall(r"[a-z]+", text))
            case "pick":
                assert question.answer in text


def test_chance_is_what_a_guesser_reaches() -> None:
    """No single answer to a kind comes much more often than its chance says."""
    for kind in {kind for kinds in KINDS.values() for kind in kinds}:
        answers = Counter(question.answer for _, question in of(kind))
        total, (_, most) = sum(answers.values()), answers.most_common(1)[0]
        chance = max(question.chance for _, question in of(kind))
        assert most / total < chance + 4 * (chance / total) ** 0.5 + 0.04, kind
    numbers = [q for _, q in asked() if q.kind == "sign_number"]
    assert {q.chance for q in numbers} == {1 / 270}
    assert {q.chance for _, q in of("sign_word")} == {1 / len(WORDS)}
    assert {q.chance for _, q in of("card_icon", "card_key")} == {1 / len(pairs("test"))}


def test_a_stream_without_end_asks_about_the_far_past_in_constant_memory() -> None:
    play = stream(1, "test", groups=("recall", "order"), every=8)
    ages, sizes = [], []
    for tick in play:
        assert tick.time == tick.index / play.fps
        ages += [question.age for question in tick.questions]
        log = play._step.__self__.log  # type: ignore[attr-defined]
        sizes.append((len(play.world._views), len(log.cards), len(play._step.__self__._waiting)))  # type: ignore[attr-defined]
        if tick.index == 4000:
            break
    views, cards, waiting = np.max(sizes, axis=0)
    assert views <= 64 and cards <= 64 and waiting <= 8
    assert len(ages) > 450 and max(ages) > 1000 and np.quantile(ages, 0.25) < 100
    with pytest.raises(InfiniteVLError):
        play.episode()


def test_a_stream_may_end_and_ask_many_questions_together() -> None:
    made = stream(3, "train", frames=90, every=30, questions=4, groups=("see",)).episode()
    assert len(made.frames) == 90 and len(made.questions) >= 8
    assert max(Counter(question.frame for question in made.questions).values()) >= 3


def test_a_stream_shows_the_frames_of_its_world() -> None:
    play = stream(6, "validation", card_every=32)
    ticks = [tick for tick, _ in zip(play, range(70), strict=False)]
    world = World(6, "validation")
    assert all(np.array_equal(tick.frame, world.frame(tick.index)) for tick in ticks)
