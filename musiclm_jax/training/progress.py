"""Measures training speed: steps, tokens or seconds of audio per second, model FLOPs utilisation and time left."""

import dataclasses
import time
from collections.abc import Iterable, Mapping
from typing import Any

from musiclm_jax.data.tokens import SAMPLE_RATE
from musiclm_jax.training.chips import CHIPS, GPU_KINDS, TPU_KINDS


@dataclasses.dataclass(frozen=True)
class Work:
    """Work of one training step, over all processes."""

    unit: str  # "tokens", "s of audio" or "examples"
    amount: float  # in `unit`
    flops: float | None = None  # model FLOPs, without rematerialization; None if they are not counted

    @classmethod
    def of_step(cls, learner: Any, batch: Mapping[str, Any]) -> "Work":
        """Counts tokens for a stage, conditioning included, and seconds of audio or examples for a tokenizer.

        Args:
          learner: the learner that takes the step.
          batch: the global batch.
        """
        rows = len(next(iter(batch.values())))
        if hasattr(learner, "model_flops"):
            return cls("tokens", rows * learner.row_tokens, learner.model_flops(rows))
        if "audio" in batch:
            return cls("s of audio", rows * batch["audio"].shape[1] / SAMPLE_RATE)
        return cls("examples", rows)


def peak_flops(devices: Iterable[Any]) -> float | None:
    """Returns the total peak bfloat16 FLOP/s of the chips, or None if a device's peak is not known, as of CPUs."""
    chips = {}
    for device in devices:
        kind = (TPU_KINDS | GPU_KINDS).get(device.device_kind)
        if kind is None:
            return None
        # Two TPU devices with the same coordinates are the cores of one chip.
        place = (device.id,) if device.device_kind in GPU_KINDS else (getattr(device, "slice_index", 0), *device.coords)
        chips[place] = CHIPS[kind].flops
    return sum(chips.values())


def format_seconds(seconds: float) -> str:
    """Formats seconds as "12 s", "5 min" or "2.5 h"."""
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if seconds < 90 else f"{minutes} min" if minutes < 120 else f"{minutes / 60:.1f} h"


def scalars(means: Mapping[str, float]) -> str:
    """Formats metrics as "loss 1.23 accuracy 0.5"."""
    return " ".join(f"{name} {value:.4g}" for name, value in means.items())


@dataclasses.dataclass(frozen=True)
class Rate:
    """Training speed."""

    steps_per_second: float
    work: Work  # of one step
    peak: float | None = None  # see `peak_flops`

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation; None if the model's FLOPs or the peak is not known."""
        if self.peak is None or self.work.flops is None:
            return None
        return self.steps_per_second * self.work.flops / self.peak

    def scalars(self) -> dict[str, float]:
        """Returns TensorBoard scalars: "steps_per_second", "tokens_per_second" (or another unit), "mfu" if known."""
        unit = {"s of audio": "audio_seconds"}.get(self.work.unit, self.work.unit)
        rates = {
            "steps_per_second": self.steps_per_second,
            f"{unit}_per_second": self.steps_per_second * self.work.amount,
        }
        return rates if self.mfu is None else {**rates, "mfu": self.mfu}

    def __str__(self) -> str:
        amount = self.steps_per_second * self.work.amount
        number = f"{amount:,.0f}" if amount >= 100 else f"{amount:.3g}"
        mfu = "" if self.mfu is None else f", MFU {self.mfu:.1%}"
        return f"{self.steps_per_second:.3g} steps/s, {number} {self.work.unit}/s{mfu}"


class StepProgress:
    """Progress lines of a run; rates exclude the first step (compilation), evaluations and checkpoints."""

    def __init__(self, step: int, total_steps: int, peak: float | None = None) -> None:
        self.total_steps, self.peak = total_steps, peak
        self.work = Work("examples", 0)  # per step; set with the first batch
        self.is_first = True  # the first line is due after the first step, to show that training runs
        self.steps_per_second = 0.0
        self.restart(step)

    def restart(self, step: int) -> None:
        """Starts a new measurement: the time since the last line does not count."""
        self.start_step, self.start_time = step, time.monotonic()

    def line(self, step: int, means: Mapping[str, float]) -> str:
        """Returns a line about the steps since the last line."""
        elapsed, steps = time.monotonic() - self.start_time, step - self.start_step
        if self.is_first:
            rate = f"first step {elapsed:.1f} s with compilation"
            self.is_first = False
        else:
            self.steps_per_second = steps / max(elapsed, 1e-9) if steps else self.steps_per_second
            left = (self.total_steps - step) / self.steps_per_second if self.steps_per_second else float("nan")
            rate = f"{self.rate()}, {format_seconds(left)} left"
        self.restart(step)
        return f"step {step:,}/{self.total_steps:,} | {scalars(means)} | {rate}"

    def rate(self) -> Rate:
        """Returns the speed that the last line reported."""
        return Rate(self.steps_per_second, self.work, self.peak)
