"""What looks like a credential is masked, what doesn't stays, and neither takes forever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cifar_lab.errors import InputError
from cifar_lab.records import credentials
from cifar_lab.records.credentials import (
    MASK,
    check_none_masked,
    hide,
    hide_in_command,
    hide_in_override,
    is_credential,
    masked,
)
from cifar_lab.records.digest import config_digest, deciding
from cifar_lab.records.record import RunRecord

SECRETS = (
    *("password", "db_password", "dbPassword", "WANDB_API_KEY", "apiKey", "api-key", "access_key"),
    *("token", "hf_token", "auth_token", "secret", "client_secret", "credentials", "pass", "auth"),
    *("logger.mlflow.tracking_password", "Authorization", "passwd", "X-Amz-Signature", "sig"),
)
OTHERS = (
    *("class_token", "num_tokens", "pad_token", "mask_token", "tokenizer", "keys", "monitor"),
    *("author", "key", "passes", "compass", "bypass", "optimizer.lr", "authors", "signal"),
)


@pytest.mark.parametrize("key", SECRETS)
def test_keys_of_credentials_are_known_in_any_spelling(key: str) -> None:
    assert is_credential(key)
    assert hide_in_override(f"+{key}=hun ter2") == f"+{key}={MASK}"
    last = key.rpartition(".")[2]
    assert masked({last: "hunter2"}) == {last: MASK}
    assert masked({last: ["hunter2", {"x": "y"}]}) == {last: [MASK, {"x": MASK}]}


@pytest.mark.parametrize("key", OTHERS)
def test_keys_of_networks_and_callbacks_are_not(key: str) -> None:
    assert not is_credential(key)
    assert hide_in_override(f"{key}=hunter2") == f"{key}=hunter2"
    assert masked({key: "hunter2"}) == {key: "hunter2"}


@pytest.mark.parametrize("value", [None, True, False, "", "null", "${oc.env:KEY}", MASK])
def test_what_is_no_secret_stays_as_it_is(value: Any) -> None:
    assert masked({"api_key": value}) == {"api_key": value}
    assert hide_in_override(f"api_key={value}") == f"api_key={value}"


def test_a_number_is_a_password_and_no_token() -> None:
    # a network's `token: 3` decides a result: runs that differ in it are two
    assert masked({"password": 123456, "token": 3}) == {"password": MASK, "token": 3}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://bob:hun/ter2@db:5432/x", "postgresql://bob:***@db:5432/x"),
        ("[https://a:p@ss@h/x,https://b:r@h/y]", "[https://a:***@h/x,https://b:***@h/y]"),
        ("https://ghp_0123456789@github.com/x", "https://***@github.com/x"),
        ("postgresql://bob@host/db", "postgresql://bob@host/db"),
        ("mysql+pymysql://u:p@h/d can't be opened", "mysql+pymysql://u:***@h/d can't be opened"),
        ("https://zenodo.org/x.tar.gz?download=1", "https://zenodo.org/x.tar.gz?download=1"),
        ("https://h/x?sig=abc&token=d&y=1", "https://h/x?sig=***&token=***&y=1"),
        ("x={_target_: A, api_key: abc, note: z}", "x={_target_: A, api_key: ***, note: z}"),
        ("{'password': 'abc', 'b': 1}", "{'password': ***, 'b': 1}"),
        ("postgresql://bob:${oc.env:PW}@host/db", "postgresql://bob:${oc.env:PW}@host/db"),
        ("optimizer.lr=0.1 a@b", "optimizer.lr=0.1 a@b"),
        ("a.password=abc: must be text", "a.password=***: must be text"),
    ],
)
def test_text_keeps_all_but_the_secret(text: str, shown: str) -> None:
    assert hide(text) == shown
    assert hide(shown) == shown


def test_a_command_stays_one() -> None:
    typed = "python -m cifar_lab 'logger.x.password=hun ter' 'model.num_blocks=[1,1]'"
    shown = hide_in_command(typed)
    assert shown == "python -m cifar_lab 'logger.x.password=***' 'model.num_blocks=[1,1]'"
    assert hide_in_command("no shell's 'line") == "no shell's 'line"


def test_what_was_given_is_found_in_any_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "_known", [])
    credentials.learn({"logger": {"x": {"api_key": "hunter2!"}, "y": "ftp://a:p%40ss-w@h"}})
    credentials.learn_arguments(["a.password=first-pw,second-pw", "b=1"])
    assert hide("KeyError: hunter2!, p%40ss-w, p@ss-w, second-pw and first-pw") == (
        "KeyError: ***, ***, ***, *** and ***"
    )
    assert hide("b=1") == "b=1"


def test_short_secrets_mask_their_own_places_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "_known", [])
    credentials.learn_arguments(["logger.x.password=a"])
    assert hide("a banana, logger.x.password=a") == "a banana, logger.x.password=***"


def test_a_command_that_was_copied_with_its_mask_is_refused() -> None:
    with pytest.raises(InputError) as refused:
        check_none_masked(["seed=1", "sweep.storage=postgresql://bob:***@db/x"])
    assert str(refused.value) == (
        "sweep.storage=postgresql://bob:***@db/x: *** stands for what was written nowhere; put it "
        "there, or give it by its variable, as in sweep.storage='${oc.env:NAME}' (docs/secrets.md)"
    )


def test_a_new_password_makes_no_other_run() -> None:
    one = {"seed": 0, "model": {"hub_token": "a" * 8, "url": "https://u:p@h/w"}}
    two = {"seed": 0, "model": {"hub_token": "b" * 8, "url": "https://u:q@h/w"}}
    assert config_digest(one) == config_digest(two) == config_digest(masked(one))
    assert deciding(one) == {"seed": 0, "model.url": "https://u:***@h/w"}
    other = {"seed": 0, "model": {"url": "https://u:p@h/other"}}
    assert config_digest(one) != config_digest(other)


def test_records_of_older_versions_are_read_without_their_secrets(tmp_path: Path) -> None:
    secret = "CANARY-old"
    fields = {
        "schema": 1,
        "status": "failed",
        "command": f"python -m cifar_lab 'logger.x.password={secret} 2'",
        "overrides": [f"logger.x.password={secret}", "seed=1"],
        "config": {"logger": {"x": {"password": secret, "url": f"https://u:{secret}@h"}}},
        "error": f"no connection to https://u:{secret}@h",
        "starts": [{"command": f"python -m cifar_lab sweep.storage=pg://u:{secret}@h/x"}],
        "later": {"api_key": secret},
    }
    (tmp_path / "run.json").write_text(json.dumps(fields))
    record = RunRecord.read(tmp_path)
    assert secret not in record.model_dump_json()
    assert record.overrides == ("logger.x.password=***", "seed=1")
    record.write(tmp_path)
    assert secret not in (tmp_path / "run.json").read_text()


@pytest.mark.parametrize(
    "text",
    [
        "a" * 10**6,
        "a=" * 10**5,
        "://" * 10**5,
        "x://a:" * 10**5,
        "{a:" * 10**5,
        "@" * 10**6,
        "eyJ-" * 10**5,
        "a='" * 10**5,
    ],
)
def test_no_text_takes_long(text: str) -> None:
    # squares of these would take hours
    assert len(hide(text)) >= 0


LONG = "CANARY" + "a1B2c3D4e5F6g7H8i9J0" * 3


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {LONG}",
        f"ghp_{LONG[:36]}",
        f"github_pat_{LONG}",
        f"hf_{LONG[:34]}",
        f"sk-proj-{LONG}",
        f"xoxb-123456789012-{LONG}",
        f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.{LONG}",
        f"https://hooks.slack.com/services/T0/B0/{LONG}",
        f"https://discord.com/api/webhooks/1/{LONG}",
        f"-----BEGIN RSA PRIVATE KEY-----\n{LONG}\n-----END RSA PRIVATE KEY-----",
        f"a='sqlite:///x.db?password={LONG}'",
        f"logger.w.webhook={LONG}",
        f"logger.w.session_cookie={LONG}",
        f"hydra.job.env_set.MY_TOKEN={LONG}",
        f"WANDB_KEY={LONG}",
    ],
)
def test_what_looks_like_one_is_masked_wherever_it_stands(text: str) -> None:
    for hiding in (hide, hide_in_override):
        assert LONG[:20] not in hiding(f"{text}"), hiding(text)
        assert "***" in hiding(text)


@pytest.mark.parametrize(
    "text",
    [
        "a bearer of good news", "sk-learn", "hf_hub", "model.class_token=true",
        "https://hooks.slack.com/", "the eyJ of a token", "num_tokens=64", "key=value",
    ],
)  # fmt: skip
def test_what_only_begins_like_one_stays(text: str) -> None:
    assert hide(text) == hide_in_override(text) == text
