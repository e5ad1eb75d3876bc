"""Every way in which a training can fail, with its code, its exit code and the next move.

    TrainerError
      SpecError          2   the job file is wrong
      BaseModelError     2   the base is not there, or is not what the job says
      DatasetError       3   pictures or captions cannot be used
      TrainingError      7   it broke while training; what was committed is good
      IntegrityError    12   a file is not what it must be

Torch-free: the laptop imports it too. Knows nothing of events or processes.
"""

from __future__ import annotations

from typing import ClassVar

EXIT_DONE = 0
EXIT_FAILED = 7
EXIT_STOPPED = 75
"""EX_TEMPFAIL of sysexits.h: stopped on request, go on later."""

CODES: dict[str, tuple[int, str]] = {
    "LRY-JOB-READ": (2, "a job file cannot be read"),
    "LRY-JOB-SPEC": (2, "a job file breaks the rules"),
    "LRY-JOB-FAMILY": (2, "no plug-in for this model family"),
    "LRY-JOB-PROMPT": (2, "a sample prompt line is malformed"),
    "LRY-JOB-NOTHING": (2, "both learning rates are 0"),
    "LRY-JOB-OPTIMIZER": (2, "the optimizer cannot be used where the job trains"),
    "LRY-BASE-MISSING": (2, "the base is not there"),
    "LRY-BASE-BROKEN": (2, "a file of the base cannot be read"),
    "LRY-BASE-UNKNOWN": (2, "the base is of no kind we know"),
    "LRY-BASE-FAMILY": (2, "the base is of another family"),
    "LRY-BASE-NOT-A-MODEL": (2, "the file is a LoRA or another part, not a base model"),
    "LRY-BASE-PICKLE": (2, "the base has pickled weights only, which can hold code"),
    "LRY-BASE-LOAD": (2, "the base cannot be loaded"),
    "LRY-DATA-MISSING": (3, "the dataset folder is not there"),
    "LRY-DATA-EMPTY": (3, "no usable picture"),
    "LRY-DATA-UNREADABLE": (3, "a file or folder cannot be opened"),
    "LRY-DATA-NAME": (3, "a file name with control characters or not Unicode"),
    "LRY-DATA-LINK": (3, "a symbolic link that leaves the dataset"),
    "LRY-DATA-NOT-A-FILE": (3, "a picture's name on something that is no file"),
    "LRY-DATA-ZERO": (3, "an empty file"),
    "LRY-DATA-CORRUPT": (3, "a picture that cannot be decoded"),
    "LRY-DATA-FORMAT": (3, "a picture in a format that is not read"),
    "LRY-DATA-ANIMATED": (3, "an animation"),
    "LRY-DATA-HUGE": (3, "too many pixels"),
    "LRY-DATA-SMALL": (3, "a picture much smaller than the resolution"),
    "LRY-DATA-CAPTION-MISSING": (3, "a picture without a caption"),
    "LRY-DATA-CAPTION-EMPTY": (3, "an empty caption"),
    "LRY-DATA-CAPTION-ENCODING": (3, "a caption that is not UTF-8"),
    "LRY-DATA-CAPTION-NUL": (3, "a caption with control characters"),
    "LRY-DATA-CAPTION-LONG": (3, "a caption file too long to be one"),
    "LRY-DATA-CAPTION-LINES": (3, "a caption file of several lines"),
    "LRY-DATA-CAPTION-TWO": (3, "two caption files for one picture"),
    "LRY-DATA-CAPTION-STRAY": (3, "a caption without a picture"),
    "LRY-DATA-CAPTION-SHARED": (3, "two pictures that share one caption file"),
    "LRY-DATA-REPEATS": (3, "a folder with 0 repeats"),
    "LRY-DATA-UNUSED": (3, "files that are not read"),
    "LRY-DATA-MASK-MISSING": (3, "a picture without a mask where others have one"),
    "LRY-DATA-MASK-SIZE": (3, "a mask of other proportions than its picture's"),
    "LRY-DATA-MASK-EMPTY": (3, "a mask that leaves nothing to train on"),
    "LRY-DATA-BOTH": (3, "a picture that is both trained on and kept from changing"),
    "LRY-TRAIN-NAN": (7, "the loss or the gradients are not finite"),
    "LRY-TRAIN-SPIKE": (7, "the loss has left its scale"),
    "LRY-TRAIN-HELDOUT": (7, "the held-out loss is that of a broken adapter"),
    "LRY-TRAIN-NOGRAD": (7, "a part that should learn gets no gradient"),
    "LRY-TRAIN-OOM": (7, "out of memory"),
    "LRY-TRAIN-DISK": (7, "the disk is full or cannot be written"),
    "LRY-TRAIN-KILLED": (7, "the training process was killed"),
    "LRY-TRAIN-CRASH": (7, "the training process crashed: a mistake of ours"),
    "LRY-CKPT-DIGEST": (12, "the checkpoint belongs to another job"),
    "LRY-CKPT-TORN": (12, "the checkpoint is incomplete"),
    "LRY-FILE-ADAPTER": (12, "the adapter file is not one of ours"),
}
"""code -> (exit code, what it means). Several codes may be warnings; the exit code counts when they end a job."""


class TrainerError(Exception):
    """The fact, the value and the next move, for the person paying."""

    exit_code: ClassVar[int] = EXIT_FAILED

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        assert code in CODES, f"unlisted code {code}"
        assert CODES[code][0] == self.exit_code, f"{code} under the wrong class"
        self.code = code
        self.message = message
        self.hint = hint
        super().__init__(f"{message} {hint}".strip())


class SpecError(TrainerError):
    exit_code = 2


class BaseModelError(TrainerError):
    exit_code = 2


class DatasetError(TrainerError):
    exit_code = 3


class TrainingError(TrainerError):
    exit_code = 7


class IntegrityError(TrainerError):
    exit_code = 12


class StopRequested(Exception):  # a request, not an error
    """Somebody asked for an orderly end."""
