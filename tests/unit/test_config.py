"""Every value has an origin, the right source wins, and all mistakes are told at once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from embar_shm.cli.options import config_options, load_from_flags
from embar_shm.config.loader import LoadedConfig, builtin_names, load
from embar_shm.config.schema import (
    KEYS,
    OF_OWN_BROKERS,
    OF_PACED,
    OF_SUBSCRIBERS,
    OF_UNPACED,
    RULES,
    AtMost,
    RunConfig,
    check_value,
)
from embar_shm.errors import ConfigurationError

KEY_NAMES = [key.name for key in KEYS]

# A value of every key that differs from its default, as text and as parsed.
OTHER_VALUES: dict[str, tuple[str, object]] = {
    "scenario": ("latency", "latency"),
    "transport": ("tcp", "tcp"),
    "connect": ("tcp://a:1, tcp://b:2", "tcp://a:1,tcp://b:2"),
    "brokers": ("2", 2),
    "publishers_per_broker": ("5", 5),
    "subscribers_per_broker": ("3", 3),
    "subscribe_mode": ("lossy", "lossy"),
    "consume": ("messages", "messages"),
    "message_size": ("64", 64),
    "batch_size": ("1MiB", 1024**2),
    "total_bytes": ("1GB", 1000**3),
    "order": ("0", 0),  # the only order that exists
    "ack": ("0", 0),
    "producer": ("many", "many"),
    "messages_per_call": ("7", 7),
    "rate": ("2e3", 2000.0),
    "duration": ("1.5", 1.5),
    "verify": ("yes", True),
    "slots": ("16", 16),
    "slot_size": ("4MiB", 4 * 1024**2),
    "in_flight": ("1", 1),
    "max_publishers": ("100", 100),
    "wait": ("block", "block"),
    "spin_us": ("0", 0),
    "broker_scheduling": ("normal", "normal"),
    "copy": ("nontemporal", "nontemporal"),
    "socket_buffer": ("1MiB", 1024**2),
    "token_file": ("token.txt", "token.txt"),
    "tls_cert": ("cert.pem", "cert.pem"),
    "tls_key": ("key.pem", "key.pem"),
    "tls_ca": ("ca.pem", "ca.pem"),
    "linger_ms": ("0.5", 0.5),
    "timeout": ("1e1", 10.0),
    "sample_every": ("0", 0),
    "ceiling": ("no", False),
}

# Keys that have an effect in some scenarios only.
SCENARIO_OF = {
    "subscribe_mode": "end-to-end",
    "consume": "end-to-end",
    "rate": "latency",
    "duration": "latency",
}

ALIASES = [(key.name, alias) for key in KEYS for alias in key.aliases]


def load_with(
    *files: str,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
    profile: str | None = None,
    workload: str | None = None,
) -> LoadedConfig:
    return load(profile, workload, files, environ or {}, flags or {})


def mistakes(*files: str, **sources: Any) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load_with(*files, **sources)
    return caught.value.message.splitlines()


@pytest.fixture
def my_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file `my.yaml` in the current directory, so that messages show just that."""
    monkeypatch.chdir(tmp_path)
    return tmp_path / "my.yaml"


def mistakes_in(path: Path, text: str) -> list[str]:
    path.write_text(text, encoding="utf-8")
    return mistakes(path.name)


# ---- precedence and origins ----------------------------------------------------------------------


def test_with_no_source_given_a_run_is_the_workload_of_the_report() -> None:
    loaded = load_with()
    assert loaded.values == RunConfig()
    assert loaded.values.publishers == 12
    assert loaded.values.total_messages == 10 * 1024**2
    assert loaded.origins["brokers"] == "config/workloads/report.yaml:6"
    assert loaded.origins["slots"] == "default"


def test_each_source_overrides_all_before_it(tmp_path: Path) -> None:
    def file(name: str, text: str) -> str:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    # Each source sets one key fewer than the source before: key k is last set by source k.
    keys = ["slots", "in_flight", "spin_us", "ack", "brokers", "sample_every"]
    lines = [f"{key}: 1\n" for key in keys]
    profile = file("profile.yaml", "".join(lines[0:]))
    workload = file("workload.yaml", "".join(lines[1:]))
    first = file("first.yaml", "".join(lines[2:]))
    second = file("second.yaml", "".join(lines[3:]))
    loaded = load(
        profile,
        workload,
        [first, second],
        {"EMBAR_BROKERS": "1", "EMBAR_SAMPLE_EVERY": "1"},
        {"sample_every": "1"},
    )
    assert [loaded.origins[key] for key in keys] == [
        f"{profile}:1",
        f"{workload}:1",
        f"{first}:1",
        f"{second}:1",
        "environment EMBAR_BROKERS",
        "flag --sample-every",
    ]
    assert loaded.origins["wait"] == "default"


