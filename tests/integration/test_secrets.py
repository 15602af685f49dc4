"""A token is in its file and in the memory of those who use it, and nowhere else.

The real commands, with a token that can be recognised: in what they print, write and log, and in
what /proc shows to others of them and of the processes they start.
"""

from __future__ import annotations

import base64
import dataclasses
import hmac
import importlib
import json
import pkgutil
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import click
import psutil
import pytest
from command import SMALL, embar_shm, started

import embar_shm as es
from embar_shm import protocol
from embar_shm.cli.main import cli
from embar_shm.config.brokers import BROKER_KEYS
from embar_shm.config.schema import KEYS
from embar_shm.errors import AccessDenied
from embar_shm.transports.base import ListenOptions, PublisherOptions, SubscriberOptions

TOKEN = "recognisable-7Qx2-the-right-one"
WRONG = "recognisable-9Zk4-a-wrong-one"
# As it is, and as something might have encoded it.
SHAPES = [
    shape
    for token in (TOKEN.encode(), WRONG.encode())
    for shape in (token, token.hex().encode(), base64.b64encode(token), token[::-1])
]

LISTEN = ["--listen", "tcp://127.0.0.1:0"]

# What there is besides the token.
PUBLISHER: dict[str, Any] = {
    field.name: None
    for field in dataclasses.fields(PublisherOptions)
    if field.default is dataclasses.MISSING
}
SUBSCRIBER: dict[str, Any] = {
    field.name: None
    for field in dataclasses.fields(SubscriberOptions)
    if field.default is dataclasses.MISSING
}

# The command line with the root logger open to everything, before the command sets it up.
LOUD = [
    sys.executable,
    "-c",
    "import logging; logging.basicConfig(level=1); from embar_shm.cli.main import main; main()",
]


def check_no_secret(where: str, data: bytes) -> None:
    for shape in SHAPES:
        assert shape not in data, f"{shape!r} is in {where}"


@dataclasses.dataclass
class Done:
    """A command that has ended, and how many processes others could look at."""

    code: int
    stdout: str
    stderr: str
    seen: int


class Onlooker:
    """Looks at what /proc shows of a process and all its descendants, until it is gone."""

    def __init__(self, pid: int) -> None:
        self.shown: dict[tuple[int, str], bytes] = {}
        self._process = psutil.Process(pid)
        self._gone = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    @property
    def seen(self) -> int:
        """Processes that have an argument list: a program of their own."""
        return len({pid for (pid, file), data in self.shown.items() if data and file == "cmdline"})

    def stop(self) -> None:
        self._gone.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._gone.wait(0.002):
            with suppress(psutil.NoSuchProcess):
                for one in [self._process, *self._process.children(recursive=True)]:
                    self._look_at(one.pid)

    def _look_at(self, pid: int) -> None:
        for file in ("cmdline", "environ"):
            with suppress(OSError):  # it has ended
                data = Path(f"/proc/{pid}/{file}").read_bytes()
                self.shown[pid, file] = self.shown.get((pid, file), b"") + data


@contextmanager
def watched(*arguments: str, cwd: Path) -> Iterator[tuple[subprocess.Popen[str], list[Done]]]:
    """The command, running; the list has what became of it after the block, all of it checked."""
    with started(*arguments, command=LOUD, cwd=cwd) as process:
        done: list[Done] = []
        onlooker = Onlooker(process.pid)
        try:
            yield process, done
            stdout, stderr = process.communicate(timeout=60)
        finally:
            onlooker.stop()
    for (pid, file), data in onlooker.shown.items():
        check_no_secret(f"/proc/{pid}/{file}", data)
    check_no_secret("stdout", stdout.encode())
    check_no_secret("stderr", stderr.encode())
    done.append(Done(process.returncode, stdout, stderr, onlooker.seen))


def ran(*arguments: str, cwd: Path) -> Done:
    with watched(*arguments, cwd=cwd) as (_, done):
        pass
    return done[0]


def check_files(folder: Path) -> list[str]:
    """Names of the files that commands wrote, none of which has a secret."""
    written = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".token"]
    for path in written:
        check_no_secret(str(path), path.read_bytes())
    return sorted(path.name for path in written)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, token in ("right", TOKEN), ("wrong", WRONG):
        path = tmp_path / f"{name}.token"
        path.write_text(token)
        path.chmod(0o600)
    return tmp_path


def test_brokers_publishers_and_subscribers_tell_nobody_their_token(
    cluster: str, folder: Path
) -> None:
    (folder / "brokers.yaml").write_text(
        "token_file: right.token\n"
        "retain: 2\n"
        "brokers:\n"
        f"  - {{name: {cluster}/0, listen: 'tcp://127.0.0.1:0'}}\n"
        f"  - {{name: {cluster}/1, listen: 'tcp://127.0.0.1:0'}}\n"
    )
    (folder / "lines").write_text("one\ntwo\n")
    right, wrong = ("--token-file", "right.token"), ("--token-file", "wrong.token")
    with watched("broker", "--config", "brokers.yaml", "--json", cwd=folder) as (broker, done):
        assert broker.stdout is not None
        ready = broker.stdout.readline()
        one, two = (own["addresses"][1] for own in json.loads(ready)["brokers"].values())
        read = ("--start", "earliest", "--count", "2", "--output", "read", "--json")
        allowed = [
            ran("publish", one, "lines", *right, "--json", cwd=folder),
            ran("subscribe", one, *read, *right, cwd=folder),
        ]
        assert [each.code for each in allowed] == [0, 0], allowed
        refused = [
            ran("publish", one, "lines", *wrong, cwd=folder),
            ran("subscribe", two, *wrong, cwd=folder),
            ran("run", "--transport", "tcp", "--connect", two, *SMALL[2:], *wrong, cwd=folder),
        ]
        assert ["the token is wrong" in each.stderr for each in refused] == [True] * 3, refused
        broker.send_signal(signal.SIGTERM)
    assert done[0].code == 0, done[0].stderr
    assert done[0].stderr.count("the token is wrong") >= 3  # there is a log to look at
    assert done[0].seen == 3  # the brokers, and the process above them
    check_no_secret("the ready line", ready.encode())
    assert check_files(folder) == ["brokers.yaml", "lines", "read"]


