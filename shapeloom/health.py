"""What goes wrong in a training without ending it: steps that were skipped, and a loss that has run away.

Both are told when they happen, at the end, in meta.json (`skipped_steps`, `divergence`) and in the report,
with the samples at fault and what to change. The state belongs to a checkpoint, so that a run that goes on
from one knows what it knew then.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from shapeloom.log import get_logger

log = get_logger("training")
WINDOW = 10
"""Steps whose mean loss is looked at."""
ABOVE_START, ABOVE_LOWEST = 2.0, 10.0
"""A loss has run away when it is this many times what it was at the start, and at its lowest."""
NUM_NAMED = 20


class Health:
    """Watches a training's losses and skipped steps."""

    def __init__(self, state: Mapping[str, Any] | None = None) -> None:
        """state: what `state` returned at the checkpoint that the training goes on from."""
        state = state or {}
        self._recent: deque[float] = deque(state.get("recent", ()), maxlen=WINDOW)
        self._start: float | None = state.get("start")
        self._lowest: tuple[float, int] | None = state.get("lowest") and tuple(state["lowest"])
        self.divergence: dict[str, Any] | None = state.get("divergence")
        self.skipped: dict[str, Any] | None = state.get("skipped")

    def state(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {
            "recent": list(self._recent), "start": self._start, "lowest": self._lowest,
            "divergence": self.divergence and dict(self.divergence),
            "skipped": self.skipped and {**self.skipped, "samples": list(self.skipped["samples"])},
        }  # fmt: skip

    @property
    def diverged(self) -> bool:
        """Whether the loss has run away and not come back."""
        return self.divergence is not None and "until" not in self.divergence

    def healthy_until(self, step: int) -> int:
        """The last step of which it is sure, at `step`, that the loss had not begun to run away."""
        return (self.divergence["since"] if self.divergence and self.diverged else step) - WINDOW

    def see(self, step: int, loss: float, rate: float) -> None:
        """Takes note of a step's loss; warns when it has run away, and when it is back."""
        self._recent.append(loss)
        if self._start is None or self._lowest is None:
            # The first loss is of weights that no step has changed yet; the tenth may have run away already.
            self._start, self._lowest = loss, (loss, step)
        if len(self._recent) < WINDOW:
            return
        mean = fmean(self._recent)
        limit = max(ABOVE_START * self._start, ABOVE_LOWEST * self._lowest[0])
        if self.diverged:
            assert self.divergence is not None
            self.divergence["highest"] = max(self.divergence["highest"], mean)
            if mean <= self._start:
                self.divergence["until"] = step
                log.warning("step %d: the loss is down to %.4g again, below where it began", step, mean)
        elif mean > limit > 0:
            low, when = self._lowest
            self.divergence = {"since": step, "lowest": low, "lowest_step": when, "highest": mean}
            log.warning(
                "step %d: the training has diverged: the mean loss of the last %d steps is %.4g, after %.4g "
                "at step %d. Stop it and lower train.learning_rate (%.2g here): with `--set "
                "train.learning_rate=...` the same command goes on from the last checkpoint before this.",
                step, WINDOW, mean, low, when, rate,
            )  # fmt: skip
        self._lowest = min(self._lowest, (mean, step))

    def skip(self, step: int, what: str, names: Sequence[str]) -> None:
        """Takes note of a step whose loss or gradient (`what`) wasn't finite, and of the samples at fault."""
        before = self.skipped or {"count": 0, "first": step, "samples": []}
        known = dict.fromkeys([*before["samples"], *names])
        self.skipped = {
            "count": before["count"] + 1, "first": before["first"], "last": step, "what": what,
            "samples": list(known)[:NUM_NAMED],
        }  # fmt: skip

    def facts(self) -> dict[str, Any]:
        """Entries of meta.json; none for a training in which nothing went wrong."""
        entries = {"divergence": self.divergence, "skipped_steps": self.skipped}
        return {name: value for name, value in entries.items() if value}


def go_back_to(meta: Mapping[str, Any]) -> int | None:
    """Returns the last healthy step of a run that has diverged and has since been given other settings.

    None: it goes on from where it is.
    """
    changes, divergence = meta.get("changes"), meta.get("divergence")
    applied = not changes or "from_step" in changes[-1]
    if applied or not divergence or "until" in divergence:
        return None
    return int(divergence["since"]) - WINDOW


def describe(meta: Mapping[str, Any]) -> list[str]:
    """Returns sentences on what went wrong in the training of a meta.json; none if nothing did."""
    found = []
    if skipped := meta.get("skipped_steps"):
        samples = ", ".join(skipped["samples"]) or "not found out"
        found.append(
            f"{skipped['count']} step(s) were skipped, the first {skipped['first']} and the last "
            f"{skipped['last']}, because the {skipped['what']} was not finite. Samples at fault: {samples}. "
            "Look at these assets, and leave them out or mend them; if they are many, lower "
            "train.learning_rate or set train.precision=fp32."
        )
    if gone := meta.get("divergence"):
        over = f" until step {gone['until']}" if "until" in gone else " and to the end"
        found.append(
            f"The training diverged: from step {gone['since']}{over} its loss was up to "
            f"{gone['highest']:.4g}, after {gone['lowest']:.4g} at step {gone['lowest_step']}. Lower "
            "train.learning_rate or train.grad_clip."
        )
    return found
