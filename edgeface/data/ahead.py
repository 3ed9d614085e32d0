"""Work done ahead in threads, so that whoever asks for its results need not wait for each."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Made = TypeVar("Made")


def ahead(pieces: Iterable[Callable[[], Made]], *, threads: int) -> Iterator[Made]:
    """The results of some pieces of work, in their order; at any time one a thread, and one more, is in the making.

    Args:
        pieces: What is to be done; none may depend on another.
        threads: How many work at a time; 0 does each piece when it is asked for. PyTorch's own number of threads must
            not be changed in them: it is one for the whole process, and results may depend on it.

    Raises:
        BaseException: Whatever a piece raised, when its turn comes.
    """
    if threads == 0:
        for piece in pieces:
            yield piece()
        return
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="ahead") as pool:
        try:
            for piece in pieces:
                waiting.append(pool.submit(piece))
                if len(waiting) > threads + 1:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # whoever asked has stopped, or a piece failed: what has begun ends, the rest is not begun
            for future in waiting:
                future.cancel()