def test_a_run_shows_the_token_in_no_process_and_no_result(folder: Path) -> None:
    run = ran(
        *("run", "--transport", "tcp", *SMALL, "--token-file", "right.token"),
        *("--output", "result.json", "--csv", "results.csv", "--json"),
        cwd=folder,
    )
    assert run.code == 0, run.stderr
    assert run.seen >= 7  # two brokers and four publishers, and the command itself
    assert check_files(folder) == ["result.json", "results.csv"]
    result = json.loads((folder / "result.json").read_text())
    assert result["parameters"]["token_file"]["value"] == "right.token"  # it was used


@pytest.mark.parametrize(
    ("arguments", "environ", "code", "says"),
    [
        (["config", "show", "--origin", "--token-file", "right.token"], {}, 0, "right.token"),
        (["config", "show"], {"EMBAR_TOKEN": TOKEN}, 2, "unknown key 'EMBAR_TOKEN'"),
        (["config", "show", "--config", "token.yaml"], {}, 2, "unknown key 'token'"),
        (["broker", "--config", "token.yaml"], {}, 2, "unknown key 'token'"),
        (["broker", "a/0", *LISTEN, "--token-file", "long.token"], {}, 2, "4097 characters"),
        (["broker", "a/0", *LISTEN, "--token-file", "binary.token"], {}, 2, "is not UTF-8 text"),
        (["broker", "a/0", *LISTEN, "--token-file", "open.token"], {}, 2, "others may use"),
    ],
    ids=str,
)
def test_a_mistake_with_a_token_does_not_show_it(
    folder: Path, arguments: list[str], environ: dict[str, str], code: int, says: str
) -> None:
    (folder / "token.yaml").write_text(f"token: {TOKEN}\nbrokers: [{{name: a/0, token: {TOKEN}}}]")
    for name, content in {
        "long": TOKEN.encode() * 200,
        "binary": TOKEN.encode() + b"\xff",
        "open": TOKEN.encode(),
    }.items():
        path = folder / f"{name}.token"
        path.write_bytes(content)
        path.chmod(0o644 if name == "open" else 0o600)
    outcome = embar_shm(*arguments, environ=environ, command=LOUD, cwd=folder)
    assert outcome.code == code, outcome.stderr
    assert says in outcome.stdout + outcome.stderr
    check_no_secret("stdout", outcome.stdout.encode())
    check_no_secret("stderr", outcome.stderr.encode())


def commands(group: click.Group) -> Iterator[click.Command]:
    yield group
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from commands(command)
        else:
            assert command is not None
            yield command


def test_there_is_no_flag_and_no_key_that_takes_a_secret_itself() -> None:
    found = list(commands(cli))
    assert {"run", "broker", "publish", "subscribe", "show"} <= {each.name for each in found}
    names = {key.name for key in (*KEYS, *BROKER_KEYS)}
    names |= {param.name for command in found for param in command.params if param.name}
    secret = {name for name in names if re.search("token|secret|password|key|cert", name)}
    assert secret == {"token_file", "tls_key", "tls_cert"}  # paths of files


# ---- in the program ------------------------------------------------------------------------------


def test_options_that_have_a_token_do_not_show_it() -> None:
    shown = [
        make(token=TOKEN)
        for make in (
            ListenOptions,
            lambda token: PublisherOptions(**PUBLISHER, token=token),
            lambda token: SubscriberOptions(**SUBSCRIBER, token=token),
        )
    ]
    for options in shown:
        assert options.token == TOKEN
        check_no_secret("repr", repr(options).encode())


def test_no_other_class_of_the_library_shows_a_token() -> None:
    having = set()
    for found in pkgutil.walk_packages(es.__path__, "embar_shm."):
        if found.name.startswith("embar_shm.testing.plugin"):
            continue
        module = importlib.import_module(found.name)
        for thing in vars(module).values():
            if isinstance(thing, type) and dataclasses.is_dataclass(thing):
                for one in dataclasses.fields(thing):
                    if one.name == "token":
                        having.add(thing.__name__)
                        assert not one.repr, thing
    assert having == {"ListenOptions", "PublisherOptions", "SubscriberOptions"}


def test_proofs_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[tuple[bytes, bytes]] = []

    def note(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return compare(one, other)

    compare = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", note)
    nonce = protocol.new_nonce()
    proof = protocol.prove(TOKEN, nonce, b"hello")
    protocol.check_proof(TOKEN, nonce, b"hello", proof)
    for wrong in (proof[:-1], b"", protocol.prove(WRONG, nonce, b"hello")):
        with pytest.raises(AccessDenied):
            protocol.check_proof(TOKEN, nonce, b"hello", wrong)
    assert [one for one, _ in compared] == [proof] * 4


def test_no_challenge_is_used_twice() -> None:
    nonces = {protocol.new_nonce() for _ in range(1000)}
    assert len(nonces) == 1000
    assert {len(nonce) for nonce in nonces} == {protocol.NONCE_BYTES}
    assert protocol.NONCE_BYTES >= 16
