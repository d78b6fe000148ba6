"""One thread owns the device: it takes the audits that are ready and reads for all of them in each forward pass.

An audit is a generator that yields the pieces it wants read. The shortest goes first, since that keeps the mean wait
short, but each gains on the others while it waits.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from guardtrace_proxy.auditor.inference import Piece
from guardtrace_proxy.auditor.protocol import AuditorError, AuditorFailure, FailureKind

AGEING = 4000
"""Tokens by which an audit moves up in a second of waiting."""
IDLE_SECONDS = 1.0
"""After so long without work the thread ends; the next audit starts another. A program's end waits for it, since torch
aborts the process if it is cut off."""

T = TypeVar("T")
Audit = Generator[Piece, torch.Tensor, T]


@dataclass(eq=False)
class Task:
    """An audit under way. ``piece`` is what it waits for."""

    audit: Audit[Any]
    since: float
    future: Future[Any] = field(default_factory=Future)
    piece: Piece = field(init=False)


def choose(tasks: Sequence[Task], most_tokens: int, now: float) -> list[Task]:
    """The tasks of the next pass: the best one, and more as long as their pieces make ``most_tokens`` together.

    Single tokens, which annotations write, aren't counted: a prefill fits beside them.
    """
    ranked = sorted(tasks, key=lambda task: task.piece.left - AGEING * (now - task.since))
    chosen: list[Task] = []
    tokens = 0
    for task in ranked:
        size = len(task.piece.ids)
        if size > 1 and tokens and tokens + size > most_tokens:
            continue
        tokens += size if size > 1 else 0
        chosen.append(task)
    return chosen


class Worker:
    """Runs audits, many in one pass.

    ``forward`` reads pieces and leaves their readings as they were if it raises. ``pass_tokens`` bounds a pass.
    ``may_start`` says whether there is memory for one more audit; ``make_room`` frees what it can.
    """

    def __init__(
        self,
        forward: Callable[[Sequence[Piece]], list[torch.Tensor]],
        pass_tokens: int,
        may_start: Callable[[], bool],
        make_room: Callable[[], None],
    ) -> None:
        self._forward = forward
        self.pass_tokens = pass_tokens
        self._may_start = may_start
        self._make_room = make_room
        self._arrived: deque[Task] = deque()
        self._running: list[Task] = []
        self._news = threading.Condition()
        self._thread: threading.Thread | None = None
        self._closed = False

    def submit(self, audit: Audit[T]) -> Future[T]:
        """Run an audit; cancelling the future ends it before the next pass.

        Raises:
            AuditorFailure: the worker is closed.
        """
        task = Task(audit, time.monotonic())
        with self._news:
            if self._closed:
                raise AuditorFailure(FailureKind.CANCELLED, "the auditor is closed")
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="guardtrace-auditor")
                thread.start()  # it may raise; it waits for the lock
                self._thread = thread
            self._arrived.append(task)
            self._news.notify()
        return task.future

    def close(self) -> None:
        """End all audits before the next pass."""
        with self._news:
            self._closed = True
            self._news.notify()

    def join(self) -> None:
        """Wait until the thread has ended."""
        thread = self._thread
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        failure: AuditorError = AuditorFailure(FailureKind.CANCELLED, "the auditor was closed during the audit")
        try:
            with torch.inference_mode():
                while self._has_work():
                    self._drop_cancelled()
                    self._start_arrived()
                    if self._running:
                        self._pass(choose(self._running, self.pass_tokens, time.monotonic()))
            if self._thread is not threading.current_thread():  # it was idle
                return
        except BaseException as error:  # whatever it is, nobody may wait for a thread that has ended
            failure = _failure(error)
        self._fail_all(failure)

    def _fail_all(self, error: AuditorError) -> None:
        """At the thread's end; the next audit starts another."""
        with self._news:
            tasks = [*self._running, *self._arrived]
            self._running.clear()
            self._arrived.clear()
            self._thread = None
        for task in tasks:
            self._fail(task, error)

    def _has_work(self) -> bool:
        with self._news:
            if not self._running:
                self._news.wait_for(lambda: self._arrived or self._closed, IDLE_SECONDS)
            if not self._closed and not self._running and not self._arrived:
                self._thread = None
            return self._thread is not None and not self._closed

    def _drop_cancelled(self) -> None:
        for task in [task for task in self._running if task.future.cancelled()]:
            self._running.remove(task)
            task.audit.close()

    def _start_arrived(self) -> None:
        while self._arrived and (not self._running or self._may_start()):
            task = self._arrived.popleft()
            self._drop_cancelled()  # meanwhile the last audit of the same session may have been
            if not task.future.cancelled():
                self._running.append(task)
                self._go_on(task, None)

    def _pass(self, tasks: Sequence[Task]) -> None:
        try:
            results = self._forward([task.piece for task in tasks])
        except Exception:
            results = None
        if results is None:  # outside the handler: the exception's frames keep what the pass made
            self._one_by_one(tasks)
            return
        for task, logits in zip(tasks, results, strict=True):
            self._go_on(task, logits)

    def _one_by_one(self, tasks: Sequence[Task]) -> None:
        """After a pass that broke: memory is freed, and whoever breaks again breaks alone."""
        with suppress(Exception):  # of a device that is gone this raises too
            self._make_room()
        for task in tasks:
            read = self._read_alone(task)
            if isinstance(read, AuditorError):
                task.audit.close()
                self._fail(task, read)
            else:
                self._go_on(task, read)

    def _read_alone(self, task: Task) -> torch.Tensor | AuditorError:
        try:
            [logits] = self._forward([task.piece])
        except Exception as error:
            return _failure(error)
        return logits

    def _go_on(self, task: Task, logits: torch.Tensor | None) -> None:
        try:
            task.piece = next(task.audit) if logits is None else task.audit.send(logits)
        except StopIteration as end:
            self._running.remove(task)
            if task.future.set_running_or_notify_cancel():
                task.future.set_result(end.value)
        except Exception as error:
            self._fail(task, _failure(error))

    def _fail(self, task: Task, error: AuditorError) -> None:
        if task in self._running:
            self._running.remove(task)
        if task.future.set_running_or_notify_cancel():
            task.future.set_exception(error)


def _failure(error: BaseException) -> AuditorError:
    """What the audit's caller sees: never the text of an exception from inside, which may quote the user, nor its
    traceback, whose frames keep the tensors of what broke."""
    if isinstance(error, AuditorError):
        return error
    failure = AuditorFailure(FailureKind.BROKEN, f"the auditor raised {type(error).__name__}")
    error.__traceback__ = None
    failure.__cause__ = error
    return failure
