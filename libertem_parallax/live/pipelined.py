"""LiberTEM's pipelined executor, which here gives what workers have when something fails."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from typing import Any

from libertem.common.executor import WorkerQueueEmpty
from libertem.executor.pipelined import PipelinedExecutor

__all__ = ["Pipelined"]

#: Seconds without an answer of any worker after which there will be none.
_ANSWER = 1.0


class Pipelined(PipelinedExecutor):
    """Several processes on CPUs, for one acquisition.

    Parameters
    ----------
    workers
        How many.
    """

    def __init__(self, workers: int) -> None:
        # It would tell of every answer that nobody waits for.
        logging.getLogger("libertem.executor.pipelined").setLevel(logging.CRITICAL)
        super().__init__(
            self.make_spec(cpus=workers, cudas=[]),
            pin_workers=False,  # not all cores need be ours
            startup_timeout=120.0,  # where cores are busy, half a minute may be too little
            cleanup_timeout=2.0,
            early_setup=_set_up,
        )

    def run_tasks(
        self,
        tasks: Iterable[Any],
        params_handle: Any,
        cancel_id: Any,
        task_comm_handler: Any,
    ) -> Iterator[tuple[Any, Any]]:
        """Yield results and their tasks in any order, also those of before an error."""
        given: list[Any] = []
        count = 0

        def give() -> Iterator[Any]:
            for task in tasks:
                given.append(task)
                yield task

        with task_comm_handler.monitor(self._pool.message_queue):
            try:
                for result, task, _ in self._run_tasks_inner(
                    give(), params_handle, cancel_id, task_comm_handler
                ):
                    count += 1
                    yield result, task
            except Exception:
                yield from self._rest(given, len(given) - count)
                raise

    def _rest(self, given: list[Any], missing: int) -> Iterator[tuple[Any, Any]]:
        """Take what workers have finished; the rest is lost."""
        for _ in range(missing):
            try:
                with self._pool.response_queue.get(timeout=_ANSWER) as (message, _payload):
                    answer = dict(message)
            except WorkerQueueEmpty:
                return
            if answer["type"] == "RESULT":
                yield answer["result"], given[answer["task_id"]]

    def _drain_response_queue(self, in_flight: int) -> None:
        """Leave answers to `_rest`."""


def _set_up() -> None:
    """Prepare a worker."""
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    from .. import udf  # noqa: F401 - takes a while, at the same time in all of them


def _end_with_parent() -> None:
    """End a worker whose parent was killed: it would wait for tasks for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