def test_the_value_of_the_last_source_is_the_one_in_effect(my_yaml: Path) -> None:
    my_yaml.write_text("slots: 10\n", encoding="utf-8")
    environ, flags = {"EMBAR_SLOTS": "20"}, {"slots": "30"}
    assert load_with(profile="small-memory").values.slots == 4
    assert load_with("my.yaml", profile="small-memory").values.slots == 10
    assert load_with("my.yaml", environ=environ).values.slots == 20
    assert load_with("my.yaml", environ=environ, flags=flags).values.slots == 30


def test_the_later_of_two_files_wins(tmp_path: Path) -> None:
    a, b = tmp_path / "a.yaml", tmp_path / "b.yaml"
    a.write_text("slots: 10\n", encoding="utf-8")
    b.write_text("# a comment\n\nslots: 20\n", encoding="utf-8")
    assert load_with(str(a), str(b)).origins["slots"] == f"{b}:3"
    assert load_with(str(b), str(a)).origins["slots"] == f"{a}:1"


def test_a_file_origin_is_the_path_as_it_was_given_and_the_line(my_yaml: Path) -> None:
    my_yaml.write_text("# one\nslots: 3\n\nack: 0\n", encoding="utf-8")
    assert load_with("my.yaml").origins["slots"] == "my.yaml:2"
    assert load_with("./my.yaml").origins["ack"] == "./my.yaml:4"


def test_a_negated_flag_is_named_as_it_was_written() -> None:
    assert load_with(flags={"ceiling": False}).origins["ceiling"] == "flag --no-ceiling"
    assert load_with(flags={"ceiling": True}).origins["ceiling"] == "flag --ceiling"


def test_slot_size_follows_batch_size_and_says_so() -> None:
    loaded = load_with(flags={"batch_size": "1MiB"})
    assert loaded.values.slot_size is None
    assert loaded.values.effective_slot_size == 1024**2
    assert loaded.parameters()["slot_size"] == {
        "value": 1024**2,
        "origin": "derived: = batch_size (flag --batch-size)",
    }


def test_a_slot_size_that_was_set_is_kept() -> None:
    loaded = load_with(flags={"slot_size": "4MiB"})
    assert loaded.values.effective_slot_size == 4 * 1024**2
    assert loaded.origins["slot_size"] == "flag --slot-size"


@pytest.mark.parametrize("text", ["null", "~", "", "none"])
def test_a_file_can_let_slot_size_follow_again(my_yaml: Path, text: str) -> None:
    my_yaml.write_text(f"slot_size: {text}\n", encoding="utf-8")
    assert load_with("my.yaml").values.slot_size is None


def test_publishers_are_derived_from_both_factors() -> None:
    loaded = load_with(environ={"EMBAR_THREADS_PER_BROKER": "5"}, flags={"brokers": "2"})
    assert loaded.parameters()["publishers"] == {
        "value": 10,
        "origin": "derived: brokers (flag --brokers) x "
        "publishers_per_broker (environment EMBAR_THREADS_PER_BROKER)",
    }


def test_parameters_list_every_key_in_the_order_of_the_schema() -> None:
    loaded = load_with()
    expected = list(KEY_NAMES)
    expected.insert(expected.index("publishers_per_broker") + 1, "publishers")
    assert list(loaded.parameters()) == expected == list(loaded.origins)


def test_parameters_survive_json() -> None:
    parameters = load_with().parameters()
    assert json.loads(json.dumps(parameters)) == parameters


# ---- every key, everywhere -----------------------------------------------------------------------


def test_the_table_of_other_values_covers_every_key() -> None:
    assert list(OTHER_VALUES) == KEY_NAMES


@pytest.mark.parametrize("key", KEYS, ids=KEY_NAMES)
def test_every_key_can_be_set_by_file_environment_and_flag(my_yaml: Path, key: Any) -> None:
    text, value = OTHER_VALUES[key.name]
    my_yaml.write_text(f"{key.name}: {text}\n", encoding="utf-8")
    variable, flag = f"EMBAR_{key.name.upper()}", "--" + key.name.replace("_", "-")
    scenario = {"scenario": SCENARIO_OF[key.name]} if key.name in SCENARIO_OF else {}
    for loaded, origin in (
        (load_with("my.yaml", flags=scenario), "my.yaml:1"),
        (load_with(environ={variable: text}, flags=scenario), f"environment {variable}"),
        (load_with(flags=scenario | {key.name: text}), f"flag {flag}"),
    ):
        assert getattr(loaded.values, key.field) == value
        assert loaded.parameters()[key.name] == {"value": value, "origin": origin}


