"""The file of `embar-shm broker`: every mistake at its place, all of them at once."""

from __future__ import annotations

import grp
from pathlib import Path

import pytest

from embar_shm.config.brokers import BROKER_KEYS, BrokerConfig, load_broker, load_brokers
from embar_shm.errors import ConfigurationError


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file `b.yaml` in the current directory, so that messages show just that."""
    monkeypatch.chdir(tmp_path)
    token = tmp_path / "token"
    token.write_text("a token of some length")
    token.chmod(0o600)
    return tmp_path / "b.yaml"


def loaded(file: Path, text: str, **flags: object) -> list[BrokerConfig]:
    file.write_text(text, encoding="utf-8")
    return load_brokers(file.name, flags)


def mistakes(file: Path, text: str, **flags: object) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        loaded(file, text, **flags)
    return caught.value.message.splitlines()


# ---- what is in effect ---------------------------------------------------------------------------


def test_a_broker_with_nothing_but_a_name_has_the_defaults(file: Path) -> None:
    assert loaded(file, "brokers: [{name: a/0}]") == [BrokerConfig(name="a/0")]


def test_keys_outside_the_list_are_for_all_and_a_broker_and_then_a_flag_override_them(
    file: Path,
) -> None:
    text = """
        slots: 2
        wait: block
        spin_us: 1
        brokers:
          - {name: a/0}
          - {name: a/1, slots: 3, wait: spin}
        """
    first, second = loaded(file, text, slots="4")
    assert (first.slots, first.wait, first.spin_us) == (4, "block", 1)
    assert (second.slots, second.wait, second.spin_us) == (4, "spin", 1)


def test_listen_is_one_address_or_a_list_of_them(file: Path) -> None:
    text = """
        brokers:
          - name: a/0
            listen: tcp://127.0.0.1:1
          - name: a/1
            listen: [tcp://127.0.0.1:2, 'tcp://[::1]:3']
        """
    first, second = loaded(file, text)
    assert first.listen == ("tcp://127.0.0.1:1",)
    assert second.listen == ("tcp://127.0.0.1:2", "tcp://[::1]:3")


def test_each_key_can_be_set_in_the_file_and_by_a_flag(file: Path) -> None:
    values = {
        "listen": "tcp://127.0.0.1:7400",
        "slots": "3",
        "slot_size": "4KiB",
        "max_publishers": "5",
        "max_subscribers": "6",
        "retain": "2",
        "wait": "block",
        "spin_us": "7",
        "socket_buffer": "1MiB",
        "group": "0",
        "token_file": "token",
        "insecure": "true",
        "replace_dead": "true",
    }
    of_tls = {"tls_cert", "tls_key", "tls_client_ca"}  # test_broker_command has certificates
    assert {key.name for key in BROKER_KEYS} == {"name", *values, *of_tls}
    lines = "".join(f"    {name}: {value}\n" for name, value in values.items())
    (from_file,) = loaded(file, f"brokers:\n  - name: a/0\n{lines}")
    flags: dict[str, object] = {
        name: (value,) if name == "listen" else True if value == "true" else value
        for name, value in values.items()
    }
    assert from_file == load_broker("a/0", flags)
    unchanged = BrokerConfig(name="a/0")
    same = [name for name in values if getattr(from_file, name) == getattr(unchanged, name)]
    assert same == []


def test_a_flag_can_take_back_what_the_file_says(file: Path) -> None:
    text = "brokers: [{name: a/0, replace_dead: true}]"
    assert loaded(file, text)[0].replace_dead
    assert not loaded(file, text, replace_dead=False)[0].replace_dead


def test_a_group_has_a_name_or_a_number(file: Path) -> None:
    name = grp.getgrgid(0).gr_name
    brokers = "[{name: a/0}, {name: a/1, group: 5}, {name: a/2, group: none}]"
    text = f"group: {name}\nbrokers: {brokers}"
    assert [broker.group for broker in loaded(file, text)] == [name, "5", None]


def test_a_group_that_does_not_exist_is_told_at_its_place(file: Path) -> None:
    (mistake,) = mistakes(file, "group: no such group\nbrokers: [{name: a/0}]")
    assert mistake.startswith("b.yaml:1:8: group: there is no group 'no such group'")


# ---- mistakes ------------------------------------------------------------------------------------


def test_all_mistakes_are_told_each_at_its_line_and_column(file: Path) -> None:
    text = """\
slots: 0
brokers:
  - name: a
    slot_sze: 1
  - wait: never
    listen:
      - tcp://127.0.0.1:1
      - udp://127.0.0.1:2
  - just text
"""
    assert mistakes(file, text, max_publishers="x") == [
        "flag --max-publishers: 'x' is not a whole number (plain decimal digits)",
        "b.yaml:1:8: slots: 0 is below the minimum 1",
        "b.yaml:3:11: name: 'a' is not the name of a ring: a name is \"cluster/broker\", for "
        "example \"demo/0\"; each part has 1 to 64 letters, digits, '-' or '_', and begins with a "
        "letter or digit",
        "b.yaml:4:5: unknown key 'slot_sze' (did you mean 'slot_size'?)",
        "b.yaml:5:11: wait: 'never' is not one of the choices: 'adaptive', 'spin' or 'block'",
        "b.yaml:8:9: listen: there is no transport 'udp': installed: shm, tcp",
        "b.yaml:5:5: this broker has no name",
        "b.yaml:9:5: expected lines of 'key: value', such as 'name: demo/0'",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "b.yaml: there is no list 'brokers'"),
        ("brokers:\n", "b.yaml:1:9: brokers: expected a list of brokers, each with a name"),
        ("brokers: []", "b.yaml:1:10: brokers: expected a list of brokers, each with a name"),
        ("brokers: a/0", "b.yaml:1:10: brokers: expected a list of brokers, each with a name"),
        (
            "brokers: [{name: a/0}]\nbrokers: [{name: a/1}]",
            "b.yaml:2:1: 'brokers' is set twice (first at b.yaml:1)",
        ),
        (
            "name: a/0\nbrokers: [{name: a/1}]",
            "b.yaml:1:1: a name is for one broker: put it there",
        ),
        (
            "brokers: [{name: a/0}, {name: a/0}]",
            "b.yaml:1:31: name: 'a/0' is taken twice (first at b.yaml:1)",
        ),
        (
            "brokers: [{name: a/0, slots: [1, 2]}]",
            "b.yaml:1:30: slots: expected one value, not a list",
        ),
        ("brokers: [{name: a/0, name: a/1}]", "b.yaml:1:23: 'name' is set twice"),
        ("brokers: [{name: a/0, listen: }]", "b.yaml:1:30: listen: there is no value"),
        ("brokers: [{name: a/0, listen: 7400}]", "b.yaml:1:31: listen: 7400 is not an address"),
        ("brokers: [{name: 5}]", "b.yaml:1:18: name: 5 is not a name such as demo/0"),
        ("brokers: [{name: }]", "b.yaml:1:17: name: there is no value"),
    ],
)
def test_a_file_without_proper_brokers_is_explained(file: Path, text: str, said: str) -> None:
    (mistake,) = mistakes(file, text)
    assert mistake.startswith(said)


def test_no_more_can_be_retained_than_there_are_slots(file: Path) -> None:
    assert mistakes(file, "retain: 5\nbrokers: [{name: a/0, slots: 4}, {name: a/1}]") == [
        "b.yaml:2:30: slots: 4 is below retain 5 (b.yaml:1): only what is in a slot can be kept"
    ]
    assert mistakes(file, "brokers: [{name: a/0}]", retain="9") == [
        "flag --retain: 9 is above slots 8 (default): only what is in a slot can be kept"
    ]


def test_an_address_belongs_to_one_broker_unless_it_is_any_free_one(file: Path) -> None:
    text = "listen: tcp://127.0.0.1:{port}\nbrokers: [{{name: a/0}}, {{name: a/1}}]"
    assert len(loaded(file, text.format(port=0))) == 2
    assert mistakes(file, text.format(port=7400)) == [
        "b.yaml:1:9: listen: 'tcp://127.0.0.1:7400' is taken twice (first at b.yaml:1)"
    ]


def test_what_only_listeners_need_is_no_mistake_when_another_broker_listens(file: Path) -> None:
    text = """\
token_file: token
brokers:
  - {name: a/0, listen: "tcp://127.0.0.1:0"}
  - {name: a/1}
"""
    assert [broker.token_file for broker in loaded(file, text)] == ["token", "token"]


def test_what_only_listeners_need_is_a_mistake_where_nobody_listens(file: Path) -> None:
    nothing = "nothing is protected or sized without listen"
    assert mistakes(file, "token_file: token\nbrokers: [{name: a/0}, {name: a/1}]") == [
        f"b.yaml:1:13: token_file: {nothing}"
    ]
    text = 'brokers: [{name: a/0, insecure: yes}, {name: a/1, listen: "tcp://127.0.0.1:0"}]'
    assert mistakes(file, text) == [f"b.yaml:1:33: insecure: {nothing}"]


def test_files_that_cannot_be_used_are_told_where_they_are_named(file: Path) -> None:
    text = """\
listen: tcp://127.0.0.1:0
token_file: missing
brokers:
  - {name: a/0, tls_cert: token}
  - {name: a/1, tls_cert: token, tls_key: token}
"""
    found = mistakes(file, text)
    assert found[0] == (
        "b.yaml:2:13: token_file: the token file missing cannot be read: No such file or directory"
    )
    assert found[1] == "b.yaml:4:27: tls_cert: TLS needs both tls_cert and tls_key"
    assert found[2].startswith("b.yaml:5:27: tls_cert: cannot use the certificate token")
    assert len(found) == 3, "what is for all brokers is told once"


def test_flags_are_named_as_flags() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_broker("demo", {"slots": "many", "tls_cert": "x", "listen": ("tcp://127.0.0.1:0",)})
    name, slots, cert = caught.value.message.splitlines()
    assert name.startswith("CLUSTER/BROKER: 'demo' is not the name of a ring")
    assert slots == "flag --slots: 'many' is not a whole number (plain decimal digits)"
    assert cert == "flag --tls-cert: TLS needs both --tls-cert and --tls-key"
