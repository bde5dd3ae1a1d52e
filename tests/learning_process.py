"""A process that learns what it is told to and dies when it is told to; the fixture ``learning`` runs it.

It imports once, then learns one round for each line of its input, each in a process of its own: {"state", "data",
"task", "training", "restart", "cache", "die", "signal"}. "die" names a moment, and the process sends itself SIGKILL
there, or the signal of this number: "training 7" is after the seventh step of the training, "features 1" the first
batch of a pass, "hidden file 3" the third file of hidden states, opened and still empty, "before commit" and "after
commit" what they say. "cache" is the user's cache folder. Prints the child's process id, what it is doing, and at the
end {"pid", "status"}.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from sapwood import learner as module
from sapwood.errors import SapwoodError
from sapwood.hidden_cache import HiddenCache
from sapwood.learner import Learner
from sapwood.progress import Progress


def tell(**facts: Any) -> None:
    # One write: the parent and its child share the pipe, and print may write a line and its end apart.
    os.write(1, (json.dumps(facts) + "\n").encode())


class Teller(Progress):
    """Says what happens, and dies at a moment."""

    def __init__(self, moment: str | None, number: int) -> None:
        self.moment, self.number, self.what, self.count = moment, number, "", 0

    def start(self, what: str, total: int, done: int = 0) -> None:
        self.what, self.count = what, 0
        tell(doing=what, total=total, done=done)

    def advance(self, units: int, **facts: float) -> None:
        self.count += 1
        if self.what == "training":
            tell(step=self.count)
        if self.moment == f"{self.what} {self.count}":
            os.kill(os.getpid(), self.number)

    def note(self, text: str) -> None:
        tell(note=text)


def around(function: Callable[..., None], moment: str | None) -> Callable[..., None]:
    def call(*arguments: Any) -> None:
        if moment == "before commit":
            os.kill(os.getpid(), signal.SIGKILL)
        function(*arguments)
        if moment == "after commit":
            os.kill(os.getpid(), signal.SIGKILL)

    return call


def writing(moment: str | None) -> None:
    digest, count = HiddenCache._digest, 0

    def call(*arguments: Any) -> bytes:
        nonlocal count
        count += 1
        if moment == f"hidden file {count}":
            os.kill(os.getpid(), signal.SIGKILL)
        return digest(*arguments)

    HiddenCache._digest = call  # type: ignore[method-assign]


def learn(job: dict[str, Any]) -> None:
    if "cache" in job:
        os.environ["SAPWOOD_CACHE"] = job["cache"]
    writing(job.get("die"))
    module.commit_round = around(module.commit_round, job.get("die"))  # type: ignore[assignment]
    learner = Learner.open(job["state"])
    learner.learn(
        job["data"],
        task=job.get("task"),
        training=job.get("training"),
        restart=job.get("restart", False),
        progress=Teller(job.get("die"), job.get("signal", signal.SIGKILL)),
    )


def child(line: str) -> NoReturn:
    try:
        learn(json.loads(line))
        code = 0
    except SapwoodError as error:
        tell(error=type(error).__name__, message=str(error))
        code = error.exit_code
    except BaseException as error:
        tell(error=type(error).__name__, message=str(error))
        code = 70
    sys.stdout.flush()
    os._exit(code)


def main() -> None:
    import accelerate  # noqa: F401
    import transformers.models.dinov2.modeling_dinov2  # noqa: F401
    from PIL import Image

    from sapwood.backbones import create_backbone

    create_backbone("random:dinov2-tiny", 28)  # what the first use imports
    Image.init()  # and what the first picture does
    gc.collect()
    gc.freeze()  # collecting garbage would copy every page that the children share
    for line in sys.stdin:
        number = os.fork()
        if not number:
            child(line)
        tell(pid=number)
        _, status = os.waitpid(number, 0)
        tell(pid=number, status=os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