@pytest.mark.parametrize("key", KEYS, ids=KEY_NAMES)
def test_every_key_is_described(key: Any) -> None:
    assert key.description.endswith(".")


def test_addresses_to_connect_to_say_how_many_brokers_there_are() -> None:
    loaded = load_with(flags={"connect": "tcp://a:1,tcp://b:2"}, workload="report")
    assert loaded.values.addresses == ["tcp://a:1", "tcp://b:2"]
    assert loaded.parameters()["brokers"] == {
        "value": 2,
        "origin": "derived: addresses in connect (flag --connect)",
    }
    assert loaded.values.publishers == 6


def test_another_number_of_brokers_than_addresses_is_a_mistake() -> None:
    flags = {"connect": "tcp://a:1,tcp://b:2", "brokers": "3"}
    assert mistakes(flags=flags) == [
        "flag --brokers: 3 brokers, and connect (flag --connect) names 2"
    ]
    assert load_with(flags=flags | {"brokers": "2"}).values.brokers == 2


def test_what_only_own_brokers_need_is_not_used_when_they_run_elsewhere() -> None:
    loaded = load_with(
        flags={"connect": "tcp://a:1", "in_flight": "16", "publishers_per_broker": "65"},
        environ={"EMBAR_SLOT_SIZE": "1KiB"},
    )
    origins = {name: loaded.parameters()[name]["origin"] for name in OF_OWN_BROKERS}
    unused = "not used: the brokers run elsewhere"
    assert origins == {
        "slots": unused,  # so 16 in flight are no mistake with 8 of them, nor 65 publishers
        "slot_size": f"{unused} (environment EMBAR_SLOT_SIZE)",
        "max_publishers": unused,
        "broker_scheduling": unused,
    }
    own = load_with(flags={"slots": "16"}).parameters()
    assert not [name for name in OF_OWN_BROKERS if own[name]["origin"].startswith("not used")]


@pytest.mark.parametrize(
    ("flags", "unused"),
    [
        ({}, {*OF_SUBSCRIBERS, *OF_PACED}),
        ({"verify": "yes"}, {*OF_PACED}),
        ({"scenario": "end-to-end"}, {*OF_PACED}),
        ({"scenario": "latency"}, {*OF_UNPACED}),
        ({"scenario": "broker-failure"}, {*OF_PACED, "linger_ms"}),
        ({"scenario": "latency", "subscribers_per_broker": "0"}, {*OF_SUBSCRIBERS, *OF_UNPACED}),
    ],
)
def test_what_a_scenario_has_no_use_for_is_not_used(
    flags: dict[str, str], unused: set[str]
) -> None:
    shown = load_with(flags=flags | {"rate": "7"}).parameters()
    assert {name for name, one in shown.items() if one["origin"].startswith("not used")} == unused
    if "rate" in unused:
        assert shown["rate"]["origin"].endswith("has a pace (flag --rate)")


@pytest.mark.parametrize(
    ("flags", "each"),
    [
        ({}, 0),
        ({"verify": "yes"}, 1),
        ({"scenario": "end-to-end"}, 1),
        ({"scenario": "parallel", "publishers_per_broker": "5"}, 5),
        ({"scenario": "parallel", "publishers_per_broker": "5", "subscribers_per_broker": "2"}, 2),
        ({"scenario": "latency", "subscribers_per_broker": "0"}, 0),
    ],
)
def test_a_scenario_says_how_many_subscribers_there_are(flags: dict[str, str], each: int) -> None:
    loaded = load_with(flags=flags)
    assert loaded.values.subscribers == each * loaded.values.brokers
    found = loaded.parameters()["subscribers_per_broker"]
    assert found["value"] == each
    assert found["origin"].startswith("derived: scenario") == (
        "subscribers_per_broker" not in flags
    )


def test_paced_messages_end_with_the_duration_or_the_total() -> None:
    flags = {"scenario": "latency", "rate": "100", "duration": "2.5", "message_size": "64"}
    assert load_with(flags=flags).values.total_messages == 250
    assert load_with(flags=flags | {"total_bytes": "6400"}).values.total_messages == 100
    assert load_with(flags=flags | {"rate": "0.1"}).values.total_messages == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("127.0.0.1:7400", "'127.0.0.1:7400' is not an address such as tcp://127.0.0.1:7400"),
        ("tcp://a:1,,tcp://b:2", "'' is not an address such as tcp://127.0.0.1:7400"),
        ("tcp://a:1,tcp://a:1", "'tcp://a:1,tcp://a:1' names a broker twice"),
    ],
)
def test_what_is_no_list_of_addresses_is_a_mistake(text: str, says: str) -> None:
    assert mistakes(flags={"connect": text}) == [f"flag --connect: {says}"]


