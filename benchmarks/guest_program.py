"""Drives a measured program step by step: reads its lines of JSON, lets it go on with a newline.

Lines that are not JSON objects belong to the launcher and are kept as messages. The program and all
below it are gone when the `with` block ends, on whatever path it ends.
"""

import json
import selectors
import subprocess

import failures
import interrupts
import kernel_counters
import process_end


class GuestFailed(failures.MeasurementFailed):
    """The program ended, or did not reach its next step in time, or found wrong data."""


class GuestProgram:
    """One run of a program, with the words of a launcher in front or none."""

    # Bounds a hang; the slowest step (50 children over plain pages) takes some ten seconds.
    _STEP_SECONDS = 300

    def __init__(self, wrapper, program, *options):
        self._words = [*wrapper, program, *options]
        self._process = None
        self._tree = {}
        self._buffer = b""
        self.messages = []

    def __enter__(self):
        try:
            with interrupts.held_back():
                self._process = subprocess.Popen(
                    self._words, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT, start_new_session=True)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *unused):
        if self._process is None:
            return
        # Before the parent ends: its children are not found below it afterwards.
        tree = {**self._tree, **process_end.identities(self.processes())}
        # End of file is how a waiting program learns that its driver is done with it.
        self._process.stdin.close()
        try:
            self._process.wait(1)
        except subprocess.TimeoutExpired:
            pass
        process_end.kill_rest(tree)
        self._process.wait()
        self._process.stdout.close()

    def processes(self):
        """Returns the pids of the program, its launcher, and all below."""
        return [self._process.pid, *kernel_counters.descendants(self._process.pid)]

    def expect(self, step):
        """Returns the JSON object with which the program reports `step`."""
        found = self._next_object()
        if found.get("step") != step:
            raise GuestFailed(f"{self._words}: {found} where step {step} was expected")
        # What is there now is what must be gone later, even if its parent ends first.
        self._tree.update(process_end.identities(self.processes()))
        return found

    def go_on(self):
        self._process.stdin.write(b"\n")
        self._process.stdin.flush()

    def finish(self, step="verified"):
        """Lets the program end; raises GuestFailed unless it found its data right."""
        result = self.expect(step)
        if result.get("good", 1) != 1:
            raise GuestFailed(f"{self._words}: wrong data in the region")
        self.end()
        return result

    def end(self):
        """Waits for the program's end; raises GuestFailed unless its status is 0."""
        rest = self._read_rest()
        self.messages += rest.decode(errors="replace").splitlines()
        if self._process.wait() != 0:
            status = self._process.returncode
            raise GuestFailed(f"{self._words} ended with {status}: {self.messages}")

    def _read_rest(self):
        rest, self._buffer = self._buffer, b""
        while True:
            data = self._read_some()
            if not data:
                return rest
            rest += data

    def _next_object(self):
        while True:
            line, newline, rest = self._buffer.partition(b"\n")
            if newline:
                self._buffer = rest
                text = line.decode(errors="replace")
                if text.startswith("{"):
                    return json.loads(text)
                self.messages.append(text)
                continue
            data = self._read_some()
            if not data:
                raise GuestFailed(
                    f"{self._words} ended with {self._process.wait()}: {self.messages}")
            self._buffer += data

    def _read_some(self):
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            if not selector.select(self._STEP_SECONDS):
                raise GuestFailed(f"{self._words}: no next step within {self._STEP_SECONDS} s")
        return self._process.stdout.read1(65536)
