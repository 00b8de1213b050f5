"""What the environment may say: values out of range, blank ones, names that are no settings."""

import pytest
from pydantic import ValidationError

from service.settings import Settings, unknown_settings
from service.settings_faults import describe_settings_faults


def test_only_names_that_look_like_settings_are_checked() -> None:
    environment = {"DETR_PORT": "1", "detr_host": "::", "PATH": "/bin", "DETR_SERVICE_HOST": "::"}

    (fault,) = unknown_settings(environment)

    assert fault.startswith("DETR_SERVICE_HOST is not a setting")


@pytest.mark.parametrize("value", ["inf", "nan", "1e400"])
def test_a_time_without_an_end_is_refused(value: str) -> None:
    with pytest.raises(ValidationError, match="finite number"):
        Settings(deadline_s=value)


@pytest.mark.parametrize("name", Settings.model_fields)
@pytest.mark.parametrize("value", [" ", ",,", "\t, ,"])
def test_a_variable_that_names_nothing_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"DETR_{name.upper()}", value)

    with pytest.raises(ValidationError) as caught:
        Settings()

    fault = describe_settings_faults(caught.value)
    assert fault.startswith(f"DETR_{name.upper()}: expected a value, got ")
    assert len(fault.splitlines()) == 1


def test_an_empty_variable_is_as_if_it_were_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Settings()
    for name in Settings.model_fields.keys() - {"api_keys_file"}:
        monkeypatch.setenv(f"DETR_{name.upper()}", "")

    assert Settings() == expected


def test_an_empty_name_of_the_file_with_keys_does_not_open_the_service(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DETR_API_KEYS_FILE", "")

    with pytest.raises(ValidationError, match="expected a value, got ''; unset it"):
        Settings()


@pytest.mark.parametrize("key", ["a secret key\n", " a secret key", "a\x7fsecret key"])
def test_a_key_that_no_client_can_send_is_refused(key: str) -> None:
    with pytest.raises(ValidationError, match="which no client could send") as caught:
        Settings.model_validate({"admin_key": key})

    assert "secret" not in describe_settings_faults(caught.value)


@pytest.mark.parametrize("name", ["engine_threads", "decode_threads"])
def test_more_threads_than_any_machine_has_are_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="less than or equal to 1024"):
        Settings.model_validate({name: 1025})


@pytest.mark.parametrize("name", ["drain_delay_s", "drain_timeout_s"])
def test_a_stop_that_takes_longer_than_a_day_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="less than or equal to 86400"):
        Settings.model_validate({name: 1e20})