@pytest.mark.parametrize(("name", "alias"), ALIASES)
def test_an_alias_sets_its_key_by_file_environment_and_flag(
    my_yaml: Path, name: str, alias: str
) -> None:
    text, value = OTHER_VALUES[name]
    my_yaml.write_text(f"{alias}: {text}\n", encoding="utf-8")
    variable, flag = f"EMBAR_{alias.upper()}", "--" + alias.replace("_", "-")
    for loaded, origin in (
        (load_with("my.yaml"), "my.yaml:1"),
        (load_with(environ={variable: text}), f"environment {variable}"),
        (load_with(flags={alias: text}), f"flag {flag}"),
    ):
        assert loaded.parameters()[name] == {"value": value, "origin": origin}


def test_the_aliases_are_the_names_of_the_original_system() -> None:
    assert ALIASES == [
        ("publishers_per_broker", "threads_per_broker"),
        ("total_bytes", "total"),
        ("total_bytes", "total_message_size"),
    ]


# ---- mistakes ------------------------------------------------------------------------------------


def test_all_mistakes_of_all_sources_are_reported_at_once(my_yaml: Path) -> None:
    my_yaml.write_text("mesage_size: 64\nack: 7\nslots: 0\n", encoding="utf-8")
    assert mistakes(
        "my.yaml",
        "absent.yaml",
        profile="larg-pool",
        environ={"EMBAR_SLOT": "3", "EMBAR_TIMEOUT": "soon"},
        flags={"slots": "many", "in_flight": "0"},
    ) == [
        "profile 'larg-pool' does not exist (did you mean 'large-pool'?); "
        "profiles: default, large-pool, small-memory, or the path of a .yaml file",
        "my.yaml:1:1: unknown key 'mesage_size' (did you mean 'message_size'?)",
        "my.yaml:2:6: ack: 7 is above the maximum 1",
        "my.yaml:3:8: slots: 0 is below the minimum 1",
        "absent.yaml: cannot be read: No such file or directory",
        "environment EMBAR_SLOT: unknown key 'EMBAR_SLOT' (did you mean 'EMBAR_SLOTS'?)",
        "environment EMBAR_TIMEOUT: 'soon' is not a finite number",
        "flag --slots: 'many' is not a whole number (plain decimal digits)",
        "flag --in-flight: 0 is below the minimum 1",
    ]


def test_a_configuration_error_hints_at_the_list_of_keys() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_with(flags={"slots": "0"})
    assert caught.value.exit_code == 2
    assert "--help" in caught.value.hint


