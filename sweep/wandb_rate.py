"""Which rows of a run go to W&B online: its server takes about 1,000 rows a minute of a run. Pure.

The rule: while all rows fit the budget, every one goes. Above it only every k-th update has a row (batch/iteration
divisible by k). k is a power of two, so that curves of different runs share their points. It is the smallest one with
which, if rows go on as in the last seconds, no 60 s would hold more of them than the budget; it falls only where a
fifth of the budget would be left.

Updates give way to epochs. Where the rows of epochs alone would break the budget, they are thinned by the same rule
(epoch divisible by a k of their own). W&B's hyperband and a scheduler behind its agents count the rows of epochs, so
this is only for rates that W&B itself would refuse. The last epoch's row arrives in the end all the same: who sends the
rows holds the latest one that was left out, and sends it before the summary (sweep/wandb_sink.py).

A row that would break the budget all the same is left out, and so is a picture: pictures count like rows. What an
earlier part of the run sent in the last 60 s counts, too. The CSV files hold every row.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

WINDOW_S = 60  # of W&B's limit
ROWS_PER_MINUTE = 900  # W&B's limit is about 1,000 and its count need not begin with ours
FOR_EPOCHS = 0.05  # of the budget is kept for rows of epochs
FOR_THE_END = 0.01  # of the budget is kept for what ends a run: see `count_last`
UNHURRIED = 0.5  # a run with fewer rows a minute than this share of the budget is never thinned, bursts or not
RECENT_S = 15  # whose rows say how fast the next ones will come
SPARE = 0.8  # the share of the budget that a smaller k must fit, so that k does not go back and forth
LARGEST_STRIDE = 2**20


class RowBudget:
    """Decides row by row, at a microsecond each.

    In any 60 s it takes at most `rows_per_minute` rows: updates up to 95 % of them, all rows together, and beyond that
    only rows of epochs up to 99 %, then what ends a run (`count_last`: one or two rows a part). Any run with at most
    half of `rows_per_minute` x 95 % updates and epochs together in every 60 s keeps all of them.

    Args:
        rows_per_minute: the budget.
        clock: seconds; never goes back.
        sent: how many seconds ago earlier parts of this run sent each of their last rows.

    Attributes:
        stride: every how many updates one has a row now; 1 is every one.
        epoch_stride: the same of epochs.
        thinned: updates and epochs that were left out so far.
        passed: those of them that came before the last row of their kind that was taken.

    Raises:
        ValueError: a budget below 20 rows.
    """

    def __init__(
        self,
        rows_per_minute: int = ROWS_PER_MINUTE,
        clock: Callable[[], float] = time.monotonic,
        sent: Iterable[float] = (),
    ) -> None:
        if rows_per_minute < 20:
            raise ValueError(
                f"rows_per_minute = {rows_per_minute}; must be at least 20, since some are kept for epochs"
            )
        self.stride = self.epoch_stride = 1
        self._left_out = {"update": 0, "epoch": 0}
        self._passed = {"update": 0, "epoch": 0}
        self._clock = clock
        self._all = rows_per_minute
        self._limit = rows_per_minute - max(1, int(rows_per_minute * FOR_EPOCHS))
        self._epoch_limit = rows_per_minute - max(1, int(rows_per_minute * FOR_THE_END))
        self._taken: deque[float] = deque(maxlen=rows_per_minute)  # when the last rows were taken
        # rows that came, and that were taken, in each of the last 60 s, the present second last
        self._came, self._epochs_came, self._went, self._epochs_went = (
            deque([0] * WINDOW_S, maxlen=WINDOW_S) for _ in range(4)
        )
        self._began: float | None = None
        self._second = 0
        self._epochs_to_come = 0  # rows that updates leave to the epochs of this minute
        self._undecided = 0  # rows since the strides were last looked at
        self._look_every = max(1, self._limit // 16)
        self._begin_behind(sorted((min(max(age, 0.0), WINDOW_S + 1.0) for age in sent), reverse=True))

    def _begin_behind(self, ages: Sequence[float]) -> None:
        recent = [age for age in ages if age <= WINDOW_S]
        if not recent:
            return
        self._began = self._clock()
        self._taken.extend(self._began - age for age in recent)
        for age in recent:
            self._went[-1 - min(int(age), WINDOW_S - 1)] += 1
        self._decide(self._began)

    @property
    def thinned(self) -> int:
        return sum(self._left_out.values())

    @property
    def passed(self) -> int:
        return sum(self._passed.values())

    def takes_update(self, iteration: int) -> bool:
        """Whether the row of this gradient update (its batch/iteration) goes to W&B."""
        now = self._clock()
        self._note(now, self._came)
        if iteration % self.stride or not self._has_room(now, self._limit - self._epochs_to_come):
            self._left_out["update"] += 1
            return False
        self._take(now)
        self._passed["update"] = self._left_out["update"]
        return True

    def takes_epoch(self, epoch: int) -> bool:
        """Whether the row of this epoch goes to W&B now; the run's last one is to go in the end: see `count_last`."""
        now = self._clock()
        self._note(now, self._epochs_came)
        if epoch % self.epoch_stride or not self._has_room(now, self._epoch_limit):
            self._left_out["epoch"] += 1
            return False
        self._take(now)
        self._epochs_went[-1] += 1
        self._passed["epoch"] = self._left_out["epoch"]
        return True

    def takes_picture(self) -> bool:
        """Whether a picture goes to W&B."""
        now = self._clock()
        self._advance(now)
        if not self._has_room(now, self._epoch_limit):
            return False
        self._take(now)
        return True

    def count_last(self, left_out_epoch: bool = False) -> None:
        """A row goes that ends this part of the run, whatever there is room for.

        Args:
            left_out_epoch: it is that of the last epoch, which was left out before.
        """
        now = self._clock()
        self._advance(now)
        self._take(now)
        if left_out_epoch:
            self._left_out["epoch"] -= 1
            self._passed["epoch"] = self._left_out["epoch"]

    def room_in_s(self) -> float:
        """Seconds until there is room for a row of an epoch; 0 where there is now."""
        now = self._clock()
        if self._has_room(now, self._epoch_limit):
            return 0.0
        return max(self._taken[-self._epoch_limit] + WINDOW_S - now, 0.0) + 0.01

    def sent(self) -> list[float]:
        """How many seconds ago each row of the last 60 s was taken, those of earlier parts among them."""
        now = self._clock()
        return [now - taken for taken in self._taken if now - taken <= WINDOW_S]

    def _has_room(self, now: float, limit: int) -> bool:
        if limit <= 0:
            return False
        return len(self._taken) < limit or self._taken[-limit] < now - WINDOW_S

    def _take(self, now: float) -> None:
        self._taken.append(now)
        self._went[-1] += 1

    def _note(self, now: float, came: deque[int]) -> None:
        """A row has come."""
        self._advance(now)
        came[-1] += 1
        self._undecided += 1
        if self._undecided >= self._look_every:  # a burst does not wait for the second's end
            self._decide(now)

    def _advance(self, now: float) -> None:
        """Begin the seconds that have come since the last row."""
        if self._began is None:
            self._began = now
        second = int(now - self._began)
        if second == self._second:
            return
        for _ in range(min(second - self._second, WINDOW_S)):
            for counts in (self._came, self._epochs_came, self._went, self._epochs_went):
                counts.append(0)
        self._second = second
        self._decide(now)

    def _decide(self, now: float) -> None:
        self._undecided = 0
        epochs = sum(self._epochs_came)
        if max(sum(self._came) + epochs, sum(self._went)) <= self._limit * UNHURRIED:
            self.stride = self.epoch_stride = 1
            self._epochs_to_come = 0
            return
        epoch_rate = self._rate(now, self._epochs_came)
        if epochs <= self._limit * UNHURRIED:
            self.epoch_stride = 1
        else:
            self.epoch_stride = _stride(self.epoch_stride, epoch_rate, self._epoch_limit, self._epochs_went)
        epochs_went = sum(self._epochs_went)
        for_epochs = max(WINDOW_S * epoch_rate / self.epoch_stride, epochs_went)
        self._epochs_to_come = int(for_epochs) - epochs_went
        others = [rows - epochs for rows, epochs in zip(self._went, self._epochs_went, strict=True)]
        self.stride = _stride(self.stride, self._rate(now, self._came), self._limit - for_epochs, others)

    def _rate(self, now: float, came: deque[int]) -> float:
        """Rows a second of late."""
        assert self._began is not None
        # the present second has only begun: the recent ones are counted from its end back
        elapsed = now - self._began
        return sum(list(came)[-RECENT_S:]) / min(max(elapsed, 1.0), RECENT_S - 1 + elapsed % 1)


def _stride(present: int, rate: float, limit: float, went: Sequence[int]) -> int:
    """The stride from now on: what `limit` needs, and not below `present` where that would leave little to spare."""
    return max(_fitting(rate, limit, went), min(present, _fitting(rate, limit * SPARE, went)))


def _fitting(rate: float, limit: float, went: Sequence[int]) -> int:
    """The smallest stride with which no window that ends in the next 60 s holds more than `limit` rows.

    Args:
        rate: rows a second from now on.
        went: rows in each of the last 60 s.
    """
    needed = 1.0
    staying = 0  # rows of the past that the window still holds, the one that ends last first
    past = list(went)
    for ahead_s in range(WINDOW_S, 0, -1):
        room = limit - staying
        needed = max(needed, rate * ahead_s / room) if room > 0 else LARGEST_STRIDE
        staying += past[ahead_s - 1 - WINDOW_S]
    stride = 1
    while stride < needed and stride < LARGEST_STRIDE:
        stride *= 2
    return stride
