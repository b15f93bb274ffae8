from __future__ import annotations

import pytest

from dreambooth_core.masking import scrubbed, without_secrets, without_userinfo

SECRET = "pl4nted"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        (f"http://ada:{SECRET}@host:5000", "http://ada:***@host:5000"),
        (f"https://{SECRET}@host/api", "https://***@host/api"),
        (f"postgresql://:{SECRET}@host/db", "postgresql://:***@host/db"),
        (f"postgresql://ada:{SECRET}/@:#@host/db", "postgresql://ada:***@host/db"),
        (
            f"postgresql://host/db?user=ada&password={SECRET}",
            "postgresql://host/db?user=ada&password=***",
        ),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("sqlite:////work/a b/mlflow.db", "sqlite:////work/a b/mlflow.db"),
        (f"http://ada:{SECRET}/x@host:5000", "http://ada:***@host:5000"),
        ("mlflow.db", "mlflow.db"),
    ],
)
def test_address_is_shown_without_its_credentials(uri: str, shown: str) -> None:
    assert without_secrets(uri) == shown


@pytest.mark.parametrize("secret", ["p%40ss%20word", "p@ss word"])
def test_error_text_loses_the_password_in_either_spelling(secret: str) -> None:
    uri = "postgresql://ada:p%40ss%20word@host/db"
    query = "postgresql://host/db?user=ada&password=p%40ss%20word"
    assert scrubbed(f"no {secret}", query) == "no ***"
    assert scrubbed(f"no {secret} at {uri}", uri) == "no *** at postgresql://ada:***@host/db"


@pytest.mark.parametrize("user", ["", f"ada:{SECRET}@", f"{SECRET}@", f"ada:{SECRET}/@:@"])
def test_address_to_open_has_no_credentials(user: str) -> None:
    assert without_userinfo(f"http://{user}host:5000/health") == "http://host:5000/health"