def test_a_mistake_is_reported_even_when_a_later_source_overrides_it() -> None:
    assert mistakes(environ={"EMBAR_SLOTS": "0"}, flags={"slots": "8"}) == [
        "environment EMBAR_SLOTS: 0 is below the minimum 1"
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("slots: yes", "slots: true is not a whole number (plain decimal digits)"),
        ("slots: 8.0", "slots: 8 is not a whole number (plain decimal digits)"),
        ("slots: 8 # fine\nack: x", "ack: 'x' is not a whole number (plain decimal digits)"),
        ("slots: 010", "slots: '010' is not a plain decimal number"),
        ("slots: 1_000", "slots: '1_000' is not a plain decimal number"),
        ("slots: 0x10", "slots: '0x10' is not a plain decimal number"),
        ("slots: 1:30", "slots: '1:30' is not a plain decimal number"),
        ("timeout: 1_0.5", "timeout: '1_0.5' is not a plain decimal number"),
        ("slots: !!int ten", "slots: 'ten' is not a plain decimal number"),
        ("ceiling: !!bool maybe", "ceiling: 'maybe' cannot be read as tag:yaml.org,2002:bool"),
        ("wait: !secret x", "wait: 'x' cannot be read as !secret"),
        ("slots: 5000", "slots: 5000 is above the maximum 4096"),
        ("slots:", "slots: there is no value"),
        ("slots: ''", "slots: the value is empty"),
        ("slots: [1, 2]", "slots: expected one value, not a list"),
        ("slots: {a: 1}", "slots: expected one value, not a mapping"),
        ("slots: 2024-01-01", "slots: 2024-01-01 is not a whole number (plain decimal digits)"),
        ("max_publishers: 1001", "max_publishers: 1001 is above the maximum 1000"),
        ("order: 5", "order: 5 is not implemented; orders that exist: 0"),
        ("ack: 2", "ack: 2 is above the maximum 1"),
        ("producer: some", "producer: 'some' is not one of the choices: 'one' or 'many'"),
        ("wait: no", "wait: false is not one of the choices: 'adaptive', 'spin' or 'block'"),
        ("ceiling: 1", "ceiling: 1 is neither true nor false"),
        ("timeout: 0", "timeout: 0 is too small: it must be above 0"),
        ("timeout: .inf", "timeout: inf is not a finite number"),
        ("linger_ms: .nan", "linger_ms: nan is not a finite number"),
        ("linger_ms: -1", "linger_ms: -1 is below the minimum 0"),
        ("linger_ms: true", "linger_ms: true is not a finite number"),
        ("message_size: 0", "message_size: 0 is below the minimum 1"),
        ("message_size: 1.5", "message_size: 1.5 is not a size: write whole bytes, or 2MiB, 10GB"),
        ("message_size: on", "message_size: true is not a size: write whole bytes, or 2MiB, 10GB"),
        ("message_size: 2K", "message_size: '2K' is ambiguous: write KB for powers of 1000"),
        ("batch_size: -2MiB", "batch_size: '-2MiB' is negative: a size is 0 bytes or more"),
        ("slot_size: 0", "slot_size: 0 is below the minimum 1"),
        ("transport: TCP/IP", "transport: 'TCP/IP' is not the name of a transport"),
        ("transport: yes", "transport: true is not the name of a transport"),
        ("workload: quick", "'workload' is not a key: choose it with --workload"),
        ("copy_mode: plain", "unknown key 'copy_mode'"),
        ("zzz: 1", "unknown key 'zzz'"),
        ("<<: {slots: 1}", "unknown key '<<'"),
        ("[a]: 1", "a key is one word, not a list or a mapping"),
    ],
)
def test_a_wrong_line_is_explained(my_yaml: Path, line: str, expected: str) -> None:
    (mistake,) = mistakes_in(my_yaml, line + "\n")
    number = line.count("\n") + 1
    assert mistake.startswith(f"my.yaml:{number}:")
    assert expected in mistake


@pytest.mark.parametrize(
    ("key", "low", "high"),
    [
        ("brokers", 1, 256),
        ("publishers_per_broker", 1, 1024),
        ("ack", 0, 1),
        ("messages_per_call", 1, 2**31 - 1),
        ("slots", 1, 4096),
        ("in_flight", 1, 4096),
        ("max_publishers", 1, 1000),
        ("spin_us", 0, 1000),
        ("linger_ms", 0, 86_400_000),
        ("sample_every", 0, 2**31 - 1),
    ],
)
def test_a_number_just_outside_its_bounds_is_refused(key: str, low: int, high: int) -> None:
    checked = next(known for known in KEYS if known.name == key)
    assert [check_value(checked, bound) for bound in (low, high)] == [low, high]
    with pytest.raises(ValueError, match=f"^{low - 1} is below the minimum {low}$"):
        check_value(checked, low - 1)
    with pytest.raises(ValueError, match=f"^{high + 1} is above the maximum {high}$"):
        check_value(checked, high + 1)


def test_a_timeout_too_large_for_a_float_is_refused_with_a_sentence() -> None:
    assert mistakes(flags={"timeout": 10**400}) == [
        "flag --timeout: a 1329-bit number is not a finite number"
    ]


@pytest.mark.parametrize("key", KEYS, ids=KEY_NAMES)
@pytest.mark.parametrize("text", ["²", "[]", "-1", "9" * 5000, "\udcff", "nan"])
def test_no_text_makes_a_key_fail_without_a_sentence(key: Any, text: str) -> None:
    for mistake in mistakes(environ={f"EMBAR_{key.name.upper()}": text, "EMBAR_ZZZ": ""}):
        assert mistake.startswith("environment EMBAR_")
        assert len(mistake) < 250
        assert "pydantic" not in mistake
        assert "Input should be" not in mistake


@pytest.mark.parametrize(
    ("text", "value"),
    [("true", True), ("FALSE", False), ("1", True), ("0", False), ("yes", True), ("No", False)],
)
def test_a_boolean_variable_takes_the_usual_words(text: str, value: bool) -> None:
    assert load_with(environ={"EMBAR_CEILING": text}).values.ceiling is value


@pytest.mark.parametrize("text", ["010", "1_000", "0x10", "8.0", "1e3"])
def test_a_whole_number_in_a_variable_is_plain_decimal(text: str) -> None:
    (mistake,) = mistakes(environ={"EMBAR_SLOTS": text})
    assert mistake == (
        f"environment EMBAR_SLOTS: '{text}' is not a whole number (plain decimal digits)"
    )


