"""What a perfect viewer remembers of a stream: enough to answer every question, and never more with time."""

from dataclasses import dataclass

from infinitevl.data.streamworld.cards import Card
from infinitevl.data.streamworld.scene import Scene, Sign
from infinitevl.data.streamworld.vocabulary import Pair, Value
from infinitevl.data.streamworld.world import Moment

CLEAR = 0.8  # a thing counts as seen when this part of it is visible


@dataclass(slots=True)
class CardFact:
    """A card that was shown: the `number`-th of the stream, in the frames from `start` to `last` so far."""

    number: int
    key: Pair
    value: Value
    start: int
    last: int
    showings: int  # of this key, this one included


@dataclass(slots=True)
class SignFact:
    """A sign that was shown: the `number`-th of the stream, last seen in frame `last`."""

    number: int
    scene: int
    sign: Sign
    last: int


class Log:
    """Everything that questions ask about, from the moments observed in order, each once, from frame 0.

    Its size is bounded by the vocabulary: of each key it keeps the newest card alone.
    """

    def __init__(self) -> None:
        self.index = -1
        self.scenes = 0
        self.card_count = self.sign_count = 0
        self.cards: dict[Pair, CardFact] = {}
        self.first_card: CardFact | None = None
        self.last_card: CardFact | None = None
        self.first_sign: SignFact | None = None
        self.last_sign: SignFact | None = None
        self.earlier_sign: SignFact | None = None  # the one before last_sign
        self.keys_of: dict[Value, set[Pair]] = {}
        self.sighted: dict[Pair, int] = {}  # the last frame in which a pair was clearly visible
        self.present: set[Pair] = set()  # pairs that were in the world at all, seen or not, also on cards
        self._scene = -1

    def observe(self, moment: Moment) -> None:
        if moment.index != self.index + 1:
            raise ValueError(f"frame {moment.index} after frame {self.index}")
        self.index = moment.index
        if moment.scene.number != self._scene:
            self._enter(moment.scene)
        if self.last_sign and moment.scene.sign:
            self.last_sign.last = moment.index
        if moment.card:
            self._note(moment.card)
        for sight in moment.sights:
            if sight.visible >= CLEAR:
                self.sighted[sight.thing.pair] = moment.index

    def sign_before(self) -> SignFact | None:
        """The sign of the scene before this one, None where that scene had none."""
        for fact in (self.last_sign, self.earlier_sign):
            if fact and fact.scene == self._scene - 1:
                return fact
        return None

    def _enter(self, scene: Scene) -> None:
        self._scene = scene.number
        self.scenes += 1
        self.present.update(thing.pair for thing in scene.things)
        if scene.sign:
            self.sign_count += 1
            self.earlier_sign = self.last_sign
            self.last_sign = SignFact(self.sign_count, scene.number, scene.sign, self.index)
            self.first_sign = self.first_sign or self.last_sign

    def _note(self, card: Card) -> None:
        known = self.last_card
        if known is None or known.start != card.start:
            self.card_count += 1
            before = self.cards.get(card.key)
            showings = before.showings + 1 if before else 1
            known = CardFact(self.card_count, card.key, card.value, card.start, self.index, showings)
            self.cards[card.key] = self.last_card = known
            self.first_card = self.first_card or known
            self.keys_of.setdefault(card.value, set()).add(card.key)
            self.present.add(card.key)
        known.last = self.index
