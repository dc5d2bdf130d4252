"""The states of all streams and answers: a few on the model's device, the others in the host's memory or the store."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from infinitevl.errors import InfiniteVLError
from infinitevl.model.graphs import replays, takes_slots
from infinitevl.model.modeling import InfiniteVLForConditionalGeneration
from infinitevl.model.state import CPU, State
from infinitevl.model.transfer import constant


@dataclass(eq=False)
class Seat:
    """Where one state is: in a slot, in the host's memory, in what `fetch` reads, or nowhere yet, which is empty."""

    slot: int | None = None
    host: State | None = None
    fetch: Callable[[State], object] | None = None
    used: int = 0


class Pool:
    """`slots` states in one batch on the model's device. Only the engine's thread touches it.

    A state that is needed takes the slot of the one that was not for longest, which goes to the host's memory; both
    are exact copies.
    """

    def __init__(self, model: InfiniteVLForConditionalGeneration, slots: int) -> None:
        if "full_attention" in (model.config.text_config.layer_types or ()):
            raise InfiniteVLError("a model with full_attention layers has no state of constant size to serve from")
        self.model = model
        self.state = model.allocate_state(slots)
        self.in_slots = replays(model) and takes_slots(model)
        self._seated: dict[int, Seat] = {}
        self._uses = 0

    @property
    def slots(self) -> int:
        return self.state.batch_size

    @property
    def seated(self) -> int:
        """Slots in use."""
        return len(self._seated)

    @contextmanager
    def working(self, seats: Sequence[Seat], rows: int | None = None) -> Iterator[State]:
        """The states of `seats` as rows of one. Where kernels reach them in their slots, they change there; else they
        are copied, and written back at the end, unless an error comes: then none changes.

        rows: so many, the last of which rest; in slots only.
        """
        slots = self._seat(seats)
        if self.in_slots:
            resting = [-1] * ((rows or len(slots)) - len(slots))
            yield self.state.at(constant((*slots, *resting), self.model.device))
            return
        copies = self.state.take(slots)
        yield copies
        self.state.put(slots, copies)

    def fork(self, seat: Seat) -> Seat:
        """A seat with a copy of a state: in a slot where one is free, else in the host's memory."""
        free = self._free()
        if seat.slot is None or free is None:
            return Seat(host=self.read(seat))
        self.state.put([free], self.state.take([seat.slot]))
        return self._sit(Seat(), free)

    def read(self, seat: Seat) -> State:
        """A copy of a state, of one row, in the host's memory."""
        if seat.slot is not None:
            return self.state.take([seat.slot]).to(CPU)
        return self.empty(seat) if seat.host is None else seat.host.fork()

    def empty(self, seat: Seat) -> State:
        """A state of one row in the host's memory, with what the seat fetches."""
        state = State(self.state.config, 1, CPU, self.model.dtype)
        if seat.fetch:
            seat.fetch(state)
        return state

    def fetch(self, seat: Seat) -> None:
        """Have a state in the host's memory at least, so that it can be seated without fail."""
        if seat.slot is None and seat.host is None:
            seat.host, seat.fetch = self.empty(seat), None

    def release(self, seat: Seat) -> None:
        """Forget a state."""
        if seat.slot is not None:
            del self._seated[seat.slot]
        seat.slot = seat.host = seat.fetch = None

    def _seat(self, seats: Sequence[Seat]) -> list[int]:
        """The slots of seats, all of which have one then. There are no more of them than slots."""
        for seat in seats:
            self._uses += 1
            seat.used = self._uses  # before anyone is sent away
        for seat in seats:
            if seat.slot is None:
                self._fill(seat)
        return [seat.slot for seat in seats if seat.slot is not None]

    def _fill(self, seat: Seat) -> None:
        self.fetch(seat)
        slot = self._free()
        slot = self._send_away() if slot is None else slot
        assert seat.host is not None
        self.state.put([slot], seat.host)
        self._sit(seat, slot)

    def _sit(self, seat: Seat, slot: int) -> Seat:
        seat.slot, seat.host, seat.fetch = slot, None, None
        self._uses += 1
        seat.used = self._uses
        self._seated[slot] = seat
        return seat

    def _send_away(self) -> int:
        """Free the slot that was not used for longest."""
        seat = min(self._seated.values(), key=lambda seat: seat.used)
        slot, seat.host, seat.slot = seat.slot, self.read(seat), None
        assert slot is not None
        del self._seated[slot]
        return slot

    def _free(self) -> int | None:
        return next((slot for slot in range(self.slots) if slot not in self._seated), None)