def test_variables_of_other_programs_and_of_the_test_suite_are_ignored() -> None:
    environ = {"PATH": "/bin", "EMBARK": "1", "EMBAR_TEST_SEED": "1"}
    assert load_with(environ=environ) == load_with()


def test_a_variable_in_lower_case_is_pointed_at_the_real_one() -> None:
    assert mistakes(environ={"EMBAR_slots": "8"}) == [
        "environment EMBAR_slots: unknown key 'EMBAR_slots' (did you mean 'EMBAR_SLOTS'?)"
    ]


def test_an_unknown_flag_suggests_the_flag() -> None:
    assert mistakes(flags={"slot_sze": "1"}) == [
        "flag --slot-sze: unknown key '--slot-sze' (did you mean '--slot-size'?)"
    ]


def test_a_key_set_twice_in_a_file_is_refused(my_yaml: Path) -> None:
    assert mistakes_in(my_yaml, "slots: 4\nack: 1\nslots: 4\n") == [
        "my.yaml:3:1: 'slots' is set twice (first at my.yaml:1)"
    ]


def test_a_key_and_its_alias_in_one_source_are_refused(my_yaml: Path) -> None:
    assert mistakes_in(my_yaml, "total: 1GiB\ntotal_bytes: 1GiB\n") == [
        "my.yaml:2:1: 'total_bytes' is another name of 'total' (my.yaml:1): keep one"
    ]
    assert mistakes(environ={"EMBAR_TOTAL": "1GB", "EMBAR_TOTAL_MESSAGE_SIZE": "1GB"}) == [
        "environment EMBAR_TOTAL_MESSAGE_SIZE: 'EMBAR_TOTAL_MESSAGE_SIZE' is another name of "
        "'EMBAR_TOTAL' (environment EMBAR_TOTAL): keep one"
    ]
    assert mistakes(flags={"publishers_per_broker": "1", "threads_per_broker": "1"}) == [
        "flag --threads-per-broker: '--threads-per-broker' is another name of "
        "'--publishers-per-broker' (flag --publishers-per-broker): keep one"
    ]


def test_a_key_and_its_alias_in_different_sources_follow_precedence() -> None:
    loaded = load_with(environ={"EMBAR_TOTAL_BYTES": "1GiB"}, flags={"total": "2GiB"})
    assert loaded.values.total_bytes == 2 * 1024**3


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("slots: 4\n  ack: 1\n", "my.yaml:2:6: YAML: mapping values are not allowed here"),
        ("slots: 'open\n", "my.yaml:2:1: YAML: found unexpected end of stream"),
        ("slots: [1\n", "my.yaml:2:1: YAML: expected ',' or ']'"),
        ("slots: 4\n---\nack: 1\n", "my.yaml:2:1: YAML: but found another document"),
        ("slots: *nowhere\n", "my.yaml:1:8: YAML: found undefined alias"),
        ("slots: \x07\n", "my.yaml: YAML: unacceptable character #x0007"),
        ("- slots\n", "my.yaml:1:1: expected lines of 'key: value'"),
        ("slots\n", "my.yaml:1:1: expected lines of 'key: value'"),
        ("a: " + "[" * 5000, "my.yaml: is nested too deeply"),
    ],
)
def test_a_file_that_is_not_a_flat_mapping_is_explained(
    my_yaml: Path, text: str, expected: str
) -> None:
    (mistake,) = mistakes_in(my_yaml, text)
    assert mistake.startswith(expected)


def test_a_file_that_is_not_text_is_explained(my_yaml: Path) -> None:
    my_yaml.write_bytes(b"ack: 1\n\xff\xfe")
    assert mistakes("my.yaml") == ["my.yaml: is not UTF-8 text (byte 7 of the file)"]


def test_a_directory_is_not_a_file(tmp_path: Path) -> None:
    assert mistakes(str(tmp_path)) == [f"{tmp_path}: cannot be read: Is a directory"]


@pytest.mark.parametrize("text", ["", "# only a comment\n", "\ufeffslots: 8\n", "{}\n"])
def test_an_empty_file_or_a_byte_order_mark_is_no_mistake(my_yaml: Path, text: str) -> None:
    my_yaml.write_text(text, encoding="utf-8")
    assert load_with("my.yaml").values == RunConfig()


# ---- rules between keys --------------------------------------------------------------------------

