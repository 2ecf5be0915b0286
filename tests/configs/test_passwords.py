"""Passwords in URLs: what is hidden, what is left, and that nothing written holds one."""

from __future__ import annotations

import pytest

from configs import ConfigError, dump_config, load_config
from configs.passwords import hide_passwords

SHARDS = ["data.name=image_shards", "data.num_classes=null", "data.num_train_images=null", "data.num_eval_images=null"]
SHARDS += ["data.crop_padding=null"]


@pytest.mark.parametrize(
    "text, shown",
    [
        ("ftp://ann:s3cret@host/data", "ftp://ann:***@host/data"),
        ("ftp://ann:s3cr@et@host/data", "ftp://ann:***@host/data"),
        ("https://ghp_token@host/x", "https://***@host/x"),
        ("ftp://ann@host/x", "ftp://ann@host/x"),
        ("simplecache::ftp://ann:s3cret@host/x", "simplecache::ftp://ann:***@host/x"),
        ("https://host/x?X-Sig=abc&y=1", "https://host/x?X-Sig=***&y=***"),
        ("https://host/x?rawtoken", "https://host/x?***"),
        ("said 'ftp://a:b@h/x' and https://c:d@i/?t=1 too", "said 'ftp://a:***@h/x' and https://c:***@i/?t=*** too"),
        ("github://owner:repository@branch/x", "github://owner:repository@branch/x"),
        ("s3://bucket/imagenet", "s3://bucket/imagenet"),
        ("mail a@b.org, 10:30, /data/x?y=1", "mail a@b.org, 10:30, /data/x?y=1"),
    ],
)
def test_passwords_tokens_and_query_values_are_hidden_and_the_rest_is_left(text: str, shown: str) -> None:
    assert hide_passwords(text) == shown
    assert hide_passwords(shown) == shown


def test_the_written_configuration_has_no_password_and_the_run_has_it() -> None:
    config = load_config("generated_smoke", [*SHARDS, "data.dir=ftp://ann:s3cret@host/data"])
    assert config.data.dir == "ftp://ann:s3cret@host/data"
    assert "s3cret" not in dump_config(config) and "ftp://ann:***@host/data" in dump_config(config)
    assert "s3cret" not in str(config.model_dump(mode="json"))


def test_a_hidden_password_is_asked_for_and_not_tried() -> None:
    with pytest.raises(
        ConfigError, match=r"\*\*\* stands for a password, which is written nowhere; give the whole URL"
    ):
        load_config("generated_smoke", [*SHARDS, "data.dir=ftp://ann:***@host/data"])
