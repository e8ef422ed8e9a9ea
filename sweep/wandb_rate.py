"""Which rows of a run go to W&B online: its server takes about 1,000 rows a minute of a run. Pure.

The rule: while all updates fit the budget, every one has its row. Above it only every k-th update has one
(batch/iteration divisible by k). k is a power of two, so that curves of different runs share their points. It is the
smallest one with which, if updates go on as in the last seconds, no 60 s would hold more rows than the budget; it falls
only where a fifth of the budget would be left. A row that would break the budget all the same is left out. Rows of
epochs always go, and updates give way to them. The CSV files hold every row.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

WINDOW_S = 60  # of W&B's limit
ROWS_PER_MINUTE = 900  # W&B's limit is about 1,000 and its count need not begin with ours
FOR_EPOCHS = 0.05  # of the budget is kept for rows that always go
UNHURRIED = 0.5  # a run with fewer updates a minute than this share of the budget is never thinned, bursts or not
RECENT_S = 15  # whose updates say how fast the next ones will come
SPARE = 0.8  # the share of the budget that a smaller k must fit, so that k does not go back and forth
LARGEST_STRIDE = 2**20


class RowBudget:
    """Decides row by row, at a microsecond each.

    In any 60 s it takes at most 95 % of `rows_per_minute` of updates and epochs together, and beyond that only rows of
    epochs. Any run with at most half of `rows_per_minute` x 95 % updates in every 60 s keeps all of them.

    Args:
        rows_per_minute: the budget.
        clock: seconds; never goes back.

    Attributes:
        stride: every how many updates one has a row now; 1 is every one.
        thinned: updates that were left out so far.

    Raises:
        ValueError: a budget below 20 rows.
    """

    def __init__(self, rows_per_minute: int = ROWS_PER_MINUTE, clock: Callable[[], float] = time.monotonic) -> None:
        if rows_per_minute < 20:
            raise ValueError(
                f"rows_per_minute = {rows_per_minute}; must be at least 20, since some are kept for epochs"
            )
        self.stride = 1
        self.thinned = 0
        self._clock = clock
        self._limit = rows_per_minute - max(1, int(rows_per_minute * FOR_EPOCHS))
        self._taken: deque[float] = deque(maxlen=self._limit)  # when the last rows were taken
        # updates that came and rows that were taken in each of the last 60 s, the present second last
        self._came: deque[int] = deque([0] * WINDOW_S, maxlen=WINDOW_S)
        self._went: deque[int] = deque([0] * WINDOW_S, maxlen=WINDOW_S)
        self._began: float | None = None
        self._second = 0
        self._undecided = 0  # updates since the stride was last looked at
        self._look_every = max(1, self._limit // 16)

    def takes_update(self, iteration: int) -> bool:
        """Whether the row of this gradient update (its batch/iteration) goes to W&B."""
        now = self._clock()
        if self._began is None or int(now - self._began) != self._second:
            self._advance(now)
        self._came[-1] += 1
        self._undecided += 1
        if self._undecided >= self._look_every:  # a burst does not wait for the second's end
            self._decide(now)
        if iteration % self.stride:
            self.thinned += 1
            return False
        if len(self._taken) == self._limit and self._taken[0] >= now - WINDOW_S:
            self.thinned += 1
            return False
        self._taken.append(now)
        self._went[-1] += 1
        return True

    def count_epoch(self) -> None:
        """A row goes that always does: of an epoch, or a picture."""
        now = self._clock()
        if self._began is None or int(now - self._began) != self._second:
            self._advance(now)
        self._taken.append(now)
        self._went[-1] += 1

    def _advance(self, now: float) -> None:
        """Begin the seconds that have come since the last row."""
        if self._began is None:
            self._began = now
        second = int(now - self._began)
        for _ in range(min(second - self._second, WINDOW_S)):
            self._came.append(0)
            self._went.append(0)
        self._second = second
        self._decide(now)

    def _decide(self, now: float) -> None:
        self._undecided = 0
        if sum(self._came) <= self._limit * UNHURRIED:
            self.stride = 1
            return
        assert self._began is not None
        # the present second has only begun: the recent ones are counted from its end back
        recent = list(self._came)[-RECENT_S:]
        elapsed = now - self._began
        rate = sum(recent) / min(max(elapsed, 1.0), RECENT_S - 1 + elapsed % 1)
        self.stride = max(self._fitting(rate, self._limit), min(self.stride, self._fitting(rate, self._limit * SPARE)))

    def _fitting(self, rate: float, limit: float) -> int:
        """The smallest stride with which no window that ends in the next 60 s holds more than `limit` rows.

        Args:
            rate: updates a second from now on.
        """
        needed = 1.0
        staying = 0  # rows of the past that the window still holds, the one that ends last first
        past = list(self._went)
        for ahead_s in range(WINDOW_S, 0, -1):
            room = limit - staying
            needed = max(needed, rate * ahead_s / room) if room > 0 else LARGEST_STRIDE
            staying += past[ahead_s - 1 - WINDOW_S]
        stride = 1
        while stride < needed and stride < LARGEST_STRIDE:
            stride *= 2
        return stride