# The rule, a value of `low` that exceeds the default of `high`, and one of `high` below that of
# `low`. The defaults these meet are written out so that the messages below can be read.
RULE_CASES = {
    ("message_size", "batch_size"): ("4 MiB", "2 MiB", "512 B", "1 KiB"),
    ("batch_size", "slot_size"): ("4 MiB", "2 MiB", "1 MiB", "2 MiB"),
    ("message_size", "total_bytes"): ("2 TiB", "10 GiB", "512 B", "1 KiB"),
    ("in_flight", "slots"): ("9", "8", "1", "2"),
    ("publishers_per_broker", "max_publishers"): ("65", "64", "2", "3"),
}


def test_the_table_of_rule_cases_covers_every_rule() -> None:
    assert list(RULE_CASES) == [(rule.low, rule.high) for rule in RULES]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.low}-{rule.high}")
def test_a_broken_rule_is_reported_at_the_key_that_was_set(rule: AtMost) -> None:
    too_high, high, too_low, low = RULE_CASES[rule.low, rule.high]
    base: dict[str, str] = {"EMBAR_SLOT_SIZE": "2MiB"} if rule.high == "slot_size" else {}
    origins = load_with(environ=base).origins

    found = mistakes(environ=base, flags={rule.low: too_high})
    flag = "--" + rule.low.replace("_", "-")
    assert (
        f"flag {flag}: {too_high} is above {rule.high} {high} ({origins[rule.high]}): "
        f"{rule.because}"
    ) in found

    found = mistakes(environ=base, flags={rule.high: too_low})
    flag = "--" + rule.high.replace("_", "-")
    assert found == [
        f"flag {flag}: {too_low} is below {rule.low} {low} ({origins[rule.low]}): {rule.because}"
    ]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.low}-{rule.high}")
def test_equal_values_keep_a_rule(rule: AtMost) -> None:
    load_with(flags={rule.low: "2", rule.high: "2", "message_size": "2"})


def test_a_broken_rule_in_a_file_has_line_and_column(my_yaml: Path) -> None:
    assert mistakes_in(my_yaml, "# small ring\nslots: 2\nin_flight: 3\n") == [
        "my.yaml:3:12: in_flight: 3 is above slots 2 (my.yaml:2): "
        "a publisher cannot hold more slots than the ring has"
    ]


def test_a_rule_is_reported_together_with_other_mistakes() -> None:
    found = mistakes(flags={"in_flight": "9", "ack": "7"})
    assert [line.split(":")[0] for line in found] == ["flag --ack", "flag --in-flight"]


def test_no_rule_is_reported_about_a_key_whose_value_is_a_mistake() -> None:
    assert len(mistakes(flags={"slots": "no", "in_flight": "9"})) == 1


def test_no_rule_is_reported_about_a_key_that_was_set_twice(my_yaml: Path) -> None:
    assert len(mistakes_in(my_yaml, "in_flight: 9\nin_flight: 2\n")) == 1


def test_a_run_config_built_in_python_keeps_the_rules_too() -> None:
    with pytest.raises(ValidationError, match="in_flight exceeds slots"):
        RunConfig(slots=1)
    with pytest.raises(ValidationError, match="Extra inputs"):
        RunConfig.model_validate({"slot": 1})


def test_a_run_config_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(RunConfig(), KEYS[0].field, "tcp")


# ---- shipped files -------------------------------------------------------------------------------


def test_the_shipped_files_are_listed() -> None:
    assert builtin_names("profile") == ["default", "large-pool", "small-memory"]
    assert builtin_names("workload") == ["one-to-one", "quick", "report", "small-messages"]


@pytest.mark.parametrize("workload", builtin_names("workload"))
@pytest.mark.parametrize("profile", builtin_names("profile"))
def test_every_shipped_profile_loads_with_every_workload(profile: str, workload: str) -> None:
    loaded = load_with(profile=profile, workload=workload)
    assert loaded.values.total_messages >= loaded.values.publishers


