"""A directory behaves like a dictionary of keys, whatever the keys do to each other on disk."""

from __future__ import annotations

import tempfile
from typing import Literal

from hypothesis import given, settings
from hypothesis import strategies as st

from function.storage.local import LocalStore

SEGMENTS = st.sampled_from(["a", "a.txt", "b", "f-a", "d-a", ".comfyfn", "apart"])
KEYS = st.lists(SEGMENTS, min_size=1, max_size=3).map("/".join)
STEPS = st.lists(st.tuples(st.sampled_from(["put", "create", "delete"]), KEYS), max_size=12)


@settings(max_examples=150, deadline=None)
@given(steps=STEPS, prefix=KEYS, start_after=KEYS)
def test_a_directory_is_a_dictionary(
    steps: list[tuple[Literal["put", "create", "delete"], str]], prefix: str, start_after: str
) -> None:
    """After any sequence of writes and deletes the directory holds what a dictionary would, in order."""
    model: dict[str, bytes] = {}
    with tempfile.TemporaryDirectory() as directory:
        store = LocalStore(f"file://{directory}")
        for number, (verb, key) in enumerate(steps):
            data = str(number).encode()
            if verb == "put":
                store.put(key, data)
                model[key] = data
            elif verb == "create":
                assert store.create(key, data) == (key not in model)
                model.setdefault(key, data)
            else:
                store.delete(key)
                model.pop(key, None)
        assert {info.key: store.get(info.key, max_bytes=9) for info in store.list_objects()} == model
        assert [info.key for info in store.list_objects()] == sorted(model)
        wanted = [key for key in sorted(model) if key.startswith(prefix) and key > start_after]
        assert [info.key for info in store.list_objects(prefix, start_after=start_after)] == wanted