@pytest.mark.parametrize("kind", ["profile", "workload"])
def test_every_shipped_file_opens_with_the_question_it_answers(kind: Any) -> None:
    directory = Path(sys.modules["embar_shm.config"].__file__ or "").parent / f"{kind}s"
    for name in builtin_names(kind):
        first = (directory / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
        assert first.startswith("# ")
        assert first.endswith("?")


def test_the_report_workload_spells_out_what_the_report_measured() -> None:
    loaded = load_with(workload="report")
    spelled = [key for key, origin in loaded.origins.items() if origin.startswith("config/")]
    assert spelled == [
        "brokers",
        "publishers_per_broker",
        "message_size",
        "batch_size",
        "total_bytes",
        "order",
        "ack",
        "producer",
    ]


def test_one_call_of_the_one_to_one_workload_fills_one_batch() -> None:
    values = load_with(workload="one-to-one").values
    assert values.messages_per_call * values.message_size == values.batch_size


def test_an_unknown_workload_lists_those_that_exist() -> None:
    assert mistakes(workload="nope") == [
        "workload 'nope' does not exist; workloads: one-to-one, quick, report, small-messages, "
        "or the path of a .yaml file"
    ]


def test_a_workload_can_be_a_path(my_yaml: Path) -> None:
    my_yaml.write_text("brokers: 9\n", encoding="utf-8")
    assert load_with(workload="my.yaml").origins["brokers"] == "my.yaml:1"


def test_the_package_refuses_a_second_name() -> None:
    top = Path(__file__).parents[2]
    completed = subprocess.run(
        [sys.executable, "-c", "import config"],
        cwd=top,
        env={"PYTHONPATH": str(top), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert "import this package as embar_shm.config, not as config" in completed.stderr


# ---- flags ---------------------------------------------------------------------------------------


@click.command()
@config_options
@click.option("--json", is_flag=True)
def command(**kwargs: Any) -> None:
    """Prints its parameters, or its mistakes with exit code 2."""
    try:
        loaded = load_from_flags(kwargs, environ={})
    except ConfigurationError as error:
        raise click.UsageError(error.message) from None
    click.echo(json.dumps(loaded.parameters()))


def invoke(arguments: Sequence[str]) -> dict[str, Any]:
    result = CliRunner().invoke(command, list(arguments))
    assert result.exit_code == 0, result.output
    parameters: dict[str, Any] = json.loads(result.output)
    return parameters


def test_without_flags_nothing_comes_from_a_flag() -> None:
    assert invoke([]) == load_with().parameters()


@pytest.mark.parametrize("key", KEYS, ids=KEY_NAMES)
def test_every_key_has_a_flag(key: Any) -> None:
    text, value = OTHER_VALUES[key.name]
    flag = "--" + key.name.replace("_", "-")
    arguments, origin = [flag, text], f"flag {flag}"
    if key.is_boolean:
        flag = f"--{key.name}" if value else f"--no-{key.name}"
        arguments, origin = [flag], f"flag {flag}"
    if key.name in SCENARIO_OF:
        arguments += ["--scenario", SCENARIO_OF[key.name]]
    assert invoke(arguments)[key.name] == {"value": value, "origin": origin}


@pytest.mark.parametrize(("name", "alias"), ALIASES)
def test_every_alias_is_a_flag_and_the_origin_names_it(name: str, alias: str) -> None:
    text, value = OTHER_VALUES[name]
    flag = "--" + alias.replace("_", "-")
    assert invoke([flag, text])[name] == {"value": value, "origin": f"flag {flag}"}


def test_a_flag_and_its_alias_together_are_refused() -> None:
    result = CliRunner().invoke(command, ["--total", "1GiB", "--total-bytes", "1GiB"])
    assert result.exit_code == 2
    assert "is another name of" in result.output


def test_flags_choose_profile_workload_and_files(my_yaml: Path) -> None:
    my_yaml.write_text("slots: 5\n", encoding="utf-8")
    chosen = ["--profile", "large-pool", "--workload", "quick"]
    assert invoke(chosen)["slots"]["value"] == 64
    assert invoke(chosen)["total_bytes"]["origin"] == "config/workloads/quick.yaml:5"
    assert invoke([*chosen, "--config", "my.yaml"])["slots"]["origin"] == "my.yaml:1"


def test_wrong_flags_are_reported_together() -> None:
    result = CliRunner().invoke(command, ["--slots", "-1", "--copy", "fast", "--timeout", "x"])
    assert result.exit_code == 2
    for flag in ("--slots", "--copy", "--timeout"):
        assert f"flag {flag}: " in result.output


def test_help_shows_every_key_once_with_metavar_description_and_default() -> None:
    # So wide because help is wrapped at the hyphens of flags too.
    result = CliRunner().invoke(command, ["--help"], terminal_width=1000)
    text = " ".join(result.output.split())
    for key in KEYS:
        assert key.description in text
        assert f"Default: {key.default_text}." in text
    assert text.count("--publishers-per-broker N ") == 1
    assert "--producer one|many" in text
    assert "--batch-size SIZE" in text
    assert "--ceiling / --no-ceiling" in text
    assert "Also written --total, --total-message-size. Default: 10 GiB." in text


def test_the_process_environment_is_read_unless_another_is_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EMBAR_SLOTS", "33")
    assert load_from_flags({}).values.slots == 33
    assert load_from_flags({}, environ={}).values.slots == 8
